"""Decodes videos: files by PyAV, folders of frames by Pillow, with one resampler for both.

Frame k of a video is the k-th that a player shows, whatever the order of packets (`Clock`). Pixels are those of the
largest centred square, resized by FFmpeg's scaler (`Pixels`). Preparation and decoding on the fly use the same code, so
that prepared clips equal decoded ones bit for bit.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.filter import Graph
from PIL import Image, ImageOps, UnidentifiedImageError

from vf.data.clips import centre_crop_box

VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
RESAMPLER = "FFmpeg swscale bicubic, antialiased, full chroma"
# Without full_chroma_int the scaler interpolates colour at half resolution and is 1 to 2 of 255 too dark; accurate_rnd
# and bitexact make every processor round alike. Output in planes (gbrp) costs half as much as packed rgb24.
_FLAGS = "bicubic+full_chroma_int+accurate_rnd+bitexact"

_MISSING = 0.01  # share of the frames that a header may promise in excess before the file counts as cut off

File = Path | bytes
"""A video: its path, or its content (the member of an archive)."""

DAMAGE = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError)
"""The errors that reading a broken file may raise; functions here raise no others."""

av.logging.set_level(None)  # FFmpeg's messages about a broken file are in the exceptions too


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key that compares numbers by value and ignores case (UCF101 has Hammering before HammerThrow)."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], name


def printable(name: str) -> str:
    """A file's name for people and JSON: bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def error_text(error: Exception) -> str:
    """The message of an error, without the number and the path that system errors carry."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Pixels:
    """Converts pictures to u8 [size size 3], the resized centre square; with size 0 to [h w 3], the whole picture.

    It caches the scaler for the last geometry, so that every thread needs one of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._key: tuple = ()
        self._graph: Graph | None = None

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        """The picture's pixels, upright. Raises DAMAGE where it cannot be converted."""
        key = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        if key != self._key or self._graph is None:
            self._graph, self._key = self._make(picture), key
        self._graph.vpush(picture)
        green, blue, red = self._graph.vpull().planes
        height, width = (self.size, self.size) if self.size else (picture.height, picture.width)
        pixels = np.empty((height, width, 3), np.uint8)
        for channel, plane in enumerate((red, green, blue)):  # four times as fast as to_ndarray
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
            pixels[..., channel] = rows[:height, :width]
        # The display matrix gives the rotation for display, counter-clockwise; multiples of 90 degrees lose nothing.
        return np.rot90(pixels, round(picture.rotation / 90)) if picture.rotation else pixels

    def _make(self, picture: av.VideoFrame) -> Graph:
        whole = (0, 0, picture.width, picture.height)
        left, top, right, bottom = centre_crop_box(picture.height, picture.width) if self.size else whole
        size = (self.size, self.size) if self.size else (picture.width, picture.height)
        graph = Graph()
        graph.threads = 1  # many threads call this, and starting a scaler's threads costs more than one picture
        stages = [
            graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 25)
            ),
            graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"),
            graph.add("scale", f"{size[0]}:{size[1]}:flags={_FLAGS}"),
            graph.add("format", "gbrp"),
            graph.add("buffersink"),
        ]
        for one, other in itertools.pairwise(stages):
            one.link_to(other)
        graph.configure()
        return graph


class Video:
    """One video file, whose frames are read by number.

    Args:
        file: its path or content.

    Raises:
        DAMAGE: in every method, where the file cannot be opened, holds no video stream, or is damaged.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._clock: Clock | None = None

    @property
    def clock(self) -> "Clock":
        """When each frame is shown. It is read once."""
        if self._clock is None:  # not a cached_property: before Python 3.12 all videos would share one lock
            self._clock = read_clock(self.file)
        return self._clock

    def __len__(self) -> int:
        """Number of frames in the file, which may differ from what the header says."""
        return self.clock.length

    def pictures(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """The picture shown at each index (ascending): that of the frame, or the last one before it.

        Encoders leave out pictures that equal the one before. Raises ValueError where more than half of the pictures
        are missing, which is more likely damage.
        """
        return _pictures(self.file, self.clock, indices)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]; a picture that is shown for several frames is converted once."""
        frames: list[np.ndarray] = []
        previous = None
        for picture in self.pictures(indices):
            frames.append(frames[-1] if picture is previous else pixels(picture))
            previous = picture
        return np.stack(frames)


