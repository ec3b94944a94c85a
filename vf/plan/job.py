"""`--mode=plan`: what a run needs and takes on a machine that is not at hand, before it is rented.

    count      parameters, FLOPs and kept activations, from traces (`count`)
    rank       every mesh that fits the machine and the batch, by an analytic step time (`guess`)
    compile    the training step for the best meshes, and the sampler for the best, ahead of time (`compile`)
    read       the compiled program: FLOPs, bytes, messages, memory (`hlo`), and the roofline under them (`roofline`)

What was compiled and what was only counted is told apart everywhere.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from vf import sample, sharding, train
from vf import step as steps
from vf.build import Planned
from vf.plan import compile as compiling
from vf.plan import count, hlo, roofline
from vf.plan.chips import Chip, Target
from vf.types import UserError

Make = Callable[[Mesh | None, int | None], Planned]
"""(mesh, residual blocks a level at most; None for all) -> the subject. Picklable."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to plan.

    Attributes:
        mesh: sizes of the mesh to plan for; None to choose the best.
        compile: 'train,sample', 'train' or 'none'.
        meshes: how many of the best ranked are compiled.
        blocks: residual blocks a level that are compiled; 0 for all, and fewer where the limits end that.
        minutes, gigabytes: limits of one compilation.
        cache: folder of what was compiled before.
    """

    mesh: tuple[int, ...] | None
    compile: str
    meshes: int
    blocks: int
    minutes: float
    gigabytes: float
    cache: Path


# --- lowering -----------------------------------------------------------------------------------------------------


def batch_shapes(
    subject: Planned, rows: int, mesh: Mesh | None, over: Sequence[str] = sharding.ROWS
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `rows` clips, where they lie on `mesh`."""
    model = subject.model
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": (model.shape, np.uint8),
        "label": ((), np.int32),
        "index": ((), np.uint32),
    }
    if model.embedding_dim:
        fields["embedding"] = ((model.embedding_dim,), np.float32)
    place = None if mesh is None else sharding.batch_sharding(mesh, over)
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place) for name, (shape, dtype) in fields.items()
    }


def on_mesh(state: Any, mesh: Mesh) -> Any:
    """The shapes of a training state, with shardings on `mesh`."""
    return sharding.abstract(state, sharding.shardings(state, mesh))


def _placed(make: Make, sizes: Sequence[int], blocks: int | None, devices: Sequence[Any]) -> tuple[Planned, Mesh]:
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
    return make(mesh, blocks), mesh


def lower_training(make: Make, sizes: tuple[int, ...], blocks: int | None, devices: Sequence[Any]) -> Any:
    """The training step on `devices`, ready to be compiled."""
    subject, mesh = _placed(make, sizes, blocks, devices)
    abstract = on_mesh(subject.state(), mesh)
    update = train.update_function(
        subject.model, subject.tx, mesh, abstract,
        seed=subject.seed, ema_decay=subject.ema_decay, accumulate=subject.accumulate,
    )  # fmt: skip
    return update.lower(abstract, batch_shapes(subject, subject.batch_size, mesh))


def lower_sampling(make: Make, sizes: tuple[int, ...], blocks: int | None, devices: Sequence[Any]) -> Any:
    """The sampler on `devices`, ready to be compiled."""
    subject, mesh = _placed(make, sizes, blocks, devices)
    params = on_mesh(subject.state(), mesh).ema
    given = batch_shapes(subject, subject.job.batch_size, mesh, sharding.EVERY)
    del given["video"]
    return sample.sampler(subject.model, subject.job, mesh).lower(params, given)


def counts(subject: Planned, shapes: Any) -> count.Counts:
    """Of one clip in training."""

    def loss(params: Any, rows: Any) -> Any:
        return steps.batch_loss(params, rows, model=subject.model, seed=subject.seed)[0]

    return count.training(loss, lambda rows: batch_shapes(subject, rows, None), shapes)


# --- ranking ------------------------------------------------------------------------------------------------------


