"""Ranks every mesh that fits the machine and the batch, by estimates of memory and time without compiling."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vf.plan import count, messages, roofline
from vf.plan.chips import Chip
from vf.plan.lower import on_mesh
from vf.plan.subject import PlanSubject
from vf.plan.targets import Target
from vf.training import sharding
from vf.types import UserError


def ranking(
    subject: PlanSubject,
    shapes: Any,
    counted: count.Counts,
    devices: Sequence[Any],
    target: Target,
    chip: Chip,
    fixed: tuple[int, ...] | None,
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """[(sizes, estimate)] of every mesh, or of the `fixed` one, best first.

    Meshes that fit come first, ordered by serial time; then the others, by memory. Raises UserError where the batch can
    be split over no mesh.
    """
    if fixed is not None:
        sizes = sharding.mesh_sizes(target.devices, *fixed)
        meshes_to_try = [sizes]
    else:
        frames = subject.model.shape[0]
        meshes_to_try = list(meshes(target.devices, target.slices, subject.batch_size, subject.accumulate, frames))
    if not meshes_to_try:
        raise UserError(
            f"no mesh of {target.devices} devices takes train.batch_size {subject.batch_size} in {subject.accumulate} "
            f"micro-batches: make the batch a multiple of {target.devices * subject.accumulate}"
        )
    ranked, refused = [], None
    for sizes in meshes_to_try:
        mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
        try:
            sharding.check_rows(mesh, "train.batch_size", subject.batch_size, subject.accumulate, clips=True)
            sharding.check_rows(mesh, "sample.batch_size", subject.sample_batch_size, over=sharding.EVERY)
            sharding.check_rows(mesh, "eval.batch_size", subject.eval_batch_size, over=sharding.EVERY)
        except UserError as error:
            refused = refused or error
            continue
        ranked.append((sizes, estimate_training(subject, shapes, counted, mesh, target, chip)))
    if refused and not ranked:
        raise refused

    def order(item: tuple[tuple[int, ...], dict[str, Any]]) -> tuple[Any, ...]:
        fits = item[1]["fits"]
        return (not fits, item[1]["seconds"]["serial"] if fits else item[1]["total_bytes"])

    return sorted(ranked, key=order)


def meshes(devices: int, slices: int, batch: int, accumulate: int, frames: int) -> Iterator[tuple[int, ...]]:
    """Yields the sizes, in the order of `sharding.AXES`, of every mesh of `devices` over which a batch can be split."""
    powers = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp, split in itertools.product(powers, powers, powers):
        tensor, rest = divmod(devices, data * fsdp * split)
        rows, left = divmod(batch, data * fsdp * accumulate)
        if rest or not tensor or data * fsdp * split * tensor != devices or tensor > 4:
            continue
        if data % slices or left or frames % split or (split > 1 and rows != 1):
            continue
        yield data, fsdp, split, tensor


def estimate_training(
    subject: PlanSubject, shapes: Any, counted: count.Counts, mesh: Mesh, target: Target, chip: Chip
) -> dict[str, Any]:
    """Memory and time of a training step on `mesh`, estimated without compiling, ready for JSON.

    The estimate ranks meshes, and stands in where compiling fails. Activations are what the trace stores for the
    backward pass, and working space is four times its largest array. Parameters that are split are gathered for the
    forward and the backward pass of every micro-batch (and once more where activations are computed again), and their
    gradients are scattered once; copies exchange gradients over `data`. Mixing frames sends about a tenth of the stored
    activations, and a split of features sends all of them, twice.
    """
    data, fsdp, frames, tensor = mesh.devices.shape
    width = jax.numpy.dtype(subject.dtype).itemsize
    state = on_mesh(shapes, mesh)
    split, copied = count.split_bytes(state.params, width)
    clips = (
        subject.batch_size / (data * fsdp) / subject.accumulate
    )  # clips of a micro-batch, for each part of the batch
    stored = clips * counted.stored_bytes / frames
    memory = {
        "state": count.shard_bytes(state),
        "gradients": count.shard_bytes(state.params) * (2 if subject.accumulate > 1 else 1),
        "activations": stored,
        "working space": 4 * clips * counted.largest_bytes / frames + (split / tensor) / (2 * subject.blocks + 2) / 4,
    }
    gathers = subject.accumulate * (3 if subject.remat else 2)
    per_device = split / tensor / fsdp
    sent: dict[tuple[str, messages.Kind], float] = {
        ("fsdp", "all-gather"): gathers * split / tensor,
        ("fsdp", "reduce-scatter"): subject.accumulate * split / tensor,
        ("data", "all-reduce"): per_device + copied,
        ("frames", "all-gather"): 0.1 * stored * frames * subject.accumulate,
        ("tensor", "all-reduce"): 2 * stored * subject.accumulate,
    }
    useful = 3 * counted.forward_flops * subject.batch_size / target.devices
    total = sum(memory.values())
    result = {
        "memory": {name: float(size) for name, size in memory.items()},
        "total_bytes": total,
        "fits": total < chip.hbm_bytes,
    }
    places = roofline.places_of(list(mesh.devices.flat), chip)
    collectives = [
        messages.Collective(f"{axis}-{kind}", kind, int(size), _groups(mesh, axis), 1, "")
        for (axis, kind), size in sent.items()
        if mesh.shape[axis] > 1
    ]
    # Each stored array is written and read a few times in the forward pass, and again in the backward pass; of a block
    # that is computed again only the input is stored, a tenth of its arrays. A program of 2.6 B parameters had 188 GB a
    # clip.
    step = roofline.Step(
        flops=useful * (4 / 3 if subject.remat else 1),
        hbm_bytes=2 * memory["state"] + 12 * stored * subject.accumulate * (12 if subject.remat else 1),
        traffic=roofline.traffic_of(collectives, mesh.shape, chip, target.shape, places),
        useful_flops=useful,
        dtype="bfloat16" if width == 2 else "float32",
    )
    return result | times(roofline.estimate(step, chip))


def doubt(subject: PlanSubject) -> tuple[float, float]:
    """Memory of compiled programs, beside the state, relative to what `estimate_training` counts: (at least, at most).

    Measured (RESULTS.md): 0.85 to 1.28 on CPUs where activations are kept; where they are computed again 1.08 to 2.39
    in programs for TPUs, and 2.69 on a CPU, whose compiler keeps most of them all the same.
    """
    return (0.8, 3.0) if subject.remat else (0.8, 1.5)


def _groups(mesh: Mesh, axis: str) -> tuple[tuple[int, ...], ...]:
    """Groups of devices along a mesh axis, as positions in the flattened mesh."""
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    lines = np.moveaxis(numbers, sharding.AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    return tuple(tuple(map(int, line)) for line in lines)


def times(estimate: roofline.Estimate) -> dict[str, Any]:
    """The times, in seconds, and MFU of an estimate, ready for JSON."""
    return {
        "seconds": {
            "compute": estimate.compute_s, "memory": estimate.memory_s, "network": estimate.network_s,
            "least": estimate.step_s, "serial": estimate.serial_s,
        },
        "network_by_axes": {" x ".join(axes) or "none": s for axes, s in estimate.network_by_axes.items()},
        "mfu": {"least": estimate.mfu, "serial": estimate.serial_mfu},
        "bound": estimate.bound,
    }  # fmt: skip
