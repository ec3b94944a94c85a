"""Reads the collectives of a compiled program: their kinds, bytes, groups and mesh axes.

Back ends differ: the CPU's computes bfloat16 in float32 and sends it so, and leaves all-reduces where the TPU's makes
reduce-scatters of them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from vf.plan import hlo

Kind = Literal["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]
Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program; numbers are per device."""

    name: str
    kind: Kind
    bytes: int
    """Bytes of the whole array in one execution: of the result of an all-gather, of the operand of other kinds."""
    groups: Groups
    """Devices that communicate with each other, as positions in the flattened mesh."""
    times: int
    """Executions per run of the program."""
    op_name: str
    """Path of the operation in the traced program; "" where the compiler has introduced it."""

    @property
    def group(self) -> int:
        """Number of devices of the largest group."""
        return max(map(len, self.groups))

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends per execution, by the ring algorithms (Patarasuk & Yuan 2009)."""
        return wire_bytes(self.kind, self.bytes, self.group)


def wire_bytes(kind: Kind, size: int, group: int) -> float:
    """Bytes that each of `group` devices sends in a collective of `size` bytes (`Collective.bytes`)."""
    if group < 2:
        return 0.0
    if kind == "collective-permute":
        return float(size)
    share = size * (group - 1) / group
    return 2 * share if kind == "all-reduce" else share


def collectives(text: str, ids: Sequence[int] | None = None) -> list[Collective]:
    """The collectives of a compiled program, in the order of execution.

    The parts of a tuple are summed. The start and the end of an asynchronous collective, and the pieces into which the
    TPU's compiler splits one to fuse it with computations, are one collective. An all-reduce of which a fusion uses a
    slice counts as the reduce-scatter that TPUs make of it. A collective in a branch of a conditional counts if its
    branch sends most; in a loop of unknown length (see `hlo.loops`) it counts once.

    Args:
        text: text of the program.
        ids: ids of the mesh's devices, `[d.id for d in mesh.devices.flat]`. They are needed only for several TPU
            slices, whose program is that of one slice: it numbers the devices of this slice, and names those of others
            by their ids.

    Raises ValueError for text that is no compiled program, replica groups of an unknown form, and transfers between
    slices without `ids`.
    """
    program = hlo.parse(text)
    slices = _slices(ids) if ids is not None else []

    def found_in(line: hlo.Instruction) -> list[_Entry]:
        kind = line.op.removesuffix("-start")
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest) if line.op == "send" else None
        if transfer:  # sends through the hosts to other slices; the matching receive is not counted again
            kind = transfer[1].lower().replace("_", "-").replace("one-to-one", "collective-permute")
        if kind not in get_args(Kind):
            return []
        if transfer:
            if ids is None:
                raise ValueError("expected the ids of the devices, as the program's collectives go between slices")
            groups = _between(line, ids)
        else:
            groups = _groups(line, program.devices)
            if len(slices) > 1:
                groups = tuple(tuple(slice_[place] for place in group) for slice_ in slices for group in groups)
        sent = line.operands[:1] if transfer else line.operands
        size = sum(hlo.size_of(line.computation[operand].shape) for operand in sent)
        if kind == "all-gather":
            size *= max(map(len, groups))
        elif kind == "all-reduce" and line.scattered:
            kind = "reduce-scatter"
        chain = re.search(r'chain_id="(\d+)"', line.rest)
        channel = re.search(r"channel_id=(\d+)", line.rest)
        op_name = re.search(r'op_name="([^"]*)"', line.rest) or re.search(r'op_name="([^"]*)"', line.caller)
        found = Collective(line.name, kind, size, groups, 1, op_name[1] if op_name else "")  # type: ignore[arg-type]
        return [(found, (chain[1], channel[1] if channel else "") if chain else None)]

    def total(parts: Sequence[tuple[int, list[_Entry]]]) -> list[_Entry]:
        scaled = [
            (dataclasses.replace(c, times=c.times * times), chain) for times, found in parts for c, chain in found
        ]
        seen: set[tuple[str, str]] = set()
        first = []
        for found in scaled:
            # TPU spreads one all-gather over several fusions, each with a copy of it that has the same chain.
            if found[1] is None or found[1] not in seen:
                first.append(found)
                seen |= {found[1]} if found[1] else set()
        return first

    def cost(found: list[_Entry]) -> float:
        return sum(c.wire_bytes * c.times for c, _ in found)

    return [c for c, _ in hlo.walk(program, found_in, total, cost)]


_Entry = tuple[Collective, tuple[str, str] | None]


def axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the mesh axes along which the devices of a group differ, in the mesh's order.

    Two devices of different mesh rows and columns differ in both.

    Args:
        groups: positions in the flattened mesh.
        mesh: sizes in the mesh's order, as `Mesh.shape`.

    Raises ValueError for a position outside the mesh.
    """
    sizes = tuple(mesh.values())
    outside = [device for group in groups for device in group if not 0 <= device < math.prod(sizes)]
    if outside:
        raise ValueError(f"expected devices of a mesh of {math.prod(sizes)}, got {outside[0]}")
    spanned = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), sizes), -1)
        spanned |= (places != places[:1]).any(0)
    return tuple(axis for axis, differs in zip(mesh, spanned, strict=True) if differs)


