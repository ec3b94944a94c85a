"""Decodes video files by PyAV.

Frame k of a video is the k-th that a player shows, whatever the order of packets (`Clock`). A video begins at its first
whole picture, and one that its decoder finds damaged is an error. Folders of frames and animated pictures are read in
`frames.py`, and all become pixels in `pixels.py`. Preparation, decoding on the fly and evaluation use the same code, so
that prepared clips equal decoded ones bit for bit.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from vf.data import bitstream
from vf.data.pixels import Pixels
from vf.types import counted

VIDEOS = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc",
    ".ivf", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Endings of names that stand for a video; other files are looked into (`vf.data.listing`)."""
TRANSFERS = {16: "PQ", 18: "HLG"}  # transfer functions of high dynamic range (ITU-T H.273, table 3)
# Codecs whose every packet gives a picture: where one does not, it is damaged. Others may leave a frame out, which then
# shows the picture before.
_ALWAYS_CODED = ("h264", "hevc", "mpeg1video", "mpeg2video")
_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that read the alpha channel beside the pictures of WebM

_LOST = "lost: "
_HOLE = "has lost a picture that others need, after"
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


def lost(what: str) -> str:
    """A note on a clip that is kept, of which `what` is lost; `--strict` takes no such clip."""
    return f"{_LOST}{what}"


def is_loss(note: str) -> bool:
    """Whether a note on a clip is one of `lost`."""
    return note.startswith(_LOST)


ON_BLACK = lost("its transparency, laid on black")


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
    def clock(self) -> "Clock":
        """When each frame is shown. It is read once."""
        if self._clock is None:
            self._clock = read_clock(self.file)
        return self._clock

    @property
    def header(self) -> "Header":
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
        if header.transfer in TRANSFERS:
            notes.append(lost(f"its high dynamic range ({TRANSFERS[header.transfer]}), which is not tone-mapped"))
        if not clock.regular:
            notes.append("variable frame rate: frames are kept, fps is their mean")
        return notes

    def __len__(self) -> int:
        """Number of frames in the file, which may differ from what the header says."""
        return self.clock.length

    def pictures(self, indices: np.ndarray | None = None) -> Iterator[av.VideoFrame]:
        """The picture shown at each index (ascending; None takes all): that of the frame, or the last one before it.

        Encoders of some codecs leave out pictures that equal the one before. Raises ValueError where more than half of
        the pictures are missing, which is more likely damage.
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


class Header(NamedTuple):
    """What the header of a video file says, which need not be true."""

    frames: int  # 0 where the header does not say
    fps: float  # mean rate; 0 where the header does not say
    width: int
    height: int
    format: str  # FFmpeg's name of the pixel format
    aspect: Fraction = Fraction(1)  # width by height of one pixel
    transfer: int = 0  # transfer function, as in ITU-T H.273


def read_header(file: File) -> Header:
    """The header of a file that shows at least one picture. Raises DAMAGE."""
    for is_fed in (_from_key(), lambda *_: True):  # from the first frame on where the container names no key frame
        container, stream = open_video(file)
        with container:
            stream.codec_context.options = {}  # its pixels do not matter
            picture = next(_decoded(container, stream, is_fed), None)
            if picture is not None:
                rate, aspect = stream.average_rate or stream.guessed_rate, stream.sample_aspect_ratio
                size = (picture.width, picture.height, picture.format.name)
                return Header(stream.frames, float(rate or 0), *size, aspect or Fraction(1), int(picture.color_trc))
    raise ValueError("has no picture")


def _from_key() -> Callable[[int, av.Packet], bool]:
    """Whether a packet is the first key frame or comes after it, packet by packet."""
    begun = False

    def is_fed(_: int, packet: av.Packet) -> bool:
        nonlocal begun
        begun = begun or packet.is_keyframe
        return begun

    return is_fed


def check_whole(file: File, header: Header, clock: "Clock") -> list[str]:
    """Notes on a file that does not show as many frames as its header promises, though nothing is lost.

    Raises DAMAGE where it is cut off.
    """
    missing, cut = header.frames - clock.coded, is_cut_off(file)
    promise = f"its header promises {header.frames} frames, {clock.coded} are there"
    is_trimmed = clock.hidden > 0
    # The header of an undamaged AVI may count frames that its encoder dropped.
    if missing > 0 and (cut or (cut is None and missing > max(2, _MISSING * header.frames))):
        if _count_coded(file) < header.frames:
            raise ValueError(f"is cut off: {promise}")
        is_trimmed = True
    if is_trimmed:
        promise = f"it shows {clock.length} of its {header.frames or clock.coded} frames, as an edit list says"
    return [promise] * (is_trimmed or missing > 0) + ["its end is cut off, but all frames are there"] * bool(cut)


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
    stream = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
    if stream is None:  # the cover of an album is no video
        container.close()
        raise ValueError("has no video stream")
    if stream.codec_context is None:
        container.close()
        raise ValueError("is coded in a way that is not known")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {
        "err_detect": "explode"
    }  # else a decoder makes up what is damaged, and says nothing
    return container, stream


def _decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    is_fed: Callable[[int, av.Packet], bool],
) -> Iterator[av.VideoFrame]:
    """The pictures of the packets for which `is_fed`(number, packet), from the container's position on."""
    decoder: av.CodecContext = stream.codec_context
    if decoder.name in _ALPHA and {k.lower(): v for k, v in stream.metadata.items()}.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(_ALPHA[decoder.name], "r")
        decoder.thread_count = 1
    number = -1
    for packet in container.demux(stream):
        if packet.size:
            number += 1
            if is_fed(number, packet):
                yield from decoder.decode(packet)  # type: ignore[attr-defined]
    yield from decoder.decode(None)  # type: ignore[attr-defined]


