"""Group norm of clips, modulated and followed by SiLU where asked, with its gradient in closed form.

With sums over the n positions of a frame and pool the mean over the channels of each group,

    x_hat = (x - mean) rate,    mean = pool(sum x / n),    rate = (pool(sum (x - mean)^2 / n) + epsilon)^(-1/2)
    y     = gain x_hat + bias,  z = y, or y sigmoid(y)

the gradients are, with dy = dz, or dz sigmoid(y) (1 + y (1 - sigmoid(y))),

    dbias = sum dy,    dgain = sum dy x_hat,    dx = rate (gain dy - pool(gain dbias) / n - x_hat pool(gain dgain) / n)

So the backward pass reads x and dz twice, keeps nothing else of a clip's size, and sums twice. What a compiler derives
by itself keeps x - mean and y in float32 too, sums five times, and is a program of twice the length.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vf.nets.initial import ONES, ZEROS, Initializer

Clips = Float[Array, "b f h w c"]
PerFrame = Float[Array, "b f c"]


class GroupNorm(nn.Module):
    """Normalise each frame over space and over each of `groups` groups of channels; epsilon 1e-5, in float32.

    Scale-shift modulation, where given, is folded into the affine map: y = norm(x) * (1 + scale) + shift. The output
    has the dtype of `x`; everything in between is float32.

    Attributes:
        groups: of channels.
        silu: whether SiLU follows.

    Raises:
        ValueError: the channels do not divide into `groups`.
    """

    groups: int = 32
    epsilon: float = 1e-5
    silu: bool = False
    scale_init: Initializer = ONES
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(
        self,
        x: Clips,
        scale: Float[Array, "b #f c"] | None = None,
        shift: Float[Array, "b #f c"] | None = None,
    ) -> Clips:
        b, f, *_, c = x.shape
        if c % self.groups:
            raise ValueError(f"{c} channels do not divide into norm_groups = {self.groups}")
        gain = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", self.bias_init, (c,))
        if scale is not None:
            gain, bias = gain * (1 + scale), bias * (1 + scale)
        if shift is not None:
            bias = bias + shift
        gain, bias = (jnp.broadcast_to(m, (b, f, c)).astype(jnp.float32) for m in (gain, bias))
        return group_norm(x, gain, bias, self.groups, self.epsilon, self.silu)


# Each half is a function of its own in the program, however many norms of its shape a network has.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x: Clips, gain: PerFrame, bias: PerFrame, groups: int, epsilon: float, silu: bool) -> Clips:
    """z above. gain, bias: float32. Differentiable once, in reverse."""
    return _forward(x, gain, bias, groups, epsilon, silu)[0]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _forward(x: Clips, gain: PerFrame, bias: PerFrame, groups: int, epsilon: float, silu: bool) -> tuple[Clips, Any]:
    y = x.astype(jnp.float32)
    mean = _pool(y.mean((2, 3)), groups)
    y = y - _spread(mean)
    # Two passes: mean of squares less squared mean is no faster here and cancels where the mean is large.
    rate = jax.lax.rsqrt(_pool((y * y).mean((2, 3)), groups) + epsilon)
    y = y * _spread(rate * gain) + _spread(bias)
    return (jax.nn.silu(y) if silu else y).astype(x.dtype), (x, mean, rate, gain, bias)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(groups: int, epsilon: float, silu: bool, kept: Any, dz: Clips) -> tuple[Clips, PerFrame, PerFrame]:
    del epsilon
    x, mean, rate, gain, bias = kept
    x_hat, dy = (x.astype(jnp.float32) - _spread(mean)) * _spread(rate), dz.astype(jnp.float32)
    if silu:
        y = x_hat * _spread(gain) + _spread(bias)
        passed = jax.nn.sigmoid(y)
        dy = dy * passed * (1 + y * (1 - passed))
    n = x.shape[2] * x.shape[3]
    dbias, dgain = dy.sum((2, 3)), (dy * x_hat).sum((2, 3))
    shift, slope = (rate * _pool(gain * d, groups) / n for d in (dbias, dgain))
    dx = dy * _spread(rate * gain) - _spread(shift) - x_hat * _spread(slope)
    return dx.astype(x.dtype), dgain, dbias


group_norm.defvjp(_forward, _backward)


def _pool(x: PerFrame, groups: int) -> PerFrame:
    """The mean over each group of channels, for each of its channels."""
    parts = x.reshape(*x.shape[:2], groups, -1)
    return jnp.broadcast_to(parts.mean(-1, keepdims=True), parts.shape).reshape(x.shape)


def _spread(x: PerFrame) -> Float[Array, "b f 1 1 c"]:
    return x[:, :, None, None]