def meshes(devices: int, slices: int, batch: int, accumulate: int, frames: int) -> Iterator[tuple[int, ...]]:
    """Every mesh of `devices` that a batch can be split over: sizes of `sharding.AXES`."""
    powers = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp, split in itertools.product(powers, powers, powers):
        tensor, rest = divmod(devices, data * fsdp * split)
        rows, left = divmod(batch, data * fsdp * accumulate)
        if rest or not tensor or data * fsdp * split * tensor != devices or tensor > 4:
            continue
        if data % slices or left or frames % split or (split > 1 and rows != 1):
            continue
        yield data, fsdp, split, tensor


def guess(subject: Planned, shapes: Any, counted: count.Counts, mesh: Mesh, target: Target) -> dict[str, Any]:
    """Memory and time of a training step on `mesh`, by arithmetic alone: to rank meshes, and where nothing compiles.

    Activations are what the trace keeps for the backward pass, working space four times its largest array. Parameters
    that are split are gathered for the forward and the backward pass of every micro-batch (and once more where
    activations are computed again), gradients scattered once; copies exchange gradients over `data`. Frame mixing sends
    about a tenth of the kept activations, a split of features all of them, twice.
    """
    chip = target.chip
    data, fsdp, frames, tensor = mesh.devices.shape
    width = jax.numpy.dtype(subject.dtype).itemsize
    state = on_mesh(shapes, mesh)
    split, whole = count.split_bytes(state.params, width)
    clips = subject.batch_size / (data * fsdp) / subject.accumulate  # of a micro-batch, for each part
    kept = clips * counted.kept_bytes / frames
    memory = {
        "state": count.shard_bytes(state),
        "gradients": count.shard_bytes(state.params) * (2 if subject.accumulate > 1 else 1),
        "activations": kept,
        "working space": 4 * clips * counted.largest_bytes / frames + (split / tensor) / (2 * subject.blocks + 2) / 4,
    }
    gathers = subject.accumulate * (3 if subject.remat else 2)
    each = split / tensor / fsdp
    sent: dict[tuple[str, hlo.Kind], float] = {
        ("fsdp", "all-gather"): gathers * split / tensor,
        ("fsdp", "reduce-scatter"): subject.accumulate * split / tensor,
        ("data", "all-reduce"): each + whole,
        ("frames", "all-gather"): 0.1 * kept * frames * subject.accumulate,
        ("tensor", "all-reduce"): 2 * kept * subject.accumulate,
    }
    useful = 3 * counted.forward_flops * subject.batch_size / target.devices
    total = sum(memory.values())
    made: dict[str, Any] = {"memory": {name: float(size) for name, size in memory.items()}, "total_bytes": total}
    if chip is None:
        return made
    made["fits"] = total < chip.hbm_bytes
    places = roofline.places_of(list(mesh.devices.flat), chip)
    found = [
        hlo.Collective(f"{axis}-{kind}", kind, int(size), _groups(mesh, axis), 1, "")
        for (axis, kind), size in sent.items()
        if mesh.shape[axis] > 1
    ]
    # Each kept array is written and read a few times on the way forward, and again backward; of a block that is
    # computed again only the input is kept, a tenth of its arrays. A program of 2.6 B parameters had 188 GB a clip.
    step = roofline.Step(
        flops=useful * (4 / 3 if subject.remat else 1),
        hbm_bytes=2 * memory["state"] + 12 * kept * subject.accumulate * (12 if subject.remat else 1),
        traffic=roofline.traffic_of(found, mesh.shape, chip, target.shape, places),
        useful_flops=useful,
        dtype="bfloat16" if width == 2 else "float32",
    )
    return made | _times(roofline.estimate(step, chip))


