"""How fast a run is, and where its start-up went: numbers for the log, of this machine.

FLOPs are counted from the traced step (`vf/plan/count.py`): three times the forward pass's, whatever is computed again.
The peak that MFU relates them to is the chip's published one (`vf/plan/chips.py`), for chips that are known there.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from vf import files
from vf.plan.chips import CHIPS, Chip

STARTED = time.time() - time.process_time()  # about when the process began: importing is nearly all it has done


def chip_of(device: Any) -> Chip | None:
    """The chip that a device is, as far as it is known."""
    kind = device.device_kind.lower().replace(" ", "").replace("-", "")
    names = {"tpuv5lite": "v5e", "tpuv5e": "v5e", "tpuv5": "v5p", "tpuv5p": "v5p", "tpuv6lite": "v6e", "tpuv6e": "v6e",
             "tpuv4": "v4"}  # fmt: skip
    if kind in names:
        return CHIPS[names[kind]]
    if "a100" in kind:
        return CHIPS["A100-80" if "80g" in kind else "A100-40"]
    return next((CHIPS[name] for name in ("H100", "H200", "B200") if name.lower() in kind), None)


class Phases:
    """Seconds of each part of the start-up, in the order in which they ended."""

    def __init__(self, began: float = STARTED) -> None:
        self.seconds: dict[str, float] = {}
        self._since = began

    def end(self, name: str) -> None:
        """What ran since the last call was `name`."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s to the first step: {parts}"


class Meter:
    """Rates of a run between two reports.

    Args:
        flops: useful ones of a step, over all devices.
        clips: of a step.
        half: whether the networks compute in bfloat16.
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
        """Leaves out of the next reading so many seconds, in which no step was made."""
        self._since += seconds

    def read(self, steps: int) -> dict[str, float]:
        """Rates of the `steps` since the last reading: steps/s; clips/s and TFLOP/s of each device; MFU where the
        chip's peak is known; GiB of device memory, now and at most, where the platform tells."""
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
        stats = [found for device in self._local if (found := device.memory_stats())]
        for name, key in (("memory_gib", "bytes_in_use"), ("memory_peak_gib", "peak_bytes_in_use")):
            if known := [found[key] for found in stats if key in found]:
                values[name] = max(known) / 2**30
        return values


class Trace:
    """Records `steps` steps for xprof, from the tenth after the start on, when all is compiled and warm."""

    def __init__(self, folder: files.AnyPath, first: int, steps: int) -> None:
        self.folder, self.begin, self.steps = folder, first + 10, steps
        self._running = False
        self._here = folder  # the profiler knows disks only

    def before(self, step: int) -> None:
        """Call before each step."""
        if self.steps and step == self.begin:
            self._here = Path(tempfile.mkdtemp(prefix="vf-")) if files.is_remote(self.folder) else self.folder
            jax.profiler.start_trace(str(self._here))
            self._running = True

    def after(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Call after each step with what it will give: the last traced one is waited for."""
        if self._running and step >= self.begin + self.steps - 1:
            jax.block_until_ready(numbers)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            if self._here != self.folder:
                files.copy_tree(Path(self._here), self.folder)
                shutil.rmtree(self._here, ignore_errors=True)
            logging.info("trace of %d steps: xprof --logdir=%s", self.steps, self.folder)
