"""What coded pictures say of themselves where containers do not: whether they are shown, whole, and in which order."""

import re
from collections.abc import Sequence

_VOP = re.compile(b"\0\0\1\xb6(.)", re.DOTALL)  # MPEG-4 (ISO 14496-2, 6.2.5): a picture begins, with its type
_INTRA, _BIDIRECTIONAL = 0, 2  # vop_coding_type


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


def is_reordered(codec: str, packet: bytes) -> bool:
    """Whether a packet holds a picture that is shown before one that is decoded earlier, as far as is known."""
    return _BIDIRECTIONAL in picture_types(codec, packet)


def is_packed(codec: str, packet: bytes) -> bool:
    """Whether a packet holds several pictures of MPEG-4, as DivX and Xvid pack them into AVI; its time is of none."""
    return len(picture_types(codec, packet)) > 1


def picture_types(codec: str, packet: bytes) -> Sequence[int]:
    """Types of the pictures in a packet of MPEG-4: 0 intra, 1 predicted, 2 bidirectional, 3 sprite; none for others."""
    return [found[1][0] >> 6 for found in _VOP.finditer(packet)] if codec == "mpeg4" else []
