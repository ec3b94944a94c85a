"""Memory and traffic read from compiled programs, against the compiler's figures and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from vf.plan import hlo, usage


def test_peak_of_a_program_is_what_lives_at_once():
    """A chain needs two of its arrays at a time; a sum of all needs all."""
    n = 2**20

    def chain(x):
        for k in range(4):
            x = jnp.sort(x + k)
        return x[:1]

    def fan(x):
        parts = [jnp.sort(x * k) for k in range(1, 5)]
        return (parts[0][::-1] * parts[1] + parts[2][::-1] * parts[3])[:1].sum()

    x = jax.ShapeDtypeStruct((n,), jnp.float32)
    for function in (chain, fan):
        compiled = jax.jit(function).lower(x).compile()
        mine, theirs = usage.peak_bytes(compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes
        assert 0.45 <= mine / theirs <= 2.1, (function.__name__, mine, theirs)


def test_a_loop_moves_the_slices_that_it_reads_and_writes():
    """Not the whole stack in every trip: twice the trips is twice the traffic."""

    def moved(trips):
        def loop(stack, x):
            return jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), x, stack)

        given = jax.ShapeDtypeStruct((trips, 4096), jnp.float32), jax.ShapeDtypeStruct((4096,), jnp.float32)
        return usage.hbm_bytes(jax.jit(loop).lower(*given).compile().as_text())

    row = 4 * 4096
    assert 4 * row <= moved(64) / 64 <= 12 * row  # carry, input and output, and copies
    np.testing.assert_allclose(moved(128) / moved(64), 2, rtol=0.05)


def test_slices_of_what_is_scaled_move_no_more_than_themselves():
    """As the parts of a gradient that was exchanged as one vector, and divided by the number of devices."""
    n, parts = 2**16, 16

    def split(x, given):
        return [jnp.tanh(each + given) for each in jnp.split(x * 0.5, parts)]

    shapes = jax.ShapeDtypeStruct((n * parts,), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.float32)
    moved = usage.hbm_bytes(jax.jit(split).lower(*shapes).compile().as_text())
    assert 3 * 4 * n * parts <= moved <= 5 * 4 * n * parts  # a part, `given`, and what is written


def test_a_long_fusion_is_read_in_one_pass():
    """2^64 ways lead from its input to its result: what followed each would not end."""
    n = 2**12

    def powers(x):
        for _ in range(64):
            x = x * x
        return x

    text = jax.jit(powers).lower(jax.ShapeDtypeStruct((n,), jnp.float32)).compile().as_text()
    parts = hlo.parse(text).computations.values()
    assert max([line.op for line in part.values()].count("multiply") for part in parts) == 64
    assert usage.hbm_bytes(text) == 2 * 4 * n


def test_a_branch_among_many_is_counted():
    def switch(k, x):
        return jax.lax.switch(k, [lambda x: x, lambda x: jnp.sort(x), lambda x: jnp.sort(x)[::-1] + jnp.sort(2 * x)], x)

    given = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((2**16,), jnp.float32)
    text = jax.jit(switch).lower(*given).compile().as_text()
    assert "branch_computations" in text
    assert usage.hbm_bytes(text) > 4 * 4 * 2**16
    assert usage.peak_bytes(text) >= 4 * 2**16
