"""DDIM against closed forms: with the exact E[eps | all noised frames] it gives back the data's mean and covariance.

Clips are then affine in the noise, of the start and of every step. Fed with the columns of each noise's root, one at a
time, and with none, they show their mean and covariance without sampling error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import gaussian_video as closed
from vf.diffusion import decompose, gaussian, noise, solvers
from vf.diffusion.schedule import cosine, linear, spaced_times, time_grid, zero_terminal_snr

FRAMES = 4
S = closed.covariance(FRAMES)
MEAN = np.array([0.5, -0.2, 0.1, 0.3])
PRIORS = {
    "independent": noise.Independent(),
    "decomposed": noise.Decomposed(decompose.make_lambda(0.5, FRAMES, 1)),
    "progressive": noise.Progressive(2.0),
}


def exact_denoiser(K, schedule):
    """E[eps | z] of the Gaussian video, for clips [b f 1 1 1]."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        P = sigma * K @ jnp.linalg.inv(alpha**2 * S + sigma**2 * K)
        return jnp.einsum("ij,bjhwc->bihwc", P, z - alpha * jnp.reshape(MEAN, (1, FRAMES, 1, 1, 1)))

    return denoise


def mean_and_covariance(denoise, start, injected, schedule, grid, eta=0.0, solver=None):
    """Mean and covariance of clips whose first noise has covariance `start`, and injected noise `injected` [f f]."""
    solver = solver or solvers.DDIM(eta)
    noisy = len(grid) - 1 if solver.injects else 0  # steps that inject
    roots = np.zeros((1 + noisy, 1 + (1 + noisy) * FRAMES, FRAMES), np.float32)
    for k, root in enumerate(roots):  # noise of the start, then of each step: in rows of its own; row 0 has none
        root[1 + k * FRAMES :][:FRAMES] = np.linalg.cholesky(injected if k else start).T
    roots = jnp.asarray(roots[..., None, None, None])
    draw_noise = lambda t: roots[1 + jnp.argmax(jnp.asarray(grid) == t)]  # noqa: E731
    clips = solvers.solve(denoise, roots[0], grid, schedule, solver=solver, noise=draw_noise)
    clips = np.asarray(clips, np.float64).reshape(-1, FRAMES)
    parts = clips[1:] - clips[0]
    return clips[0], parts.T @ parts


@pytest.mark.parametrize("schedule", [cosine(), linear()], ids=["cosine", "linear"])
@pytest.mark.parametrize("name", list(PRIORS))
def test_the_exact_denoiser_gives_the_datas_mean_and_covariance(name, schedule):
    K = PRIORS[name].covariance(FRAMES)
    mean, cov = mean_and_covariance(exact_denoiser(K, schedule), K, K, schedule, time_grid(500, 1000), 0.0)
    np.testing.assert_allclose(mean, MEAN, atol=0.02)
    np.testing.assert_allclose(cov, S, atol=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", list(PRIORS))
def test_few_steps_follow_the_recursion(name, eta):
    """Where steps are few, samplers of another eta have another covariance, and the recursion gives each."""
    schedule, K = cosine(), PRIORS[name].covariance(FRAMES)
    grid = np.array(
        [900, 700, 550, 400, 250, 100, 20, -1], np.int32
    )  # not from 999, where rounding errors grow 20,000-fold
    mean, cov = mean_and_covariance(exact_denoiser(K, schedule), K, K, schedule, grid, eta)
    predict = lambda *at: closed.one_network(S, K, *at).clean  # noqa: E731
    expected_mean, expected_cov = closed.sampled(MEAN, K, predict, schedule, grid, eta)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-4)
    np.testing.assert_allclose(cov, expected_cov, atol=1e-4)


def test_injected_noise_of_another_prior_loosens_the_frames():
    """Why eta > 0 must decompose its noise: independent noise loosens the frames' correlation, the prior's keeps it."""
    schedule, K = cosine(), PRIORS["progressive"].covariance(FRAMES)
    denoise, grid = exact_denoiser(K, schedule), time_grid(250, 1000)
    for injected, low, high in ((K, 0.0, 0.03), (np.eye(FRAMES), 0.1, 1.0)):
        _, cov = mean_and_covariance(denoise, K, injected, schedule, grid, 1.0)
        assert low < np.abs(cov - S).max() < high


FINE = cosine(2**16)  # so fine that no rounding of times shows


def cut(schedule):
    """`schedule` from where little signal is left, and rounding is small."""
    return type(schedule)(schedule.alpha_bar[: int(np.searchsorted(-schedule.alpha_bar, -1e-4)) + 1])


