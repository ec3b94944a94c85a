"""Several processes that are one run: how they find each other, agree, stop together and end together.

Before jax starts, every process sends a card over TCP to process 0: who it is, and what its config, code and packages
are. Process 0 answers when all have come, or when time is up: with a number to be read back from the run's folder, or
with one sentence that names who is missing or differs. The connections stay open: the system closes that of a process
that dies, however it dies, and all others are told at once, where jax would notice a minute later. Over them the
processes also agree on the step at which SIGTERM stops them.

    process I -> 0   card   read          share (of 0)   stop          at (step)   bye (status, why)
    0 -> all         start  go | problem  share          ask (for at)  stop_at     gone (who, why) | done

One line of JSON each. Process 0 is reached at the coordinator's port; jax's own service gets a free port above it.
A single process needs none of this and opens no connection.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from absl import logging

from vf import build, files, record
from vf.types import UserError

GRACE = 5.0  # seconds
TWICE = 1.0  # seconds in which two SIGTERM are one: it may reach a process itself and with its group
READ_SECONDS = 60.0  # network disks may show a new file that late
ROOT = Path(__file__).resolve().parents[1]


class HostsError(Exception):
    """Hosts are missing or do not fit together, in one sentence. `vf.main` prints it and exits with 3."""


class Stopped(Exception):
    """Told to stop by SIGTERM, and a checkpoint is saved. `vf.main` says so and exits with 143."""


def outcome(error: BaseException) -> tuple[int, str]:
    """Exit status, and what to say: nothing where a signal's status says it, the traceback of what is unforeseen."""
    statuses: dict[type, int] = {UserError: 2, HostsError: 3, Stopped: 128 + signal.SIGTERM}
    for kind, status in statuses.items():
        if isinstance(error, kind):
            return status, f"vf: {error}"
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return int(error.code or 0), ""
        return 1, str(error.code)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, ""
    return 1, "".join(traceback.format_exception(error)).rstrip()


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where process 0 is reached."""

    coordinator: str  # HOST:PORT
    processes: int
    process: int
    explicit: bool  # told by flags, not found

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, port = self.coordinator.rsplit(":", 1)
        return host.strip("[]"), int(port)


def place(coordinator: str | None, processes: int | None, process: int | None, timeout: float) -> Place | None:
    """What the three flags say, or the cluster that jax finds itself in; None for a single process.

    timeout: seconds for the name of the first host to become known.

    Raises UserError for flags that do not fit together, and HostsError where the cluster cannot be asked."""
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if processes == 1 and coordinator is None and not process:
        return None
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < 3:
            raise UserError(
                f"--coordinator, --processes and --process go together, and --{missing[0]} is missing: "
                "give all three, as --coordinator=HOST:PORT --processes=N --process=I"
            )
        return _detect(timeout)
    assert coordinator is not None
    assert processes is not None
    assert process is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT of process 0, as 10.0.0.1:8476, got {coordinator!r}")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"--process must be 0 to {processes - 1} for --processes={processes}, got {process}")
    return Place(coordinator, processes, process, True) if processes > 1 else None


def _detect(timeout: float) -> Place | None:
    """Cloud TPU, SLURM's srun, Open MPI, Kubernetes's JobSet, in the way of `jax.distributed.initialize`."""
    from jax._src import clusters

    no_tpu = "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu")
    candidates: list[tuple[type[clusters.ClusterEnv], bool]] = [
        (clusters.OmpiCluster, True),
        (clusters.SlurmCluster, int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ),
        (clusters.GkeTpuCluster, not no_tpu),
        (clusters.GceTpuCluster, not no_tpu),
        (clusters.K8sCluster, "JOB_COMPLETION_INDEX" in os.environ and bool(importlib.util.find_spec("kubernetes"))),
    ]
    for cluster, possible in candidates:
        try:
            if not possible or not cluster.is_env_present():
                continue
            # Pods of an indexed job that is no JobSet do the same thing with other seeds: each is alone.
            if cluster is clusters.K8sCluster and not _in_jobset(cluster):
                return None
            if (processes := cluster.get_process_count()) < 2:
                return None
            address = cluster.get_coordinator_address(int(timeout), os.environ.get("JAX_COORDINATOR_PORT"))
            return Place(address, processes, cluster.get_process_id(), False)
        except Exception as error:  # the metadata server, the name service, Kubernetes: each has errors of its own
            raise HostsError(
                f"this looks like one of several hosts ({cluster.name or 'Kubernetes'}), and the others cannot be "
                f"found ({type(error).__name__}: {error}): give --coordinator=HOST:PORT --processes=N --process=I, or "
                "--processes=1 for this one alone"
            ) from error
    return None


def _in_jobset(cluster: Any) -> bool:
    return "jobset.sigs.k8s.io/jobset-name" in (cluster._job().metadata.labels or {})


def card(config: Any, mode: str, workdir: str) -> dict[str, str]:
    """{name: value} of all that must be the same on every host, as text."""
    found = {"mode": mode, "workdir": workdir, "config": build.fingerprint(config), "code": _code()}
    found |= {f"config.{name}": json.dumps(value) for name, value in _flat(build.plain(config)).items()}
    found |= {"Python": platform.python_version()}
    return found | {name: str(record.version(name)) for name in record.PACKAGES}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _code() -> str:
    """Hash of the sources, wherever they come from; behind it, for the reader, the revision or what REVISION says."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("vf", "configs") for path in (ROOT / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    revision = record.revision(ROOT)
    told = f"revision {revision['revision'][:10]}{', changed' * revision['dirty']}" if revision else ""
    with contextlib.suppress(OSError):
        told = told or f"revision {(ROOT / 'REVISION').read_text().strip()[:10]}"
    return digest.hexdigest()[:12] + (f" ({told})" if told else "")


