"""Where arrays lie: one mesh, a list of (pattern over paths, rule), and nothing in the models.

The mesh has four axes. A batch is split over `data` and `fsdp`; parameters, moments and averages are split
over `fsdp` (and `tensor`, for wide kernels) and copied over `data`. Where there is less than one clip for a device,
`frames` splits the frames of each clip. The compiler inserts the communication.

    axis      what it splits                    what is sent at each step                  where it should lie
    data      clips                             gradients, once                            may span slices
    fsdp      clips; parameters and their like  parameters twice or thrice, gradients once inside a slice
    frames    frames                            what frame mixing needs                    between neighbours
    tensor    features of wide kernels          activations of every block                 between neighbours
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

from vf.types import Batch, UserError

OfBatch = Callable[[Any, Any], Any]

AXES = ("data", "fsdp", "frames", "tensor")
ROWS = ("data", "fsdp")  # the axes that a training batch is split over
EVERY = (*ROWS, "frames")  # and one of which no frames are split: samples, clips to be judged

RULES: Sequence[tuple[str, str]] = (
    (r"/kernel$", "tensor"),
    (r"", "fsdp"),
)
"""(pattern, rule): the first pattern found in an array's '/'-joined path decides. Patterns should not be
anchored at the start: the moments of `base/x/kernel` are `opt_state/.../mu/base/x/kernel`, and must lie as it
does.

'replicated': a copy on every device.
'fsdp': the largest axis that the mesh axis `fsdp` divides is split over it.
'tensor': output features (the last axis) are split over the mesh axes `tensor` and `fsdp` where both divide them and
    each part of `tensor` gets at least `MIN_FEATURES`; otherwise as 'fsdp'. One axis for both, since of kernels split
    along two XLA makes programs with wrong gradients (jax 0.10.2: tens of per cent, in silence, at some U-Nets).
