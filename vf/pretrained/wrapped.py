"""Finds a network in a checkpoint of training code: under whatever prefixes, and which one of several copies.

Names of arrays begin with those of the objects that hold the network: `state_dict.`, `module.` of data-parallel
training, `model.diffusion_model.`, ... All networks of a family have an array of the same name, their *root*, so that
what stands before the root's name is the prefix. There may be several copies, such as the weights of the last step and
their average over training, by which samples are made.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vf.types import UserError

_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch.compile's, FSDP's; anywhere
_AVERAGE = re.compile(r"(^|[^a-z])(ema|average[ds]?|avg|swa|shadow|polyak)([^a-z]|$)", re.IGNORECASE)
TOP = "."  # name of a copy whose arrays have no prefix

Arrays = Mapping[str, np.ndarray]


class Network(NamedTuple):
    """One copy of a network.

    Attributes:
        arrays: by the names of the network's own code.
        name: prefix of its names in the file, without the dot at its end; `TOP` for none.
        others: names of the other copies.
        unread: name of an average whose arrays cannot be told apart, as they have no names; "" for none.
    """

    arrays: dict[str, np.ndarray]
    name: str = TOP
    others: tuple[str, ...] = ()
    unread: str = ""


def find(arrays: Arrays, roots: Iterable[str], copy: str = "") -> Network:
    """The network with an array that is named as one of `roots`; all arrays where there is none.

    Args:
        arrays: {name in the file: array}.
        roots: names of an array that all networks of a family have, one for each set of names that is in use.
        copy: its name, or the part of that which no other has; "" takes the only copy, or the only average.

    Raises UserError where there are several copies and not one average, or none is `copy`.
    """
    plain = {_without_wrappers(name): array for name, array in arrays.items()}
    prefixes = {name[: -len(root)] for root in roots for name in plain if f".{name}".endswith(f".{root}")}
    averages = {group for name in plain if (group := _average(name))}
    unread = sorted(group for group in averages if not any(prefix.startswith(group) for prefix in prefixes))
    apart = (*prefixes, *unread)
    copies = {prefix[:-1] or TOP: _under(prefix, plain, apart) for prefix in sorted(prefixes)}
    for group in unread:
        copies |= _without_dots(group, plain, copies)
    if not copies and not copy:
        return Network(plain)
    name = _choose(tuple(copies), copy)
    others = tuple(other for other in copies if other != name)
    return Network(copies[name], name, others, next((group[:-1] for group in unread if group[:-1] not in copies), ""))


def is_average(name: str) -> bool:
    """Whether a copy, or what holds it, is called an average of weights over training."""
    return bool(_AVERAGE.search(name))


def _average(name: str) -> str:
    """The prefix of the average that an array belongs to; "" for none."""
    *parts, _ = name.split(".")
    last = next((k for k, part in enumerate(parts) if is_average(part)), None)
    return "" if last is None else ".".join([*parts[: last + 1], ""])


def _without_wrappers(name: str) -> str:
    for wrapper in _WITHIN:
        name = name.replace(f".{wrapper}", ".")
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
    return name


def _under(prefix: str, arrays: Arrays, prefixes: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays under `prefix`, without it; those of another copy within are left out."""
    inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not name.startswith(inner)
    }


def _without_dots(group: str, arrays: Arrays, copies: Mapping[str, Arrays]) -> dict[str, dict[str, np.ndarray]]:
    """{name: the average under `group`} where its names are a copy's without the dots, as latent-diffusion has it."""
    shadow = {name.removeprefix(group): array for name, array in arrays.items() if name.startswith(group)}
    for name, network in copies.items():
        parts = [] if name == TOP else name.split(".")
        for k in range(len(parts) + 1):
            dotless = {ours: "".join([*parts[k:], ours]).replace(".", "") for ours in network}
            if set(dotless.values()) <= set(shadow):
                return {group[:-1]: {ours: shadow[theirs] for ours, theirs in dotless.items()}}
    return {}


def _choose(names: tuple[str, ...], copy: str) -> str:
    if copy:
        fitting = [copy] if copy in names else [name for name in names if copy in name.split(".")]
        if len(fitting) != 1:
            found = "several" if fitting else "none"
            there = ", ".join(names) or "no such network"
            raise UserError(f"{found} of the networks in the file are called {copy!r}: it has {there}", "copy")
        return fitting[0]
    averages = [name for name in names if is_average(name)]
    if len(names) > 1 and len(averages) != 1:
        raise UserError(f"the file has several copies of the network, {', '.join(names)}: name one", "copy")
    return averages[0] if len(averages) == 1 else names[0]
