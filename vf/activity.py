"""Says again what the program is doing while it prints nothing else.

While XLA compiles, or a large batch is drawn, the main thread is within a library for minutes, so another one prints,
which is there while something is done. One object serves the whole process, which has one standard error.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

SILENCE = 8.0  # seconds: so that together with what a line may wait for, none is of more than ten


class Task:
    """What is being done, and since when."""

    def __init__(self, what: str, last: float) -> None:
        self.last = last
        self.begin(what)

    def begin(self, what: str) -> None:
        """The next part of the task begins, which is doing `what`."""
        self._now = what, time.monotonic()

    def describe(self, what: str) -> None:
        """The same part goes on, and is from now on `what`: how far it is, for example."""
        self._now = what, self._now[1]

    def go_on(self) -> None:
        """A task within this one has ended: what is said of it counts from here."""
        self.begin(self._now[0])

    def __str__(self) -> str:
        what, began = self._now
        seconds = time.monotonic() - began
        last = f" (last time {self.last:.0f} s)" if self.last >= 1 else ""
        # What has just begun is one of many short things, and how far these are is what is new.
        return f"still {what}: {seconds:.0f} s{last}" if seconds >= 1 else f"now {what}{last}"


class Activity:
    """Tasks of a process, those within others behind them.

    After `silence` seconds in which nothing was printed, and again after as long, a line is: `still compiling the
    training step: 16 s (last time 31 s)`, or `now training step 10 of 2800` of what has just begun.

    Args:
        silence: seconds.
        stream: where lines go; default is standard error.

    Attributes:
        speaks: whether this process prints lines; of those of one run the first alone does.
    """

    def __init__(self, silence: float = SILENCE, stream: TextIO | None = None) -> None:
        self._silence, self._stream = silence, stream
        self.speaks = True
        self._tasks: list[Task] = []
        self._first: Task | None = None
        self._printed = 0.0  # when anything was
        self._idle_since = -math.inf  # where there is no task
        self._is_line_open = False  # as a bar on a terminal leaves it
        self._ends = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def doing(self, what: str, last: float = 0.0, *, announced: bool = False) -> Iterator[Task]:
        """Within the block, or the function that it decorates, the program is doing `what`: `compiling the step`.

        Not a line is printed after its end.

        Args:
            what: a participle and its object.
            last: seconds that it took the last time; 0 where that is not known.
            announced: whether the caller has just printed that it begins.
        """
        task = self._begin(Task(what, last), announced)
        self._end(self._first)
        try:
            yield task
        finally:
            self._end(task)

    def begin(self, what: str) -> None:
        """The program is doing `what` until the first block of `doing` begins."""
        self._first = self._begin(Task(what, 0.0), announced=False)

    def _begin(self, task: Task, announced: bool) -> Task:
        with self._ends:
            now = time.monotonic()
            # Short tasks that follow one another are one silence; who has printed before others is not known.
            if announced or (not self._tasks and now - self._idle_since > 1):
                self._printed = now
            self._tasks.append(task)
            if self.speaks and self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="activity")
                self._thread.start()
        return task

    def _end(self, task: Task | None) -> None:
        with self._ends:
            if task in self._tasks:
                self._tasks.remove(task)
                if self._tasks:
                    self._tasks[-1].go_on()
                self._idle_since = time.monotonic()
                self._ends.notify()

    def printed(self, *, is_line_open: bool = False) -> None:
        """To be called when a line was printed; `is_line_open` where the cursor stays behind it, as a bar's does."""
        self._printed, self._is_line_open = time.monotonic(), is_line_open

    def _watch(self) -> None:
        with self._ends:
            while self._tasks:
                rest = self._printed + self._silence - time.monotonic()
                if rest > 0:
                    self._ends.wait(rest)
                else:
                    self._print(f"{self._tasks[-1]}\n")
            self._thread = None

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, which the main thread will find
            stream.write("\n" * self._is_line_open + text)  # in one piece, beside what other threads print
            stream.flush()
        self.printed()


ACTIVITY = Activity()
