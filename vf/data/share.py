"""Chooses a share of the videos by the hash of their names, as the validation set of data without a list of one.

u(name) = (first 64 bits of sha256 of the name in UTF-8) / 2^64 is uniform in [0, 1); the videos with u(name) < share
are the validation set. So the choice is the same on every host and in every run, a video stays in its part when others
are added or removed, and a larger share contains all of a smaller one.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vf.types import UserError, counted


@dataclasses.dataclass(frozen=True)
class Share:
    """One of the two parts into which a share divides the videos.

    Attributes:
        share: share of the videos that are the validation set, in (0, 1).
        validation: whether this part is the validation set, or all other videos.
    """

    share: float
    validation: bool

    def select(self, names: Sequence[str]) -> np.ndarray:
        """Which of the videos belong to this part, bool [n]. Raises UserError where none does."""
        places = np.array([position(name) for name in names])
        selected = (places < self.share) == self.validation
        if not selected.any():
            part = "the validation set" if self.validation else "training"
            raise UserError(
                f"a share of {self.share:g} of {counted(len(names), 'video')}, chosen by the hash of their names, "
                f"leaves none to {part}: {_advice(places, self.validation)}",
                "share",
            )
        return selected

    def describe(self) -> dict[str, Any]:
        """Share and part, ready for JSON."""
        return {"validation_share": self.share, "part": "validation" if self.validation else "training"}


def position(name: str) -> float:
    """u(name), in [0, 1)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _advice(places: np.ndarray, validation: bool) -> str:
    """The share that gives one video to the part that is empty, and all others to the other part."""
    if len(places) < 2:
        return "bring more videos, or take a share of 0 to train on all"
    low, high = np.sort(places)[:2] if validation else np.sort(places)[-2:]
    digits = next(d for d in range(1, 18) if math.floor(low * 10**d + 1) / 10**d <= high)
    return f"take a share of {math.floor(low * 10**digits + 1) / 10**digits:.{digits}f} for one"
