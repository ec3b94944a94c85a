"""Scores and their protocols: a number is never written without its protocol and the hash of that.

A protocol specifies which clips are compared and how the number is computed. Two numbers can be compared only where the
hashes of their protocols are equal: published scores of one data set differ by factors of 2 to 5 through the choice of
split, clips, counts and resampling alone.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import jax
import numpy as np

from vf.data.clips import Start


@dataclasses.dataclass(frozen=True)
class Score:
    """One number with its protocol.

    Attributes:
        name: name of the metric.
        value: the number.
        reference: the score of real clips under the same protocol, the best that can be expected; None where there is
            none.
        protocol: everything that changes the number, ready for JSON; not empty.
        details: uncertainty and warnings (`low`, `high`, `std`, `reference_n`, ...), not a part of the protocol.
    """

    name: str
    value: float
    reference: float | None
    protocol: Mapping[str, Any]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.protocol:
            raise ValueError(f"the score {self.name} needs its protocol: name what changes the number")


class Scorer(Protocol):
    """Scores generated clips against real ones, both uint8 [n f h w 3] of one frame shape; n may differ."""

    def __call__(self, real: np.ndarray, generated: np.ndarray) -> list[Score]:
        """One or more scores. Raises ValueError where a set is too small, or has an unsuitable shape."""
        ...


def to_json(value: Any) -> Any:
    """`value` in JSON's types: arrays become lists, NaN and infinities strings, objects their names."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(value, np.float32 if value.dtype.name == "bfloat16" else None).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bool | int | str | None):
        return value
    return str(getattr(value, "__name__", value))  # A repr may hold an address, which differs from run to run.


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """First 8 hex digits of the SHA-256 of the protocol as JSON with sorted keys."""
    text = json.dumps(to_json(protocol), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class ClipProtocol:
    """Which clips are compared, and how their pixels are made.

    Attributes:
        lineage: lineage of FVD, a key of `vf.metrics.fvd.LINEAGES`; it determines resize, eps, ddof, dtype and root.
        split: split of the real videos, several as `train+test`; "" takes all there are.
        windows: which windows of a real video (`vf.data.clips.Windows`).
        generated_windows: which windows of a generated video.
        frames, stride, fps: frames of a clip, and their distance in source frames, or their rate; `fps` 0 uses stride.
        hop: source frames from one window to the next, for windows `all`.
        n_real, n_generated: numbers of clips; 0 takes all. With `fewer_real` a smaller real set is used completely.
        subset: which n of more clips: at random by `seed`, or the first by name.
        trials: number of draws of `n_real` and `n_generated` clips, whose mean is reported. Each set is then up to
            `trials` times as large, if there are so many clips.
        size: side in pixels; 0 leaves pictures unchanged.
        crop: the part of a picture that is resized to `size`; always the largest centred square.
        resampler: how it is resized: `swscale` (FFmpeg, bicubic, antialiased) or `antialiased` (Pillow's bilinear).
        quantisation: dtype of pixels before the network.
        encoding: encoding of the real clips on disk; "" where it is not specified.
        seed: seed of subsets, random windows and trials.
        unknown: what the source of the protocol does not specify; not a part of the hash.
    """

    lineage: str = "styleganv"
    split: str = ""
    windows: Start = "centre"
    generated_windows: Start = "first"
    frames: int = 16
    stride: int = 1
    fps: float = 0.0
    hop: int = 1
    n_real: int = 0
    fewer_real: bool = False
    n_generated: int = 0
    subset: Literal["random", "first"] = "random"
    trials: int = 1
    size: int = 0
    crop: str = "centre square"
    resampler: Literal["swscale", "antialiased"] = "swscale"
    quantisation: str = "uint8"
    encoding: str = ""
    seed: int = 0
    unknown: str = ""

    def facts(self) -> dict[str, Any]:
        """Everything that changes a number, ready for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "unknown"}


_STYLEGANV = ClipProtocol(
    lineage="styleganv",
    windows="random",
    n_real=2048,
    fewer_real=True,
    n_generated=2048,
    subset="first",
    size=256,
    encoding="jpeg",
    unknown="in the public code the random window of each real clip is unseeded; frames are JPEG of quality 75 or 95; "
    "the resize inside its network is not public",
)
_DIGAN = ClipProtocol(
    lineage="videogpt",
    split="test",
    windows="blocks",
    n_real=2048,
    n_generated=2048,
    trials=10,
    size=128,
    seed=42,
    unknown="the public code draws new samples for each trial; here trials are drawn from the clips given",
)
_TATS = ClipProtocol(
    lineage="tats",
    split="train",
    windows="all",
    n_real=2048,
    n_generated=2048,
    size=128,
    unknown="the order in which the public code draws windows",
)
_STYLEGANV_SPLITS = {"ucf101": "train+test", "sky": "train", "ffs": "train", "taichi": "train"}
PROTOCOLS: dict[str, ClipProtocol] = {
    # Lineages alone, which specify how a number is computed, but not from which clips.
    "google": ClipProtocol("google"),
    "styleganv": ClipProtocol("styleganv"),
    "tats": ClipProtocol("tats"),
    "videogpt": ClipProtocol("videogpt"),
    "cdfvd-i3d": ClipProtocol("cdfvd-i3d", windows="random", resampler="antialiased", seed=42),
    "junyaohu-styleganv": ClipProtocol("junyaohu-styleganv"),
    "junyaohu-videogpt": ClipProtocol("junyaohu-videogpt"),
    # Protocols of papers and their code, as far as these specify them.
    "tats_ucf101": _TATS,
    "digan_ucf101": replace(_DIGAN, split="train+test", windows="all"),
    "digan_sky": _DIGAN,
    "digan_taichi": replace(_DIGAN, stride=4),
    "videofusion_ucf101": replace(
        _TATS,
        size=64,
        unknown="split, counts, choice of clips, resampling and port of I3D: the paper gives none of them and no code "
        "is public; TATS's are taken, in whose tables it stands",
    ),
    "mocogan_hd_ucf101": ClipProtocol(
        lineage="google",
        split="train",
        windows="random",
        n_real=2048,
        n_generated=2048,
        trials=10,
        size=128,
        unknown="how real clips were chosen and resized",
    ),
    "videogpt_bair": ClipProtocol(
        lineage="videogpt", split="test", windows="first", n_real=256, n_generated=256, trials=4, size=64
    ),
    **{f"styleganv_{data}_16f": replace(_STYLEGANV, split=split) for data, split in _STYLEGANV_SPLITS.items()},
    **{
        f"styleganv_{data}_128f": replace(_STYLEGANV, split=split, frames=128)
        for data, split in _STYLEGANV_SPLITS.items()
    },
    **{
        f"styleganv_{data}_128f_subsample8f": replace(_STYLEGANV, split=split, stride=8)
        for data, split in _STYLEGANV_SPLITS.items()
    },
    **{
        f"latte_{data}": replace(
            _STYLEGANV,
            split=split,
            stride=3,
            unknown=f"{_STYLEGANV.unknown}; whether the paper's numbers have stride 3, the default of its code",
        )
        for data, split in _STYLEGANV_SPLITS.items()
    },
}
