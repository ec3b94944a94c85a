"""The U-Net of every generator: ADM on single frames, and on clips with optional mixing over frames.

The base generator is this network on one frame (f = 1); the residual generator is the same class, smaller,
with the frame index embedded and temporal mixing switched on.

Source: Dhariwal & Nichol, "Diffusion models beat GANs on image synthesis" (2021), appendix, with scale-shift
norms and residual blocks that resample; Karlo's decoder (Lee et al., 2022) adds context tokens.
"""

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt

from vf.nets.embed import Conditioning, check_input
from vf.nets.initial import ZEROS, Conv
from vf.nets.layers import (
    HEADS,
    Dtype,
    Place,
    ResBlock,
    SelfAttention,
    TemporalAttention,
    TemporalConv,
    unconstrained,
)
from vf.nets.norm import GroupNorm

TEMPORAL = ("conv", "attention")
# What the forward pass stores within a block; the backward pass computes the rest again from the block's input.
REMAT: dict[str, Callable[..., Any]] = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.jit
def _block_keys(keys: Key[Array, " b"], block: UInt[np.ndarray, ""] | UInt[Array, ""]) -> Key[Array, " b"]:
    """What each clip's dropout is drawn from in the block of this number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, block))(keys)


class Block(nn.Module):
    """A residual block followed by those layers that it has: convolution over frames, attention, frame attention."""

    features: int
    attention: bool
    temporal: tuple[str, ...]
    head_dim: int
    attention_order: str
    dropout: float
    norm_groups: int
    dtype: Dtype
    kernel: str = "xla"
    scale_shift: bool = True
    place: Place = unconstrained

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        emb: Float[Array, "b #f e"],
        context: Float[Array, "b n d"] | None,
        context_mask: Bool[Array, "b n"] | None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b f h w features"]:
        shared = {"norm_groups": self.norm_groups, "dtype": self.dtype}
        res = ResBlock(
            self.features, scale_shift=self.scale_shift, dropout=self.dropout, **shared, place=self.place, name="res"
        )
        x = res(x, emb, dropout_keys)
        if "conv" in self.temporal:
            x = TemporalConv(**shared, name="temporal_conv")(x)
        if self.attention:
            spatial = SelfAttention(self.head_dim, self.attention_order, **shared, kernel=self.kernel, name="attention")
            x = spatial(x, context, context_mask)
        if "attention" in self.temporal:
            x = TemporalAttention(self.head_dim, **shared, kernel=self.kernel, name="temporal_attention")(x)
        return self.place(x)


def rematerialised(kind: type[nn.Module], remat: str) -> Callable[..., Any]:
    """A module class of which only what `remat` says is stored for the backward pass; its parameters are the same."""
    return kind if remat == "none" else nn.remat(kind, policy=REMAT[remat])


class UNet(nn.Module):
    """ADM's U-Net on clips `b f h w c`.

    Grid factors below count from the network's own input grid, after `patch`.

    Attributes:
        width: channels of the first level, even; the step embedding has 4 x `width`.
        width_mult: channels of each level as multiples of `width`; each further level halves the grid.
        num_res_blocks: residual blocks per level on the way down; one more on the way up.
        attention: grid factors with self-attention over space (ADM at 64 pixels: 2, 4, 8, that is 32, 16, 8
            positions a side).
        middle_attention: whether the middle has it, too; Karlo's super-resolution has none anywhere.
        scale_shift: whether the step embedding scales and shifts features (ADM); else it is added to them (Karlo's
            super-resolution).
        head_dim: channels per attention head; must divide the channels wherever there is attention.
        attention_order: channel layout of q, k, v projections, 'new' (ADM at 64 pixels) or 'legacy' (Karlo).
        out_channels: channels of a prediction.
        learned_variance: return 2 x `out_channels`: the prediction, then the interpolation of its variance.
        num_classes: labels 0..num_classes-1; 0 for none.
        null_class: whether label `num_classes` means "no class", for classifier-free guidance.
        cond_dim: channels of a vector added to the step embedding; 0 for none.
        cond_projection: whether that vector passes through a Dense; otherwise `cond_dim` must be 4 x `width`.
        context_dim: channels of the context tokens that spatial attention also reads; 0 for none.
        patch: pixels per side folded into channels at the input and unfolded at the output.
        temporal: how frames mix: 'conv' (3 frames, after each residual block that keeps the grid),
            'attention' (all frames, after attention over space), both, or () for independent frames. Each is
            the identity at initialisation.
        temporal_attention_at: grid factors with attention over frames, None for those of `attention`. The
            middle has it, too, wherever `temporal` names it.
        frame_embed: whether an embedding of the frame index is added to the step embedding.
        amplitude_embed: whether one of the amplitude of the noise on the clip beside is, too.
        norm_groups: groups of every norm; must divide all channel counts.
        dropout: rate inside residual blocks during training, in [0, 1).
        dtype: dtype of the computation; parameters, embedding, norm statistics, softmax and output stay float32.
        remat: what the backward pass computes again, to save memory: 'none', 'blocks' (all but the input of
            each block) or 'dots' (likewise, except products with Dense and temporal kernels).
        scan: whether each run of equal blocks of a level is compiled once, as a loop; parameters, values and draws stay
            the same. It pays from three residual blocks per level on.
        attention_kernel: 'xla' or 'cudnn', see `vf.nets.layers.attend`.
        place: called on the clips between layers to constrain their sharding. Without it, where parameters are split
            over devices, the compiler may split, and send, the far larger activations.
    """

    width: int
    width_mult: tuple[int | float, ...]
    num_res_blocks: int
    attention: tuple[int, ...]
    middle_attention: bool = True
    scale_shift: bool = True
    head_dim: int = 64
    attention_order: str = "new"
    out_channels: int = 3
    learned_variance: bool = False
    num_classes: int = 0
    null_class: bool = False
    cond_dim: int = 0
    cond_projection: bool = True
    context_dim: int = 0
    patch: int = 1
    temporal: tuple[str, ...] = ()
    temporal_attention_at: tuple[int, ...] | None = None
    frame_embed: bool = False
    amplitude_embed: bool = False
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan: bool = False
    attention_kernel: str = "xla"
    place: Place = unconstrained

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b f h w c"],
        t: Num[Array, "b *f"],
        *,
        label: Int[Array, " b"] | None = None,
        cond: Float[Array, "b d"] | None = None,
        null: Bool[Array, " b"] | None = None,
        context: Float[Array, "b n e"] | None = None,
        context_mask: Bool[Array, "b n"] | None = None,
        frame: Int[Array, "*clip f"] | None = None,
        amplitude: Float[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b f h w out"]:
        """Predicts from a noised clip.

        Args:
            z: noised clip of pixels in [-1, 1], with any conditioning images concatenated on channels; f = 1
                for images.
            t: step number, 0..T-1, integer or not; of each clip, or of each frame.
            label: class of each clip; needed exactly where `num_classes` > 0. A label beyond the table gives NaN.
            cond: vector of each clip; needed exactly where `cond_dim` > 0.
            null: which clips have their vector replaced by zero, which means none.
            context: tokens of each clip; needed exactly where `context_dim` > 0.
            context_mask: which tokens attention may read; None for all.
            frame: index of each frame within its clip, shared or per clip; None for 0..f-1. Unused without
                `frame_embed`.
            amplitude: that of the noise of each clip on the clip beside; needed exactly where `amplitude_embed`.
            dropout_keys: a key for each clip, from which its dropout is drawn; None for no dropout.

        Returns:
            Float32 prediction, exactly zero at initialisation; `out_channels` channels, twice that with
            `learned_variance`.

        Raises:
            ValueError: an option is unknown, an input is missing or unused, or a size does not divide.
        """
        self._check(z, t, context, context_mask)
        if cond is not None and null is not None:
            cond = jnp.where(null[:, None], 0.0, cond)
        emb = Conditioning(
            self.width,
            self.num_classes,
            self.null_class,
            self.cond_dim,
            self.cond_projection,
            self.frame_embed,
            self.amplitude_embed,
            name="embed",
        )(t, label, cond, jnp.arange(z.shape[1]) if frame is None else frame, amplitude)

        shared = {
            "dropout": self.dropout,
            "norm_groups": self.norm_groups,
            "dtype": self.dtype,
            "scale_shift": self.scale_shift,
            "place": self.place,
        }
        make_block, make_resample = (rematerialised(kind, self.remat) for kind in (Block, ResBlock))

        middle = 2 ** len(self.width_mult)  # among grid factors, stands for the middle: no level has it
        over_space = (*self.attention, middle) if self.middle_attention else self.attention
        at = self.attention if self.temporal_attention_at is None else self.temporal_attention_at
        over_frames = (*at, middle)

        def options(features: int, factor: int | None) -> dict[str, Any]:
            """Fields of a block with the attention of a grid factor; without attention for None."""
            mixing = tuple(kind for kind in self.temporal if kind == "conv" or factor in over_frames)
            return shared | {
                "features": features, "attention": factor in over_space, "temporal": mixing, "head_dim": self.head_dim,
                "attention_order": self.attention_order, "kernel": self.attention_kernel,
            }  # fmt: skip

        def block_keys(name: str) -> Array | None:
            """The dropout keys of one block; None without dropout."""
            if dropout_keys is None or self.dropout == 0:
                return None
            return _block_keys(dropout_keys, np.uint32(zlib.crc32(name.encode())))

        def block(x: Array, features: int, factor: int | None, name: str) -> Array:
            return make_block(**options(features, factor), name=name)(x, emb, context, context_mask, block_keys(name))

        def loop(x: Array, features: int, factor: int, names: list[str], skips: list[Array]) -> list[Array]:
            """Outputs of consecutive blocks of equal shapes, computed by a loop."""
            template = Block(**options(features, factor), parent=None)
            params = jax.tree.map(lambda *p: jnp.stack(p), *(self.variables["params"][name] for name in names))
            keys = jax.tree.map(lambda *k: jnp.stack(k), *(block_keys(name) for name in names))

            def body(x: Array, inputs: tuple[Any, Array | None, Array | None]) -> tuple[Array, Array]:
                block_params, skip, key = inputs
                x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
                outputs: Any = template.apply({"params": block_params}, x, emb, context, context_mask, key)
                return outputs, outputs

            if self.remat != "none":
                body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[self.remat])
            return list(jax.lax.scan(body, x, (params, jnp.stack(skips) if skips else None, keys))[1])

        def chain(x: Array, features: int, factor: int, names: list[str], skips: list[Array]) -> list[Array]:
            """Outputs of the blocks of a level, whose inputs are the output before and, on the way up, a skip."""
            outputs: list[Array] = []
            skip_channels = [skip.shape[-1] for skip in skips] or [0] * len(names)
            inputs = zip([x.shape[-1], *[features] * len(names)][: len(names)], skip_channels, strict=True)
            for (channels, _), run in itertools.groupby(
                zip(inputs, names, skips or names, strict=True), lambda r: r[0]
            ):
                _, run_names, run_skips = (list(part) for part in zip(*run, strict=True))
                if self.scan and not self.is_initializing() and len(run_names) > 1 and channels == features:
                    outputs += loop(x, features, factor, run_names, run_skips if skips else [])
                    x = outputs[-1]
                    continue
                for name, skip in zip(run_names, run_skips, strict=True):
                    x = jnp.concatenate([x, skip], axis=-1) if skips else x
                    outputs.append(x := block(x, features, factor, name))
            return outputs

        def resample(x: Array, mode: str, name: str) -> Array:
            return make_resample(x.shape[-1], mode, **shared, name=name)(x, emb, block_keys(name))

        channels = [int(self.width * m) for m in self.width_mult]
        last = len(channels) - 1
        x = rearrange(z, "b f (h i) (w j) c -> b f h w (i j c)", i=self.patch, j=self.patch)
        x = self.place(Conv(channels[0], (3, 3), dtype=self.dtype, name="conv_in")(self.place(x)))
        skips = [x]
        for level, c in enumerate(channels):
            skips += chain(x, c, 2**level, [f"down_{level}_{i}" for i in range(self.num_res_blocks)], [])
            x = skips[-1]
            if level < last:
                skips.append(x := resample(x, "down", f"down_{level}_resample"))

        x = block(x, channels[last], middle, "middle_0")
        x = block(x, channels[last], None, "middle_1")

        for level, c in reversed(list(enumerate(channels))):
            names = [f"up_{level}_{i}" for i in range(self.num_res_blocks + 1)]
            x = chain(x, c, 2**level, names, [skips.pop() for _ in names])[-1]
            if level > 0:
                x = resample(x, "up", f"up_{level}_resample")

        x = GroupNorm(self.norm_groups, silu=True, name="norm_out")(x.astype(jnp.float32))
        out = self.out_channels * (1 + self.learned_variance)
        x = Conv(out * self.patch**2, (3, 3), kernel_init=ZEROS, name="conv_out")(x)
        return rearrange(x, "b f h w (i j c) -> b f (h i) (w j) c", i=self.patch, j=self.patch)

    def _check(self, z: Array, t: Array, context: Array | None, context_mask: Array | None) -> None:
        """Raises ValueError for inputs that would fail later, or would run with another meaning."""
        factors = tuple(2**level for level in range(len(self.width_mult)))
        choices: tuple[tuple[str, tuple, tuple], ...] = (
            ("temporal", self.temporal, TEMPORAL),
            ("remat", (self.remat,), ("none", *REMAT)),
            ("attention_order", (self.attention_order,), tuple(HEADS)),
            ("attention", self.attention, factors),
            ("temporal_attention_at", self.temporal_attention_at or (), factors),
        )
        for name, given, known in choices:
            if unknown := [value for value in given if value not in known]:
                raise ValueError(f"{name} knows {', '.join(map(repr, known))}; got {unknown[0]!r}")
        if z.ndim != 5:
            raise ValueError(f"z must be b f h w c, got shape {z.shape}")
        if t.shape not in (z.shape[:1], z.shape[:2]):
            raise ValueError(
                f"t must have one step per clip or per frame, shape {z.shape[:1]} or {z.shape[:2]}, got {t.shape}"
            )
        side = self.patch * factors[-1]
        if z.shape[2] % side or z.shape[3] % side:
            raise ValueError(
                f"the size of pictures must divide by patch * 2**(len(width_mult) - 1) = {side}, got {z.shape[2]} x "
                f"{z.shape[3]}"
            )
        if self.null_class and not self.num_classes:
            raise ValueError("null_class needs num_classes > 0")
        check_input("context", context, self.context_dim > 0, "context_dim")
        if context is None and context_mask is not None:
            raise ValueError("context_mask was given without context")
        if context is not None and context.shape[-1] != self.context_dim:
            raise ValueError(f"context must have context_dim = {self.context_dim} channels, got {context.shape[-1]}")