def _groups(mesh: Mesh, axis: str) -> tuple[tuple[int, ...], ...]:
    """Positions in the flattened mesh of the devices that an axis joins."""
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    lines = np.moveaxis(numbers, sharding.AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    return tuple(tuple(map(int, line)) for line in lines)


def _times(estimate: roofline.Estimate) -> dict[str, Any]:
    """An estimate ready for JSON, in seconds."""
    return {
        "seconds": {
            "compute": estimate.compute_s, "memory": estimate.memory_s, "network": estimate.network_s,
            "least": estimate.step_s, "serial": estimate.serial_s,
        },
        "network_by_axes": {" x ".join(axes) or "none": s for axes, s in estimate.network_by_axes.items()},
        "mfu": {"least": estimate.mfu, "serial": estimate.serial_mfu},
        "bound": estimate.bound,
    }  # fmt: skip


# --- compiling ----------------------------------------------------------------------------------------------------


def compiled(
    make: Make, program: str, mesh: Mesh, target: Target, settings: Settings, mark: str, blocks: int | None
) -> dict[str, Any] | None:
    """What the compiler's program says of one step (or one batch of samples) on one device; None past the limits.

    `mark`: of the config; what was compiled before under the same mark, target and versions is taken from the cache.
    """
    sizes = mesh.devices.shape
    versions = [jax.__version__, jax.lib.__version__]
    name = hashlib.sha256(json.dumps([mark, target.text, program, sizes, blocks, versions]).encode()).hexdigest()[:16]
    kept = settings.cache / f"{name}.json"
    if kept.exists():
        logging.info("%s on mesh %s was compiled before: %s", program, _mesh_text(sizes), kept)
        return json.loads(kept.read_text())
    logging.info("compiling the %s step on mesh %s for %s ...", program, _mesh_text(sizes), target.text)
    lower = lower_training if program == "train" else lower_sampling
    made = compiling.compile_apart(_Lower(lower, make, sizes, blocks), target, settings.minutes, settings.gigabytes)
    if made is None:
        return None
    if made.failure:
        figures: dict[str, Any] = {"failure": made.failure, "compile_seconds": made.seconds}
    else:
        figures = _read(made, mesh, target)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(figures))
    return figures


@dataclasses.dataclass(frozen=True)
class _Lower:
    """devices -> the lowered program; picklable."""

    function: Callable[..., Any]
    make: Make
    sizes: tuple[int, ...]
    blocks: int | None

    def __call__(self, devices: Sequence[Any]) -> Any:
        return self.function(self.make, self.sizes, self.blocks, devices)


def _read(made: compiling.Compiled, mesh: Mesh, target: Target) -> dict[str, Any]:
    """The figures of a program's text."""
    found = hlo.collectives(made.text, [device.id for device in mesh.devices.flat])
    by_kind: dict[tuple[str, str], list[float]] = {}
    for each in found:
        axes = " x ".join(hlo.axes(each.groups, mesh.shape)) or "none"
        entry = by_kind.setdefault((each.kind, axes), [0, 0.0])
        entry[0] += each.times
        entry[1] += each.times * each.wire_bytes
    figures: dict[str, Any] = {
        "compile_seconds": made.seconds,
        "finished": made.temporary_bytes is not None,
        "flops": hlo.flops(made.text),
        "hbm_bytes": hlo.hbm_bytes(made.text),
        "temporary_bytes": made.temporary_bytes or compiling.PACKING * hlo.peak_bytes(made.text),
        "optimal_seconds": made.optimal_seconds,
        "collectives": [
            {"kind": kind, "axes": axes, "count": n, "wire_bytes": size}
            for (kind, axes), (n, size) in sorted(by_kind.items(), key=lambda item: -item[1][1])
        ],
    }
    if target.chip is not None:
        places = roofline.places_of(list(mesh.devices.flat), target.chip)
        traffic = roofline.traffic_of(found, mesh.shape, target.chip, target.shape, places)
        network: dict[str, float] = {}
        for part in traffic:
            axes = " x ".join(part.axes) or "none"
            network[axes] = network.get(axes, 0.0) + roofline.traffic_seconds(part, target.chip)
        figures["network_seconds"] = network
    return figures


def _mesh_text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


# --- the job ------------------------------------------------------------------------------------------------------


