"""Reads from a compiled program its FLOPs, peak memory and HBM traffic, per device."""

import functools
import math
import re
from collections.abc import Callable

from vf.plan import count, hlo

_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)((?::[^{}]*)?)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")


def flops(text: str) -> int:
    """FLOPs of a compiled program's dots and convolutions on one device, a multiply and an add as two.

    Recomputation (`jax.checkpoint`) is included, elementwise operations and custom calls (kernels, cuBLAS) are not. A
    tap of a convolution counts where it meets an element of the input, not padding and not the zeros of a dilated
    input, as in XLA's cost analysis: TPU programs have dots with batch axes, and gradients, as convolutions whose
    windows lie mostly outside. (A machine multiplies in the padding too; `count.Counts.padding` is by how much.) TPU
    may also split a convolution into overlapping pieces, which compute more than necessary: the CPU's text of the same
    program has the necessary FLOPs. A loop of unknown length counts once. Raises ValueError for text that is no
    compiled program.
    """

    def value(line: hlo.Instruction) -> int:
        if line.op == "dot":
            return _dot_flops(line)
        return _convolution_flops(line) if line.op == "convolution" else 0

    return hlo.walk(hlo.parse(text), value, lambda parts: sum(times * n for times, n in parts), float)


def _dot_flops(line: hlo.Instruction) -> int:
    left = hlo.dims(line.computation[line.operands[0]].shape)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
    contracted_size = math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 1
    return 2 * math.prod(hlo.dims(line.shape)) * contracted_size