class Clock(NamedTuple):
    """When the frames of a file are shown, in units of the stream's time base.

    Attributes:
        length: number of frames.
        times: int64 [length], ascending; None where frames can only be counted.
        keys: int64 [k], times of the key frames, where decoding can begin.
        coded: number of frames in the file, with those that are not shown.
        hidden: of these, frames that an edit list hides.
        skipped: packets before the first whole picture, which are not decoded.
        leading: times of pictures that come before it, and need others that are not there.
        notes: what is unusual.
    """

    length: int
    times: np.ndarray | None
    keys: np.ndarray
    coded: int
    hidden: int = 0
    skipped: int = 0
    leading: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def regular(self) -> bool:
        """Whether frames follow each other at one rate, up to rounding to whole ticks. True where times are unknown."""
        gaps = np.diff(self.times) if self.times is not None else np.zeros(0, np.int64)
        return not len(gaps) or int(np.ptp(gaps)) <= 1


class _Packet(NamedTuple):
    """The facts of a packet with a part of the video."""

    time: int | None
    decoding_time: int | None
    is_whole: bool  # decoding can begin with it
    is_shown: bool
    is_hidden: bool  # by an edit list
    is_reordered: bool
    is_packed: bool


def read_clock(file: File) -> Clock:
    """Reads times from packets without decoding; where these do not order the frames, decodes and counts. DAMAGE."""
    container, stream = open_video(file)
    with container:
        packets = _packets(container, stream)
        is_broadcast = container.format.name in ("mpeg", "mpegts")  # parts of it may begin at time 0 anew
        has_b_frames = bool(stream.codec_context.has_b_frames) or any(p.is_reordered for p in packets)
    skipped = next((k for k, packet in enumerate(packets) if packet.is_whole), 0)
    before, rest = packets[:skipped], packets[skipped:]
    shown = [packet.time for packet in rest if packet.is_shown]
    times = [time for time in shown if time is not None]
    decoding = [packet.decoding_time for packet in packets if packet.decoding_time is not None]
    is_anew = is_broadcast and decoding != sorted(decoding)
    # AVI does not record the order of display: its reader then gives the order of decoding as times.
    in_decoding_order = has_b_frames and times == sorted(times)
    clock = Clock(0, None, np.array([], np.int64), len(packets), sum(p.is_hidden for p in packets), skipped)
    lost_before = sum(packet.is_shown for packet in before)
    if in_decoding_order or len(set(times)) < len(shown) or is_anew or _are_packed(rest):
        container, stream = open_video(file)
        with container:
            length = sum(1 for _ in _decoded(container, stream, lambda number, _: number >= skipped))
        notes = ["its times do not order its frames, which are counted as they are decoded"]
        return clock._replace(length=length, notes=(*_beginning(lost_before), *notes))
    start = rest[0].time if rest and rest[0].is_whole else None
    leading = frozenset(time for time in times if start is not None and time < start and skipped)
    if start is not None and not skipped and min(times, default=start) < start:
        leading = frozenset(time for time in times if time < start) - _shown_before(file, start)
    times = sorted(set(times) - leading)
    keys = sorted(packet.time for packet in rest if packet.is_whole and packet.time is not None)
    _check_keys(np.array(times), np.array(keys), 3 * has_b_frames)
    return clock._replace(
        length=len(times),
        times=np.array(times, np.int64),
        keys=np.array(keys, np.int64),
        leading=leading,
        notes=_beginning(lost_before + len(leading)),
    )


