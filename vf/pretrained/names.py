"""Renames the arrays of a public file to ours, and checks that none is missing, left over or of another shape."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Origin(NamedTuple):
    """Where an array of ours comes from: its name in the file, and how its axes are transposed (None: not at all)."""

    name: str
    axes: tuple[int, ...] | None = None


def rename(
    arrays: Mapping[str, np.ndarray],
    table: Mapping[str, Origin],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, np.ndarray]:
    """{our name: float32 array} of every row of `table`.

    Args:
        arrays: {name in the file: array}.
        table: {our name: origin}.
        shapes: {our name: the shape that it must have}; axes of length 1 may be missing in the file.
        ignored: name in the file -> whether it may be left over.

    Raises ValueError that names the first arrays which are missing, left over, of another shape, or not finite.
    """
    expected = {source.name for source in table.values()}
    extra = [name for name in arrays if name not in expected and not ignored(name)]
    missing = [source.name for source in table.values() if source.name not in arrays]
    if missing or extra:
        problems = [list_first("missing", missing), list_first("not of this network", extra)]
        raise ValueError("; ".join(filter(None, problems)))
    converted, wrong, broken = {}, [], []
    for ours, (name, axes) in table.items():
        array, shape = np.asarray(arrays[name]), shapes[ours]
        if axes is not None and array.ndim == len(axes):
            array = array.transpose(axes)
        if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
            wrong.append(f"{name} is {list(array.shape)} and should be {list(shape)}")
            continue
        converted[ours] = np.ascontiguousarray(array, np.float32).reshape(shape)
        if not np.isfinite(converted[ours]).all():
            broken.append(name)
    if wrong or broken:
        problems = [
            list_first("of another shape (axes in our order)", wrong),
            list_first("with NaN or infinities", broken),
        ]
        raise ValueError("; ".join(filter(None, problems)))
    return converted


def recognise_layout(
    arrays: Mapping[str, np.ndarray], tables: Mapping[str, Mapping[str, Origin]]
) -> tuple[dict[str, np.ndarray], str]:
    """(arrays without the prefixes of training code, the layout of `tables` that has most of their names, or "")."""
    stripped = dict(arrays)
    for wrapper in ("state_dict.", "module."):
        if stripped and all(name.startswith(wrapper) for name in stripped):
            stripped = {name.removeprefix(wrapper): array for name, array in stripped.items()}
    counts = {layout: sum(row.name in stripped for row in table.values()) for layout, table in tables.items()}
    best = max(counts, key=counts.__getitem__)
    return stripped, best if counts[best] else ""


def list_first(title: str, names: list[str], most: int = 3) -> str:
    """The number of `names` and the first `most` of them as text; "" where there are none."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title}: {', '.join(names[:most])}{more}" if names else ""