def flow_error(solver, spacing, steps, base_first=False):
    """How far mean and covariance are from the data's, with exact denoisers and a start that is exact, or base first.

    Clips are affine in independent normals: of the start and, for a stochastic solver, of each step.
    """
    schedule = cut(FINE)
    return walk_error(solver, spaced_times(spacing, steps, schedule), schedule, base_first)


def walk_error(solver, grid, schedule, base_first=False):
    """The same of a grid of the whole schedule."""
    walk = _base_first if base_first else _joint
    clips = np.asarray(walk(solver, grid, schedule), np.float64).reshape(-1, FRAMES)
    parts = clips[1:] - clips[0]
    return max(np.abs(clips[0] - MEAN).max(), np.abs(parts.T @ parts - S).max())


def _joint(solver, grid, schedule):
    K = PRIORS["decomposed"].covariance(FRAMES)
    return exact_walk(solver, grid, schedule, MEAN, S, K, normals(solver, grid, FRAMES))


def _base_first(solver, grid, schedule):
    """The base frame from b alone, then the others from sqrt(1 - lambda) r, given the base frame that was sampled."""
    lam, base = decompose.make_lambda(0.5, FRAMES, 1), 1
    others = np.delete(np.arange(FRAMES), base)
    rows = normals(solver, grid, FRAMES)
    frame = exact_walk(solver, grid, schedule, MEAN[[base]], S[[base]][:, [base]], np.eye(1), rows[..., [base]])
    gain = S[others, base] / S[base, base]
    mean = MEAN[others] + gain * (np.asarray(frame, np.float64).reshape(-1, 1) - MEAN[base])
    known = S[np.ix_(others, others)] - np.outer(gain, S[others, base])
    scale = np.sqrt(1 - lam[others])
    clips = exact_walk(solver, grid, schedule, mean, known, np.eye(len(others)), rows[..., others], scale)
    return np.insert(np.asarray(clips), base, np.asarray(frame)[:, 0], axis=1)


def normals(solver, grid, frames):
    """[noises rows frames]: for the start and each step that injects, `frames` normals in rows of their own; row 0 has
    none."""
    noises = len(grid) if solver.injects else 1
    rows = np.zeros((noises, 1 + noises * frames, frames))
    for k in range(noises):
        rows[k, 1 + k * frames :][:frames] = np.eye(frames)
    return rows


def exact_walk(solver, grid, schedule, mean, covariance, K, rows, scale=None, draw=None, restart=None):
    """Clips of `solver` with the exact denoiser of N(mean, covariance) under noise of covariance K, which are exact at
    the grid's first time; mean [f], or [rows f]. The noises are the `rows` of standard normals, [noises rows f].

    scale: amplitude of each frame's noise relative to sigma, [f]. draw: which of the noises but the first is drawn at a
    time; by default they are in the order of the grid."""
    draw = draw or (lambda t: jnp.argmax(jnp.asarray(grid) == t))
    alpha, sigma = closed.amplitudes(schedule, grid[0])
    mean, scale = np.broadcast_to(mean, rows[0].shape), np.ones(len(K)) if scale is None else scale
    noise_covariance = K * np.outer(scale, scale)
    start = alpha * mean + rows[0] @ np.linalg.cholesky(alpha**2 * covariance + sigma**2 * noise_covariance).T
    injected = jnp.float32(rows[1:] @ np.linalg.cholesky(K).T)[..., None, None, None]

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        inverse = jnp.linalg.inv(alpha**2 * covariance + sigma**2 * noise_covariance)
        expected = jnp.float32(mean)[..., None, None, None]
        x_0, eps = (
            jnp.einsum("ij,bjhwc->bihwc", factor * jnp.float32(matrix) @ inverse, z - alpha * expected)
            for factor, matrix in ((alpha, covariance), (sigma, K * scale))
        )
        return gaussian.Estimate(expected + x_0, eps)

    return solvers.solve(
        denoise, jnp.float32(start)[..., None, None, None], grid, schedule, solver=solver,
        scale=jnp.float32(scale)[:, None, None, None], noise=lambda t: injected[draw(t)], restart=restart,
    )  # fmt: skip


ORDERS = {
    "DDIM": (solvers.DDIM(), 1),
    "DDIM, eta 1": (solvers.DDIM(1.0), 1),
    "DPM-Solver++(2M)": (solvers.DPMSolver(), 2),
    "DPM-Solver++(2M), eta 1": (solvers.DPMSolver(1.0), 2),
    "UniPC-2": (solvers.UniPC(), 3),
    "Heun, two passes a step": (solvers.Heun(), 2),
}


