"""`--mode=plan`: what a run needs and takes on a machine that is not at hand, before it is rented.

    count      parameters, FLOPs and kept activations, from traces (`count`)
    rank       every mesh that fits the machine and the batch, by an analytic step time (`rank`)
    compile    the training step for the best meshes, and the sampler for the best, ahead of time (`lower`, `compile`)
    read       the compiled program (`messages`, `usage`), and the time that it takes at the least (`roofline`)

What was compiled and what was only counted is told apart everywhere.
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
from vf.config.specs import PlanSettings, PlanSpec
from vf.plan import compile as compiling
from vf.plan import count, messages, roofline, usage
from vf.plan.chips import Chip
from vf.plan.lower import counts, lower_sampling, lower_training, on_mesh
from vf.plan.rank import guess, ranking, times
from vf.plan.report import mesh_text, report
from vf.plan.subject import MakeSubject, PlanSubject
from vf.plan.targets import Target
from vf.run import provenance
from vf.training import sharding

ROOT = Path(__file__).resolve().parents[2]
UPPER = "an upper bound: the CPU's program sends and keeps bfloat16 as float32, and keeps attention's logits"


def run(spec: PlanSpec, workdir: files.AnyPath) -> dict[str, Any]:
    """Plans, prints the tables and writes `WORKDIR/plan.json`; returns what it holds.

    Raises UserError for a mesh that fits neither machine nor batch.
    """
    make, target, settings = spec.subject, spec.target, spec.settings
    subject = make(None, None)
    shapes = subject.state()
    counted = counts(subject, shapes.params)
    devices = compiling.stand_ins(target) if settings.compile == "none" else compiling.devices_of(target)
    chip = target.chip or roofline.measured_chip(devices=target.devices)
    ranked = ranking(subject, shapes, counted, devices, target, chip, settings.mesh)
    ask = _Ask(make, subject, shapes, counted, devices, target, chip, settings, spec.fingerprint)
    plan: dict[str, Any] = {
        "target": target.text,
        "chip": dataclasses.asdict(chip),
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
        plan["compiled"].append(_planned(ask, sizes, "train"))
        _save(plan, workdir)
    best = min(plan["compiled"], key=lambda made: (not made["fits"], made.get("seconds", {}).get("serial", 0.0)))
    plan["best"] = best
    sizes = tuple(best["mesh"].values())
    if "sample" in settings.compile:
        plan["sampling"] = _planned(ask, sizes, "sample")
    mesh = sharding.make_mesh(**best["mesh"], devices=devices)
    plan["sharding"] = count.table(on_mesh(shapes, mesh).params)
    _save(plan, workdir)
    print(report(plan))
    return plan


def _save(plan: Mapping[str, Any], workdir: files.AnyPath) -> None:
    files.write_whole(workdir / "plan.json", json.dumps(plan, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Ask:
    """What is planned, for what, and how."""

    make: MakeSubject
    subject: PlanSubject
    shapes: Any
    counted: count.Counts
    devices: Sequence[Any]
    target: Target
    chip: Chip
    settings: PlanSettings
    fingerprint: str


def _planned(ask: _Ask, sizes: tuple[int, ...], program: str) -> dict[str, Any]:
    """One program on one mesh: compiled as far as the limits allow, or counted; and whether it fits."""
    subject, counted, target, chip, settings = ask.subject, ask.counted, ask.target, ask.chip, ask.settings
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=ask.devices)
    state = on_mesh(ask.shapes, mesh)
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
        figures = compiled(ask.make, program, mesh, target, chip, settings, ask.fingerprint, settings.blocks or None)
        label = "compiled" if target.topology_name or target.kind == "cpu" else "compiled for fake CPU devices"
        blocks = settings.blocks
        if figures is None:  # past the limits
            blocks = 1
            figures = compiled(ask.make, program, mesh, target, chip, settings, ask.fingerprint, blocks)
        if blocks and blocks < subject.blocks:
            small = ask.make(None, blocks)
            less = counts(small, small.state().params)
            scale = counted.forward_flops / less.forward_flops
            label += f" with {blocks} residual block{'s' if blocks > 1 else ''} a level, and scaled by FLOPs"
    if figures is None or "failure" in figures:
        if program == "train":
            made |= guess(subject, ask.shapes, counted, mesh, target, chip)
        label = f"counted; the compiler says: {figures['failure']}" if figures else "counted, not compiled"
        refused = figures is not None
        made |= {"how": label, "fits": not refused and made.get("fits", True)}
        return made | _verdict(made, chip, subject, figures["failure"] if figures else "")
    made |= {"how": label, "compile_seconds": figures["compile_seconds"], "finished": figures["finished"]}
    made |= {name: figures[name] * scale for name in ("flops", "hbm_bytes", "temporary_bytes")}
    made["flops"] *= counted.padding  # which useful FLOPs have, and the program's text has not
    made["optimal_seconds"] = figures["optimal_seconds"] and figures["optimal_seconds"] * scale
    made["collectives"] = [
        {**each, "wire_bytes": each["wire_bytes"] * scale, "count": round(each["count"] * scale)}
        for each in figures["collectives"]
    ]
    made["total_bytes"] = made["argument_bytes"] + made["temporary_bytes"]
    step = roofline.Step(
        flops=made["flops"],
        hbm_bytes=made["hbm_bytes"],
        traffic=[roofline.traffic_read(part, scale) for part in figures["traffic"]],
        useful_flops=made["useful_flops"],
        dtype="bfloat16" if jax.numpy.dtype(subject.dtype).itemsize == 2 else "float32",
    )
    made |= times(roofline.estimate(step, chip))
    made["fits"] = made["total_bytes"] < chip.hbm_bytes
    return made | _verdict(made, chip, subject)


def _verdict(made: Mapping[str, Any], chip: Chip, subject: PlanSubject, failure: str = "") -> dict[str, Any]:
    """In words: fits or not, and what to change; `failure` is what a compiler said that refused."""
    refused = bool(failure)
    aside = f" ({UPPER})" if "fake" in made["how"] else ""
    size = f"{made.get('total_bytes', made['argument_bytes']) / 2**30:.2f} GiB"
    room = f"{chip.hbm_bytes / 2**30:.2f} GiB"
    if made["fits"]:
        return {"verdict": f"fits: {size} of {room} on each {chip.name}{aside}"}
    state = sum(made["state_bytes"].values())
    if state > made.get("total_bytes", 0) / 2:
        advice = "more devices on --config.mesh.fsdp, which splits parameters and optimizer"
    elif made["program"] == "sample":
        advice = "a smaller --config.sample.batch_size"
    else:
        advice = f"--config.train.accumulate={2 * subject.accumulate}, which halves what activations need"
        advice = advice if subject.remat else f"--config.model.remat=blocks, which keeps fewer activations, or {advice}"
    if refused and "RESOURCE_EXHAUSTED" not in failure:
        return {"verdict": f"the compiler refused the program, though not for want of memory: {failure:.300}"}
    why = "the compiler ran out of memory" if refused else f"{size} on each {chip.name}, which has {room}"
    return {"verdict": f"does not fit: {why}{aside}; try {advice}"}


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
    """What the compiler's program says of one step (or one batch of samples) on one device; None past the limits.

    `fingerprint`: of the config; what was compiled with the same one, target, code, versions and flags is in the cache.
    """
    sizes = mesh.devices.shape
    versions = [jax.__version__, jax.lib.__version__, provenance.version("libtpu"), provenance.sources(ROOT, ("vf",))]
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")  # change the program
    asked = [fingerprint, target.text, program, sizes, blocks, settings.finish, versions, flags]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    kept = settings.cache / f"{name}.json"
    if kept.exists():
        logging.info("%s on mesh %s was compiled before: %s", program, mesh_text(sizes), kept)
        return json.loads(kept.read_text())
    ended = settings.cache / f"{name}-ended-at-{settings.minutes:g}-minutes-{settings.gigabytes:g}-GB"
    if ended.exists():
        logging.warning(
            "compiling was ended before at these limits: raise plan.minutes or .gigabytes, or remove %s", ended
        )
        return None
    logging.info("compiling the %s step on mesh %s for %s ...", program, mesh_text(sizes), target.text)
    lower = lower_training if program == "train" else lower_sampling
    made = compiling.compile_apart(
        _Lower(lower, make, sizes, blocks), target, settings.minutes, settings.gigabytes, settings.finish
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    if made is None:
        ended.touch()
        return None
    if made.failure:
        figures: dict[str, Any] = {"failure": made.failure, "compile_seconds": made.seconds}
    else:
        figures = _read(made, mesh, target, chip)
    kept.write_text(json.dumps(figures))
    return figures


@dataclasses.dataclass(frozen=True)
class _Lower:
    """devices -> the lowered program; picklable."""

    function: Callable[..., Any]
    make: MakeSubject
    sizes: tuple[int, ...]
    blocks: int | None

    def __call__(self, devices: Sequence[Any]) -> Any:
        return self.function(self.make, self.sizes, self.blocks, devices)


def _read(made: compiling.Compiled, mesh: Mesh, target: Target, chip: Chip) -> dict[str, Any]:
    """The figures of a program's text."""
    found = messages.collectives(made.text, [device.id for device in mesh.devices.flat])
    by_kind: dict[tuple[str, str], list[float]] = {}
    for each in found:
        axes = " x ".join(messages.axes(each.groups, mesh.shape)) or "none"
        entry = by_kind.setdefault((each.kind, axes), [0, 0.0])
        entry[0] += each.times
        entry[1] += each.times * each.wire_bytes
    places = roofline.places_of(list(mesh.devices.flat), chip)
    return {
        "compile_seconds": made.seconds,
        "finished": made.temporary_bytes is not None,
        "flops": usage.flops(made.text),
        "hbm_bytes": usage.hbm_bytes(made.text),
        "temporary_bytes": made.temporary_bytes or compiling.PACKING * usage.peak_bytes(made.text),
        "optimal_seconds": made.optimal_seconds,
        "collectives": [
            {"kind": kind, "axes": axes, "count": n, "wire_bytes": size}
            for (kind, axes), (n, size) in sorted(by_kind.items(), key=lambda item: -item[1][1])
        ],
        "traffic": [
            dataclasses.asdict(part) for part in roofline.traffic_of(found, mesh.shape, chip, target.shape, places)
        ],
    }
