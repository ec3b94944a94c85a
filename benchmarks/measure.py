"""What the rows of `benchmarks.accelerator` share: sizes, how figures are reported, times, memory, this machine."""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vf.jobs.meter import STARTED

Work = Callable[[], object]
Report = Callable[..., None]
"""Takes figures of a row by name, as soon as they are known: a row that is ended keeps what it has reported."""


class Skipped(Exception):
    """What a row raises where something that it needs is missing here; the text says what."""


class Sizes(NamedTuple):
    """Sizes of what is measured; the defaults are ADM's at 64 x 64, with a quarter of it beside it."""

    width: int = 192  # of the base network
    residual: int = 128  # width of the residual network
    levels: int = 4  # resolutions of both networks, at most 4
    blocks: int = 3  # residual blocks a level, at most; the residual network has no more than 2
    size: int = 64  # pixels of a side
    frames: int = 16
    batch: int = 8  # clips
    steps: int = 20  # of denoising, in a sampling
    side: int = 8192  # of the matrices that are multiplied
    clips: int = 512  # of which I3D computes features
    clip_batch: int = 32
    clip_frames: int = 16
    clip_size: int = 128
    set: int = 2048  # clips on each side of an FVD without the network
    repeats: int = 5  # of each measurement, of which the best counts


TOY = Sizes(
    width=64, residual=64, levels=1, blocks=1, size=8, frames=4, batch=1, steps=2, side=64, clips=1, clip_batch=1,
    clip_frames=9, clip_size=32, set=8, repeats=1,
)  # fmt: skip
"""Sizes at which all rows together take about three minutes on a CPU, for tests."""


class Stopwatch:
    """Context that measures `seconds`."""

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start


class Phases:
    """Seconds of each phase of a row until its first step, reported as each ends; the first began with the process."""

    def __init__(self, report: Report) -> None:
        self._report, self._since = report, STARTED
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Ends a phase, which began when the one before ended."""
        now = time.time()
        self._seconds[name] = now - self._since
        self._since = now
        self._report(phases=self._seconds)


def seconds(works: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """The least seconds of several repetitions of each, in turn, so that other load affects all of them."""
    least = dict.fromkeys(works, float("inf"))
    for _, name in itertools.product(range(repeats), works):
        start = time.perf_counter()
        works[name]()
        least[name] = min(least[name], time.perf_counter() - start)
    return least


def precision() -> str:
    """The dtype in which networks compute here: bfloat16, but on a CPU float32."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def machine() -> dict[str, Any]:
    """Figures of a row that say where it was measured."""
    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.device_kind}", "cores": os.cpu_count(), "jax": jax.__version__,
        "precision": precision(),
    }  # fmt: skip


def program_gib(compiled: Any) -> float | None:
    """Memory that a compiled program needs on a device, arguments included; None where the platform does not say."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes
    return float(held - plan.alias_size_in_bytes) / 2**30


def costs(program: Any) -> dict[str, float]:
    """What XLA counts in a lowered or a compiled program; {} where it says nothing, as of lowered ones for CUDA."""
    return dict(program.cost_analysis() or {})


def scaled(value: float | None, scale: float) -> float | None:
    """`value` times `scale`; None where there is none."""
    return None if value is None else scale * value


def peak_gib() -> float | None:
    """The most memory that this process had on its first device; None where the platform does not say."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else peak / 2**30


def products(sizes: Sizes, report: Report) -> None:
    """Row: TFLOP/s of the product of two large matrices, the practical peak that other rows are compared with.

    In bfloat16; in float32 as jax multiplies it by default, in TF32 on GPUs; and in strict float32.
    """
    report(**machine())
    rates = {}
    a = np.random.default_rng(0).standard_normal((sizes.side, sizes.side), np.float32)
    for name, dtype, exactness in (
        ("bfloat16", "bfloat16", None), ("float32", "float32", None),
        ("strict float32", "float32", jax.lax.Precision.HIGHEST),
    ):  # fmt: skip
        x = jax.numpy.asarray(a, dtype)
        product = jax.jit(lambda x, exactness=exactness: jax.numpy.matmul(x, x, precision=exactness))
        jax.block_until_ready(product(x))
        least = seconds({name: lambda product=product, x=x: jax.block_until_ready(product(x))}, sizes.repeats)[name]
        rates[name] = 2 * sizes.side**3 / least / 1e12
        report(products=rates)