@pytest.mark.parametrize("base_first", [False, True], ids=["joint", "base first"])
@pytest.mark.parametrize("name", list(ORDERS))
def test_a_solver_converges_at_its_order(name, base_first):
    """Mean and covariance of the frames; in base-first sampling also of the base frame with the others."""
    solver, order = ORDERS[name]
    errors = [flow_error(solver, "log_snr", steps, base_first) for steps in (40, 80)]
    np.testing.assert_allclose(-np.diff(np.log2(errors)), order, atol=0.35)


@pytest.mark.parametrize("base_first", [False, True], ids=["joint", "base first"])
def test_twenty_steps_of_second_order_beat_a_hundred_of_first(base_first):
    few, many = (
        flow_error(solver, "log_snr", steps, base_first)
        for solver, steps in ((solvers.DPMSolver(), 20), (solvers.DDIM(), 100))
    )
    assert few < many


@pytest.mark.parametrize("name", list(PRIORS))
def test_the_stochastic_solver_has_the_data_s_covariance(name):
    """Its noise is of the prior at every step, and without its memory it is DDPM."""
    schedule, K = cosine(), PRIORS[name].covariance(FRAMES)
    grid = np.array([900, 700, 550, 400, 250, 100, 20, -1], np.int32)
    denoise = exact_denoiser(K, schedule)
    errors = {}
    for solver in (solvers.DDIM(1.0), solvers.DPMSolver(1.0)):
        mean, cov = mean_and_covariance(denoise, K, K, schedule, grid, solver=solver)
        errors[type(solver)] = max(np.abs(mean - MEAN).max(), np.abs(cov - S).max())
    assert errors[solvers.DPMSolver] < errors[solvers.DDIM]
    mean, cov = mean_and_covariance(denoise, K, K, schedule, time_grid(250, 1000), solver=solvers.DPMSolver(1.0))
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(cov, S, atol=0.01)
    two = [
        mean_and_covariance(denoise, K, K, schedule, grid[-2:], solver=s) for s in (solvers.DDIM(), solvers.DPMSolver())
    ]
    np.testing.assert_array_equal(two[0][1], two[1][1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs
@pytest.mark.parametrize("kind", ["ddim", "dpm", "dpm, stochastic", "unipc", "heun"])
def test_samples_are_those_of_diffusers(kind):
    """The same noise, times and answers of the network."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    schedule, times = linear(), np.array([999, 850, 700, 500, 350, 200, 80, 10, 0])
    if kind == "ddim":
        times = np.arange(900, -1, -100)  # theirs steps evenly
    elif kind == "unipc":
        times = np.arange(999, 0, -111)
    betas = 1 - schedule.alpha_bar / np.concatenate([[1.0], schedule.alpha_bar[:-1]])
    normal = np.random.default_rng(0).normal(size=(len(times) + 1, 3, 4, 2, 2, 1)).astype(np.float32)
    common = {"trained_betas": betas, "num_train_timesteps": 1000}
    ours, theirs = {
        "ddim": lambda: (
            solvers.DDIM(), diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
        ),
        "dpm": lambda: (solvers.DPMSolver(), diffusers.DPMSolverMultistepScheduler(**common, euler_at_final=True)),
        "dpm, stochastic": lambda: (solvers.DPMSolver(1.0), diffusers.DPMSolverMultistepScheduler(
            **common, algorithm_type="sde-dpmsolver++", euler_at_final=True)),
        "unipc": lambda: (solvers.UniPC(), diffusers.UniPCMultistepScheduler(**common, final_sigmas_type="zero")),
        "heun": lambda: (solvers.Heun(), diffusers.HeunDiscreteScheduler(**common)),
    }[kind]()  # fmt: skip

    def eps(z, t):  # some network
        return 0.7 * np.tanh(z) + 0.1 * (z**2 - 1) / (1 + z**2) + 1e-4 * t

    def denoise(z, t):
        return 0.7 * jnp.tanh(z) + 0.1 * (z**2 - 1) / (1 + z**2) + 1e-4 * t

    grid = np.append(times, -1)
    found = solvers.solve(
        denoise, jnp.asarray(normal[0]), grid, schedule, solver=ours,
        noise=lambda t: jnp.asarray(normal)[1 + jnp.argmax(jnp.asarray(times) == t)],
    )  # fmt: skip
    if kind in ("ddim", "unipc"):
        theirs.set_timesteps(len(times))
    else:
        theirs.set_timesteps(timesteps=times.tolist())
    z = torch.from_numpy(normal[0]) * theirs.init_noise_sigma
    for k, t in enumerate(theirs.timesteps):
        now = theirs.scale_model_input(z, t)
        more = {"variance_noise": torch.from_numpy(normal[1 + k])} if kind == "dpm, stochastic" else {}
        z = theirs.step(torch.from_numpy(eps(now.numpy(), float(t))), t, z, **more).prev_sample
    np.testing.assert_allclose(found, z, atol=1e-4 * max(1, np.abs(z).max()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs
def test_learned_variance_is_that_of_diffusers(monkeypatch):
    """The same noise, times, and answers of a network that gives both."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    torch = pytest.importorskip("torch")
    schedule, times = linear(), np.array([999, 850, 700, 500, 350, 200, 80, 10, 0])
    betas = 1 - schedule.alpha_bar / np.concatenate([[1.0], schedule.alpha_bar[:-1]])
    normal = np.random.default_rng(0).normal(size=(len(times) + 1, 3, 4, 2, 2, 1)).astype(np.float32)
    theirs = scheduling.DDPMScheduler(trained_betas=betas, variance_type="learned_range", clip_sample=False)
    theirs.set_timesteps(timesteps=times.tolist())
    z = torch.from_numpy(normal[0])
    for k, t in enumerate(theirs.timesteps):
        monkeypatch.setattr(scheduling, "randn_tensor", lambda *_, k=k, **__: torch.from_numpy(normal[1 + k]))
        z = theirs.step(torch.cat([0.7 * torch.tanh(z), torch.sin(3 * z)], 1), int(t), z).prev_sample

    def denoise(z, t):
        eps = 0.7 * jnp.tanh(z)
        x_0 = (z - schedule.sigma(t) * eps) / schedule.alpha(t)
        return gaussian.Estimate(x_0, eps, variance=(jnp.sin(3 * z) + 1) / 2)

    found, fixed = (
        solvers.solve(
            given, jnp.asarray(normal[0]), np.append(times, -1), schedule, solver=solvers.DDIM(1.0),
            noise=lambda t: jnp.asarray(normal)[1 + jnp.argmax(jnp.asarray(times) == t)],
        )
        for given in (denoise, lambda z, t: denoise(z, t).eps)
    )  # fmt: skip
    np.testing.assert_allclose(found, z, atol=1e-4 * max(1, np.abs(z).max()))
    assert np.abs(fixed - found).max() > 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_single_data_point_is_reached_in_one_step(eta):
    """Where all data is one clip, the true eps leads there from any noise, in any number of steps."""
    schedule, point = cosine(), jnp.linspace(-1, 1, 12).reshape(1, 3, 2, 2, 1)
    denoise = lambda z, t: (z - schedule.alpha(t) * point) / schedule.sigma(t)  # noqa: E731
    z_T = jax.random.normal(jax.random.key(0), (5, 3, 2, 2, 1))
    draw_noise = lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(1), t), z_T.shape)  # noqa: E731
    for steps in (1, 10):
        grid = time_grid(steps, 1000)
        # From t = 999 the signal is 5e-5 of z: bounding x_0 keeps rounding from growing 20,000-fold.
        given = solvers.solve(denoise, z_T, grid, schedule, solver=solvers.DDIM(eta), noise=draw_noise, clip_x_0=1.0)
        np.testing.assert_allclose(given, jnp.broadcast_to(point, z_T.shape), atol=5e-3)


