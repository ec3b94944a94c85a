"""Compiles for a machine that is not at hand, in a separate process, with limits on time and memory.

For TPU slices the compiler is libtpu's, which needs no TPU. It spends most of its time on generating code, of which a
plan needs little: unless `finish` is set, the process is ended as soon as libtpu has written the optimised, partitioned
and scheduled program (libtpu's flag `--xla_jf_dump_to`). From its text `messages` and `usage` read what it sends,
computes and stores. Where a program is compiled before that, the compiler's own figures are used.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vf.data.processes import follow_parent
from vf.plan.targets import Target
from vf.types import UserError

# Of libtpu: it compiles several times faster, to programs that are a little slower.
EFFORT = {"exec_time_optimization_effort": -1.0}
# Memory that the compiler assigns, relative to `usage.peak_bytes`: 1.23 for a U-Net pair of 1.5 B on v5e:8x8.
PACKING = 1.25
_DONE, _FAILED, _TEXT = "done.json", "error.txt", "compiled.txt"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The result of compiling.

    Attributes:
        text: text of one device's program, after all optimisation and partitioning.
        seconds: time of compiling, until it ended or was ended.
        temporary_bytes: memory of a device beside arguments; None where the compiler was ended before it reported it.
        optimal_seconds: the compiler's lower bound on the time of a step; None likewise.
        failure: the compiler's error where it refused the program, whose text is then empty; None where it did not.
    """

    text: str
    seconds: float
    temporary_bytes: int | None = None
    optimal_seconds: float | None = None
    failure: str | None = None


def devices_of(target: Target) -> Sequence[Any]:
    """The devices of a TPU slice, as a compiler needs them, or fake CPU devices in place of GPUs and CPUs.

    Raises UserError where libtpu is missing, or this process has too few CPU devices.
    """
    if target.topology_name is None:
        available = jax.devices("cpu")
        if len(available) < target.devices:
            raise UserError(
                f"target {target.text} needs {target.devices} fake CPU devices, and jax was started with "
                f"{len(available)}: set JAX_NUM_CPU_DEVICES={target.devices}"
            )
        return available[: target.devices]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"target {target.text} is compiled by libtpu, which is not installed: pip install 'jax[tpu]', or count "
            "without compiling by plan.compile=none"
        )
    from jax.experimental import topologies

    # There is no metadata server to query outside a cloud, and several processes may load libtpu.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    # Of this machine, not of the target: where they are missing, libtpu prints five lines about them.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=target.topology_name, **target.topology_options
    )
    return topology.devices


@dataclasses.dataclass(frozen=True)
class _FakeDevice:
    """A device with a position on the machine, which is all that shardings need; nothing can be compiled for it."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0


def fake_devices(target: Target) -> Sequence[Any]:
    """As many fake devices as the target has, to count with; nothing can be compiled for them."""
    if not target.topology_name:
        return [_FakeDevice(i, "cpu", "cpu") for i in range(target.devices)]
    kind = target.chip.name if target.chip else ""
    places = itertools.product(range(target.slices), *map(range, target.shape))
    return [_FakeDevice(i, "tpu", kind, (*place, 0)[:3], which) for i, (which, *place) in enumerate(places)]


def compile_in_process(
    lower: Callable[[Sequence[Any]], Any], target: Target, minutes: float, gigabytes: float, finish: bool = False
) -> Compiled | None:
    """Compiles, in a separate process, the program that `lower` makes for the target's devices.

    Args:
        lower: devices -> the lowered program; picklable.
        target: the machine.
        minutes, gigabytes: limits on time and resident memory, after which the process is ended.
        finish: whether to continue with code generation once the optimised program is written. A limit that is
            exceeded then ends only that.

    Returns None where a limit was exceeded before the optimised program was written.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="vf-plan-") as name:
        folder = Path(name)
        child = spawn.Process(target=_compile, args=(lower, target, folder), daemon=True)
        began = time.monotonic()
        child.start()
        try:
            size, text, text_seconds = 0, None, 0.0
            while child.is_alive():
                child.join(2)
                if not text:
                    text, size = _read_dump(folder, size)
                    text_seconds = time.monotonic() - began
                if text and not finish:
                    return Compiled(text, text_seconds)
                over_time = time.monotonic() - began > 60 * minutes
                over_memory = _resident_bytes(child.pid) > 1e9 * gigabytes
                if over_time or over_memory:
                    reason = f"{minutes:g} minutes" if over_time else f"{gigabytes:g} GB"
                    logging.warning("compiling was ended after %s", reason)
                    return Compiled(text, text_seconds) if text else None
        finally:
            child.kill()
            child.join()
        seconds = time.monotonic() - began
        if (folder / _FAILED).exists():
            return Compiled("", seconds, failure=(folder / _FAILED).read_text())
        if not (folder / _DONE).exists():
            log = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"the compiler ended with status {child.exitcode}: {' '.join(log[-3:])[-500:]}")
        return Compiled((folder / _TEXT).read_text(), seconds, **json.loads((folder / _DONE).read_text()))


def _read_dump(folder: Path, previous: int) -> tuple[str | None, int]:
    """(text of the optimised program, its size); None for the text unless the file is complete.

    It is complete where its size is still `previous`, the one at the last call.
    """
    for path in folder.glob("dump/*-TLP-hlo.txt"):
        size = path.stat().st_size
        text = path.read_text() if size and size == previous else ""
        return (text if text.rstrip().endswith("}") else None), size
    return None, 0


def _resident_bytes(pid: int | None) -> float:
    with contextlib.suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0.0


def _compile(lower: Callable[[Sequence[Any]], Any], target: Target, folder: Path) -> None:
    """Compiles; runs in the separate process, which writes its results into `folder`."""
    follow_parent()  # a signal ends the parent at once
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tpu = target.topology_name is not None
    if tpu:
        (folder / "dump").mkdir()
        flags = f"--xla_jf_dump_to={folder / 'dump'} --xla_jf_dump_hlo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
    jax.config.update("jax_enable_compilation_cache", False)
    lowered = lower(devices_of(target))
    try:
        compiled = lowered.compile(compiler_options=EFFORT if tpu else None)
    except jax.errors.JaxRuntimeError as error:
        (folder / _FAILED).write_text(str(error).splitlines()[0])
        return
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    (folder / _TEXT).write_text(compiled.as_text())
    figures = {"temporary_bytes": memory.temp_size_in_bytes, "optimal_seconds": cost.get("optimal_seconds")}
    (folder / "part").write_text(json.dumps(figures))
    (folder / "part").rename(folder / _DONE)
