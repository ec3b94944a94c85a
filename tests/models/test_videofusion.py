"""The two models around their networks: oracles, stop-gradients, counted passes, batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import BASE, FRAMES, SCHEDULE, SHAPE, Stub, awake, fusion, keys, one_network, unet
from vf.diffusion import decompose, gaussian, noise, solvers
from vf.diffusion.guidance import CFGPlusPlus, Guidance
from vf.diffusion.schedule import time_grid
from vf.models.sampler import Control, SampleOptions, sample
from vf.models.videofusion import CONTEXTS
from vf.training import sharding


def clips(n=3):
    return jnp.tanh(jax.random.normal(jax.random.key(4), (n, *SHAPE)))


@pytest.mark.parametrize("context", ["none", "base_frame"])
@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_oracles_have_no_loss(kind, context):
    """Networks that know x and so the true noise: loss 0 at every frame, and eps_hat = eps."""
    x = clips()
    b, r = jax.vmap(lambda k: noise.Decomposed(decompose.make_lambda(0.5, FRAMES, BASE)).parts(
        jax.random.fold_in(k, 1), SHAPE))(keys(3))  # fmt: skip
    t = jnp.array([10, 500, 900])

    def base(z, t, **_):
        alpha, sigma = (f(t)[:, None, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        return gaussian.target(kind, x[:, BASE, None], b[:, None], alpha, sigma)

    def residual(z, t, **_):
        alpha, sigma = (f(t)[:, None, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        return gaussian.target(kind, x, r, alpha, sigma * np.sqrt(0.5).astype(np.float32))

    model = fusion(
        base=Stub(base), residual=Stub(residual), base_prediction=kind, residual_prediction=kind, context=context
    )
    errors = model.errors({"base": {}, "residual": {}}, x, {}, keys(3), t)
    np.testing.assert_allclose(errors.loss, 0, atol=1e-7)
    np.testing.assert_allclose(errors.eps, 0, atol=1e-4)


@pytest.mark.parametrize("value", [0.5, 0.9])
@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_equation_7_measures_every_kind_of_prediction(kind, value):
    """One r_hat, predicted as any kind, with its loss as eps: (1 - lambda) |r - r_hat|^2, which is 0 at lambda = 1."""
    lam = decompose.make_lambda((value, 1, value, 1), FRAMES, BASE)
    x, t = clips(), jnp.array([300, 500, 700])
    b, r = jax.vmap(lambda k: noise.Decomposed(lam).parts(jax.random.fold_in(k, 1), SHAPE))(keys(3))
    r_hat = r + 0.1 * jnp.tanh(x)
    alpha, sigma = (s(t)[:, None, None, None, None] for s in (SCHEDULE.alpha, SCHEDULE.sigma))
    residual_sigma = sigma * jnp.sqrt(1 - lam)[:, None, None, None]
    x_hat = (alpha * x + residual_sigma * (r - r_hat)) / alpha
    residual = Stub(lambda z, t, **_: gaussian.target(kind, x_hat, r_hat, alpha, residual_sigma))
    truth = Stub(lambda z, t, **_: b[:, None])
    model = fusion(
        base=truth, residual=residual, lam=lam, residual_prediction=kind, residual_loss="eps", loss_weight=1e9
    )
    loss = model.errors({"base": {}, "residual": {}}, x, {}, keys(3), t).loss
    expected = (1 - lam) * np.mean(np.square(np.float64(r - r_hat)), (2, 3, 4))
    expected[:, BASE] = 0
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("context", ["none", "base_frame", "one network"])
def test_zero_predictions_find_no_noise_in_any_model(context):
    """The share of noise not found is 1 for networks that predict zero, whatever part of the noise is known by then."""
    zero = Stub(lambda z, t, **_: jnp.zeros_like(z[..., :3]))
    if context == "one network":
        model = one_network(noise.Mixed(), net=zero)
    else:
        model = fusion(0.8, base=zero, residual=zero, context=context)
    eps = model.errors({"base": {}, "residual": {}}, clips(64), {}, keys(64)).eps
    np.testing.assert_allclose(eps.mean(0), 1, atol=0.05)  # 12,288 draws a frame, of variance 2


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_the_base_learns_from_its_own_frame_only(context):
    """Gradient of the other frames' errors in the base's parameters is exactly 0; that of the base frame's is not."""
    model = fusion(context=context)
    params = awake(model)

    @jax.jit
    @jax.grad
    def gradient(params, weight):
        return jnp.sum(weight * model.errors(params, clips(), {}, keys(3)).loss)

    base_only = jnp.zeros(FRAMES).at[BASE].set(1)
    for leaf in jax.tree.leaves(gradient(params, 1 - base_only)["base"]):
        np.testing.assert_array_equal(leaf, 0)
    gradients = gradient(params, base_only)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["base"]))
    for leaf in jax.tree.leaves(gradients["residual"]):
        np.testing.assert_array_equal(leaf, 0)


