"""Known frames, as functions from denoisers to denoisers, against what the process and a linear network say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import gaussian_video as closed
from tests.small_models import SCHEDULE
from vf.diffusion import gaussian, known, solvers

MASK = known.frame_mask((0, 2), 3)
CLIP = jnp.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4, 1)
GRID = np.array([900, 700, 400, 150, 20, -1], np.int32)  # at the very first times float32 knows little of x
NOISE = jax.random.normal(jax.random.key(0), CLIP.shape)


def levels(times):
    return [np.reshape([closed.amplitudes(SCHEDULE, t)[k] for t in times], (-1, 1, 1, 1, 1, 1)) for k in (0, 1)]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.DPMSolver()], ids=["ddim", "dpm"])
def test_known_frames_are_noised_as_the_process_noises_them(solver, scale):
    """Whatever a network thinks of them: alpha x + scale sigma eps at each level, of the noise that they start with."""
    denoise = known.known_frames(lambda z, t: jnp.full_like(z, 7.0), CLIP, MASK, SCHEDULE, scale)
    first = jnp.asarray(GRID[0])
    z_T = known.noised(CLIP, scale * NOISE, MASK, SCHEDULE.alpha(first), SCHEDULE.sigma(first))
    path = solvers.solve(denoise, z_T, GRID, SCHEDULE, solver=solver, scale=scale, trajectory=True)
    alpha, sigma = levels(GRID)
    np.testing.assert_allclose(path[:, :, MASK], (alpha * CLIP + scale * sigma * NOISE)[:, :, MASK], atol=2e-4)
    np.testing.assert_allclose(path[0][:, ~MASK], scale * NOISE[:, ~MASK], atol=1e-6)


def test_a_stochastic_solver_gives_them_fresh_noise():
    """At eta 1 z_s is a draw of q(z_s | z_t, x): of variance sigma_s^2 around alpha_s x, and not of the first noise."""
    clip = jnp.zeros((64, 3, 8, 8, 1)).at[:].set(0.4)
    key = jax.random.key(1)
    draw = lambda t: jax.random.normal(jax.random.fold_in(key, t), clip.shape)  # noqa: E731
    denoise = known.known_frames(lambda z, t: jnp.zeros_like(z), clip, MASK, SCHEDULE)
    path = solvers.solve(
        denoise, draw(2000), GRID, SCHEDULE, solver=solvers.DDIM(1.0), noise=draw, trajectory=True
    )  # fmt: skip
    alpha, sigma = closed.amplitudes(SCHEDULE, GRID[3])
    z = np.float64(path[3][:, MASK])
    n = z.size
    assert abs(z.mean() - alpha * 0.4) < 5 * sigma / n**0.5
    assert abs(z.var() - sigma**2) < 5 * sigma**2 * (2 / n) ** 0.5
    assert abs(np.corrcoef(z.ravel(), np.ravel(path[0][:, MASK]))[0, 1]) < 0.2


def test_reconstruction_guidance_is_its_formula():
    """Of a linear network x_hat = M z: the others lose w alpha / 2 times the gradient of the known frames' error."""
    M = jnp.array([[0.5, 0.2, 0.1], [0.3, 0.4, 0.2], [0.1, 0.6, 0.3]])
    t, weight, scale = jnp.asarray(400), 3.0, 0.8
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    clean = lambda z: jnp.einsum("ij,bjhwc->bihwc", M, z)  # noqa: E731
    denoise = lambda z, t: (z - alpha * clean(z)) / (scale * sigma)  # noqa: E731
    guided = known.reconstruction_guided(denoise, CLIP, MASK, SCHEDULE, weight, scale)
    found, eps, *_ = guided(NOISE, t)
    np.testing.assert_allclose(alpha * found + scale * sigma * eps, NOISE, atol=1e-5)
    error = (clean(NOISE) - CLIP)[:, MASK]
    gradient = 2 * jnp.einsum("ij,bihwc->bjhwc", M[MASK], error)
    expected = clean(NOISE) - weight * alpha / 2 * gradient
    np.testing.assert_allclose(found[:, ~MASK], expected[:, ~MASK], atol=1e-4)
    np.testing.assert_allclose(found[:, MASK], clean(NOISE)[:, MASK], atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "message"), [((3,), "0 to 2"), ((-1,), "0 to 2"), ((), "got none"), ((0, 1, 2), "got all")]
)
def test_a_mask_leaves_frames_on_both_sides(frames, message):
    with pytest.raises(ValueError, match=message):
        known.frame_mask(frames, 3)


def test_history_guidance_is_its_formula():
    with_it, without = (lambda z, t, k=k: gaussian.Estimate(k * z, k + z) for k in (2.0, 3.0))
    found = known.history_guided(with_it, without, 1.5)(NOISE, jnp.asarray(400))
    np.testing.assert_allclose(found.x_0, 3 * NOISE + 1.5 * (2 - 3) * NOISE, atol=1e-5)
    np.testing.assert_allclose(found.eps, 3 + NOISE - 1.5, atol=1e-5)
