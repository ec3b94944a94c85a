"""`--mode=plan`: memory and time of a run on a machine that is not at hand, before it is rented.

    count      parameters, FLOPs and stored activations, from traces (`count`)
    rank       every mesh that fits the machine and the batch, by an analytic step time (`rank`)
    compile    the training step for the best meshes, and the sampler for the best, ahead of time (`lower`, `compile`)
    read       the compiled program (`messages`, `usage`), and a lower bound of its time (`roofline`)

Every table says which figures come from a compiled program and which are only counted.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from vf import files
from vf.activity import ACTIVITY
from vf.config.specs import PlanSettings, PlanSpec
from vf.plan import compile as compiling
from vf.plan import count, messages, roofline, usage
from vf.plan.advice import sampling_change, training_change, verdict
from vf.plan.chips import Chip
from vf.plan.lower import counts, lower_sampling, lower_training, on_mesh
from vf.plan.rank import doubt, estimate_training, ranking, times
from vf.plan.report import mesh_text, report
from vf.plan.subject import MakeSubject, PlanSubject
from vf.plan.targets import Target
from vf.run import provenance
from vf.training import sharding

ROOT = Path(__file__).resolve().parents[2]
UPPER = "an upper bound: the CPU's program sends and keeps bfloat16 as float32, and keeps attention's logits"


@ACTIVITY.doing("planning")
def run(spec: PlanSpec, workdir: files.AnyPath) -> dict[str, Any]:
    """Plans, prints the tables and writes `WORKDIR/plan.json`; returns its content.

    Raises UserError for a mesh that does not fit the machine or the batch.
    """
    make, target, settings = spec.subject, spec.target, spec.settings
    logging.info("tracing the networks and ranking meshes by arithmetic; at full size that takes a minute or two")
    subject = make(None, None)
    with ACTIVITY.doing("counting and ranking"):
        shapes = subject.state()
        counted = counts(subject, shapes.params)
    devices = compiling.fake_devices(target) if settings.compile == "none" else compiling.devices_of(target)
    chip = target.chip or roofline.measured_chip(devices=target.devices)
    ranked = ranking(subject, shapes, counted, devices, target, chip, settings.mesh)
    request = _Request(make, subject, shapes, counted, devices, target, chip, settings, spec.fingerprint)
    plan: dict[str, Any] = {
        "target": target.text,
        "chip": dataclasses.asdict(chip),
        "devices": target.devices,
        "batch_size": subject.batch_size,
        "parameters": count.parameters(shapes.params),
        "flops_per_clip": 3 * counted.forward_flops,
        "kept_bytes_per_clip": counted.stored_bytes,
        "meshes": [{"mesh": dict(zip(sharding.AXES, sizes, strict=True)), **made} for sizes, made in ranked],
        "compiled": [],
    }
    chosen = ranked[: 1 if settings.compile == "none" else settings.meshes]
    for sizes, _ in chosen:
        plan["compiled"].append(_planned(request, sizes, "train"))
        _save(plan, workdir)
    best = min(plan["compiled"], key=lambda made: (not made["fits"], made.get("seconds", {}).get("serial", 0.0)))
    plan["best"] = best
    sizes = tuple(best["mesh"].values())
    if "sample" in settings.compile:
        plan["sampling"] = _planned(request, sizes, "sample")
    mesh = sharding.make_mesh(**best["mesh"], devices=devices)
    plan["sharding"] = count.table(on_mesh(shapes, mesh).params)
    _save(plan, workdir)
    print(report(plan))
    return plan


def _save(plan: Mapping[str, Any], workdir: files.AnyPath) -> None:
    files.write_whole(workdir / "plan.json", json.dumps(plan, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is planned, for which machine, and how."""

    make: MakeSubject
    subject: PlanSubject
    shapes: Any
    counted: count.Counts
    devices: Sequence[Any]
    target: Target
    chip: Chip
    settings: PlanSettings
    fingerprint: str


