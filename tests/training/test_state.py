"""What a step carries to the next: averages in closed form, float32 beside bfloat16, and rounding at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vf.training import state

STILL = optax.set_to_zero()


@pytest.fixture
def params():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.float32(random.normal(size=shape))  # noqa: E731
    return {"base": {"kernel": draw(3, 8), "bias": draw(8)}, "residual": {"kernel": draw(8, 2)}}


def test_ema_of_constant_parameters_is_closed_form(params):
    start = state.create(params, STILL)
    start = start.replace(ema=jax.tree.map(lambda p: p + 1, start.ema))
    for decay, rate in ((0.9, [0.9] * 6), (functools.partial(state.ema_decay, decay=0.3), None)):
        now = start
        step = jax.jit(lambda now, decay=decay: state.update(now, params, STILL, decay))
        for _ in range(6):
            now = step(now)
        # 0.3 is passed by (1 + n) / (10 + n) from n = 3 on
        left = np.prod(rate or [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3])
        for ema, p in zip(jax.tree.leaves(now.ema), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ema - p, left, atol=1e-6)
        assert int(now.step) == 6


def test_ema_follows_the_parameters_after_the_update():
    start = state.create({"base": jnp.float32(1.0)}, optax.sgd(1.0))
    now = state.update(start, {"base": jnp.float32(-8.0)}, optax.sgd(1.0), 0.75)
    assert now.params["base"] == 9
    assert now.ema["base"] == 0.75 * 1 + 0.25 * 9


def test_ema_is_float32_and_stays_where_it_has_arrived(params):
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    now = state.create(halves, STILL)
    for _ in range(2):
        now = state.update(now, params, STILL, 0.9)
    for ema, p in zip(jax.tree.leaves(now.ema), jax.tree.leaves(halves), strict=True):
        assert ema.dtype == jnp.float32
        np.testing.assert_array_equal(ema, p.astype(jnp.float32))


def test_state_can_be_donated(params):
    tx = optax.adam(0.1)
    step = jax.jit(lambda now: state.update(now, params, tx, 0.9), donate_argnums=0)
    for now in (state.create(params, tx), jax.jit(lambda p: state.create(p, tx))(params)):
        assert int(step(step(now)).step) == 2


def test_rounding_at_random_is_right_on_average():
    """Values between two neighbours in bfloat16 become either, with the mean kept; those that are there stay."""
    x = jnp.float32(1 + 3 / 1024)  # 3/8 of the way from 1 to 1 + 1/128
    found = np.asarray(state.round_at_random(jnp.full(100_000, x), jax.random.key(0)), np.float64)
    assert set(found) == {1.0, 1 + 1 / 128}
    assert abs(found.mean() - float(x)) < 5 * (1 / 128) * 0.5 / np.sqrt(100_000)
    exact = jnp.array([0.0, 1.5, -2.0, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(state.round_at_random(exact, jax.random.key(1)).astype(jnp.float32), exact)


def test_parameters_in_half_precision_take_small_steps():
    """A thousandth of a parameter at a time: lost to rounding to the nearest, kept on average by rounding at random."""
    tx = optax.sgd(1.0)
    now = state.create({"base": {"w": jnp.ones(4096)}}, tx, jnp.bfloat16)
    assert now.params["base"]["w"].dtype == jnp.bfloat16
    assert now.ema["base"]["w"].dtype == jnp.float32
    grads = {"base": {"w": jnp.full(4096, -1e-3, jnp.bfloat16)}}
    nearest = state.update(now, grads, tx, 0.0)
    np.testing.assert_array_equal(nearest.params["base"]["w"], 1)
    for k in range(20):
        now = state.update(now, grads, tx, 0.0, jax.random.key(k))
    moved = float(now.params["base"]["w"].astype(jnp.float32).mean()) - 1
    np.testing.assert_allclose(moved, 20 * 1e-3, rtol=0.05)


def test_arrays_are_rounded_each_by_its_own_draw():
    tx = optax.sgd(1.0)
    now = state.create({"base": {"v": jnp.ones(4096), "w": jnp.ones(4096)}}, tx, jnp.bfloat16)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, -4e-3), now.params)  # half of the way to the next number
    rounded = state.update(now, grads, tx, 0.0, jax.random.key(0)).params["base"]
    up = np.array([rounded[name] > 1 for name in ("v", "w")])
    np.testing.assert_allclose(up.mean(1), 0.5, atol=0.05)
    np.testing.assert_allclose((up[0] & up[1]).mean(), 0.25, atol=0.05)
