"""Every random draw is a function of (seed, purpose, example), without any state, the same on every machine.

A draw that concerns a training example is keyed by the example's number in the run (step * batch_size + row), one that
concerns a sample by the sample's number; so it is the same on 1 or 256 devices, in any batch, after any restart.
"""

import enum
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt

Seed = int | UInt[Array, ""]
"""A seed, of which the lowest 32 bits count."""


def as_argument(seed: int) -> UInt[np.ndarray, ""]:
    """The same seed for a compiled program, which does not depend on it then."""
    return np.asarray(seed % 2**32, np.uint32)


class Purpose(enum.IntEnum):
    """The purpose of a draw. Runs reproduce by these numbers: append, never renumber."""

    PARAMETERS = 0  # of earlier versions: first values are drawn by name (`vf/nets/initial.py`)
    TRAIN = 1
    EVALUATE = 2
    SAMPLE = 3
    ROUND = 4
    MOTION = 5
    PRIOR = 6  # an embedding that a prior draws for a sample
    SUPERRES = 7  # a sample that is taken up to a higher resolution


def key(seed: Seed, purpose: Purpose) -> Key[Array, ""]:
    """The key of one purpose."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def example_keys(seed: Seed, purpose: Purpose, index: UInt[Array, " b"]) -> Key[Array, " b"]:
    """One key per example number, for draws under vmap."""
    return jax.vmap(lambda i: jax.random.fold_in(key(seed, purpose), i))(index)


def streams(keys: Key[Array, " b"], number: int) -> list[Key[Array, " b"]]:
    """`number` independent sets of per-example keys, for draws of different kinds."""
    # One draw for all of them: each one more is a program of its own.
    return list(
        jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(keys, jnp.arange(number, dtype=jnp.uint32))
    )


def normal(key: Key[Array, ""], shape: Sequence[int]) -> Float[Array, "*shape"]:
    """Standard normal numbers, those of `jax.random.normal`.

    They are drawn in one row: for four axes XLA's CPU compiler needs five times as long, a second or more.
    """
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def bernoulli(key: Key[Array, ""], p: float, shape: Sequence[int]) -> Bool[Array, "*shape"]:
    """True with probability `p`: as `jax.random.bernoulli`, and drawn like `normal`."""
    return jax.random.bernoulli(key, p, (math.prod(shape),)).reshape(shape)
