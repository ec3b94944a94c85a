"""Parses the machines to plan for: `v5e:16x16`, `v5p:4x4x8*2`, `gpu:64xH200` or `cpu:8`.

The available slices are from the sources listed in `vf/plan/chips.py`.
"""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vf.plan.chips import CHIPS, Chip, Kind, wraps
from vf.types import UserError

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


def _cubes(limit: int, chips: int) -> tuple[tuple[int, ...], ...]:
    """Small shapes, and those of 4x4x4 cubes of up to `chips` chips, with ascending extents of up to `limit`."""
    extents = range(4, limit + 1, 4)
    shapes = itertools.combinations_with_replacement(extents, 3)
    return _SMALL + tuple(sorted((s for s in shapes if math.prod(s) <= chips), key=lambda s: (math.prod(s), s)))


SHAPES: Mapping[str, Sequence[tuple[int, ...]]] = {
    "v4": _cubes(16, 4096),
    "v5e": _FLAT,
    "v5p": _cubes(24, 6144),
    "v6e": _FLAT,
}
"""The available slices, from [v4], [v5e], [v5p] and [v6e]. libtpu compiles for others too (any even extents)."""

_FORMS = "v4:2x2x1, v5e:16x16, v5p:4x4x8, v6e:8x8, v5p:4x4x4*2 (two slices), gpu:8xH100, gpu:64xH200 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to plan for, as `parse_target` makes it."""

    text: str
    kind: Kind
    chip: Chip | None
    """The chip; None for cpu, where `vf.plan.roofline.measured_chip` measures one."""
    shape: tuple[int, ...]
    """TPU: extents of a slice's torus; GPU: (nodes, GPUs of a node); CPU: (devices,)."""
    slices: int
    devices: int
    """Number of devices of all slices, as JAX counts them."""
    topology_name: str | None
    """Name of one slice for `jax.experimental.topologies.get_topology_desc`; None for machines without TPUs."""
    topology_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    """Further keyword arguments of `get_topology_desc`."""

    @property
    def wraps(self) -> tuple[bool, ...]:
        """For each dimension of a TPU slice, whether it is a ring; () for other machines."""
        return wraps(self.chip, self.shape) if self.chip and self.chip.dims else ()


def parse_target(text: str) -> Target:
    """The machine that `text` names: `v5e:16x16`, `v5p:4x4x8*2` (two slices), `gpu:64xH200` or `cpu:8`.

    Raises UserError for an unknown chip, and for sizes that do not exist, with the nearest that does.
    """
    family, colon, rest = text.strip().partition(":")
    families = [*SHAPES, "gpu", "cpu"]
    if family not in families or not colon:
        examples = {name: f"{name}:{'x'.join(map(str, shapes[-1]))}" for name, shapes in SHAPES.items()}
        examples |= {"v5litepod": examples["v5e"], "trillium": examples["v6e"], "gpu": "gpu:8xH100", "cpu": "cpu:8"}
        examples |= {name.lower(): f"gpu:8x{name}" for name, chip in CHIPS.items() if chip.kind == "gpu"}
        near = difflib.get_close_matches(family.lower(), examples, 1)
        advice = f"did you mean one like {examples[near[0]]}?" if near else f"write one like {_FORMS}"
        raise UserError(f"target {text!r} names no machine that is known, of {', '.join(families)}: {advice}", "target")
    if family == "cpu":
        return _cpu(text, rest)
    return _gpu(text, rest) if family == "gpu" else _tpu(text, family, rest)


def _cpu(text: str, rest: str) -> Target:
    if not re.fullmatch(r"[1-9]\d*", rest):
        raise UserError(f"target {text!r} needs the number of CPU devices, from 1 on: write one like cpu:8", "target")
    return Target(text, "cpu", None, (int(rest),), 1, int(rest), None)


def _gpu(text: str, rest: str) -> Target:
    names = [name for name, chip in CHIPS.items() if chip.kind == "gpu"]
    match = re.fullmatch(r"([1-9]\d*)x([\w-]+)", rest)
    if not match:
        raise UserError(f"target {text!r} needs a number of GPUs and their kind: write one like gpu:8xH100", "target")
    count, name = int(match[1]), match[2]
    if name not in names:
        prefixed = [known for known in names if known.startswith(name.upper())]
        near = (prefixed or difflib.get_close_matches(name.upper(), names, 1, 0))[0]
        raise UserError(
            f"target {text!r} has a GPU that is not known, of {', '.join(names)}: the nearest is gpu:{count}x{near}",
            "target",
        )
    chip = CHIPS[name]
    if count > chip.host and count % chip.host:
        near_count = round(count / chip.host) * chip.host
        raise UserError(
            f"target {text!r} leaves a node of {chip.host} GPUs partly empty: change {count} to {near_count}"
            f" or to another multiple of {chip.host}",
            "target",
        )
    shape = (max(1, count // chip.host), min(count, chip.host))
    return Target(text, "gpu", chip, shape, 1, count, None)


def _tpu(text: str, family: str, rest: str) -> Target:
    chip, shapes = CHIPS[family], SHAPES[family]
    match = re.fullmatch(r"(\d+(?:x\d+)*)(?:\*(\d+))?", rest)
    example = "x".join(map(str, shapes[-1]))
    if not match:
        raise UserError(f"target {text!r} needs the extents of a slice: write one like {family}:{example}", "target")
    shape = tuple(int(extent) for extent in match[1].split("x"))
    slices = int(match[2] or 1)
    if slices < 1:
        raise UserError(f"target {text!r} has no slices: change *{match[2]} to *1 or more", "target")
    if shape not in shapes:
        shown = ["x".join(map(str, s)) for s in (shapes if chip.dims == 2 else _SMALL)]
        more = "" if chip.dims == 2 else f" and ascending multiples of 4 up to {example}"
        size = max(1, math.prod(shape))
        reordered = [s for s in shapes if s == tuple(sorted(shape))]  # the right extents in another order
        near = (reordered or sorted(shapes, key=lambda s: (abs(math.log(math.prod(s) / size)), sum(s))))[0]
        suffix = f"*{match[2]}" if match[2] else ""
        raise UserError(
            f"{family}:{match[1]} is no slice: {family} has {', '.join(shown)}{more}; the nearest is"
            f" {family}:{'x'.join(map(str, near))}{suffix}",
            "target",
        )
    options: dict[str, Any] = {}
    if family == "v4":  # otherwise libtpu's v4 has a device per TensorCore, with half of the memory each
        options["chip_config_name"] = "megacore"
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if slices > 1:
        options["num_slices"] = slices
    name = f"{family}:{match[1]}"
    return Target(text, "tpu", chip, shape, slices, math.prod(shape) * slices, name, options)