def test_more_images_train_the_base_alone():
    """Each is a frame of its clip, with the noise of its own time; the other frames' errors do not change."""
    x = 1e6 * jnp.ones((3, *SHAPE)) * jnp.arange(FRAMES)[:, None, None, None]  # so that z shows which frame it is
    shown = []

    def base(z, t, **_):
        alpha, sigma = (s(t)[:, None, None, None, None] for s in (SCHEDULE.alpha, SCHEDULE.sigma))
        shown.append(jnp.round((z / alpha).mean((1, 2, 3, 4)) / 1e6).reshape(3, -1))
        return z / sigma

    zero = Stub(lambda z, t, **_: jnp.zeros_like(z))
    one, many = (fusion(base=Stub(base), residual=zero, context="base_frame", base_images=n) for n in (1, 9))
    no_params = {"base": {}, "residual": {}}
    errors = {m: m.errors(no_params, x, {}, keys(3), train=True) for m in (one, many)}
    assert [frames.shape for frames in shown] == [(3, 1), (3, 9)]
    np.testing.assert_array_equal(shown[1][:, 0], BASE)
    assert set(np.unique(shown[1][:, 1:])) == set(range(FRAMES))  # 24 draws
    np.testing.assert_array_equal(errors[one].eps, errors[many].eps)
    np.testing.assert_array_equal(*(np.delete(errors[m].loss, BASE, 1) for m in (one, many)))
    many.errors(no_params, x, {}, keys(3))
    assert shown[2].shape == (3, 1)  # not in validation
    exact = many.errors(no_params, 0 * x, {}, keys(3), train=True)  # where z = sigma eps the network above is right
    np.testing.assert_allclose(exact.loss[:, BASE], 0, atol=1e-9)
    with pytest.raises(ValueError, match="base_images"):
        fusion(base_images=0)


@pytest.mark.parametrize("kind", ["two networks", "one"])
def test_training_draws_of_a_clip_do_not_depend_on_its_batch(kind):
    """Times, noise, images and dropout: a batch that is cut, over devices or in micro-batches, has the same errors."""
    small = unet(num_res_blocks=0, dropout=0.5)
    if kind == "one":
        model = one_network(net=small)
    else:
        model = fusion(base=small, residual=small, context="base_frame", base_images=2)
    params, x = awake(model), clips(2)
    errors = jax.jit(lambda x, keys: model.errors(params, x, {}, keys, train=True).loss)
    whole, other = errors(x, keys(2)), errors(x, keys(2, seed=1))
    np.testing.assert_allclose(
        whole, jnp.concatenate([errors(x[i, None], keys(2)[i, None]) for i in (0, 1)]), rtol=1e-4
    )
    assert np.all(np.abs(whole / other - 1) > 1e-3)


