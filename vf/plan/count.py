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
import numpy as np
from jax.extend import core

from vf.training.sharding import named
from vf.types import Params

_ROWS = 11  # divides no number of channels, so that an axis of a multiple of it is an axis of clips


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one clip in training.

    Attributes:
        forward_flops: of the forward pass.
        kept_bytes: what the forward pass keeps for the backward pass.
        largest_bytes: of the largest array of that.
        padding: how many times the forward FLOPs that convolutions have without their taps in the padding.
    """

    forward_flops: float
    kept_bytes: float
    largest_bytes: float
    padding: float = 1.0


def training(loss: Callable[[Params, Any], Any], batch: Callable[[int], Any], shapes: Params) -> Counts:
    """`loss`: (params, batch) -> number; `batch`: rows -> shapes of a batch of so many clips; `shapes`: of params."""
    rows = batch(_ROWS)
    traced = jax.make_jaxpr(loss)(shapes, rows).jaxpr
    forward, inside = flops(traced), flops(traced, padding=False)
    kept = jax.eval_shape(lambda params, given: jax.vjp(lambda p: loss(p, given), params)[1], shapes, rows)
    clips = [leaf for leaf in jax.tree.leaves(kept) if leaf.ndim > 1 and leaf.shape[0] % _ROWS == 0]
    sizes = [leaf.size * leaf.dtype.itemsize / _ROWS for leaf in clips]
    return Counts(forward / _ROWS, sum(sizes), max(sizes, default=0), forward / inside if inside else 1.0)


def flops(jaxpr: Any, *, padding: bool = True) -> int:
    """Of a traced function, over all devices. A branch counts as the costliest; a loop of unknown length once.

    padding: with the taps of convolutions that meet no element of the input."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [flops(part, padding=padding) for part in _called(eqn.params)]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _convolution_flops(eqn, padding)
        elif eqn.primitive.name.startswith("dot_product_attention_fwd"):  # cuDNN's: q k^T, and its softmax times v
            q, k = (given.aval.shape for given in eqn.invars[:2])  # b t n d
            total += 4 * math.prod(q) * k[1]
        elif eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params["length"] * sum(inner) if eqn.primitive.name == "scan" else sum(inner)
    return total


def _convolution_flops(eqn: Any, padding: bool) -> int:
    given, kernel, out = (part.aval.shape for part in (*eqn.invars, *eqn.outvars))
    of_given, of_kernel, of_out = eqn.params["dimension_numbers"]
    pairs = [  # of an output and a tap, along each axis
        out[to] * kernel[over] if padding else taps(given[at], kernel[over], out[to], *window)
        for at, over, to, *window in zip(
            of_given[2:], of_kernel[2:], of_out[2:], eqn.params["window_strides"],
            [low for low, _ in eqn.params["padding"]], eqn.params["lhs_dilation"], eqn.params["rhs_dilation"],
            strict=True,
        )
    ]  # fmt: skip
    return 2 * out[of_out[0]] * out[of_out[1]] * kernel[of_kernel[1]] * math.prod(pairs)


def taps(size: int, kernel: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Of one axis of a convolution: pairs of an output and a tap that meet an element of the input, neither padding
    (`low` before the first) nor a zero between the elements of an input that is dilated."""
    at = np.arange(out)[:, None] * stride - low + np.arange(kernel) * rhs_dilate
    return int(((at >= 0) & (at % lhs_dilate == 0) & (at < (size - 1) * lhs_dilate + 1)).sum())


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
