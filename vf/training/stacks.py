"""Parameters of equal shape in one array: what the optimizer, clipping and the average work on.

A U-Net has a thousand parameters of about ninety shapes, and an update does the same to each of them. In stacks, its
program is as long as there are shapes, and so are the kernels that a compiler makes and a device launches at each step.
Networks, checkpoints and files know each parameter by its own name: `unstack` gives them those.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from vf.types import Params


@struct.dataclass
class Stack:
    """The parameters of one network.

    Attributes:
        arrays: {'3x3x64x64/kernel': [n 3 3 64 64], ...}: parameters of one shape whose names end alike. As a pytree it
            also holds shapes or shardings.
        names: ((key of `arrays`, '/'-joined paths of its n parameters), ...).
    """

    arrays: Mapping[str, Any]
    names: tuple[tuple[str, tuple[str, ...]], ...] = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What an array holds: one parameter, or a stack of several that have one shape.

    Attributes:
        names: their '/'-joined paths from the root of the tree that holds the array.
        shape: of each.
        stacked: whether the array has an axis that counts them, the first.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool


def stack(params: Params) -> Stack:
    """One network's parameters, stacked; pure, so that jax.eval_shape gives shapes of shapes."""
    flat = dict(sorted(flatten_dict(params, sep="/").items()))
    groups: dict[str, list[str]] = {}
    for name, leaf in flat.items():
        groups.setdefault(f"{'x'.join(map(str, leaf.shape))}/{name.rsplit('/')[-1]}", []).append(name)
    arrays = {key: jnp.stack([flat[name] for name in names]) for key, names in groups.items()}
    return Stack(arrays, tuple((key, tuple(names)) for key, names in groups.items()))


def unstack(tree: Any) -> Any:
    """`tree` with nested parameters in place of every `Stack`: of traced arrays, or of shapes with their shardings."""

    def each(node: Any) -> Any:
        if not isinstance(node, Stack):
            return node
        flat = {name: part for key, names in node.names for name, part in _named_parts(names, node.arrays[key])}
        return unflatten_dict(flat, sep="/")

    return jax.tree.map(each, tree, is_leaf=_is_stack)


def _named_parts(names: tuple[str, ...], array: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(array, jax.ShapeDtypeStruct):
        where = None if array.sharding is None else _of_part(array.sharding)
        return ((name, jax.ShapeDtypeStruct(array.shape[1:], array.dtype, sharding=where)) for name in names)
    return zip(names, _slices(array), strict=True)


def to_host(tree: Any) -> Any:
    """`unstack` of arrays, the parts of stacks in the host's memory: on the device there is room for one stack more.

    To be called by all processes; every device's shard stays its own.
    """

    def each(node: Any) -> Any:
        if not isinstance(node, Stack):
            return node
        flat: dict[str, jax.Array] = {}
        for key, names in node.names:
            where = _of_part(node.arrays[key].sharding)
            parts = _slicing(where)(node.arrays[key])
            flat |= zip(names, jax.device_put(parts, where.with_memory_kind("pinned_host")), strict=True)
        return unflatten_dict(flat, sep="/")

    return jax.tree.map(each, tree, is_leaf=_is_stack)


def restack(like: Any, tree: Any) -> Any:
    """`tree`, whose parameters are nested, with a `Stack` wherever `like` has one.

    like: of traced arrays; or of shapes, whose shardings say where the stacks shall lie. tree: of arrays.
    """

    def each(node: Any, params: Any) -> Any:
        if not isinstance(node, Stack):
            return params
        flat, arrays = flatten_dict(params, sep="/"), {}
        for key, names in node.names:
            wanted = node.arrays[key]
            where = wanted.sharding if isinstance(wanted, jax.ShapeDtypeStruct) else None
            arrays[key] = _joining(where)([flat[name] for name in names])
        return Stack(arrays, node.names)

    return jax.tree.map(each, like, tree, is_leaf=_is_stack)


def _slices(array: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jax.lax.index_in_dim(array, i, keepdims=False) for i in range(len(array)))


@functools.cache
def _slicing(where: Sharding) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    return jax.jit(_slices, out_shardings=where)


@functools.cache
def _joining(where: Sharding | None) -> Callable[[Sequence[jax.Array]], jax.Array]:
    return jax.jit(jnp.stack, out_shardings=where)


def map_parameters(function: Callable[[Parameter], Any], tree: Any) -> Any:
    """`tree` with `function` of what each array holds in the array's place."""

    def each(path: Any, node: Any) -> Any:
        if not isinstance(node, Stack):
            return function(Parameter((name_of(path),), node.shape, stacked=False))
        begin = f"{name_of(path)}/" if path else ""
        values = {
            key: function(Parameter(tuple(begin + name for name in names), node.arrays[key].shape[1:], stacked=True))
            for key, names in node.names
        }
        return Stack(values, node.names)

    return jax.tree_util.tree_map_with_path(each, tree, is_leaf=_is_stack)


def _of_part(where: Sharding) -> Sharding:
    """Where a parameter lies whose stack lies as `where` says."""
    return NamedSharding(where.mesh, PartitionSpec(*where.spec[1:])) if isinstance(where, NamedSharding) else where


def _is_stack(node: Any) -> bool:
    return isinstance(node, Stack)


def name_of(path: Any) -> str:
    """A path of a pytree, its keys joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
