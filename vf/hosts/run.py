"""One process of a run, from joining the others to ending with them."""

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from absl import logging

from vf import files
from vf.hosts import desk, ends
from vf.hosts.ends import HostsError, Stopped
from vf.hosts.place import Place
from vf.hosts.wire import Lines, keep_alive, say
from vf.types import UserError

TWICE = 1.0  # seconds in which two SIGTERM are one: it may reach a process itself and with its group


class Hosts:
    """This process among those of the run; `Hosts()` is alone.

    As a context manager it joins the others, before jax touches a device, and ends as they do: what leaves the block as
    an exception ends this process, with its exit status, and all others. Raises HostsError where they do not fit
    together, or one does not come within `timeout` seconds.

    card: see `vf.hosts.card`; empty for a process that is alone.
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
        self._desk: desk.Desk | None = None
        self._watched = False  # all have come: from here on the end of one is the end of all

    # Joining

    def __enter__(self) -> Self:
        if self.place:
            try:
                self._join(self.place)
            except BaseException as error:
                self._bye(*ends.outcome(error))
                raise
        return self

    def _join(self, place: Place) -> None:
        host, port = place.address
        if place.process == 0:
            self._desk = desk.Desk(port, place.processes, self._timeout, self._heartbeat)
        self._socket = self._connect("127.0.0.1" if self._desk else host, port)
        keep_alive(self._socket, self._heartbeat)
        threading.Thread(target=self._listen, name="hosts", daemon=True).start()
        logging.info("process %d of %d waits for the others at %s", place.process, place.processes, place.coordinator)
        named = {"process": place.process, "processes": place.processes, "host": socket.gethostname()}
        self._send("card", {**named, "fields": self._card})
        # The clock of process 0 counts, which may start later.
        start = self._wait("start", 2 * self._timeout + ends.GRACE)
        token = start["token"]
        assert self._workdir is not None
        note = self._workdir / f".token-{token[:8]}"  # a new name: network disks remember what old files held
        if self._desk:
            files.check_writable(self._workdir)
            files.write_whole(note, token)
        self.share(None)  # it is written
        self._send("read", None if self._desk else _unread(note, token))
        try:
            self._wait("go", self._timeout + 2 * desk.READ_SECONDS)
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
        status, text = (0, "") if error is None else ends.outcome(error)
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
                    self._desk.empty.wait(ends.grace(status) + 2 if self._watched else ends.GRACE)

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
            say(self._socket, kind, value)

    def _wait(self, kind: str, seconds: float | None = None) -> Any:
        """What process 0 says. Raises HostsError for a problem that it tells instead, and when it has gone."""
        words = {kind, "problem", "gone", "lost"}
        with self._changed:
            if not self._changed.wait_for(lambda: words & self._got.keys(), seconds):
                host, port = self.place.address if self.place else ("", 0)
                raise HostsError(
                    f"process 0 at {host}:{port} gives no answer (waited {seconds:.0f} s for '{kind}'): look into its "
                    "log"
                )
            if kind in self._got:
                return self._got.pop(kind)
        if self._watched:
            self._give_way(ends.GRACE)
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
            time.sleep(ends.grace(self._got["gone"][0]) + ends.GRACE)

    def _listen(self) -> None:
        """Thread: takes what process 0 says, and tells it of SIGTERM; ends this process when another one has gone."""
        assert self._socket is not None
        sent, lines = False, Lines(self._socket)
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
                self._got["gone"] = ends.gone(0, self._got["first"], 1, "")
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
            time.sleep(ends.GRACE)
        else:  # an error of all hosts is told by each
            if status == 128 + signal.SIGTERM:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(ends.grace(status))
            print(why, file=sys.stderr, flush=True)
        if self._desk:
            self._desk.empty.wait(ends.GRACE)
        self._exit(status)


def _unread(note: files.AnyPath, token: str) -> str | None:
    """Why the run's folder is not the one that process 0 sees, or None."""
    end, found = time.monotonic() + desk.READ_SECONDS / 2, ""
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