def run(make: Make, target: Target, settings: Settings, mark: str, workdir: Path) -> dict[str, Any]:
    """Plans, prints the tables and writes `WORKDIR/plan.json`; returns what it holds.

    mark: of the config, for the cache. Raises UserError for a mesh that fits neither machine nor batch.
    """
    subject = make(None, None)
    shapes = subject.state()
    counted = counts(subject, shapes.params)
    devices = compiling.stand_ins(target) if settings.compile == "none" else compiling.devices_of(target)
    ranked = ranking(subject, shapes, counted, devices, target, settings)
    plan: dict[str, Any] = {
        "target": target.text,
        "chip": target.chip.name if target.chip else None,
        "devices": target.devices,
        "batch_size": subject.batch_size,
        "parameters": count.parameters(shapes.params),
        "flops_per_clip": 3 * counted.forward_flops,
        "kept_bytes_per_clip": counted.kept_bytes,
        "meshes": [{"mesh": dict(zip(sharding.AXES, sizes, strict=True)), **made} for sizes, made in ranked],
        "compiled": [],
    }
    chosen = ranked[: 1 if settings.compile == "none" else settings.meshes]
    for sizes, _ in chosen:
        plan["compiled"].append(
            _planned(make, subject, shapes, counted, sizes, devices, target, settings, mark, "train")
        )
        _save(plan, workdir)
    best = min(plan["compiled"], key=lambda made: (not made["fits"], made.get("seconds", {}).get("serial", 0.0)))
    plan["best"] = best
    sizes = tuple(best["mesh"].values())
    if "sample" in settings.compile:
        plan["sampling"] = _planned(make, subject, shapes, counted, sizes, devices, target, settings, mark, "sample")
    mesh = sharding.make_mesh(**best["mesh"], devices=devices)
    plan["sharding"] = count.table(on_mesh(shapes, mesh).params)
    _save(plan, workdir)
    print(report(plan))
    return plan


