"""A run is a folder that explains itself: what was run, on what, and every number it gave.

    config.json     the resolved config of the latest start
    run.json        {"starts": [...]}: where each start's numbers come from (`vf.run.provenance`), and its config
    parameters.txt  every array of the model, with its shape
    metrics.jsonl   one line of JSON for each report (`vf.run.metrics_file`)
    tensorboard/    the same numbers, and clips, as TensorBoard event files
    samples/        clips and pictures of them (`vf.run.media`)
    index.html      all of it on one page (`vf.run.page`)

The recorder writes the first five. In an object store, lines and event files are written every ten seconds; scores and
remarks are written when the call returns.

The event files are written with tensorboardX's record writer. Its SummaryWriter, whose `purge_step` writes the event
that `_tensorboard` writes at a start, leaves events to a thread, and does not report when they are in the file, nor
which file it is, so that they could not be copied to a store. clu's metric_writers would import TensorFlow, which
allocates device memory and has no other use here.
"""

import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import numpy as np
from absl import logging

from vf import files, video
from vf.metrics.protocol import protocol_hash, to_json
from vf.run.metrics_file import METRICS
from vf.run.provenance import describe_start
from vf.types import UserError

T = TypeVar("T")
MOST_BYTES = 8 << 20  # of an event file in a store, which is copied whole each time it has grown


class Recorder:
    """Writes the folder of a run; on hosts other than the first (`is_writer=False`) no method does anything.

    Makes `workdir` where needed and keeps what is there. Usable as a context manager, which closes it. Raises UserError
    when the folder cannot be written."""

    def __init__(self, workdir: str | files.AnyPath, *, is_writer: bool = True, events: str = "tensorboard") -> None:
        self.workdir = files.path(workdir)
        # A job beside a training job needs separate event files: TensorBoard forgets what a folder held from the step
        # on at which one of its writers starts.
        self._folder = self.workdir / events
        self.is_writer = is_writer
        self._metrics = self.workdir / METRICS
        self._events: Any = None  # writer of the event file `_event_file`
        self._event_file: Path | None = None
        self._spool = self._folder  # where event files grow
        self._store: files.StoreWriter | None = None
        if not is_writer:
            return
        files.check_writable(self.workdir)
        if files.is_remote(self.workdir):
            self._spool = Path(tempfile.mkdtemp(prefix="vf-"))
            weakref.finalize(self, shutil.rmtree, self._spool, ignore_errors=True)
            self._store = files.StoreWriter(self._metrics)
            # The last chance of a program that ends without `close`, and no sure one: its client may be gone by then.
            weakref.finalize(self, self._store.flush)  # before rmtree: the latest finalizer comes first
            return
        try:
            self._close_torn_line()
        except OSError as error:
            raise UserError(
                f"expected a file that can be written and got {self._metrics} ({error.strerror or error}): "
                f"{files.make_room(error)}choose another run folder"
            ) from error

    def flush(self) -> None:
        """Writes what still waits for a store; done when the call returns. On a disk nothing waits."""
        if self._store is not None:
            self._store.flush()

    def close(self) -> None:
        """Flushes, and ends the event file; what is recorded later begins another one."""
        self.flush()
        if self._events is not None:
            self._events.close()
            self._events = None
            if self._store is not None and self._event_file is not None:
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
        """Writes config.json, and adds this start with its config and any further `facts` to the list in run.json."""
        if not self.is_writer:
            return
        start = to_json(describe_start(mesh=mesh, seed=seed, **facts, config=config))
        *starts, last = self._earlier("run", lambda run: list(map(dict, run["starts"]))) or [{}]
        if "config" not in last and (before := self._earlier("config", dict)):  # of earlier versions, or a damaged file
            last["config"] = before
        # The history first: a job that is killed in between loses no config.
        self._write_json("run", {"starts": [*starts, *([last] if last else []), start]})
        self._write_json("config", start["config"])

    def _earlier(self, name: str, convert: Callable[[Any], T]) -> T | None:
        """What a JSON file of the run holds, converted; None without it. A damaged one, edited by hand, is set aside
        rather than lost."""
        path = self.workdir / f"{name}.json"
        try:
            return convert(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            files.write_whole(self.workdir / f"{name}.damaged.{time.time_ns()}.json", path.read_bytes())
            return None

    def _write_json(self, name: str, value: Any) -> None:
        files.write_whole(self.workdir / f"{name}.json", json.dumps(value, indent=2, allow_nan=False) + "\n")

    def file(self, name: str, text: str) -> None:
        """Writes `text` as the file `name` of the run's folder, whole or not at all."""
        if self.is_writer:
            files.write_whole(self.workdir / name, text if text.endswith("\n") else text + "\n")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line with all `values` (numbers, or arrays of one element) at `step`.

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
        """Writes one score with its `protocol`: whatever must be equal for two values to be compared.

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
        """Writes one remark, such as why the run stopped."""
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
        text = json.dumps(to_json(whole), allow_nan=False)
        if self._store is None:
            files.append_line(self._metrics, text)
            return
        self._store.line(text)
        if at_once:
            self._store.flush(lines_only=True)

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
        if self._store is not None and self._event_file is not None:
            self._store.file(self._event_file, self._folder / self._event_file.name)
            if self._event_file.stat().st_size > MOST_BYTES:
                self.close()  # the next event begins another file
