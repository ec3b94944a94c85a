"""Training errors in float64 by hand, from the networks' inputs and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import gaussian_video as closed
from tests.small_models import BASE, FRAMES, Stub, fusion, keys, one_network
from vf.diffusion import decompose, noise
from vf.diffusion.schedule import Schedule

# Some signal is left at every step, and one of 64 pixels is bright, another in every frame: what a network sees shows
# which frame it is, and with that the noise.
MILD = Schedule(np.array([0.9, 0.6, 0.3]))
MARKED = 30 * np.eye(64).reshape(16, FRAMES, 8, 8, 1)
LAM = decompose.make_lambda((0.3, 1, 0.9, 0.5), FRAMES, BASE)


class Recorder(Stub):
    """A Stub that records its inputs and outputs."""

    def apply(self, variables, z, t, **kwargs):
        output = self.function(z, t, **kwargs)
        self.seen.append({"z": z, "t": t, "output": output, **kwargs})
        return output


def conditioned(z, t, label, cond, null, **_):
    """A prediction that depends on every condition."""
    each = 0.1 * label + 0.2 * t + jnp.where(null, 0.5, 0.03 * cond[:, 0])
    return 0.8 * z[..., :1] + each[:, None, None, None, None]


def recorded_errors(model, networks):
    """Errors of the marked clips in training, float64, and the inputs and outputs of the networks."""
    clip = jnp.arange(len(MARKED))
    condition = {"label": clip, "embedding": jnp.float32(clip)[:, None]}

    def run(keys):
        loss = model.errors({"base": {}, "residual": {}}, jnp.float32(MARKED), condition, keys, train=True).loss
        return loss, [[{k: v for k, v in seen.items() if k != "dropout_keys"} for seen in n.seen] for n in networks]

    loss, seen = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.jit(run)(keys(len(MARKED))))
    return loss, [one for (one,) in seen]


def by_hand(predicted, loss_kind, bound, prediction, x, eps, alpha, sigma):
    """Mean squared error over pixels as `loss_kind`: at most `bound` times that of the predicted kind."""
    norm, z = np.hypot(alpha, sigma), alpha * x + sigma * eps
    x_hat, eps_hat = {
        "eps": lambda: ((z - sigma * prediction) / alpha, prediction),
        "x_0": lambda: (prediction, (z - alpha * prediction) / sigma),
        "v": lambda: ((alpha * z / norm - sigma * prediction) / norm, (sigma * z / norm + alpha * prediction) / norm),
    }[predicted]()
    off = {"eps": eps_hat - eps, "x_0": x_hat - x}
    off["v"] = (alpha * off["eps"] - sigma * off["x_0"]) / norm
    error, converted = (np.mean(off[kind] ** 2, (-3, -2, -1)) for kind in (predicted, loss_kind))
    return np.minimum(converted, bound * error)


def amplitudes(t):
    """alpha and sigma, with axes for pixels."""
    alpha_bar = MILD.alpha_bar[np.int32(t)][..., None, None, None]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def assert_conditions_match_clips(seen, clip):
    """Labels and embeddings are those of the clip that a row shows, or none; some are dropped, most are not."""
    np.testing.assert_array_equal(seen["label"], np.where(seen["null"], len(MARKED), clip))
    np.testing.assert_array_equal(seen["cond"][:, 0], clip)
    assert 0 < seen["null"].mean() < 0.5


@pytest.mark.parametrize(
    ("context", "base_kinds", "residual_kinds"),
    [
        ("none", ("x_0", "v"), ("eps", "x_0")),
        ("none", ("v", "eps"), ("x_0", "eps")),
        ("base_frame", ("eps", "x_0"), ("v", "eps")),
    ],
)
def test_two_networks_errors_by_hand(context, base_kinds, residual_kinds):
    """Equation (7) in float64 from the networks' inputs and outputs: labels, images, dropout, kinds, bound."""
    base, residual = Recorder(conditioned), Recorder(conditioned)
    bound, images = 1.5, 3
    model = fusion(
        shape=(FRAMES, 8, 8, 1), schedule=MILD, lam=LAM, base=base, residual=residual, context=context,
        base_prediction=base_kinds[0], base_loss=base_kinds[1], residual_prediction=residual_kinds[0],
        residual_loss=residual_kinds[1], loss_weight=bound, base_images=images,
        null_label=len(MARKED), embedding_dim=1, condition_dropout=0.2,
    )  # fmt: skip
    loss, (base, residual) = recorded_errors(model, (base, residual))

    z, prediction = base["z"][:, 0], base["output"][:, 0]
    clip, frame = np.divmod(z.reshape(len(z), -1).argmax(1), FRAMES)
    np.testing.assert_array_equal(clip, np.repeat(np.arange(len(MARKED)), images))
    np.testing.assert_array_equal(frame[::images], BASE)
    assert_conditions_match_clips(base, clip)
    alpha, sigma = amplitudes(base["t"])
    base_eps = (z - alpha * MARKED[clip, frame]) / sigma
    of_base = by_hand(*base_kinds, bound, prediction, MARKED[clip, frame], base_eps, alpha, sigma)
    np.testing.assert_allclose(loss[:, BASE], of_base.reshape(-1, images).mean(1), rtol=1e-3)

    assert_conditions_match_clips(residual, np.arange(len(MARKED)))
    np.testing.assert_array_equal(residual["t"], base["t"][::images])
    np.testing.assert_array_equal(residual["null"], base["null"][::images])
    alpha, sigma = (a[:, None] for a in amplitudes(residual["t"]))
    b = known = base_eps[::images, None]
    if context == "none":
        z, predicted = z[::images, None], prediction[::images, None]
        x_0 = {"x_0": predicted, "v": alpha * z - sigma * predicted}[base_kinds[0]]
        known = (z - alpha * x_0) / sigma  # b_hat
    others, share = np.delete(np.arange(FRAMES), BASE), np.delete(LAM, BASE)[:, None, None, None]
    x, z_prime = MARKED[:, others], residual["z"][:, others, ..., :1]
    residual_eps = (z_prime - alpha * x) / sigma  # sqrt(1 - lambda) r, and what b_hat left of b
    eps = np.insert(residual_eps + np.sqrt(share) * known, [BASE], b, 1)
    closed.assert_distributed(closed.pixels(eps), np.zeros(FRAMES), closed.noise_covariance(LAM))
    shrink = np.sqrt(1 - share)
    of_others = (1 - share[..., 0, 0, 0]) * by_hand(
        *residual_kinds, bound, residual["output"][:, others], x, residual_eps / shrink, alpha, sigma * shrink
    )
    np.testing.assert_allclose(loss[:, others], of_others, rtol=1e-3)


