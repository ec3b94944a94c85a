"""Classifier-free guidance (Ho & Salimans 2022): steer a prediction away from the unconditional one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predictor = Callable[..., jax.Array]


def guided(predict: Predictor, guidance_scale: float) -> Predictor:
    """Wraps `predict(*arrays, null)`, where `null` bool [b] says which rows drop their condition.

    Both predictions are made in one pass over a doubled batch. guidance_scale = 1 is the conditional prediction,
    0 the unconditional one; the wrapped function takes the same arrays, every one with a leading batch axis.
    """
    if guidance_scale == 1:
        return lambda *arrays: predict(*arrays, jnp.zeros(len(arrays[0]), bool))

    def both(*arrays: jax.Array) -> jax.Array:
        rows = len(arrays[0])
        doubled = [jnp.concatenate([a, a]) for a in arrays]
        given, without = jnp.split(predict(*doubled, jnp.arange(2 * rows) >= rows), 2)
        return without + guidance_scale * (given - without)

    return both