"""

MIN_FEATURES = 128  # a matrix unit's width: narrower pieces cost communication and gain nothing


def make_mesh(
    data: int = -1, fsdp: int = 1, frames: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of axes `AXES`.

    devices: all of them are used; default every device of every process. Where they are several TPU slices (or other
        islands of fast links, by their `slice_index`), `data` alone spans slices.

    One of the sizes may be -1: what the others leave. Raises UserError when they do not multiply to the
    device count, or `data` is no multiple of the slices.
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
        inside = (sizes[0] // slices, *sizes[1:])
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto, said aloud: jax.make_mesh would make Explicit axes, which put shardings into the types of Linen
    # modules.
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(count: int, data: int = -1, fsdp: int = 1, frames: int = 1, tensor: int = 1) -> tuple[int, ...]:
    """Sizes of `AXES` for `count` devices, with a -1 filled in. Raises UserError as `make_mesh` does."""
    sizes = dict(zip(AXES, (data, fsdp, frames, tensor), strict=True))
    free = [axis for axis, size in sizes.items() if size == -1]
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise UserError(f"mesh.{bad[0]} must be positive, or -1 for what is left, but is {sizes[bad[0]]}")
    if len(free) > 1:
        raise UserError(f"only one mesh axis may be -1, but the mesh is {shown}: give mesh.{free[1]} a number")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if count % taken or (not free and taken != count):
        fixable = [axis for axis in AXES if axis not in free and count % (taken // sizes[axis]) == 0]
        advice = "the sizes must multiply to the device count"
        if fixable:
            axis = max(fixable, key=lambda axis: sizes[axis])  # the others are mostly 1, and meant to be
            room = count // (taken // sizes[axis])
            advice = f"change mesh.{axis} to " + (f"a divisor of {room}" if free else f"{room}, or to -1")
        raise UserError(f"mesh {shown} does not fit {count} devices: {advice}")
    if free:
        sizes[free[0]] = count // taken
    return tuple(sizes.values())


def named(tree: Any) -> dict[str, Any]:
    """{'/'-joined path: leaf}, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shardings(
    tree: Any,
    mesh: Mesh,
    rules: Sequence[tuple[str, str]] = RULES,
    *,
    min_size: int = 2**14,
    min_features: int = MIN_FEATURES,
) -> Any:
    """The tree of NamedSharding for a tree of arrays or `jax.ShapeDtypeStruct`; meant for `jax.eval_shape` of
    a whole train state, so that both Adam moments and the average lie as their parameter does.

    min_size: arrays of fewer elements are replicated (a shard would cost more in latency than it saves in
        memory).
    min_features: see `RULES`. An array that no pattern fits, or no axis of which can be split, is replicated.

    Raises UserError for a rule that does not exist.
    """
    unknown = sorted({rule for _, rule in rules} - {"replicated", "fsdp", "tensor"})
    if unknown:
        raise UserError(f"sharding rule {unknown[0]!r} does not exist: use 'replicated', 'fsdp' or 'tensor'")

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next((rule for pattern, rule in rules if re.search(pattern, name)), "replicated")
        spec: list[Any] = [None] * leaf.ndim
        if rule != "replicated" and leaf.size >= min_size:
            if rule == "tensor" and leaf.ndim > 1:
                features, parts = leaf.shape[-1], mesh.shape["tensor"]
                both = parts * mesh.shape["fsdp"]
                if parts > 1 and features % both == 0 and features // parts >= min_features:
                    spec[-1] = ("tensor", "fsdp") if mesh.shape["fsdp"] > 1 else "tensor"
                    return NamedSharding(mesh, PartitionSpec(*spec))
            parts = mesh.shape["fsdp"]
            fits = [axis for axis, n in enumerate(leaf.shape) if spec[axis] is None and n and n % parts == 0]
            if parts > 1 and fits:
                # Of equally large axes the last: for a kernel that keeps the sum over inputs on one device.
                spec[max(fits, key=lambda axis: (leaf.shape[axis], axis))] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract(tree: Any, shardings: Any) -> Any:
    """The tree's shapes and dtypes with `shardings` (one, or a tree of them), as a checkpoint is read by."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def abstract_params(shapes: Any, mesh: Mesh) -> Any:
    """Shapes of parameters, with the shardings that they have on `mesh`."""
    return abstract(shapes, shardings(shapes, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, over: Sequence[str] = ROWS) -> NamedSharding:
    """Rows (the first axis) split over the mesh axes `over`."""
    return NamedSharding(mesh, PartitionSpec(tuple(over)))


def placing(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """clips [b f ...] -> the same, told to lie where a batch of them lies: for networks, between layers.

    Frames are split over `frames` where each part is one clip (networks fold frames into rows, which would not keep
    more), else rows are split over as many axes as divide them. Features are left to the compiler under `tensor`.
    """
    frames, parts = mesh.shape["frames"], math.prod(mesh.shape[axis] for axis in ROWS)
    features = PartitionSpec.UNCONSTRAINED if mesh.shape["tensor"] > 1 else None

    def place(x: jax.Array) -> jax.Array:
        if jax.sharding.get_abstract_mesh().manual_axes:  # each device does its own rows
            return x
        rows, count = x.shape[:2]
        over: tuple[Any, ...]
        if frames > 1 and rows == parts and count % frames == 0:
            over = (ROWS, "frames")
        elif rows % (parts * frames) == 0:
            over = (EVERY, None)
        elif rows % parts == 0:
            over = (ROWS, None)
        else:  # one row, to learn the shapes
            return x
        spec = PartitionSpec(*over, *[None] * (x.ndim - 3), features)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return place if mesh.size > 1 else lambda x: x


def averaging(mesh: Mesh) -> Callable[[OfBatch], OfBatch]:
    """f(params, batch) -> means over the batch's rows; the same function, for a batch that is spread over `mesh`.

    Mostly this is left to the compiler. But between CPU processes gloo sends array by array, at some milliseconds for
    each, however small; where every device has whole parameters, it therefore finds the means of its own rows, and
    those of all devices are averaged as one array.
    """
    if mesh.devices.flat[0].platform != "cpu" or mesh.shape["data"] < 2 or mesh.size > mesh.shape["data"]:
        return lambda function: function

    def spread(function: OfBatch) -> OfBatch:
        def mine(params: Any, batch: Any) -> Any:
            flat, unravel = ravel_pytree(function(params, batch))
            return unravel(jax.lax.pmean(flat, "data"))

        whole, rows = PartitionSpec(), PartitionSpec(ROWS)
        return jax.shard_map(mine, mesh=mesh, in_specs=(whole, rows), out_specs=whole, check_vma=False)

    return spread


def check_rows(
    mesh: Mesh, name: str, rows: int, parts: int = 1, *, over: Sequence[str] = ROWS, clips: bool = False
) -> None:
    """Raises UserError where a batch of `rows`, in `parts` micro-batches, cannot be split over the mesh.

    name: of the field that says `rows`.
    over: the mesh axes.
    clips: the frames of its clips are split too, over `frames`.
    """
    blocks, frames = math.prod(mesh.shape[axis] for axis in over), mesh.shape["frames"]
    shown = f"{' x '.join(over)} = {' x '.join(str(mesh.shape[axis]) for axis in over)} devices"
    each = f" in {parts} micro-batches" if parts > 1 else ""
    if rows % (blocks * parts):
        raise UserError(f"{name} {rows}{each} cannot be split over {shown}: make it a multiple of {blocks * parts}")
    if clips and frames > 1 and rows != blocks * parts:
        raise UserError(
            f"mesh.frames={frames} is for less than one clip a device, but {name} {rows}{each} gives "
            f"{rows // (blocks * parts)} clips to each of {shown}: set mesh.frames to 1, or {name} to "
            f"{blocks * parts}"
        )


def my_rows(mesh: Mesh, rows: int, over: Sequence[str] = ROWS) -> np.ndarray:
    """Which of the `rows` of a global batch this process must hold, in order, int64.

    They need not be neighbours, since a mesh follows the wires and not the processes' numbers; and processes share rows
    where `frames` or `tensor` spans them. All processes together hold all rows. Raises UserError as `check_rows`.
    """
    check_rows(mesh, "batch_size", rows, over=over)
    slices = batch_sharding(mesh, over).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices]))


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, rows: int | None = None, over: Sequence[str] = ROWS
) -> Batch:
    """This process's rows -> global arrays.

    batch: {name: [n ...]}, the rows `my_rows(mesh, rows, over)` of the global batch, in that order.
    rows: of the global batch; None where this is the only process.
    Returns {name: [rows ...]} with `batch_sharding`. Raises UserError when the mesh does not divide them.
    """
    counts = {name: len(value) for name, value in batch.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the arrays of a batch need equally many rows, but have {counts}")
    given = next(iter(counts.values()))
    rows = given if rows is None else rows
    mine, place = my_rows(mesh, rows, over), batch_sharding(mesh, over)
    if len(mine) != given:
        raise UserError(f"this process holds {len(mine)} of a batch's {rows} rows, but was given {given}")

    def put(value: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            first = np.searchsorted(mine, start)
            return value[first : first + stop - start]

        return jax.make_array_from_callback((rows, *value.shape[1:]), place, shard)

    return {name: put(np.asarray(value)) for name, value in batch.items()}
