"""Inversion of DDIM: it undoes the solver's steps, whatever their number and the noise's amplitude."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import SCHEDULE
from vf.diffusion import inversion, solvers

GRID = np.array([900, 700, 400, 150, 20, -1], np.int32)  # at the very first times float32 knows little of x


def denoise(z, t):
    """The perfect network of pixels of variance 1 / 4, bent a little so that it is no linear map."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return sigma * z / (alpha**2 / 4 + sigma**2) + 0.1 * sigma * jnp.tanh(z)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_sampled_from_the_noise_found_is_the_clip(scale):
    x = 0.5 * jax.random.normal(jax.random.key(0), (2, 3, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def error(iterations):
        z = inversion.invert(denoise, x, GRID, SCHEDULE, scale=scale, iterations=iterations)
        return jnp.abs(solvers.solve(denoise, z, GRID, SCHEDULE, scale=scale) - x).max()

    errors = [float(error(n)) for n in (1, 4, 30)]
    assert errors[0] > 3 * errors[1] > 30 * errors[2]
    assert errors[2] < 1e-5


def test_it_takes_an_iteration():
    with pytest.raises(ValueError, match="at least one iteration"):
        inversion.invert(denoise, jnp.zeros((1, 1)), GRID, SCHEDULE, iterations=0)


def test_the_noise_found_is_in_the_order_of_the_grid():
    """Of a network that always finds the noise e, x + s e / a at each level lies on one line: z_T = a_T x + s_T e."""
    e, x = 0.7, jnp.full((1, 2), 0.3)
    z = inversion.invert(lambda z, t: jnp.full_like(z, e), x, GRID, SCHEDULE)
    alpha, sigma = SCHEDULE.alpha(jnp.asarray(GRID[0])), SCHEDULE.sigma(jnp.asarray(GRID[0]))
    np.testing.assert_allclose(z, alpha * x + sigma * e, atol=1e-6)
