"""What a step is made of, counted from its trace: before any compiler, on any machine, whatever the mesh.

FLOPs are those of products and convolutions, two for each multiplication and addition, taps in the padding included; a
loop counts as often as it runs. Useful FLOPs of training are three times those of the forward pass (backward: one
product for the input's gradient, one for the kernel's), whatever is computed again to save memory.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from vf.sharding import named
from vf.types import Params

_ROWS = 11  # divides no number of channels, so that an axis of a multiple of it is an axis of clips


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one clip in training.

    Attributes:
        forward_flops: of the forward pass.
        kept_bytes: what the forward pass keeps for the backward pass.
        largest_bytes: of the largest array of that.
    """

    forward_flops: float
    kept_bytes: float
    largest_bytes: float


def training(loss: Callable[[Params, Any], Any], batch: Callable[[int], Any], shapes: Params) -> Counts:
    """`loss`: (params, batch) -> number; `batch`: rows -> shapes of a batch of so many clips; `shapes`: of params."""
    rows = batch(_ROWS)
    forward = flops(jax.make_jaxpr(loss)(shapes, rows).jaxpr)
    kept = jax.eval_shape(lambda params, given: jax.vjp(lambda p: loss(p, given), params)[1], shapes, rows)
    clips = [leaf for leaf in jax.tree.leaves(kept) if leaf.ndim > 1 and leaf.shape[0] % _ROWS == 0]
    sizes = [leaf.size * leaf.dtype.itemsize / _ROWS for leaf in clips]
    return Counts(forward / _ROWS, sum(sizes), max(sizes, default=0))


def flops(jaxpr: Any) -> int:
    """Of a traced function, over all devices. A branch counts as the costliest; a loop of unknown length once."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [flops(part) for part in _called(eqn.params)]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            total += 2 * eqn.outvars[0].aval.size * math.prod(kernel[axis] for axis in spec[1:])
        elif eqn.primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's: q k^T, and its softmax times v
            q, k = (given.aval.shape for given in eqn.invars[:2])  # b t n d
            total += 4 * math.prod(q) * k[1]
        elif eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params["length"] * sum(inner) if eqn.primitive.name == "scan" else sum(inner)
    return total


def _called(params: Mapping[str, Any]) -> list[Any]:
    """The functions that an equation calls."""
    values = [part for value in params.values() for part in (value if isinstance(value, list | tuple) else (value,))]
    closed = [value.jaxpr for value in values if isinstance(value, core.ClosedJaxpr)]
    return closed + [value for value in values if isinstance(value, core.Jaxpr)]


def parameters(shapes: Params) -> dict[str, int]:
    """{network: number of parameters}."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}


def shard_bytes(tree: Any) -> int:
    """Bytes on each device of a tree of arrays, or of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def split_bytes(params: Params, width: int) -> tuple[float, float]:
    """Bytes, at `width` each, of parameters that are split over devices, and of those that are copied."""
    split = whole = 0
    for leaf in jax.tree.leaves(params):
        if leaf.sharding.is_fully_replicated:
            whole += leaf.size * width
        else:
            split += leaf.size * width
    return split, whole


def table(params: Params) -> list[dict[str, Any]]:
    """Parameters by kind (path without its block, shape, split over), largest together first."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for path, leaf in named(params).items():
        network, *_, layer, name = ["", "", *path.split("/")][-max(3, path.count("/") + 1) :]
        axes = ["x".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in leaf.sharding.spec]
        split = "copied" if leaf.sharding.is_fully_replicated else " ".join(axes)
        shape = " ".join(map(str, leaf.shape))
        rows.setdefault((f"{path.split('/')[0] or network}/.../{layer}/{name}", shape, split), []).append(leaf.size)
    order = sorted(rows, key=lambda key: -sum(rows[key]))
    return [
        {"arrays": key[0], "count": len(rows[key]), "shape": key[1], "split": key[2], "parameters": sum(rows[key])}
        for key in order
    ]
