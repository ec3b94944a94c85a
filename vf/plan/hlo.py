"""Parses the text of a compiled program, `compiled.as_text()` of the CPU or the TPU back end, into instructions.

It is the program after partitioning: shapes are those on one device, so that everything read from it is per device.
XLA's `cost_analysis` counts the body of a loop once; `walk` follows the calls from the entry, through loops (body times
trips), conditionals (the most expensive branch), fusions and asynchronous wrappers.

`messages` reads collectives from the instructions, `usage` FLOPs and memory.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Instruction:
    """One instruction of a program."""

    name: str
    shape: str
    op: str
    operands: list[str]
    inner: str
    """The text between the operation's parentheses."""
    rest: str
    """The text after them."""
    root: bool
    computation: dict[str, "Instruction"]
    """The instructions of the computation that it belongs to."""
    program: "Program"
    scattered: bool = False
    """Whether it is an all-reduce in a fusion of which only a slice is used."""
    caller: str = ""
    """Attributes of the fusion that it belongs to; "" outside fusions."""


@dataclasses.dataclass(eq=False)
class Program:
    """A compiled program: {computation: {name: instruction}}, the name of its entry, and its number of devices."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int


_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
CALLS = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@functools.lru_cache(maxsize=2)
def parse(text: str) -> Program:
    """Parses the text of a compiled program. Raises ValueError where it is none."""
    header = text[: text.find("\n")]
    counts = [int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)]
    program = Program({}, "", math.prod(counts))
    lines: dict[str, Instruction] = {}
    for row in text.splitlines():
        start = _COMPUTATION.match(row)
        if start:
            lines = program.computations.setdefault(start[2], {})
            program.entry = start[2] if start[1] else program.entry
            continue
        match = _INSTRUCTION.match(row)
        if not match:
            continue
        shape, after = _split(row[match.end() :])
        op, _, tail = after.lstrip().partition("(")
        inner, rest = _split("(" + tail)
        inner = inner[1:-1]
        operands = _NAME.findall(inner)
        lines[match[2]] = Instruction(match[2], shape, op, operands, inner, rest, bool(match[1]), lines, program)
    if not header.startswith("HloModule") or not program.entry:
        raise ValueError(f"expected the text of a compiled program, which begins with HloModule; got {header[:60]!r}")
    for lines in program.computations.values():
        for line in lines.values():
            if line.op == "fusion":
                _annotate(line)
    return program


def _split(text: str) -> tuple[str, str]:
    """(first word of `text`, or the parentheses that it begins with and all between them; the rest)."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    raise ValueError(f"expected closed parentheses in {text[:80]!r}")


def _annotate(fusion: Instruction) -> None:
    """Records, in the instructions of a fusion, its attributes and whether only a slice of an all-reduce is used."""
    for called in CALLS.findall(fusion.rest):
        inside = fusion.program.computations[called]
        last = root(inside)
        for line in inside.values():
            line.caller = fusion.rest
            line.scattered = line.op == "all-reduce" and last.op == "dynamic-slice" and last.operands[0] == line.name


def callees(line: Instruction) -> list[str]:
    """Names of the computations that an instruction calls: loop body, branches, fused instructions."""
    branches = [_NAME.findall(match) for match in _BRANCHES.findall(line.rest)]
    return [*CALLS.findall(line.rest), *itertools.chain(*branches)]


def root(lines: Mapping[str, Instruction]) -> Instruction:
    """The instruction whose value a computation returns."""
    return next(line for line in lines.values() if line.root)


def walk(
    program: Program,
    value: Callable[[Instruction], T],
    total: Callable[[Sequence[tuple[int, T]]], T],
    cost: Callable[[T], float],
) -> T:
    """Sums a quantity over all instructions that the program executes.

    Args:
        program: the program.
        value: instruction -> its quantity, without that of computations that it calls.
        total: [(times, quantity)] -> their sum.
        cost: quantity -> a number, by which the most expensive branch of a conditional is chosen.
    """

    @functools.cache
    def computation_value(name: str) -> T:
        parts: list[tuple[int, T]] = []
        for line in program.computations[name].values():
            parts.append((1, value(line)))
            if line.op == "while":
                times = trips(line)
                body = re.search(r"body=%([\w.\-]+)", line.rest)
                parts += [(1 if times is None else times, computation_value(body[1]))] if body else []
            elif line.op == "conditional":
                parts.append((1, max((computation_value(branch) for branch in callees(line)), key=cost)))
            elif line.op in ("fusion", "call", "async-start"):
                parts += [(1, computation_value(called)) for called in CALLS.findall(line.rest)]
            elif line.op == "custom-call":
                parts += [(1, computation_value(called)) for called in callees(line)]
        return total(parts)

    return computation_value(program.entry)


