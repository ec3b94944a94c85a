"""Connects one process of a run with the others, and ends it together with them."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from vf import files
from vf.activity import ACTIVITY
from vf.hosts.errors import HostsError, Stopped, exit_status
from vf.hosts.process import Process
from vf.hosts.signals import Signals
from vf.types import counted

READ_SECONDS = 30.0  # after which network disks show a new file at the latest
MARGIN = 5.0  # seconds added to time limits, so that others act first


@dataclasses.dataclass(frozen=True)
class HostInfo:
    """Information that each process sends to all others."""

    host: str  # its host name
    fingerprint: Mapping[str, str]  # {name: text} of what must be equal on all hosts


class Hosts:
    """This process among those of the run. `Hosts()` is a single process, which opens no port.

    As a context manager it joins the others, before jax uses a device, and ends as they do. Where there are others, an
    exception that leaves the block is printed and ends the process with its exit status. So does a HostsError where
    fingerprints or folders differ, or a process does not join in time.

    Args:
        process: this process; None for a single one.
        fingerprint: {name: text} of what must be equal on all hosts.
        workdir: the run's folder, which all share.
        startup_timeout: seconds within which all processes must join.
        heartbeat_timeout: seconds without a heartbeat after which jax takes a process for dead, and ends all others.
        trains: whether there will be training steps, until whose end jax handles SIGTERM if there are others.
        signals: those that this process gets; None where nothing watches for them.
    """

    def __init__(
        self, process: Process | None = None, fingerprint: Mapping[str, str] | None = None,
        workdir: files.AnyPath = Path(), *, startup_timeout: float = 300.0, heartbeat_timeout: float = 30.0,
        trains: bool = False, signals: Signals | None = None,
    ) -> None:  # fmt: skip
        self.process, self._fingerprint, self._workdir = process, fingerprint or {}, workdir
        self._startup_timeout, self._heartbeat_timeout, self._trains = startup_timeout, heartbeat_timeout, trains
        self._joined = False
        self._signals = signals or Signals()
        self._signals.before = self._before_end
        if trains:
            self._signals.remark = "; the same command goes on from the last checkpoint, or begins again"
        self._finish: list[Callable[[], None]] = []
        self._steps = 0  # counted from this start, since jax counts processes that have made no step yet as 0

    def __enter__(self) -> Self:
        if self.process:
            try:
                self._join(self.process, self._workdir)
            except BaseException as error:
                self._leave(error)  # does not return
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.process:
            self._leave(error)

    @ACTIVITY.doing("waiting for the other processes")
    def _join(self, process: Process, workdir: files.AnyPath) -> None:
        files.check_writable(workdir)
        for old in workdir.glob(f".host-{process.index}-*"):  # left by a start that was killed
            old.unlink(missing_ok=True)
        note = workdir / f".host-{process.index}-{int(time.time())}"
        files.write_whole(note, "")
        try:
            self._connect(process, workdir)
            self._agree(workdir)
        finally:
            note.unlink(missing_ok=True)

    def _connect(self, process: Process, workdir: files.AnyPath) -> None:
        """Connects the processes by jax, in a thread, since jax would end this process without a clear error."""
        if any(name in os.environ for name in ("http_proxy", "https_proxy")):
            os.environ.setdefault("grpc_proxy", "")  # otherwise gRPC would connect to process 0 through the proxy
        jax.config.update("jax_enable_preemption_service", self._trains)
        connecting = concurrent.futures.ThreadPoolExecutor(1).submit(
            jax.distributed.initialize, process.coordinator, process.count, process.index,
            # Processes with explicit flags use the devices that they see, even within a scheduler that jax knows.
            cluster_detection_method="deactivate" if process.coordinator else None,
            initialization_timeout=int(self._startup_timeout + 10 * MARGIN),
            heartbeat_timeout_seconds=int(self._heartbeat_timeout),
            shutdown_timeout_seconds=24 * 60 * 60,  # others may still be saving; dead processes miss heartbeats
        )  # fmt: skip
        end, joined = time.monotonic() + self._startup_timeout, set[int]()
        while not connecting.done() and time.monotonic() < end:
            concurrent.futures.wait([connecting], timeout=1.0)
            joined |= present(
                workdir, 2 * self._startup_timeout
            )  # others may give up a little earlier, and remove their notes
        if not connecting.done():
            missing = sorted(set(range(process.count)) - joined)
            why = f"process {missing} did not: see its log and its workdir" if missing else "cannot reach process 0"
            raise HostsError(
                f"{len(joined)} of {counted(process.count, 'process')} came within {self._startup_timeout:.0f} s, "
                f"and {why}; start all again, with a longer startup_timeout if they need it"
            )
        if error := connecting.exception():
            raise HostsError(f"process {process.index} cannot join the others: {error}") from error
        self._joined = True

    def _agree(self, workdir: files.AnyPath) -> None:
        """Raises a HostsError, the same on all processes, where one has other devices, fingerprint or folder."""
        devices = collections.Counter(device.process_index for device in jax.devices())
        for process, number in sorted(devices.items()):
            if number != devices[0]:  # `gather` needs equal numbers too
                raise HostsError(
                    f"process {process} has {counted(number, 'device')}, not {devices[0]} as process 0: give as many"
                )
        end = time.monotonic() + READ_SECONDS
        while not (is_seen := 0 in present(workdir, math.inf)) and time.monotonic() < end:
            time.sleep(0.5)
        facts = {**self._fingerprint, "process 0's file in workdir": "seen" if is_seen else "not seen"}
        this_host = HostInfo(socket.gethostname(), facts)
        infos = [HostInfo(**json.loads(text)) for text in gather(json.dumps(dataclasses.asdict(this_host)))]
        if problem := difference(infos):
            raise HostsError(problem)
        hosts = ", ".join(f"process {i} on host {info.host}" for i, info in enumerate(infos))
        logging.info("all processes have joined: %s", hosts)

    def share(self, value: Any) -> Any:
        """The `value` of process 0, on every process. All must call it, in the same order; values are JSON's types."""
        return json.loads(gather(json.dumps(value if jax.process_index() == 0 else None))[0]) if self.process else value

    def before_end(self, finish: Callable[[], None]) -> None:
        """Has `finish` called, in a thread, before a signal ends the process: it waits until what is written is."""
        self._finish.append(finish)

    def _before_end(self) -> None:
        for finish in self._finish:
            finish()
        if self._joined:
            self._shut_down(MARGIN)

    def stopping(self) -> int:
        """The signal for which to save this step and stop, the same on all processes; 0 for none. Once per step."""
        self._steps += 1
        if self.process:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(self._steps) else 0
        self._signals.deferred = True
        return self._signals.received

    def pause(self, *, for_good: bool) -> None:
        """Ends a phase of training steps, after which a signal ends a process at once; so does one that has arrived.

        Where there are several processes and more steps will follow (`for_good` is False), they stop together at the
        next step instead.
        """
        self._signals.deferred = False
        if self._signals.received:
            self._signals.end()
        if self.process and for_good:
            self._signals.handle(signal.SIGTERM)

    def _leave(self, error: BaseException | None) -> None:
        """Waits for the others after success; after an error it ends this process, whatever the others do.

        Where all have the same error they end together. Where another process has died, jax names it, and ends this one
        in the meantime. Otherwise this process ends by itself, and jax ends the others.
        """
        status, text = exit_status(error) if error else (0, "")
        if self._joined and (not error or isinstance(error, Stopped)):
            jax.distributed.shutdown()
            return
        print(text, end="\n" if text else "", file=sys.stderr, flush=True)
        try:
            if self._joined:
                self._shut_down(MARGIN if status > 128 else self._heartbeat_timeout + MARGIN)
        finally:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()
            os._exit(status)  # a normal exit of the interpreter would wait for jax

    def _shut_down(self, seconds: float) -> None:
        """Tells jax that this process ends, and waits for the others so long."""
        leaving = concurrent.futures.ThreadPoolExecutor(1).submit(jax.distributed.shutdown)
        concurrent.futures.wait([leaving], seconds)


