"""Which frames make a clip, and which square of the picture: arithmetic on indices, without any pixels.

A clip is `frames` frames, `stride` source frames apart; it therefore spans (frames - 1) * stride + 1 source
frames, and a video of `length` frames has length - span + 1 places where it can start.
"""

import numpy as np


def span(frames: int, stride: int) -> int:
    """Source frames from the clip's first to its last, both counted; ValueError for arguments below 1."""
    if frames < 1 or stride < 1:
        raise ValueError(f"a clip needs frames >= 1 and stride >= 1, not {frames} and {stride}")
    return (frames - 1) * stride + 1


def num_starts(length: int, frames: int, stride: int) -> int:
    """How many starts 0, 1, ... keep the whole clip inside `length` frames; 0 where it is too short."""
    return max(0, length - span(frames, stride) + 1)


def window(length: int, frames: int, stride: int, start: int) -> np.ndarray:
    """Source frame numbers, int64 [frames]; ValueError where the clip would leave 0 ... length - 1."""
    starts = num_starts(length, frames, stride)
    if not 0 <= start < starts:
        raise ValueError(
            f"{frames} frames with stride {stride} from frame {start} do not fit into {length} frames "
            f"({starts} starts do)"
        )
    return start + stride * np.arange(frames)


def centre_start(length: int, frames: int, stride: int) -> int:
    """Start of the middle clip (the earlier of two); ValueError where the video is too short."""
    return (_some_starts(length, frames, stride) - 1) // 2


def random_start(rng: np.random.Generator, length: int, frames: int, stride: int) -> int:
    """Uniform over all starts, the last one included; ValueError where the video is too short."""
    return int(rng.integers(_some_starts(length, frames, stride)))


def centre_crop_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Largest centred square as (left, top, right, bottom) in pixels, right and bottom exclusive."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _some_starts(length: int, frames: int, stride: int) -> int:
    starts = num_starts(length, frames, stride)
    if not starts:
        raise ValueError(
            f"{frames} frames with stride {stride} need a video of {span(frames, stride)} frames, but it has {length}"
        )
    return starts