@pytest.mark.parametrize("context", CONTEXTS)
def test_one_base_pass_per_step_on_one_frame(context):
    base, residual = Stub(lambda z, t, **_: z[..., :3]), Stub(lambda z, t, **_: z[..., :3])
    model = fusion(base=base, residual=residual, context=context)
    options, steps = SampleOptions(time_grid(5, 1000)), 5
    with jax.disable_jit():  # a scan that is not compiled runs its body once per step
        sample(model, {"base": {}, "residual": {}}, keys(2), {}, options)
    assert base.seen == [(2, 1, 8, 8, 3)] * steps
    channels = 6 if context == "base_frame" else 3
    assert residual.seen == [(2, FRAMES, 8, 8, channels)] * steps


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_eps_hat_is_the_base_models_where_lambda_is_one(value):
    """The base frame's eps_hat for any residual parameters; every frame's with lambda = 1 everywhere."""
    model = fusion(value)
    params = awake(model)
    z, t = jax.random.normal(jax.random.key(2), (2, *SHAPE)), jnp.asarray(400)
    eps_hat = jax.jit(lambda params: model.denoiser(params, {})(z, t).eps)
    given = eps_hat(params)
    alone = model.base.apply({"params": params["base"]}, z[:, BASE, None], jnp.full(2, 400))[:, 0]
    for i in range(FRAMES) if value == 1 else [BASE]:
        np.testing.assert_allclose(given[:, i], alone, atol=1e-5)  # compiled and not
    other = {**params, "residual": awake(model, 8)["residual"]}
    np.testing.assert_array_equal(eps_hat(other)[:, BASE], given[:, BASE])


def test_lambda_zero_decouples_the_frames():
    """At lambda = 0 and without context, the other frames' eps_hat does not depend on the base frame at all."""
    model = fusion(0.0)
    params = awake(model)
    z = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    eps_hat = jax.jit(lambda z, t: model.denoiser(params, {})(z, t).eps)
    one, two = (eps_hat(z.at[:, BASE].add(d), jnp.asarray(400)) for d in (0.0, 1.0))
    np.testing.assert_array_equal(np.delete(one, BASE, 1), np.delete(two, BASE, 1))


@pytest.mark.parametrize(
    "make", [lambda: fusion(context="base_frame"), fusion, one_network], ids=["first", "joint", "one"]
)
def test_samples_depend_on_their_own_key_alone(make):
    """Not on the batch they are in, nor on the number of devices; eta > 0, so that injected noise counts too."""
    model = make()
    params = awake(model)
    # Not from t = 999, where x_0 = (z - sigma eps) / alpha makes rounding errors 20,000 times as large.
    options = SampleOptions(np.array([700, 300, 0, -1], np.int32), solvers.DDIM(0.7))
    draw = jax.jit(lambda p, k: sample(model, p, k, {}, options))
    together = draw(params, keys(8))
    np.testing.assert_allclose(draw(params, keys(8)[5:6]), together[5:6], atol=1e-4)
    mesh = sharding.make_mesh()
    spread_keys = jax.device_put(keys(8), sharding.batch_sharding(mesh))
    spread = draw(jax.device_put(params, sharding.replicated(mesh)), spread_keys)
    np.testing.assert_allclose(spread, together, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_guidance_and_dropped_conditions():
    """Guidance 0 is the null class; a null row of a label-conditioned network does not see its label."""
    net = {"num_classes": 3, "null_class": True}
    model = fusion(base=unet(**net), residual=unet(**net, temporal=("conv",), frame_embed=True), null_label=3)
    params = awake(model)
    z, t = jax.random.normal(jax.random.key(2), (2, *SHAPE)), jnp.asarray(400)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def eps_hat(label, *scales):
        return model.denoiser(params, {"label": jnp.full(2, label)}, Guidance(*scales))(z, t).eps

    np.testing.assert_allclose(eps_hat(0, 0.0), eps_hat(3, 1.0), atol=1e-5)
    assert np.abs(eps_hat(0, 1.0) - eps_hat(1, 1.0)).max() > 1e-3
    # CFG++ renoises with what the networks say without a label.
    guidance = Guidance(1.0, rule=CFGPlusPlus())
    found = jax.jit(lambda: model.denoiser(params, {"label": jnp.zeros(2, int)}, guidance)(z, t))()
    np.testing.assert_allclose(found.eps, eps_hat(0, 1.0), atol=1e-5)
    np.testing.assert_allclose(found.renoise[:, BASE], eps_hat(3, 1.0)[:, BASE], atol=1e-5)
    assert np.abs(found.renoise - found.eps).max((0, 2, 3, 4)).min() > 1e-3
    base_only = eps_hat(3, 1.0) + 3 * (eps_hat(0, 1.0) - eps_hat(3, 1.0))
    np.testing.assert_allclose(eps_hat(0, 3.0)[:, BASE], base_only[:, BASE], atol=1e-4)  # linear in the base
    residual_only = np.abs(eps_hat(0, 1.0, 3.0) - eps_hat(0, 1.0)).max((0, 2, 3, 4))
    assert residual_only[BASE] == 0
    assert np.delete(residual_only, BASE).min() > 1e-3


def test_a_missing_condition_is_named():
    with pytest.raises(ValueError, match="'embedding'"):
        fusion(embedding_dim=4).condition({"label": jnp.zeros(1)})


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="lambda < 1"):
        fusion(1.0, context="base_frame")
    with pytest.raises(ValueError, match="context must be one of"):
        fusion(context="frame")


def test_the_context_reaches_the_residual_generator():
    """Base first: noise on the clean base frame changes the prediction of the others; only training adds it."""
    model = fusion(context="base_frame", context_noise=0.5)
    params = awake(model)
    x = clips()
    t = jnp.full(3, 900)
    errors = jax.jit(lambda x, train: model.errors(params, x, {}, keys(3), t, train=train).loss, static_argnums=1)
    calm, calm_again = (errors(x, False) for _ in range(2))
    np.testing.assert_array_equal(calm, calm_again)
    noisy = errors(x, True)
    assert np.abs(np.delete(noisy - calm, BASE, 1)).max() > 1e-5
    np.testing.assert_allclose(noisy[:, BASE], calm[:, BASE], rtol=1e-5)


def watched(context):
    """A model that may see frames clean, and the (z', times) that its residual generator has seen."""
    seen = []

    def residual(z, t, **_):
        seen.append((z[..., :3], t))
        return jnp.zeros_like(z[..., :3])

    nothing = Stub(lambda z, t, **_: jnp.zeros_like(z))
    return fusion(context=context, base=nothing, residual=Stub(residual), known_share=0.8), seen


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_some_frames_are_seen_clean_in_training(context):
    """At time 0, as the clip has them, and without a loss: some of the clips' frames, never the base frame."""
    model, seen = watched(context)
    x, t = clips(200), jnp.full(200, 600)
    errors = model.errors({"base": {}, "residual": {}}, x, {}, keys(200), t, train=True)
    (z, times), clean = seen[0], np.asarray(seen[0][1] == 0)
    assert set(np.unique(times)) == {0, 600}
    np.testing.assert_allclose(z[clean], SCHEDULE.alpha(jnp.int32(0)) * x[clean], atol=1e-6)
    np.testing.assert_array_equal(errors.loss == 0, clean)
    assert not clean[:, BASE].any()
    others = np.delete(clean, BASE, axis=1)
    assert abs(others.mean() - 0.4) < 5 * (0.8 / 3 - 0.16) ** 0.5 / 200**0.5  # half of the share, by clips
    assert 0.1 < others.any(axis=1).mean() < 0.8
    model.errors({"base": {}, "residual": {}}, x, {}, keys(200), t)
    assert seen[1][1].shape == (200,)  # none in validation


@pytest.mark.parametrize("context", ["none", "base_frame"])
def test_known_frames_are_shown_clean_to_a_network_that_knows_such(context):
    model, seen = watched(context)
    x, given = clips(2), (0, BASE)
    options = SampleOptions(np.array([500, -1], np.int32), known=given, history=1.0)
    with jax.disable_jit():
        sample(model, {"base": {}, "residual": {}}, keys(2), {}, options, Control(known=x))
    z, times = seen[0]
    np.testing.assert_array_equal(times, np.where(np.arange(FRAMES) == 0, 0, 500)[None].repeat(2, 0))
    np.testing.assert_allclose(z[:, 0], SCHEDULE.alpha(jnp.int32(0)) * x[:, 0], atol=1e-6)
    assert np.abs(z[:, 2] - x[:, 2]).max() > 0.1
