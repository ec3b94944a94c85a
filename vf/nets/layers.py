"""Layers of the ADM U-Net, on clips `b f h w c`: norms, residual blocks, attention, mixing over frames.

Spatial layers treat frames as part of the batch; only `TemporalConv` and `TemporalAttention` let frames interact.
Parameters, norm statistics and softmax are float32; everything else is computed in `dtype`.

Source: Dhariwal & Nichol, "Diffusion models beat GANs on image synthesis" (2021), appendix, with details from
the authors' public guided-diffusion code; context tokens as in Karlo (Lee et al., 2022).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Bool, Float, Key

from vf import rng
from vf.nets.initial import ZEROS, Conv, Dense, Initializer
from vf.nets.norm import GroupNorm

Dtype = Any
Resample = Literal["up", "down"] | None
Place = Callable[[Array], Array]  # clips -> the same clips, with a constraint on their sharding
# Layout of the channels of a joint projection: q, k, v and then heads (ADM at 64 pixels), or heads and then q, k, v
# (Karlo, and ADM's other networks). Weights that are loaded with the wrong layout fit, but their samples are noise.
HEADS = {"new": "... (p n d) -> p ... n d", "legacy": "... (n p d) -> p ... n d"}


def unconstrained(x: Array) -> Array:
    """Leaves the sharding of `x` to the compiler."""
    return x


class ResBlock(nn.Module):
    """ADM's residual block, which may also halve or double the grid: 2x2 mean, or nearest neighbour.

    Attributes:
        features: output channels.
        resample: 'up', 'down' or None.
        scale_shift: whether the step embedding scales and shifts what the second norm gives; else it is added before.
        dropout: rate in [0, 1), where keys are given.
    """

    features: int
    resample: Resample = None
    scale_shift: bool = True
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    place: Place = unconstrained

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], emb: Float[Array, "b #f e"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b f i j features"]:
        c = self.features
        h = GroupNorm(self.norm_groups, silu=True, name="norm_in")(x)
        h, x = self.place(resize(h, self.resample)), resize(x, self.resample)
        h = Conv(c, (3, 3), dtype=self.dtype, name="conv_in")(h)
        h = self.place(h)
        step = Dense(c * (1 + self.scale_shift), dtype=self.dtype, name="emb")(nn.silu(emb))
        scale, shift = jnp.split(step, 2, axis=-1) if self.scale_shift else (None, None)
        h = h if self.scale_shift else h + step[:, :, None, None]
        h = GroupNorm(self.norm_groups, silu=True, name="norm_out")(h, scale, shift)
        h = drop(h, self.dropout, dropout_keys)
        h = Conv(c, (3, 3), dtype=self.dtype, kernel_init=ZEROS, name="conv_out")(h)
        if x.shape[-1] != c:
            x = Dense(c, dtype=self.dtype, name="skip")(x)  # equal to a 1x1 convolution
        return self.place(x + h)


# Jitted, here and below: one function in the program for all layers of a shape.
@functools.partial(jax.jit, static_argnames="rate")
def drop(x: Float[Array, "b *d"], rate: float, keys: Key[Array, " b"] | None) -> Float[Array, "b *d"]:
    """Dropout: zero with probability `rate`, otherwise x / (1 - rate), with one key per clip; x itself without keys.

    The draws of a clip do not depend on the batch that it is in, or on how that is sharded (Flax's layer draws for a
    whole batch).
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: rng.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of each frame, with context tokens as extra keys and values.

    Attributes:
        head_dim: channels per head.
        order: 'new' or 'legacy', see `HEADS`; it matters only for loaded weights.
        kernel: see `attend`.
    """

    head_dim: int = 64
    order: str = "new"
    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    kernel: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b n e"] | None = None,
        context_mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b f h w c"]:
        b, f, height, width, c = x.shape
        y = GroupNorm(self.norm_groups, name="norm")(x).reshape(b, f, height * width, c)
        q, k, v = heads(Dense(3 * c, dtype=self.dtype, name="qkv")(y), 3, self.head_dim, self.order)
        mask = None
        if context is not None:
            kv = Dense(2 * c, dtype=self.dtype, name="context_kv")(context)
            extra = (repeat(m, "b n i d -> b f n i d", f=f) for m in heads(kv, 2, self.head_dim, self.order))
            k, v = (jnp.concatenate([new, old], axis=2) for new, old in zip(extra, (k, v), strict=True))
            if context_mask is not None:
                mask = jnp.pad(context_mask, ((0, 0), (0, height * width)), constant_values=True)
                mask = mask[:, None, None, None]  # b f n q k
        y = attend(q, k, v, mask, self.kernel).reshape(x.shape)
        return x + Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="out")(y)


class TemporalConv(nn.Module):
    """Residual 3-tap convolution over frames, zero beyond the ends; the identity at initialisation."""

    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = ZEROS
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        c = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, c, c)).astype(self.dtype)
        bias = self.param("bias", self.bias_init, (c,)).astype(self.dtype)
        y = GroupNorm(self.norm_groups, silu=True, name="norm")(x).astype(self.dtype)
        # Three products of shifted clips: on a CPU almost twice as fast as a 3-D convolution, including the gradient.
        y = jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return x + sum(y[:, i : i + x.shape[1]] @ tap for i, tap in enumerate(kernel)) + bias


class TemporalAttention(nn.Module):
    """Residual attention over frames at each position; the identity at initialisation."""

    head_dim: int = 64
    norm_groups: int = 32
    dtype: Dtype = jnp.float32
    kernel: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        height, c = x.shape[2], x.shape[-1]
        y = rearrange(GroupNorm(self.norm_groups, name="norm")(x), "b f h w c -> b (h w) f c")
        q, k, v = heads(Dense(3 * c, dtype=self.dtype, name="qkv")(y), 3, self.head_dim, "new")
        y = rearrange(attend(q, k, v, None, self.kernel), "b (h w) f n d -> b f h w (n d)", h=height)
        return x + Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="out")(y)


def heads(x: Float[Array, "*b c"], parts: int, head_dim: int, order: str) -> Float[Array, "p *b n d"]:
    """Splits a joint projection into `parts` tensors (q, k, v) of heads with `head_dim` channels each.

    Raises:
        ValueError: `order` is unknown, or the channels do not divide into heads.
    """
    if order not in HEADS:
        raise ValueError(f"attention_order must be one of {sorted(HEADS)}, got {order!r}")
    if x.shape[-1] // parts % head_dim:
        raise ValueError(f"{x.shape[-1] // parts} channels do not divide into heads of head_dim = {head_dim}")
    return rearrange(x, HEADS[order], p=parts, d=head_dim)


@functools.partial(jax.jit, static_argnames="kernel")
def attend(
    q: Float[Array, "*b q n d"],
    k: Float[Array, "*b k n d"],
    v: Float[Array, "*b k n d"],
    mask: Bool[Array, "*#b #n #q k"] | None = None,
    kernel: str = "xla",
) -> Float[Array, "*b q n d"]:
    """Softmax attention; q and k are each scaled by d^-1/4, so that half precision does not overflow.

    `mask` is true where a query may attend to a key; every query needs one such key. `kernel` 'cudnn' is the fused one
    of NVIDIA GPUs, for half precision: it stores no logits, and so needs less memory and time; 'xla' runs on any
    platform.
    """
    if kernel == "cudnn":
        batch = q.shape[:-3]
        full_mask = None if mask is None else jnp.broadcast_to(mask, (*batch, 1, q.shape[-3], k.shape[-3]))
        one_batch = [a.reshape(-1, *a.shape[-3:]) for a in (q, k, v)]
        batch_mask = None if full_mask is None else full_mask.reshape(-1, *full_mask.shape[-3:])
        fused: Array = jax.nn.dot_product_attention(*one_batch, mask=batch_mask, implementation="cudnn")  # type: ignore[call-overload]
        return fused.reshape(*batch, *fused.shape[-3:])
    scale = q.shape[-1] ** -0.25
    logits = jnp.einsum("...qnd,...knd->...nqk", q * scale, k * scale).astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("...nqk,...knd->...qnd", jax.nn.softmax(logits).astype(v.dtype), v)


def resize(x: Float[Array, "b f h w c"], mode: Resample) -> Float[Array, "b f i j c"]:
    """Halves the grid by 2x2 means, doubles it by repetition, or leaves it."""
    if mode == "down":
        return reduce(x, "b f (h i) (w j) c -> b f h w c", "mean", i=2, j=2)
    if mode == "up":
        return repeat(x, "b f h w c -> b f (h i) (w j) c", i=2, j=2)
    return x
