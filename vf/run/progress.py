"""How far a run is, in one line."""

import math
import sys
import time
from typing import Any, TextIO

from vf.activity import ACTIVITY


class Progress:
    """One line on how far the run is: `step 1200/4000  loss 0.0312  3.41 steps/s  ETA 13m40s`.

    On a terminal it is redrawn in place every `every_seconds`. Elsewhere lines stand under one another, at multiples of
    a round number of steps that takes about as long, and after a minute without one. The rate is the mean since the
    object was made, which is when the first step begins.

    name, unit: what is counted, in other words.
    patient: for what may soon be done: nothing is printed in the first `every_seconds`, then a line as often.
    """

    def __init__(
        self, total: int, start: int = 0, every_seconds: float = 5.0, stream: TextIO | None = None,
        *, name: str = "step", unit: str = "steps", patient: bool = False,
    ) -> None:  # fmt: skip
        self.total, self.start, self.every_seconds = total, start, every_seconds
        self.name, self.unit, self._patient = name, unit, patient
        self.stream = sys.stdout if stream is None else stream
        self._began = time.monotonic()
        self._printed = self._began if patient else -math.inf
        self._shown = -1  # the step of the last line
        self._every = 0  # steps from line to line, once the rate is known

    def update(self, step: int, **numbers: Any) -> None:
        """Call after steps beyond `start`; `numbers` may be texts, or arrays on the device.

        They are fetched only when a line is due, so that a call costs the run no waiting."""
        now = time.monotonic()
        rate = (step - self.start) / max(now - self._began, 1e-9)
        if step == self._shown or not self._is_due(step, now, rate):
            return
        self._printed, self._shown = now, step
        parts = [f"{self.name} {step}/{self.total}"]
        parts += [f"{name} {x if isinstance(x, str) else format(float(x), '.4g')}" for name, x in numbers.items()]
        parts += [f"{rate:.3g} {self.unit}/s", f"ETA {_duration((self.total - step) / rate)}"]
        line = "  ".join(parts)
        redrawn = self.stream.isatty()
        ends = step >= self.total or not redrawn
        self.stream.write((f"\r{line}\x1b[K" if redrawn else line) + "\n" * ends)
        self.stream.flush()
        ACTIVITY.printed(is_line_open=not ends)

    def skip(self, steps: int) -> None:
        """So many steps were there already: they count for how far it is, not for the rate."""
        self.start += steps

    def _is_due(self, step: int, now: float, rate: float) -> bool:
        since = now - self._printed
        if self._patient:
            return since >= self.every_seconds or (step >= self.total and self._printed > self._began)
        if self.stream.isatty():
            return since >= self.every_seconds or step >= self.total
        if not self._every:  # the first line
            self._every = _round_up(rate * self.every_seconds)
            return True
        return step % self._every == 0 or since >= 60 or step >= self.total


def _round_up(x: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least x."""
    power = 10 ** max(0, math.floor(math.log10(max(x, 1))))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= x)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
