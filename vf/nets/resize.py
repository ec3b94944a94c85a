"""Resampling by two small dense matrices, which reproduces every public grid exactly within a compiled program.

A separable resampler is y = R_h x R_w^T, R [out, in] with rows that sum to 1. Published scores use different R, and the
resizers of libraries do not agree: jax.image.resize antialiases by default, TF1 samples half a pixel away from all
others, and OpenCV's cubic kernel is not Pillow's. So each grid is defined once here:

    grid                 sample point of output j   kernel                     who
    tf1                  j in / out                 triangle of 1 pixel        tf.image.resize_bilinear of TF1
    half_pixel           (j + 1/2) in / out - 1/2   triangle of 1 pixel        torch F.interpolate
    align_corners        j (in - 1) / (out - 1)     triangle of 1 pixel        the same, align_corners=True
    antialiased          as half_pixel              triangle, widened (1)      Pillow BILINEAR, torch antialias=True
    antialiased_bicubic  as half_pixel              cubic a = -1/2, widened    Pillow BICUBIC
    opencv_cubic         as half_pixel              cubic a = -3/4             cv2.INTER_CUBIC

(1) Where a picture is reduced, the kernel is scaled to the width of an output pixel.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Grid = Literal["tf1", "half_pixel", "align_corners", "antialiased", "antialiased_bicubic", "opencv_cubic"]
GRIDS: tuple[Grid, ...] = get_args(Grid)
Aspect = Literal["squash", "short_side"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - abs(x))


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Keys' kernel (1981), of support 2."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


def matrix(grid: Grid, size_in: int, size_out: int) -> Float[np.ndarray, "out in"]:
    """R of `grid` in float64; equal sizes give the identity.

    Raises ValueError for an unknown grid or a size below 1.
    """
    if grid not in GRIDS or min(size_in, size_out) < 1:
        raise ValueError(
            f"expected a grid of {', '.join(GRIDS)} and sizes of 1 or more, got {grid}, {size_in}, {size_out}"
        )
    scale = size_in / size_out
    j = np.arange(size_out)
    if grid == "tf1":
        centre = j * scale
    elif grid == "align_corners":
        centre = j * ((size_in - 1) / (size_out - 1) if size_out > 1 else 0.0)
    else:
        centre = (j + 0.5) * scale - 0.5
    pixel = np.arange(size_in)
    if grid.startswith("antialiased"):
        # Pillow and torch: the kernel is as wide as an output pixel, and weights outside the picture are dropped.
        width = max(scale, 1.0)
        kernel, support = (_cubic(-0.5), 2) if grid == "antialiased_bicubic" else (_triangle, 1)
        first = np.maximum(np.trunc(centre + 0.5 - support * width + 0.5), 0)
        last = np.minimum(np.trunc(centre + 0.5 + support * width + 0.5), size_in)
        inside = (pixel >= first[:, None]) & (pixel < last[:, None])
        weights = np.where(inside, kernel((pixel - centre[:, None]) / width), 0)
        return weights / weights.sum(1, keepdims=True)
    # The others repeat the edge pixel beyond the edge.
    kernel, support = (_cubic(-0.75), 2) if grid == "opencv_cubic" else (_triangle, 1)
    taps = np.floor(centre)[:, None].astype(int) + np.arange(1 - support, 1 + support)
    weights = kernel(taps - centre[:, None])
    weights_of_output = np.zeros((size_out, size_in))
    np.add.at(weights_of_output, (j[:, None], taps.clip(0, size_in - 1)), weights)
    return weights_of_output


def matrices(
    grid: Grid, aspect: Aspect, height: int, width: int, size: int
) -> tuple[Float[np.ndarray, "size h"], Float[np.ndarray, "size w"]]:
    """R_h and R_w, float64, for pictures [height width] -> [size size].

    `squash` resizes both sides to `size`. `short_side` resizes the shorter one to `size`, the longer one in proportion
    (rounded up, as in VideoGPT's code), and takes the centre, which is a crop of R's rows. As there, the height of a
    square counts as its longer side, which rounding may make size + 1 (225 instead of 224 for 100 pixels). Raises
    ValueError as `matrix`, and for an unknown aspect policy.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"expected an aspect policy of {', '.join(ASPECTS)}, got {aspect}")

    if aspect == "squash" or min(height, width, size) < 1:
        return matrix(grid, height, size), matrix(grid, width, size)
    columns, rows = short_side(height, width, size)

    def crop(side: int, resized: int) -> np.ndarray:
        first = (resized - size) // 2
        return matrix(grid, side, resized)[first : first + size]

    return crop(height, rows), crop(width, columns)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(width, height) to which `matrices` resizes a picture, before its centre is taken."""
    longer = math.ceil(max(height, width) * (size / min(height, width)))
    return (longer, size) if height < width else (size, longer)


def apply(
    x: Float[jax.Array, "*b h w c"],
    rows: Float[np.ndarray, "H h"],
    columns: Float[np.ndarray, "W w"],
    *,
    quantise: bool = False,
) -> Float[jax.Array, "*b H W c"]:
    """R_h x R_w^T of every picture, in float32 on every platform (no TF32, no bfloat16).

    `quantise` gives the same pictures of 8 bits as Pillow, bit for bit: whole numbers of 0 ... 255 after each of both
    passes, by weights of 22 bits.
    """
    one_pass = _pillow_pass if quantise else _pass
    return one_pass("Hh,...hWc->...HWc", rows, one_pass("Ww,...hwc->...hWc", columns, x))


def _pass(product: str, weights: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.einsum(product, jnp.asarray(weights, jnp.float32), x, precision=jax.lax.Precision.HIGHEST)


def _pillow_pass(product: str, weights: np.ndarray, x: jax.Array) -> jax.Array:
    # Ties are not rare (weights for 64 of 70 pixels are fractions of 64), and float32 would round them otherwise.
    fixed_point = np.trunc(weights * 2.0**22 + np.copysign(0.5, weights))
    high = np.round(fixed_point / 2**11)
    # Two products of small whole numbers, which are exact in float32; their sum has 32 bits.
    sums = [_pass(product, part, x).astype(jnp.int32) for part in (high, fixed_point - high * 2**11)]
    return (((sums[0] << 11) + sums[1] + 2**21) >> 22).clip(0, 255).astype(jnp.float32)
