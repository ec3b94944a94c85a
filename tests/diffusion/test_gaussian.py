"""eps, x_0 and v: any one gives the others, for every pair, with noise of full and of reduced amplitude."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import gaussian

X, EPS = jax.random.normal(jax.random.key(0), (2, 500))


@pytest.mark.parametrize("shrink", [1.0, np.sqrt(0.5), 0.1])
@pytest.mark.parametrize("angle", [0.05, 0.7, 1.5])
@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(gaussian.PREDICTIONS, repeat=2)))
def test_every_ordered_pair(given, wanted, angle, shrink):
    alpha, sigma = jnp.cos(angle), shrink * jnp.sin(angle)
    z = gaussian.corrupt(X, EPS, alpha, sigma)
    prediction = gaussian.target(given, X, EPS, alpha, sigma)
    converted = gaussian.CONVERT[wanted](given, prediction, z, alpha, sigma)
    worst = 1e-5 / min(float(alpha), float(sigma))  # eps -> x_0 divides by alpha, x_0 -> eps by sigma
    np.testing.assert_allclose(converted, gaussian.target(wanted, X, EPS, alpha, sigma), atol=worst)
    np.testing.assert_allclose(gaussian.to_noise(given, prediction, z, alpha, sigma), sigma * EPS, atol=worst)


def test_v_is_salimans_and_hos():
    alpha, sigma = jnp.cos(0.3), jnp.sin(0.3)
    np.testing.assert_allclose(gaussian.target("v", X, EPS, alpha, sigma), alpha * EPS - sigma * X, atol=1e-6)


def test_v_keeps_unit_variance():
    """v of unit x_0 and eps has unit variance at any noise amplitude: a target of even scale."""
    for sigma in (0.01, 0.5, 1.0):
        v = gaussian.target("v", X, EPS, jnp.float32(0.3), jnp.float32(sigma))
        np.testing.assert_allclose(jnp.std(v), 1, atol=0.1)


def test_no_noise_means_no_noise():
    """At sigma = 0 the whole noise is 0 for eps and v (lambda = 1 off the base frame)."""
    for kind in ("eps", "v"):
        np.testing.assert_allclose(gaussian.to_noise(kind, EPS, 0.5 * X, 0.5, 0.0), 0, atol=1e-6)


def test_an_unknown_prediction_is_named():
    for call, kind in itertools.product((gaussian.target, gaussian.to_x_0, gaussian.to_eps), ("x0", "epsilon", "V")):
        with pytest.raises(ValueError, match=repr(kind)):
            call(kind, X, EPS, 0.5, 0.5)


@pytest.mark.parametrize("shrink", [1.0, np.sqrt(0.5)])
@pytest.mark.parametrize(("predicted", "loss_kind"), list(itertools.product(gaussian.PREDICTIONS, repeat=2)))
def test_loss_weight_is_the_ratio_of_squared_errors(predicted, loss_kind, shrink):
    """A wrong prediction in both units: the squared errors differ by the weight."""
    alpha, sigma = jnp.cos(0.8), shrink * jnp.sin(0.8)
    z = gaussian.corrupt(X, EPS, alpha, sigma)
    wrong = gaussian.target(predicted, X, EPS, alpha, sigma) + 0.3
    other = gaussian.CONVERT[loss_kind](predicted, wrong, z, alpha, sigma)
    ratio = np.mean((other - gaussian.target(loss_kind, X, EPS, alpha, sigma)) ** 2) / 0.09
    np.testing.assert_allclose(gaussian.loss_weight(predicted, loss_kind, alpha, sigma, 1e9), ratio, rtol=1e-3)


def test_loss_weight_is_bounded():
    assert gaussian.loss_weight("x_0", "v", jnp.float32(1.0), jnp.float32(0.0), 20.0) == 20
