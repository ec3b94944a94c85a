"""The equations of the decomposition, one by one, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import decompose, gaussian, noise
from vf.diffusion.schedule import cosine, spread

FRAMES, BASE = 6, 2
SHAPE = (FRAMES, 4, 4, 3)
VECTOR = (0.1, 0.9, 0.3, 0.0, 0.7, 0.5)  # entry BASE is replaced by 1


def parts(lam, n=4, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.vmap(lambda k: noise.Decomposed(lam).parts(k, SHAPE))(keys)


def noised(lam, t=600, n=4):
    """x, b, r, eps, z, alpha, sigma of n random clips at step t."""
    b, r = parts(lam, n)
    x = jax.random.normal(jax.random.key(9), (n, *SHAPE))
    eps = decompose.combine(b, r, lam)
    alpha, sigma = (jnp.full(n, f(jnp.asarray(t))) for f in (cosine().alpha, cosine().sigma))
    return x, b, r, eps, gaussian.corrupt(x, eps, spread(alpha, x), spread(sigma, x)), alpha, sigma


def test_base_frame_is_the_papers():
    """floor(N / 2) counted from 1."""
    assert [decompose.base_index(n) for n in (2, 3, 8, 15, 16)] == [0, 0, 3, 6, 7]
    with pytest.raises(ValueError, match="at least 2 frames"):
        decompose.base_index(1)


def test_lambda_is_one_at_the_base_frame_only():
    lam = decompose.make_lambda(0.5, 16, 7)
    assert lam[7] == 1
    np.testing.assert_array_equal(np.delete(lam, 7), 0.5)
    np.testing.assert_allclose(decompose.make_lambda(VECTOR, FRAMES, BASE), [0.1, 0.9, 1.0, 0.0, 0.7, 0.5], rtol=1e-7)
    assert decompose.make_lambda(0.25, 3, 0).tolist() == [1, 0.25, 0.25]  # any frame may be it, the first and the last
    assert decompose.make_lambda(0.25, 3, 2).tolist() == [0.25, 0.25, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, r"\[0, 1\]"),
        (1.1, r"\[0, 1\]"),
        (float("nan"), r"\[0, 1\]"),
        ((0.5, 0.5), "6 numbers"),
        (((0.5,) * 6,) * 6, "6 numbers"),
    ],
)
def test_lambda_out_of_range_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        decompose.make_lambda(value, FRAMES, BASE)


def test_base_frame_outside_the_clip_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.5"):
        decompose.make_lambda(0.5, FRAMES, 6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, VECTOR])
def test_covariance_of_the_noise(value):
    """Var eps^i = 1 and Cov(eps^i, eps^j) = sqrt(lambda^i lambda^j)."""
    lam = decompose.make_lambda(value, FRAMES, BASE)
    b, r = parts(lam, n=1000)
    eps = np.asarray(decompose.combine(b, r, lam), np.float64)
    draws = np.moveaxis(eps, 1, -1).reshape(-1, FRAMES)  # 48,000 draws of the frames' joint noise
    expected = np.sqrt(np.outer(lam, lam))
    np.fill_diagonal(expected, 1)
    # The standard error of a sample covariance of unit normals is at most sqrt(2 / n) = 0.0065.
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.03)
    np.testing.assert_allclose(noise.Decomposed(lam).covariance(FRAMES), expected, atol=1e-7)
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.03)


def test_lambda_zero_is_independent_noise_and_one_is_one_noise():
    b, r = parts(np.zeros(FRAMES, np.float32))
    np.testing.assert_array_equal(decompose.combine(b, r, np.zeros(FRAMES, np.float32)), r)
    same = decompose.combine(b, r, np.ones(FRAMES, np.float32))
    np.testing.assert_array_equal(same, jnp.broadcast_to(b[:, None], same.shape))


def test_lambda_per_clip():
    """A matrix of lambdas treats every clip as its own vector does."""
    lam = np.stack([decompose.make_lambda(v, FRAMES, BASE) for v in (0.0, 0.5, 1.0, VECTOR)])
    x, _, _, _, _, alpha, sigma = noised(lam[0])
    b, r = parts(lam[0])
    eps = decompose.combine(b, r, lam)
    z = gaussian.corrupt(x, eps, spread(alpha, x), spread(sigma, x))
    prime = decompose.residual_input(z, b, lam, sigma)
    whole = decompose.eps_hat("v", r, prime, b, lam, alpha, sigma)
    errors = decompose.residual_error("v", r, x, eps, b, lam, alpha, sigma)
    for n in range(4):
        one = slice(n, n + 1)
        np.testing.assert_allclose(eps[one], decompose.combine(b[one], r[one], lam[n]), rtol=1e-6)
        alone = decompose.eps_hat("v", r[one], prime[one], b[one], lam[n], alpha[one], sigma[one])
        np.testing.assert_allclose(whole[one], alone, rtol=1e-5, atol=1e-6)
        args = ("v", r[one], x[one], eps[one], b[one], lam[n], alpha[one], sigma[one])
        np.testing.assert_allclose(errors[one], decompose.residual_error(*args), rtol=1e-5)


def test_true_base_noise_leaves_a_less_noisy_frame():
    """z'^i = alpha x^i + sigma sqrt(1 - lambda^i) r^i where b_hat = b (5, 8)."""
    lam = decompose.make_lambda(VECTOR, FRAMES, BASE)
    x, b, r, _, z, alpha, sigma = noised(lam)
    expected = spread(alpha, x) * x + decompose.residual_sigma(lam, sigma) * r
    np.testing.assert_allclose(decompose.residual_input(z, b, lam, sigma), expected, atol=1e-5)


