"""Inception-v3 of 2015-12-05, the network of FID (Heusel et al. 2017): frames -> 2048 features of its last pool.

It is not the Inception-v3 of current libraries. TensorFlow's graph (inception-2015-12-05.tgz, which pytorch-fid and
NVIDIA's TorchScript reproduce) has details that ports get wrong: average pools leave padding out of the mean, the pool
of the last block takes the maximum, the eps of the batch norms is 1e-3, and there are 1008 classes. How frames are
resized to 299 x 299 pixels changes FID too (Parmar et al. 2022), so each mode has a name, that of clean-fid:

    mode                resampling                    range                                  who
    clean               Pillow's bicubic, in float32  clipped to 0 ... 255, (x - 128) / 128  clean-fid
    legacy_tensorflow   bilinear on TF1's grid        (x - 128) / 128                        the first FID, StyleGAN's
    legacy_pytorch      bilinear, not antialiased     2 x / 255 - 1                          pytorch-fid
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network

SIZE = 299  # pixels of a side
MIN_SIZE = 75  # smaller frames leave no pixels before the last pool
FEATURES = 2048
FRAMES_PER_PASS = 64  # frames that are computed at once, over all devices: 5.5 MB each in the largest activation
Mode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]
MODES: tuple[Mode, ...] = get_args(Mode)
GRIDS: dict[Mode, resize.Grid] = {
    "clean": "antialiased_bicubic", "legacy_tensorflow": "tf1", "legacy_pytorch": "half_pixel",
}  # fmt: skip
Pool = Literal["average", "max", "reduce"]  # 3 x 3; stride 1, 1 and 2


class Conv(NamedTuple):
    """A unit of a block, by torchvision's name. With stride 2 nothing is padded, with stride 1 the size is kept."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = tuple[Pool | Conv | tuple[Conv, ...], ...]  # consecutive steps; a tuple of units is parallel


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pooled)),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, row), Conv("branch7x7_3", 192, column)),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, column),
            Conv("branch7x7dbl_3", inner, row),
            Conv("branch7x7dbl_4", inner, column),
            Conv("branch7x7dbl_5", 192, row),
        ),
        ("average", Conv("branch_pool", 192)),
    )


def _e(pool: Pool) -> tuple[Branch, ...]:
    row, column = (1, 3), (3, 1)
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, row), Conv("branch3x3_2b", 384, column))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, row), Conv("branch3x3dbl_3b", 384, column)),
        ),
        (pool, Conv("branch_pool", 192)),
    )


# Layers before the blocks, in order; `UNPADDED` names those without padding.
STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3)),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "reduce",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3)),
    "reduce",
)
UNPADDED = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3")
MIXED: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        ("reduce",),
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        ("reduce",),
    ),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("max"),  # an error in the graph, with which FID is defined
}


def pool(x: Float[jax.Array, "n h w c"], kind: Pool) -> Float[jax.Array, "n i j c"]:
    """A 3 x 3 pool; `average` counts pixels inside the picture alone."""
    if kind == "average":
        return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    if kind == "max":
        return nn.max_pool(x, (3, 3), padding="SAME")
    return nn.max_pool(x, (3, 3), (2, 2))


class Unit(nn.Module):
    """Convolution, batch norm with fixed moments, ReLU: [n h w c] -> [n h' w' features]."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"
    eps: float = 1e-3
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        gamma = self.param("gamma", nn.initializers.ones, (self.features,))
        beta = self.param("beta", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        var = self.param("var", nn.initializers.ones, (self.features,))
        scale = gamma * jax.lax.rsqrt(var + self.eps)
        # The scale is multiplied into the kernel, which saves a pass over the largest activations.
        x = jax.lax.conv_general_dilated(
            x, kernel * scale, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
        )  # fmt: skip
        return jax.nn.relu(x + (beta - mean * scale))


class Mixed(nn.Module):
    """An inception block: parallel branches."""

    branches: tuple[Branch, ...]
    precision: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n h w c] -> [n h' w' c']."""

        def unit(x: jax.Array, conv: Conv) -> jax.Array:
            padding: Literal["SAME", "VALID"] = "SAME" if conv.stride == 1 else "VALID"
            return Unit(*conv[1:], padding, precision=self.precision, name=conv.name)(x)

        def branch(x: jax.Array, steps: Branch) -> jax.Array:
            for step in steps:
                if isinstance(step, str):
                    x = pool(x, step)
                elif isinstance(step, Conv):
                    x = unit(x, step)
                else:
                    x = jnp.concatenate([unit(x, conv) for conv in step], -1)
            return x

        return jnp.concatenate([branch(x, steps) for steps in self.branches], -1)