def _groups(line: hlo.Instruction, devices: int) -> Groups:
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest)
    if pairs:
        return _joined([(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1])])
    start = line.rest.find("replica_groups=")
    if start < 0:
        return (tuple(range(devices)),)
    return replica_groups(line.rest[start + len("replica_groups=") :], devices)


_SLICE = 100_000  # ids of the devices of slice n begin at (n + 1) times this, and at 0 where there is one slice


def _slices(ids: Sequence[int]) -> list[list[int]]:
    """For each slice, the positions of its devices in the flattened mesh."""
    numbers = sorted({device // _SLICE for device in ids})
    return [[place for place, device in enumerate(ids) if device // _SLICE == number] for number in numbers]


def _between(line: hlo.Instruction, ids: Sequence[int]) -> Groups:
    """Groups of a transfer between slices.

    There are three forms: {{100000,200000},..}, {{100000->200000},..}, or a product of slices and a range of devices,
    "{1,2}x{0:7}". Raises ValueError for others.
    """
    places = {device: place for place, device in enumerate(ids)}
    target = line.rest.partition("_xla_megascale_target=")[2]
    product = re.match(r'"?\{([\d,]+)\}x\{(\d+):(\d+)\}', target)
    listed = target.partition("}}")[0]
    if product:
        devices = range(int(product[2]), int(product[3]) + 1)
        named = [[number * _SLICE + device for number in _numbers(product[1])] for device in devices]
    elif "->" in listed:
        pairs = re.findall(r"(\d+)->(\d+)", listed)
        return _joined([(places[int(a)], places[int(b)]) for a, b in pairs])
    else:
        named = [_numbers(group) for group in re.findall(r"[\d,]*\d", listed)]
    if not named:
        raise ValueError(f"expected devices of a transfer between slices, got {target[:80]!r}")
    return tuple(tuple(places[device] for device in group) for group in named)


def _joined(pairs: Sequence[tuple[int, int]]) -> Groups:
    """Groups of the devices that pairs of source and target connect."""
    groups: list[set[int]] = []
    for pair in pairs:
        overlapping = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in overlapping] + [set(pair).union(*overlapping)]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def replica_groups(text: str, devices: int) -> Groups:
    """Groups of devices at the beginning of `text`, as XLA prints them:

        {{0,1},{2,3}}                                                        a list; {} is all `devices`
        [4,2]<=[8], [2,4]<=[4,2]T(1,0)                                       an iota, reshaped, transposed, reshaped
        mesh['a'=2,'b'=4] {'b'}                                              axes of a mesh of such positions
        mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}               the mesh transposed; a part of an axis

    Raises ValueError for any other form.
    """
    if text.startswith("{}"):
        return (tuple(range(devices)),)
    if text.startswith("{"):
        listed = text[: text.index("}}") + 1]
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", listed))
    found = re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if found:
        return _rows(_iota(found[2]).reshape(_numbers(found[1])))
    found = re.match(r"@?mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\))? ?\{([^}]*)\}", text)
    if not found:
        raise ValueError(f"expected replica groups of a form that is known, got {text[:80]!r}")
    mesh = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
    ids = np.arange(math.prod(mesh.values()))
    if found[2]:
        ids = _iota(found[2]) if found[2].startswith("[") else np.array(_numbers(found[2]))
    parts: dict[str, list[tuple[int, int]]] = {name: [] for name in mesh}
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", found[3]):
        parts[name].append((int(before), int(size)) if size else (1, mesh[name]))
    # Splits every axis into its parts, and moves the parts within a group to the end.
    dims: list[int] = []
    inside: list[int] = []
    for name, size in mesh.items():
        done = 1
        for before, part in sorted(parts[name]):
            inside.append(len(dims) + 1)
            dims += [before // done, part]
            done = before * part
        dims.append(size // done)
    outside = [axis for axis in range(len(dims)) if axis not in inside]
    group = math.prod(dims[axis] for axis in inside)
    return _rows(ids.reshape(dims).transpose(outside + inside).reshape(-1, group))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(text: str) -> np.ndarray:
    """'[4,2]T(1,0)' -> arange(8) as 4 x 2, transposed."""
    dims, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(dims[1:-1]))).reshape(_numbers(dims[1:-1]))
    return ids.transpose(_numbers(order[1:-1])) if order else ids


def _rows(groups: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in group) for group in groups)
