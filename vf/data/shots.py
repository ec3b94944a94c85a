"""Cuts a long video into shots, of which each becomes a clip, so that no window of frames runs across a cut.

Every picture is measured while it is decoded (`Meter`), at 64 x 64 pixels in RGB:

- its *difference*, the mean of |x_k - x_{k-1}| in per cent of the range of pixels;
- its *score* as the first of a shot, as FFmpeg's filter `scdet` has it: min(d_k, |d_k - d_{k-1}|) of the differences d,
  which is high where a picture differs from the last by another amount than that one did from its own;
- whether it is black, as FFmpeg's `blackdetect` has it: 98 % of its pixels are below 10 % of the range.

`find_shots` then begins a shot at every picture whose score exceeds `Rules.cut_score`, and at the borders of black and
of frozen pictures. FFmpeg's score was chosen by precision and recall (`benchmarks/shots.py`, RESULTS.md). It finds
cuts; a shot that dissolves into the next stays one with it.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.filter import Graph

from vf.data.share import position
from vf.types import counted

SIZE = 64  # of the picture that is measured: of smaller ones, motion of small things has the score of a cut
BLACK_LEVEL, BLACK_SHARE = 0.1 * 255, 0.98
FROZEN, FROZEN_SECONDS = 0.01, 1.0  # a picture that stands still: differences in per cent, and for how long
UNKNOWN_RATE = 24.0  # frames per second, where the video's rate is not known
LISTED = 30  # shots of a video that are left out, on the terminal


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a video is cut into shots, and what becomes of them.

    Attributes:
        cut_score: a picture of a higher score begins a shot; 0 to 100.
        min_motion: shots whose neighbouring pictures differ by less, on average, are left out; per cent of the range.
        val_share: share of the shots that are the split `val`, in [0, 1).
        test_share: share of the shots that are the split `test`, likewise.
    """

    cut_score: float = 8.0
    min_motion: float = 0.05
    val_share: float = 0.1
    test_share: float = 0.1

    def split(self, name: str) -> str:
        """The split of the shot `name`: by the hash of its name alone, whatever other shots and videos there are."""
        place = position(name)
        return "val" if place < self.val_share else "test" if place < self.val_share + self.test_share else "train"


class Shot(NamedTuple):
    """Neighbouring frames of a video that belong together.

    Attributes:
        first: number of its first frame.
        frames: number of its frames.
        start: when it begins, in seconds from the beginning of the video.
        end: when the next one begins.
        left_out: why it is not used; "" for a shot that is.
    """

    first: int
    frames: int
    start: float
    end: float
    left_out: str = ""


def shot_name(video: str, first: int) -> str:
    """Name of the clip that a shot becomes; it does not depend on other shots, nor on where this one ends."""
    return f"{video}#{first}"


class Meter:
    """Measures the pictures of a video one after another; no more than one is kept.

    Attributes:
        difference: of each picture from the one before it, in per cent; 100 where there is none of the same size.
        black: whether each is black.
        time: when each is shown, in seconds; None where the file does not say.
    """

    def __init__(self) -> None:
        self.difference: list[float] = []
        self.black: list[bool] = []
        self.time: list[float | None] = []
        self._graph: Graph | None = None
        self._key: tuple = ()
        self._before: np.ndarray | None = None
        self._unit: Fraction | None = None

    def add(self, picture: av.VideoFrame) -> None:
        """Measures the next picture. Raises DAMAGE where it cannot be converted."""
        key = (picture.width, picture.height, picture.format.name)
        if key[:2] != self._key[:2]:
            self._before = None
        if key != self._key or self._graph is None:
            self._graph, self._key = _small_pictures(picture), key
        self._graph.vpush(picture)
        planes = self._graph.vpull().planes
        rows = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in planes)  # type: ignore[call-overload]
        pixels = np.stack([plane[:SIZE, :SIZE] for plane in rows]).astype(np.int16)
        change = 100.0 if self._before is None else float(np.abs(pixels - self._before).mean()) / 2.56
        dark = pixels.max(0) < BLACK_LEVEL
        self._before = pixels
        # The last pictures that a decoder gives may lack the unit of time that all others have.
        self._unit = picture.time_base or self._unit
        time = None if picture.pts is None or not self._unit else float(picture.pts * self._unit)
        self._append(change, bool(dark.mean() >= BLACK_SHARE), time)

    def repeat(self) -> None:
        """The last picture is shown for one more frame."""
        self._append(0.0, self.black[-1], None)

    def _append(self, difference: float, black: bool, time: float | None) -> None:
        self.difference.append(difference)
        self.black.append(black)
        self.time.append(time)

    @property
    def score(self) -> np.ndarray:
        """Of each picture as the first of a shot, f64 [n]."""
        differences = np.array(self.difference)
        return np.minimum(differences, np.abs(np.diff(differences, prepend=0.0)))


