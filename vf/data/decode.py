"""From files to pictures to pixels: video files by PyAV, folders of frames by Pillow, one resampler for both.

Frame k of a video is what its player shows k-th, whatever the order of its packets (`Clock`). Pixels are those of the
largest centred square, reduced by FFmpeg's scaler (`Pixels`); preparation and training on the fly share every line
here, so that prepared clips equal decoded ones bit for bit.
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
# Without full_chroma_int the scaler interpolates colour at half resolution and comes out 1 to 2 of 255 too dark;
# accurate_rnd and bitexact make every processor round alike. Planes, gbrp, cost half of what packed rgb24 does.
_FLAGS = "bicubic+full_chroma_int+accurate_rnd+bitexact"

File = Path | bytes
"""A video: its path, or its content (the member of an archive)."""

DAMAGE = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError)
"""What reading a broken file may raise; everything here raises one of these and nothing else."""

av.logging.set_level(None)  # what FFmpeg has to say about a broken file comes back in the exception


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key: numbers by value, letters without their case (UCF101 has Hammering before HammerThrow)."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], name


def printable(name: str) -> str:
    """A file's name for people and JSON: bytes that are no UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def words(error: Exception) -> str:
    """What went wrong, without the number and the path that system errors carry."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Pixels:
    """Pictures -> u8 [size size 3], or [h w 3] with size 0: the whole picture, as large as it is.

    One per thread: it keeps the scaler for the geometry that it met last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._key: tuple = ()
        self._graph: Graph | None = None

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        """The centre square (or all of it), upright. Raises DAMAGE where the picture cannot be converted."""
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
        # The display matrix says by how much to turn for display, counter-clockwise; a square turns without loss.
        return np.rot90(pixels, round(picture.rotation / 90)) if picture.rotation else pixels

    def _make(self, picture: av.VideoFrame) -> Graph:
        whole = (0, 0, picture.width, picture.height)
        left, top, right, bottom = centre_crop_box(picture.height, picture.width) if self.size else whole
        size = (self.size, self.size) if self.size else (picture.width, picture.height)
        graph = Graph()
        graph.threads = 1  # the callers are many; a scaler's own threads cost more than one picture
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
    """One video file, whose frames are found by number.

    Args:
        file: path or content.

    Raises:
        DAMAGE: in every method, where the file cannot be opened, holds no video stream, or is damaged.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._clock: Clock | None = None

    @property
    def clock(self) -> "Clock":
        """When each frame is shown; read once."""
        if self._clock is None:  # not a cached_property: before Python 3.12 one lock would serve all videos
            self._clock = read_clock(self.file)
        return self._clock

    def __len__(self) -> int:
        """Number of frames that there are, whatever the header says."""
        return self.clock.length

    def pictures(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """The picture on show at each index (ascending): the frame's own, or the last before it.

        Encoders leave out pictures that equal the one before; ValueError where more than half of what was asked for
        is missing, which is more likely damage.
        """
        return _pictures(self.file, self.clock, indices)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]; a picture that stays on show is converted once."""
        made: list[np.ndarray] = []
        before = None
        for picture in self.pictures(indices):
            made.append(made[-1] if picture is before else pixels(picture))
            before = picture
        return np.stack(made)


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
            at = [int(number[0]) for number in numbers]
            gaps = [after - before for before, after in itertools.pairwise(at)]
            usual = max(1, Counter(gaps).most_common(1)[0][0])
            k = next((k for k, gap in enumerate(gaps) if gap != usual), None)
            if k is not None:
                raise ValueError(f"has no frame between {self.files[k].name} and {self.files[k + 1].name}")

    def __len__(self) -> int:
        return len(self.files)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]. Raises DAMAGE as `pictures`, or where sizes differ."""
        return np.stack([pixels(picture) for picture in self.pictures(indices)])

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """Frames `indices`, by default every one. Raises DAMAGE that names the file which cannot be read."""
        for file in self.files if indices is None else [self.files[i] for i in indices]:
            try:
                with Image.open(file) as image:
                    rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except DAMAGE as error:
                why = "no image" if isinstance(error, UnidentifiedImageError) else words(error)
                raise ValueError(f"its frame {file.name} cannot be read: {why}") from error
            yield av.VideoFrame.from_ndarray(rgb, format="rgb24")


class Header(NamedTuple):
    """What a video file says of itself."""

    frames: int  # 0 where it does not say
    fps: float  # mean rate; 0 where it does not say
    width: int
    height: int
    format: str  # of its pixels, as FFmpeg names it


def read_header(file: File) -> Header:
    """The header of a file that shows at least one picture. Raises DAMAGE."""
    container, stream = open_video(file)
    with container:
        picture = next(container.decode(stream), None)
        if picture is None:
            raise ValueError("has no picture")
        rate = stream.average_rate or stream.guessed_rate
        return Header(stream.frames, float(rate or 0), picture.width, picture.height, picture.format.name)


def is_cut_off(file: File) -> bool | None:
    """Does an AVI end before the place that its header names? None for other containers, which do not name one."""
    if isinstance(file, bytes):
        head, size = file[:12], len(file)
    else:
        with file.open("rb") as content:
            head, size = content.read(12), file.stat().st_size
    if head[:4] != b"RIFF" or head[8:] != b"AVI ":
        return None
    return int.from_bytes(head[4:8], "little") + 8 > size


def open_video(file: File) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The file and its first video stream, decoded in the caller's thread: the loader has threads enough."""
    if isinstance(file, bytes):
        source: str | io.BytesIO | io.BufferedReader = io.BytesIO(file)
    else:
        source = str(file)
        if printable(source) != source:  # FFmpeg is handed names as UTF-8, which this one is not
            source = file.open("rb")
    container = av.open(source, "r")
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
    """When the frames of a file are shown, in the stream's time base.

    `times` int64 [length] ascends; None if only counting tells the frames apart. `keys` int64 [any] are the
    times of the key frames, where decoding can begin.
    """

    length: int
    times: np.ndarray | None
    keys: np.ndarray

    @property
    def regular(self) -> bool:
        """Do frames follow each other at one rate, as far as is known? (Times are rounded to whole ticks.)"""
        gaps = np.diff(self.times) if self.times is not None else np.zeros(0, np.int64)
        return not len(gaps) or int(np.ptp(gaps)) <= 1