def _check_keys(times: np.ndarray, keys: np.ndarray, slack: int) -> None:
    """Raises ValueError where one frame is missing when a key frame is due, and the next is none: it was the key frame.

    Decoders do not notice. times, keys: int64 [n], [k], of all frames and of key frames, ascending. slack: frames by
    which distances of key frames may differ, since B-frames come before them.
    """
    gaps = np.diff(times)
    step = int(np.median(gaps)) if len(gaps) else 0
    holes = np.flatnonzero(gaps > 1.5 * step)
    if not step or len(holes) > max(2, _MISSING * len(times)):  # a variable rate
        return
    between = Counter(np.rint(np.diff(keys) / step).astype(int).tolist())
    for k in holes.tolist():
        before, after = keys[keys <= times[k]], keys[keys > times[k]]
        if gaps[k] > 2.5 * step or not len(before) or times[k + 1] in after[:1]:
            continue
        missing = int(np.rint((times[k] - before[-1]) / step)) + 1  # frames from the last key frame to the missing one
        to_next = int(np.rint((after[0] - before[-1]) / step)) if len(after) else 0
        others = between - Counter([to_next])
        usual = others.most_common(1)[0][0] if others else to_next / 2
        if abs(missing - usual) <= slack or 2 * missing == to_next:
            raise ValueError(f"{_HOLE} {k + 1} frames")


def _beginning(frames: int) -> tuple[str, ...]:
    """The note that a video has lost its first frames."""
    return (lost(f"its first {counted(frames, 'frame')}, before the first whole picture"),) if frames else ()


def _are_packed(packets: list[_Packet]) -> bool:
    return any(packet.is_packed for packet in packets)


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> list[_Packet]:
    """The packets of the stream but the damaged ones at its end; others are left to the decoder.

    Raises ValueError where a picture is lost that others need.
    """
    codec, packets, intact = stream.codec_context.name, list[_Packet](), 0
    numbers = bitstream.FrameNumbers(stream.codec_context.extradata or b"") if codec == "h264" else None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        data, is_discarded = bytes(packet), packet.is_discard
        is_lost = numbers is not None and numbers.is_lost_before(data)
        if is_lost and any(p.is_whole for p in packets):
            raise ValueError(f"{_HOLE} {len(packets)} frames")
        packets.append(
            _Packet(
                packet.pts, packet.dts, bitstream.is_whole(codec, data, packet.is_keyframe),
                not is_discarded and bitstream.is_shown(codec, data), is_discarded,
                bitstream.is_reordered(codec, data), bitstream.is_packed(codec, data),
            )
        )  # fmt: skip
        intact = intact if packet.is_corrupt else len(packets)
    return packets[:intact]


def _shown_before(file: File, start: int) -> frozenset[int]:
    """Times of the pictures that a decoder shows before its first key frame, of time `start`."""
    container, stream = open_video(file)
    with container:
        stream.codec_context.options = {}  # pictures that need others which are not there are left out in silence
        pictures = itertools.takewhile(lambda p: p.pts is None or p.pts < start, container.decode(stream))
        return frozenset(p.pts for p in pictures if p.pts is not None and not p.is_corrupt)


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

    if key is not None or clock.leading:  # whose groups begin with pictures that need others, which are not there
        stream.codec_context.options = {}
    start, previous = clock.skipped if key is None else 0, None
    for count, picture in enumerate(_decoded(container, stream, lambda number, _: number >= start)):
        time = count if clock.times is None else picture.pts
        if time is None:
            continue
        if picture.is_corrupt and time not in clock.leading and (key is None or time >= key):
            raise ValueError(f"its picture of time {time} is damaged")
        if previous is not None and time <= previous:
            raise ValueError(f"shows a picture of time {time} after one of time {previous}")
        yield time, picture
        previous = time