def gather(text: str) -> list[str]:
    """The `text` of every process, in the order of their numbers. All must call it, in the same order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(data.size))
    longest = -(-int(lengths.max()) // 1024) * 1024  # padded, so that few programs are compiled for many lengths
    rows = multihost_utils.process_allgather(np.pad(data, (0, longest - data.size)))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def difference(infos: Sequence[HostInfo]) -> str | None:
    """A sentence on the first process whose fingerprint differs from that of process 0; None where none does."""
    first = infos[0].fingerprint
    for process, info in enumerate(infos):
        fingerprint = info.fingerprint
        if names := [name for name in {**first, **fingerprint} if first.get(name) != fingerprint.get(name)]:
            values = [f"{name} is {fingerprint.get(name)} here and {first.get(name)} there" for name in names[:3]]
            more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
            return (
                f"host {info.host} (process {process}) differs from host {infos[0].host} (process 0): "
                f"{'; '.join(values)}{more}: start all with the same command, code and packages, in a folder they share"
            )
    return None


def present(workdir: files.AnyPath, seconds: float) -> set[int]:
    """Numbers of the processes that have written a note into the run's folder within the last `seconds`."""
    notes = [note.name.split("-") for note in workdir.glob(".host-*-*")]
    return {int(process) for _, process, since in notes if time.time() - int(since) < seconds}
