"""Guidance is linear between the unconditional and the conditional prediction, in one doubled pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from vf.diffusion import gaussian, solvers
from vf.diffusion.guidance import APG, CFG, At, CFGPlusPlus, CFGZero, Guidance
from vf.diffusion.guidance import guided as guided_estimate
from vf.diffusion.schedule import cosine, spread

SCHEDULE = cosine()
GIVEN, WITHOUT = 3.0, 1.0
T = jnp.array([999, 600, 300, 0])


def guided(predict, guidance, kind="eps"):
    """The guided prediction of the same kind."""

    def call(z, t):
        levels = lambda t: (spread(SCHEDULE.alpha(t), z), spread(SCHEDULE.sigma(t), z))  # noqa: E731
        return gaussian.target(kind, *guided_estimate(predict, kind, levels, guidance)(z, t)[:2], *levels(t))

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


def test_a_weaker_network_in_place_of_no_condition():
    """Both are given the condition, in a pass each."""
    calls, nulls = [], []

    def weaker(z, t, null):
        nulls.append(null)
        return jnp.full_like(z, -1.0)

    z = jnp.ones((4, 2))
    levels = lambda t: (spread(SCHEDULE.alpha(t), z), spread(SCHEDULE.sigma(t), z))  # noqa: E731
    result = guided_estimate(predictor(calls), "eps", levels, Guidance(2.5), weaker)(z, T)
    np.testing.assert_allclose(result.eps, -1 + 2.5 * (GIVEN + 1), rtol=1e-6)
    assert calls == [4]
    assert not nulls[0].any()


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


def two(seed=0):
    """Noised clips, times, levels, and the estimates with and without the condition, of networks that predict v."""
    z, c, u = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2, 4, 5, 5, 3)), jnp.float32)
    c = u + 0.4 * c
    t = jnp.array([200, 800])
    levels = spread(SCHEDULE.alpha(t), z), spread(SCHEDULE.sigma(t), z)
    given, without = (gaussian.estimate("v", v, z, *levels) for v in (c, u))
    return At(z, t, *levels), given, without, c, u


def assert_of_z(found, at):
    """Clip and noise make z."""
    np.testing.assert_allclose(at.alpha * found.x_0 + at.sigma * found.eps, at.z, atol=1e-4)


@pytest.mark.parametrize("parallel", [0.0, 0.3])
@pytest.mark.parametrize("norm", [None, 3.0])
@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_apg_is_the_authors(parallel, norm, momentum):
    """By their code as diffusers has it, in three evaluations of a walk."""
    theirs = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    torch = pytest.importorskip("torch")
    buffer, memory = theirs.MomentumBuffer(momentum) if momentum else None, None
    for seed in range(3):
        at, given, without, _, _ = two(seed)
        found = APG(parallel, norm, momentum)(given, without, 2.5, at._replace(memory=memory))
        x_0 = (torch.from_numpy(np.array(one.x_0)) for one in (given, without))
        expected = theirs.normalized_guidance(*x_0, 1.5, buffer, parallel, norm or 0.0, True)
        np.testing.assert_allclose(found.x_0, expected, atol=1e-4)
        assert_of_z(found, at)
        memory = found.memory


def test_apg_by_hand():
    """The shift of the clean clip is orthogonal to the conditional one; with all of the rest it is CFG."""
    at, given, without, _, _ = two()
    shift = (APG()(given, without, 2.5, at).x_0 - given.x_0).reshape(2, -1)
    whole = (CFG()(given, without, 2.5, at).x_0 - given.x_0).reshape(2, -1)
    x_0 = given.x_0.reshape(2, -1)
    along = (whole * x_0).sum(1) / (x_0**2).sum(1)
    assert np.abs(along).min() > 5e-3
    np.testing.assert_allclose(shift, whole - along[:, None] * x_0, atol=1e-4)
    for one, other in zip(APG(1.0)(given, without, 2.5, at)[:2], CFG()(given, without, 2.5, at)[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    bounded = APG(1.0, 0.5)(given, without, 2.0, at).x_0 - given.x_0
    np.testing.assert_allclose(jnp.linalg.norm(bounded.reshape(2, -1), axis=1), 0.5, rtol=1e-4)


def test_cfg_zero_is_the_authors():
    """The unconditional velocity scaled by theirs; none at all in the first steps."""
    theirs = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance").cfg_zero_star_scale
    torch = pytest.importorskip("torch")
    at, given, without, c, u = two()
    s = theirs(*(torch.from_numpy(np.array(v)).flatten(1) for v in (c, u))).numpy().reshape(2, 1, 1, 1, 1)
    expected = s * u + 2.5 * (c - s * u)
    found = CFGZero()(given, without, 2.5, at)
    np.testing.assert_allclose(gaussian.target("v", *found[:2], at.alpha, at.sigma), expected, atol=1e-4)
    assert_of_z(found, at)
    zero = CFGZero(800)(given, without, 2.5, at)
    np.testing.assert_allclose(gaussian.target("v", *zero[:2], at.alpha, at.sigma)[1], 0, atol=1e-5)
    np.testing.assert_array_equal(zero.x_0[0], found.x_0[0])


@pytest.mark.parametrize("scale", [0.6, 1.0])
@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.DPMSolver()], ids=["ddim", "dpm"])
def test_cfg_plus_plus_by_hand(scale, solver):
    """A step to s is alpha_s (x_u + w (x_c - x_u)) + sigma_s eps_u; bounding the clip leaves that noise as it is."""
    at, *_, c, u = two()
    z, t, s = at.z, 700, 300
    alpha, sigma = SCHEDULE.alpha(jnp.array([t, s])), SCHEDULE.sigma(jnp.array([t, s]))
    x_c, x_u = (alpha[0] * z - sigma[0] * v for v in (c, u))
    eps_u = sigma[0] * z + alpha[0] * u
    levels = lambda t: (spread(SCHEDULE.alpha(t), z), spread(SCHEDULE.sigma(t), z))  # noqa: E731
    estimate = guided_estimate(
        lambda z, t, null: jnp.concatenate([c, u]), "v", levels, Guidance(scale, rule=CFGPlusPlus())
    )
    path = solvers.solve(
        lambda z, t: estimate(z, jnp.full(2, t)), z, np.array([t, s, -1]), SCHEDULE, solver=solver, trajectory=True,
        clip_x_0=0.5,
    )  # fmt: skip
    x_0 = jnp.clip(x_u + scale * (x_c - x_u), -0.5, 0.5)
    np.testing.assert_allclose(path[1], alpha[1] * x_0 + sigma[1] * eps_u, atol=1e-4)


def test_rules_hold_in_an_interval_and_are_composed_with_rescaling():
    at, given, without, c, u = two()
    levels = lambda t: (at.alpha, at.sigma)  # noqa: E731
    for rule in (APG(), CFGZero(), CFGPlusPlus()):
        found = guided_estimate(
            lambda *_: jnp.concatenate([c, u]), "v", levels, Guidance(2.0, None, (700, 900), 0.7, rule)
        )(at.z, at.t)
        np.testing.assert_allclose(found.x_0[0], given.x_0[0], atol=1e-5)  # its time is outside
        assert_of_z(found, at)
        steered = rule(given, without, 2.0, at)
        before, after, goal = (
            float(np.std(gaussian.target("v", *one[:2], at.alpha, at.sigma)[1])) for one in (steered, found, given)
        )
        np.testing.assert_allclose(after, 0.3 * before + 0.7 * goal, rtol=1e-3)
        if rule == CFGPlusPlus():
            np.testing.assert_array_equal(found.renoise[0], given.eps[0])
            np.testing.assert_array_equal(found.renoise[1], without.eps[1])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_learned_variance_is_that_given_the_condition(scale):
    """Further channels from -1 to 1; guidance steers the prediction alone."""
    z, levels = jnp.ones((4, 2)), lambda t: (jnp.full((len(t), 1), 0.6), jnp.full((len(t), 1), 0.8))

    def predict(z, t, null):
        return jnp.concatenate([predictor([])(z, t, null), jnp.where(null, 1.0, -0.5)[:, None] * jnp.ones_like(z)], -1)

    found = guided_estimate(predict, "eps", levels, Guidance(scale, interval=(300, 999)))(z, T)
    np.testing.assert_allclose(found.variance, 0.25)
    np.testing.assert_allclose(found.eps[0], WITHOUT + scale * (GIVEN - WITHOUT))


def test_bad_values():
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        Guidance(2.0, rescale=1.5)
    for interval in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="0 <= first <= last"):
            Guidance(2.0, interval=interval)
