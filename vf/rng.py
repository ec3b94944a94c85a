"""Every random draw is a function of (seed, purpose, example), without any state, the same on every machine.

A draw that concerns a training example is keyed by the example's number in the run (step * batch_size + row), one that
concerns a sample by the sample's number; so it is the same on 1 or 256 devices, in any batch, after any restart.
"""

import enum

import jax
from jaxtyping import Array, Key, UInt


class Purpose(enum.IntEnum):
    """The purpose of a draw. Runs reproduce by these numbers: append, never renumber."""

    PARAMETERS = 0
    TRAIN = 1
    EVALUATE = 2
    SAMPLE = 3
    ROUND = 4


def key(seed: int, purpose: Purpose) -> Key[Array, ""]:
    """The key of one purpose."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def example_keys(seed: int, purpose: Purpose, index: UInt[Array, " b"]) -> Key[Array, " b"]:
    """One key per example number, for draws under vmap."""
    return jax.vmap(lambda i: jax.random.fold_in(key(seed, purpose), i))(index)


def streams(keys: Key[Array, " b"], number: int) -> list[Key[Array, " b"]]:
    """`number` independent sets of per-example keys, for draws of different kinds."""
    return [jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(number)]
