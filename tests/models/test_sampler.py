"""Sampling, through `model.sample`: perfect networks of a Gaussian video, DDPM's posterior, and clipping."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import gaussian_video as closed
from tests.small_models import BASE, SCHEDULE, Stub, awake, fusion, keys, one_network
from vf.diffusion import decompose, gaussian, noise, solvers
from vf.diffusion.guidance import APG, Guidance
from vf.diffusion.schedule import time_grid, zero_terminal_snr
from vf.models.sampler import FREE, Control, SampleOptions, Towards, invert, sample
from vf.models.videofusion import CONTEXTS

FRAMES = 3
MEAN = np.array([0.5, -0.3, 0.2])
S = np.array([[1.0, 0.8, 0.3], [0.8, 1.2, 0.6], [0.3, 0.6, 0.7]])
LAM = decompose.make_lambda((0.3, 1, 0.8), FRAMES, BASE)
OTHERS = np.delete(np.arange(FRAMES), BASE)
NO_PARAMS = {"base": {}, "residual": {}}
PRIORS = {
    "independent": noise.Independent(),
    "mixed": noise.Mixed(1.5),
    "progressive": noise.Progressive(2.0),
    "decomposed": noise.Decomposed(LAM),
}
KINDS = {"none": ("eps", "eps"), "embedding": ("x_0", "v"), "base_frame": ("v", "x_0")}
CLIPS = 4
# Few steps distinguish samplers, and are cheap enough for many pixels. In the limit of many steps all samplers agree.
every_walk = pytest.mark.parametrize(("steps", "side"), [(8, 128), (250, 40)])
both_etas = pytest.mark.parametrize("eta", [0.0, 1.0])


def alpha(t):
    return closed.amplitudes(SCHEDULE, t)[0]


def sigma(t):
    return closed.amplitudes(SCHEDULE, t)[1]


def per_frame(values):
    return jnp.reshape(jnp.float32(values), (-1, 1, 1, 1))


def perfect(kind, estimate, mean, grid, amplitude=1.0):
    """A perfect network of `kind`: (input as deviations from the mean [b n h w 1], t) -> prediction.

    estimate: (alpha, sigma) -> `Estimate`; at times outside the grid it predicts NaN. amplitude: noise over sigma.
    """
    shape = (SCHEDULE.steps, *estimate(0.5, 0.5).clean.shape)
    tables = closed.Estimate(np.full(shape, np.nan), np.full(shape, np.nan))
    for t in grid[:-1]:
        for table, matrix in zip(tables, estimate(*closed.amplitudes(SCHEDULE, t)), strict=True):
            table[t] = matrix
    tables = jax.tree.map(jnp.float32, tables)

    def predict(seen, t):
        clean, predicted_noise = (jnp.einsum("ij,bjhwc->bihwc", table[t[0]], seen) for table in tables)
        sigma = per_frame(amplitude) * SCHEDULE.sigma(t[0])
        return gaussian.target(kind, clean + per_frame(mean), predicted_noise, SCHEDULE.alpha(t[0]), sigma)

    return predict


def perfect_fusion(context, side, grid):
    """VideoFusion of two perfect networks for clips of side x side pixels."""

    def estimate(network):
        return lambda *at: closed.two_networks(S, LAM, BASE, *at, context)[network]

    kinds = KINDS[context]
    predict_base = perfect(kinds[0], estimate(0), MEAN[[BASE]], grid)
    predict_others = perfect(kinds[1], estimate(1), MEAN[OTHERS], grid, np.sqrt(1 - LAM[OTHERS]))

    def extra_frames(cond):
        return [] if cond is None else [cond.reshape(-1, 1, side, side, 1) - MEAN[BASE]]

    def base(z, t, cond=None, null=None):
        return predict_base(jnp.concatenate([z - SCHEDULE.alpha(t[0]) * MEAN[BASE], *extra_frames(cond)], 1), t)

    def residual(z, t, cond=None, null=None):
        z_prime = z[:, OTHERS, ..., :1] - SCHEDULE.alpha(t[0]) * per_frame(MEAN[OTHERS])
        frame = [z[:, BASE, None, ..., 1:] - MEAN[BASE]] if context == "base_frame" else extra_frames(cond)
        predicted = predict_others(jnp.concatenate([z_prime, *frame], 1), t)
        return jnp.full_like(z[..., :1], jnp.nan).at[:, OTHERS].set(predicted)

    return fusion(
        shape=(FRAMES, side, side, 1), lam=LAM, base=Stub(base), residual=Stub(residual), context=context,
        base_prediction=kinds[0], residual_prediction=kinds[1], embedding_dim=side**2 * (context == "embedding"),
    )  # fmt: skip


def sampled(model, options, condition=None):
    """Clips of stubs, compiled."""
    return jax.jit(lambda keys: sample(model, NO_PARAMS, keys, condition or {}, options))(keys(CLIPS))


@both_etas
@every_walk
@pytest.mark.parametrize("context", CONTEXTS)
def test_two_perfect_networks_follow_the_recursion(context, steps, side, eta):
    """Mean and covariance of the clips, also with the embedding that they were sampled with."""
    grid = time_grid(steps, SCHEDULE.steps)
    model, options = perfect_fusion(context, side, grid), SampleOptions(grid, solvers.DDIM(eta), clip_x_0=None)
    K, predict = closed.noise_covariance(LAM), lambda *at: closed.joint(S, LAM, BASE, *at, context)
    if context == "embedding":
        variance = S[BASE, BASE] + closed.BLUR**2
        embedding = MEAN[BASE] + np.sqrt(variance) * np.random.default_rng(0).normal(size=(CLIPS, side**2))
        clips = closed.pixels(sampled(model, options, {"embedding": jnp.float32(embedding)}))
        mean = np.append(MEAN, MEAN[BASE])
        expected = closed.sampled(mean, K, predict, SCHEDULE, grid, eta, variance)
        closed.assert_distributed(np.column_stack([clips, embedding.ravel()]), *expected)
    elif context == "base_frame":
        expected = closed.base_first(S, MEAN, LAM, BASE, SCHEDULE, grid, eta)
        closed.assert_distributed(closed.pixels(sampled(model, options)), *expected)
    else:
        expected = closed.sampled(MEAN, K, predict, SCHEDULE, grid, eta)
        closed.assert_distributed(closed.pixels(sampled(model, options)), *expected)


@both_etas
@every_walk
@pytest.mark.parametrize("name", list(PRIORS))
def test_one_perfect_network_follows_the_recursion(name, steps, side, eta):
    grid, K = time_grid(steps, SCHEDULE.steps), PRIORS[name].covariance(FRAMES)
    estimate = lambda *at: closed.one_network(S, K, *at)  # noqa: E731
    predict = perfect("v", estimate, MEAN, grid)
    net = Stub(lambda z, t: predict(z - SCHEDULE.alpha(t[0]) * per_frame(MEAN), t))
    model = one_network(PRIORS[name], net=net, prediction="v", shape=(FRAMES, side, side, 1))
    clips = sampled(model, SampleOptions(grid, solvers.DDIM(eta), clip_x_0=None))
    expected = closed.sampled(MEAN, K, lambda *at: estimate(*at).clean, SCHEDULE, grid, eta)
    closed.assert_distributed(closed.pixels(clips), *expected)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.8])
def test_only_base_first_sampling_has_the_datas_covariance(value):
    """By the recursions: right for any lambda base first, but wrong where the base sees one frame and no context."""
    lam, grid = decompose.make_lambda(value, FRAMES, BASE), time_grid(1000, SCHEDULE.steps)
    mean, cov = closed.base_first(S, MEAN, lam, BASE, SCHEDULE, grid)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(cov, S, atol=0.01)
    predict = lambda *at: closed.joint(S, lam, BASE, *at, "none")  # noqa: E731
    _, cov = closed.sampled(MEAN, closed.noise_covariance(lam), predict, SCHEDULE, grid)
    assert np.abs(cov - S).max() > 0.15


def shows_z(known, last):
    """A network of kind x_0 that returns the clip, and z / alpha at time `last`, so that z / alpha is sampled."""

    def predict(z, t):
        z = z[..., :1]
        return jnp.where(t[0] == last, z / SCHEDULE.alpha(t[0]), known[BASE] if z.shape[1] == 1 else known)

    return Stub(predict)


def oracle_model(name, known, last, shape):
    """The model `name`, or VideoFusion in the context `name`, of networks that show z."""
    net = shows_z(known, last)
    if name in PRIORS:
        return one_network(PRIORS[name], net=net, prediction="x_0", shape=shape)
    kinds = {"base_prediction": "x_0", "residual_prediction": "x_0"}
    return fusion(lam=LAM, base=net, residual=net, context=name, shape=shape, **kinds)


@pytest.mark.parametrize("name", ["none", "base_frame", "mixed", "progressive"])
def test_eta_one_draws_ddpms_posterior(name):
    """Where x_0 is known, a step from t to s draws q(z_s | z_t, x_0), across frames, with noise that no other step had.

    Given x_0 the forward chain has Var z_t = sigma_t^2 K and Cov(z_t, z_s) = a sigma_s^2 K, a = alpha_t / alpha_s. Base
    first, K is that of b and of the others' sqrt(1 - lambda) r, which are sampled one after the other.
    """
    times, shape = [700, 500, 200], (FRAMES, 128, 128, 1)

    def walk(keys):
        """The same walk's z / alpha at each time."""
        grids = [np.array([*times[: k + 1], -1], np.int32) for k in range(len(times))]
        options = [SampleOptions(grid, solvers.DDIM(1.0), clip_x_0=None) for grid in grids]
        models = [oracle_model(name, per_frame(MEAN), t, shape) for t in times]
        return [sample(m, NO_PARAMS, keys, {}, o) for m, o in zip(models, options, strict=True)]

    z = [alpha(t) * closed.pixels(clips) for t, clips in zip(times, jax.jit(walk)(keys(CLIPS)), strict=True)]
    new_noise = [z[0]]  # sampling starts from the noise itself
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        a, variance = alpha(t) / alpha(s), 1 - alpha(s) ** 2
        gain = a * variance / (1 - alpha(t) ** 2)
        expected = alpha(s) * MEAN + gain * (z[k] - alpha(t) * MEAN)
        new_noise.append((z[k + 1] - expected) / np.sqrt(variance - gain * a * variance))
    if name in PRIORS:
        K = PRIORS[name].covariance(FRAMES)
    elif name == "base_frame":
        K = np.diag(np.where(np.arange(FRAMES) == BASE, 1, 1 - LAM))
    else:
        K = closed.noise_covariance(LAM)
    closed.assert_distributed(np.hstack(new_noise), np.zeros(FRAMES * len(times)), np.kron(np.eye(len(times)), K))


