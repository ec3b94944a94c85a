"""Clips that are too large for a device, denoised tile by tile at each step of the solver.

Tiles are windows in time and space that overlap. At each step the clean estimates of those that hold a pixel are
averaged, with weights that are largest in the middle of a tile (MultiDiffusion, Bar-Tal et al. 2023, equation 5), and
the solver goes on with the whole clip. So there is one clip throughout, with one noise, from which all tiles are cut:
where two of them meet they have seen the same pixels.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vf.diffusion import windows


class Tiles(NamedTuple):
    """The size of a tile, and how far it reaches into the next one.

    Attributes:
        side: height and width in pixels; 0 for whole frames.
        overlap: pixels that neighbours share.
        frames: 0 for all.
        frame_overlap: frames that neighbours share.
    """

    side: int = 0
    overlap: int = 0
    frames: int = 0
    frame_overlap: int = 0


def first_places(length: int, size: int, overlap: int) -> Int[np.ndarray, "k"]:
    """Where tiles of `size` begin that cover `length` with at least this overlap; the last one ends with the clip.

    Raises ValueError where there are several tiles, unless 0 <= overlap < size.
    """
    if size >= length:
        return np.zeros(1, int)
    if not 0 <= overlap < size:
        raise ValueError(f"tiles of {size} must overlap by less than their size, got {overlap}")
    further = -(-(length - size) // (size - overlap))
    return np.round(np.linspace(0, length - size, further + 1)).astype(int)


def places(shape: tuple[int, ...], tiles: Tiles) -> tuple[tuple[int, ...], list[Int[np.ndarray, "k"]]]:
    """Frames, height and width of a tile of clips of `shape` (f h w ...), and where tiles begin along each of these.

    Raises ValueError as `first_places`.
    """
    wanted, overlaps = (tiles.frames, tiles.side, tiles.side), (tiles.frame_overlap, tiles.overlap, tiles.overlap)
    lengths = shape[:3]
    size = tuple(min(side or length, length) for length, side in zip(lengths, wanted, strict=True))
    return size, [first_places(*axis) for axis in zip(lengths, size, overlaps, strict=True)]


def mean(
    estimate: Callable[[Callable[[Array], Array]], Float[Array, "b i j k c"]], like: Float[Array, "b f h w c"],
    tiles: Tiles,
) -> Float[Array, "b f h w c"]:  # fmt: skip
    """The average over all tiles of what `estimate` makes of each, one after the other.

    estimate: (cut) -> the tile, of clips like `like`; `cut` cuts it out of any clips b f h w ....
    """
    shape = like.shape[1:4]
    size, along_axes = places(shape, tiles)
    firsts = jnp.asarray(list(itertools.product(*along_axes)), jnp.int32)
    along = [windows.weights(length) for length in size]
    weight = jnp.asarray(np.einsum("f,h,w->fhw", *along)[None, ..., None])

    def add(total: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        def at(x: Array) -> tuple[Array, ...]:
            return (0, *first, *[0] * (x.ndim - 4))

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice(x, at(x), (len(x), *size, *x.shape[4:]))

        def put(whole: Array, part: Array) -> Array:
            return jax.lax.dynamic_update_slice(whole, cut(whole) + part, at(whole))

        summed, weights = total
        return (put(summed, weight * estimate(cut)), put(weights, weight)), None

    nothing = (jnp.zeros_like(like), jnp.zeros((1, *shape, 1)))
    (summed, weights), _ = jax.lax.scan(add, nothing, firsts)
    return summed / weights
