"""Sharding of arrays: one mesh and a list of (pattern over paths, rule), without any part in the models.

The mesh has four axes. A batch is split over `data` and `fsdp`; parameters, moments and averages are split
over `fsdp` (and `tensor`, for wide kernels) and copied over `data`. Where there is less than one clip per device,
`frames` splits the frames of each clip. The compiler inserts the communication.

    axis      what it splits                    what is sent at each step                  which devices
    data      clips                             gradients, once                            may span slices
    fsdp      clips; parameters, their moments  parameters 2 or 3 times, gradients once    within a slice
    frames    frames                            inputs of frame mixing                     neighbours
    tensor    features of wide kernels          activations of every block                 neighbours
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vf.training import stacks
from vf.types import Batch, UserError, counted

OfBatch = Callable[[Any, Any], Any]

AXES = ("data", "fsdp", "frames", "tensor")
ROWS = ("data", "fsdp")  # axes over which training batches are split
EVERY = (*ROWS, "frames")  # axes over which batches of samples and validation clips are split, whose frames are not

RULES: Sequence[tuple[str, str]] = (
    (r"/kernel$", "tensor"),
    (r"", "fsdp"),
)
"""(pattern, rule): the first pattern that matches in an array's '/'-joined path decides. Patterns should not be
anchored at the start: the moments of `base/x/kernel` are `opt_state/.../mu/base/x/kernel`, and must be sharded alike.

'replicated': a copy on every device.
'fsdp': the largest axis that the mesh axis `fsdp` divides is split over it.
'tensor': output features (the last axis) are split over the mesh axes `tensor` and `fsdp` where both divide them and
    each part of `tensor` gets at least `MIN_FEATURES`; otherwise as 'fsdp'. Both split the same axis, since for kernels
    split along two axes XLA makes programs with wrong gradients (jax 0.10.2: tens of per cent, without an error, for
    some U-Nets).
"""

MIN_FEATURES = 128  # the width of a matrix unit: narrower pieces cost communication and save no time


def make_mesh(
    data: int = -1, fsdp: int = 1, frames: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of axes `AXES`.

    Args:
        data, fsdp, frames, tensor: sizes of the axes; one may be -1, for the number that the others leave.
        devices: the devices, all of which are used; default every device of every process. Of several TPU slices (or
            other groups with fast links, by their `slice_index`), only `data` spans more than one.

    Raises UserError where the sizes do not multiply to the number of devices, or `data` is no multiple of that of
    slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(len(devices), data, fsdp, frames, tensor)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data={sizes[0]} is the only axis that may span slices, and there are {slices}: "
            f"make it a multiple of {slices}"
        )
    if slices > 1:
        sizes_per_slice = (sizes[0] // slices, *sizes[1:])
        device_array = mesh_utils.create_hybrid_device_mesh(
            sizes_per_slice, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        device_array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # The axes are Auto: jax.make_mesh would make Explicit ones, which put shardings into the types of Linen modules.
    return Mesh(device_array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(count: int, data: int = -1, fsdp: int = 1, frames: int = 1, tensor: int = 1) -> tuple[int, ...]:
    """Sizes of `AXES` for `count` devices, with a -1 replaced by its value. Raises UserError as `make_mesh`."""
    sizes = dict(zip(AXES, (data, fsdp, frames, tensor), strict=True))
    free = [axis for axis, size in sizes.items() if size == -1]
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise UserError(f"mesh.{bad[0]} must be positive, or -1 for what is left, but is {sizes[bad[0]]}")
    if len(free) > 1:
        raise UserError(f"only one mesh axis may be -1, but the mesh is {shown}: give mesh.{free[1]} a number")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not free and fixed != count):
        fixable = [axis for axis in AXES if axis not in free and count % (fixed // sizes[axis]) == 0]
        advice = "the sizes must multiply to the device count"
        if fixable:
            axis = max(fixable, key=lambda axis: sizes[axis])  # the others are mostly 1 on purpose
            free_devices = count // (fixed // sizes[axis])
            advice = f"change mesh.{axis} to " + (
                f"a divisor of {free_devices}" if free else f"{free_devices}, or to -1"
            )
        raise UserError(f"mesh {shown} does not fit {counted(count, 'device')}: {advice}")
    if free:
        sizes[free[0]] = count // fixed
    return tuple(sizes.values())


def named(tree: Any) -> dict[str, Any]:
    """{'/'-joined path: leaf} of a tree, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {stacks.name_of(path): leaf for path, leaf in leaves}


