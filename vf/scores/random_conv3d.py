"""Features of a small random 3-D convolution network, and the Fréchet distance over them: `fd_random_conv3d`.

It needs no files of weights, and takes clips as small as 4 x 8 x 8 at native size, where FVD's network cannot. It
distinguishes sets by colour, sharpness, noise and motion, but nothing in it is learnt: it is no FVD, and its numbers
compare only with numbers of the same protocol at the same n.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.protocol import Score
from vf.types import Array

# Three separate networks, since in a single one large bright backgrounds drown edges and motion: on sprites at
# n = 256 shuffled frames moved its distance to 3.6 floors; in streams of like variance to 31.
PROTOCOL: dict[str, Any] = {
    "metric": "fd_random_conv3d",
    "version": 1,
    "seed": 2023,
    "input": "u8 / 127.5 - 1 at native size",
    "streams": {  # first layer's kernels: gain, and the axes (t h w) over which their sum is 0
        "colour": {"gain": 0.35, "blind_to_mean_over": []},
        "edge": {"gain": 4.0, "blind_to_mean_over": [1, 2]},
        "motion": {"gain": 5.0, "blind_to_mean_over": [0]},
    },
    "layers": [  # of each stream, 3 x 3 x 3 kernels, edge padding
        {"stride": [1, 1, 1], "channels": 8},
        {"stride": [1, 2, 2], "channels": 8},
        {"stride": [2, 2, 2], "channels": 8},
    ],
    "weights": "He normal by numpy's default_rng",
    "activation": "leaky ReLU, slope 0.2",
    "pooling": "mean and standard deviation over positions after layers 1 and 2",
    "dim": 96,
    "ddof": 1,
}
SLOPE = 0.2


@functools.cache
def _weights() -> list[np.ndarray]:
    """Kernels of each layer, float32 [streams 27*in out]; drawn by numpy, since jax may change its generators."""
    rng = np.random.default_rng(PROTOCOL["seed"])
    streams = PROTOCOL["streams"].values()
    kernels: list[np.ndarray] = []
    channels = 3
    for layer in PROTOCOL["layers"]:
        kernel = rng.standard_normal((len(streams), 3, 3, 3, channels, layer["channels"]))
        kernel *= np.sqrt(2 / (1 + SLOPE**2) / (27 * channels))
        if not kernels:
            for part, stream in zip(kernel, streams, strict=True):
                if blind := tuple(stream["blind_to_mean_over"]):
                    part -= part.mean(blind, keepdims=True)
                part *= stream["gain"]
        kernels.append(kernel.reshape(len(streams), -1, layer["channels"]).astype(np.float32))
        channels = layer["channels"]
    return kernels


def _patches(x: jax.Array, stride: Sequence[int]) -> jax.Array:
    """The 3 x 3 x 3 neighbourhood of every `stride`-th position: [b f h w c] -> [b f' h' w' 27*c].

    A convolution is a product with these; XLA's is slow on CPU for so few channels. The padding repeats edges: zeros
    would look like an edge around the frame and a cut before and after the clip.
    """
    for axis, step in zip((3, 2, 1), stride[::-1], strict=True):  # w first, so that t h w is the order of taps
        length = x.shape[axis]
        padded = jnp.pad(x, [(int(k == axis),) * 2 for k in range(5)], mode="edge")
        taps = [jax.lax.slice_in_dim(padded, k, k + length, step, axis) for k in range(3)]
        x = jnp.concatenate(taps, -1)
    return x


@jax.jit
def _forward(video: jax.Array) -> jax.Array:
    """Features f32 [b 96] of clips u8 [b f h w 3]."""

    def stream(kernels: Sequence[Array]) -> jax.Array:
        x = video.astype(jnp.float32) / 127.5 - 1
        pooled = []
        for number, (kernel, layer) in enumerate(zip(kernels, PROTOCOL["layers"], strict=True)):
            # In full precision, so that CPU, GPU and TPU agree.
            x = jnp.matmul(_patches(x, layer["stride"]), kernel, precision=jax.lax.Precision.HIGHEST)
            x = jax.nn.leaky_relu(x, SLOPE)
            if number > 0:
                pooled += [x.mean((1, 2, 3)), x.std((1, 2, 3))]
        return jnp.concatenate(pooled, -1)

    return rearrange(jax.vmap(stream)(_weights()), "s b k -> b (s k)")


def features(clips: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Features float32 [n 96], of order 1, of clips uint8 [n f h w 3] with f >= 4, h and w >= 8.

    The last batch is filled with black clips, whose features are dropped, so that one program serves all n. Raises
    ValueError for another array, or `batch_size` < 1.
    """
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(f"expected uint8 [n f h w 3], got {clips.dtype} {list(clips.shape)}")
    if clips.shape[1] < 4 or min(clips.shape[2:4]) < 8 or batch_size < 1:
        raise ValueError(f"expected 4 x 8 x 8 pixels or more in batches of 1 or more, got {clips.shape[1:4]}")
    parts = [np.zeros((0, PROTOCOL["dim"]), np.float32)]
    for i in range(0, len(clips), batch_size):
        batch = clips[i : i + batch_size]
        full = np.pad(batch, [(0, batch_size - len(batch)), *[(0, 0)] * 4])
        parts.append(np.asarray(_forward(full))[: len(batch)])
    return np.concatenate(parts)


class RandomConv3dDistance:
    """The distance of generated to real clips, and of real to other real clips at the same n; a `Scorer`.

    Both distances fall with n, so both take n clips on either side, n being the smaller of the number of generated
    clips and half the number of real ones. The clips are drawn with a fixed seed, since sets on disk are often sorted
    by class.
    """

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size

    def __call__(self, real: np.ndarray, generated: np.ndarray) -> list[Score]:
        """One score, whose `reference` is the distance that a perfect generator would reach.

        Raises ValueError for n < 2 and for sets of different frame shapes.
        """
        if real.shape[1:] != generated.shape[1:]:
            raise ValueError(f"expected clips of one shape, got {real.shape[1:]} and {generated.shape[1:]}")
        n = min(len(generated), len(real) // 2)
        rng = np.random.default_rng(PROTOCOL["seed"])
        first, second = np.split(rng.permutation(len(real))[: 2 * n], 2)
        sets = (real[first], real[second], generated[rng.permutation(len(generated))[:n]])
        first_moments, second_moments, generated_moments = (
            Moments.of(features(clips, self.batch_size)) for clips in sets
        )
        ddof = PROTOCOL["ddof"]
        protocol = PROTOCOL | {"n": n, "frames": real.shape[1], "size": list(real.shape[2:4])}
        value, floor = (
            frechet_distance(first_moments, generated_moments, ddof),
            frechet_distance(first_moments, second_moments, ddof),
        )
        return [Score("fd_random_conv3d", value, floor, protocol)]
