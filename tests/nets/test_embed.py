"""What conditions a network, added up: the step, the frame, a label, a vector."""

import numpy as np
import pytest

from tests.nets.test_layers import dense, made, normal, silu
from vf.nets import embed


def test_sinusoid_is_the_formula():
    t = np.array([[0, 1, 7], [500, 999, 3]])
    y = embed.sinusoid(t, 6)
    for index, step in np.ndenumerate(t):
        angles = [step * np.exp(-np.log(1e4) * i / 3) for i in range(3)]
        np.testing.assert_allclose(y[index], [*np.cos(angles), *np.sin(angles)], atol=1e-4)
    with pytest.raises(ValueError, match="even width"):
        embed.sinusoid(t, 5)


def test_conditioning_is_a_sum():
    t, label, cond = np.array([3, 900]), np.array([2, 0]), normal(2, 5)
    frame = np.array([[0, 1, 2], [4, 6, 8]])
    module = embed.Conditioning(4, num_classes=2, null_class=True, cond_dim=5, frame_embed=True)
    p, y = made(module, t, label, cond, frame)

    def position(n, p):
        return dense(silu(dense(np.asarray(embed.sinusoid(n, 4)), p["hidden"])), p["out"])

    assert p["label"]["embedding"].shape == (3, 16)  # label 2 is the null class
    row = position(t, p["time"]) + p["label"]["embedding"][label] + dense(cond, p["cond"])
    np.testing.assert_allclose(y, row[:, None] + position(frame, p["frame"]), atol=1e-5)


def test_conditioning_adds_an_unprojected_vector_as_it_is():
    t, cond = np.array([3, 900]), normal(2, 16)
    module = embed.Conditioning(4, cond_dim=16, cond_projection=False)
    p, y = made(module, t, None, cond, np.arange(3))
    without = module.apply({"params": p}, t, None, 0 * cond, np.arange(3))
    assert set(p) == {"time"}
    assert y.shape == (2, 1, 16)
    np.testing.assert_allclose(y - without, cond[:, None], atol=1e-5)
