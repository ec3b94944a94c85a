"""Reads pictures by Pillow: folders whose images are the frames of one video, and animated images, each a video.

Which images of a folder are its frames, and in which order, is told by their names alone (`series`).
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vf.data.decode import DAMAGE, error_text, natural
from vf.data.notes import too_deep
from vf.data.pixels import Pixels
from vf.types import counted

# Best first, where the same frames are there twice.
IMAGES = (
    ".png", ".apng", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".tga", ".webp", ".avif", ".jpg", ".jpeg", ".jfif",
)  # fmt: skip
_ANIMATED = ("AVIF", "PNG", "TIFF", "WEBP")  # Pillow's names of formats that hold several pictures; FFmpeg reads GIF


class Series(NamedTuple):
    """The frames among the images of a folder.

    Attributes:
        names: of the frames, in order.
        strays: {name: reason} of the images that are none.
        note: what is unusual; "" for nothing.
    """

    names: list[str]
    strays: dict[str, str]
    note: str = ""


def series(names: Sequence[str]) -> Series:
    """Finds the frames among the images of a folder, and their order.

    Most names differ by their numbers only, and are those of the frames; others are strays. Of the numbers in a name,
    the one that counts up orders the frames: others may be a size, a view or a time. Where none counts up, numbers are
    times and all of them order the frames.

    Raises ValueError where the numbers leave a gap or repeat, or names are of two series.
    """
    by_pattern: dict[str, list[str]] = {}
    for name in sorted(names, key=natural):
        by_pattern.setdefault(_pattern(name), []).append(name)
    (_, frames), *others = sorted(by_pattern.items(), key=lambda found: -len(found[1]))
    strays = {name: f"is no frame: most names beside it are as {frames[0]}" for _, rest in others for name in rest}
    if len(frames) < 2 or len(frames) <= len(strays):  # names have nothing in common
        if others and len(frames) > 1 and len(others[0][1]) > 1:
            raise ValueError(f"holds two series, as {frames[0]} and {others[0][1][0]}: give each a folder of its own")
        return _unlike(sorted(names, key=natural))
    kinds = Counter(Path(name).suffix.lower() for name in frames)
    twice = Counter(Path(name).stem.casefold() for name in frames)
    if len(kinds) > 1 and max(twice.values()) > 1:  # the same frames in two formats
        best = min(kinds, key=lambda kind: (-kinds[kind], IMAGES.index(kind)))
        same = [name for name in frames if Path(name).suffix.lower() != best]
        frames = [name for name in frames if Path(name).suffix.lower() == best]
        strays |= dict.fromkeys(same, f"is no frame: {frames[0]} and others are the same frames as {best}")
    return _ordered(frames, strays)


def find_strays(names: Sequence[str]) -> dict[str, str]:
    """{name: reason} of the images of a folder that are no frames; empty where `series` finds no frames."""
    if len({(_pattern(name), Path(name).suffix.lower()) for name in names}) < 2:
        return {}
    try:
        return series(names).strays
    except ValueError:
        return {}


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", Path(name).stem.casefold())


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", Path(name).stem)]


def _ordered(frames: list[str], strays: dict[str, str]) -> Series:
    """The series of names that differ by their numbers only, in natural order. Raises ValueError as `series`."""
    columns = list(zip(*map(_numbers, frames), strict=True))
    varying = [column for column in columns if len(set(column)) > 1]
    if not varying:
        return Series(frames, strays)
    distinct = [column for column in varying if len(set(column)) == len(column)]
    if counting := max(distinct, key=_regularity, default=None):
        gaps = [after - before for before, after in itertools.pairwise(sorted(counting))]
        step, often = Counter(gaps).most_common(1)[0]
        ordered = [name for _, name in sorted(zip(counting, frames, strict=True))]
        if 2 * often >= len(gaps):
            if (k := next((k for k, gap in enumerate(gaps) if gap != step), None)) is not None:
                raise ValueError(f"has no frame between {ordered[k]} and {ordered[k + 1]}")
            return Series(ordered, strays)
    grid = {tuple(row) for row in zip(*varying, strict=True)}
    sizes = [len(set(column)) for column in varying]
    if len(grid) < len(frames) or (len(varying) > 1 and len(grid) == math.prod(sizes)):
        first, second = _twice(frames, varying)
        raise ValueError(f"has two frames of one number, as {first} and {second}: give each series a folder of its own")
    by_time = sorted(frames, key=_times)
    return Series(by_time, strays, "its frames are numbered by times, which would not show a gap")


def _regularity(numbers: Sequence[int]) -> float:
    """Share of the most frequent gap between numbers in order."""
    gaps = [after - before for before, after in itertools.pairwise(sorted(numbers))]
    return Counter(gaps).most_common(1)[0][1] / len(gaps)


def _twice(frames: list[str], columns: list[tuple[int, ...]]) -> tuple[str, str]:
    """Two names with the same number, in the column that repeats least often."""
    column = max(columns, key=lambda numbers: len(set(numbers)))
    number = next(number for number, count in Counter(column).items() if count > 1)
    first, second, *_ = (name for name, other in zip(frames, column, strict=True) if other == number)
    return first, second


def _times(name: str) -> list[Fraction]:
    """The numbers in a name, those with a decimal point as one."""
    return [Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", Path(name).stem)]


def _unlike(names: list[str]) -> Series:
    """The series of names, in natural order, that have nothing in common, unless their last numbers count up."""
    last = {name: numbers[-1] for name in names if (numbers := _numbers(name))}
    strays = {name: "is no frame: it has no number, and others have" for name in names if last and name not in last}
    values = sorted(last.values())
    if len({after - before for before, after in itertools.pairwise(values)} - {0}) == 1:
        return Series(sorted(last, key=lambda name: last[name]), strays)
    return Series([name for name in names if name not in strays], strays)


class FrameFolder:
    """A folder whose images are the frames of one video.

    Args:
        folder: the folder.
        fps: frames per second, which the folder does not record; 0 = unknown.

    Raises DAMAGE where it holds no images, or their names are of no series.
    """

    aspect = Fraction(1)

    def __init__(self, folder: Path, fps: float = 0.0) -> None:
        self.fps, self._notes = fps, set[str]()
        names = images_in(folder)
        if not names:
            raise ValueError(f"has no images ({' '.join(IMAGES)})")
        found = series(names)
        self._notes |= {found.note} - {""}
        self.files = [folder / name for name in found.names]

    def __len__(self) -> int:
        return len(self.files)

    def notes(self) -> list[str]:
        """What is unusual about the frames that have been read, and what is lost of them."""
        return sorted(self._notes)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]. Raises DAMAGE as `pictures`, or where sizes differ."""
        return np.stack([pixels(picture) for picture in self.pictures(indices)])

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """Frames `indices`, by default all. Raises DAMAGE that names the file which cannot be read."""
        for file in self.files if indices is None else [self.files[i] for i in indices]:
            try:
                with _open(file) as image:
                    if _is_animated(image):
                        raise ValueError(f"is animated: {counted(getattr(image, 'n_frames', 1), 'picture')}")
                    picture, notes = _picture(image)
            except DAMAGE as error:
                raise ValueError(f"its frame {file.name} cannot be read: {error_text(error)}") from error
            self._notes.update(notes)
            yield picture


