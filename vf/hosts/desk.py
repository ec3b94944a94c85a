"""Process 0's side: where all processes come, and what they are told."""

import contextlib
import dataclasses
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from vf.hosts import ends
from vf.hosts.card import unlike
from vf.hosts.ends import HostsError
from vf.hosts.wire import Lines, keep_alive, say

READ_SECONDS = 60.0  # network disks may show a new file that late


@dataclasses.dataclass
class _Peer:
    """What the desk knows of a connection."""

    lines: Lines
    process: int = -1
    host: str = ""
    bye: bool = False


class Desk:
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
                            keep_alive(connection, self._heartbeat)
                            connection.settimeout(self._heartbeat)  # of sending
                        except OSError:
                            continue
                        self._peers[connection] = _Peer(Lines(connection))
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
                self._tell("gone", ends.gone(peer.process, peer.host, value["status"], value["why"]), but=peer.process)
                with contextlib.suppress(OSError):
                    say(connection, "noted", None)
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
                    say(connection, kind, value)

    def _left(self, peer: _Peer) -> None:
        if not any(other.process > 0 for other in self._peers.values()):
            self.empty.set()
        if peer.process >= 0 and not peer.bye:
            self._over = True
            self._tell("gone", ends.gone(peer.process, peer.host, 1, ""))


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
