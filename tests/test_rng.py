"""Draws are functions of (seed, purpose, example), and stay what they are from version to version."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vf import rng


def test_purposes_are_never_renumbered():
    """A run that goes on under another version draws what it would have drawn."""
    assert [(purpose.name, purpose.value) for purpose in rng.Purpose][:5] == [
        ("PARAMETERS", 0), ("TRAIN", 1), ("EVALUATE", 2), ("SAMPLE", 3), ("ROUND", 4),
    ]  # fmt: skip
    known = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 3), 5)
    assert rng.example_keys(7, rng.Purpose.SAMPLE, jnp.array([5], jnp.uint32))[0] == known


def test_every_example_of_every_purpose_and_seed_has_its_own_key():
    index = jnp.arange(4, dtype=jnp.uint32)
    keys = [rng.example_keys(seed, purpose, index) for seed, purpose in itertools.product((0, 1), rng.Purpose)]
    drawn = np.array([jax.random.key_data(key) for key in keys]).reshape(-1, 2)
    assert len(np.unique(drawn, axis=0)) == 2 * len(rng.Purpose) * 4


def test_a_key_does_not_depend_on_its_batch():
    index = jnp.array([9, 2, 2**32 - 1], jnp.uint32)
    whole = rng.example_keys(0, rng.Purpose.TRAIN, index)
    assert (rng.example_keys(0, rng.Purpose.TRAIN, index[::-1][:2]) == whole[::-1][:2]).all()


def test_streams_are_numbered():
    """Streams 0, 1, ... of each key, whatever their number."""
    keys = jax.random.split(jax.random.key(3), 2)
    for number in (1, 4):
        for n, stream in enumerate(rng.streams(keys, number)):
            for k in range(2):
                assert stream[k] == jax.random.fold_in(keys[k], n)


def test_draws_of_any_shape_are_those_of_jax():
    """They are drawn in one row, for the compiler; no number changes by that, under vmap neither."""
    keys, shape = jax.random.split(jax.random.key(3), 2), (3, 4, 2, 5)
    draws = (
        (rng.normal, jax.random.normal),
        (lambda key, shape: rng.bernoulli(key, 0.3, shape), lambda key, shape: jax.random.bernoulli(key, 0.3, shape)),
    )
    for ours, of_jax in draws:
        found, wanted = (jax.vmap(lambda key, draw=draw: draw(key, shape))(keys) for draw in (ours, of_jax))
        np.testing.assert_array_equal(found, wanted)