def _convolution_flops(line: hlo.Instruction) -> int:
    left, right = (hlo.dims(line.computation[operand].shape) for operand in line.operands)
    out = hlo.dims(line.shape)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
    if labels is None:
        raise ValueError(f"expected dim_labels in the convolution {line.name}")
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    window = re.search(r"window=\{([^}]*)\}", line.rest)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    spatial = sum(label.isdigit() for label in of_left)

    def field(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * spatial

    pairs = 1
    stride, lhs_dilate, rhs_dilate = (list(map(int, field(n, "1"))) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = [int(pad.split("_")[0]) for pad in field("pad", "0_0")]
    for axis in range(spatial):
        size, kernel, to = (
            dims[names.index(str(axis))] for dims, names in ((left, of_left), (right, of_right), (out, of_out))
        )
        pairs *= count.taps(size, kernel, to, stride[axis], low[axis], lhs_dilate[axis], rhs_dilate[axis])
    groups, batch_groups = (
        int(match[1]) if (match := re.search(rf"{name}_group_count=(\d+)", line.rest)) else 1
        for name in ("feature", "batch")
    )
    channels = left[of_left.index("f")] // groups
    return 2 * pairs * channels * out[of_out.index("f")] * (left[of_left.index("b")] // batch_groups)


def peak_bytes(text: str) -> int:
    """Peak bytes of HBM that a scheduled program (`is_scheduled=true`) needs beside arguments and results.

    Every buffer lives from the instruction that makes it to the last that reads it, tiles are padded, on-chip memory
    (`S(1)`) does not count, the state of a loop is updated in place, and buffers are packed perfectly. It estimates the
    compiler's assignment for programs whose compilation was ended before it.
    """
    program = hlo.parse(text)

    @functools.cache
    def peak_of(name: str) -> int:
        lines = list(program.computations[name].values())
        views: dict[str, list[set[str]]] = {}  # name -> for each array of its shape, the buffers that it is a view of
        sizes: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, line in enumerate(lines):
            operands = [views.get(operand, [set()]) for operand in line.operands]
            buffers_read = set().union(*(buffers for operand in operands for buffers in operand))
            if line.op == "tuple":
                views[line.name] = [set().union(*operand) for operand in operands]
                continue  # a tuple only groups buffers, and reads none
            if line.op == "get-tuple-element":
                parts, match = operands[0], re.search(r"index=(\d+)", line.rest)
                k = int(match[1]) if match else 0
                views[line.name] = [parts[k] if len(parts) > k else buffers_read]
                continue
            for buffer in buffers_read:
                last[buffer] = i
            if line.op in ("while", "opt-barrier") and len(operands) == 1:
                views[line.name] = operands[0]
            elif line.op in ("bitcast", "parameter") or line.op.endswith("-done") or _in_place(line):
                views[line.name] = [buffers_read]
            else:
                sizes_made = _padded_bytes(line.shape, line.op)
                views[line.name] = [{f"{line.name}#{k}"} for k in range(len(sizes_made))]
                sizes |= {f"{line.name}#{k}": size for k, size in enumerate(sizes_made)}
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
            inside = hlo.callees(line) if line.op in ("while", "conditional", "call") else []
            peak = max(peak, live + max(map(peak_of, inside), default=0))
            live -= ends.pop(i, 0)
        return peak

    return peak_of(program.entry)


def _in_place(line: hlo.Instruction) -> bool:
    """Whether an instruction writes into its operand, as one that puts a slice into a larger array does."""
    if line.op == "dynamic-update-slice":
        return True
    if line.op != "fusion":
        return False
    return any(
        hlo.root(line.program.computations[called]).op == "dynamic-update-slice"
        for called in hlo.CALLS.findall(line.rest)
    )


def _padded_bytes(shape: str, op: str) -> list[int]:
    """Bytes of each array of a shape, padded to whole tiles.

    Arrays in on-chip memory count as 0. Of an operation that starts a copy only the result is counted.
    """
    array_bytes = []
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
        array_bytes.append(0 if memory and "S(" in memory else math.ceil(math.prod(sizes) * hlo.bits(kind) / 8))
    return array_bytes


def hbm_bytes(text: str) -> int:
    """Bytes that a program reads from and writes to HBM: operands and results of every instruction or fusion.

    Of an array that is only sliced, or only written into, the slice counts; otherwise a loop would count all of its
    stacked inputs in every iteration.
    """
    program = hlo.parse(text)

    @functools.cache
    def used(name: str) -> dict[str, int]:
        return _used(program.computations[name], used)

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
    def traffic_of(name: str) -> int:
        total = 0
        lines = program.computations[name]
        for line in lines.values():
            if line.op in ("while", "conditional", "call"):
                times = (hlo.trips(line) or 1) if line.op == "while" else 1
                total += times * max(map(traffic_of, hlo.callees(line)), default=0)
            if line.op in free or line.op.endswith("-done"):
                continue
            total += _written(line)
            total += sum(
                min(_bytes(lines[operand]), _read(line, k, used))
                for k, operand in enumerate(line.operands)
                if operand in lines and not lines[operand].shape.startswith("(")
            )
        return total

    return traffic_of(program.entry)


_SLICES = ("slice", "dynamic-slice", "gather")
_VIEWS = ("bitcast", "reshape", "copy", "convert")
_WHOLE = ("dot", "convolution", "reduce-window", "select-and-scatter", "scatter", "sort", "fft", "custom-call")


def _bytes(line: hlo.Instruction) -> int:
    return sum(_padded_bytes(line.shape, line.op))


def _fused(line: hlo.Instruction) -> dict[str, hlo.Instruction]:
    """The instructions of a fusion."""
    return line.program.computations[hlo.callees(line)[0]]


def _read(line: hlo.Instruction, k: int, used: Callable[[str], dict[str, int]]) -> int:
    """Bytes that an instruction reads of its operand k; `used` is `_used` of a computation by name."""
    if line.op in _SLICES and k == 0:
        return _bytes(line)
    if line.op == "dynamic-update-slice" and k == 0:
        return 0
    if line.op == "fusion" and hlo.callees(line):
        inside = _fused(line)
        parameter = next((each for each in inside.values() if each.op == "parameter" and each.inner == str(k)), None)
        if parameter is not None:
            return used(hlo.callees(line)[0])[parameter.name]
    return _bytes(line.computation[line.operands[k]])


def _used(inside: dict[str, hlo.Instruction], used: Callable[[str], dict[str, int]]) -> dict[str, int]:
    """Bytes that are used of every array within a fusion, by name.

    Of an operand of an elementwise operation no more is used than of the result. One pass from the last instruction to
    the first suffices, since the users of an array come after it; following every path from a parameter to the result
    would take twice as long for each value that is used twice.
    """
    sizes = dict.fromkeys(inside, 0)
    for user in reversed(inside.values()):
        sizes[user.name] = min(sizes[user.name], _bytes(user))
        for k, operand in enumerate(user.operands):
            if operand not in inside:
                continue
            source = inside[operand]
            by_element = user.op in _VIEWS or (
                user.op not in (*_SLICES, *_WHOLE) and hlo.dims(user.shape) == hlo.dims(source.shape)
            )
            if by_element and not user.root and user.op != "dynamic-update-slice":
                sizes[operand] += sizes[user.name] * _bytes(source) // max(1, _bytes(user))
            else:
                sizes[operand] += _read(user, k, used)
    return sizes


def _written(line: hlo.Instruction) -> int:
    """Bytes that an instruction writes."""
    if line.op == "dynamic-update-slice":
        return _bytes(line.computation[line.operands[1]])
    if line.op == "fusion" and hlo.callees(line):
        last = hlo.root(_fused(line))
        while last.op in ("bitcast", "reshape") and last.operands[0] in last.computation:
            last = last.computation[last.operands[0]]
        parts = [last.computation[operand] for operand in last.operands] if last.op == "tuple" else [last]
        if any(part.op == "dynamic-update-slice" for part in parts):
            return sum(_written(part) for part in parts)
    return _bytes(line)