@pytest.mark.parametrize("name", ["none", "base_frame", "mixed"])
def test_a_clipped_clean_frame_has_the_noise_that_z_leaves_for_it(name):
    """Without noise injected z_s = alpha_s x + sigma_s (z_t - alpha_t x) / sigma_t holds for the x that was clipped."""
    bound, (t, s) = 100.0, (700, 500)  # far beyond what is shown
    shape = (FRAMES, 4, 4, 1)

    def shown(grid):
        model = oracle_model(name, jnp.full((FRAMES, 1, 1, 1), 2 * bound), grid[-2], shape)
        return np.float64(sampled(model, SampleOptions(np.array(grid, np.int32), clip_x_0=bound)))

    implied_noise = (alpha(t) * shown([t, -1]) - alpha(t) * bound) / sigma(t)
    np.testing.assert_allclose(alpha(s) * shown([t, s, -1]), alpha(s) * bound + sigma(s) * implied_noise, rtol=1e-4)


def noise_of(context, options, control=FREE, own=None):
    """z / alpha at the only time of a grid, from which everything else follows, [b f h w c]."""
    t = options.grid[0]
    model = oracle_model(context, per_frame(MEAN), t, (FRAMES, 32, 32, 1))
    own = keys(6) if own is None else own
    return alpha(t) * np.float64(jax.jit(lambda k: sample(model, NO_PARAMS, k, {}, options, control))(own))


