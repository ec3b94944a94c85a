"""Pixels: the two conversions between u8 and [-1, 1], clips on disk, and pictures for viewing.

Clips are u8 [n t h w 3] at both ends of the project. `from_uint8` and `to_uint8` are the only two conversions:

    x = (2 v - 255) / 255      v in 0..255  ->  x in [-1, 1]
    v = floor(127.5 x + 128)   the nearest pixel value, ties upwards

The `.npz` of `save_npz` is lossless and is what metrics read. The MP4, GIF and PNG writers are for viewing: H.264 and a
palette of 256 colours alter pixels, so nothing is ever measured on them.
"""

import io
import os
import zipfile
import zlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from vf import files
from vf.files import replacing
from vf.types import Array, UserError

GAP = 128  # grey value of the gaps between clips, unobtrusive on light and dark pages
BASE_FRAME_COLOUR = (255, 140, 0)  # orange border of the base frame in a film strip
# What reading a broken file of arrays may raise. An .npy loads as an array, which is no context manager: TypeError.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)


def from_uint8(video: Array) -> Float[jax.Array, "..."]:
    """Pixels u8 of any shape -> f32 in [-1, 1]; jit-able. Raises TypeError for another dtype."""
    if video.dtype != np.uint8:  # converting the same clip twice would otherwise go unnoticed
        raise TypeError(f"from_uint8 expects uint8 pixels and got {video.dtype}")
    # Not v / 127.5 - 1: compilers multiply by the reciprocal, and 255 would become slightly more than 1.
    return (2.0 * jnp.asarray(video, jnp.float32) - 255.0) / 255.0


def to_uint8(video: Array) -> UInt8[jax.Array, "..."]:
    """Floats of any shape -> pixels u8; jit-able. Values outside [-1, 1] are clipped; NaN becomes 0.

    The inverse of `from_uint8` on all 256 values. Raises TypeError for integers.
    """
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise TypeError(f"to_uint8 expects floats in [-1, 1] and got {video.dtype}")
    # In float32, since bfloat16 has too few bits for 256 levels.
    x = jnp.clip(jnp.nan_to_num(jnp.asarray(video, jnp.float32), nan=-1.0), -1.0, 1.0)
    return jnp.floor(x * 127.5 + 128.0).astype(jnp.uint8)


def save_npz(path: str | os.PathLike[str], clips: Array, **further: Array) -> None:
    """Writes clips u8 [n t h w 3] losslessly as `clips`, and `further` arrays [n ...] such as `label` by name.

    Raises ValueError where `clips` is no such array, or an array of `further` has another length.
    """
    arrays = {"clips": np.asarray(clips), **{name: np.asarray(value) for name, value in further.items()}}
    if problem := _problem(arrays):
        raise ValueError(problem)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of `save_npz`: `clips` u8 [n t h w 3] and any further arrays [n ...].

    Raises UserError where the file is missing, is no `.npz`, or has no clips.
    """
    try:
        # Opened here because np.load does not close a file that is no zip file.
        with files.open_bytes(path) as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"no clips at {path}: the file does not exist") from None
    except _DAMAGE as error:
        raise UserError(f"cannot read {path} as an .npz of clips: {error}") from error
    if problem := _problem(arrays):
        raise UserError(f"{path}: {problem}")
    return arrays


def load_clips(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "n t h w 3"]:
    """Reads clips that any program has written: `clips` of an `.npz`, whatever lies beside it, or an `.npy`.

    Raises UserError where the file is missing, is neither, or holds another array.
    """
    try:
        with files.open_bytes(path) as raw:
            content = np.load(raw, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                if "clips" not in content:
                    raise UserError(f"{path}: expected the key 'clips' and found {sorted(content)}")
                content = content["clips"]
    except FileNotFoundError:
        raise UserError(f"no clips at {path}: the file does not exist") from None
    except _DAMAGE as error:
        raise UserError(f"cannot read {path} as an .npz or .npy of clips: {error}") from error
    if problem := _problem({"clips": content}):
        raise UserError(f"{path}: {problem}")
    return content


def _problem(arrays: dict[str, np.ndarray]) -> str:
    """Why `arrays` are no file of clips, in one sentence; "" where they are one."""
    if "clips" not in arrays:
        return f"expected the key 'clips' and found {sorted(arrays)}"
    clips = arrays["clips"]
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        return f"expected 'clips' as uint8 [n t h w 3] and found {clips.dtype} {list(clips.shape)}"
    for name, value in arrays.items():
        if value.shape[:1] != clips.shape[:1]:
            return f"expected one '{name}' for each of {len(clips)} clips and found {list(value.shape)}"
    return ""


def enlarge(video: UInt8[np.ndarray, "*b h w c"], scale: int) -> UInt8[np.ndarray, "*b H W c"]:
    """Repeats every pixel `scale` times along both sides, which adds no colours."""
    return np.repeat(np.repeat(video, scale, axis=-3), scale, axis=-2)


def grid(clips: UInt8[Array, "n t h w 3"], columns: int, pad: int = 1) -> UInt8[np.ndarray, "t H W 3"]:
    """A wall of clips that play simultaneously, row by row, with `pad` grey pixels between neighbours.

    Fewer than `columns` clips make one shorter row; an incomplete last row ends in grey.
    """
    clips = np.asarray(clips)
    columns = min(columns, len(clips))
    missing = -len(clips) % columns
    clips = np.pad(clips, ((0, missing), (0, 0), (0, pad), (0, pad), (0, 0)), constant_values=GAP)
    wall = rearrange(clips, "(r c) t h w k -> t (r h) (c w) k", c=columns)
    return wall[:, : wall.shape[1] - pad, : wall.shape[2] - pad]  # no gap after the last row and column


def film_strip(
    clips: UInt8[Array, "n t h w 3"], base_frame: int | None, pad: int = 2, scale: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of clips with time from left to right: rows are clips, columns are frames.

    An orange border surrounds the column of the base frame, whose index is `base_frame`, unless that is None. It lies
    in the `pad` (at least 1) pixels around every enlarged frame, never on the picture. Raises ValueError where
    `base_frame` or `pad` is out of range.
    """
    clips = np.asarray(clips)
    if not 0 <= (base_frame or 0) < clips.shape[1] or pad < 1:
        raise ValueError(f"base_frame must be in 0..{clips.shape[1] - 1} and pad >= 1, got {base_frame} and {pad}")
    side = (pad, pad)
    cells = np.pad(enlarge(clips, scale), ((0, 0), (0, 0), side, side, (0, 0)), constant_values=GAP)
    width = cells.shape[-2]
    strip = rearrange(cells, "n t h w k -> (n h) (t w) k")
    if base_frame is None:
        return strip
    column = strip[:, base_frame * width : (base_frame + 1) * width]  # a view of the strip
    for edge in (column[:pad], column[-pad:], column[:, :pad], column[:, -pad:]):
        edge[:] = BASE_FRAME_COLOUR
    return strip


