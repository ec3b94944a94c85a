"""Vision transformers of metrics: VideoMAE-v2 (content-debiased FVD), V-JEPA (JEDi), and the trunk of CLIP.

Tubelets of pixels become tokens, positions are added, and `depth` equal blocks follow, in each of which

    x = x + attention(norm1(x))                                                                                  (1)
    x = x + fc2(act(fc1(norm2(x))))                                                                              (2)

They differ in `Config`, and in the feature that is computed from the last tokens:

                  width  depth  heads   mlp  patch   positions             feature
    VideoMAE-v2 g  1408     40     16  6144  2x14^2  sinusoids             norm(mean of the tokens)             1408
    V-JEPA ViT-H   1280     32     16  5120  2x16^2  stored                a probe attends to norm(tokens)      1280
    CLIP ViT-B/32   768     12     12  3072    32^2  stored, class token   projection of norm(class token)       512

The blocks are one scanned module, whose parameters are arrays [depth ...], so that a program of 40 blocks compiles as
fast as one of a single block.

VideoMAE-v2: Wang et al. 2023; its use for FVD: Ge et al., CVPR 2024 (github.com/songweige/content-debiased-fvd).
V-JEPA: Bardes et al. 2024 (github.com/facebookresearch/jepa); JEDi: Luo et al., ICLR 2025 (github.com/oooolga/JEDi).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Bool, Float, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network
from vf.nets.initial import ONES, STACKED_LECUN, ZEROS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_EPS = 1e-5  # eps of the probe's layer norms, PyTorch's default; the encoder's is 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a vision transformer.

    Attributes:
        width: channels of a token.
        depth: number of blocks.
        heads: number of attention heads, which divides `width`.
        mlp: hidden channels of (2).
        patch: side of a tubelet in pixels.
        tubelet: frames of a tubelet; 1 for single frames.
        size: side in pixels of the frames for which positions are stored.
        frames: number of frames for which positions are stored.
        eps: eps of the layer norms.
        act: GELU by the error function, or x sigmoid(1.702 x).
        positions: `sinusoids` of the token's index, or a `stored` table.
        class_token: whether there is a token before the others, with a norm before the first block and no bias in the
            patch embedding.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    tubelet: int = 2
    size: int = 224
    frames: int = 16
    eps: float = 1e-6
    act: Literal["gelu", "quick_gelu"] = "gelu"
    positions: Literal["sinusoids", "stored"] = "stored"
    class_token: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError where sizes do not divide each other."""
        for name, whole, part in (
            ("width", self.width, self.heads), ("size", self.size, self.patch), ("frames", self.frames, self.tubelet),
        ):  # fmt: skip
            if part < 1 or whole < part or whole % part:
                raise ValueError(f"expected a {name} that is a multiple of {part}, got {whole}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of tokens over time, height and width for which positions are stored."""
        return self.frames // self.tubelet, self.size // self.patch, self.size // self.patch


VIDEOMAE_G = Config(1408, 40, 16, 6144, patch=14, positions="sinusoids")  # vit_g_hybrid_pt_1200e_ssv2_ft.pth
VJEPA_H = Config(1280, 32, 16, 5120, patch=16)  # vith16.pth.tar
CLIP_B32 = Config(
    768, 12, 12, 3072, patch=32, tubelet=1, frames=1, eps=1e-5, act="quick_gelu", class_token=True
)  # ViT-B-32.pt


def _act(name: str, x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else jax.nn.gelu(x, approximate=False)


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, mask: Any, precision: Any) -> jax.Array:
    """softmax(q k^T / sqrt d) v for every head: [b n w], [b m w], [b m w] -> [b n w]; `mask` [*b 1 n m] or None."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, precision=precision)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights, v, precision=precision)
    return rearrange(mixed, "b h n d -> b n (h d)")


class Norm(nn.LayerNorm):
    """Layer norm whose variance is the mean of the squared differences from the mean."""

    # Flax's default, the mean of squares minus the squared mean, is inexact where tokens are far from 0.
    use_fast_variance: bool = False
    scale_init: Any = ONES
    bias_init: Any = ZEROS


class Block(nn.Module):
    """One block: equations (1) and (2)."""

    heads: int
    mlp: int
    eps: float
    act: str
    precision: Any
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b n w"], mask: Bool[jax.Array, "n n"] | Bool[jax.Array, "b 1 n n"] | None
    ) -> tuple[jax.Array, None]:
        """(tokens, None), the carry and the output of a scan."""
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, precision=self.precision, dtype=self.dtype, kernel_init=STACKED_LECUN, bias_init=ZEROS,
                name=name,
            )  # fmt: skip

        def norm(name: str) -> Norm:
            return Norm(self.eps, dtype=self.dtype, name=name)

        q, k, v = jnp.split(dense(3 * width, "qkv")(norm("norm1")(x)), 3, -1)
        x = x + dense(width, "proj")(_attention(q, k, v, self.heads, mask, self.precision))
        hidden = _act(self.act, dense(self.mlp, "fc1")(norm("norm2")(x)))
        return x + dense(width, "fc2")(hidden), None


def blocks(
    config: Any, mask: jax.Array | None, precision: Any, name: str, x: jax.Array, *, dtype: Any = None,
    saved: Callable[..., Any] | None = None,
) -> jax.Array:  # fmt: skip
    """Applies `config.depth` blocks, within a compact method; their parameters are stacked on the first axis.

    Args:
        config: `depth`, and the attributes of `Block`.
        mask: which tokens (first axis) attend to which, bool [n n], or [b 1 n n] for each example; None for all.
        precision: of products.
        name: of the module.
        x: tokens [b n w].
        dtype: of the computation; None for that of the parameters.
        saved: policy of `jax.checkpoint` for what the forward pass of a block stores; None for everything.
    """
    block: Any = Block if saved is None else nn.remat(Block, policy=saved, prevent_cse=False)
    scanned: Any = nn.scan(
        block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=config.depth
    )
    return scanned(config.heads, config.mlp, config.eps, config.act, precision, dtype, name=name)(x, mask)[0]


def sinusoids(count: int, width: int) -> Float[np.ndarray, "count width"]:
    """sin (even channels k) and cos (odd ones) of index / 10000^(2 floor(k / 2) / width), in float64."""
    rates = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angles = np.arange(count)[:, None] * rates
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))


def _videomae_interpolation(stored_frames: int, new: int) -> Float[np.ndarray, "new stored_frames"]:
    """Interpolation of positions over time as in VideoMAE-v2's code: linear, by (new + 0.1) / stored_frames."""
    if stored_frames == new:
        return np.eye(stored_frames)
    # The tenth protects that code from rounding, and shifts the sample points a little.
    sample_point = ((np.arange(new) + 0.5) * stored_frames / (new + 0.1) - 0.5).clip(0, stored_frames - 1)
    return np.maximum(0, 1 - abs(sample_point[:, None] - np.arange(stored_frames)))


class Embed(nn.Module):
    """Pixels -> tokens with positions added.

    Attributes:
        config: sizes of the transformer.
        precision: precision of products.
    """

    config: Config
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b t h w 3"]) -> Float[jax.Array, "b n width"]:
        """Tokens. Raises ValueError where tubelets do not divide a clip, or stored positions do not fit its size."""
        config, (frames, height, width) = self.config, x.shape[1:4]
        step = (config.tubelet, config.patch, config.patch)
        grid = tuple(side // part for side, part in zip((frames, height, width), step, strict=True))
        if 0 in grid or any(side % part for side, part in zip((frames, height, width), step, strict=True)):
            raise ValueError(
                f"expected frames in multiples of {config.tubelet}, and sides of {config.patch} pixels, "
                f"got {x.shape[1:4]}"
            )
        # The first axis of the grid from which on sizes must be those of the stored positions.
        fixed = 0 if config.class_token else 1 if config.positions == "sinusoids" else 3
        if grid[fixed:] != config.grid[fixed:]:
            raise ValueError(f"expected frames of {config.size} x {config.size} pixels, got {x.shape[1:4]}")
        kernel = self.param("kernel", nn.initializers.lecun_normal((0, 1, 2, 3)), (*step, 3, config.width))
        # A convolution whose stride equals its kernel is one product.
        x = rearrange(x, "b (t f) (h p) (w q) c -> b (t h w) (f p q c)", f=step[0], p=step[1], q=step[2])
        x = jnp.einsum("bnk,kw->bnw", x, kernel.reshape(-1, config.width), precision=self.precision)
        if config.class_token:
            first = self.param("class_token", nn.initializers.normal(0.02), (config.width,))
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, config.width)), x], 1)
        else:
            x = x + self.param("bias", nn.initializers.zeros, (config.width,))
        return x + self._positions(grid)

    def _positions(self, grid: tuple[int, ...]) -> jax.Array:
        config = self.config
        count, size = int(np.prod(config.grid)), (*config.grid, config.width)
        if config.positions == "sinusoids":
            table = sinusoids(count, config.width).reshape(size)
            stretched = np.einsum("Tt,thwc->Thwc", _videomae_interpolation(config.grid[0], grid[0]), table)
            return jnp.asarray(stretched.reshape(-1, config.width), jnp.float32)
        shape = (count + config.class_token, config.width)
        stored = self.param("positions", nn.initializers.normal(0.02), shape)
        if grid == config.grid:
            return stored
        axes = [resize.matrix("half_pixel", *pair).astype(np.float32) for pair in zip(config.grid, grid, strict=True)]
        known = stored.reshape(size)
        interpolated = jnp.einsum("thwc,Tt,Hh,Ww->THWc", known, *axes, precision=jax.lax.Precision.HIGHEST)
        return interpolated.reshape(-1, config.width)