@pytest.mark.parametrize(("null_label", "embedding_dim"), [(None, 0), (3, 0), (None, 2), (3, 2)])
def test_a_model_takes_the_conditions_that_it_uses(null_label, embedding_dim):
    batch = {"label": jnp.zeros(1, jnp.int32), "embedding": jnp.zeros((1, 2)), "video": jnp.zeros(1)}
    taken = fusion(null_label=null_label, embedding_dim=embedding_dim).condition(batch)
    assert set(taken) == {name for name, used in (("label", null_label), ("embedding", embedding_dim)) if used}


def test_one_networks_errors_by_hand():
    net, prior = Recorder(conditioned), noise.Progressive(2.0)
    model = one_network(
        prior, net=net, shape=(FRAMES, 8, 8, 1), schedule=MILD, prediction="x_0", loss="v", loss_weight=1.5,
        null_label=len(MARKED), embedding_dim=1, condition_dropout=0.2,
    )  # fmt: skip
    loss, (net,) = recorded_errors(model, (net,))
    assert_conditions_match_clips(net, np.arange(len(MARKED)))
    alpha, sigma = (a[:, None] for a in amplitudes(net["t"]))
    eps = (net["z"] - alpha * MARKED) / sigma
    closed.assert_distributed(closed.pixels(eps), np.zeros(FRAMES), prior.covariance(FRAMES))
    np.testing.assert_allclose(loss, by_hand("x_0", "v", 1.5, net["output"], MARKED, eps, alpha, sigma), rtol=1e-3)