def write_png(path: str | os.PathLike[str], image: UInt8[Array, "h w 3"]) -> None:
    """Writes one picture u8 [h w 3] losslessly."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary, format="PNG", optimize=True)


def encode_gif(frames: UInt8[Array, "t h w 3"], fps: float = 8, scale: int = 1) -> bytes:
    """An endless GIF of frames u8 [t h w 3], for viewing; GIFs count time in hundredths of a second.

    One palette is used for all frames, so that nothing flickers: exact up to 256 colours, by median cut beyond. Equal
    neighbouring frames are stored once and shown longer.
    """
    from PIL import Image

    frames = np.asarray(frames)
    pixels = rearrange(frames, "t h w k -> (t h) w k")
    # Colours as numbers of 24 bits: sorting rows takes fifty times as long.
    codes, index = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)
    if len(colours) > 256:
        picture = Image.fromarray(pixels).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        index, palette = np.asarray(picture), picture.getpalette() or []
    else:
        palette = colours.ravel().tolist()
    planes = np.asarray(index, np.uint8).reshape(*frames.shape[:3], 1)
    pictures = [Image.fromarray(plane[..., 0]) for plane in enlarge(planes, scale)]
    for picture in pictures:
        picture.putpalette(palette)  # turns the grey picture of indices into a palette picture
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(100 / fps) * 10),  # browsers show what is shorter for a tenth of a second
        loop=0,
        optimize=False,
    )
    return file.getvalue()


def write_gif(path: str | os.PathLike[str], frames: UInt8[Array, "t h w 3"], fps: float = 8, scale: int = 1) -> None:
    """Writes frames u8 [t h w 3] as an endless GIF (`encode_gif`), enlarged `scale` times."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_gif(frames, fps, scale))


def write_mp4(path: str | os.PathLike[str], frames: UInt8[Array, "t h w 3"], fps: float = 8, scale: int = 1) -> None:
    """Writes frames u8 [t h w 3] as H.264, enlarged `scale` times, for viewing and never for metrics.

    yuv420p, which every browser plays, needs even sides: an odd side repeats its last row or column.
    """
    import av

    frames = np.asarray(frames)
    height, width = (side * scale for side in frames.shape[1:3])
    odd_h, odd_w = height % 2, width % 2
    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = height + odd_h, width + odd_w, "yuv420p"
        stream.options = {"crf": "16", "preset": "fast"}
        for frame in frames:  # one at a time: all of a long clip, enlarged, take gigabytes
            even = np.pad(enlarge(frame, scale), ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        container.mux(stream.encode(None))