def _save(plan: Mapping[str, Any], workdir: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")


def ranking(
    subject: Planned, shapes: Any, counted: count.Counts, devices: Sequence[Any], target: Target, settings: Settings
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """(sizes, guess) of every mesh, best first: those that fit, by their serial time; then by memory."""
    if settings.mesh is not None:
        sizes = sharding.mesh_sizes(target.devices, *settings.mesh)
        found = [sizes]
    else:
        frames = subject.model.shape[0]
        found = list(meshes(target.devices, target.slices, subject.batch_size, subject.accumulate, frames))
    if not found:
        raise UserError(
            f"no mesh of {target.devices} devices takes train.batch_size {subject.batch_size} in {subject.accumulate} "
            f"micro-batches: make the batch a multiple of {target.devices * subject.accumulate}"
        )
    made = []
    for sizes in found:
        mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
        sharding.check_rows(mesh, "train.batch_size", subject.batch_size, subject.accumulate, clips=True)
        made.append((sizes, guess(subject, shapes, counted, mesh, target)))

    def order(item: tuple[tuple[int, ...], dict[str, Any]]) -> tuple[Any, ...]:
        fits = item[1].get("fits", True)
        return (not fits, item[1]["seconds"]["serial"] if fits and "seconds" in item[1] else item[1]["total_bytes"])

    return sorted(made, key=order)


def _planned(
    make: Make, subject: Planned, shapes: Any, counted: count.Counts, sizes: tuple[int, ...], devices: Sequence[Any],
    target: Target, settings: Settings, mark: str, program: str,
) -> dict[str, Any]:  # fmt: skip
    """One program on one mesh: compiled as far as the limits allow, or counted; and whether it fits."""
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
    state = on_mesh(shapes, mesh)
    arguments = state if program == "train" else state.ema
    useful = 3 * counted.forward_flops * subject.batch_size / target.devices
    made: dict[str, Any] = {
        "program": program,
        "mesh": dict(zip(sharding.AXES, sizes, strict=True)),
        "state_bytes": {
            "parameters": count.shard_bytes(state.params),
            "average": count.shard_bytes(state.ema),
            "optimizer": count.shard_bytes(state.opt_state),
        },
        "argument_bytes": count.shard_bytes(arguments),
        "useful_flops": useful if program == "train" else None,
    }
    figures, scale, label = None, 1.0, "counted, not compiled"
    if program in settings.compile:
        figures = compiled(make, program, mesh, target, settings, mark, settings.blocks or None)
        label = "compiled" if target.topology_name or target.kind == "cpu" else "compiled for fake CPU devices"
        blocks = settings.blocks
        if figures is None:  # past the limits
            blocks = 1
            figures = compiled(make, program, mesh, target, settings, mark, blocks)
        if blocks and blocks < subject.blocks:
            small = make(None, blocks)
            less = counts(small, small.state().params)
            scale = counted.forward_flops / less.forward_flops
            label += f" with {blocks} residual block{'s' if blocks > 1 else ''} a level, and scaled by FLOPs"
    chip = target.chip
    if figures is None or "failure" in figures:
        if program == "train":
            made |= guess(subject, shapes, counted, mesh, target)
        label = f"counted; the compiler says: {figures['failure']}" if figures else "counted, not compiled"
        refused = figures is not None
        made |= {"how": label, "fits": not refused and made.get("fits", True)}
        return made | _verdict(made, chip, refused)
    made |= {"how": label, "compile_seconds": figures["compile_seconds"], "finished": figures["finished"]}
    made |= {name: figures[name] * scale for name in ("flops", "hbm_bytes", "temporary_bytes")}
    made["optimal_seconds"] = figures["optimal_seconds"] and figures["optimal_seconds"] * scale
    made["collectives"] = [
        {**each, "wire_bytes": each["wire_bytes"] * scale, "count": round(each["count"] * scale)}
        for each in figures["collectives"]
    ]
    made["total_bytes"] = made["argument_bytes"] + made["temporary_bytes"]
    if chip is not None:
        width = jax.numpy.dtype(subject.dtype).itemsize
        step = roofline.Step(
            flops=made["flops"],
            hbm_bytes=made["hbm_bytes"],
            useful_flops=useful if program == "train" else made["flops"],
            dtype="bfloat16" if width == 2 else "float32",
        )
        estimate = roofline.estimate(step, chip)
        network = {axes: s * scale for axes, s in figures["network_seconds"].items()}
        peak = chip.flops_bf16 if width == 2 else chip.flops_f32
        times = {"compute": estimate.compute_s, "memory": estimate.memory_s, "network": sum(network.values())}
        least, serial = max(times.values()), sum(times.values())
        ideal = (step.useful_flops or 0.0) / peak
        made |= {
            "seconds": times | {"least": least, "serial": serial},
            "network_by_axes": network,
            "mfu": {"least": ideal / least, "serial": ideal / serial},
            "bound": max(times, key=lambda name: times[name]),
        }
        made["fits"] = made["total_bytes"] < chip.hbm_bytes
    else:
        made["fits"] = True
    return made | _verdict(made, chip, False)


def _verdict(made: Mapping[str, Any], chip: Chip | None, refused: bool) -> dict[str, Any]:
    """In words: fits or not, and what to change."""
    if chip is None:
        return {"verdict": "the memory of this machine is not planned for"}
    size = f"{made.get('total_bytes', made['argument_bytes']) / 2**30:.2f} GiB"
    room = f"{chip.hbm_bytes / 2**30:.2f} GiB"
    if made["fits"]:
        return {"verdict": f"fits: {size} of {room} on each {chip.name}"}
    state = sum(made["state_bytes"].values())
    advice = (
        "more devices on --config.mesh.fsdp, which splits parameters and optimizer"
        if state > made.get("total_bytes", 0) / 2
        else "--config.train.accumulate twice as large, or --config.model.remat=blocks, which need less for activations"
    )
    why = "the compiler ran out of memory" if refused else f"{size} on each {chip.name}, which has {room}"
    return {"verdict": f"does not fit: {why}; try {advice}"}


def report(plan: Mapping[str, Any]) -> str:
    """The plan as tables for a terminal."""
    chip = f"{plan['devices']} x {plan['chip'] or 'cpu'}"
    lines = [f"Plan for {plan['target']} ({chip}), train.batch_size {plan['batch_size']}", ""]
    total = sum(plan["parameters"].values())
    for name, size in plan["parameters"].items():
        lines.append(f"  {name:<10} {size / 1e6:10,.1f} M parameters")
    lines.append(f"  {'together':<10} {total / 1e6:10,.1f} M;  {plan['flops_per_clip'] / 1e12:.2f} useful TFLOP a clip")
    lines += ["", "Sharding (parameters; moments and average lie alike)"]
    shown = plan["sharding"][:12]
    lines += [
        f"  {r['parameters'] / 1e6:9.1f} M  {r['count']:4d} x [{r['shape']}]  {r['split']:<16} {r['arrays']}"
        for r in shown
    ]
    rest = plan["sharding"][12:]
    if rest:
        lines.append(f"  {sum(r['parameters'] for r in rest) / 1e6:9.1f} M  in {len(rest)} further kinds of arrays")
    lines += ["", "Meshes by arithmetic (data x fsdp x frames x tensor), best first"]
    lines.append("      mesh              GiB   compute   memory  network   serial   MFU, if serial")
    for each in plan["meshes"][:8]:
        mesh = _mesh_text(each["mesh"].values())
        row = f"      {mesh:<14} {each['total_bytes'] / 2**30:6.2f}"
        if "seconds" in each:
            s = each["seconds"]
            row += "".join(f" {1e3 * s[name]:7.0f}ms" for name in ("compute", "memory", "network", "serial"))
            row += f"  {100 * each['mfu']['serial']:5.1f} %"
        lines.append(row + ("" if each.get("fits", True) else "   too large"))
    for made in [*plan["compiled"], *([plan["sampling"]] if "sampling" in plan else [])]:
        lines += ["", *_program_lines(made, plan)]
    best = plan["best"]
    flags = " ".join(f"--config.mesh.{axis}={size}" for axis, size in best["mesh"].items())
    lines += ["", f"Verdict: {best['verdict']}", f"         {flags}"]
    return "\n".join(lines)


def _program_lines(made: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    what = "Training step" if made["program"] == "train" else "Sampling a batch"
    lines = [f"{what} on mesh {_mesh_text(made['mesh'].values())}: {made['how']}"]
    parts = dict(made["state_bytes"])
    if made["program"] == "sample":
        parts = {"average": parts["average"]}
    extra = "temporary (activations among them)"
    if "temporary_bytes" in made:
        parts[extra if made["finished"] else extra + ", estimated"] = made["temporary_bytes"]
    elif "memory" in made:
        parts |= {name: size for name, size in made["memory"].items() if name != "state"}
    lines += [f"  {name:<45} {size / 2**30:8.3f} GiB a device" for name, size in parts.items()]
    if "flops" in made:
        lines.append(f"  {made['flops'] / 1e12:.2f} TFLOP, {made['hbm_bytes'] / 1e9:.0f} GB of HBM traffic a device")
        for each in made["collectives"][:8]:
            lines.append(
                f"  {each['kind']:<18} over {each['axes']:<14} {each['count']:6d} times "
                f"{each['wire_bytes'] / 1e9:9.3f} GB sent"
            )
        end = "" if made["finished"] else " (ended before code generation)"
        lines.append(f"  compiled in {made['compile_seconds']:.0f} s{end}, at reduced effort where it is a TPU's")
    if made.get("optimal_seconds"):
        lines.append(f"  the compiler's optimal_seconds, an upper bound on speed: {made['optimal_seconds']:.3f} s")
    if "seconds" in made:
        s = made["seconds"]
        times = ", ".join(f"{name} {1e3 * s[name]:.0f} ms" for name in ("compute", "memory", "network"))
        lines.append(f"  roofline: {times}; bound by {made['bound']}")
        lines.append(f"  a step takes {s['least']:.3f} s if all overlaps, {s['serial']:.3f} s if nothing does")
        if made["program"] == "train":
            clips = plan["batch_size"] / plan["devices"]
            lines.append(
                f"  MFU {100 * made['mfu']['serial']:.1f} to {100 * made['mfu']['least']:.1f} %, "
                f"{clips / s['serial']:.2f} to {clips / s['least']:.2f} clips/s a device; network "
                f"{100 * s['network'] / s['serial']:.1f} % of the serial time"
            )
    return [*lines, f"  {made['verdict']}"]
