"""Every mesh that fits the machine and the batch, and its memory and time by arithmetic alone."""

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
    wanted: tuple[int, ...] | None,
) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """(sizes, guess) of every mesh, or of the `wanted` one, best first: those that fit by serial time; then by memory.

    Raises UserError where none takes the batch."""
    if wanted is not None:
        sizes = sharding.mesh_sizes(target.devices, *wanted)
        found = [sizes]
    else:
        frames = subject.model.shape[0]
        found = list(meshes(target.devices, target.slices, subject.batch_size, subject.accumulate, frames))
    if not found:
        raise UserError(
            f"no mesh of {target.devices} devices takes train.batch_size {subject.batch_size} in {subject.accumulate} "
            f"micro-batches: make the batch a multiple of {target.devices * subject.accumulate}"
        )
    made, refused = [], None
    for sizes in found:
        mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
        try:
            sharding.check_rows(mesh, "train.batch_size", subject.batch_size, subject.accumulate, clips=True)
            sharding.check_rows(mesh, "sample.batch_size", subject.sample_batch_size, over=sharding.EVERY)
            sharding.check_rows(mesh, "eval.batch_size", subject.eval_batch_size, over=sharding.EVERY)
        except UserError as error:
            refused = refused or error
            continue
        made.append((sizes, guess(subject, shapes, counted, mesh, target, chip)))
    if refused and not made:
        raise refused

    def order(item: tuple[tuple[int, ...], dict[str, Any]]) -> tuple[Any, ...]:
        fits = item[1]["fits"]
        return (not fits, item[1]["seconds"]["serial"] if fits else item[1]["total_bytes"])

    return sorted(made, key=order)


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


def guess(
    subject: PlanSubject, shapes: Any, counted: count.Counts, mesh: Mesh, target: Target, chip: Chip
) -> dict[str, Any]:
    """Memory and time of a training step on `mesh`, by arithmetic alone: to rank meshes, and where nothing compiles.

    Activations are what the trace keeps for the backward pass, working space four times its largest array. Parameters
    that are split are gathered for the forward and the backward pass of every micro-batch (and once more where
    activations are computed again), gradients scattered once; copies exchange gradients over `data`. Frame mixing sends
    about a tenth of the kept activations, a split of features all of them, twice.
    """
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
    sent: dict[tuple[str, messages.Kind], float] = {
        ("fsdp", "all-gather"): gathers * split / tensor,
        ("fsdp", "reduce-scatter"): subject.accumulate * split / tensor,
        ("data", "all-reduce"): each + whole,
        ("frames", "all-gather"): 0.1 * kept * frames * subject.accumulate,
        ("tensor", "all-reduce"): 2 * kept * subject.accumulate,
    }
    useful = 3 * counted.forward_flops * subject.batch_size / target.devices
    total = sum(memory.values())
    made = {
        "memory": {name: float(size) for name, size in memory.items()},
        "total_bytes": total,
        "fits": total < chip.hbm_bytes,
    }
    places = roofline.places_of(list(mesh.devices.flat), chip)
    found = [
        messages.Collective(f"{axis}-{kind}", kind, int(size), _groups(mesh, axis), 1, "")
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
    return made | times(roofline.estimate(step, chip))


def _groups(mesh: Mesh, axis: str) -> tuple[tuple[int, ...], ...]:
    """Positions in the flattened mesh of the devices that an axis joins."""
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    lines = np.moveaxis(numbers, sharding.AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    return tuple(tuple(map(int, line)) for line in lines)


def times(estimate: roofline.Estimate) -> dict[str, Any]:
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