ONE_STEP = SampleOptions(np.array([700, -1], np.int32), clip_x_0=None)


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_content_and_motion_have_keys_of_their_own(context):
    """Base noise comes from a clip's own key, residual noise from that of its motion: the frames share as (1) says."""
    own = keys(6)
    same = noise_of(context, ONE_STEP, Control(motion=own))
    np.testing.assert_array_equal(noise_of(context, ONE_STEP), same)
    content = own[jnp.array([0, 0, 0, 1, 1, 1])]  # three motions of each of two contents
    z = noise_of(context, ONE_STEP, Control(motion=own), content)
    assert np.array_equal(z[0, BASE], z[2, BASE]) and not np.array_equal(z[0, BASE], z[3, BASE])  # noqa: PT018
    motion = own[jnp.array([0, 1, 2, 0, 1, 2])]
    r = noise_of(context, ONE_STEP, Control(motion=motion), content)
    others = r[:, OTHERS] - (np.sqrt(LAM[OTHERS])[:, None, None, None] * r[:, BASE, None] if context == "none" else 0)
    np.testing.assert_allclose(others[:3], others[3:], atol=1e-5)
    assert np.abs(others[0] - others[1]).max() > 0.1


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_noise_that_is_injected_is_shared_too(context):
    """At eta 1 clips of one content have one base frame, whatever their motion."""
    model, own = fusion(context=context), keys(4)
    options = SampleOptions(time_grid(3, SCHEDULE.steps), solvers.DDIM(1.0))
    content = own[jnp.array([0, 0, 1, 1])]
    params = awake(model)
    clips = np.asarray(jax.jit(lambda k: sample(model, params, k, {}, options, Control(motion=own)))(content))
    np.testing.assert_allclose(clips[0::2, BASE], clips[1::2, BASE], atol=1e-6)
    assert np.abs(clips[0, 0] - clips[1, 0]).max() > 1e-3


