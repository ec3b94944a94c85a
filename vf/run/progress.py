"""How far a run is, in one line."""

import math
import sys
import time
from typing import Any, TextIO


class Progress:
    """One line on how far the run is: `step 1200/4000  loss 0.0312  3.41 steps/s  ETA 13m40s`.

    Redrawn in place on a terminal, line under line elsewhere, at most once in `every_seconds`. The rate is
    the mean since the first step after `start` was done: its compilation does not count."""

    def __init__(self, total: int, start: int = 0, every_seconds: float = 5.0, stream: TextIO | None = None) -> None:
        self.total, self.start, self.every_seconds = total, start, every_seconds
        self.stream = sys.stdout if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf

    def update(self, step: int, loss: Any, **extra: Any) -> None:
        """Call after each step; `loss` and `extra` may be arrays on the device.

        They are fetched only when a line is due, so that a call costs the run no waiting."""
        now = time.monotonic()
        if self._first is None and step > self.start:
            self._first = (step, now)
        if now - self._printed < self.every_seconds and step < self.total:
            return
        self._printed = now
        since, then = self._first or (step, now)
        rate = (step - since) / (now - then) if step > since and now > then else 0.0
        parts = [f"step {step}/{self.total}", f"loss {float(loss):.4g}"]
        parts += [f"{name} {x if isinstance(x, str) else format(float(x), '.4g')}" for name, x in extra.items()]
        parts += [f"{rate:.3g} steps/s", f"ETA {_duration((self.total - step) / rate)}"] if rate else []
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
