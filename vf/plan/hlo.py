"""What a compiled program does, read from its text: collectives and FLOPs, loops times their trips.

The text is `compiled.as_text()`, of the CPU or the TPU back end, after partitioning: shapes are what one device
holds, so all numbers here are per device. XLA's own `cost_analysis` counts a loop's body once; these counts follow
the calls from the entry, through loops (body times trips), conditionals (the most expensive branch), fusions and
asynchronous wrappers.

What an array's layout adds (TPU pads tiles) is not counted: bytes are elements times their width. Back ends differ:
the CPU's computes bfloat16 in float32 and sends it so, and leaves all-reduces that TPU makes reduce-scatters.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

Kind = Literal["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]
Groups = tuple[tuple[int, ...], ...]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program; numbers are per device."""

    name: str
    kind: Kind
    bytes: int
    """Of the whole array once per execution: all-gather's result, and every other kind's operand."""
    groups: Groups
    """Devices that talk to each other, as positions in the flattened mesh."""
    times: int
    """Executions per run of the program."""
    op_name: str
    """Path of the operation in the traced program; '' where the compiler made it up."""

    @property
    def group(self) -> int:
        """Devices of the largest group."""
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

    ids: of the mesh's devices, `[d.id for d in mesh.devices.flat]`. Needed for several TPU slices only, whose
        program is that of one slice: it numbers the slice's devices, and names those of other slices by their ids.

    A tuple's parts are summed. The start and the end of an asynchronous collective, and the pieces into which TPU
    fuses one with computations, are one. An all-reduce of which a fusion keeps a slice is the reduce-scatter that
    TPU makes of it. A collective in a branch of a conditional counts if its branch sends most. In a loop of unknown
    length (see `loops`) it counts once.

    Raises ValueError for text that is no compiled program, replica groups of an unknown form, and transfers between
    slices without `ids`.
    """
    program = _parse(text)
    slices = _slices(ids) if ids is not None else []

    def own(line: _Line) -> list[_Found]:
        kind = line.op.removesuffix("-start")
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest) if line.op == "send" else None
        if between:  # what goes through the hosts to other slices; the received half is not another one
            kind = between[1].lower().replace("_", "-").replace("one-to-one", "collective-permute")
        if kind not in get_args(Kind):
            return []
        if between:
            if ids is None:
                raise ValueError("expected the ids of the devices, as the program's collectives go between slices")
            groups = _between(line, ids)
        else:
            groups = _groups(line, program.devices)
            if len(slices) > 1:
                groups = tuple(tuple(slice_[place] for place in group) for slice_ in slices for group in groups)
        sent = line.operands[:1] if between else line.operands
        size = sum(_bytes(line.of[operand].shape) for operand in sent)
        if kind == "all-gather":
            size *= max(map(len, groups))
        elif kind == "all-reduce" and line.scattered:
            kind = "reduce-scatter"
        chain = re.search(r'chain_id="(\d+)"', line.rest)
        channel = re.search(r"channel_id=(\d+)", line.rest)
        op_name = re.search(r'op_name="([^"]*)"', line.rest) or re.search(r'op_name="([^"]*)"', line.caller)
        found = Collective(line.name, kind, size, groups, 1, op_name[1] if op_name else "")  # type: ignore[arg-type]
        return [(found, (chain[1], channel[1] if channel else "") if chain else None)]

    def total(parts: Sequence[tuple[int, list[_Found]]]) -> list[_Found]:
        scaled = [
            (dataclasses.replace(c, times=c.times * times), chain) for times, found in parts for c, chain in found
        ]
        seen: set[tuple[str, str]] = set()
        first = []
        for found in scaled:
            # The fusions over which TPU spreads one all-gather each hold a copy of it, of one chain.
            if found[1] is None or found[1] not in seen:
                first.append(found)
                seen |= {found[1]} if found[1] else set()
        return first

    def cost(found: list[_Found]) -> float:
        return sum(c.wire_bytes * c.times for c, _ in found)

    return [c for c, _ in _walk(program, own, total, cost)]


_Found = tuple[Collective, tuple[str, str] | None]


def axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the mesh axes along which the devices of a group differ, in the mesh's order.

    groups: positions in the flattened mesh; mesh: sizes in the mesh's order, as `Mesh.shape`. Two devices of
    different mesh rows and columns differ in both. Raises ValueError for a position outside the mesh.
    """
    sizes = tuple(mesh.values())
    outside = [device for group in groups for device in group if not 0 <= device < math.prod(sizes)]
    if outside:
        raise ValueError(f"expected devices of a mesh of {math.prod(sizes)}, got {outside[0]}")
    spanned = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), sizes), -1)
        spanned |= (places != places[:1]).any(0)
    return tuple(axis for axis, yes in zip(mesh, spanned, strict=True) if yes)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop of a program."""

    name: str
    trips: int | None
    """Per entry; None where the text does not tell (a loop that runs until a value is reached)."""
    op_name: str


def loops(text: str) -> list[Loop]:
    """All while loops of a compiled program, so that those of unknown length can be told. Raises ValueError."""
    found = []
    for lines in _parse(text).computations.values():
        for line in lines.values():
            if line.op == "while":
                op_name = re.search(r'op_name="([^"]*)"', line.rest)
                found.append(Loop(line.name, _trips(line), op_name[1] if op_name else ""))
    return found


def flops(text: str) -> int:
    """FLOPs of a compiled program's dots and convolutions on one device, a multiply and an add as two.

    Those of recomputation (`jax.checkpoint`) are in it, elementwise work and custom calls (kernels, cuBLAS) are not.
    A tap of a convolution counts where it meets an element of the input, not padding and not the zeros of a dilated
    input, as in XLA's cost analysis: TPU writes dots with batch axes and gradients as convolutions with windows
    that lie mostly outside. TPU may also cut a convolution into overlapping pieces, which compute more than the
    program asks: the CPU's text of the same program has what is asked. A loop of unknown length counts once. Raises
    ValueError for text that is no compiled program.
    """

    def own(line: _Line) -> int:
        if line.op == "dot":
            return _dot_flops(line)
        return _convolution_flops(line) if line.op == "convolution" else 0

    return _walk(_parse(text), own, lambda parts: sum(times * n for times, n in parts), float)


def _dot_flops(line: "_Line") -> int:
    left = _dims(line.of[line.operands[0]].shape)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    kept = math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 1
    return 2 * math.prod(_dims(line.shape)) * kept


def _convolution_flops(line: "_Line") -> int:
    left, right = (_dims(line.of[operand].shape) for operand in line.operands)
    out = _dims(line.shape)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
    if labels is None:
        raise ValueError(f"expected dim_labels in the convolution {line.name}")
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    window = re.search(r"window=\{([^}]*)\}", line.rest)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    spatial = sum(label.isdigit() for label in of_left)

    def field(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * spatial

    taps = 1
    stride, lhs_dilate, rhs_dilate = (list(map(int, field(n, "1"))) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = [int(pad.split("_")[0]) for pad in field("pad", "0_0")]
    for axis in range(spatial):
        size, kernel, to = (
            dims[names.index(str(axis))] for dims, names in ((left, of_left), (right, of_right), (out, of_out))
        )
        at = np.arange(to)[:, None] * stride[axis] - low[axis] + np.arange(kernel) * rhs_dilate[axis]
        taps *= int(((at >= 0) & (at % lhs_dilate[axis] == 0) & (at < (size - 1) * lhs_dilate[axis] + 1)).sum())
    groups, batch_groups = (
        int(found[1]) if (found := re.search(rf"{name}_group_count=(\d+)", line.rest)) else 1
        for name in ("feature", "batch")
    )
    channels = left[of_left.index("f")] // groups
    return 2 * taps * channels * out[of_out.index("f")] * (left[of_left.index("b")] // batch_groups)


# Text to instructions


@dataclasses.dataclass(eq=False)
class _Line:
    """One instruction."""

    name: str
    shape: str
    op: str
    operands: list[str]
    inner: str
    """Between the operation's parentheses."""
    rest: str
    """After them."""
    root: bool
    of: dict[str, "_Line"]
    """The computation that it is in."""
    program: "_Program"
    scattered: bool = False
    """Of an all-reduce in a fusion: that the fusion keeps a slice of it only."""
    caller: str = ""
    """Attributes of the fusion that it is in."""


