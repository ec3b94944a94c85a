"""Mutation testing: puts one mutation at a time into the core's code, and reports whether a test fails.

    make mutate [MUTANTS=210] [CORES=2]
    python -m benchmarks.mutate [--mutants=210] [--seed=0] [--cores=2] [--out=runs/mutants]

cosmic-ray finds and makes the mutations: another operator, a number off by one, a negated condition, a removed
decorator. At most one is drawn from each place in the code. Each is tested in a new process, on the tests of its module
and then on those of the models, and is killed by the first test that fails, or when it takes a minute more than four
times as long as the unchanged tests. First the unchanged tests must pass. The programs that they compile are cached, so
that each mutant compiles only what it changes.

A row is added to OUT/mutants.jsonl, and OUT/mutants.md is rewritten, as each mutant ends. Mutants are tested in random
order: a run that is interrupted has tested a random share.
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
MODELS = "tests/models/test_*.py"  # tests of every mutant, after those of its module
PARTS = ("vf", "tests", "benchmarks", "configs", "pyproject.toml")  # parts of the project that the tests need
# Unrealistic mutations: types joined by another sign than |, bits of floats (a TypeError), identity of numbers.
UNREALISTIC = re.compile(
    r"BinaryOperator_(BitOr_|(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Bit|LShift|RShift))"
    r"|ComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is"
)
# These are no code either: the star before keyword arguments, and the numbers of a table.
SYNTAX = {("ReplaceBinaryOperator", "parameters"), ("NumberReplacer", "dictorsetmaker")}
# One core each, since the tests are small and several mutants are tested at a time. Every compiled program is cached.
SETTINGS = {
    "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}  # fmt: skip


class Mutation(NamedTuple):
    """One mutation: the `occurrence`-th that `operator` finds in `module`, a path relative to the project's root."""

    module: Path
    line: int
    operator: str
    occurrence: int


def matching(pattern: str) -> list[Path]:
    """Files with code, relative to the root. Exits where there is none, such as after a file was moved."""
    files = [path.relative_to(ROOT) for path in sorted(ROOT.glob(pattern)) if path.stat().st_size]
    return files or sys.exit(f"benchmarks/mutate.py knows {pattern}, and there is no such file")


def tests_of(module: Path) -> list[str]:
    """Test files by which a mutant of `module` is tested, in this order; `tests/` mirrors `vf/`."""
    mirror = Path("tests", *module.parts[1:-1], f"test_{module.name}")
    return list(dict.fromkeys(str(path) for path in (mirror, *matching(MODELS)) if (ROOT / path).exists()))


def mutations_by_place(module: Path) -> Iterator[list[Mutation]]:
    """For each place in `module`, the mutations that are possible there."""
    by_position: dict[tuple[int, int], list[Mutation]] = {}
    nodes = list(ast_nodes(get_ast_from_path(ROOT / module)))
    for name in operator_names():
        if UNREALISTIC.search(name) or get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        positions = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(positions):
            if (name.split("/")[1].split("_")[0], node.parent and node.parent.type) not in SYNTAX:
                by_position.setdefault(start, []).append(Mutation(module, start[0], name, occurrence))
    return iter(by_position.values())


def draw_mutations(number: int, seed: int) -> list[Mutation]:
    """At most `number` mutations that compile, each from another place."""
    everywhere = [place for pattern in MODULES for module in matching(pattern) for place in mutations_by_place(module)]
    draw = random.Random(seed)
    draw.shuffle(everywhere)
    compiling = (next(filter(_compiles, draw.sample(place, len(place))), None) for place in everywhere)
    return list(itertools.islice(filter(None, compiling), number))


def _compiles(mutation: Mutation) -> bool:
    code = mutating.mutate_code(
        (ROOT / mutation.module).read_text(), get_operator(mutation.operator)(), mutation.occurrence
    )
    try:
        compile(code, str(mutation.module), "exec")
    except SyntaxError:
        return False
    return True


