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
        self._writes = -1  # the end of the pipe into which Python writes the numbers of signals; -1 while it does not
        self._reader: threading.Thread | None = None
        self._ending: threading.Thread | None = None

    def watch(self) -> None:
        """Takes over SIGTERM and SIGINT. To be called once, in the main thread."""
        reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        for number in NAMES:
            self.handle(number)
        self._reader = threading.Thread(target=self._read, args=(reads,), daemon=True, name="signals")
        self._reader.start()

    def close(self) -> None:
        """Ends the watch, when the program is over: what comes while the interpreter goes down, a second, is ignored.

        The interpreter takes all handlers away first, so that a signal would kill it, as if the job had not ended well.
        A signal that has come before ends the process as ever. In the main thread."""
        if self._reader is None:
            return
        self._end_if_due()  # while a second signal is still read
        for number in NAMES:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(self._writes)
        self._reader.join()
        self._end_if_due()

    def _end_if_due(self) -> None:
        if self._ending is not None:
            self._ending.join()

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
            ending = threading.Thread(target=self.end, daemon=True, name="end")
            ending.start()  # a second signal is still read
            self._ending = ending

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