class VideoMAE(nn.Module):
    """VideoMAE-v2's fine-tuned encoder without its head: frames in [0, 1] -> norm(mean of the tokens)."""

    config: Config = VIDEOMAE_G
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b t s s 3"]) -> Float[jax.Array, "b width"]:
        """Features of clips. Raises ValueError as `Embed`."""
        x = Embed(self.config, self.precision, name="embed")(x)
        x = blocks(self.config, None, self.precision, "blocks", x)
        return Norm(self.config.eps, name="norm")(x.mean(1))


class Probe(nn.Module):
    """V-JEPA's attentive probe without its classifier: one learned query attends to all tokens, and an MLP follows.

    Attributes:
        config: sizes of the encoder.
        projection: whether a dense layer follows the attention; see `vjepa`.
        precision: precision of products.
    """

    config: Config
    projection: bool
    precision: Any

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n w"]) -> Float[jax.Array, "b w"]:
        """The query after its block."""
        width = self.config.width

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, precision=self.precision, name=name)

        query = self.param("query", nn.initializers.normal(0.02), (1, 1, width))
        k, v = jnp.split(dense(2 * width, "kv")(Norm(PROBE_EPS, name="norm1")(x)), 2, -1)
        q = jnp.broadcast_to(dense(width, "q")(query), (len(x), 1, width))
        attended = _attention(q, k, v, self.config.heads, None, self.precision)
        projected = dense(width, "proj")(attended)  # always called, so that its parameters exist
        x = query + (projected if self.projection else attended)
        hidden = _act("gelu", dense(4 * width, "fc1")(Norm(PROBE_EPS, name="norm2")(x)))
        return (x + dense(width, "fc2")(hidden))[:, 0]