@pytest.mark.parametrize("part", ["content", "motion"])
def test_interpolated_noise_is_standard_normal_and_ends_at_both(part):
    """cos(angle) of the own and sin(angle) of the other noise, which are independent."""
    own, other = keys(6), keys(6, seed=9)
    angle = jnp.float32([0, np.pi / 8, np.pi / 4, 3 * np.pi / 8, np.pi / 2, np.pi / 3])
    z = noise_of("none", ONE_STEP, Control(**{f"{part}_towards": Towards(other, angle)}), own)
    ends = noise_of("none", ONE_STEP, Control(motion=own), own), noise_of(
        "none", ONE_STEP, Control(motion=other if part == "motion" else own), other if part == "content" else own
    )  # fmt: skip
    turn = np.float64(angle)[:, None, None, None, None]
    if part == "content":
        np.testing.assert_allclose(z[:, BASE], (np.cos(turn) * ends[0] + np.sin(turn) * ends[1])[:, BASE], atol=1e-5)
    np.testing.assert_allclose(z[0], ends[0][0], atol=1e-5)
    np.testing.assert_allclose(z[4], ends[1][4], atol=1e-5)
    variance = z.var(axis=(2, 3, 4))
    assert np.abs(variance - 1).max() < 5 * (2 / 32**2) ** 0.5


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_a_clip_is_sampled_again_from_the_noise_that_inversion_finds(context):
    """Also with the motion of another clip: then the base frame is the first's."""
    model = fusion(context=context)
    params = jax.tree.map(lambda p: p / 2, awake(model))
    options = SampleOptions(np.array([900, 600, 300, 100, 20, -1], np.int32), clip_x_0=None)
    x = jnp.tanh(jax.random.normal(jax.random.key(3), (2, *model.shape)))

    @jax.jit
    def again(x):
        noise = invert(model, params, x, {}, options, iterations=8)
        swapped = Control(base_noise=noise.base, residual_noise=noise.residual[::-1])
        control = Control(base_noise=noise.base, residual_noise=noise.residual)
        return [sample(model, params, keys(2), {}, options, c) for c in (control, swapped)]

    same, swapped = again(x)
    np.testing.assert_allclose(same, x, atol=1e-5)
    np.testing.assert_allclose(swapped[:, BASE], x[:, BASE], atol=1e-5)
    assert jnp.abs(swapped - x).max() > 0.05


