"""What an evaluation says, and what evaluates: a number never travels without the protocol that made it."""

import dataclasses
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Score:
    """One number. `reference` is what real clips score under the same protocol: the best to be hoped for."""

    name: str
    value: float
    reference: float | None
    protocol: dict[str, Any]  # everything that changes the number, fit for JSON

    def __post_init__(self) -> None:
        if not self.protocol:
            raise ValueError(f"the score {self.name} needs its protocol: name what changes the number")


class Evaluator(Protocol):
    """Compares two sets of clips uint8 [n f h w 3] of equal frame shape; the sets may differ in n."""

    def __call__(self, real: np.ndarray, generated: np.ndarray) -> list[Score]:
        """One or more scores. Raises ValueError when a set is too small or of another form."""
        ...
