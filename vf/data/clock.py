"""When the frames of a video are shown, read from its packets; what is lost of them, which decoders do not tell."""

import itertools
from collections import Counter
from typing import NamedTuple

import av
import numpy as np

from vf.data import bitstream
from vf.data.containers import File, decoded, open_video
from vf.data.notes import lost
from vf.types import counted

# Codecs whose every packet gives a picture: where one does not, it is damaged. Others may leave a frame out, which then
# shows the picture before.
_ALWAYS_CODED = ("h264", "hevc", "mpeg1video", "mpeg2video")
_HOLE = "has lost a picture that others need, after"
_MISSING = 0.01  # share of frames that may be missing, of a video at one rate


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
        early: number of pictures before it that a decoder shows nevertheless, where frames can only be counted.
        is_always_coded: whether every packet that is shown gives a picture; else a frame may be left out.
        notes: what is unusual.
    """

    length: int
    times: np.ndarray | None
    keys: np.ndarray
    coded: int
    hidden: int = 0
    skipped: int = 0
    leading: frozenset[int] = frozenset()
    early: int = 0
    is_always_coded: bool = False
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
    is_packed: bool


def read_clock(file: File) -> Clock:
    """Reads times from packets without decoding; where these do not order the frames, decodes and counts. DAMAGE."""
    container, stream = open_video(file)
    with container:
        packets = _packets(container, stream)
        is_broadcast = container.format.name in ("mpeg", "mpegts")  # parts of it may begin at time 0 anew
        has_b_frames = bool(stream.codec_context.has_b_frames)
        is_numbered = stream.codec_context.name == "h264"  # whose numbers tell what is lost (`_packets`)
        is_always_coded = stream.codec_context.name in _ALWAYS_CODED
    skipped = next((k for k, packet in enumerate(packets) if packet.is_whole), 0)
    before, rest = packets[:skipped], packets[skipped:]
    shown = [packet.time for packet in rest if packet.is_shown]
    times = [time for time in shown if time is not None]
    decoding = [packet.decoding_time for packet in packets if packet.decoding_time is not None]
    is_packed = any(packet.is_packed for packet in rest)
    is_anew = is_broadcast and decoding != sorted(decoding)
    # AVI does not record the order of display: its reader then gives the order of decoding as times.
    in_decoding_order = has_b_frames and times == sorted(times)
    hidden, none = sum(p.is_hidden for p in packets), np.array([], np.int64)
    clock = Clock(0, None, none, len(packets), hidden, skipped, is_always_coded=is_always_coded)
    lost_before = sum(packet.is_shown for packet in before)
    keys = np.array(sorted(packet.time for packet in rest if packet.is_whole and packet.time is not None), np.int64)
    if not is_anew and not is_numbered:
        _check_keys(np.array(sorted(set(times)), np.int64), keys, 3 * has_b_frames)
    if in_decoding_order or len(set(times)) < len(shown) or is_anew or is_packed:
        container, stream = open_video(file)
        with container:
            pictures = decoded(container, stream, lambda number, _: number >= skipped)
            is_key = [picture.key_frame for picture in pictures]
        early = is_key.index(True) if True in is_key else 0
        left_out = len(shown) - len(is_key) if in_decoding_order and clock.is_always_coded else 0
        notes = ["its times do not order its frames, which are counted as they are decoded"]
        return clock._replace(
            length=len(is_key) - early, early=early, notes=(*_beginning(lost_before + left_out + early), *notes)
        )
    start = rest[0].time if rest and rest[0].is_whole else None
    leading = frozenset(time for time in times if start is not None and time < start and skipped)
    if start is not None and not skipped and min(times, default=start) < start:
        leading = frozenset(time for time in times if time < start) - _shown_before(file, start)
    times = sorted(set(times) - leading)
    return clock._replace(
        length=len(times),
        times=np.array(times, np.int64),
        keys=keys,
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
        has_come = len(after) and to_next < 1.5 * usual
        if usual and not has_come and (abs(missing - usual) <= slack or 2 * missing == to_next):
            raise ValueError(f"{_HOLE} {k + 1} frames")


def _beginning(frames: int) -> tuple[str, ...]:
    """The note that a video has lost its first frames."""
    return (lost(f"its first {counted(frames, 'frame')}, before the first whole picture"),) if frames else ()


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
                bitstream.is_packed(codec, data),
            )
        )  # fmt: skip
        intact = intact if packet.is_corrupt else len(packets)
    return packets[:intact]


def _shown_before(file: File, start: int) -> frozenset[int]:
    """Times of the pictures that a decoder shows before its first key frame, of time `start`."""
    container, stream = open_video(file)
    with container:
        pictures = itertools.takewhile(lambda p: p.pts is None or p.pts < start, container.decode(stream))
        return frozenset(p.pts for p in pictures if p.pts is not None and not p.is_corrupt)