class Copy:
    """A copy of the project, in which one mutant at a time is tested."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "compiled"
        self.cache.mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)

    def command(self, tests: Iterable[str]) -> str:
        """The command that runs `tests` up to the first failure."""
        settings = {**SETTINGS, "JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        words = ["env", "-C", str(self.folder), *(f"{name}={value}" for name, value in settings.items())]
        return shlex.join([*words, sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests])

    def passes(self, test: str, limit: float) -> float:
        """Seconds that `test` takes without a mutation. Exits where it fails."""
        start = time.monotonic()
        outcome, output = run_tests(self.command([test]), limit)
        if outcome != TestOutcome.SURVIVED:
            raise SystemExit(f"{test} fails without a mutant:\n{output}")
        return time.monotonic() - start

    def run_mutant(self, mutation: Mutation, tests: list[str], limit: float) -> dict[str, Any]:
        """Tests one mutant; returns its row. Exits where it cannot be tested."""
        start = time.monotonic()
        spec = MutationSpec(
            self.folder / mutation.module,
            mutation.operator,
            mutation.occurrence,
            (mutation.line, 0),
            (mutation.line, 1),
        )
        result = mutating.mutate_and_test([spec], self.command(tests), limit)
        output, diff = result.output or "", (result.diff or "").replace(f"{self.folder}/", "")
        if result.test_outcome == TestOutcome.INCOMPETENT or not diff:
            raise SystemExit(f"{mutation} could not be tried:\n{output}")
        outcome = "timeout" if output == "timeout" else str(result.test_outcome.value)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return {
            "module": str(mutation.module), "line": mutation.line, "operator": mutation.operator.split("/")[1],
            "outcome": outcome, "by": failed[1] if failed else "", "seconds": round(time.monotonic() - start, 1),
            "diff": "\n".join(line for line in diff.splitlines() if re.match(r"[-+](?!--|\+\+)", line)),
        }  # fmt: skip


def report(rows: list[dict[str, Any]], planned: int, seed: int) -> str:
    """A report in Markdown: counts by module, then the mutants that no test has killed."""
    count = Counter((row["module"], row["outcome"]) for row in rows)
    killed = sum(row["outcome"] != "survived" for row in rows)
    lines = [
        f"{len(rows)} of {planned} mutants (seed {seed}): {killed} killed, {100 * killed / max(len(rows), 1):.1f} %",
        "",
        "| module | mutants | killed | timeout | survived |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for module in sorted({row["module"] for row in rows}):
        counts = [count[module, outcome] for outcome in ("killed", "timeout", "survived")]
        lines.append(f"| `{module}` | {sum(counts)} | {' | '.join(map(str, counts))} |")
    for row in sorted(rows, key=lambda row: (row["module"], row["line"])):
        if row["outcome"] == "survived":
            lines += ["", f"`{row['module']}:{row['line']}` {row['operator']}", "```diff", row["diff"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tests the mutants, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=210, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--cores", type=int, default=2, help="mutants tested at a time (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=900, help="seconds for a file of unchanged tests (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants", help="default: %(default)s")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mutations = draw_mutations(args.mutants, args.seed)
    print(f"{len(mutations)} mutants", flush=True)
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

        tests = sorted({test for mutation in mutations for test in tests_of(mutation.module)})
        durations = dict(zip(tests, pool.map(lambda t: with_a_copy(Copy.passes, t, args.limit), tests), strict=True))
        print("\n".join(f"{seconds:6.1f} s  {test}" for test, seconds in durations.items()), flush=True)
        for one, other in itertools.permutations(copies, 2):
            shutil.copytree(one.cache, other.cache, dirs_exist_ok=True)

        def run_one(mutation: Mutation) -> dict[str, Any]:
            needed = tests_of(mutation.module)
            return with_a_copy(Copy.run_mutant, mutation, needed, 60 + 4 * sum(durations[test] for test in needed))

        rows: list[dict[str, Any]] = []
        with (args.out / "mutants.jsonl").open("w") as file:
            for done in as_completed([pool.submit(run_one, mutation) for mutation in mutations]):
                row = done.result()
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
                print("{seconds:6.1f} s  {outcome:8}  {module}:{line}  {operator}".format(**row), flush=True)
                (args.out / "mutants.md").write_text(report(rows, len(mutations), args.seed))
    print(report(rows, len(mutations), args.seed))


if __name__ == "__main__":
    main()
