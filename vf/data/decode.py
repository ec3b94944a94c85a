"""Decodes video files by PyAV.

Frame k of a video is the k-th that a player shows, whatever the order of packets (`Clock`). A video begins at its first
whole picture, and one that its decoder finds damaged is an error. Folders of frames and animated pictures are read in
`frames.py`, and all become pixels in `pixels.py`. Preparation, decoding on the fly and evaluation use the same code, so
that prepared clips equal decoded ones bit for bit.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vf.data.clock import Clock, read_clock
from vf.data.containers import File, Header, count_coded, decoded, is_cut_off, open_video, read_header
from vf.data.notes import lost, too_deep
from vf.data.pixels import Pixels

VIDEOS = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc",
    ".ivf", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Endings of names that stand for a video; other files are looked into (`vf.data.listing`)."""
TRANSFERS = {16: "PQ", 18: "HLG"}  # transfer functions of high dynamic range (ITU-T H.273, table 3)
_MISSING = 0.01  # share of the frames that a header may promise in excess before the file counts as cut off

DAMAGE = (av.FFmpegError, OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError)
"""The errors that reading a broken file may raise; functions here raise no others."""


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


class Video:
    """One video file, whose frames are read by number.

    Args:
        file: its path or content.

    Raises:
        DAMAGE: in every method, where the file cannot be opened, holds no video stream, or is damaged.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._clock: Clock | None = None  # not cached properties: before Python 3.12 all videos would share one lock
        self._header: Header | None = None

    @property
    def clock(self) -> Clock:
        """When each frame is shown. It is read once."""
        if self._clock is None:
            self._clock = read_clock(self.file)
        return self._clock

    @property
    def header(self) -> Header:
        """What its header says. It is read once."""
        if self._header is None:
            self._header = read_header(self.file)
        return self._header

    @property
    def fps(self) -> float:
        """Mean frames per second; 0 where unknown."""
        return self.header.fps

    @property
    def aspect(self) -> Fraction:
        """Width by height of one pixel."""
        return self.header.aspect

    def notes(self) -> list[str]:
        """What is unusual about the file, and what is lost of it, before pictures are read. DAMAGE if it is cut off."""
        header, clock = self.header, self.clock
        notes = [*check_whole(self.file, header, clock), *clock.notes]
        if header.width % 2 or header.height % 2:
            notes.append(f"odd size {header.width} x {header.height}")
        if header.aspect != 1:
            notes.append(f"its pixels of {header.aspect.numerator}:{header.aspect.denominator} are made square")
        if header.format.startswith(("gray", "mono")):
            notes.append("greyscale")
        if (bits := max(part.bits for part in av.VideoFormat(header.format).components)) > 8:
            notes.append(too_deep(bits))
        if header.transfer in TRANSFERS:
            notes.append(lost(f"its high dynamic range ({TRANSFERS[header.transfer]}), which is not tone-mapped"))
        if not clock.regular:
            notes.append("variable frame rate: frames are kept, fps is what the header says")
        return notes

    def __len__(self) -> int:
        """Number of frames in the file, which may differ from what the header says."""
        return self.clock.length

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """The picture shown at each index (ascending; None takes all): that of the frame, or the last one before it.

        Encoders of some codecs leave out pictures that equal the one before. Raises ValueError where more than half of
        the pictures are missing, or any of another codec, which is more likely damage.
        """
        return _pictures(self.file, self.clock, np.arange(len(self)) if indices is None else indices)

    def clip(self, indices: np.ndarray, pixels: Pixels) -> np.ndarray:
        """Frames `indices` as u8 [n size size 3]; a picture that is shown for several frames is converted once."""
        frames: list[np.ndarray] = []
        previous = None
        for picture in self.pictures(indices):
            frames.append(frames[-1] if picture is previous else pixels(picture, self.aspect))
            previous = picture
        return np.stack(frames)


def check_whole(file: File, header: Header, clock: Clock) -> list[str]:
    """Notes on a file that does not show as many frames as its header promises, though nothing is lost.

    Raises DAMAGE where it is cut off.
    """
    missing, cut = header.frames - clock.coded, is_cut_off(file)
    promise = f"its header promises {header.frames} frames, {clock.coded} are there"
    is_trimmed = clock.hidden > 0
    if cut and not header.frames:  # as in Matroska, whose header does not say how many frames there are
        raise ValueError("is cut off: it is shorter than its header says")
    # The header of an undamaged AVI may count frames that its encoder dropped.
    if missing > 0 and (cut or (cut is None and missing > max(2, _MISSING * header.frames))):
        if count_coded(file) < header.frames:
            raise ValueError(f"is cut off: {promise}")
        is_trimmed = True
    if is_trimmed:
        promise = f"it shows {clock.length} of its {header.frames or clock.coded} frames, as an edit list says"
    return [promise] * (is_trimmed or missing > 0) + ["its end is cut off, but all frames are there"] * bool(cut)


def _pictures(file: File, clock: Clock, indices: np.ndarray) -> Iterator[av.VideoFrame]:
    """Implements `Video.pictures`."""
    times = indices if clock.times is None else clock.times[indices]
    if not len(times):
        return
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
    if shown is None or 2 * repeated > max(2, len(times)) or (repeated and clock.is_always_coded):
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
            pictures = _in_order(container, stream, clock, key)
            head = next(pictures, None)
            # A seek by decoding time may land after the key frame: then decoding starts at the beginning.
            if head and (key is None or head[0] <= key):
                yield head
                yield from pictures
                return


def _in_order(
    container: av.container.InputContainer, stream: av.VideoStream, clock: Clock, key: int | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from the container's position on, beginning with the key frame of time `key` (None: the first).

    Raises ValueError where times do not ascend, or the decoder finds a picture damaged.
    """

    start, previous = clock.skipped if key is None else 0, None
    for count, picture in enumerate(decoded(container, stream, lambda number, _: number >= start)):
        time = count - clock.early if clock.times is None else picture.pts
        if time is None or (clock.times is None and time < 0):
            continue
        # A group may begin with pictures that need others, which are not there.
        if picture.is_corrupt and time not in clock.leading and (key is None or time >= key):
            raise ValueError(f"its picture of time {time} is damaged")
        if previous is not None and time <= previous:
            raise ValueError(f"shows a picture of time {time} after one of time {previous}")
        yield time, picture
        previous = time