def test_smaller_noise_is_an_ordinary_diffusion():
    """`scale` = sqrt(1 - lambda): the walk of a scaled problem is the scaled walk (base-first residual frames)."""
    schedule, scale = cosine(), 0.6
    denoise = lambda z, t: schedule.sigma(t) * scale * z / (schedule.alpha(t) ** 2 + (scale * schedule.sigma(t)) ** 2)  # noqa: E731
    z_T = scale * jnp.ones((1, 1, 1, 1, 1))
    end = solvers.solve(denoise, z_T, time_grid(1000, 1000), schedule, scale=scale)
    np.testing.assert_allclose(end, 1, atol=0.02)  # unit data from noise of any amplitude


def test_the_trajectory_is_returned_only_on_demand():
    schedule, z_T = cosine(), jnp.ones((2, 1, 1, 1, 1))
    denoise = lambda z, t: 0.1 * z  # noqa: E731
    grid = time_grid(7, 1000)
    path = solvers.solve(denoise, z_T, grid, schedule, trajectory=True)
    assert path.shape == (8, *z_T.shape)
    np.testing.assert_array_equal(path[0], z_T)
    np.testing.assert_array_equal(path[-1], solvers.solve(denoise, z_T, grid, schedule))


@pytest.mark.parametrize("name", list(ORDERS))
def test_solvers_begin_where_no_signal_is(name):
    """From noise alone, with a schedule that ends in it, they lead to the data's mean and covariance."""
    schedule = zero_terminal_snr(linear())
    errors = [walk_error(ORDERS[name][0], time_grid(50 * 4**k, 1000), schedule) for k in (0, 1)]
    assert errors[1] < 0.05
    assert errors[1] < 0.35 * errors[0]


