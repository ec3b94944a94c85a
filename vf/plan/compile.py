"""Compiling in a process of its own, for a machine that is not here: with limits of time and memory, and an early end.

For TPU slices the compiler is libtpu's, which needs no TPU. Most of its time goes into generating code, of which a plan
needs little: unless told to finish, the process is ended as soon as libtpu has written down the optimised, partitioned
and scheduled program (libtpu's flag `--xla_jf_dump_to`), from whose text `messages` and `usage` read what it sends,
computes and keeps. Programs that are ready sooner come with the compiler's own figures, too.
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

from vf.plan.targets import Target
from vf.types import UserError

EFFORT = {"exec_time_optimization_effort": -1.0}  # of libtpu: compiles several times faster, programs a little slower
PACKING = 1.25  # the compiler's own assignment over `usage.peak_bytes`: 1.23 for a U-Net pair of 1.5 B on v5e:8x8
_DONE, _FAILED, _TEXT = "done.json", "error.txt", "compiled.txt"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
        text: of the program of one device, after all optimisation and partitioning.
        seconds: of compiling, as far as it went.
        temporary_bytes: of a device's memory, beside arguments; None where the compiler was ended before it said.
        optimal_seconds: the compiler's own bound of the step; None likewise.
        failure: what the compiler said where it refused; the text is empty then.
    """

    text: str
    seconds: float
    temporary_bytes: int | None = None
    optimal_seconds: float | None = None
    failure: str | None = None


def devices_of(target: Target) -> Sequence[Any]:
    """The devices of a TPU slice, as a compiler needs them, or fake CPU devices in place of GPUs and CPUs.

    Raises UserError where libtpu is missing, or this process has not so many CPU devices.
    """
    if target.topology_name is None:
        found = jax.devices("cpu")
        if len(found) < target.devices:
            raise UserError(
                f"target {target.text} needs {target.devices} fake CPU devices, and jax was started with {len(found)}: "
                f"set JAX_NUM_CPU_DEVICES={target.devices}"
            )
        return found[: target.devices]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"target {target.text} is compiled by libtpu, which is not installed: pip install 'jax[tpu]', or count "
            "without compiling by plan.compile=none"
        )
    from jax.experimental import topologies

    # Not the metadata server of a cloud that we are not in; and a second process may look, too.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=target.topology_name, **target.topology_options
    )
    return topology.devices


@dataclasses.dataclass(frozen=True)
class _StandIn:
    """A chip where it lies, for shardings; no compiler knows it."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0


def stand_ins(target: Target) -> Sequence[Any]:
    """As many devices as the target has, which nothing can be compiled for."""
    if not target.topology_name:
        return [_StandIn(i, "cpu", "cpu") for i in range(target.devices)]
    kind = target.chip.name if target.chip else ""
    places = itertools.product(range(target.slices), *map(range, target.shape))
    return [_StandIn(i, "tpu", kind, (*place, 0)[:3], which) for i, (which, *place) in enumerate(places)]


def compile_apart(
    lower: Callable[[Sequence[Any]], Any], target: Target, minutes: float, gigabytes: float, finish: bool = False
) -> Compiled | None:
    """Compiles what `lower` (picklable) makes of the target's devices; None where it took too long or too much.

    finish: go on once the optimised program is there; what a limit then ends is the code's generation alone."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="vf-plan-") as name:
        folder = Path(name)
        child = spawn.Process(target=_work, args=(lower, target, folder), daemon=True)
        began = time.monotonic()
        child.start()
        try:
            seen, early, ready = 0, None, 0.0
            while child.is_alive():
                child.join(2)
                if not early:
                    early, seen = _dumped(folder, seen)
                    ready = time.monotonic() - began
                if early and not finish:
                    return Compiled(early, ready)
                over_time = time.monotonic() - began > 60 * minutes
                over_memory = _resident_bytes(child.pid) > 1e9 * gigabytes
                if over_time or over_memory:
                    reason = f"{minutes:g} minutes" if over_time else f"{gigabytes:g} GB"
                    logging.warning("compiling was ended after %s", reason)
                    return Compiled(early, ready) if early else None
        finally:
            child.kill()
            child.join()
        seconds = time.monotonic() - began
        if (folder / _FAILED).exists():
            return Compiled("", seconds, failure=(folder / _FAILED).read_text())
        if not (folder / _DONE).exists():
            said = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"the compiler ended with status {child.exitcode}: {' '.join(said[-3:])[-500:]}")
        return Compiled((folder / _TEXT).read_text(), seconds, **json.loads((folder / _DONE).read_text()))


def _dumped(folder: Path, seen: int) -> tuple[str | None, int]:
    """The optimised program, once all of it is written (no more bytes than were `seen` before), and its size."""
    for path in folder.glob("dump/*-TLP-hlo.txt"):
        size = path.stat().st_size
        text = path.read_text() if size and size == seen else ""
        return (text if text.rstrip().endswith("}") else None), size
    return None, 0


def _resident_bytes(pid: int | None) -> float:
    with contextlib.suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0.0


def _work(lower: Callable[[Sequence[Any]], Any], target: Target, folder: Path) -> None:
    """In the process apart."""
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
    done = {"temporary_bytes": memory.temp_size_in_bytes, "optimal_seconds": cost.get("optimal_seconds")}
    (folder / "part").write_text(json.dumps(done))
    (folder / "part").rename(folder / _DONE)
