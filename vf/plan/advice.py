"""Whether a program fits a device, and if not the smallest change by which it does, tried before it is advised."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from vf.plan import count
from vf.plan.chips import Chip
from vf.plan.lower import counts
from vf.plan.rank import doubt, estimate_training
from vf.plan.subject import MakeSubject, PlanSubject
from vf.plan.targets import Target
from vf.plan.units import bytes_text


def verdict(result: Mapping[str, Any], chip: Chip, change: str, note: str = "", failure: str = "") -> dict[str, Any]:
    """{"verdict": a sentence that says whether the program fits, "fits": whether it may}.

    Args:
        result: figures of the program: `least_bytes` and `most_bytes`, equal where a compiler said them.
        chip: whose memory it needs.
        change: what to change where it does not fit.
        note: what else is to be known of the figures.
        failure: the error of a compiler that refused the program; "" where none did.
    """
    least, most = result["least_bytes"], result["most_bytes"]
    size = bytes_text(most) if least == most else f"{bytes_text(least)} to {bytes_text(most)}, counted,"
    room = bytes_text(chip.hbm_bytes)
    if failure and "RESOURCE_EXHAUSTED" not in failure:
        text = f"the compiler refused the program, though not for want of memory: {failure:.300}"
        return {"fits": False, "verdict": text}
    if failure:
        return {"fits": False, "verdict": f"does not fit: the compiler ran out of memory{note}; {change}"}
    if most < chip.hbm_bytes:
        return {"fits": True, "verdict": f"fits: {size} of {room} on each {chip.name}{note}"}
    if least < chip.hbm_bytes:
        text = f"may fit: {size} of {room} on each {chip.name}{note}; to know, let it be compiled, or {change}"
        return {"fits": True, "verdict": text}
    return {"fits": False, "verdict": f"does not fit: {size} on each {chip.name}, which has {room}{note}; {change}"}


def training_change(
    make: MakeSubject, shapes: Any, mesh: Mesh, target: Target, chip: Chip, result: Mapping[str, Any]
) -> str:
    """The smallest change of the config by which a training step fits, as flags, with the memory that it then needs.

    What the compiler, or the doubt of counting, adds to what is counted is taken to stay in proportion. A change of one
    field comes before one of two, and one that computes nothing again before one that does.
    """
    subject = make(None, None)
    kept = result["argument_bytes"]

    def moving(subject: PlanSubject, counted: count.Counts) -> float:
        memory = estimate_training(subject, shapes, counted, mesh, target, chip)["memory"]
        return doubt(subject)[1] * sum(size for name, size in memory.items() if name != "state")

    once = {again: counts(make(None, None, remat=again), shapes.params) for again in {subject.remat, True}}
    needed = max(result["most_bytes"], chip.hbm_bytes)  # where a compiler ran out of memory it needs at least that
    scale = (needed - kept) / moving(subject, once[subject.remat])
    for changes in _changes(subject, mesh):
        changed = make(None, None, **changes)
        size = kept + scale * moving(changed, once[changed.remat])
        if size < chip.hbm_bytes:
            flags = {"accumulate": "--config.train.accumulate={}", "remat": "--config.model.remat=blocks"}
            words = " ".join(flags[name].format(value) for name, value in changes.items())
            return f"{words} makes it {bytes_text(size)}"
    state = sum(result["state_bytes"].values()) * mesh.size
    devices = math.ceil(state / chip.hbm_bytes)
    return (
        "no number of micro-batches makes it fit, with or without --config.model.remat=blocks: it takes more devices, "
        f"or smaller networks (parameters, average and moments alone, as they are split, fill {devices} {chip.name})"
    )


def sampling_change(rows: int, devices: int, chip: Chip, result: Mapping[str, Any]) -> str:
    """The largest batch of samples that fits, as a flag; memory beside the arguments is in proportion to its `rows`."""
    each = (result["most_bytes"] - result["argument_bytes"]) / rows
    fitting = int((chip.hbm_bytes - result["argument_bytes"]) / each) // devices * devices if each else rows
    if fitting < devices:
        return "no batch makes it fit: it takes more devices"
    return f"--config.sample.batch_size={min(fitting, rows)} fits"


def _changes(subject: PlanSubject, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Changes of a training job, the smallest first: more micro-batches, then activations computed again, then both."""
    data, fsdp, *_ = mesh.devices.shape
    parts = [subject.accumulate * 2**k for k in range(1, 20)]
    parts = [n for n in parts if subject.batch_size % (data * fsdp * n) == 0]
    yield from ({"accumulate": n} for n in parts)
    if not subject.remat:
        yield {"remat": True}
        yield from ({"accumulate": n, "remat": True} for n in parts)