def _small_pictures(picture: av.VideoFrame) -> Graph:
    """Scales pictures like this one to SIZE x SIZE, in planes."""
    graph = Graph()
    graph.threads = 1  # as for `Pixels`
    stages = [
        graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 25))
    ]
    if any(part.is_alpha for part in picture.format.components):  # on black, as the pixels are
        stages += [graph.add("format", "gbrap"), graph.add("premultiply", "inplace=1")]
    stages += [
        graph.add("scale", f"{SIZE}:{SIZE}:flags=area+accurate_rnd+bitexact"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ]
    for one, other in itertools.pairwise(stages):
        one.link_to(other)
    graph.configure()
    return graph


def find_shots(meter: Meter, fps: float, rules: Rules, min_frames: int) -> list[Shot]:
    """All frames of a measured video as shots, in order, those that are left out among them.

    Args:
        meter: has measured every frame of the video.
        fps: frames per second; 0 where unknown.
        rules: what a shot is.
        min_frames: shorter shots are left out.
    """
    count, difference = len(meter.difference), np.array(meter.difference)
    black = np.array(meter.black)
    frozen = _frozen(difference, max(2, round(FROZEN_SECONDS * (fps or UNKNOWN_RATE)))) & ~black
    kind = black + 2 * frozen
    begins = meter.score > rules.cut_score
    begins[0] = True
    begins[1:] |= kind[1:] != kind[:-1]
    firsts = np.flatnonzero(begins).tolist()
    shots = []
    for first, end in itertools.pairwise([*firsts, count]):
        length, motion = end - first, float(np.mean(difference[first + 1 : end])) if end > first + 1 else 0.0
        if black[first]:
            why = "black"
        elif frozen[first]:
            why = "frozen"
        elif length < min_frames:
            why = f"has {counted(length, 'frame')}, fewer than {min_frames}"
        elif motion < rules.min_motion:
            why = f"without motion: neighbouring frames differ by {motion:.3f} %, less than {rules.min_motion:g} %"
        else:
            why = ""
        shots.append(Shot(first, length, _seconds(meter, first, fps), _seconds(meter, end, fps), why))
    return shots


def _frozen(difference: np.ndarray, least: int) -> np.ndarray:
    """Which frames belong to a run of at least `least` equal ones, bool [n]."""
    frozen = np.zeros(len(difference), bool)
    same = np.concatenate([[False], difference[1:] < FROZEN, [False]]).astype(int)  # as the frame before
    starts, ends = (np.flatnonzero(np.diff(same) == step) for step in (1, -1))
    for start, end in zip(starts, ends, strict=True):  # frames start ... end are equal
        if end - start + 1 >= least:
            frozen[start : end + 1] = True
    return frozen


def _seconds(meter: Meter, frame: int, fps: float) -> float:
    """When a frame is shown, from the beginning of the video: as the file says, from the last frame on by its rate."""
    k = min(frame, len(meter.time) - 1)
    while k and meter.time[k] is None:
        k -= 1
    first, last = meter.time[0], meter.time[k]
    begin = 0.0 if first is None or last is None else last - first
    return round(begin + (frame - k) / (fps or UNKNOWN_RATE), 3)


def clock_time(seconds: float) -> str:
    """A time for people, such as `1:02:03.45`, or `2:03.45` below an hour."""
    minutes, rest = divmod(round(100 * seconds), 6000)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{head}:{rest / 100:05.2f}"


def describe(shots: Mapping[str, Any]) -> list[str]:
    """The part `shots` of a manifest, for the terminal: of each video how much is used, and what is left out."""
    lines = []
    for video, facts in shots.items():
        used = [shot for shot in facts["shots"] if "split" in shot]
        left_out = [shot for shot in facts["shots"] if "left_out" in shot]
        seconds = sum(shot["end"] - shot["start"] for shot in used)
        whole = clock_time(facts["shots"][-1]["end"])
        lines.append(f"{video}: {counted(len(used), 'shot')}, {clock_time(seconds)} of {whole}")
        if left_out:
            lines[-1] += f"; {len(left_out):,} left out:"
        lines += [
            f"  {clock_time(shot['start'])} to {clock_time(shot['end'])}: {shot['left_out']}"
            for shot in left_out[:LISTED]
        ]
        lines += [f"  ... and {len(left_out) - LISTED:,} more: see 'shots' in the manifest"] * (len(left_out) > LISTED)
    return lines
