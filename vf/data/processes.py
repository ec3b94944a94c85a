"""Processes that the loader or the preparation starts: what each does first, and a pool that survives crashes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when that ends, in whatever way: a killed one cannot tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()


class Workers:
    """A pool of processes for jobs that may crash, as decoders do on damaged files.

    A crash takes down its process and whatever is under way in the pool: each of these jobs is then tried alone, and
    the one that crashes again is rejected.

    Args:
        count: of processes.
        work: what a job is, in a module that processes can import.
    """

    def __init__(self, count: int, work: Callable[..., dict[str, Any]]) -> None:
        self._count, self._work = count, work
        self._pool, self._alone = self._make(count), self._make(1)  # a pool starts its processes when it is used,
        for _ in range(count):  # and this one soon, while TFDS is imported
            self._pool.submit(int)

    @staticmethod
    def _make(count: int) -> ProcessPoolExecutor:
        # Not fork: TFDS and the progress bar have threads.
        return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), follow_parent)

    def submit(self, *job: Any) -> "Future[dict[str, Any]]":
        """`work(*job)`, under way."""
        try:
            return self._pool.submit(self._work, *job)
        except BrokenProcessPool:
            self._pool = self._make(self._count)
            return self._pool.submit(self._work, *job)

    def result(self, future: "Future[dict[str, Any]]", *job: Any) -> dict[str, Any]:
        """What `work` returned for the job; {"rejected": reason} where it crashes. Raises what it raised."""
        try:
            return future.result()
        except BrokenProcessPool:
            try:
                return self._alone.submit(self._work, *job).result()
            except BrokenProcessPool:
                self._alone = self._make(1)
                return {"rejected": "crashes the decoder"}

    def close(self) -> None:
        """Lets the processes finish what they are at, and go."""
        self._pool.shutdown(cancel_futures=True)
        self._alone.shutdown(cancel_futures=True)
