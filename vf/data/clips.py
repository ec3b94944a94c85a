"""Index arithmetic: which frames of a video make a clip, and which square of the picture. No pixels are read here.

Frame k of a clip that starts at `start` is the video's frame start + offsets(frames, step)[k], where `step` source
frames (a whole number, the stride, or a ratio of rates, see `step_for`) lie between neighbours. A clip spans
1 + offsets[-1] source frames, and a video of `length` frames has length - span + 1 places where it can start.
"""

import dataclasses
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

Step = int | Fraction
Start = Literal["random", "centre", "first", "all", "blocks"]
STARTS: tuple[Start, ...] = get_args(Start)


@lru_cache(maxsize=256)  # the same few for every clip
def offsets(frames: int, step: Step) -> np.ndarray:
    """Source frames from the first frame of a clip to frame k: k * step, rounded with halves up; int64 [frames].

    The array is read-only. A step below 1 repeats frames. Raises ValueError for frames < 1 or step <= 0.
    """
    if frames < 1 or step <= 0:
        raise ValueError(f"a clip needs frames >= 1 and a stride or step above 0, not {frames} and {step}")
    top, bottom = Fraction(step).as_integer_ratio()
    rounded = (2 * top * np.arange(frames) + bottom) // (2 * bottom)
    rounded.flags.writeable = False
    return rounded


def step_for(source_fps: float, fps: float) -> Fraction:
    """Source frames per frame of a clip that is to play at `fps`; both rates in frames per second.

    Exact for rates such as 30000 / 1001. Raises ValueError where a rate is not positive (0 stands for unknown).
    """
    if not (source_fps > 0 and fps > 0):
        raise ValueError(f"a clip at {fps:g} frames per second needs a video of known rate, not {source_fps:g}")
    source, target = (Fraction(rate).limit_denominator(1001) for rate in (source_fps, fps))
    return source / target


def span(frames: int, step: Step) -> int:
    """Source frames from the clip's first to its last, counting both. Raises ValueError as `offsets`."""
    return int(offsets(frames, step)[-1]) + 1


def num_starts(length: int, frames: int, step: Step) -> int:
    """Number of starts 0, 1, ... that keep the clip inside a video of `length` frames; 0 where that is too short."""
    return max(0, length - span(frames, step) + 1)


def window(length: int, frames: int, step: Step, start: int) -> np.ndarray:
    """Source frame numbers, int64 [frames]. Raises ValueError where the clip would leave 0 ... length - 1."""
    starts = num_starts(length, frames, step)
    if not 0 <= start < starts:
        raise ValueError(
            f"{frames} frames with stride {step} from frame {start} do not fit into {length} frames "
            f"({starts} starts do)"
        )
    return start + offsets(frames, step)


def centre_start(length: int, frames: int, step: Step) -> int:
    """Start of the middle clip, the earlier of two. Raises ValueError where the video is too short."""
    return (_some_starts(length, frames, step) - 1) // 2


def random_start(rng: np.random.Generator, length: int, frames: int, step: Step) -> int:
    """A start drawn uniformly from all, the last one included. Raises ValueError where the video is too short."""
    return int(rng.integers(_some_starts(length, frames, step)))


def _some_starts(length: int, frames: int, step: Step) -> int:
    starts = num_starts(length, frames, step)
    if not starts:
        raise ValueError(
            f"{frames} frames with stride {step} need a video of {span(frames, step)} frames, but it has {length}"
        )
    return starts


@dataclasses.dataclass(frozen=True)
class Windows:
    """How clips are cut from videos.

    Attributes:
        frames: frames per clip.
        stride: source frames from one frame of the clip to the next; unused where `fps` is set.
        fps: frames per second of the clip, whatever the videos' own rates are; 0 = by stride.
        start: `random` (one record a video, a new window each time), `centre` or `first` (one record a video, its
            middle or first window), `all` (one record a window, `hop` source frames apart) or `blocks` (the video is
            cut into blocks of frames x stride source frames, each giving `stride` interleaved clips; by stride only).
        hop: see `start`.

    Raises:
        ValueError: an unknown start, or a number out of range.
    """

    frames: int
    stride: int = 1
    fps: float = 0.0
    start: Start = "random"
    hop: int = 1

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"windows start at one of {', '.join(STARTS)}, not {self.start!r}")
        if self.fps < 0 or self.hop < 1:
            raise ValueError(f"fps must be at least 0 and hop at least 1, not {self.fps} and {self.hop}")
        if self.fps and self.start == "blocks":
            raise ValueError(f"blocks go by stride, so that fps must be 0, not {self.fps}")
        span(self.frames, self.stride)

    def step(self, source_fps: float) -> Step:
        """Source frames from one frame of a clip to the next. Raises ValueError where a rate is needed and unknown."""
        return step_for(source_fps, self.fps) if self.fps else self.stride

    def rate(self, source_fps: float) -> float:
        """Frames per second at which a clip of a video of `source_fps` plays as fast as the video; 0 where unknown."""
        return self.fps or source_fps / self.stride

    def need(self, source_fps: float) -> int:
        """Frames of the shortest video that holds a clip."""
        if self.start == "blocks":
            return self.frames * self.stride
        return span(self.frames, self.step(source_fps))

    def records(self, length: int, source_fps: float) -> int:
        """Number of records that a video of `length` frames gives; 0 where it is too short."""
        if self.start == "blocks":
            return length // (self.frames * self.stride) * self.stride
        starts = num_starts(length, self.frames, self.step(source_fps))
        return -(-starts // self.hop) if self.start == "all" else min(starts, 1)

    def indices(self, length: int, source_fps: float, record: int, rng: np.random.Generator | None) -> np.ndarray:
        """Source frame numbers, int64 [frames], of the video's record `record`; `rng` None takes the middle window.

        Raises ValueError where the video is too short.
        """
        shape = (length, self.frames, self.step(source_fps))
        if self.start == "all":
            start = record * self.hop
        elif self.start == "blocks":
            block, phase = divmod(record, self.stride)
            start = block * self.frames * self.stride + phase
        elif self.start == "first":
            start = 0
        elif self.start == "centre" or rng is None:
            start = centre_start(*shape)
        else:
            start = random_start(rng, *shape)
        return window(*shape, start)


def centre_crop_box(height: int, width: int, aspect: Fraction = Fraction(1)) -> tuple[int, int, int, int]:
    """Largest centred square as (left, top, right, bottom) in pixels, right and bottom exclusive.

    `aspect` is width by height of one pixel: where it is not 1, the box is a square as it is shown.
    """
    side = min(Fraction(height), width * aspect)
    columns, rows = max(1, round(side / aspect)), max(1, round(side))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows
