"""Gradients of micro-batches are those of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf import step as steps


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
