"""Each network is updated by itself: AdamW by hand, schedules, clipping, decay and freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vf.training import optim, state
from vf.training.sharding import named
from vf.types import UserError

SETTINGS = {
    "lr": {"base": 1e-2, "residual": 3e-2},
    "schedule": "constant",
    "warmup_steps": 0,
    "total_steps": 100,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "clip_norm": None,
}


def make(**changes):
    return optim.make(**(SETTINGS | changes))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(seed: int):
    tree = {
        "in": {"kernel": normal(seed, 3, 8), "bias": np.zeros(8, np.float32)},
        "out": normal(seed + 1, 8, 2),
    }
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture
def params():
    return {"base": network(0), "residual": network(2)}


@pytest.fixture
def batch():
    return {"x": normal(4, 12, 3), "y": normal(5, 12, 2)}


@jax.jit
@jax.grad
def gradient(params, batch):
    def error(p, scale):
        hidden = jnp.tanh(batch["x"] @ p["in"]["kernel"] + p["in"]["bias"])
        return jnp.mean((hidden @ p["out"] - scale * batch["y"]) ** 2)

    return sum(error(p, scale) for p, scale in zip(params.values(), (1, 50), strict=False))


def updater(tx, decay=0.9):
    return jax.jit(lambda now, batch: state.update(now, gradient(now.params, batch), tx, decay))


def train(tx, params, batches, decay=0.9):
    now = state.create(params, tx)
    step = updater(tx, decay)
    for batch in batches:
        now = step(now, batch)
    return now


def distance(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_update_is_adamw_by_hand(params, batch):
    wd, b1, b2, eps = 0.1, 0.9, 0.99, 1e-8
    got = train(make(weight_decay=wd, clip_norm=0.5), params, [batch] * 3).params
    for name, lr in SETTINGS["lr"].items():
        p = {k: np.asarray(v, np.float64) for k, v in named(params[name]).items()}
        m = v = dict.fromkeys(p, 0.0)
        for k in range(1, 4):
            tree = jax.tree.unflatten(jax.tree.structure(params[name]), [jnp.float32(p[n]) for n in p])
            # The other network does not matter: losses add and every network has its own norm.
            g = named(gradient(params | {name: tree}, batch)[name])
            g = {n: np.asarray(x, np.float64) for n, x in g.items()}
            norm = np.sqrt(sum((x**2).sum() for x in g.values()))
            g = {n: x * min(1, 0.5 / norm) for n, x in g.items()}
            m = {n: b1 * m[n] + (1 - b1) * g[n] for n in g}
            v = {n: b2 * v[n] + (1 - b2) * g[n] ** 2 for n in g}
            for n in p:
                direction = m[n] / (1 - b1**k) / (np.sqrt(v[n] / (1 - b2**k)) + eps)
                p[n] = p[n] - lr * (direction + (wd * p[n] if p[n].ndim > 1 else 0))
        for n, want in p.items():
            np.testing.assert_allclose(named(got[name])[n], want, atol=2e-5)


def test_clipping_is_per_network(params):
    tx = make(clip_norm=1.0)
    quiet = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    loud = quiet | {"residual": jax.tree.map(lambda p: jnp.full_like(p, 1e6), params["residual"])}
    update = jax.jit(lambda g: tx.update(g, tx.init(params), params)[1])
    moments = [update(g) for g in (quiet, loud)]
    mu = [{n: x for n, x in named(s).items() if "/mu/" in n} for s in moments]
    for name, value in mu[0].items():
        if "/mu/base/" in name:
            np.testing.assert_array_equal(value, mu[1][name])
    norm = optax.tree.norm([x for n, x in mu[1].items() if "/mu/residual/" in n])
    np.testing.assert_allclose(norm, 0.1 * 1.0, rtol=1e-5)  # (1 - b1) times the clipped norm


def test_weight_decay_is_on_kernels_only(params):
    params = jax.tree.map(lambda p: p + 1, params)
    # Layers that are scanned have their biases and scales as rows of one array.
    params["base"]["blocks"] = {"bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3)), "kernel": jnp.ones((2, 3, 3))}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = make(weight_decay=0.5)
    changes = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(zero)
    for name, lr in SETTINGS["lr"].items():
        for path, change in named(changes[name]).items():
            want = -lr * 0.5 * named(params[name])[path] if not path.endswith(("/bias", "/scale")) else 0
            np.testing.assert_allclose(change, np.broadcast_to(want, change.shape), rtol=1e-6)


def test_a_frozen_network_stays_and_holds_no_memory(params, batch):
    tx = make(frozen=("base",), weight_decay=0.1)
    after = train(tx, params, [batch] * 2)
    assert distance(after.params["base"], params["base"]) == 0
    assert distance(after.ema["base"], params["base"]) == 0
    assert distance(after.params["residual"], params["residual"]) > 1e-3
    held = [name for name, leaf in named(after.opt_state).items() if leaf.ndim]
    assert held
    assert not [name for name in held if "/base/" in name]


def test_networks_may_be_one(params, batch):
    alone = train(make(), {"base": params["base"]}, [batch] * 2)
    both = train(make(), params, [batch] * 2)
    assert distance(alone.params["base"], both.params["base"]) < 1e-6


def test_learning_rates():
    at = make(
        lr={"base": 1.0, "residual": 0.5, "other": 1.0},
        schedule="cosine",
        warmup_steps=4,
        total_steps=12,
        frozen=("other",),
    ).learning_rates
    assert set(at(0)) == {"base", "residual"}
    base = [float(at(k)["base"]) for k in range(14)]
    np.testing.assert_allclose(base[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(base[8], 0.5, rtol=1e-6)  # half-way down
    np.testing.assert_allclose(base[12:], 0, atol=1e-7)
    assert np.all(np.diff(base[4:13]) < 0)
    np.testing.assert_allclose(at(7)["residual"], base[7] / 2)


def test_the_update_follows_the_schedule(params):
    tx = make(schedule="cosine", warmup_steps=2, total_steps=6)
    ones = jax.tree.map(jnp.ones_like, params)
    memory = tx.init(params)
    update = jax.jit(lambda memory: tx.update(ones, memory, params))
    for k in range(6):
        changes, memory = update(memory)
        # A constant gradient of 1 moves every parameter by the learning rate.
        for name, rate in tx.learning_rates(k).items():
            np.testing.assert_allclose(changes[name]["out"], -jnp.broadcast_to(rate, (8, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "'constant' or 'cosine'"),
        ({"schedule": "cosine", "warmup_steps": 100}, "warmup_steps < total_steps"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"lr": {"base": -1.0, "residual": 1.0}}, "lr.base must be 0 or more"),
        ({"lr": {"base": 1.0}}, "give lr.residual"),
        ({"frozen": ("bass",)}, r"\['base', 'residual'\]"),
    ],
)
def test_errors(params, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes).init(params)