def unlike(cards: Mapping[int, Mapping[str, str]], names: Mapping[int, str], most: int = 3) -> str | None:
    """One sentence on the first host whose card is not that of process 0, or None."""
    reference = cards[0]
    for process, mine in sorted(cards.items()):
        differing = [key for key in {**reference, **mine} if _key(key, reference) != _key(key, mine)]
        if len(differing) > 1 and "config" in differing:
            differing.remove("config")  # a hash, where fields can be named
        if differing:
            told = "; ".join(
                f"{key} is {mine.get(key, 'missing')} here and {reference.get(key, 'missing')} there"
                for key in differing[:most]
            )
            more = f" (and {len(differing) - most} more)" if len(differing) > most else ""
            others = [other for other, card in cards.items() if other > process and card != reference]
            also = f"; process {', '.join(map(str, others))} too" if others else ""
            return (
                f"host {names[process]} (process {process}) differs from host {names[0]} (process 0): {told}{more}"
                f"{also}: start all hosts with the same command, code and packages"
            )
    return None


def _key(key: str, card: Mapping[str, str]) -> str | None:
    value = card.get(key)
    return value.split(" (")[0] if value and key == "code" else value  # how the revision is known may differ


class Hosts:
    """This process among those of the run; `Hosts()` is alone.

    As a context manager it joins the others, before jax touches a device, and ends as they do: what leaves the block as
    an exception ends this process, with its exit status, and all others. Raises HostsError where they do not fit
    together, or one does not come within `timeout` seconds.

    card: see `card`; empty for a process that is alone.
    heartbeat: seconds after which a host that is silent, switched off or cut off, counts as gone.
    """

    def __init__(
        self,
        place: Place | None = None,
        card: Mapping[str, str] | None = None,
        workdir: files.AnyPath | None = None,
        *,
        timeout: float = 300.0,
        heartbeat: float = 60.0,
    ) -> None:
        self.place, self.process = place, place.process if place else 0
        self.before_exit: list[Callable[[], None]] = []  # called where the end cannot unwind the stack
        self._card, self._workdir = dict(card or {}), workdir
        self._timeout, self._heartbeat = timeout, heartbeat
        self._told = False  # to stop, by SIGTERM
        self._told_at = 0.0
        self._armed = False  # in steps, where it is enough to note it
        self._passed, self._stop_at = -1, -1  # the last step that went on, the step agreed on
        self._asked = False
        self._shared = 0
        self._changed = threading.Condition()  # of the fields above and of `_got`
        self._got: dict[str, Any] = {}
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._desk: _Desk | None = None
        self._watched = False  # all have come: from here on the end of one is the end of all

    # Joining

    def __enter__(self) -> Self:
        if self.place:
            try:
                self._join(self.place)
            except BaseException as error:
                self._bye(*outcome(error))
                raise
        return self

    def _join(self, place: Place) -> None:
        host, port = place.address
        if place.process == 0:
            self._desk = _Desk(port, place.processes, self._timeout, self._heartbeat)
        self._socket = self._connect("127.0.0.1" if self._desk else host, port)
        _keep_alive(self._socket, self._heartbeat)
        threading.Thread(target=self._listen, name="hosts", daemon=True).start()
        logging.info("process %d of %d waits for the others at %s", place.process, place.processes, place.coordinator)
        named = {"process": place.process, "processes": place.processes, "host": socket.gethostname()}
        self._send("card", {**named, "fields": self._card})
        start = self._wait("start", 2 * self._timeout + GRACE)  # the clock of process 0 counts, which may start later
        token = start["token"]
        assert self._workdir is not None
        note = self._workdir / f".token-{token[:8]}"  # a new name: network disks remember what old files held
        if self._desk:
            files.check_writable(self._workdir)
            files.write_whole(note, token)
        self.share(None)  # it is written
        self._send("read", None if self._desk else _unread(note, token))
        try:
            self._wait("go", self._timeout + 2 * READ_SECONDS)
        finally:
            if self._desk:
                note.unlink(missing_ok=True)
        with self._changed:
            self._watched = True
            gone = "gone" in self._got
        if gone:  # in between
            self._follow()
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        # Processes that were started by hand see the devices they were given, whatever scheduler runs around them.
        jax.distributed.initialize(
            f"{place.coordinator.rsplit(':', 1)[0]}:{start['port']}",
            place.processes,
            place.process,
            cluster_detection_method="deactivate" if place.explicit else None,
            initialization_timeout=max(int(self._timeout), 10),
            heartbeat_timeout_seconds=int(self._heartbeat),
            shutdown_timeout_seconds=int(self._heartbeat),
        )
        logging.info("all %d processes are here", place.processes)

    def _connect(self, host: str, port: int) -> socket.socket:
        end, reason = time.monotonic() + self._timeout, ""
        while (left := end - time.monotonic()) > 0:
            try:
                return socket.create_connection((host, port), timeout=min(10.0, left))
            except OSError as error:
                reason = error.strerror or str(error)
            time.sleep(min(0.5, left))
        raise HostsError(
            f"process {self.process} on host {socket.gethostname()} cannot reach process 0 at {host}:{port} within "
            f"{self._timeout:.0f} s ({reason}): make sure that process 0 is started, that --coordinator names its "
            "host, and that the network lets that port and the next one through; or raise --startup_timeout"
        )

    # While it runs

    def share(self, value: Any) -> Any:
        """The `value` of process 0, on every process; to be called by all, in the same order. It is plain JSON."""
        if not self.place:
            return value
        number, self._shared = self._shared, self._shared + 1
        if self.process == 0:
            self._send("share", {"number": number, "value": value})
        return self._wait(f"share {number}")

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM: in steps it is noted, elsewhere and the second time the stack unwinds with status 143."""
        del frame
        if self._armed and not self._told:
            self._told, self._told_at = True, time.monotonic()
        elif not self._armed or time.monotonic() - self._told_at > TWICE:
            sys.exit(128 + number)

    def stopping(self, step: int) -> bool:
        """Whether to save `step` and stop: all processes get the same answer. Call it once a step."""
        self._armed = True
        if not self.place:
            return self._told
        with self._changed:
            # Between the question which step was passed and the answer where all stop, none may go on.
            self._changed.wait_for(lambda: not self._asked)
            if 0 <= self._stop_at <= step:
                return True
            self._passed = step
        return False

    def pause(self) -> None:
        """The steps are over, for a while or for good: SIGTERM unwinds at once again, also one that has come."""
        self._armed = False
        if self._told:
            sys.exit(128 + signal.SIGTERM)

    # The end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.place:
            return
        status, text = (0, "") if error is None else outcome(error)
        if status == 0 or isinstance(error, Stopped):  # what all come to, some later: they may still be saving
            self._bye(0, "")
            self._wait("done")
            jax.distributed.shutdown()
            return
        if status == 1:
            # Where another process has gone, jax tells of a broken connection: that is not the reason.
            self._give_way(2.0)
        if text:
            print(text, file=sys.stderr, flush=True)
        self._bye(status, text)
        self._exit(status)  # jax's own end would wait for the others

    def _bye(self, status: int, text: str) -> None:
        """Tells all others that this process ends; process 0, whose services they need, lets them go first."""
        if self._socket is None:
            return
        last = text.splitlines()[-1].removeprefix("vf: ") if text else ""
        with contextlib.suppress(OSError, HostsError):
            self._send("bye", {"status": status, "why": last})
            if status:
                with self._changed:
                    self._changed.wait_for(lambda: {"noted", "gone", "lost"} & self._got.keys(), 2.0)
                if self._desk:
                    self._desk.empty.wait(_grace(status) + 2 if self._watched else GRACE)

    def _exit(self, status: int) -> None:
        for action in self.before_exit:
            with contextlib.suppress(Exception):
                action()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)

    # Lines to and from process 0

    def _send(self, kind: str, value: Any) -> None:
        assert self._socket is not None
        with self._sending:
            self._socket.sendall(json.dumps([kind, value]).encode() + b"\n")

    def _wait(self, kind: str, seconds: float | None = None) -> Any:
        """What process 0 says. Raises HostsError for a problem that it tells instead, and when it has gone."""
        ends = {kind, "problem", "gone", "lost"}
        with self._changed:
            if not self._changed.wait_for(lambda: ends & self._got.keys(), seconds):
                host, port = self.place.address if self.place else ("", 0)
                raise HostsError(
                    f"process 0 at {host}:{port} gives no answer (waited {seconds:.0f} s for '{kind}'): look into its "
                    "log"
                )
            if kind in self._got:
                return self._got.pop(kind)
        if self._watched:
            self._give_way(GRACE)
        with self._changed:
            if "problem" in self._got:
                raise HostsError(self._got["problem"])
            if "gone" not in self._got:
                raise HostsError("the connection to process 0 is lost: look into its log")
            status, why = self._got["gone"]
            raise (UserError if status == 2 else HostsError)(why.removeprefix("vf: "))

    def _give_way(self, seconds: float) -> None:
        """Where another process has gone, or goes within `seconds`: leaves the end to the thread that knows of it."""
        with self._changed:
            gone = self._changed.wait_for(lambda: "gone" in self._got, seconds)
        if gone:
            time.sleep(_grace(self._got["gone"][0]) + GRACE)

    def _listen(self) -> None:
        """Thread: takes what process 0 says, and tells it of SIGTERM; ends this process when another one has gone."""
        assert self._socket is not None
        sent, lines = False, _Lines(self._socket)
        self._socket.settimeout(None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while True:
                if self._told and not sent:
                    sent = True
                    with contextlib.suppress(OSError):
                        self._send("stop", None)
                if not selector.select(0.2):
                    continue
                found, closed = lines.read()
                for kind, value in found:
                    self._take(kind, value)
                if closed:
                    break
        with self._changed:
            self._got["lost"] = True
            over = {"ended", "gone", "problem"} & self._got.keys()
            if not over and "first" in self._got:
                self._got["gone"] = _gone(0, self._got["first"], 1, "")
            self._changed.notify_all()
        if not over:
            self._follow()

    def _take(self, kind: str, value: Any) -> None:
        with self._changed:
            if kind == "ask":
                self._asked = True
                self._send("at", self._passed)
            elif kind == "stop_at":
                self._stop_at, self._asked = value, False
            elif kind == "share":
                self._got[f"share {value['number']}"] = value["value"]
            elif kind == "gone" and "gone" in self._got:
                return  # the first is the reason for the others
            else:
                self._got[kind] = value
                if kind == "start":
                    self._got["first"] = value["host"]
                if kind == "done":
                    self._got["ended"] = True
            self._changed.notify_all()
        if kind == "gone":
            threading.Thread(target=self._follow, name="hosts-end", daemon=True).start()

    def _follow(self) -> None:
        """Ends this process, soon, as another one has."""
        with self._changed:
            if not self._watched or "gone" not in self._got:
                return  # `_join` is told
            status, why = self._got["gone"]
        if status == 1:
            print(why, file=sys.stderr, flush=True)
            time.sleep(GRACE)
        else:  # an error of all hosts is told by each
            if status == 128 + signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_grace(status))
            print(why, file=sys.stderr, flush=True)
        if self._desk:
            self._desk.empty.wait(GRACE)
        self._exit(status)


def _grace(status: int) -> float:
    """Seconds in which a process may end by itself after another one has, with that status."""
    return GRACE if status == 1 else 6 * GRACE  # what all come to, by and by, or a host that is lost


def _gone(process: int, host: str, status: int, why: str) -> tuple[int, str]:
    """Status and sentence for those who are left behind."""
    who = f"vf: host {host} (process {process})"
    if status == 2:
        return 2, f"{who} has ended: {why}"
    if status == 128 + signal.SIGTERM:
        return status, f"{who} was told to stop, and all processes end"
    reason = f" ({why})" if why else ""
    told = f"{who} has gone{reason}; the same command on all hosts goes on from the last checkpoint"
    return (status if status == 3 else 1), told


def _unread(note: files.AnyPath, token: str) -> str | None:
    """Why the run's folder is not the one that process 0 sees, or None."""
    end, found = time.monotonic() + READ_SECONDS / 2, ""
    while True:
        try:
            found = note.read_bytes().decode(errors="replace")
            if found == token:
                return None
            found = "holds something else"
        except Exception as error:  # every store's client has errors of its own
            found = f"cannot be read ({type(error).__name__})"
        if time.monotonic() > end:
            return f"{note} {found}"
        time.sleep(0.5)


