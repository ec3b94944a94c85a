"""Processes that the loader and the preparation start: their initialisation, and a pool that survives crashes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def follow_parent() -> None:
    """Makes this process ignore Ctrl-C, which its parent handles, and end when the parent ends, even by a kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()


class Workers:
    """A pool of processes for jobs that may crash, as decoders do on damaged files.

    A crash ends its process and every job in the pool. Each of these jobs is then run again in a process by itself, and
    the one that crashes again is rejected.

    Args:
        count: number of processes.
        work: the function that a job calls, in a module that processes can import.
    """

    def __init__(self, count: int, work: Callable[..., dict[str, Any]]) -> None:
        self._count, self._work = count, work
        self._pool, self._single = self._make(count), self._make(1)
        for _ in range(count):  # starts the processes at once, while TFDS is imported
            self._pool.submit(int)

    @staticmethod
    def _make(count: int) -> ProcessPoolExecutor:
        # spawn, since TFDS and the progress bar have threads, which fork does not copy.
        return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), follow_parent)

    def submit(self, *job: Any) -> "Future[dict[str, Any]]":
        """Starts `work(*job)`."""
        try:
            return self._pool.submit(self._work, *job)
        except BrokenProcessPool:
            self._pool = self._make(self._count)
            return self._pool.submit(self._work, *job)

    def result(self, future: "Future[dict[str, Any]]", *job: Any) -> dict[str, Any]:
        """What `work(*job)` returns; {"rejected": reason} where it crashes. Raises the errors that it raises."""
        try:
            return future.result()
        except BrokenProcessPool:
            try:
                return self._single.submit(self._work, *job).result()
            except BrokenProcessPool:
                self._single = self._make(1)
                return {"rejected": "crashes the decoder"}

    def close(self) -> None:
        """Ends the processes once they have finished their current jobs."""
        self._pool.shutdown(cancel_futures=True)
        self._single.shutdown(cancel_futures=True)
