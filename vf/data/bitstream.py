"""What coded pictures say of themselves where containers do not: whether they are shown, whole, and in which order."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_VOP = re.compile(b"\0\0\1\xb6(.)", re.DOTALL)  # MPEG-4 (ISO 14496-2, 6.2.5): a picture begins, with its type
_INTRA = 0  # vop_coding_type


def is_shown(codec: str, packet: bytes) -> bool:
    """Whether a packet gives a picture. VP8 and VP9 have pictures that only serve others (RFC 6386, 9.1)."""
    if codec == "vp8":
        return bool(packet[0] >> 4 & 1)
    if codec == "vp9" and packet[-1] >> 5 != 0b110:  # else several pictures, of which one is shown
        first = packet[0]
        is_profile_3 = first >> 4 & 3 == 3  # whose header has one more bit
        shown_again, _, shown = (first >> bit - is_profile_3 & 1 for bit in (3, 2, 1))
        return bool(shown_again or shown)
    return True


def is_whole(codec: str, packet: bytes, is_key: bool) -> bool:
    """Whether decoding can begin with a packet, which a container's index says (`is_key`) and AVI's may get wrong."""
    types = picture_types(codec, packet)
    return types[0] == _INTRA if types else is_key


def is_packed(codec: str, packet: bytes) -> bool:
    """Whether a packet holds several pictures of MPEG-4, as DivX and Xvid pack them into AVI; its time is of none."""
    return len(picture_types(codec, packet)) > 1


def picture_types(codec: str, packet: bytes) -> Sequence[int]:
    """Types of the pictures in a packet of MPEG-4: 0 intra, 1 predicted, 2 bidirectional, 3 sprite; none for others."""
    return [found[1][0] >> 6 for found in _VOP.finditer(packet)] if codec == "mpeg4" else []


class FrameNumbers:
    """Follows the numbers of H.264's pictures (ITU-T H.264, 7.4.3): they show where one that others need is lost.

    Args:
        extradata: of the container, `avcC` of MP4 and Matroska; empty where streams carry all themselves.
    """

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = (extradata[4] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) > 6 else 0
        self._parameters: _Parameters | None = None
        self._last: int | None = None  # of the last picture that others may need
        if self._length_bytes:
            size = int.from_bytes(extradata[6:8], "big")
            self._read_parameters(extradata[8 : 8 + size])

    def is_lost_before(self, packet: bytes) -> bool:
        """Whether a picture is lost between the last packet and this one, which others need."""
        for unit in self._units(packet):
            kind, is_needed = unit[0] & 31, bool(unit[0] >> 5 & 3)
            if kind == 7:
                self._read_parameters(unit)
            elif kind in (1, 5) and self._parameters:
                number = self._number(unit, self._parameters)
                follows = (None, number, (number - 1) % self._parameters.numbers)
                is_lost = kind == 1 and self._last not in follows and not self._parameters.has_gaps
                self._last = number if is_needed or kind == 5 else self._last
                return is_lost
        return False

    def _units(self, packet: bytes) -> Iterator[bytes]:
        """The network abstraction layer units of a packet that are not empty, up to the first of a picture."""
        start = 0
        if not self._length_bytes:
            for found in _UNIT.finditer(packet):
                yield packet[found.end() - 1 : found.end() + 200]
            return
        while start + self._length_bytes < len(packet):
            begin = start + self._length_bytes
            size = int.from_bytes(packet[start:begin], "big")
            if size:
                yield packet[begin : begin + min(size, 200)]
            start = begin + size

    def _read_parameters(self, unit: bytes) -> None:
        try:
            self._parameters = _parameters(unit)
        except IndexError:  # cut off
            self._parameters = None

    @staticmethod
    def _number(unit: bytes, parameters: "_Parameters") -> int:
        bits = _Bits(unit[1:12])
        bits.skip_golomb(3)  # first macroblock, type, parameter set
        bits.take(2 * parameters.has_planes)
        return bits.take(parameters.numbers.bit_length() - 1)


class _Parameters(NamedTuple):
    """What a sequence parameter set of H.264 says of its pictures' numbers."""

    numbers: int  # they count up modulo this
    has_planes: bool  # colours that are coded apart
    has_gaps: bool  # numbers may be left out


_UNIT = re.compile(b"\0\0\1(.)", re.DOTALL)
_HIGH = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # profiles with a format of colours


class _Bits:
    """Reads bits, and whole numbers in the codes of Golomb, from a unit of H.264. IndexError beyond its end."""

    def __init__(self, data: bytes) -> None:
        data = data.replace(b"\0\0\3", b"\0\0")  # that keeps starts of units apart
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, count: int) -> int:
        """The next bits as a number; 0 for none."""
        if self._at + count > len(self._bits):
            raise IndexError
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def golomb(self) -> int:
        """The next number that is not negative."""
        zeros = self._bits.index("1", self._at) - self._at if "1" in self._bits[self._at :] else len(self._bits)
        self.take(zeros)
        return self.take(zeros + 1) - 1

    def skip_golomb(self, count: int) -> None:
        """Passes over numbers, with or without a sign."""
        for _ in range(count):
            self.golomb()


def _parameters(unit: bytes) -> _Parameters:
    """Reads a sequence parameter set (7.3.2.1.1). Raises IndexError where it is cut off."""
    bits, has_planes = _Bits(unit[1:]), False
    profile = bits.take(8)
    bits.take(16)
    bits.skip_golomb(1)
    if profile in _HIGH:
        colours = bits.golomb()
        has_planes = colours == 3 and bool(bits.take(1))
        bits.skip_golomb(2)
        bits.take(1)
        if bits.take(1):
            for k in range(12 if colours == 3 else 8):
                if bits.take(1):
                    _skip_scaling(bits, 16 if k < 6 else 64)
    numbers = 1 << bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.skip_golomb(1)
    elif order == 1:
        bits.take(1)
        bits.skip_golomb(2)
        bits.skip_golomb(bits.golomb())
    bits.skip_golomb(1)
    return _Parameters(numbers, has_planes, bool(bits.take(1)))


def _skip_scaling(bits: _Bits, count: int) -> None:
    """Passes over a scaling list (7.3.2.1.1.1), which ends where its scale becomes 0."""
    last = 8
    for _ in range(count):
        code = bits.golomb()
        last = (last + (code // 2 + 1 if code % 2 else -(code // 2))) % 256
        if not last:
            return
