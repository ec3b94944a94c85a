"""Compares the estimates of a plan with measured times, on this machine.

    python -m benchmarks.roofline [CONFIG.py]        (default configs/demo.py)
    python -m benchmarks.roofline --memory           (counted memory against the compiler's, of several configs)

The training step and the sampler are compiled for this machine's devices and read as in a plan. The rates of each
device while all work are measured before and after. `overlapped` is the estimated time if everything overlaps, `serial`
if nothing does, and the measured time is the best of ten. Memory is that beside state and batch, on one device.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.compare import load
from benchmarks.program import CONFIGS, adm
from vf import rng
from vf.config import build, data
from vf.data import pipeline
from vf.plan import compile as compiling
from vf.plan import lower, messages, rank, roofline, usage
from vf.plan.chips import CHIPS, Chip
from vf.plan.targets import parse_target
from vf.training import programs, sharding
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


def small(dtype: str, remat: str) -> ConfigDict:
    """ADM's kind of networks, a third as wide and a third as deep, on 2 clips of 8 x 32 x 32."""
    config = adm(64, 64, 32, 8, 2, precision=dtype)
    config.base.net.num_res_blocks = config.residual.net.num_res_blocks = 1
    config.model.remat = remat
    return config


def memory() -> None:
    """Prints what counting says that a training step needs beside its state, and what the compiler says."""
    configs = {name: CONFIGS[name]() for name in ("demo", "smoke")}
    for dtype, remat in (("float32", "none"), ("bfloat16", "none"), ("float32", "blocks")):
        configs[f"a third of ADM, {dtype}, remat {remat}"] = small(dtype, remat)
    print("| training step | activations, GB | gradients and working space, GB | compiled, GB | compiled / counted |")
    print("| --- | --- | --- | --- | --- |")
    for name, config in configs.items():
        config.mesh.cpu_devices = 0
        target = parse_target("cpu:1")
        subject = build.plan_subject(config, None, None)
        shapes = subject.state()
        counted = lower.counts(subject, shapes.params)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        estimate = rank.estimate_training(subject, shapes, counted, mesh, target, CHIPS["H100"])["memory"]
        kept, rest = estimate["activations"], estimate["gradients"] + estimate["working space"]
        make = functools.partial(build.plan_subject, config)
        compiled = lower.lower_training(make, (1, 1, 1, 1), None, jax.devices()[:1]).compile()
        used = compiled.memory_analysis().temp_size_in_bytes
        print(
            f"| {name} | {kept / 1e9:.3f} | {rest / 1e9:.3f} | {used / 1e9:.3f} | {used / (kept + rest):.2f} |",
            flush=True,
        )


def main() -> None:
    """Prints a table."""
    if "--memory" in sys.argv:
        memory()
        return
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
    state, settings = [create()], programs.settings(subject.tx, subject.seed, subject.ema_decay)
    seed = rng.as_argument(subject.sample_seed)
    step = lower.lower_training(make, sizes, None, devices).compile()
    draw = lower.lower_sampling(make, sizes, None, devices).compile()
    conditions = {
        name: jax.device_put(jax.numpy.zeros(shape.shape, shape.dtype), shape.sharding)
        for name, shape in shapes.items()
        if name != "video"
    }

    def update() -> Any:
        state[0], numbers = step(state[0], batch, settings)  # the state is donated
        return numbers

    works: dict[str, tuple[Any, Callable[[], Any]]] = {
        "training step": (step, update),
        "sampling a batch": (draw, lambda: draw(state[0].ema, conditions, seed)),
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
