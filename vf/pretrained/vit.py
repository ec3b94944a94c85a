"""Converts public files of vision transformers: their numbered blocks, which we stack, and prefixes of names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vf.pretrained.names import Origin, rename

DENSE = (1, 0)  # out in -> in out
TUBELETS = (2, 3, 4, 1, 0)  # out in t h w -> t h w in out
PATCHES = (2, 3, 1, 0)
_HEADS = {
    1280: 16,
    1408: 16,
    1664: 16,
}  # {width: heads} of the huge, giant and gigantic ViT; others have 64 channels each


def heads(width: int) -> int:
    """Number of heads of a public video ViT of this width, which cannot be inferred from its arrays."""
    return _HEADS.get(width, max(width // 64, 1))


def unwrap(arrays: Mapping[str, np.ndarray], root: str, wrappers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays under the first wrapper under which there is `root`, without the wrapper; {} where there is none.

    Wrappers are prefixes such as `module.`; other arrays (optimizers, counters, other networks) are left out.
    """
    for wrapper in wrappers:
        if wrapper + root in arrays:
            return {name.removeprefix(wrapper): array for name, array in arrays.items() if name.startswith(wrapper)}
    return {}


def shape(arrays: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    """Shape of an array with so many axes. Raises ValueError where it is missing or has another number of axes."""
    if name not in arrays:
        raise ValueError(f"1 missing: {name}")
    if arrays[name].ndim != axes:
        raise ValueError(f"{name} has {arrays[name].ndim} axes, where {axes} were expected")
    return arrays[name].shape


def depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """Number of blocks, whose names have `prefix` before the number; `convert` raises where there are gaps."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in arrays if name.startswith(prefix)}
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def dense(ours: str, theirs: str, bias: bool = True) -> dict[str, Origin]:
    """Rows of a table {our name: origin} for a dense layer."""
    rows = {f"{ours}/kernel": Origin(f"{theirs}.weight", DENSE)}
    return rows | ({f"{ours}/bias": Origin(f"{theirs}.bias")} if bias else {})


def norm(ours: str, theirs: str) -> dict[str, Origin]:
    """Rows of a table for a layer norm."""
    return {f"{ours}/scale": Origin(f"{theirs}.weight"), f"{ours}/bias": Origin(f"{theirs}.bias")}


def block(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, Origin]:
    """Rows of a table for one block; `names` has the file's names of its six layers, with q, k and v as one."""
    rows: dict[str, Origin] = {}
    for layer, name in names.items():
        rows |= (norm if layer.startswith("norm") else dense)(f"{ours}/{layer}", f"{theirs}.{name}")
    return rows


TIMM = {  # names of layers in files that follow timm
    "norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip


def convert(
    arrays: Mapping[str, np.ndarray],
    table: Mapping[str, Origin],
    shapes: Mapping[str, Any],
    stacks: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """As `rename`, with blocks stacked: rows `<stack>/<k>/<rest>`, k < `stacks[stack]`, become one `<stack>/<rest>`.

    `shapes` are those of the stacked arrays, or anything with a `.shape`. Raises ValueError as `rename`.
    """
    sizes = {name: tuple(getattr(leaf, "shape", leaf)) for name, leaf in shapes.items()}
    single: dict[str, tuple[int, ...]] = {}
    for name, size in sizes.items():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}/")), None)
        if stack is None:
            single[name] = size
        else:
            rest = name.removeprefix(f"{stack}/")
            single |= {f"{stack}/{k}/{rest}": size[1:] for k in range(stacks[stack])}
    stripped = rename(arrays, table, single)
    for name, size in sizes.items():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}/")), None)
        if stack is not None:
            stacked, rest = np.empty(size, np.float32), name.removeprefix(f"{stack}/")
            for k in range(stacks[stack]):
                stacked[k] = stripped.pop(
                    f"{stack}/{k}/{rest}"
                )  # popped, so that the weights of a giant are in memory only once
            stripped[name] = stacked
    return stripped