@dataclasses.dataclass(eq=False)
class _Program:
    computations: dict[str, dict[str, _Line]]
    entry: str
    devices: int


_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@functools.lru_cache(maxsize=2)
def _parse(text: str) -> _Program:
    header = text[: text.find("\n")]
    counts = [int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)]
    program = _Program({}, "", math.prod(counts))
    lines: dict[str, _Line] = {}
    for row in text.splitlines():
        start = _COMPUTATION.match(row)
        if start:
            lines = program.computations.setdefault(start[2], {})
            program.entry = start[2] if start[1] else program.entry
            continue
        found = _INSTRUCTION.match(row)
        if not found:
            continue
        shape, after = _split(row[found.end() :])
        op, _, tail = after.lstrip().partition("(")
        inner, rest = _split("(" + tail)
        inner = inner[1:-1]
        operands = _NAME.findall(inner)
        lines[found[2]] = _Line(found[2], shape, op, operands, inner, rest, bool(found[1]), lines, program)
    if not header.startswith("HloModule") or not program.entry:
        raise ValueError(f"expected the text of a compiled program, which begins with HloModule; got {header[:60]!r}")
    for lines in program.computations.values():
        for line in lines.values():
            if line.op == "fusion":
                _mark(line)
    return program


def _split(text: str) -> tuple[str, str]:
    """The first word of `text`, or all up to the parenthesis that closes the one it begins with; and the rest."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[: found.end()], text[found.end() :]
    raise ValueError(f"expected closed parentheses in {text[:80]!r}")


def _mark(fusion: _Line) -> None:
    """Tell the collectives in a fusion of it."""
    for called in _CALLS.findall(fusion.rest):
        inside = fusion.program.computations[called]
        root = _root(inside)
        for line in inside.values():
            line.caller = fusion.rest
            line.scattered = line.op == "all-reduce" and root.op == "dynamic-slice" and root.operands[0] == line.name


def _root(lines: Mapping[str, _Line]) -> _Line:
    return next(line for line in lines.values() if line.root)


def _walk(
    program: _Program,
    own: Callable[[_Line], T],
    total: Callable[[Sequence[tuple[int, T]]], T],
    cost: Callable[[T], float],
) -> T:
    """The sum of `own` over all instructions that the entry executes; `cost` chooses among branches."""

    @functools.cache
    def of(name: str) -> T:
        parts: list[tuple[int, T]] = []
        for line in program.computations[name].values():
            parts.append((1, own(line)))
            if line.op == "while":
                trips = _trips(line)
                body = re.search(r"body=%([\w.\-]+)", line.rest)
                parts += [(1 if trips is None else trips, of(body[1]))] if body else []
            elif line.op == "conditional":
                branches = [_NAME.findall(found) for found in _BRANCHES.findall(line.rest)]
                named = list(itertools.chain(*branches)) or _CALLS.findall(line.rest)
                parts.append((1, max((of(branch) for branch in named), key=cost)))
            elif line.op in ("fusion", "call", "async-start"):
                parts += [(1, of(called)) for called in _CALLS.findall(line.rest)]
            elif line.op == "custom-call":
                called = itertools.chain(*(_NAME.findall(found) for found in _BRANCHES.findall(line.rest)))
                parts += [(1, of(name)) for name in called]
        return total(parts)

    return of(program.entry)


# Shapes and groups

_BITS = {"pred": 8, "token": 0, "opaque": 0}


def _dims(shape: str) -> tuple[int, ...]:
    """Of an array's shape, 'f32[2,3]{1,0:T(8,128)}' -> (2, 3)."""
    found = re.match(r"\w+\[([^\]]*)\]", shape)
    return tuple(int(n.lstrip("<=")) for n in found[1].split(",") if n) if found else ()


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([^\]]*)\]", shape):
        total += math.ceil(math.prod(int(n.lstrip("<=")) for n in dims.split(",") if n) * _bits(kind) / 8)
    return total


