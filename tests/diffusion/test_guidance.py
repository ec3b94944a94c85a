"""Guidance is linear between the unconditional and the conditional prediction, in one doubled pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import gaussian
from vf.diffusion.guidance import Guidance
from vf.diffusion.guidance import guided as guided_estimate
from vf.diffusion.schedule import cosine, spread

SCHEDULE = cosine()
GIVEN, WITHOUT = 3.0, 1.0
T = jnp.array([999, 600, 300, 0])


def guided(predict, guidance, kind="eps"):
    """The guided prediction of the same kind."""

    def call(z, t):
        levels = lambda t: (spread(SCHEDULE.alpha(t), z), spread(SCHEDULE.sigma(t), z))  # noqa: E731
        return gaussian.target(kind, *guided_estimate(predict, kind, levels, guidance)(z, t), *levels(t))

    return call


def predictor(calls):
    def predict(z, t, null):
        calls.append(len(z))
        return jnp.where(null, WITHOUT, GIVEN)[:, None] * jnp.ones_like(z)

    return predict


@pytest.mark.parametrize(("scale", "expected"), [(0.0, WITHOUT), (1.0, GIVEN), (2.5, WITHOUT + 2.5 * 2)])
def test_scale(scale, expected):
    calls = []
    result = guided(predictor(calls), Guidance(scale))(jnp.ones((4, 2)), T)
    np.testing.assert_allclose(result, expected)
    assert calls == [4 if scale == 1 else 8]


def test_guidance_of_some_times():
    """From the first to the last, both included."""
    result = guided(predictor([]), Guidance(2.0, interval=(300, 600)))(jnp.zeros((4, 2)), T)
    np.testing.assert_allclose(result[:, 0], [GIVEN, 5, 5, GIVEN])


def test_the_residual_generator_may_have_a_scale_of_its_own():
    guidance = Guidance(2.0, interval=(1, 2), rescale=0.3)
    assert guidance.of_residual is guidance
    assert Guidance(2.0, 1.0, (1, 2), 0.3).of_residual == Guidance(1.0, 1.0, (1, 2), 0.3)


@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_gives_each_clip_its_standard_deviation_back(share, kind):
    """That of the prediction, whatever its kind."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    factor = jnp.array([1.0, 2.0, 5.0])[:, None, None]

    def predict(z, t, null):
        given = z[:3] * factor
        return jnp.concatenate([given, jnp.roll(given, 1, axis=-1)])

    t = jnp.full(3, 500)
    steered = guided(predict, Guidance(4.0), kind)(z, t)
    result = guided(predict, Guidance(4.0, rescale=share), kind)(z, t)
    stds = np.asarray(steered.std((1, 2))), np.asarray((z * factor).std((1, 2)))
    np.testing.assert_allclose(result.std((1, 2)), (1 - share) * stds[0] + share * stds[1], rtol=1e-4)
    np.testing.assert_allclose(result, (result.std((1, 2)) / stds[0])[:, None, None] * steered, atol=1e-4)


def test_bad_values():
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        Guidance(2.0, rescale=1.5)
    for interval in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="0 <= first <= last"):
            Guidance(2.0, interval=interval)