def test_restarts_keep_the_data_s_covariance():
    """The noise that is added is what the forward process adds; and an error of the start fades."""
    schedule, K = cut(FINE), PRIORS["decomposed"].covariance(FRAMES)
    grid = spaced_times("log_snr", 80, schedule)
    rows = np.zeros((3, 1 + 3 * FRAMES, FRAMES))  # the start's noise, and that of two restarts
    for k in range(3):
        rows[k, 1 + k * FRAMES :][:FRAMES] = np.eye(FRAMES)
    rows[0] += 1  # a start that is off
    off = {}
    for restart in (None, solvers.Restart(9000, 50000, 2)):
        clips = exact_walk(
            solvers.DPMSolver(), grid, schedule, MEAN, S, K, rows, draw=lambda n: n // schedule.steps, restart=restart
        )
        clips = np.asarray(clips, np.float64).reshape(-1, FRAMES)
        off[restart] = np.abs(clips[0] - MEAN).max()
        parts = clips[1:] - clips[0]
        np.testing.assert_allclose(parts.T @ parts, S, atol=0.01)
    assert off[restart] < 0.5 * off[None]


def test_no_noise_is_drawn_twice():
    """Neither by a step that is walked again, nor by a restart."""
    grid, drawn = np.array([900, 700, 500, 300, 100, -1]), []
    with jax.disable_jit():
        solvers.solve(
            lambda z, t: z, jnp.ones((1, 1, 1, 1, 1)), grid, cosine(), solver=solvers.DDIM(1.0),
            noise=lambda n: drawn.append(int(n)) or jnp.zeros((1, 1, 1, 1, 1)), restart=solvers.Restart(300, 700, 2),
        )  # fmt: skip
    steps = [900, 700, 500, *(1000 + np.array([700, 500])), *(2000 + np.array([700, 500, 300, 100]))]
    assert set(steps) | {300, 1300} <= set(drawn)
    # A step that does not restart draws a noise, too, and uses none of it.
    assert len(drawn) == 2 * len(steps)


def test_dynamic_thresholding():
    """Imagen's rule by NumPy, clip by clip: cut at the quantile and scaled to the bound where it is above that."""
    x_0 = np.random.default_rng(0).normal(size=(3, 4, 5, 5, 2)) * np.reshape([0.1, 1, 3], (3, 1, 1, 1, 1))
    found = solvers.bounded(jnp.float32(x_0), 0.8, 0.9)
    for clip, x in zip(found, x_0, strict=True):
        s = max(0.8, np.quantile(np.abs(x), 0.9))
        np.testing.assert_allclose(clip, 0.8 * np.clip(x, -s, s) / s, rtol=1e-5)
    np.testing.assert_allclose(found[0], np.clip(x_0[0], -0.8, 0.8), rtol=1e-5)
    # Through a solver's only step it is the clip.
    schedule, eps = cosine(), jnp.float32(x_0)
    clips = solvers.solve(lambda z, t: eps, 0 * eps, np.array([500, -1]), schedule, clip_x_0=0.8, clip_quantile=0.9)
    noise_to_signal = -schedule.sigma(jnp.array(500)) / schedule.alpha(jnp.array(500))
    np.testing.assert_allclose(clips, solvers.bounded(noise_to_signal * eps, 0.8, 0.9), rtol=1e-5)


def test_bad_arguments():
    schedule, z = cosine(), jnp.ones((1, 1, 1, 1, 1))
    grid = time_grid(3, 1000)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        solvers.solve(lambda z, t: z, z, grid, schedule, solver=solvers.DDIM(1.5), noise=lambda t: z)
    with pytest.raises(ValueError, match="give `noise`"):
        solvers.solve(lambda z, t: z, z, grid, schedule, solver=solvers.DDIM(0.5))
    with pytest.raises(ValueError, match="decrease"):
        solvers.solve(lambda z, t: z, z, grid[::-1], schedule)