def _planned(request: _Request, sizes: tuple[int, ...], program: str) -> dict[str, Any]:
    """Figures of one program on one mesh, compiled as far as the limits allow or else counted, and whether it fits."""
    subject, counted, target, chip, settings = (
        request.subject,
        request.counted,
        request.target,
        request.chip,
        request.settings,
    )
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=request.devices)
    state = on_mesh(request.shapes, mesh)
    arguments = state if program == "train" else state.ema
    useful = 3 * counted.forward_flops * subject.batch_size / target.devices
    result: dict[str, Any] = {
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
        figures = compiled(
            request.make, program, mesh, target, chip, settings, request.fingerprint, settings.blocks or None
        )
        label = "compiled" if target.topology_name or target.kind == "cpu" else "compiled for fake CPU devices"
        blocks = settings.blocks
        if figures is None:  # past the limits
            blocks = 1
            figures = compiled(request.make, program, mesh, target, chip, settings, request.fingerprint, blocks)
        if blocks and blocks < subject.blocks:
            small = request.make(None, blocks)
            less = counts(small, small.state().params)
            scale = counted.forward_flops / less.forward_flops
            label += f" with {blocks} residual block{'s' if blocks > 1 else ''} a level, and scaled by FLOPs"
    if figures is None or "failure" in figures:
        if program == "train":
            result |= estimate_training(subject, request.shapes, counted, mesh, target, chip)
        result["how"] = f"counted; the compiler says: {figures['failure']}" if figures else "counted, not compiled"
        kept = result["argument_bytes"]
        counted_bytes = result.get("total_bytes", kept) - kept
        result["least_bytes"], result["most_bytes"] = (kept + share * counted_bytes for share in doubt(subject))
        return _judged(request, mesh, result, figures["failure"] if figures else "")
    result |= {"how": label, "compile_seconds": figures["compile_seconds"], "finished": figures["finished"]}
    result |= {name: figures[name] * scale for name in ("flops", "hbm_bytes", "temporary_bytes")}
    result["flops"] *= counted.padding  # useful FLOPs include padding, the program's text does not
    if program == "train":
        # Three forward passes, as MFU counts, are more than a step computes where its first layers are a good part of
        # it: their input needs no gradient.
        result["useful_flops"] = min(useful, result["flops"])
    result["optimal_seconds"] = figures["optimal_seconds"] and figures["optimal_seconds"] * scale
    result["collectives"] = [
        {**each, "wire_bytes": each["wire_bytes"] * scale, "count": round(each["count"] * scale)}
        for each in figures["collectives"]
    ]
    result["total_bytes"] = result["argument_bytes"] + result["temporary_bytes"]
    step = roofline.Step(
        flops=result["flops"],
        hbm_bytes=result["hbm_bytes"],
        traffic=[roofline.traffic_from_json(part, scale) for part in figures["traffic"]],
        useful_flops=result["useful_flops"],
        dtype="bfloat16" if jax.numpy.dtype(subject.dtype).itemsize == 2 else "float32",
    )
    result |= times(roofline.estimate(step, chip))
    result |= {"least_bytes": result["total_bytes"], "most_bytes": result["total_bytes"]}
    return _judged(request, mesh, result)


def _judged(request: _Request, mesh: Mesh, result: dict[str, Any], failure: str = "") -> dict[str, Any]:
    """`result` with whether it fits, in a sentence, and if it may not the change by which it does."""
    note = f" ({UPPER})" if "fake" in result["how"] else ""
    change, subject = "", request.subject
    if failure or result["most_bytes"] >= request.chip.hbm_bytes:
        if result["program"] == "train":
            change = training_change(request.make, request.shapes, mesh, request.target, request.chip, result)
        else:
            change = sampling_change(subject.sample_batch_size, mesh.size, request.chip, result)
    return result | verdict(result, request.chip, change, note, failure)


def compiled(
    make: MakeSubject,
    program: str,
    mesh: Mesh,
    target: Target,
    chip: Chip,
    settings: PlanSettings,
    fingerprint: str,
    blocks: int | None,
) -> dict[str, Any] | None:
    """Figures of one training step, or one batch of samples, on one device, read from the compiled program.

    None where compiling exceeds the limits in `settings`. The figures are cached by `fingerprint` (a hash of the
    config), target, code, versions and compiler flags. `blocks` is the most residual blocks per level, None for all.
    """
    sizes = mesh.devices.shape
    versions = [jax.__version__, jax.lib.__version__, provenance.version("libtpu"), provenance.sources(ROOT, ("vf",))]
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")  # change the program
    key = [fingerprint, target.text, program, sizes, blocks, settings.finish, versions, flags]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    cached = settings.cache / f"{name}.json"
    if cached.exists():
        logging.info("%s on mesh %s was compiled before: %s", program, mesh_text(sizes), cached)
        return json.loads(cached.read_text())
    ended = settings.cache / f"{name}-ended-at-{settings.minutes:g}-minutes-{settings.gigabytes:g}-GB"
    if ended.exists():
        logging.warning(
            "compiling was ended before at these limits: raise plan.minutes or .gigabytes, or remove %s", ended
        )
        return None
    logging.info(
        "compiling the %s step on mesh %s for %s; at full size that takes minutes, at most %g "
        "(--config.plan.minutes), and --config.plan.compile=none plans without", program, mesh_text(sizes),
        target.text, settings.minutes,
    )  # fmt: skip
    lower = lower_training if program == "train" else lower_sampling
    with ACTIVITY.doing(f"compiling the {program} step", announced=True):
        result = compiling.compile_in_process(
            _Lower(lower, make, sizes, blocks), target, settings.minutes, settings.gigabytes, settings.finish
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    if result is None:
        ended.touch()
        return None
    if result.failure:
        figures: dict[str, Any] = {"failure": result.failure, "compile_seconds": result.seconds}
    else:
        figures = _read(result, mesh, target, chip)
    cached.write_text(json.dumps(figures))
    return figures


@dataclasses.dataclass(frozen=True)
class _Lower:
    """A picklable function: devices -> the lowered program."""

    function: Callable[..., Any]
    make: MakeSubject
    sizes: tuple[int, ...]
    blocks: int | None

    def __call__(self, devices: Sequence[Any]) -> Any:
        return self.function(self.make, self.sizes, self.blocks, devices)


def _read(program: compiling.Compiled, mesh: Mesh, target: Target, chip: Chip) -> dict[str, Any]:
    """Figures read from the text of a compiled program, ready for JSON."""
    collectives = messages.collectives(program.text, [device.id for device in mesh.devices.flat])
    by_kind: dict[tuple[str, str], list[float]] = {}
    for each in collectives:
        axes = " x ".join(messages.axes(each.groups, mesh.shape)) or "none"
        entry = by_kind.setdefault((each.kind, axes), [0, 0.0])
        entry[0] += each.times
        entry[1] += each.times * each.wire_bytes
    places = roofline.places_of(list(mesh.devices.flat), chip)
    return {
        "compile_seconds": program.seconds,
        "finished": program.temporary_bytes is not None,
        "flops": usage.flops(program.text),
        "hbm_bytes": usage.hbm_bytes(program.text),
        "temporary_bytes": program.temporary_bytes or compiling.PACKING * usage.peak_bytes(program.text),
        "optimal_seconds": program.optimal_seconds,
        "collectives": [
            {"kind": kind, "axes": axes, "count": n, "wire_bytes": size}
            for (kind, axes), (n, size) in sorted(by_kind.items(), key=lambda item: -item[1][1])
        ],
        "traffic": [
            dataclasses.asdict(part)
            for part in roofline.traffic_of(collectives, mesh.shape, chip, target.shape, places)
        ],
    }
