"""Every prior's noise has unit marginals and the covariance of its formula."""

import jax
import numpy as np
import pytest

from vf.diffusion import decompose, noise

SHAPE = (5, 4, 4, 3)
PRIORS = {
    "independent": noise.Independent(),
    "decomposed": noise.Decomposed(decompose.make_lambda(0.5, 5, 1)),
    "mixed": noise.Mixed(1.5),
    "progressive": noise.Progressive(2.0),
}


@pytest.mark.parametrize("name", list(PRIORS))
def test_covariance(name):
    keys = jax.random.split(jax.random.key(0), 1000)
    eps = np.asarray(jax.vmap(lambda k: PRIORS[name].draw(k, SHAPE))(keys), np.float64)
    draws = np.moveaxis(eps, 1, -1).reshape(-1, 5)
    np.testing.assert_allclose(np.cov(draws.T), PRIORS[name].covariance(5), atol=0.03)
    np.testing.assert_allclose(np.diag(PRIORS[name].covariance(5)), 1, atol=1e-7)


def test_pyoco_formulas():
    """Mixed: a^2 / (1 + a^2) between any two frames. Progressive: (a / sqrt(1 + a^2))^|i - j|."""
    mixed, progressive = noise.Mixed(2.0).covariance(3), noise.Progressive(2.0).covariance(3)
    np.testing.assert_allclose(mixed[0], [1, 0.8, 0.8])
    np.testing.assert_allclose(progressive[0], [1, 2 / np.sqrt(5), 0.8])
    np.testing.assert_allclose(noise.Progressive(3.0).covariance(3)[0], [1, 3 / np.sqrt(10), 0.9])
    assert (noise.Mixed().a, noise.Progressive().a) == (1, 2)  # the paper's, by our reading


def test_mixed_is_decomposed_without_a_base_frame():
    lam = np.full(4, 0.5, np.float32)
    np.testing.assert_allclose(noise.Mixed(1.0).covariance(4), noise.Decomposed(lam).covariance(4), atol=1e-7)


def test_pixels_are_independent():
    keys = jax.random.split(jax.random.key(1), 4000)
    eps = np.asarray(jax.vmap(lambda k: noise.Progressive(2.0).draw(k, (3, 2, 2, 1)))(keys))[:, 2].reshape(-1, 4)
    np.testing.assert_allclose(np.cov(eps.T), np.eye(4), atol=0.1)


def test_base_and_residual_noise_are_drawn_separately():
    """Fixed base noise, redrawn residual noise: the base frame stays, the others change (content against motion)."""
    prior = PRIORS["decomposed"]
    b, r = prior.parts(jax.random.key(0), SHAPE)
    _, other = prior.parts(jax.random.key(1), SHAPE)
    one, two = decompose.combine(b, r, prior.lam), decompose.combine(b, other, prior.lam)
    np.testing.assert_array_equal(one[1], two[1])
    assert np.abs(np.delete(one - two, 1, 0)).min(axis=0).mean() > 0.1
