"""Measures how fast a run is and how long each phase of its start-up takes, for the log.

FLOPs are counted from the traced step (`vf/plan/count.py`): three times those of the forward pass, not counting what
rematerialisation computes again. MFU is their rate divided by the chip's published peak (`vf/plan/chips.py`), for chips
that are listed there.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
from absl import logging
from jax.sharding import Mesh

from vf import files
from vf.activity import ACTIVITY
from vf.plan.chips import CHIPS, Chip
from vf.run.metrics_file import read_metrics

# About when the process began: importing, which is nearly all that it has done so far, takes little but CPU time.
STARTED = time.time() - time.process_time()
PREFIX = "startup/"  # of the names of phases in metrics


def chip_of(device: Any) -> Chip | None:
    """The published figures of a jax device's chip, by the name that its driver reports; None for unknown chips."""
    kind = device.device_kind.lower().replace(" ", "").replace("-", "")
    names = {"tpuv5lite": "v5e", "tpuv5e": "v5e", "tpuv5": "v5p", "tpuv5p": "v5p", "tpuv6lite": "v6e", "tpuv6e": "v6e",
             "tpuv4": "v4"}  # fmt: skip
    if kind in names:
        return CHIPS[names[kind]]
    if "a100" in kind:
        return CHIPS["A100-80" if "80g" in kind else "A100-40"]
    return next((CHIPS[name] for name in ("H100", "H200", "B200") if name.lower() in kind), None)


class Phases:
    """Seconds that each phase of a job's start takes. Each is announced, with what the last time took where known.

    Args:
        began: when the process began, in seconds since the epoch.
        last: {name: seconds} of the phases of an earlier start.
    """

    def __init__(self, began: float = STARTED, last: Mapping[str, float] | None = None) -> None:
        self._seconds: dict[str, float] = {}
        self._since, self._last = began, last or {}

    @classmethod
    def of(cls, workdir: files.AnyPath) -> Self:
        """Those of a job in a run's folder, whose metrics know of earlier starts."""
        last: dict[str, float] = {}
        for row in read_metrics(workdir):
            last |= {name: value for name, value in row.items() if name.startswith(PREFIX)}
        return cls(last={name.removeprefix(PREFIX): value for name, value in last.items()})

    def end(self, name: str) -> None:
        """Ends the first phase `name`, which began with the process."""
        self._seconds[name] = time.time() - self._since

    @contextlib.contextmanager
    def phase(self, name: str, doing: str) -> Iterator[None]:
        """The phase `name`, in which the job is `doing` something; of a name that comes again times add up.

        A long one is said again now and then (`vf.activity`)."""
        seconds = self._last.get(name, 0.0)
        logging.info("%s%s", doing, f"; the last time took {seconds:.1f} s" if seconds >= 1 else "")
        began = time.time()
        with ACTIVITY.doing(doing, seconds, announced=True):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.time() - began

    def compiled(self, program: Any, name: str) -> Callable[..., Any]:
        """A jitted function that is compiled at its first call, in phases of its own; its shapes must not change."""
        made: list[Any] = []

        def call(*args: Any) -> Any:
            if not made:
                with self.phase(f"lower {name}", f"tracing the program of {name}"):
                    lowered = program.lower(*args)
                with self.phase(f"compile {name}", f"compiling the program of {name}"):
                    made.append(lowered.compile())
                logging.info("running the program of %s", name)
            return made[0](*args)

        return call

    def take(self, what: str) -> dict[str, float]:
        """{name for metrics: seconds} of phases that ended since the last call, logged as preparation for `what`."""
        seconds, self._seconds = self._seconds, {}
        if seconds:
            parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            logging.info("%.1f s of preparation for %s: %s", sum(seconds.values()), what, parts)
        return {f"{PREFIX}{name}": value for name, value in seconds.items()}


class Meter:
    """Measures the rates of a run between two readings.

    Args:
        mesh: the mesh on which the run computes.
        flops: useful FLOPs of one training step, summed over all devices.
        clips: clips per step, over all devices.
        half: whether the networks compute in bfloat16.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self, mesh: Mesh, flops: float, clips: int, half: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._flops, self._clips, self._devices = flops, clips, mesh.size
        chip = chip_of(mesh.devices.flat[0])
        self._peak = None if chip is None else chip.flops_bf16 if half else chip.flops_f32
        self._local = list(mesh.local_devices)
        self._clock, self._since = clock, clock()

    def skip(self, seconds: float) -> None:
        """Leaves `seconds`, during which no step was trained, out of the next reading."""
        self._since += seconds

    def read(self, steps: int) -> dict[str, float]:
        """Rates of the `steps` trained since the last reading, by name for the log.

        Steps per second; clips and TFLOP per second and device; MFU in [0, 1] where the chip's peak is known; the
        largest memory of a local device in GiB, in use now and at its peak, where the platform reports it.
        """
        now = self._clock()
        rate = steps / max(now - self._since, 1e-9)
        self._since = now
        flops = self._flops * rate / self._devices
        values = {
            "steps_per_s": rate,
            "clips_per_s_per_device": self._clips * rate / self._devices,
            "tflops_per_device": flops / 1e12,
        }
        if self._peak:
            values["mfu"] = flops / self._peak
        stats = [all_stats for device in self._local if (all_stats := device.memory_stats())]
        for name, key in (("memory_gib", "bytes_in_use"), ("memory_peak_gib", "peak_bytes_in_use")):
            if values_found := [all_stats[key] for all_stats in stats if key in all_stats]:
                values[name] = max(values_found) / 2**30
        return values


class Trace:
    """Traces `steps` training steps for xprof, from the tenth after the start on, when everything is compiled and warm.

    Args:
        folder: where the trace is written.
        first: the step from which the run starts.
        steps: number of steps; 0 traces none.
    """

    def __init__(self, folder: files.AnyPath, first: int, steps: int) -> None:
        self.folder, self.begin, self.steps = folder, first + 10, steps
        self._running = False
        self._local_folder = folder  # the profiler writes to disks only

    def before(self, step: int) -> None:
        """Starts the trace before its first step. To be called before each step."""
        if self.steps and step == self.begin:
            self._local_folder = Path(tempfile.mkdtemp(prefix="vf-")) if files.is_remote(self.folder) else self.folder
            jax.profiler.start_trace(str(self._local_folder))
            self._running = True

    def after(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Ends the trace after its last step, waiting for that step's `numbers`. To be called after each step."""
        if self._running and step >= self.begin + self.steps - 1:
            jax.block_until_ready(numbers)
            self.close()

    def close(self) -> None:
        """Ends the trace if one is running, and writes it."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            if self._local_folder != self.folder:
                files.copy_tree(Path(self._local_folder), self.folder)
                shutil.rmtree(self._local_folder, ignore_errors=True)
            logging.info("trace of %d steps: xprof --logdir=%s", self.steps, self.folder)
