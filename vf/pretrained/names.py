"""From the names of a public file to ours, with nothing missing, nothing left over and nothing of another shape."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class From(NamedTuple):
    """Where an array of ours comes from: a name in the file, and how its axes are to be moved."""

    name: str
    axes: tuple[int, ...] | None = None  # a transposition; None leaves them


def renamed(
    arrays: Mapping[str, np.ndarray],
    table: Mapping[str, From],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, np.ndarray]:
    """{ours: float32 array} of every row of `table`, `shapes` being the shapes that ours must have.

    Raises ValueError that names the first few arrays which are missing, left over (and not `ignored`), of another shape
    (equal sizes that differ in axes of length 1 pass) or not finite.
    """
    taken = {source.name for source in table.values()}
    extra = [name for name in arrays if name not in taken and not ignored(name)]
    missing = [source.name for source in table.values() if source.name not in arrays]
    if missing or extra:
        told = [first("missing", missing), first("not of this network", extra)]
        raise ValueError("; ".join(filter(None, told)))
    made, wrong, broken = {}, [], []
    for ours, (name, axes) in table.items():
        array, shape = np.asarray(arrays[name]), shapes[ours]
        if axes is not None and array.ndim == len(axes):
            array = array.transpose(axes)
        if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
            wrong.append(f"{name} is {list(array.shape)} and should be {list(shape)}")
            continue
        made[ours] = np.ascontiguousarray(array, np.float32).reshape(shape)
        if not np.isfinite(made[ours]).all():
            broken.append(name)
    if wrong or broken:
        told = [first("of another shape (axes in our order)", wrong), first("with NaN or infinities", broken)]
        raise ValueError("; ".join(filter(None, told)))
    return made


def recognised(
    arrays: Mapping[str, np.ndarray], tables: Mapping[str, Mapping[str, From]]
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays, without what training code wraps names in, and the layout of `tables` that most are of, or ""."""
    found = dict(arrays)
    for wrapper in ("state_dict.", "module."):
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): array for name, array in found.items()}
    counts = {layout: sum(row.name in found for row in table.values()) for layout, table in tables.items()}
    best = max(counts, key=counts.__getitem__)
    return found, best if counts[best] else ""


def first(title: str, names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title}: {', '.join(names[:most])}{more}" if names else ""