# Shapes

_BITS = {"pred": 8, "token": 0, "opaque": 0}


def dims(shape: str) -> tuple[int, ...]:
    """Extents of an array of shape `shape`: 'f32[2,3]{1,0:T(8,128)}' -> (2, 3)."""
    match = re.match(r"\w+\[([^\]]*)\]", shape)
    return tuple(int(n.lstrip("<=")) for n in match[1].split(",") if n) if match else ()


def size_of(shape: str) -> int:
    """Bytes of an array of shape `shape`, or of all arrays of a tuple."""
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([^\]]*)\]", shape):
        total += math.ceil(math.prod(int(n.lstrip("<=")) for n in dims.split(",") if n) * bits(kind) / 8)
    return total


def bits(kind: str) -> int:
    """Bits of one number of type `kind`: bf16, f8e4m3fn, s4, c64, pred; 8 for types without a size in their name."""
    match = re.search(r"\d+", kind)
    return _BITS.get(kind, int(match[0]) if match else 8)


# Loops


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop of a program."""

    name: str
    trips: int | None
    """Iterations per entry; None where the text does not say (a loop that runs until a value is reached)."""
    op_name: str


def loops(text: str) -> list[Loop]:
    """All while loops of a compiled program, of known and unknown length. Raises ValueError as `parse`."""
    all_loops = []
    for lines in parse(text).computations.values():
        for line in lines.values():
            if line.op == "while":
                op_name = re.search(r'op_name="([^"]*)"', line.rest)
                all_loops.append(Loop(line.name, trips(line), op_name[1] if op_name else ""))
    return all_loops


def trips(line: Instruction) -> int | None:
    """Iterations of a while loop: the compiler's note, or else from its condition and counter; None if unknown."""
    noted = re.search(r'"?known_trip_count"?:\{"n":"?(\d+)"?\}', line.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%([\w.\-]+)", line.rest)
    body = re.search(r"body=%([\w.\-]+)", line.rest)
    if not condition or not body:
        return None
    computations = line.program.computations
    compare, state = root(computations[condition[1]]), line.computation[line.operands[0]]
    last = root(computations[body[1]])
    if state.op != "tuple" or last.op != "tuple":
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
    end = _constant(limit if moved is None else state.computation[state.operands[moved]])
    begin = _constant(state.computation[state.operands[at]])
    add, terms = _terms(_strip(last.computation[last.operands[at]]))
    steps = [_constant(term) for term in terms if _index(term) != at]
    if end is None or begin is None or add.op != "add" or len(steps) != 1 or not steps[0] or steps[0] < 0:
        return None
    return max(0, math.ceil((end - begin + (direction[1] in ("LE", "GE"))) / steps[0]))


def _terms(line: Instruction) -> tuple[Instruction, list[Instruction]]:
    """(an operation, or the only one of a fusion; its operands before copies)."""
    inner = line
    if line.op == "fusion":
        inner = root(line.program.computations[CALLS.findall(line.rest)[0]])
    terms = [_strip(inner.computation[operand]) for operand in inner.operands]
    if inner is not line:
        terms = [_strip(line.computation[line.operands[int(t.inner)]]) if t.op == "parameter" else t for t in terms]
    return inner, terms


def _index(line: Instruction) -> int | None:
    """Index of this instruction in a loop's state; None where it is no part of it."""
    match = re.search(r"index=(\d+)", line.rest)
    whole = line.computation[line.operands[0]].op == "parameter" if line.operands else False
    return int(match[1]) if match and whole and line.op == "get-tuple-element" else None


def _strip(line: Instruction) -> Instruction:
    """The instruction whose value was copied or converted, through any number of copies."""
    while line.op in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
        line = line.computation[line.operands[0]]
    return line


def _constant(line: Instruction) -> int | None:
    line = _strip(line)
    return int(line.inner) if line.op == "constant" and re.fullmatch(r"-?\d+", line.inner) else None