def test_a_known_base_frame_conditions_the_others_exactly():
    """Base first, image-to-video: perfect networks give the others' distribution given the picture, by recursion."""
    side, (steps, picture) = 64, (40, 0.9)
    grid = time_grid(steps, SCHEDULE.steps)
    model = perfect_fusion("base_frame", side, grid)
    options = SampleOptions(grid, solvers.DDIM(1.0), clip_x_0=None, known=(BASE,))
    known = jnp.full((CLIPS, FRAMES, side, side, 1), picture)
    clips = jax.jit(lambda k: sample(model, NO_PARAMS, k, {}, options, Control(known=known)))(keys(CLIPS))
    np.testing.assert_array_equal(clips[:, BASE], known[:, BASE])
    clean = lambda *at: closed.two_networks(S, LAM, BASE, *at, "base_frame")[1].clean  # noqa: E731
    start = np.append(-alpha(grid[0]) * MEAN[OTHERS], picture - MEAN[BASE])
    K = np.diag(1 - np.float64(LAM)[OTHERS])
    cov = np.zeros((FRAMES, FRAMES))
    cov[:-1, :-1] = K
    offset, cov = closed.walk(clean, start, cov, K, SCHEDULE, grid, 1.0)
    closed.assert_distributed(closed.pixels(clips)[:, OTHERS], (MEAN[OTHERS] + offset[:-1]), cov[:-1, :-1])


@pytest.mark.parametrize(("context", "given"), [("none", (BASE, 3)), ("none", (0,)), ("base_frame", (0, BASE))])
def test_known_frames_come_back_and_the_rest_sees_them(context, given):
    model = fusion(context=context)
    params, options = awake(model), SampleOptions(time_grid(4, SCHEDULE.steps), known=given, reconstruction=10.0)
    known = jnp.tanh(jax.random.normal(jax.random.key(5), (2, *model.shape)))

    @jax.jit
    def clips(known):
        return sample(model, params, keys(2), {}, options, Control(known=known))

    first, other = clips(known), clips(-known)
    np.testing.assert_array_equal(first[:, list(given)], known[:, list(given)])
    rest = [i for i in range(model.shape[0]) if i not in given]
    assert np.isfinite(first).all() and np.abs(first - other)[:, rest].max() > 1e-4  # noqa: PT018
    assert BASE in given or np.abs(first - other)[:, BASE].max() > 1e-4  # by reconstruction guidance, through (5)


@pytest.mark.parametrize("name", ["joint", "base first", "one network", "known frames", "history", "some times"])
def test_guidance_with_momentum_adds_up_over_the_walk(name):
    """Where the clean clips given the class and without it, c and u, are the same at each time, n evaluations with a
    momentum of m move the last estimate, which DDIM returns, by (w - 1) (c - u) (1 - m^n) / (1 - m)."""
    n, m, w = 5, -0.5, 3.0
    options = SampleOptions(time_grid(n, SCHEDULE.steps), guidance=Guidance(w, rule=APG(1.0, None, m)))

    def net(given, without):
        def predict(z, t, label, **_):
            value = jnp.where(label == 1, without, given).reshape(-1, 1, 1, 1, 1)
            return jnp.broadcast_to(value, z[..., :1].shape)

        return Stub(predict)

    fields = {"shape": (FRAMES, 4, 4, 1), "null_label": 1}
    if name == "one network":
        values = dict.fromkeys(range(FRAMES), (0.3, 0.1))
        model = one_network(net=net(0.3, 0.1), prediction="x_0", **fields)
    else:
        values = {i: (0.3, 0.1) if i == BASE else (0.2, -0.3) for i in range(FRAMES)}
        model = fusion(
            base=net(*values[BASE]), residual=net(0.2, -0.3), base_prediction="x_0", residual_prediction="x_0",
            lam=LAM, context="base_frame" if name == "base first" else "none", **fields,
        )  # fmt: skip
    known = None
    if name in ("known frames", "history"):
        options = options._replace(known=(0,), history=2.0 if name == "history" else 0.0)
        known = jnp.full((1, *model.shape), 0.7)
    if name == "some times":  # not at the first two, which leave no trace
        options = options._replace(guidance=dataclasses.replace(options.guidance, interval=(0, int(options.grid[2]))))
        n -= 2
    clips = sample(model, NO_PARAMS, keys(1), {"label": jnp.zeros(1, jnp.int32)}, options, Control(known=known))
    for i, (c, u) in values.items():
        moved = (w - 1) * (c - u) * (1 - m**n) / (1 - m)
        expected = 0.7 if known is not None and i == 0 else c + moved
        np.testing.assert_allclose(clips[:, i], expected, atol=1e-4)


