"""DDIM against closed forms: with the exact E[eps | all noised frames] it gives back the data's mean and covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gaussian_video as closed
from vf.diffusion import decompose, priors, solvers
from vf.diffusion.schedule import cosine, linear, time_grid

FRAMES = 4
S = closed.covariance(FRAMES)
MEAN = np.array([0.5, -0.2, 0.1, 0.3])
PRIORS = {
    "independent": priors.Independent(),
    "decomposed": priors.Decomposed(decompose.make_lambda(0.5, FRAMES, 1)),
    "progressive": priors.Progressive(2.0),
}


def exact_denoiser(K, schedule):
    """E[eps | z] of the Gaussian video, for clips [b f 1 1 1]."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        P = sigma * K @ jnp.linalg.inv(alpha**2 * S + sigma**2 * K)
        return jnp.einsum("ij,bjhwc->bihwc", P, z - alpha * jnp.reshape(MEAN, (1, FRAMES, 1, 1, 1)))

    return denoise


@pytest.mark.parametrize("schedule", [cosine(), linear()], ids=["cosine", "linear"])
@pytest.mark.parametrize("name", list(PRIORS))
def test_the_exact_denoiser_gives_the_datas_mean_and_covariance(name, schedule):
    """Deterministic DDIM is affine here, so columns of the noise's root show its covariance without sampling error."""
    K = PRIORS[name].covariance(FRAMES)
    root = np.linalg.cholesky(K).T
    starts = np.concatenate([root, np.zeros((1, FRAMES))])[:, :, None, None, None].astype(np.float32)
    clips = solvers.ddim(exact_denoiser(K, schedule), starts, time_grid(500, 1000), schedule)
    clips = np.asarray(clips, np.float64).reshape(-1, FRAMES)
    A = clips[:-1] - clips[-1]
    np.testing.assert_allclose(clips[-1], MEAN, atol=0.02)
    np.testing.assert_allclose(A.T @ A, S, atol=0.02)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", list(PRIORS))
def test_injected_noise_of_the_same_prior_keeps_the_distribution(name, eta):
    schedule, prior, n = cosine(), PRIORS[name], 10_000
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.vmap(lambda k: prior.draw(k, (FRAMES, 1, 1, 1)))
    noise = lambda t: draw(jax.vmap(jax.random.fold_in, (0, None))(keys, t + 1))  # noqa: E731
    clips = solvers.ddim(
        exact_denoiser(prior.covariance(FRAMES), schedule), draw(keys), time_grid(300, 1000), schedule,
        eta=eta, noise=noise,
    )  # fmt: skip
    clips = np.asarray(clips, np.float64).reshape(n, FRAMES)
    np.testing.assert_allclose(clips.mean(0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(clips.T), S, atol=0.05)


def test_injected_noise_of_another_prior_does_not():
    """Why eta > 0 must decompose its noise: independent noise loosens the frames' correlation."""
    schedule, prior, n = cosine(), PRIORS["progressive"], 20_000
    keys = jax.random.split(jax.random.key(0), n)
    z_T = jax.vmap(lambda k: prior.draw(k, (FRAMES, 1, 1, 1)))(keys)
    noise = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(1), t), z_T.shape)  # noqa: E731
    denoise = exact_denoiser(prior.covariance(FRAMES), schedule)
    clips = solvers.ddim(denoise, z_T, time_grid(100, 1000), schedule, eta=1.0, noise=noise)
    assert np.abs(np.cov(np.asarray(clips).reshape(n, FRAMES).T) - S).max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_point_is_found_in_one_step(eta):
    """Where all data is one clip, the true eps leads there from any noise, in any number of steps."""
    schedule, point = cosine(), jnp.linspace(-1, 1, 12).reshape(1, 3, 2, 2, 1)
    denoise = lambda z, t: (z - schedule.alpha(t) * point) / schedule.sigma(t)  # noqa: E731
    z_T = jax.random.normal(jax.random.key(0), (5, 3, 2, 2, 1))
    noise = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(1), t), z_T.shape)  # noqa: E731
    for steps in (1, 10):
        grid = time_grid(steps, 1000)
        # From t = 999 the signal is 5e-5 of z: bounding x_0 keeps rounding from growing 20,000-fold.
        given = solvers.ddim(denoise, z_T, grid, schedule, eta=eta, noise=noise, clip_x_0=1.0)
        np.testing.assert_allclose(given, jnp.broadcast_to(point, z_T.shape), atol=5e-3)


def test_smaller_noise_is_an_ordinary_diffusion():
    """`scale` = sqrt(1 - lambda): the walk of a scaled problem is the scaled walk (base-first residual frames)."""
    schedule, scale = cosine(), 0.6
    denoise = lambda z, t: schedule.sigma(t) * scale * z / (schedule.alpha(t) ** 2 + (scale * schedule.sigma(t)) ** 2)  # noqa: E731
    z_T = scale * jnp.ones((1, 1, 1, 1, 1))
    end = solvers.ddim(denoise, z_T, time_grid(1000, 1000), schedule, scale=scale)
    np.testing.assert_allclose(end, 1, atol=0.02)  # unit data from noise of any amplitude


def test_trajectory_is_kept_only_on_demand():
    schedule, z_T = cosine(), jnp.ones((2, 1, 1, 1, 1))
    denoise = lambda z, t: 0.1 * z  # noqa: E731
    grid = time_grid(7, 1000)
    path = solvers.ddim(denoise, z_T, grid, schedule, trajectory=True)
    assert path.shape == (8, *z_T.shape)
    np.testing.assert_array_equal(path[0], z_T)
    np.testing.assert_array_equal(path[-1], solvers.ddim(denoise, z_T, grid, schedule))


def test_bad_arguments():
    schedule, z = cosine(), jnp.ones((1, 1, 1, 1, 1))
    grid = time_grid(3, 1000)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        solvers.ddim(lambda z, t: z, z, grid, schedule, eta=1.5, noise=lambda t: z)
    with pytest.raises(ValueError, match="give `noise`"):
        solvers.ddim(lambda z, t: z, z, grid, schedule, eta=0.5)
    with pytest.raises(ValueError, match="decrease"):
        solvers.ddim(lambda z, t: z, z, grid[::-1], schedule)
