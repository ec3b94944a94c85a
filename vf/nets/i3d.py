"""I3D, the network of FVD (Carreira & Zisserman 2017): clips -> logits of Kinetics-400, averaged over time.

The layers are those of DeepMind's graph (google-deepmind/kinetics-i3d, TF-Hub deepmind/i3d-kinetics-400/1), including
details that ports get wrong: TensorFlow's SAME padding for convolutions and pools at every length, no scale in the
batch norms, whose eps is 1e-3 (1e-5 in the port that VideoGPT, DIGAN and TATS share; hence the argument), 3 x 3 x 3
kernels in the third branch, logits rather than pooled features, and their mean over time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Float, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network

SIZE = 224  # pixels of a side
MIN_FRAMES = 9  # with 8 or fewer the average pool has no complete window
CLASSES = 400
# Channels of the branches: 1x1x1; 1x1x1 then 3x3x3; 1x1x1 then 3x3x3; pool then 1x1x1.
MIXED: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def convolution(x: jax.Array, kernel: jax.Array, stride: int, precision: Any) -> jax.Array:
    """Convolution of x [b t h w c] by `kernel` [k k k c c'] with TensorFlow's SAME padding, on any platform."""

    def convolution_3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 3, "SAME", dimension_numbers=numbers, precision=precision
        )

    def by_frames(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """A sum of 2-D convolutions over the kernel's frames: XLA's 3-D ones take up to six times as long on CPU."""
        frames, depth = x.shape[1], kernel.shape[0]
        out = -(-frames // stride)
        total = max((out - 1) * stride + depth - frames, 0)
        x = jnp.pad(x, ((0, 0), (total // 2, total - total // 2), *[(0, 0)] * 3))
        parts = []
        for k in range(depth):
            tap = jax.lax.slice_in_dim(x, k, k + (out - 1) * stride + 1, stride, 1)
            tap = jax.lax.conv_general_dilated(
                rearrange(tap, "b t h w c -> (b t) h w c"), kernel[k], (stride,) * 2, "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
            )  # fmt: skip
            parts.append(rearrange(tap, "(b t) h w c -> b t h w c", t=out))
        return sum(parts[1:], parts[0])

    if kernel.shape[0] == 1:
        return convolution_3d(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_frames, default=convolution_3d)


class Unit(nn.Module):
    """Convolution, batch norm with fixed moments, ReLU: [b t h w c] -> [b t' h' w' features]."""

    features: int
    kernel: int = 1
    stride: int = 1
    eps: float = 1e-3
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit."""
        shape = (*(self.kernel,) * 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        beta = self.param("beta", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        var = self.param("var", nn.initializers.ones, (self.features,))
        scale = jax.lax.rsqrt(var + self.eps)
        # The scale is multiplied into the kernel, which saves a pass over the largest activations.
        x = convolution(x, kernel * scale, self.stride, self.precision)
        return jax.nn.relu(x + (beta - mean * scale))


class Mixed(nn.Module):
    """An inception block: four parallel branches."""

    features: Sequence[int]
    eps: float
    precision: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b t h w c] -> [b t h w c']."""

        def unit(name: str, features: int, kernel: int = 1) -> Unit:
            return Unit(features, kernel, eps=self.eps, precision=self.precision, name=name)

        b0, b1a, b1b, b2a, b2b, b3b = self.features
        one = unit("b0", b0)(x)
        two = unit("b1b", b1b, 3)(unit("b1a", b1a)(x))
        three = unit("b2b", b2b, 3)(unit("b2a", b2a)(x))
        four = unit("b3b", b3b)(nn.max_pool(x, (3, 3, 3), padding="SAME"))
        return jnp.concatenate([one, two, three, four], -1)


class I3D(nn.Module):
    """Clips in [-1, 1] -> logits.

    Attributes:
        eps: eps of the batch norms: 1e-3 in DeepMind's graph, 1e-5 in the port of the VideoGPT lineage.
        precision: precision of convolutions: HIGHEST is float32 on every platform; None takes TF32 or bfloat16 passes
            on accelerators, which is faster and changes FVD.
        classes: number of classes, 400 for FVD.
    """

    eps: float = 1e-3
    precision: Any = jax.lax.Precision.HIGHEST
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b t h w 3"]) -> Float[jax.Array, "b classes"]:
        """Logits. Raises ValueError for fewer than 9 frames, or sides outside 193 ... 224, which end as 7 x 7."""
        if x.shape[1] < MIN_FRAMES or not all(193 <= side <= SIZE for side in x.shape[2:4]):
            raise ValueError(f"I3D needs {MIN_FRAMES} frames or more of 193 to {SIZE} pixels, got {x.shape[1:4]}")

        def unit(name: str, features: int, kernel: int, stride: int = 1) -> Unit:
            return Unit(features, kernel, stride, self.eps, self.precision, name=name)

        def mixed(name: str, x: jax.Array) -> jax.Array:
            return Mixed(MIXED[name], self.eps, self.precision, name=name)(x)

        def pool(x: jax.Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> jax.Array:
            return nn.max_pool(x, window, stride, "SAME")

        x = unit("Conv3d_1a_7x7", 64, 7, 2)(x)
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = unit("Conv3d_2b_1x1", 64, 1)(x)
        x = unit("Conv3d_2c_3x3", 192, 3)(x)
        x = pool(x, (1, 3, 3), (1, 2, 2))
        for name in ("Mixed_3b", "Mixed_3c"):
            x = mixed(name, x)
        x = pool(x, (3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            x = mixed(name, x)
        x = pool(x, (2, 2, 2), (2, 2, 2))
        for name in ("Mixed_5b", "Mixed_5c"):
            x = mixed(name, x)
        x = nn.avg_pool(x, (2, 7, 7))[:, :, 0, 0]  # b t c
        x = nn.Dense(self.classes, precision=self.precision, name="logits")(x)
        return x.mean(1)


def pixels(
    clips: UInt8[jax.Array, "b f h w 3"], grid: resize.Grid, aspect: resize.Aspect
) -> Float[jax.Array, "b f 224 224 3"]:
    """The network's input: clips resized, then [0, 255] -> [-1, 1], without rounding in between."""
    rows, columns = resize.matrices(grid, aspect, clips.shape[2], clips.shape[3], SIZE)
    return 2 * resize.apply(jnp.asarray(clips, jnp.float32), rows, columns) / 255 - 1


def network(
    params: Any,
    fingerprint: str,
    *,
    eps: float = 1e-3,
    grid: resize.Grid = "half_pixel",
    aspect: resize.Aspect = "squash",
    exact: bool = True,
) -> Network:
    """I3D on clips of any size, for `vf.scores.features`.

    Args:
        params: parameters of `I3D`, as the converter writes them.
        fingerprint: hash of the weights, for the protocol.
        eps: eps of the batch norms.
        grid: how frames are resized to 224 x 224 pixels.
        aspect: how frames that are not square are handled.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
    """
    precision = jax.lax.Precision.HIGHEST if exact else None
    module = I3D(eps=eps, precision=precision)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b 400"]:
        return jnp.asarray(module.apply({"params": params}, pixels(clips, grid, aspect)))

    protocol = {
        "network": "i3d, logits of 400 classes before softmax, mean over time", "weights": fingerprint, "eps": eps,
        "resize": f"{grid} to {SIZE} x {SIZE}, {aspect}, then 2 x / 255 - 1",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("i3d", CLASSES, params, apply, protocol)