@pytest.mark.parametrize("kind", ["two networks", "one"])
def test_the_share_of_noise_not_found(kind):
    """A network that predicts half of the true noise leaves a quarter of its power, one that predicts twice it all."""
    n, found = 64, {}
    for part in (0.5, 2.0):
        half = Stub(lambda z, t, part=part, **_: part * z / np.float32(np.sqrt(0.1)))  # of z = sigma eps
        fields = {"schedule": Schedule(np.array([0.9])), "shape": (FRAMES, 8, 8, 1)}
        model = one_network(net=half, **fields) if kind == "one" else fusion(0.0, base=half, residual=half, **fields)
        x, t = jnp.zeros((n, FRAMES, 8, 8, 1)), jnp.zeros(n, jnp.int32)
        found[part] = model.errors({"base": {}, "residual": {}}, x, {}, keys(n), t).eps.mean(0)
    np.testing.assert_allclose(found[0.5], 0.25, rtol=0.1)
    np.testing.assert_allclose(found[2.0], 1, rtol=0.1)


def test_further_images_are_frames_of_equal_chance():
    shown = Recorder(lambda z, t, **_: z)
    fields = {"schedule": Schedule(np.array([1 - 1e-6])), "shape": (FRAMES, 1, 1, 1), "base_images": 4001}
    x = jnp.arange(FRAMES, dtype=jnp.float32)[None, :, None, None, None]
    fusion(base=shown, residual=Stub(lambda z, t, **_: z), **fields).errors(
        {"base": {}, "residual": {}}, x, {}, keys(1), train=True
    )
    frames = np.round(np.ravel(shown.seen[0]["z"])[1:]).astype(int)
    np.testing.assert_allclose(np.bincount(frames, minlength=FRAMES) / 4000, 1 / FRAMES, atol=0.03)


def test_the_context_s_noise_amplitude_is_uniform_up_to_the_stated_one():
    """U(0, 0.3) for each clip, in training."""
    n = 400
    residual = Recorder(lambda z, t, **_: z[..., :1])
    model = fusion(
        base=Stub(lambda z, t, **_: z), residual=residual, shape=(FRAMES, 8, 8, 1), context="base_frame",
        context_noise=0.3,
    )  # fmt: skip
    model.errors({"base": {}, "residual": {}}, jnp.zeros((n, FRAMES, 8, 8, 1)), {}, keys(n), train=True)
    amplitudes_seen = np.asarray(residual.seen[0]["z"][:, 0, ..., 1]).std((1, 2))
    assert amplitudes_seen.max() < 0.3 * 1.4  # of 64 pixels
    np.testing.assert_allclose(amplitudes_seen.mean(), 0.15, rtol=0.1)
    np.testing.assert_allclose((amplitudes_seen**2).mean(), 0.03, rtol=0.2)


@pytest.mark.parametrize("kind", ["two networks", "one"])
def test_dropout_belongs_to_training(kind):
    """Each network gets keys to drop by, one a clip, in training; none in validation."""
    net = Recorder(lambda z, t, **_: z[..., :1])
    fields = {"shape": (FRAMES, 1, 1, 1)}
    model = one_network(net=net, **fields) if kind == "one" else fusion(base=net, residual=net, **fields)
    for train in (True, False):
        model.errors({"base": {}, "residual": {}}, jnp.zeros((5, FRAMES, 1, 1, 1)), {}, keys(5), train=train)
    half = len(net.seen) // 2
    assert [seen["dropout_keys"].shape for seen in net.seen[:half]] == [(5,)] * half
    assert [seen["dropout_keys"] for seen in net.seen[half:]] == [None] * half


@pytest.mark.parametrize("kind", ["two networks", "one"])
def test_times_are_uniform_and_the_stated_share_of_conditions_is_dropped(kind):
    """In training; none is dropped in validation."""
    net = Recorder(lambda z, t, **_: z)
    fields = {"shape": (FRAMES, 1, 1, 1), "schedule": MILD, "null_label": 1, "condition_dropout": 0.2}
    model = one_network(net=net, **fields) if kind == "one" else fusion(base=net, residual=net, **fields)
    n = 3000
    for train in (True, False):
        condition = {"label": jnp.zeros(n, jnp.int32)}
        model.errors({"base": {}, "residual": {}}, jnp.zeros((n, FRAMES, 1, 1, 1)), condition, keys(n), train=train)
    trained, validated = net.seen[0], net.seen[-1]
    assert abs(np.mean(trained["label"]) - 0.2) < 0.03  # four standard errors
    np.testing.assert_array_equal(validated["label"], 0)
    np.testing.assert_allclose(np.bincount(trained["t"]) / n, 1 / 3, atol=0.035)
