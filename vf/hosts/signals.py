"""SIGTERM and Ctrl-C, at whatever moment they come: one sentence, status 143 or 130, and nothing is lost.

Python runs a signal's handler in the main thread, between two of its own instructions: not while XLA compiles, which
takes minutes; and what a handler raises may be dropped there, in a callback of the garbage collector for one, or leave
other threads inside a library while the interpreter goes down, a segmentation fault. So the handlers here do nothing; a
thread reads the numbers of signals as they come, and ends the process itself, unless the job has said that it will.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Signals:
    """The signals that this process gets.

    Args:
        leave: ends the process with a status; replaced in tests.

    Attributes:
        received: number of the first signal; 0 before it.
        deferred: whether the job itself heeds `received`, and ends.
        before: called before a first signal ends the process, to finish what is being written.
        remark: what the sentence of the end says behind the signal's name.
    """

    def __init__(self, leave: Callable[[int], None] = os._exit) -> None:
        self._leave = leave
        self.received = 0
        self.deferred = False
        self.before: Callable[[], None] = lambda: None
        self.remark = ""

    def watch(self) -> None:
        """Takes over SIGTERM and SIGINT. To be called once, in the main thread."""
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        for number in NAMES:
            self.handle(number)
        threading.Thread(target=self._read, args=(reads,), daemon=True, name="signals").start()

    def handle(self, number: int) -> None:
        """Takes signal `number` over, again where a library has done so in between. In the main thread."""
        signal.signal(number, lambda number, frame: None)

    def _read(self, pipe: int) -> None:
        while number := os.read(pipe, 1):
            self.take(number[0])

    def take(self, number: int) -> None:
        """What happens when a signal comes: the first ends the process, or the job does; the second ends it at once."""
        if number not in NAMES:
            return
        if self.received:
            self._say(f"ended at once by a second signal, {NAMES[signal.Signals(number)]}")
            self._leave(128 + number)
        self.received = number
        if self.deferred:
            logging.info("%s: the step that runs is saved first; a second signal ends at once", self._name)
        else:
            threading.Thread(target=self.end, daemon=True, name="end").start()  # a second signal is still read

    def end(self) -> None:
        """Ends the process after a first signal."""
        try:
            self.before()
        finally:
            self._say(f"ended by {self._name}{self.remark}")
            self._leave(128 + self.received)

    @property
    def _name(self) -> str:
        return NAMES[signal.Signals(self.received)]

    def _say(self, text: str) -> None:
        print(f"vf: {text}", file=sys.stderr, flush=True)
