"""Mutation testing: one slip at a time is put into the core's code, to see whether a test turns red.

    make mutate [MUTANTS=210] [CORES=2]
    python -m benchmarks.mutate [--mutants=210] [--seed=0] [--cores=2] [--out=runs/mutants]

cosmic-ray finds and makes the slips: another operator, a number one off, a condition turned round, a decorator gone. At
most one is drawn from each place in the code. Each is tried in a fresh process, on the tests of its module and then on
those of the models, and is killed by the first test that fails, or when it takes four times as long as the tests do and
a minute. First the tests must pass as they are. The programs that they compile are kept, so that each mutant compiles
only what it changes.

OUT/mutants.jsonl gets a row as each mutant ends, and OUT/mutants.md is written anew. Mutants are tried in random order:
a run that is cut off has tried a random share.
"""

import argparse
import itertools
import json
import queue
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from cosmic_ray import mutating
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).parents[1]
MODULES = (
    "vf/diffusion/*.py", "vf/models/*.py", "vf/training/step.py", "vf/training/state.py", "vf/training/optim.py",
    "vf/rng.py", "vf/metrics/frechet.py", "vf/metrics/kernel.py", "vf/metrics/fvd.py",
)  # fmt: skip
MODELS = "tests/models/test_*.py"  # every mutant's second tests
PARTS = ("vf", "tests", "benchmarks", "configs", "pyproject.toml")  # what the tests need of the project
# Slips that nobody makes: types joined by another sign than |, bits of floats (a TypeError), identity of numbers.
ABSURD = re.compile(
    r"BinaryOperator_(BitOr_|(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Bit|LShift|RShift))"
    r"|ComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is"
)
# Nor are these code: the star before keyword arguments, and the figures of a table.
SYNTAX = {("ReplaceBinaryOperator", "parameters"), ("NumberReplacer", "dictorsetmaker")}
# One core each: the tests are small, and several mutants are tried at a time. Every compiled program is kept.
SETTINGS = {
    "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}  # fmt: skip


class Slip(NamedTuple):
    """One mutation: the `occurrence`-th of what `operator` finds in `module`, a path from the project's root."""

    module: Path
    line: int
    operator: str
    occurrence: int


def matching(pattern: str) -> list[Path]:
    """Files with code, relative to the root. Ends the program where there is none, as after a move."""
    found = [path.relative_to(ROOT) for path in sorted(ROOT.glob(pattern)) if path.stat().st_size]
    return found or sys.exit(f"benchmarks/mutate.py knows {pattern}, and there is no such file")


def tests_of(module: Path) -> list[str]:
    """Test files on which a mutant of `module` is tried, in this order. `tests/` mirrors `vf/`, where a file is due."""
    own = Path("tests", *module.parts[1:-1], f"test_{module.name}")
    return list(dict.fromkeys(str(path) for path in (own, *matching(MODELS)) if (ROOT / path).exists()))


def places(module: Path) -> Iterator[list[Slip]]:
    """For each place in `module` the slips that can be made there."""
    found: dict[tuple[int, int], list[Slip]] = {}
    nodes = list(ast_nodes(get_ast_from_path(ROOT / module)))
    for name in operator_names():
        if ABSURD.search(name) or get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        positions = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(positions):
            if (name.split("/")[1].split("_")[0], node.parent and node.parent.type) not in SYNTAX:
                found.setdefault(start, []).append(Slip(module, start[0], name, occurrence))
    return iter(found.values())


def drawn(number: int, seed: int) -> list[Slip]:
    """At most `number` slips that compile, from as many places."""
    everywhere = [place for pattern in MODULES for module in matching(pattern) for place in places(module)]
    draw = random.Random(seed)
    draw.shuffle(everywhere)
    compiling = (next(filter(_compiles, draw.sample(place, len(place))), None) for place in everywhere)
    return list(itertools.islice(filter(None, compiling), number))


def _compiles(slip: Slip) -> bool:
    code = mutating.mutate_code((ROOT / slip.module).read_text(), get_operator(slip.operator)(), slip.occurrence)
    try:
        compile(code, str(slip.module), "exec")
    except SyntaxError:
        return False
    return True


class Copy:
    """A copy of the project, in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "compiled"
        self.cache.mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)

    def command(self, tests: Iterable[str]) -> str:
        """Runs `tests` up to the first failure."""
        settings = {**SETTINGS, "JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        words = ["env", "-C", str(self.folder), *(f"{name}={value}" for name, value in settings.items())]
        return shlex.join([*words, sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests])

    def passes(self, test: str, limit: float) -> float:
        """Seconds that `test` takes as it is; ends the program where it fails."""
        start = time.monotonic()
        outcome, output = run_tests(self.command([test]), limit)
        if outcome != TestOutcome.SURVIVED:
            raise SystemExit(f"{test} fails without a mutant:\n{output}")
        return time.monotonic() - start

    def judge(self, slip: Slip, tests: list[str], limit: float) -> dict[str, Any]:
        """The row of one mutant."""
        start = time.monotonic()
        spec = MutationSpec(self.folder / slip.module, slip.operator, slip.occurrence, (slip.line, 0), (slip.line, 1))
        result = mutating.mutate_and_test([spec], self.command(tests), limit)
        output, diff = result.output or "", (result.diff or "").replace(f"{self.folder}/", "")
        if result.test_outcome == TestOutcome.INCOMPETENT or not diff:
            raise SystemExit(f"{slip} could not be tried:\n{output}")
        outcome = "timeout" if output == "timeout" else str(result.test_outcome.value)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return {
            "module": str(slip.module), "line": slip.line, "operator": slip.operator.split("/")[1], "outcome": outcome,
            "by": failed[1] if failed else "", "seconds": round(time.monotonic() - start, 1),
            "diff": "\n".join(line for line in diff.splitlines() if re.match(r"[-+](?!--|\+\+)", line)),
        }  # fmt: skip


def report(rows: list[dict[str, Any]], asked: int, seed: int) -> str:
    """Counts by module, then the mutants that no test noticed."""
    count = Counter((row["module"], row["outcome"]) for row in rows)
    dead = sum(row["outcome"] != "survived" for row in rows)
    lines = [
        f"{len(rows)} of {asked} mutants (seed {seed}): {dead} killed, {100 * dead / max(len(rows), 1):.1f} %", "",
        "| module | mutants | killed | timeout | survived |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for module in sorted({row["module"] for row in rows}):
        each = [count[module, outcome] for outcome in ("killed", "timeout", "survived")]
        lines.append(f"| `{module}` | {sum(each)} | {' | '.join(map(str, each))} |")
    for row in sorted(rows, key=lambda row: (row["module"], row["line"])):
        if row["outcome"] == "survived":
            lines += ["", f"`{row['module']}:{row['line']}` {row['operator']}", "```diff", row["diff"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=210)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2, help="mutants tried at a time")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a file of tests as it is")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    slips = drawn(args.mutants, args.seed)
    print(f"{len(slips)} mutants", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(args.cores) as pool:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        copies = [Copy(Path(folder, str(k))) for k in range(args.cores)]
        for copy in copies:
            free.put(copy)

        def with_a_copy(work: Any, *values: Any) -> Any:
            copy = free.get()
            try:
                return work(copy, *values)
            finally:
                free.put(copy)

        tests = sorted({test for slip in slips for test in tests_of(slip.module)})
        taken = dict(zip(tests, pool.map(lambda t: with_a_copy(Copy.passes, t, args.limit), tests), strict=True))
        print("\n".join(f"{seconds:6.1f} s  {test}" for test, seconds in taken.items()), flush=True)
        for one, other in itertools.permutations(copies, 2):
            shutil.copytree(one.cache, other.cache, dirs_exist_ok=True)

        def judged(slip: Slip) -> dict[str, Any]:
            needed = tests_of(slip.module)
            return with_a_copy(Copy.judge, slip, needed, 60 + 4 * sum(taken[test] for test in needed))

        rows: list[dict[str, Any]] = []
        with (args.out / "mutants.jsonl").open("w") as file:
            for done in as_completed([pool.submit(judged, slip) for slip in slips]):
                row = done.result()
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
                print("{seconds:6.1f} s  {outcome:8}  {module}:{line}  {operator}".format(**row), flush=True)
                (args.out / "mutants.md").write_text(report(rows, len(slips), args.seed))
    print(report(rows, len(slips), args.seed))


if __name__ == "__main__":
    main()
