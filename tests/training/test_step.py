"""Losses and updates by hand; gradients of micro-batches are those of the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small_models import Stub, fusion, one_network
from vf import rng, video
from vf.models.model import Errors
from vf.training import state as states
from vf.training import step as steps


def loss_of(params, rows):
    found = jnp.mean((jnp.tanh(rows["x"] @ params["w"].astype(jnp.float32)) - rows["y"]) ** 2)
    return found, {"loss": found}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_many_micro_batches_add_up_to_the_batch(dtype):
    """Also where parameters are bfloat16, of which a sum of 64 would keep two digits."""
    random = np.random.default_rng(0)
    rows = {"x": random.normal(size=(256, 24)).astype("f4"), "y": random.normal(size=(256, 8)).astype("f4")}
    params = {"w": jnp.asarray(random.normal(size=(24, 8)) / 5, dtype)}
    exact = jax.grad(lambda p: loss_of(p, rows)[0])(jax.tree.map(jnp.float32, params))["w"]

    def off(parts):
        made, numbers = jax.jit(functools.partial(steps._gradients, loss_of=loss_of, parts=parts))(params, rows)
        np.testing.assert_allclose(numbers["loss"], loss_of(params, rows)[0], rtol=1e-5)
        return float(jnp.linalg.norm(made["w"].astype(jnp.float32) - exact) / jnp.linalg.norm(exact))

    one = off(1)
    assert one < (1e-6 if dtype == jnp.float32 else 4e-3)  # each number to the nearest of 8 bits
    assert off(64) < max(1.2 * one, 1e-6)


class ManyLeaves:
    """A model of a hundred parameters of one number each, whose gradients are given numbers."""

    networks, base_frame, shape = ("base",), 0, (2, 4, 4, 3)

    def condition(self, rows):
        return {}

    def clips(self, params, rows):
        return video.from_uint8(rows["video"])

    def errors(self, params, x, condition, keys, train):
        total = sum(jnp.sum(p) * (0.5 + 0.01 * k) for k, p in enumerate(params["base"]))
        return Errors(jnp.full((len(x), 2), total), jnp.zeros((len(x), 2)))


def test_gradient_norms_are_summed_in_float32():
    """Squares of bfloat16 gradients, added in bfloat16, lose 3 % over a hundred parameters."""
    params = {"base": [jnp.ones(4, jnp.bfloat16) for _ in range(100)]}
    tx = optax.sgd(1e-3)
    rows = {"video": np.zeros((2, 2, 4, 4, 3), np.uint8), "index": np.arange(2, dtype=np.uint32)}
    _, numbers = steps.train_step(
        states.create(params, tx, jnp.bfloat16), rows, model=ManyLeaves(), tx=tx, seed=0, ema_decay=0.9
    )
    gradients = np.float64(jnp.bfloat16(0.5 + 0.01 * np.arange(100)))
    np.testing.assert_allclose(numbers["grad_norm_base"], np.sqrt(4 * np.sum(gradients**2)), rtol=1e-3)


def test_the_loss_of_a_batch_is_that_of_training():
    """The model is asked for errors with all that belongs to training alone."""
    seen = []

    class Seen(ManyLeaves):
        def errors(self, params, x, condition, keys, train):
            seen.append(train)
            return super().errors(params, x, condition, keys, train)

    rows = {"video": np.zeros((2, 2, 4, 4, 3), np.uint8), "index": np.arange(2, dtype=np.uint32)}
    steps.batch_loss({"base": [jnp.ones(4)]}, rows, model=Seen(), seed=0)
    assert seen == [True]


def test_the_loss_is_the_sum_of_both_generators_or_the_mean_over_frames():
    errors = jnp.array([[1.0, 10.0, 2.0, 3.0], [4.0, 20.0, 5.0, 6.0]])  # the base frame is the second
    for model, total in ((fusion(), 15 + 3.5), (one_network(), 51 / 8)):
        loss, numbers = steps.loss(model, Errors(errors, 100 * errors))
        assert float(loss) == total
        assert {name: float(number) for name, number in numbers.items()} == {
            "loss": total,
            "loss_base": 15,
            "loss_residual": 3.5,
        }


class Constant(Stub):
    """A network that says the mean of its parameters of every pixel."""

    def apply(self, variables, z, t, **_):
        return jnp.full_like(z, jnp.mean(variables["params"]["w"], dtype=jnp.float32))


def constants(n, **values):
    """Networks of constants that are judged by the clean clip, and clips for them; lambda is 0.75."""
    kinds = {"base_prediction": "x_0", "base_loss": "x_0", "residual_prediction": "x_0", "residual_loss": "x_0"}
    model = fusion(0.75, (4, 2, 2, 3), base=Constant(None), residual=Constant(None), **kinds)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 2, 2, 3), np.uint8)
    batch = {"video": jnp.asarray(pixels), "index": jnp.arange(6, dtype=jnp.uint32)}
    return model, batch, {name: {"w": jnp.full(n, value, jnp.float32)} for name, value in values.items()}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_update_by_hand(accumulate):
    """Each network is on its own: base and residual losses, gradients and their norms, one step of gradient descent."""
    model, batch, params = constants(1, base=0.3, residual=-0.2)
    tx, lr = optax.sgd(0.25), 0.25
    step = functools.partial(steps.train_step, model=model, tx=tx, seed=0, ema_decay=0.5, accumulate=accumulate)
    after, numbers = jax.jit(step)(states.create(params, tx), batch)
    x = np.float64(batch["video"]) / 127.5 - 1
    shown = {"base": x[:, model.base_frame], "residual": np.delete(x, model.base_frame, 1)}
    total = 0
    for name, weight in (("base", 1), ("residual", 0.25)):  # 1 - lambda
        start = float(params[name]["w"][0])
        loss = weight * np.mean((shown[name] - start) ** 2)
        gradient = weight * 2 * (start - shown[name].mean())
        total += loss
        np.testing.assert_allclose(numbers[f"loss_{name}"], loss, rtol=1e-5)
        np.testing.assert_allclose(numbers[f"grad_norm_{name}"], abs(gradient), rtol=1e-5)
        np.testing.assert_allclose(after.params[name]["w"], start - lr * gradient, rtol=1e-5)
        decay = 0.1  # (1 + n) / (10 + n) of a young average, n = 0
        np.testing.assert_allclose(after.ema[name]["w"], start - (1 - decay) * lr * gradient, rtol=1e-5)
    np.testing.assert_allclose(numbers["loss"], total, rtol=1e-5)
    assert int(after.step) == 1


def test_every_step_rounds_half_precision_by_its_own_draws():
    """The same parameters and gradients are rounded differently at another step, and alike at the same one."""
    model, batch, params = constants(4096, base=1.0, residual=1.0)
    tx = optax.sgd(4.8)  # moves each parameter by a fraction of the distance of its neighbours
    step = jax.jit(functools.partial(steps.train_step, model=model, tx=tx, seed=0, ema_decay=0.5))
    start = states.create(params, tx, jnp.bfloat16)
    first, again, second = (step(start.replace(step=jnp.int32(k)), batch)[0].params for k in (0, 0, 1))
    for name in params:
        one, same, other = (np.float32(p[name]["w"]) for p in (first, again, second))
        np.testing.assert_array_equal(one, same)
        moved = 1 - one
        assert 0.1 < np.mean(moved != 0) < 0.9
        assert np.mean(one != other) > 0.1
        assert abs(np.mean(moved) / np.mean(1 - other) - 1) < 0.1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clips_of_one_motion_share_their_residual_noise(accumulate):
    """Base first, where nothing is predicted, clips lose (1 - lambda) |r|^2 of the noise of motion and step."""
    nothing = Stub(lambda z, t, **_: jnp.zeros_like(z[..., :3]))
    model = fusion(context="base_frame", base=nothing, residual=nothing, motion="motion")
    motion, step, seed = np.array([5, 2, 5, 2], np.int32), 7, 3
    rows = {
        "video": np.full((4, *model.shape), 128, np.uint8), "index": np.arange(4, dtype=np.uint32), "motion": motion
    }  # fmt: skip
    params, tx = {"base": {"w": jnp.zeros(1)}, "residual": {"w": jnp.zeros(1)}}, optax.sgd(0.0)
    state = dataclasses.replace(states.create(params, tx, jnp.float32), step=jnp.int32(step))
    _, numbers = steps.train_step(state, rows, model=model, tx=tx, seed=seed, ema_decay=0.9, accumulate=accumulate)
    keys = rng.example_keys(seed, rng.Purpose.MOTION, jnp.uint32(step * steps.MOST_MOTIONS + motion))
    r = np.delete(jax.vmap(lambda key: model.prior.parts(key, model.shape)[1])(keys), model.base_frame, axis=1)
    np.testing.assert_allclose(numbers["loss_residual"], np.mean(0.5 * r**2), rtol=1e-5)
    np.testing.assert_array_equal(r[0], r[2])
