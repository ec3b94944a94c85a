"""What public files of vision transformers have in common: numbered blocks, which we stack, and wrappers of names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vf.pretrained.names import From, renamed

DENSE = (1, 0)  # out in -> in out
TUBELETS = (2, 3, 4, 1, 0)  # out in t h w -> t h w in out
PATCHES = (2, 3, 1, 0)
_HEADS = {1280: 16, 1408: 16, 1664: 16}  # of the huge, giant and gigantic ViT; 64 numbers each in the others


def heads(width: int) -> int:
    """Heads of a public video ViT, which no array tells."""
    return _HEADS.get(width, max(width // 64, 1))


def unwrapped(arrays: Mapping[str, np.ndarray], root: str, wrappers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those that lie beside `root` under the first wrapper that has it, without the wrapper; {} where none has.

    Wrappers are prefixes such as `module.`; what lies outside (optimizers, counters, other networks) is left out.
    """
    for wrapper in wrappers:
        if wrapper + root in arrays:
            return {name.removeprefix(wrapper): array for name, array in arrays.items() if name.startswith(wrapper)}
    return {}


def shape(arrays: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    """Shape of an array that tells the network's size; ValueError where it is missing or has other axes."""
    if name not in arrays:
        raise ValueError(f"1 missing: {name}")
    if arrays[name].ndim != axes:
        raise ValueError(f"{name} has {arrays[name].ndim} axes, where {axes} were expected")
    return arrays[name].shape


def depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """Number of blocks, `prefix` being that of their names before the number; gaps are found by `converted`."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in arrays if name.startswith(prefix)}
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def dense(ours: str, theirs: str, bias: bool = True) -> dict[str, From]:
    """Rows of a table for a dense layer."""
    rows = {f"{ours}/kernel": From(f"{theirs}.weight", DENSE)}
    return rows | ({f"{ours}/bias": From(f"{theirs}.bias")} if bias else {})


def norm(ours: str, theirs: str) -> dict[str, From]:
    """Rows of a table for a layer norm."""
    return {f"{ours}/scale": From(f"{theirs}.weight"), f"{ours}/bias": From(f"{theirs}.bias")}


def block(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, From]:
    """Rows of a table for one block; `names` has its six layers in the file's words, with q, k and v as one."""
    rows: dict[str, From] = {}
    for layer, name in names.items():
        rows |= (norm if layer.startswith("norm") else dense)(f"{ours}/{layer}", f"{theirs}.{name}")
    return rows


TIMM = {  # names of layers in files that follow timm
    "norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip


def converted(
    arrays: Mapping[str, np.ndarray],
    table: Mapping[str, From],
    shapes: Mapping[str, Any],
    stacks: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """`renamed`, with blocks stacked: rows `<stack>/<k>/<rest>`, k below `stacks[stack]`, become one `<stack>/<rest>`.

    `shapes` are of the stacked arrays, or anything that has a `.shape`. Raises ValueError as `renamed`.
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
    made = renamed(arrays, table, single)
    for name, size in sizes.items():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}/")), None)
        if stack is not None:
            whole, rest = np.empty(size, np.float32), name.removeprefix(f"{stack}/")
            for k in range(stacks[stack]):
                whole[k] = made.pop(f"{stack}/{k}/{rest}")  # taken out at once: a giant's weights are there once only
            made[name] = whole
    return made