@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_oracles_have_no_loss_and_give_back_eps(kind):
    """The true b and r (given as eps, x_0 or v) make equation (7) zero and equation (6) exact off the base frame."""
    lam = decompose.make_lambda(VECTOR, FRAMES, BASE)
    x, b, r, eps, z, alpha, sigma = noised(lam)
    prime = decompose.residual_input(z, b, lam, sigma)
    value = gaussian.target(kind, x, r, spread(alpha, x), decompose.residual_sigma(lam, sigma))
    error = decompose.residual_error(kind, value, x, eps, b, lam, alpha, sigma)
    np.testing.assert_allclose(error, 0, atol=1e-10)
    np.testing.assert_allclose(decompose.eps_hat(kind, value, prime, b, lam, alpha, sigma), eps, atol=2e-5)


@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_the_residual_generator_can_correct_a_wrong_base(kind):
    """z' = alpha x + sigma r' for any b_hat, so a value that states r' gives the true eps, whatever b_hat is."""
    lam = decompose.make_lambda(0.5, FRAMES, BASE)
    x, b, _, eps, z, alpha, sigma = noised(lam)
    wrong = b + jax.random.normal(jax.random.key(5), b.shape)
    residual = (eps - np.sqrt(0.5) * wrong[:, None]) / np.sqrt(0.5)
    value = gaussian.target(kind, x, residual, spread(alpha, x), decompose.residual_sigma(lam, sigma))
    prime = decompose.residual_input(z, wrong, lam, sigma)
    given = decompose.eps_hat(kind, value, prime, wrong, lam, alpha, sigma)
    np.testing.assert_allclose(np.delete(given, BASE, 1), np.delete(eps, BASE, 1), atol=2e-5)
    error = decompose.residual_error(kind, value, x, eps, wrong, lam, alpha, sigma)
    np.testing.assert_allclose(np.delete(error, BASE, 1), 0, atol=1e-9)


def test_posterior_means_have_a_loss():
    """A base that predicts E[b | z^c] instead of b leaves an error: its posterior variance."""
    lam = decompose.make_lambda(0.5, FRAMES, BASE)
    _, b, _, _, z, _, sigma = noised(lam, n=64)
    posterior = sigma[0] * z[:, BASE]  # x and b are unit normals, alpha^2 + sigma^2 = 1
    error = float(jnp.mean((posterior - b) ** 2))
    np.testing.assert_allclose(error, 1 - float(sigma[0]) ** 2, rtol=0.1)


def test_the_papers_loss_is_the_residual_error_for_eps():
    """Equation (7), second line, transcribed."""
    lam = decompose.make_lambda(VECTOR, FRAMES, BASE)
    x, b, _, eps, _, alpha, sigma = noised(lam)
    b_hat, r_hat = b + 0.3, jax.random.normal(jax.random.key(3), x.shape)
    got = decompose.residual_error("eps", r_hat, x, eps, b_hat, lam, alpha, sigma)
    for i in range(FRAMES):
        difference = eps[:, i] - np.sqrt(lam[i]) * b_hat - np.sqrt(1 - lam[i]) * r_hat[:, i]
        np.testing.assert_allclose(got[:, i], (difference**2).mean((1, 2, 3)), rtol=1e-5)


def test_the_losses_are_means_over_each_generators_frames():
    errors = jnp.array([[1.0, 10.0, 2.0, 3.0], [4.0, 20.0, 5.0, 6.0]])
    base, residual = decompose.losses(errors, 1)
    assert float(base) == 15
    assert float(residual) == 3.5


def test_the_base_frame_ignores_the_residual_generator():
    """eps_hat at lambda = 1 is b_hat for any residual value, and for every frame where lambda = 1 everywhere."""
    for lam, frames in (
        (decompose.make_lambda(0.5, FRAMES, BASE), [BASE]),
        (np.ones(FRAMES, np.float32), range(FRAMES)),
    ):
        x, b, _, _, z, alpha, sigma = noised(lam)
        b_hat = b + 1
        prime = decompose.residual_input(z, b_hat, lam, sigma)
        for kind in gaussian.PREDICTIONS:
            any_value = 100 * jax.random.normal(jax.random.key(7), x.shape)
            given = decompose.eps_hat(kind, any_value, prime, b_hat, lam, alpha, sigma)
            for i in frames:
                np.testing.assert_array_equal(given[:, i], b_hat)


@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_no_gradient_reaches_the_base_from_other_frames(kind):
    """The stop-gradient of (5) and (7): exactly zero, also with a residual generator that reads z'."""
    lam = decompose.make_lambda(0.5, FRAMES, BASE)
    x, b, _, eps, z, alpha, sigma = noised(lam)

    def loss(b_hat):
        value = jnp.tanh(decompose.residual_input(z, b_hat, lam, sigma))
        error = decompose.residual_error(kind, value, x, eps, b_hat, lam, alpha, sigma)
        return jnp.delete(error, BASE, axis=1).sum()

    np.testing.assert_array_equal(jax.grad(loss)(b), 0)