class FrameFolder:
    """A folder whose images are the frames of one video, in natural order of their names.

    Raises DAMAGE where it holds no images, or where their numbers leave a gap.
    """

    def __init__(self, folder: Path) -> None:
        images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
        self.files = sorted(images, key=lambda p: natural(p.name))
        if not self.files:
            raise ValueError(f"has no images ({' '.join(IMAGES)})")
        numbers = [re.findall(r"\d+", file.stem)[-1:] for file in self.files]
        if all(numbers) and len(numbers) > 1:
            values = [int(number[0]) for number in numbers]
            gaps = [after - before for before, after in itertools.pairwise(values)]
            step = max(1, Counter(gaps).most_common(1)[0][0])
            k = next((k for k, gap in enumerate(gaps) if gap != step), None)
            if k is not None:
                raise ValueError(f"has no frame between {self.files[k].name} and {self.files[k + 1].name}")

    def __len__(self) -> int:
        return len(self.files)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]. Raises DAMAGE as `pictures`, or where sizes differ."""
        return np.stack([pixels(picture) for picture in self.pictures(indices)])

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """Frames `indices`, by default all. Raises DAMAGE that names the file which cannot be read."""
        for file in self.files if indices is None else [self.files[i] for i in indices]:
            try:
                yield read_picture(file)
            except DAMAGE as error:
                raise ValueError(f"its frame {file.name} cannot be read: {error_text(error)}") from error


def read_picture(file: Path) -> av.VideoFrame:
    """An image, upright, in RGB. Raises DAMAGE."""
    try:
        with Image.open(file) as image:
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error
    return av.VideoFrame.from_ndarray(rgb, format="rgb24")


class Header(NamedTuple):
    """What the header of a video file says, which need not be true."""

    frames: int  # 0 where the header does not say
    fps: float  # mean rate; 0 where the header does not say
    width: int
    height: int
    format: str  # FFmpeg's name of the pixel format


def read_header(file: File) -> Header:
    """The header of a file that shows at least one picture. Raises DAMAGE."""
    container, stream = open_video(file)
    with container:
        picture = next(container.decode(stream), None)
        if picture is None:
            raise ValueError("has no picture")
        rate = stream.average_rate or stream.guessed_rate
        return Header(stream.frames, float(rate or 0), picture.width, picture.height, picture.format.name)


def check_whole(file: File, header: Header, length: int) -> list[str]:
    """Notes on a file that shows `length` frames and not as many as its header promises, though nothing is lost.

    Raises DAMAGE where it is cut off.
    """
    missing, cut = header.frames - length, is_cut_off(file)
    promise = f"its header promises {header.frames} frames, {length} are there"
    # The header of an undamaged AVI may count frames that its encoder dropped.
    if missing > 0 and (cut or (cut is None and missing > max(2, _MISSING * header.frames))):
        if _count_coded(file) < header.frames:
            raise ValueError(f"is cut off: {promise}")
        promise = f"it shows {length} of its {header.frames} frames, as an edit list says"
    return [promise] * (missing > 0) + ["its end is cut off, but all frames are there"] * bool(cut)


def _count_coded(file: File) -> int:
    """Number of frames in the file, with those that the edit list of an MP4 hides."""
    container, stream = open_video(file, {"ignore_editlist": "1"})
    with container:
        return sum(1 for p in container.demux(stream) if p.size and not p.is_corrupt)


def is_cut_off(file: File) -> bool | None:
    """Whether an AVI is shorter than its header says. None for other containers, whose headers give no length."""
    if isinstance(file, bytes):
        head, size = file[:12], len(file)
    else:
        with file.open("rb") as content:
            head, size = content.read(12), file.stat().st_size
    if head[:4] != b"RIFF" or head[8:] != b"AVI ":
        return None
    return int.from_bytes(head[4:8], "little") + 8 > size


def open_video(file: File, options: dict[str, str] | None = None) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The opened file and its first video stream, to be decoded in the caller's thread. Raises DAMAGE.

    options: of FFmpeg's reader of containers.
    """
    if isinstance(file, bytes):
        source: str | io.BytesIO | io.BufferedReader = io.BytesIO(file)
    else:
        source = str(file)
        if printable(source) != source:  # PyAV hands names to FFmpeg as UTF-8, which this one is not
            source = file.open("rb")
    container = av.open(source, "r", container_options=options)
    if not container.streams.video:
        container.close()
        raise ValueError("has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise ValueError("is coded in a way that is not known")
    stream.codec_context.thread_count = 1
    return container, stream


class Clock(NamedTuple):
    """When the frames of a file are shown, in units of the stream's time base.

    Attributes:
        length: number of frames.
        times: int64 [length], ascending; None where frames can only be counted.
        keys: int64 [k], times of the key frames, where decoding can begin.
    """

    length: int
    times: np.ndarray | None
    keys: np.ndarray

    @property
    def regular(self) -> bool:
        """Whether frames follow each other at one rate, up to rounding to whole ticks. True where times are unknown."""
        gaps = np.diff(self.times) if self.times is not None else np.zeros(0, np.int64)
        return not len(gaps) or int(np.ptp(gaps)) <= 1


def read_clock(file: File) -> Clock:
    """Reads times from packets without decoding; where these do not order the frames, decodes and counts. DAMAGE."""
    container, stream = open_video(file)
    with container:
        intact = (p for p in container.demux(stream) if p.size and not p.is_discard and not p.is_corrupt)
        packets = [(p.pts, p.is_keyframe) for p in intact]
        times = [time for time, _ in packets if time is not None]
        keys = [time for time, is_key in packets if time is not None and is_key]
        # AVI does not record the order of display: its reader then gives the order of decoding as times.
        in_decoding_order = stream.codec_context.has_b_frames and times == sorted(times)
    if len(set(times)) == len(packets) and not in_decoding_order:
        return Clock(len(times), np.array(sorted(times), np.int64), np.array(sorted(keys), np.int64))
    container, stream = open_video(file)
    with container:
        return Clock(sum(1 for _ in container.decode(stream)), None, np.array([], np.int64))


def _pictures(file: File, clock: Clock, indices: np.ndarray) -> Iterator[av.VideoFrame]:
    """Implements `Video.pictures`."""
    times = indices if clock.times is None else clock.times[indices]
    shown, position, repeated = None, 0, 0
    for time, picture in _decode(file, clock, times[0]):
        while shown and position < len(times) and times[position] < time:
            yield shown
            position, repeated = position + 1, repeated + 1
        shown = picture
        while position < len(times) and times[position] == time:
            yield shown
            position += 1
        if position == len(times):
            break
    repeated += len(times) - position
    if shown is None or 2 * repeated > max(2, len(times)):
        raise ValueError(f"{repeated} of {len(times)} frames from frame {indices[0]} on have no picture")
    yield from [shown] * (len(times) - position)


def _decode(file: File, clock: Clock, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from a key frame at or before time `first` on; times are those of `clock`."""
    keys = clock.keys[clock.keys <= first]
    for key in (int(keys[-1]), None) if len(keys) > 1 else (None,):
        container, stream = open_video(file)
        with container:
            if key is not None:
                try:
                    container.seek(key, stream=stream)
                except av.FFmpegError:
                    continue
            pictures = _in_order(container, stream, clock)
            head = next(pictures, None)
            # A seek by decoding time may land after the key frame: then decoding starts at the beginning.
            if head and (key is None or head[0] <= key):
                yield head
                yield from pictures
                return


def _in_order(
    container: av.container.InputContainer, stream: av.VideoStream, clock: Clock
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from the container's position on. Raises ValueError where times do not ascend."""
    previous = None
    for count, picture in enumerate(container.decode(stream)):
        time = count if clock.times is None else picture.pts
        if time is None:
            continue
        if previous is not None and time <= previous:
            raise ValueError(f"shows a picture of time {time} after one of time {previous}")
        yield time, picture
        previous = time