def _bits(kind: str) -> int:
    """Of one number: bf16, f8e4m3fn, s4, c64, pred; 8 for what has no size in its name."""
    found = re.search(r"\d+", kind)
    return _BITS.get(kind, int(found[0]) if found else 8)


def _groups(line: _Line, devices: int) -> Groups:
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest)
    if pairs:
        return _linked([(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1])])
    start = line.rest.find("replica_groups=")
    if start < 0:
        return (tuple(range(devices)),)
    return replica_groups(line.rest[start + len("replica_groups=") :], devices)


_SLICE = 100_000  # ids of the devices of slice n begin at (n + 1) times this, and at 0 where there is one slice


def _slices(ids: Sequence[int]) -> list[list[int]]:
    """For each slice, the positions of its devices in the mesh."""
    numbers = sorted({device // _SLICE for device in ids})
    return [[place for place, device in enumerate(ids) if device // _SLICE == number] for number in numbers]


def _between(line: _Line, ids: Sequence[int]) -> Groups:
    """Groups of a transfer between slices, three forms: {{100000,200000},..}, {{100000->200000},..} or a product of
    slices and a range of devices, "{1,2}x{0:7}"."""
    places = {device: place for place, device in enumerate(ids)}
    target = line.rest.partition("_xla_megascale_target=")[2]
    product = re.match(r'"?\{([\d,]+)\}x\{(\d+):(\d+)\}', target)
    listed = target.partition("}}")[0]
    if product:
        devices = range(int(product[2]), int(product[3]) + 1)
        named = [[number * _SLICE + device for number in _numbers(product[1])] for device in devices]
    elif "->" in listed:
        pairs = re.findall(r"(\d+)->(\d+)", listed)
        return _linked([(places[int(a)], places[int(b)]) for a, b in pairs])
    else:
        named = [_numbers(group) for group in re.findall(r"[\d,]*\d", listed)]
    if not named:
        raise ValueError(f"expected devices of a transfer between slices, got {target[:80]!r}")
    return tuple(tuple(places[device] for device in group) for group in named)


def _linked(pairs: Sequence[tuple[int, int]]) -> Groups:
    """Devices that pairs of source and target join."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touched] + [set(pair).union(*touched)]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def replica_groups(text: str, devices: int) -> Groups:
    """Groups of devices from the text at whose beginning they stand, as XLA prints them:

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
    # Every axis in its parts, those within a group last.
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


# Trips of loops


def _trips(line: _Line) -> int | None:
    """Of a while loop: what the compiler noted, or else what its condition and its counter say."""
    noted = re.search(r'"?known_trip_count"?:\{"n":"?(\d+)"?\}', line.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%([\w.\-]+)", line.rest)
    body = re.search(r"body=%([\w.\-]+)", line.rest)
    if not condition or not body:
        return None
    of = line.program.computations
    compare, state = _root(of[condition[1]]), line.of[line.operands[0]]
    root = _root(of[body[1]])
    if state.op != "tuple" or root.op != "tuple":
        return None
    compare, terms = _terms(compare)
    direction = re.search(r"direction=(\w\w)", compare.rest)
    if compare.op != "compare" or not direction or direction[1] == "EQ":
        return None
    counter, limit = terms
    if direction[1] in ("GT", "GE"):  # limit > counter
        counter, limit = limit, counter
    at, moved = _index(counter), _index(limit)
    if at is None:
        return None
    # The limit may be a constant that was moved out of the loop.
    end = _constant(limit if moved is None else state.of[state.operands[moved]])
    begin = _constant(state.of[state.operands[at]])
    add, terms = _terms(_strip(root.of[root.operands[at]]))
    steps = [_constant(term) for term in terms if _index(term) != at]
    if end is None or begin is None or add.op != "add" or len(steps) != 1 or not steps[0] or steps[0] < 0:
        return None
    return max(0, math.ceil((end - begin + (direction[1] in ("LE", "GE"))) / steps[0]))


def _terms(line: _Line) -> tuple[_Line, list[_Line]]:
    """An operation, also one that is all that a fusion does, and what its terms were copied from."""
    inner = line
    if line.op == "fusion":
        inner = _root(line.program.computations[_CALLS.findall(line.rest)[0]])
    terms = [_strip(inner.of[operand]) for operand in inner.operands]
    if inner is not line:
        terms = [_strip(line.of[line.operands[int(t.inner)]]) if t.op == "parameter" else t for t in terms]
    return inner, terms


def _index(line: _Line) -> int | None:
    """Which part of a loop's state this is."""
    found = re.search(r"index=(\d+)", line.rest)
    whole = line.of[line.operands[0]].op == "parameter" if line.operands else False
    return int(found[1]) if found and whole and line.op == "get-tuple-element" else None


def _strip(line: _Line) -> _Line:
    """What was copied, through copies."""
    while line.op in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        line = line.of[line.operands[0]]
    return line


def _constant(line: _Line) -> int | None:
    line = _strip(line)
    return int(line.inner) if line.op == "constant" and re.fullmatch(r"-?\d+", line.inner) else None


_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)((?::[^{}]*)?)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")


def peak_bytes(text: str) -> int:
    """Bytes of HBM that a scheduled program (`is_scheduled=true`) needs at its fullest, beside arguments and results.

    Every buffer lives from the instruction that makes it to the last that reads it, tiles are padded, on-chip memory
    (`S(1)`) does not count, a loop's state is updated in place, and the packing is perfect: an estimate of what the
    compiler's own assignment takes, for programs that it was not let to finish.
    """
    program = _parse(text)

    @functools.cache
    def of(name: str) -> int:
        lines = list(program.computations[name].values())
        views: dict[str, list[set[str]]] = {}  # name -> for each array of its shape, the buffers that it is a view of
        sizes: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, line in enumerate(lines):
            seen = [views.get(operand, [set()]) for operand in line.operands]
            every = set().union(*(buffers for operand in seen for buffers in operand))
            if line.op == "tuple":
                views[line.name] = [set().union(*operand) for operand in seen]
                continue  # names, and reads nothing
            if line.op == "get-tuple-element":
                parts, found = seen[0], re.search(r"index=(\d+)", line.rest)
                k = int(found[1]) if found else 0
                views[line.name] = [parts[k] if len(parts) > k else every]
                continue
            for buffer in every:
                last[buffer] = i
            if line.op in ("while", "opt-barrier") and len(seen) == 1:
                views[line.name] = seen[0]
            elif line.op in ("bitcast", "parameter") or line.op.endswith("-done") or _in_place(line):
                views[line.name] = [every]
            else:
                own = _padded_bytes(line.shape, line.op)
                views[line.name] = [{f"{line.name}#{k}"} for k in range(len(own))]
                sizes |= {f"{line.name}#{k}": size for k, size in enumerate(own)}
        result = set().union(*views[next(line.name for line in lines if line.root)])
        live, peak = 0, 0
        ends: dict[int, int] = {}
        for i, line in enumerate(lines):
            for k in range(len(views[line.name])):
                buffer = f"{line.name}#{k}"
                if buffer in sizes and buffer not in result:
                    live += sizes[buffer]
                    end = last.get(buffer, i)
                    ends[end] = ends.get(end, 0) + sizes[buffer]
            inside = _CALLS.findall(line.rest) if line.op in ("while", "conditional", "call") else []
            peak = max(peak, live + max(map(of, inside), default=0))
            live -= ends.pop(i, 0)
        return peak

    return of(program.entry)


def _in_place(line: _Line) -> bool:
    """Whether it writes into its operand: a slice put into a larger array."""
    if line.op == "dynamic-update-slice":
        return True
    if line.op != "fusion":
        return False
    return any(
        _root(line.program.computations[called]).op == "dynamic-update-slice" for called in _CALLS.findall(line.rest)
    )


def _padded_bytes(shape: str, op: str) -> list[int]:
    """Of each array of a shape, with whole tiles; on-chip ones are none; of a started copy the result alone is new."""
    found = []
    parts = list(_SHAPE.finditer(shape))
    if op.endswith("-start") and len(parts) > 1:
        parts = parts[1:2]  # (operand, result, ...)
    for kind, dims, order, memory in (part.groups() for part in parts):
        sizes = [int(n) for n in dims.split(",") if n]
        if order and memory and (tile := _TILE.search(memory)):
            tiles = [int(n) for n in tile[1].split(",")]
            minor = [int(n) for n in order.split(",")][: len(tiles)]  # minor to major
            for axis, size in zip(minor, reversed(tiles), strict=False):
                sizes[axis] = -(-sizes[axis] // size) * size
        found.append(0 if memory and "S(" in memory else math.ceil(math.prod(sizes) * _bits(kind) / 8))
    return found


def hbm_bytes(text: str) -> int:
    """Bytes that a program reads from and writes to HBM: operands and results of every instruction, fusions as one."""
    program = _parse(text)
    free = {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "opt-barrier",
        "call",
    }

    @functools.cache
    def of(name: str) -> int:
        total = 0
        lines = program.computations[name]
        for line in lines.values():
            if line.op in ("while", "conditional", "call"):
                times = (_trips(line) or 1) if line.op == "while" else 1
                total += times * max(map(of, _CALLS.findall(line.rest)), default=0)
            if line.op in free or line.op.endswith("-done"):
                continue
            total += sum(_padded_bytes(line.shape, line.op))
            if not _in_place(line):
                read = [lines[operand] for operand in line.operands if operand in lines]
                total += sum(sum(_padded_bytes(part.shape, part.op)) for part in read if not part.shape.startswith("("))
        return total

    return of(program.entry)
