"""One process of a run, from joining the others to ending with them."""

import collections
import concurrent.futures
import dataclasses
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from vf import files
from vf.hosts.errors import HostsError, Stopped, exit_status
from vf.hosts.process import Process

READ_SECONDS = 30.0  # network disks may show a new file that late
MARGIN = 5.0  # seconds


@dataclasses.dataclass(frozen=True)
class HostInfo:
    """What a process tells all others of itself."""

    host: str  # its name in the network
    fingerprint: Mapping[str, str]  # what must be the same on all hosts, as text


class Hosts:
    """This process among those of the run; `Hosts()` is alone, needs nothing and opens no port.

    As a context manager it joins the others, before jax touches a device, and ends as they do. Where there are others,
    what leaves the block as an exception is printed and ends the process, with its exit status; so does a HostsError
    where fingerprints or folders differ, or one process does not come within `startup_timeout` seconds.

    workdir: the run's folder, which all share. heartbeat_timeout: seconds after which jax takes a silent process for
    dead, and ends all others. trains: there will be steps, and SIGTERM belongs to jax until they are over."""

    def __init__(
        self, process: Process | None = None, fingerprint: Mapping[str, str] | None = None,
        workdir: files.AnyPath = Path(), *, startup_timeout: float = 300.0, heartbeat_timeout: float = 30.0,
        trains: bool = False,
    ) -> None:  # fmt: skip
        self.process, self._fingerprint, self._workdir = process, fingerprint or {}, workdir
        self._startup_timeout, self._heartbeat_timeout, self._trains = startup_timeout, heartbeat_timeout, trains
        self._joined = self._in_steps = self._stop = False
        self._steps = 0  # of this start: a process that has not come to its first one counts as 0 for jax

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

    def _join(self, process: Process, workdir: files.AnyPath) -> None:
        files.check_writable(workdir)
        for old in workdir.glob(f".host-{process.index}-*"):  # of a start that was killed
            old.unlink(missing_ok=True)
        note = workdir / f".host-{process.index}-{int(time.time())}"
        files.write_whole(note, "")
        try:
            self._connect(process, workdir)
            self._agree(workdir)
        finally:
            note.unlink(missing_ok=True)

    def _connect(self, process: Process, workdir: files.AnyPath) -> None:
        """Lets jax bring the processes together, in a thread: it would end this process without a sentence."""
        if any(name in os.environ for name in ("http_proxy", "https_proxy")):
            os.environ.setdefault("grpc_proxy", "")  # else process 0 is looked for behind the proxy
        jax.config.update("jax_enable_preemption_service", self._trains)
        connecting = concurrent.futures.ThreadPoolExecutor(1).submit(
            jax.distributed.initialize, process.coordinator, process.count, process.index,
            # Processes that were started by hand see the devices they were given, whatever scheduler runs around them.
            cluster_detection_method="deactivate" if process.coordinator else None,
            initialization_timeout=int(self._startup_timeout + 10 * MARGIN),
            heartbeat_timeout_seconds=int(self._heartbeat_timeout),
            shutdown_timeout_seconds=24 * 60 * 60,  # others may still be saving; who is dead has no heartbeat
        )  # fmt: skip
        end, came = time.monotonic() + self._startup_timeout, set[int]()
        while not connecting.done() and time.monotonic() < end:
            concurrent.futures.wait([connecting], timeout=1.0)
            came |= here(workdir, 2 * self._startup_timeout)  # others may give up, and go, a little earlier
        if not connecting.done():
            missing = sorted(set(range(process.count)) - came)
            why = f"process {missing} did not: see its log and its workdir" if missing else "cannot reach process 0"
            raise HostsError(
                f"{len(came)} of {process.count} processes came within {self._startup_timeout:.0f} s, and {why}; start "
                "all again, with a longer startup_timeout if they need it"
            )
        if error := connecting.exception():
            raise HostsError(f"process {process.index} cannot join the others: {error}") from error
        self._joined = True

    def _agree(self, workdir: files.AnyPath) -> None:
        """Raises HostsError, on all processes alike, where one has other devices, another fingerprint or folder."""
        devices = collections.Counter(device.process_index for device in jax.devices())
        for process, number in sorted(devices.items()):
            if number != devices[0]:  # gathering, too, needs as many everywhere
                raise HostsError(f"process {process} has {number} devices, not {devices[0]} as process 0: give as many")
        end = time.monotonic() + READ_SECONDS
        while not (seen := 0 in here(workdir, math.inf)) and time.monotonic() < end:
            time.sleep(0.5)
        facts = {**self._fingerprint, "process 0's file in workdir": "seen" if seen else "not seen"}
        mine = json.dumps(dataclasses.asdict(HostInfo(socket.gethostname(), facts)))
        infos = [HostInfo(**json.loads(text)) for text in gather(mine)]
        if problem := difference(infos):
            raise HostsError(problem)
        logging.info("all are here: %s", ", ".join(f"process {i} on host {one.host}" for i, one in enumerate(infos)))

    def share(self, value: Any) -> Any:
        """The `value` of process 0, on every process; to be called by all, in the same order. It is plain JSON."""
        return json.loads(gather(json.dumps(value if jax.process_index() == 0 else None))[0]) if self.process else value

    def terminate(self, number: int, _frame: Any) -> None:
        """Handler of SIGTERM: in steps it is noted, elsewhere the stack unwinds with status 143."""
        if not self._in_steps:
            sys.exit(128 + number)
        self._stop = True

    def stopping(self) -> bool:
        """Whether to save this step and stop: all processes get the same answer. Call it once a step."""
        self._in_steps, self._steps = True, self._steps + 1
        return multihost_utils.reached_preemption_sync_point(self._steps) if self.process else self._stop

    def pause(self, *, for_good: bool) -> None:
        """Something else than steps comes: SIGTERM ends a process at once again, also one that has come already.

        Where several will go on to another step, they stop there instead, together."""
        self._in_steps = False
        if self._stop:
            sys.exit(128 + signal.SIGTERM)
        if self.process and for_good:
            signal.signal(signal.SIGTERM, self.terminate)

    def _leave(self, error: BaseException | None) -> None:
        """Waits for the others after a good end; after another one ends this process, whatever they do.

        Where all come to the same error they leave together. Where another process has died, jax names it, and ends
        this one meanwhile. Else this one goes alone, and jax ends the others."""
        status, text = exit_status(error) if error else (0, "")
        if self._joined and (not error or isinstance(error, Stopped)):
            jax.distributed.shutdown()
            return
        print(text, end="\n" if text else "", file=sys.stderr, flush=True)
        try:
            if self._joined:
                leaving = concurrent.futures.ThreadPoolExecutor(1).submit(jax.distributed.shutdown)
                concurrent.futures.wait([leaving], MARGIN if status > 128 else self._heartbeat_timeout + MARGIN)
        finally:
            sys.stdout.flush()
            os._exit(status)  # the interpreter's own end would wait for jax


def gather(text: str) -> list[str]:
    """The `text` of every process, by its number; all call it, in the same order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(data.size))
    longest = -(-int(lengths.max()) // 1024) * 1024  # few programs for many lengths
    rows = multihost_utils.process_allgather(np.pad(data, (0, longest - data.size)))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def difference(infos: Sequence[HostInfo]) -> str | None:
    """One sentence on the first process, of those given in order, whose fingerprint is not that of process 0."""
    first = infos[0].fingerprint
    for process, info in enumerate(infos):
        this = info.fingerprint
        if names := [name for name in {**first, **this} if first.get(name) != this.get(name)]:
            values = [f"{name} is {this.get(name)} here and {first.get(name)} there" for name in names[:3]]
            more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
            return (
                f"host {info.host} (process {process}) differs from host {infos[0].host} (process 0): "
                f"{'; '.join(values)}{more}: start all with the same command, code and packages, in a folder they share"
            )
    return None


def here(workdir: files.AnyPath, seconds: float) -> set[int]:
    """Numbers of the processes that have written a note to the run's folder, at most so long ago."""
    notes = [note.name.split("-") for note in workdir.glob(".host-*-*")]
    return {int(process) for _, process, since in notes if time.time() - int(since) < seconds}