class Inception(nn.Module):
    """Pictures in [-1, 1] -> features, without the classifier after them.

    Attributes:
        precision: precision of convolutions: HIGHEST is float32 on every platform; None takes TF32 or bfloat16 passes
            on accelerators, which is faster and changes FID.
    """

    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n 2048"]:
        """Features of pictures, for FID of 299 x 299 pixels. Raises ValueError for sides below 75."""
        if min(x.shape[1:3]) < MIN_SIZE:
            raise ValueError(f"Inception-v3 needs sides of {MIN_SIZE} pixels or more, got {x.shape[1:3]}")
        for step in STEM:
            if isinstance(step, Conv):
                padding: Literal["SAME", "VALID"] = "VALID" if step.name in UNPADDED else "SAME"
                x = Unit(*step[1:], padding, precision=self.precision, name=step.name)(x)
            else:
                x = pool(x, "reduce")
        for name, branches in MIXED.items():
            x = Mixed(branches, self.precision, name=name)(x)
        return x.mean((1, 2))


def preprocess(frames: UInt8[jax.Array, "*n h w 3"], mode: Mode) -> Float[jax.Array, "*n 299 299 3"]:
    """The network's input: frames squashed to 299 x 299 pixels, in [-1, 1]. Raises ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"expected a mode of {', '.join(MODES)}, got {mode}")
    height, width = frames.shape[-3:-1]
    rows, columns = resize.matrices(GRIDS[mode], "squash", height, width, SIZE)
    x = resize.apply(frames.astype(jnp.float32), rows, columns)
    # Bicubic overshoots; the bilinear grids do not.
    return 2 * x / 255 - 1 if mode == "legacy_pytorch" else (x.clip(0, 255) - 128) / 128


def network(params: Any, fingerprint: str, *, mode: Mode = "clean", exact: bool = True) -> Network:
    """Inception-v3 on the frames of clips, for `vf.scores.features`.

    Features are those of frames: `apply` returns [b*f 2048], whose row i is frame i % f of clip i // f.

    Args:
        params: parameters of `Inception`, as the converter writes them.
        fingerprint: hash of the weights, for the protocol.
        mode: how frames are converted to the network's size and range; FIDs of different modes do not compare.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode of {', '.join(MODES)}, got {mode}")
    module = Inception(jax.lax.Precision.HIGHEST if exact else None)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b*f 2048"]:
        if clips.ndim != 5 or clips.shape[-1] != 3 or not clips.size:
            raise ValueError(f"expected clips [b f h w 3], got {clips.shape}")
        b, f = clips.shape[:2]
        # Some frames of every clip at a time, since activations of all frames need too much memory. The axis of clips
        # is not split, so that callers can split it over devices.
        passes = math.ceil(f / max(1, FRAMES_PER_PASS // b))
        frames_per_pass = math.ceil(f / passes)
        padded = jnp.pad(clips, [(0, 0), (0, passes * frames_per_pass - f), (0, 0), (0, 0), (0, 0)])

        def one_pass(frames: UInt8[jax.Array, "b each h w 3"]) -> Float[jax.Array, "b each 2048"]:
            x = preprocess(frames, mode)
            features: Any = module.apply({"params": params}, x.reshape(-1, SIZE, SIZE, 3))
            return features.reshape(b, frames_per_pass, FEATURES)

        features = jax.lax.map(one_pass, padded.reshape(b, passes, frames_per_pass, *clips.shape[2:]).swapaxes(0, 1))
        return features.swapaxes(0, 1).reshape(b, passes * frames_per_pass, FEATURES)[:, :f].reshape(b * f, FEATURES)

    scaled = "2 x / 255 - 1" if mode == "legacy_pytorch" else "(x - 128) / 128"
    clipped = "clipped to 0 ... 255, " if mode == "clean" else ""
    protocol = {
        "network": "inception-v3 of 2015-12-05, pool3", "weights": fingerprint, "rows": "frames", "mode": mode,
        "resize": f"{GRIDS[mode]} to {SIZE} x {SIZE}, squash, {clipped}then {scaled}",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("inception", FEATURES, params, apply, protocol)
