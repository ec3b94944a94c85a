"""Gradients of micro-batches are those of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vf import state as states
from vf import step as steps
from vf.model import Errors


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

    networks, base_frame = ("base",), 0

    def condition(self, rows):
        return {}

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