def read_clock(file: File) -> Clock:
    """Reads packets without decoding them; where their times cannot number the frames, decodes and counts."""
    container, stream = open_video(file)
    with container:
        whole = (p for p in container.demux(stream) if p.size and not p.is_discard and not p.is_corrupt)
        packets = [(p.pts, p.is_keyframe) for p in whole]
        times = [time for time, _ in packets if time is not None]
        keys = [time for time, is_key in packets if time is not None and is_key]
        # AVI tells no order of display: its reader then passes off the order of decoding as times.
        in_disguise = stream.codec_context.has_b_frames and times == sorted(times)
    if len(set(times)) == len(packets) and not in_disguise:
        return Clock(len(times), np.array(sorted(times), np.int64), np.array(sorted(keys), np.int64))
    container, stream = open_video(file)
    with container:
        return Clock(sum(1 for _ in container.decode(stream)), None, np.array([], np.int64))


def _pictures(file: File, clock: Clock, indices: np.ndarray) -> Iterator[av.VideoFrame]:
    """`Video.pictures`."""
    wanted = indices if clock.times is None else clock.times[indices]
    shown, at, held = None, 0, 0
    for time, picture in _decode(file, clock, wanted[0]):
        while shown and at < len(wanted) and wanted[at] < time:
            yield shown
            at, held = at + 1, held + 1
        shown = picture
        while at < len(wanted) and wanted[at] == time:
            yield shown
            at += 1
        if at == len(wanted):
            break
    held += len(wanted) - at
    if shown is None or 2 * held > max(2, len(wanted)):
        raise ValueError(f"{held} of {len(wanted)} frames from frame {indices[0]} on have no picture")
    yield from [shown] * (len(wanted) - at)


def _decode(file: File, clock: Clock, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from a key frame at or before the time `first` on; times as in `clock`."""
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
            # A seek by decoding time may land past the key frame: then begin at the beginning.
            if head and (key is None or head[0] <= key):
                yield head
                yield from pictures
                return


def _in_order(
    container: av.container.InputContainer, stream: av.VideoStream, clock: Clock
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from where the container stands; ValueError where times do not ascend."""
    before = None
    for count, picture in enumerate(container.decode(stream)):
        time = count if clock.times is None else picture.pts
        if time is None:
            continue
        if before is not None and time <= before:
            raise ValueError(f"shows a picture of time {time} after one of time {before}")
        yield time, picture
        before = time