def images_in(folder: Path) -> list[str]:
    """Names of the images in a folder that are not hidden."""
    return [p.name for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith(".")]


class Animation:
    """An image file of several pictures, animated WebP or PNG or pages of a TIFF, as a video.

    Raises DAMAGE, in every method, where it cannot be read.
    """

    aspect = Fraction(1)

    def __init__(self, file: Path) -> None:
        self.file, self._notes = file, set[str]()
        with _open(file) as image:
            # The picture that programs without animation show is none of its frames.
            self._first = int(bool(image.info.get("default_image")))
            self._length = getattr(image, "n_frames", 1) - self._first
            durations = []
            for k in range(self._length):
                image.seek(self._first + k)
                if image.format in ("AVIF", "WEBP"):
                    image.load()  # only then is its duration known
                durations.append(float(image.info.get("duration") or 0))
        self.fps = 1000 * len(durations) / sum(durations) if all(durations) else 0.0
        if len(set(durations)) > 1:
            self._notes.add("variable frame rate: frames are kept, fps is their mean")

    def __len__(self) -> int:
        return self._length

    def notes(self) -> list[str]:
        """What is unusual about the pictures that have been read, and what is lost of them."""
        return sorted(self._notes)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]."""
        return np.stack([pixels(picture) for picture in self.pictures(indices)])

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """Frames `indices`, by default all."""
        with _open(self.file) as image:
            for k in range(self._length) if indices is None else indices:
                image.seek(self._first + int(k))
                picture, notes = _picture(image)
                self._notes.update(notes)
                yield picture


def is_animated(file: Path) -> bool:
    """Whether an image file holds several pictures, as far as it can be read."""
    try:
        with _open(file) as image:
            return _is_animated(image)
    except DAMAGE:
        return False


def _is_animated(image: Image.Image) -> bool:
    if image.format not in _ANIMATED or getattr(image, "n_frames", 1) < 2:
        return False
    size = image.size
    image.seek(1)
    is_preview = image.format == "TIFF" and image.size != size  # of the first page, as cameras add one
    image.seek(0)
    return not is_preview


def read_picture(file: Path) -> av.VideoFrame:
    """An image, upright, in 8 bits, with its alpha channel where anything is transparent. Raises DAMAGE."""
    with _open(file) as image:
        return _picture(image)[0]


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error


def _picture(image: Image.Image) -> tuple[av.VideoFrame, list[str]]:
    """The picture of an open file, and notes on it. Raises DAMAGE."""
    is_deep = ";16" in str(
        [tile.args for tile in getattr(image, "tile", ())]
    )  # of which Pillow may keep the upper half
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits, whose range is not known: store 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        pixels, form = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1), "rgb24"
    elif image.has_transparency_data:
        pixels, form = np.asarray(image.convert("RGBA")), "rgba"
    else:
        pixels, form = np.asarray(image.convert("RGB")), "rgb24"
    return av.VideoFrame.from_ndarray(pixels, format=form), [too_deep(16)] * is_deep
