"""First values: their distribution, and that they are functions of the seed and the name alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import unet
from vf.nets import initial, unclip
from vf.nets.unet import UNet
from vf.training.sharding import named


def shapes_and_initializers(net, **inputs):
    z = jnp.zeros((1, 2, 8, 8, 3))
    return initial.of(lambda: net.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32), **inputs)["params"])


def test_kernels_are_lecuns_and_the_rest_is_constant():
    """LeCun et al., "Efficient backprop" (1998): variance 1 / inputs; here cut at two standard deviations."""
    x = initial.LECUN.draw(0, "kernel", (3, 3, 32, 400))
    scale = 1 / np.sqrt(3 * 3 * 32)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 4 * scale / np.sqrt(x.size)
    assert x.std() == pytest.approx(scale, rel=0.01)
    # Cutting at two widens what is drawn by 1 / 0.8796, so that the standard deviation is as said.
    assert 0.99 * 2 * scale / 0.8796 < np.abs(x).max() <= 2 * scale / 0.8796 * 1.0001
    table = initial.NORMAL.draw(0, "table", (200, 300))
    assert table.std() == pytest.approx(1, rel=0.02)
    assert np.abs(table).max() > 3.5
    for constant, value in ((initial.ZEROS, 0), (initial.ONES, 1)):
        assert (constant.draw(0, "x", (2, 3)) == np.full((2, 3), value)).all()


def test_values_depend_on_seed_and_name_alone():
    draw = initial.LECUN.draw
    np.testing.assert_array_equal(draw(0, "a/kernel", (4, 5)), draw(0, "a/kernel", (4, 5)))
    for other in (draw(1, "a/kernel", (4, 5)), draw(0, "b/kernel", (4, 5))):
        assert np.abs(np.corrcoef(other.ravel(), draw(0, "a/kernel", (4, 5)).ravel())[0, 1]) < 0.9
    # Known numbers: a run that is started again begins where it began, under any version of this library.
    np.testing.assert_allclose(draw(0, "kernel", (1, 3)), KNOWN, rtol=1e-6)


KNOWN = [[-2.13374, -0.28407732, -0.97643346]]


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (unet(temporal=("conv", "attention"), frame_embed=True, dropout=0.1, remat="blocks"), {}),
        (
            unet(num_classes=3, null_class=True, cond_dim=5),
            {"label": jnp.zeros(1, jnp.int32), "cond": jnp.zeros((1, 5))},
        ),
        (
            unclip.Decoder(
                UNet(8, (1, 2), 1, (2,), head_dim=8, norm_groups=4, cond_dim=32, cond_projection=False, context_dim=6),
                texts=2, text_length=3, clip_dim=4, image_tokens=2,
            ),
            {},
        ),
    ],
)  # fmt: skip
def test_every_parameter_of_a_network_says_how_it_begins(net, inputs):
    """And Flax's own initialisation has the distribution that is drawn: mean and scale of each array."""
    shapes, begins = shapes_and_initializers(net, **inputs)
    assert set(begins) == set(named(shapes))
    z = jnp.zeros((1, 2, 8, 8, 3))
    flax = named(jax.jit(lambda: net.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32), **inputs)["params"])())
    for name, value in flax.items():
        drawn, value = begins[name].draw(0, name, value.shape), np.asarray(value)
        assert drawn.shape == value.shape, name
        assert value.mean() == pytest.approx(drawn.mean(), abs=8 * value.std() / np.sqrt(value.size)), name
        assert value.std() == pytest.approx(drawn.std(), rel=8 / np.sqrt(value.size)), name
