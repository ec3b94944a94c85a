"""Opens video files by PyAV: their containers, headers and packets."""

import io
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition

_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that read the alpha channel beside the pictures of WebM

_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # the beginning of Matroska and WebM; the id before their length
_HEAD = 4096  # bytes in which the latter lies

File = Path | bytes
"""A video: its path, or its content (the member of an archive)."""

av.logging.set_level(None)  # FFmpeg's messages about a broken file are in the exceptions too


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
            picture = next(decoded(container, stream, is_fed), None)
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


def count_coded(file: File) -> int:
    """Number of frames in the file, with those that the edit list of an MP4 hides."""
    container, stream = open_video(file, {"ignore_editlist": "1"})
    with container:
        return sum(1 for p in container.demux(stream) if p.size and not p.is_corrupt)


def is_cut_off(file: File) -> bool | None:
    """Whether an AVI, Matroska or WebM is shorter than its header says. None where headers give no length."""
    if isinstance(file, bytes):
        head, size = file[:_HEAD], len(file)
    else:
        with file.open("rb") as content:
            head, size = content.read(_HEAD), file.stat().st_size
    if head[:4] == _EBML and (at := head.find(_SEGMENT) + len(_SEGMENT)) >= len(_SEGMENT) and at < len(head) - 8:
        width = 9 - head[at].bit_length()  # of the length, whose first byte says so by its leading zeros
        unknown = (1 << 7 * width) - 1
        length = int.from_bytes(head[at : at + width], "big") & unknown
        return None if length == unknown else at + width + length > size
    if head[:4] != b"RIFF" or head[8:12] != b"AVI ":
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
        if source.encode("utf-8", "replace") != os.fsencode(file):
            source = file.open("rb")  # PyAV hands names to FFmpeg as UTF-8, which this one is not
    container = av.open(source, "r", container_options=options)
    stream = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
    if stream is None:  # the cover of an album is no video
        container.close()
        raise ValueError("has no video stream")
    if stream.codec_context is None:
        container.close()
        raise ValueError("is coded in a way that is not known")
    stream.codec_context.thread_count = 1
    return container, stream


def decoded(
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
