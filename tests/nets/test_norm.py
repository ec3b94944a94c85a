"""Group norm against its formula, and its gradient against what jax derives from the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets.test_layers import group_norm as by_loops
from tests.nets.test_layers import made, normal, silu
from vf.nets import norm


def plainly(x, gain, bias, groups, epsilon, activation):
    """Group norm as anybody would write it, in float32; jax derives the gradient."""
    b, f, h, w = x.shape[:4]
    parts = x.astype(jnp.float32).reshape(b, f, h * w, groups, -1)
    parts = parts - parts.mean((2, 4), keepdims=True)
    y = (parts / jnp.sqrt((parts**2).mean((2, 4), keepdims=True) + epsilon)).reshape(x.shape)
    y = y * gain[:, :, None, None] + bias[:, :, None, None]
    return (jax.nn.silu(y) if activation else y).astype(x.dtype)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_group_norm_is_the_formula(offset):
    """Also far from zero, where a one-pass variance has lost all its digits."""
    x = normal(2, 3, 4, 2, 12) + np.float32(offset)
    scale, shift = normal(2, 1, 12), normal(2, 3, 12, seed=2)
    p, y = made(norm.GroupNorm(4), x, scale, shift)
    expected = by_loops(x, 4, p, scale[:, :, None, None], shift[:, :, None, None])
    np.testing.assert_allclose(y, expected, atol=1e-4 if offset else 1e-5)
    p, y = made(norm.GroupNorm(4, silu=True), x)
    np.testing.assert_allclose(y, silu(by_loops(x, 4, p)), atol=1e-4 if offset else 1e-5)


def test_group_norm_keeps_statistics_in_float32():
    x = jnp.asarray(normal(1, 1, 16, 16, 4) + 8, jnp.bfloat16)
    p, y = made(norm.GroupNorm(2), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), by_loops(np.float32(x), 2, p), atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activation", [False, True])
def test_the_gradient_is_that_of_the_formula(dtype, activation):
    """Of clips, gain and bias, for any gradient of the output."""
    x, gain, bias = normal(2, 3, 4, 2, 12), 1 + normal(2, 3, 12, seed=2), normal(2, 3, 12, seed=3)
    x, dz = jnp.asarray(3 * x + 1, dtype), jnp.asarray(normal(2, 3, 4, 2, 12, seed=4), dtype)

    def gradients(function, *inputs):
        z, back = jax.vjp(functools.partial(function, groups=4, epsilon=1e-5), *inputs)
        return [v.astype(jnp.float32) for v in (z, *back(dz.astype(z.dtype)))]

    ours = jax.jit(
        functools.partial(gradients, lambda *v, groups, epsilon: norm.group_norm(*v, groups, epsilon, activation))
    )
    formula = functools.partial(plainly, activation=activation)
    exact = gradients(formula, x.astype(jnp.float32), gain, bias)
    for name, found, wanted in zip(("z", "dx", "dgain", "dbias"), ours(x, gain, bias), exact, strict=True):
        tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max(), err_msg=name)


def test_channels_divide_into_groups():
    with pytest.raises(ValueError, match="6 channels do not divide into norm_groups = 4"):
        made(norm.GroupNorm(4), normal(1, 1, 2, 2, 6))
