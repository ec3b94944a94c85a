"""Where arrays lie: one mesh, a list of (pattern over paths, rule), and nothing in the models.

The mesh has three axes. A batch is split over `data` and `fsdp`; parameters, moments and averages are split
over `fsdp` (and `tensor`, for wide kernels) and copied over `data`. The compiler inserts the communication.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vf.types import Batch, UserError

AXES = ("data", "fsdp", "tensor")

RULES: Sequence[tuple[str, str]] = (
    (r"/kernel$", "tensor"),
    (r"", "fsdp"),
)
"""(pattern, rule): the first pattern found in an array's '/'-joined path decides. Patterns should not be
anchored at the start: the moments of `base/x/kernel` are `opt_state/.../mu/base/x/kernel`, and must lie as it
does.

'replicated': a copy on every device.
'fsdp': the largest axis that the mesh axis `fsdp` divides is split over it.
'tensor': output features (the last axis) are split over the mesh axis `tensor` where each device gets at
    least `MIN_FEATURES` of them, and another axis over `fsdp` as above.
"""

MIN_FEATURES = 128  # a matrix unit's width: narrower pieces cost communication and gain nothing


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of axes ('data', 'fsdp', 'tensor').

    devices: all of them are used; default every device of every process.

    One of the sizes may be -1: what the others leave. Raises UserError when they do not multiply to the
    device count.
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
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
    # Auto, said aloud: jax.make_mesh would make Explicit axes, which put shardings into the types of Linen
    # modules.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


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
        spec: list[str | None] = [None] * leaf.ndim
        if rule != "replicated" and leaf.size >= min_size:
            if rule == "tensor" and leaf.ndim > 1:
                features, parts = leaf.shape[-1], mesh.shape["tensor"]
                if parts > 1 and features % parts == 0 and features // parts >= min_features:
                    spec[-1] = "tensor"
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


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first axis) split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """This process's rows -> global arrays, process 0's rows first.

    batch: {name: [rows ...]} with as many rows in every array and every process.
    Returns {name: [rows * processes ...]} with `batch_sharding`. Raises UserError when the mesh does not
    divide them.
    """
    counts = {name: len(value) for name, value in batch.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the arrays of a batch need equally many rows, but have {counts}")
    rows = next(iter(counts.values())) * jax.process_count()
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if rows % (data * fsdp):
        raise UserError(
            f"batch_size {rows} cannot be split over data x fsdp = {data} x {fsdp} devices:"
            f" make it a multiple of {data * fsdp}"
        )
    place = batch_sharding(mesh)
    # The global shape is said, not inferred: where `tensor` spans processes, inference would take each
    # process's different rows for copies of one another.
    return {
        name: jax.make_array_from_process_local_data(place, np.asarray(value), (rows, *np.shape(value)[1:]))
        for name, value in batch.items()
    }
