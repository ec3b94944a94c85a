"""A run is a folder that explains itself: what was run, on what, and every number it gave.

    config.json     the resolved config (an earlier, different one is kept as config.<hash>.json)
    run.json        {"starts": [...]}: command, versions, revision, devices, mesh and seed of every start
    parameters.txt  every array of the model, with its shape
    metrics.jsonl   one line of JSON for each report; the only file that is read back
    tensorboard/    the same numbers, and clips, as TensorBoard event files

In an object store, where nothing can be appended, the lines are parts `metrics/<start>-<n>.jsonl` (see `files`). There
lines and event files are written every ten seconds; scores and remarks are there when the call returns.

A line of `metrics.jsonl` is one of

    {"step", "time", "train/loss": 0.03, ...}                                               scalars
    {"step", "time", "score", "value", "protocol", "protocol_hash", "reference"?, "target"?, "details"?}  one score
    {"step", "time", "text", "value"}                                                       a remark

JSON has no NaN and no infinity: they are written as the strings "nan", "inf" and "-inf", and read back as
floats.

The event files are written with tensorboardX's record writer. clu's metric_writers would import TensorFlow,
which takes device memory for itself and is needed for nothing else here.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from vf import files, video
from vf.metrics.protocol import plain, protocol_hash
from vf.types import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What compiles, where it is installed: hosts that run different programs wait for one another for ever.
COMPILERS = ("libtpu", "jax-cuda12-pjrt", "jax-cuda12-plugin", "jax-cuda13-pjrt", "jax-cuda13-plugin")
NOT_FINITE = ("nan", "inf", "-inf")
METRICS = "metrics.jsonl"
MOST_BYTES = 8 << 20  # of an event file in a store, which is copied whole each time it has grown


class Recorder:
    """Writes the folder of a run; on hosts other than the first (`is_writer=False`) no method does anything.

    Makes `workdir` where needed and keeps what is there. Usable as a context manager, which closes it. Raises UserError
    when the folder cannot be written."""

    def __init__(self, workdir: str | files.AnyPath, *, is_writer: bool = True, events: str = "tensorboard") -> None:
        self.workdir = files.path(workdir)
        # A job beside a training job needs event files of its own: TensorBoard forgets what a folder held from the step
        # on at which one of its writers starts.
        self._folder = self.workdir / events
        self.is_writer = is_writer
        self._metrics = self.workdir / METRICS
        self._events: Any = None  # writer of the event file `_event_file`
        self._event_file: Path | None = None
        self._spool = self._folder  # where event files grow
        self._gathered: files.Gathered | None = None
        if not is_writer:
            return
        files.check_writable(self.workdir)
        if files.is_remote(self.workdir):
            self._spool = Path(tempfile.mkdtemp(prefix="vf-"))
            weakref.finalize(self, shutil.rmtree, self._spool, ignore_errors=True)
            self._gathered = files.Gathered(self._metrics)
            # The last chance of a program that ends without `close`, and no sure one: its client may be gone by then.
            weakref.finalize(self, self._gathered.flush)  # before rmtree: the latest finalizer comes first
            return
        try:
            self._close_torn_line()
        except OSError as error:
            raise UserError(
                f"expected a file that can be written and got {self._metrics} ({error.strerror or error}): "
                "choose another run folder"
            ) from error

    def flush(self) -> None:
        """Writes what still waits for a store; done when the call returns. On a disk nothing waits."""
        if self._gathered is not None:
            self._gathered.flush()

    def close(self) -> None:
        """Flushes, and ends the event file; what is recorded later begins another one."""
        self.flush()
        if self._events is not None:
            self._events.close()
            self._events = None
            if self._gathered is not None and self._event_file is not None:
                self._event_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as second:
            if error is None:
                raise
            logging.warning("the last lines of %s were not written (%s)", self._metrics, second)  # `error` goes on

    def describe(
        self,
        config: Mapping[str, Any],
        *,
        mesh: jax.sharding.Mesh | Mapping[str, int] | None = None,
        seed: int | None = None,
        **facts: Any,
    ) -> None:
        """Writes config.json and adds this start, with any further `facts`, to the list in run.json."""
        if not self.is_writer:
            return
        text = json.dumps(plain(config), indent=2, allow_nan=False) + "\n"
        path = self.workdir / "config.json"
        try:
            earlier = path.read_bytes()
        except FileNotFoundError:
            earlier = text.encode()
        if earlier != text.encode():
            files.write_whole(self.workdir / f"config.{hashlib.sha256(earlier).hexdigest()[:8]}.json", earlier)
        files.write_whole(path, text)

        devices = jax.devices()
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": command_line(sys.orig_argv),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "git": revision(Path(__file__).resolve().parents[1]),
            "devices": {
                "kind": devices[0].device_kind,
                "platform": devices[0].platform,
                "count": len(devices),
            },
            "processes": jax.process_count(),
            "mesh": dict(mesh.shape) if isinstance(mesh, jax.sharding.Mesh) else mesh,
            "seed": seed,
            **facts,
        }
        path = self.workdir / "run.json"
        try:
            starts = list(json.loads(path.read_text())["starts"])
        except FileNotFoundError:
            starts = []
        except (ValueError, KeyError, TypeError):  # Edited by hand: set it aside rather than lose it or stop.
            files.write_whole(self.workdir / f"run.damaged.{time.time_ns()}.json", path.read_bytes())
            starts = []
        files.write_whole(path, json.dumps({"starts": [*starts, plain(start)]}, indent=2, allow_nan=False) + "\n")

    def file(self, name: str, text: str) -> None:
        """Writes `text` as the file `name` of the run's folder, whole or not at all."""
        if self.is_writer:
            files.write_whole(self.workdir / name, text if text.endswith("\n") else text + "\n")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One line with all `values` (numbers, or arrays of one element) at `step`.

        Raises ValueError when a name is one that other lines or columns use."""
        if not self.is_writer:
            return
        if taken := {"step", "time", "score", "text"} & values.keys():
            raise ValueError(f"scalars may not be named {sorted(taken)}")
        numbers = {name: float(value) for name, value in values.items()}
        self._append(step, numbers)
        self._tensorboard(step, [{"tag": name, "simple_value": number} for name, number in numbers.items()])

    def score(
        self,
        step: int,
        name: str,
        value: Any,
        protocol: Mapping[str, Any],
        *,
        reference: float | None = None,
        target: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """One score with its `protocol`: whatever must be equal for two values to be compared.

        `reference` is the value on real clips, `target` the value hoped for, `details` how sure the value is. Raises
        ValueError when the protocol is empty."""
        if not protocol:
            raise ValueError(f"the score {name!r} needs the protocol it was measured by")
        if not self.is_writer:
            return
        line = {"score": name, "value": float(value), "protocol": protocol}
        line["protocol_hash"] = protocol_hash(protocol)
        line |= {key: float(x) for key, x in (("reference", reference), ("target", target)) if x is not None}
        if details:
            line["details"] = details
        self._append(step, line, at_once=True)
        self._tensorboard(step, [{"tag": f"score/{name}", "simple_value": float(value)}])

    def text(self, step: int, name: str, value: str) -> None:
        """One remark, such as why the run stopped."""
        if self.is_writer:
            self._append(step, {"text": name, "value": value}, at_once=True)

    def video(self, step: int, name: str, clips: np.ndarray, *, fps: float = 8, columns: int = 8) -> None:
        """Shows clips u8 [n t h w 3] in TensorBoard as one moving wall; the clips themselves are not kept."""
        if not self.is_writer:
            return
        wall = video.grid(np.asarray(clips), columns)
        image = {
            "height": wall.shape[1],
            "width": wall.shape[2],
            "colorspace": 3,
            "encoded_image_string": video.encode_gif(wall, fps),
        }
        self._tensorboard(step, [{"tag": name, "image": image}])

    def _append(self, step: int, line: Mapping[str, Any], at_once: bool = False) -> None:
        whole = {"step": int(step), "time": round(time.time(), 3), **line}
        text = json.dumps(plain(whole), allow_nan=False)
        if self._gathered is None:
            files.append_line(self._metrics, text)
            return
        self._gathered.line(text)
        if at_once:
            self._gathered.flush(lines_alone=True)

    def _close_torn_line(self) -> None:
        """Ends the line that a crash tore, so that the first new line is not glued to it."""
        if not self._metrics.exists() or not self._metrics.stat().st_size:
            return
        with self._metrics.open("rb+") as file:
            file.seek(-1, 2)
            if file.read() != b"\n":
                file.write(b"\n")

    def _tensorboard(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        now = time.time()
        if self._events is None:
            # A name of our own: tensorboardX's holds the machine's name, and two starts in a second share it.
            first, name = self._event_file is None, f"events.out.tfevents.{int(now)}.{time.time_ns()}"
            self._spool.mkdir(parents=True, exist_ok=True)
            self._event_file = self._spool / name
            self._events = RecordWriter(str(self._event_file))
            weakref.finalize(self, self._events.close)
            self._events.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            if first:
                # Tells TensorBoard to forget what an earlier start drew from this step on.
                start = Event(wall_time=now, step=int(step), session_log=SessionLog(status=SessionLog.START))
                self._events.write(start.SerializeToString())
        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._events.write(Event(wall_time=now, step=int(step), summary=summary).SerializeToString())
        self._events.flush()
        if self._gathered is not None and self._event_file is not None:
            self._gathered.file(self._event_file, self._folder / self._event_file.name)
            if self._event_file.stat().st_size > MOST_BYTES:
                self.close()  # the next event begins another file


def read_metrics(workdir: str | files.AnyPath) -> list[dict[str, Any]]:
    """What metrics.jsonl and its parts hold, by steps: all scalars of a step in one dict, then its scores and remarks.

    Where a run went back to an earlier step, the later value of the same step and name wins; two protocols
    make two scores. A torn line is left out, and a run without the file has no lines."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in _lines(files.path(workdir) / METRICS):
        if "text" in line:
            rows[line["step"], 2, line["text"]] = line
            continue
        line = {key: float(x) if x in NOT_FINITE and key != "score" else x for key, x in line.items()}
        if "score" in line:
            rows[line["step"], 1, line["score"], line.get("protocol_hash")] = line
        else:
            rows.setdefault((line["step"], 0), {}).update(line)
    return [rows[key] for key in sorted(rows, key=lambda key: key[:2])]