class VJEPA(nn.Module):
    """V-JEPA's target encoder and an attentive probe: normalised frames -> the probe's query after its block.

    Attributes:
        config: sizes of the encoder.
        projection: see `vjepa`.
        precision: precision of products.
    """

    config: Config = VJEPA_H
    projection: bool = True
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b t h w 3"]) -> Float[jax.Array, "b width"]:
        """Features of clips. Raises ValueError as `Embed`."""
        x = Embed(self.config, self.precision, name="embed")(x)
        x = blocks(self.config, None, self.precision, "blocks", x)
        x = Norm(self.config.eps, name="norm")(x)
        return Probe(self.config, self.projection, self.precision, name="pooler")(x)


def describe(config: Config) -> str:
    """A configuration as text, for a protocol."""
    tubelet = f"{config.tubelet} x {config.patch} x {config.patch}"
    return f"{config.width} wide, {config.depth} blocks of {config.heads} heads, tubelets of {tubelet}"


def videomae(params: Any, fingerprint: str, *, config: Config = VIDEOMAE_G, exact: bool = True) -> Network:
    """The network of content-debiased FVD, on clips of any size and an even number of frames.

    Preprocessing is that of the public code: frames squashed to 224 x 224 by half-pixel bilinear interpolation, then
    x / 255, without ImageNet's mean and deviation. For other lengths than 16 frames positions are interpolated over
    time, as there.

    Args:
        params: parameters of `VideoMAE`, as the converter writes them.
        fingerprint: hash of the weights, for the protocol.
        config: sizes of the network, `about["config"]` of the converter's file.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
    """
    module = VideoMAE(config, jax.lax.Precision.HIGHEST if exact else None)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b d"]:
        height, width = clips.shape[2:4]
        rows, columns = resize.matrices("half_pixel", "squash", height, width, config.size)
        x = resize.apply(clips.astype(jnp.float32), rows, columns)
        return jnp.asarray(module.apply({"params": params}, x / 255))

    protocol = {
        "network": f"VideoMAE-v2, norm(mean of the tokens); {describe(config)}", "weights": fingerprint,
        "resize": f"half_pixel to {config.size} x {config.size}, squash, then x / 255, no mean or deviation",
        "positions": f"sinusoids for {config.frames} frames, interpolated over time for others",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("videomae", config.width, params, apply, protocol)


def vjepa(
    params: Any,
    fingerprint: str,
    *,
    config: Config = VJEPA_H,
    size: tuple[int, int] | None = (224, 224),
    grid: resize.Grid = "half_pixel",
    projection: bool = True,
    exact: bool = True,
) -> Network:
    """The network of JEDi, on clips of an even number of frames.

    Args:
        params: parameters of `VJEPA`, as the converter writes them.
        fingerprint: hash of the weights, for the protocol.
        config: sizes of the network, `about["config"]` of the converter's file.
        size: height and width in pixels to which frames are squashed; None leaves frames unchanged, whose sides must
            then be multiples of the patch. JEDi's code takes any size and interpolates the positions (its tutorial uses
            240 x 320 pixels). Ours is the size at which the network was trained.
        grid: how frames are resized.
        projection: whether the probe's attention ends in its dense layer `xattn.proj`. The probe was trained without
            it (facebookresearch/jepa before 19 February 2024 and after 27 February 2025), so that this layer has its
            initial values. JEDi's package applies it nevertheless, with the `vjepa` package that it requires (0.1.0 to
            0.1.2, from the time between).
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
    """
    module = VJEPA(config, projection, jax.lax.Precision.HIGHEST if exact else None)
    mean, std = (np.asarray(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b d"]:
        x = clips.astype(jnp.float32)
        if size is not None:
            x = resize.apply(x, *(resize.matrix(grid, *pair) for pair in zip(clips.shape[2:4], size, strict=True)))
        return jnp.asarray(module.apply({"params": params}, (x / 255 - mean) / std))

    resized = "none" if size is None else f"{grid} to {size[0]} x {size[1]}, squash"
    protocol = {
        "network": f"V-JEPA, attentive probe of Something-Something v2; {describe(config)}", "weights": fingerprint,
        "probe_projection": projection, "resize": f"{resized}, then (x / 255 - ImageNet's mean) / deviation",
        "positions": f"stored for {config.frames} frames of {config.size} x {config.size}, interpolated for others",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("vjepa", config.width, params, apply, protocol)