def test_a_known_base_frame_is_not_predicted():
    """Jointly its noise is read off z, so that the base generator is not run."""
    net = Stub(lambda z, t, **_: z[..., :1])
    base = Stub(lambda z, t, **_: jnp.full_like(z, jnp.nan))
    model = fusion(shape=(FRAMES, 4, 4, 1), lam=LAM, base=base, residual=net)
    options = SampleOptions(time_grid(3, SCHEDULE.steps), known=(BASE,))
    known = jnp.zeros((1, *model.shape))
    assert np.isfinite(sample(model, NO_PARAMS, keys(1), {}, options, Control(known=known))).all()
    assert not base.seen


@pytest.mark.parametrize(
    ("model", "options", "control", "message"),
    [
        (one_network(), {}, Control(motion=keys(1)), "decomposed noise"),
        (fusion(), {"solver": solvers.DDIM(1.0)}, Control(base_noise=jnp.zeros((1, 8, 8, 3))), "set eta to 0"),
        (fusion(), {"known": (0,)}, FREE, "need both"),
        (fusion(), {}, Control(known=jnp.zeros((1, 4, 8, 8, 3))), "need both"),
        (fusion(), {"known": (4,)}, Control(known=jnp.zeros((1, 4, 8, 8, 3))), "0 to 3"),
        (fusion(context="base_frame"), {"known": (0, 2)}, Control(known=jnp.zeros((1, 4, 8, 8, 3))), "base frame, 1"),
    ],
)
def test_control_that_cannot_be_is_refused(model, options, control, message):
    with pytest.raises(ValueError, match=message):
        sample(model, NO_PARAMS, keys(1), {}, SampleOptions(time_grid(2, SCHEDULE.steps), **options), control)


@pytest.mark.parametrize("name", ["none", "base_frame", "mixed"])
@pytest.mark.parametrize("kind", ["v", "x_0"])
def test_sampling_begins_where_no_signal_is(name, kind):
    """Where all data is one clip, networks that know it lead there from noise alone, by every solver."""
    schedule = zero_terminal_snr(SCHEDULE)
    grid, clip = time_grid(3, schedule.steps), jnp.linspace(-0.9, 0.9, 2 * 2 * FRAMES).reshape(FRAMES, 2, 2, 1)
    lam = jnp.asarray(LAM)

    def net(noise_amplitude, point):
        def predict(z, t):
            z, alpha = z[..., :1], schedule.alpha(t[0])
            sigma = jnp.where(noise_amplitude > 0, noise_amplitude, 1) * schedule.sigma(t[0])
            return gaussian.target(kind, point, (z - alpha * point) / sigma, alpha, sigma)

        return Stub(predict)

    fields = {"schedule": schedule, "shape": clip.shape}
    if name == "mixed":
        model = one_network(PRIORS[name], net=net(jnp.ones(()), clip), prediction=kind, **fields)
    else:
        model = fusion(
            lam=LAM, base=net(jnp.ones(()), clip[BASE]), residual=net(per_frame(jnp.sqrt(1 - lam)), clip), context=name,
            base_prediction=kind, residual_prediction=kind, **fields,
        )  # fmt: skip
    for solver in (solvers.DDIM(), solvers.DDIM(1.0), solvers.DPMSolver(), solvers.DPMSolver(1.0), solvers.Heun()):
        clips = sampled(model, SampleOptions(grid, solver))
        np.testing.assert_allclose(clips, jnp.broadcast_to(clip, clips.shape), atol=1e-4)


@pytest.mark.parametrize("network", ["base", "residual"])
def test_a_schedule_that_ends_in_noise_is_not_for_eps(network):
    schedule = zero_terminal_snr(SCHEDULE)
    kinds = {"base_prediction": "v", "residual_prediction": "v"} | {f"{network}_prediction": "eps"}
    with pytest.raises(ValueError, match=rf"{network}\.prediction is eps"):
        fusion(schedule=schedule, **kinds)
    with pytest.raises(ValueError, match=r"base\.prediction is eps"):
        one_network(schedule=schedule)
    with pytest.raises(ValueError, match="needs lambda < 1 off the base frame"):
        fusion(1.0, schedule=schedule, base_prediction="v", residual_prediction="v")