class _Lines:
    """Lines of JSON from a socket that is ready to be read."""

    def __init__(self, source: socket.socket) -> None:
        self._source, self._rest = source, b""

    def read(self) -> tuple[list[tuple[str, Any]], bool]:
        """What is there now, and whether the other side has closed. Nonsense counts as closed."""
        try:
            data = self._source.recv(1 << 16)
        except OSError:
            return [], True
        *whole, self._rest = (self._rest + data).split(b"\n")
        try:
            found = [(str(kind), value) for kind, value in map(json.loads, whole)]
        except (ValueError, TypeError):
            return [], True
        return found, not data or len(self._rest) > 1 << 24


def _keep_alive(connection: socket.socket, seconds: float) -> None:
    """Lets the system close a connection whose other side is silent for `seconds`, whatever this program does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each = max(int(seconds / 4), 1)
    for name, value in (("TCP_KEEPIDLE", each), ("TCP_KEEPINTVL", each), ("TCP_KEEPCNT", 3),
                        ("TCP_USER_TIMEOUT", int(1000 * seconds))):  # fmt: skip
        if (option := getattr(socket, name, None)) is not None:  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclasses.dataclass
class _Peer:
    """What the desk knows of a connection."""

    lines: _Lines
    process: int = -1
    host: str = ""
    bye: bool = False


class _Desk:
    """Process 0's side: a thread that all processes, 0 too, talk to. It decides nothing that takes time."""

    def __init__(self, port: int, processes: int, timeout: float, heartbeat: float) -> None:
        self._processes, self._timeout, self._heartbeat = processes, timeout, heartbeat
        self._port, self._peers = port, dict[socket.socket, _Peer]()
        self._cards: dict[int, Mapping[str, str]] = {}
        self._names: dict[int, str] = {}
        self._read: dict[int, str | None] = {}
        self._at: dict[int, int] = {}
        self._done: set[int] = set()
        self._asked = self._started = self._over = False
        self.empty = threading.Event()  # nobody but process 0 is connected
        self.empty.set()
        self._server = _listening(port)
        self._end = time.monotonic() + timeout  # of what is being waited for
        threading.Thread(target=self._serve, name="hosts-desk", daemon=True).start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(0.2):
                    if key.fileobj is self._server:
                        try:
                            connection, _ = self._server.accept()
                            _keep_alive(connection, self._heartbeat)
                            connection.settimeout(self._heartbeat)  # of sending
                        except OSError:
                            continue
                        self._peers[connection] = _Peer(_Lines(connection))
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    connection = key.fileobj  # type: ignore[assignment]
                    peer = self._peers[connection]
                    found, closed = peer.lines.read()
                    for kind, value in found:
                        try:
                            self._take(connection, peer, kind, value)
                        except (KeyError, TypeError, ValueError, AttributeError):
                            closed = True  # not one of us
                    if closed:
                        selector.unregister(connection)
                        connection.close()
                        del self._peers[connection]
                        self._left(peer)
                if not self._over and time.monotonic() > self._end:
                    self._late()

    def _take(self, connection: socket.socket, peer: _Peer, kind: str, value: Any) -> None:
        if kind == "card":
            self._come(peer, value)
            return
        if peer.process < 0:
            raise ValueError("a stranger")
        if kind == "read":
            self._read[peer.process] = value
            if len(self._read) == self._processes:
                self._judge_folder()
        elif kind == "share":
            self._tell("share", value)
        elif kind == "stop" and not self._asked:
            self._asked = True
            self._tell("ask", None)
        elif kind == "at":
            self._at[peer.process] = value
            if len(self._at) == self._processes:
                self._tell("stop_at", max(self._at.values()) + 1)
        elif kind == "bye":
            peer.bye = True
            if value["status"]:
                self._tell("gone", _gone(peer.process, peer.host, value["status"], value["why"]), but=peer.process)
                with contextlib.suppress(OSError):
                    _say(connection, "noted", None)
                return
            self._done.add(peer.process)
            if len(self._done) == self._processes:
                self._tell("done", None)

    def _come(self, peer: _Peer, value: Mapping[str, Any]) -> None:
        process, host, processes = int(value["process"]), str(value["host"]), int(value["processes"])
        fields = dict(value["fields"])
        peer.process, peer.host = process, host
        if process > 0:
            self.empty.clear()
        if processes != self._processes or not 0 <= process < self._processes:
            self._problem(
                f"host {host} is process {process} of {processes}, and process 0 was started for {self._processes}: "
                "start all with the same --processes"
            )
        elif process in self._cards:
            self._problem(
                f"process {process} came twice, from host {self._names[process]} and from host {host}: "
                "give each process a number of its own, and each run a port of its own"
            )
        else:
            self._cards[process], self._names[process] = fields, host
            if len(self._cards) == self._processes:
                self._start()

    def _start(self) -> None:
        if problem := unlike(self._cards, self._names):
            self._problem(problem)
            return
        self._started, self._end = True, time.monotonic() + READ_SECONDS + self._timeout
        try:
            port = _free_port(self._port)
        except HostsError as error:
            self._problem(str(error))
            return
        self._tell("start", {"token": secrets.token_hex(16), "port": port, "host": self._names[0]})

    def _judge_folder(self) -> None:
        bad = {process: why for process, why in self._read.items() if why}
        if bad:
            told = "; ".join(f"on host {self._names[process]} (process {process}) {bad[process]}" for process in bad)
            self._problem(
                f"--workdir is not the same folder on all hosts: host {self._names[0]} (process 0) wrote a file there, "
                f"and {told}: name a folder that all hosts share, or gs://BUCKET/RUN"
            )
            return
        self._over = True
        self._tell("go", None)

    def _late(self) -> None:
        self._over = True
        if self._started:
            slow = [f"{process} (host {self._names[process]})" for process in self._names if process not in self._read]
            self._problem(f"process {', '.join(slow)} did not say whether it sees --workdir: look into its log")
            return
        missing = [str(process) for process in range(self._processes) if process not in self._cards]
        here = ", ".join(f"{process} (host {self._names[process]})" for process in sorted(self._names))
        self._problem(
            f"process {', '.join(missing)} of {self._processes} did not come within {self._timeout:.0f} s, and process "
            f"{here} did: look into the log of each that is missing, start all again, or raise --startup_timeout"
        )

    def _problem(self, text: str) -> None:
        self._over = True
        self._tell("problem", text)

    def _tell(self, kind: str, value: Any, but: int | None = None) -> None:
        """To all; to process 0 last, which may end with what it hears."""
        for connection, peer in sorted(self._peers.items(), key=lambda found: found[1].process, reverse=True):
            if peer.process >= 0 and peer.process != but:
                with contextlib.suppress(OSError):  # its end is noticed where its lines are read
                    _say(connection, kind, value)

    def _left(self, peer: _Peer) -> None:
        if not any(other.process > 0 for other in self._peers.values()):
            self.empty.set()
        if peer.process >= 0 and not peer.bye:
            self._over = True
            self._tell("gone", _gone(peer.process, peer.host, 1, ""))


def _say(connection: socket.socket, kind: str, value: Any) -> None:
    connection.sendall(json.dumps([kind, value]).encode() + b"\n")


def _listening(port: int) -> socket.socket:
    """A server on every address of this machine. Raises HostsError."""
    reason = ""
    for _ in range(40):  # the process of an earlier start may still be ending
        for family in (socket.AF_INET6, socket.AF_INET):  # machines without IPv6 refuse its addresses
            try:
                both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
                if family == socket.AF_INET6 and not both:
                    continue
                return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
            except OSError as error:
                reason = error.strerror or str(error)
        time.sleep(0.5)
    raise HostsError(
        f"process 0 cannot listen at port {port} of host {socket.gethostname()} ({reason}): end what uses it, "
        "or give all processes another --coordinator"
    )


def _free_port(port: int) -> int:
    """The first free port above `port`, or below it: firewalls are opened for neighbours."""
    for candidate in [*range(port + 1, port + 50), *range(port - 1, port - 50, -1)]:
        if 0 < candidate < 2**16:
            with contextlib.suppress(OSError), socket.create_server(("", candidate)):
                return candidate
    raise HostsError(f"no port near {port} is free on host {socket.gethostname()}: give another --coordinator")
