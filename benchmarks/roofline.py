"""Compares the estimates of a plan with measured times, on this machine.

    python -m benchmarks.roofline [CONFIG.py]        (default configs/demo.py)

The training step and the sampler are compiled for this machine's devices and read as in a plan. The rates of each
device while all work are measured before and after. `overlapped` is the estimated time if everything overlaps, `serial`
if nothing does, and the measured time is the best of ten.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.compare import load
from vf.config import build, data
from vf.data import pipeline
from vf.plan import compile as compiling
from vf.plan import lower, messages, roofline, usage
from vf.plan.chips import Chip
from vf.training import programs
from vf.training.sharding import put_batch

ROUNDS = 10


def read(compiled: Any, mesh: jax.sharding.Mesh, chip: Chip, dtype: Any, padding: float) -> dict[str, float]:
    """Figures of a program per device: FLOPs (`padding` as in `count.Counts`), bytes, and estimated seconds."""
    text = compiled.as_text()
    collectives = messages.collectives(text, [device.id for device in mesh.devices.flat])
    places = roofline.places_of(list(mesh.devices.flat), chip)
    traffic = roofline.traffic_of(collectives, mesh.shape, chip, (mesh.size,), places)
    flops, size = padding * usage.flops(text), float(usage.hbm_bytes(text))
    estimate = roofline.estimate(roofline.Step(flops, size, traffic, dtype=dtype), chip)
    memory_ratio = compiling.PACKING * usage.peak_bytes(text) / compiled.memory_analysis().temp_size_in_bytes
    return {
        "flops": flops,
        "bytes": size,
        "overlapped": estimate.step_s,
        "serial": estimate.serial_s,
        "memory": memory_ratio,
    }


def main() -> None:
    """Prints the table."""
    path = sys.argv[1] if len(sys.argv) > 1 else "configs/demo.py"
    config = load(path)
    build.cpu_devices(config)
    mesh = build.mesh(config)
    subject = build.plan_subject(config, mesh, None)
    make, sizes, devices = functools.partial(build.plan_subject, config), mesh.devices.shape, list(mesh.devices.flat)
    dtype = "bfloat16" if subject.dtype == jax.numpy.bfloat16 else "float32"

    padding = lower.counts(subject, subject.state().params).padding
    create, _ = programs.first_state(subject.model, subject.tx, mesh, config.seed, subject.param_dtype)
    clips = pipeline.batches(data.source(config), seed=0, batch_size=subject.batch_size, threads=0)
    fields = lower.batch_shapes(subject, subject.batch_size, mesh)
    batch = put_batch({name: rows for name, rows in next(clips).items() if name in fields}, mesh)
    shapes = lower.batch_shapes(subject, subject.sample_batch_size, mesh)
    state = [create()]
    step = lower.lower_training(make, sizes, None, devices).compile()
    draw = lower.lower_sampling(make, sizes, None, devices).compile()
    conditions = {
        name: jax.device_put(jax.numpy.zeros(shape.shape, shape.dtype), shape.sharding)
        for name, shape in shapes.items()
        if name != "video"
    }

    def update() -> Any:
        state[0], numbers = step(state[0], batch)  # the state is donated
        return numbers

    works: dict[str, tuple[Any, Callable[[], Any]]] = {
        "training step": (step, update),
        "sampling a batch": (draw, lambda: draw(state[0].ema, conditions)),
    }
    before = roofline.measured_chip("here", seconds=2.0)
    seconds = dict.fromkeys(works, float("inf"))
    for _, name in itertools.product(range(ROUNDS), works):
        start = time.perf_counter()
        jax.block_until_ready(works[name][1]())
        seconds[name] = min(seconds[name], time.perf_counter() - start)
    after = roofline.measured_chip("here", seconds=2.0)
    peak = "flops_bf16" if dtype == "bfloat16" else "flops_f32"
    chip = max(before, after, key=lambda c: getattr(c, peak))
    print(
        f"{path}, {mesh.size} x {jax.devices()[0].device_kind}, {dtype}: each does "
        f"{getattr(chip, peak) / 1e9:.0f} GFLOP/s and moves {chip.hbm_bandwidth / 1e9:.1f} GB/s "
        f"({min(getattr(c, peak) for c in (before, after)) / 1e9:.0f} at the worse time)"
    )
    print("| program | GFLOP | GB | overlapped | serial | clock, ms | clock / overlapped | memory, estimated / real |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (compiled, _) in works.items():
        figures = read(compiled, mesh, chip, dtype, padding)
        print(
            f"| {name} | {figures['flops'] / 1e9:.2f} | {figures['bytes'] / 1e9:.2f} "
            f"| {1e3 * figures['overlapped']:.1f} | {1e3 * figures['serial']:.1f} | {1e3 * seconds[name]:.1f} "
            f"| {seconds[name] / figures['overlapped']:.2f} | {figures['memory']:.2f} |"
        )


if __name__ == "__main__":
    main()