def shardings(
    tree: Any,
    mesh: Mesh,
    rules: Sequence[tuple[str, str]] = RULES,
    *,
    min_size: int = 2**14,
    min_features: int = MIN_FEATURES,
) -> Any:
    """The tree of NamedSharding for a tree of arrays or `jax.ShapeDtypeStruct`.

    The tree is usually `jax.eval_shape` of a whole train state, so that Adam's moments and the average are sharded as
    their parameter is. An array that matches no pattern, or that has no axis that can be split, is replicated.

    Args:
        tree: the tree.
        mesh: the mesh.
        rules: see `RULES`.
        min_size: parameters with fewer elements are replicated (a shard would cost more latency than it saves memory).
        min_features: see `RULES`.

    Raises UserError for an unknown rule.
    """
    unknown = sorted({rule for _, rule in rules} - {"replicated", "fsdp", "tensor"})
    if unknown:
        raise UserError(f"sharding rule {unknown[0]!r} does not exist: use 'replicated', 'fsdp' or 'tensor'")

    def rule_of(name: str) -> str:
        return next((rule for pattern, rule in rules if re.search(pattern, name)), "replicated")

    def place(one: stacks.Parameter) -> NamedSharding:
        rule, *others = {rule_of(name) for name in one.names}
        if others:
            raise UserError(f"sharding rules tell {one.names[0]} from others of its shape: let them fit whole names")
        spec: list[Any] = [None] * len(one.shape)
        counting = [None] * one.stacked  # that axis is not split
        if rule != "replicated" and math.prod(one.shape) >= min_size:
            if rule == "tensor" and len(one.shape) > 1:
                features, parts = one.shape[-1], mesh.shape["tensor"]
                both = parts * mesh.shape["fsdp"]
                if parts > 1 and features % both == 0 and features // parts >= min_features:
                    spec[-1] = ("tensor", "fsdp") if mesh.shape["fsdp"] > 1 else "tensor"
                    return NamedSharding(mesh, PartitionSpec(*counting, *spec))
            parts = mesh.shape["fsdp"]
            fits = [axis for axis, n in enumerate(one.shape) if spec[axis] is None and n and n % parts == 0]
            if parts > 1 and fits:
                # Of equally large axes the last, so that a kernel's sums over inputs stay on one device.
                spec[max(fits, key=lambda axis: (one.shape[axis], axis))] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*counting, *spec))

    return stacks.map_parameters(place, tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """The tree of `jax.ShapeDtypeStruct` with `shardings` (one, or a tree of them), by which a checkpoint is read."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def abstract_params(shapes: Any, mesh: Mesh) -> Any:
    """`jax.ShapeDtypeStruct` of parameters, with their shardings on `mesh`."""
    return abstract(shapes, shardings(shapes, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, over: Sequence[str] = ROWS) -> NamedSharding:
    """The sharding whose rows (the first axis) are split over the mesh axes `over`."""
    return NamedSharding(mesh, PartitionSpec(tuple(over)))


def placing(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function: clips [b f ...] -> the same, constrained to the sharding of a batch; for networks, between layers.

    Frames are split over `frames` where each part has one clip (networks fold frames into rows, which would not keep
    the split of more); otherwise rows are split over as many axes as divide them. With `tensor`, the sharding of
    features is left to the compiler.
    """
    frames, parts = mesh.shape["frames"], math.prod(mesh.shape[axis] for axis in ROWS)
    features = PartitionSpec.UNCONSTRAINED if mesh.shape["tensor"] > 1 else None

    def place(x: jax.Array) -> jax.Array:
        if jax.sharding.get_abstract_mesh().manual_axes:  # under shard_map every device has its rows already
            return x
        rows, count = x.shape[:2]
        over: tuple[Any, ...]
        if frames > 1 and rows == parts and count % frames == 0:
            over = (ROWS, "frames")
        elif rows % (parts * frames) == 0:
            over = (EVERY, None)
        elif rows % parts == 0:
            over = (ROWS, None)
        else:  # such as a single row, from which shapes are computed
            return x
        spec = PartitionSpec(*over, *[None] * (x.ndim - 3), features)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return place if mesh.size > 1 else lambda x: x


def averaging(mesh: Mesh) -> Callable[[OfBatch], OfBatch]:
    """A function that adapts functions (params, batch) -> means over the batch's rows to batches split over `mesh`.

    Usually it changes nothing, and the compiler averages over devices. But between CPU processes gloo sends arrays one
    by one, at some milliseconds each. Where every device has all parameters, the adapted function therefore computes
    the means of each device's rows, and averages those of all devices as one array.
    """
    if mesh.devices.flat[0].platform != "cpu" or mesh.shape["data"] < 2 or mesh.size > mesh.shape["data"]:
        return lambda function: function

    def spread(function: OfBatch) -> OfBatch:
        def local_mean(params: Any, batch: Any) -> Any:
            flat, unravel = ravel_pytree(function(params, batch))
            return unravel(jax.lax.pmean(flat, "data"))

        replicated_spec, rows = PartitionSpec(), PartitionSpec(ROWS)
        return jax.shard_map(
            local_mean, mesh=mesh, in_specs=(replicated_spec, rows), out_specs=replicated_spec, check_vma=False
        )

    return spread


def check_rows(
    mesh: Mesh, name: str, rows: int, parts: int = 1, *, over: Sequence[str] = ROWS, clips: bool = False
) -> None:
    """Raises UserError where a batch of `rows`, in `parts` micro-batches, cannot be split over the mesh.

    Args:
        mesh: the mesh.
        name: name of the field that has the value `rows`.
        rows: rows of the batch.
        parts: number of micro-batches.
        over: mesh axes over which rows are split.
        clips: whether frames of clips are split too, over `frames`.
    """
    blocks, frames = math.prod(mesh.shape[axis] for axis in over), mesh.shape["frames"]
    devices = " x ".join(str(mesh.shape[axis]) for axis in over)
    shown = f"{' x '.join(over)} = {devices} devices"
    micro_batches = f" in {parts} micro-batches" if parts > 1 else ""
    if rows % (blocks * parts):
        raise UserError(
            f"{name} {rows}{micro_batches} cannot be split over {shown}: make it a multiple of {blocks * parts}"
        )
    if clips and frames > 1 and rows != blocks * parts:
        raise UserError(
            f"mesh.frames={frames} is for less than one clip a device, but {name} {rows}{micro_batches} gives "
            f"{counted(rows // (blocks * parts), 'clip')} to each of {shown}: set mesh.frames to 1, or {name} to "
            f"{blocks * parts}"
        )


def my_rows(mesh: Mesh, rows: int, over: Sequence[str] = ROWS) -> np.ndarray:
    """Numbers of the rows of a global batch that this process must have, in order, int64.

    They need not be consecutive, since a mesh follows the network and not the numbers of processes; and processes have
    rows in common where `frames` or `tensor` spans them. Every row belongs to some process. Raises UserError as
    `check_rows`.
    """
    check_rows(mesh, "batch_size", rows, over=over)
    slices = batch_sharding(mesh, over).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices]))


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, rows: int | None = None, over: Sequence[str] = ROWS
) -> Batch:
    """Makes the global arrays of a batch from the rows of each process.

    Args:
        batch: {name: [n ...]}, the rows `my_rows(mesh, rows, over)` of the global batch, in that order.
        mesh: the mesh.
        rows: rows of the global batch; None where this is the only process.
        over: mesh axes over which rows are split.

    Returns {name: [rows ...]} with `batch_sharding`. Raises UserError where the mesh does not divide the rows.
    """
    counts = {name: len(value) for name, value in batch.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the arrays of a batch need equally many rows, but have {counts}")
    count = next(iter(counts.values()))
    rows = count if rows is None else rows
    rows_here, place = my_rows(mesh, rows, over), batch_sharding(mesh, over)
    if len(rows_here) != count:
        raise UserError(f"this process holds {len(rows_here)} of a batch's {rows} rows, but was given {count}")

    def put(value: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            first = np.searchsorted(rows_here, start)
            return value[first : first + stop - start]

        return jax.make_array_from_callback((rows, *value.shape[1:]), place, shard)

    return {name: put(np.asarray(value)) for name, value in batch.items()}
