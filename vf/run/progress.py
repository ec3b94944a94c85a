"""How far a run is, in one line."""

import math
import sys
import time
from typing import Any, TextIO


class Progress:
    """One line on how far the run is: `step 1200/4000  loss 0.0312  3.41 steps/s  ETA 13m40s`.

    name, unit: what is counted, in other words.
    patient: whether nothing is printed in the first `every_seconds`, so nothing at all of what takes no longer.

    Redrawn in place on a terminal, line under line elsewhere, at most once in `every_seconds`. The rate is
    the mean since the first step after `start` was done: its compilation does not count."""

    def __init__(
        self, total: int, start: int = 0, every_seconds: float = 5.0, stream: TextIO | None = None,
        *, name: str = "step", unit: str = "steps", patient: bool = False,
    ) -> None:  # fmt: skip
        self.total, self.start, self.every_seconds, self.name, self.unit = total, start, every_seconds, name, unit
        self.stream = sys.stdout if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._printed = time.monotonic() if patient else -math.inf
        self._silent = patient  # so far

    def update(self, step: int, **numbers: Any) -> None:
        """Call after each step; `numbers` may be texts, or arrays on the device.

        They are fetched only when a line is due, so that a call costs the run no waiting."""
        now = time.monotonic()
        if self._first is None and step > self.start:
            self._first = (step, now)
        if now - self._printed < self.every_seconds and (step < self.total or self._silent):
            return
        self._printed, self._silent = now, False
        since, then = self._first or (step, now)
        rate = (step - since) / (now - then) if step > since and now > then else 0.0
        parts = [f"{self.name} {step}/{self.total}"]
        parts += [f"{name} {x if isinstance(x, str) else format(float(x), '.4g')}" for name, x in numbers.items()]
        parts += [f"{rate:.3g} {self.unit}/s", f"ETA {_duration((self.total - step) / rate)}"] if rate else []
        line = "  ".join(parts)
        if self.stream.isatty():
            self.stream.write(f"\r{line}\x1b[K" + ("\n" if step >= self.total else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
