"""Counts FLOPs and bytes of a step from its trace, without a compiler, independently of machine and mesh.

FLOPs are those of matrix products and convolutions, two for each multiplication and addition, including taps in the
padding; the body of a loop counts as often as it runs. Useful FLOPs of training are three times those of the forward
pass (the backward pass has one product for the gradient of the input and one for that of the kernel), not counting what
rematerialisation computes again.
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

_ROWS = 11  # divides no number of channels, so that an axis whose length is a multiple of it is one of clips


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts for one clip in training.

    Attributes:
        forward_flops: FLOPs of the forward pass.
        stored_bytes: bytes that the forward pass stores for the backward pass.
        largest_bytes: bytes of the largest array among these.
        padding: the forward FLOPs relative to those without taps of convolutions in the padding; >= 1.
    """

    forward_flops: float
    stored_bytes: float
    largest_bytes: float
    padding: float = 1.0


def training(loss: Callable[[Params, Any], Any], batch: Callable[[int], Any], shapes: Params) -> Counts:
    """Counts for the training of `loss`.

    Args:
        loss: (params, batch) -> number.
        batch: number of clips -> shapes of a batch of so many.
        shapes: shapes of the parameters.
    """
    rows = batch(_ROWS)
    traced = jax.make_jaxpr(loss)(shapes, rows).jaxpr
    forward, without_padding = flops(traced), flops(traced, padding=False)
    stored = jax.eval_shape(lambda params, inputs: jax.vjp(lambda p: loss(p, inputs), params)[1], shapes, rows)
    clips = [leaf for leaf in jax.tree.leaves(stored) if leaf.ndim > 1 and leaf.shape[0] % _ROWS == 0]
    sizes = [leaf.size * leaf.dtype.itemsize / _ROWS for leaf in clips]
    return Counts(
        forward / _ROWS, sum(sizes), max(sizes, default=0), forward / without_padding if without_padding else 1.0
    )


def flops(jaxpr: Any, *, padding: bool = True) -> int:
    """FLOPs of a traced function, over all devices.

    Of several branches the most expensive one counts, and a loop of unknown length counts once. `padding` says whether
    taps of convolutions that meet no element of the input are counted.
    """
    total = 0
    for eqn in jaxpr.eqns:
        inner = [flops(part, padding=padding) for part in _called(eqn.params)]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _convolution_flops(eqn, padding)
        elif eqn.primitive.name.startswith(
            "dot_product_attention_fwd"
        ):  # cuDNN's attention: q k^T, and its softmax times v
            q, k = (operand.aval.shape for operand in eqn.invars[:2])  # b t n d
            total += 4 * math.prod(q) * k[1]
        elif eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params["length"] * sum(inner) if eqn.primitive.name == "scan" else sum(inner)
    return total


def _convolution_flops(eqn: Any, padding: bool) -> int:
    inputs, kernel, out = (part.aval.shape for part in (*eqn.invars, *eqn.outvars))
    of_inputs, of_kernel, of_out = eqn.params["dimension_numbers"]
    pairs = [  # pairs of an output and a tap, along each axis
        out[to] * kernel[over] if padding else taps(inputs[at], kernel[over], out[to], *window)
        for at, over, to, *window in zip(
            of_inputs[2:], of_kernel[2:], of_out[2:], eqn.params["window_strides"],
            [low for low, _ in eqn.params["padding"]], eqn.params["lhs_dilation"], eqn.params["rhs_dilation"],
            strict=True,
        )
    ]  # fmt: skip
    return 2 * out[of_out[0]] * out[of_out[1]] * kernel[of_kernel[1]] * math.prod(pairs)


def taps(size: int, kernel: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of an output and a tap, along one axis of a convolution, that meet an element of the input.

    Taps that meet padding (`low` elements before the first), or a zero between the elements of a dilated input, do not
    count.
    """
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
    """(bytes of parameters that are split over devices, bytes of those that are copied), at `width` bytes each."""
    split = copied = 0
    for leaf in jax.tree.leaves(params):
        if leaf.sharding.is_fully_replicated:
            copied += leaf.size * width
        else:
            split += leaf.size * width
    return split, copied


def table(params: Params) -> list[dict[str, Any]]:
    """Rows of a table of parameters by kind (path without its block, shape, axes of the split), largest first."""
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