def _lines(path: files.AnyPath) -> list[dict[str, Any]]:
    """What was reported, in the order in which it was."""
    texts, more = files.read_lines(path)
    found = []
    for text in [*texts, *more]:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    if more:  # jobs that ran beside each other wrote parts of their own
        found.sort(key=lambda line: at if isinstance(at := line.get("time"), int | float) else 0)
    return found


def command_line(argv: list[str]) -> str:
    """A command line as a shell would take it, with the folders of this machine cut from absolute paths."""
    words = [Path(argv[0]).name, *argv[1:]] if argv else []
    # An absolute path begins a word or follows "=" or ","; a URL's slashes follow a colon and stay.
    return shlex.join(
        re.sub(r"(^|[=,])(?:~|[A-Za-z]:)?[/\\](?:[^,]*[/\\])?(?=[^,])", r"\1.../", word) for word in words
    )


def version(package: str) -> str | None:
    """Of an installed package; None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint(config: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, str]:
    """{name: value}, as text, of all that must be the same on every host of a run.

    config: the resolved config, as JSON can say it. facts: what else the caller wants to be the same.
    """
    fields = {f"config.{name}": json.dumps(value) for name, value in flatten_dict(config, sep=".").items()}
    code = {"code": sources(Path(__file__).resolve().parents[1]), "Python": platform.python_version()}
    flags = {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}
    return {**facts, **fields, **code, **flags, **{name: str(version(name)) for name in (*PACKAGES, *COMPILERS)}}


def sources(root: Path, folders: Sequence[str] = ("vf", "configs")) -> str:
    """Hash of the Python files in `folders` of `root`, wherever they come from."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def revision(root: Path) -> dict[str, Any] | None:
    """The git revision at `root`, `dirty` when code or configs differ from it; None without a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout, whose revision says nothing about us.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "vf", "configs")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


class Progress:
    """One line on how far the run is: `step 1200/4000  loss 0.0312  3.41 steps/s  ETA 13m40s`.

    Redrawn in place on a terminal, line under line elsewhere, at most once in `every_seconds`. The rate is
    the mean since the first step after `start` was done: its compilation does not count."""

    def __init__(self, total: int, start: int = 0, every_seconds: float = 5.0, stream: TextIO | None = None) -> None:
        self.total, self.start, self.every_seconds = total, start, every_seconds
        self.stream = sys.stdout if stream is None else stream
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf

    def update(self, step: int, loss: Any, **extra: Any) -> None:
        """Call after each step; `loss` and `extra` may be arrays on the device.

        They are fetched only when a line is due, so that a call costs the run no waiting."""
        now = time.monotonic()
        if self._first is None and step > self.start:
            self._first = (step, now)
        if now - self._printed < self.every_seconds and step < self.total:
            return
        self._printed = now
        since, then = self._first or (step, now)
        rate = (step - since) / (now - then) if step > since and now > then else 0.0
        parts = [f"step {step}/{self.total}", f"loss {float(loss):.4g}"]
        parts += [f"{name} {x if isinstance(x, str) else format(float(x), '.4g')}" for name, x in extra.items()]
        parts += [f"{rate:.3g} steps/s", f"ETA {_duration((self.total - step) / rate)}"] if rate else []
        line = "  ".join(parts)
        if self.stream.isatty():
            self.stream.write(f"\r{line}\x1b[K" + ("\n" if step >= self.total else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
