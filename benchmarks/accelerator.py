"""What an accelerator can tell in ten minutes: rows of training, sampling and FVD in order of worth.

    python -m benchmarks.accelerator [--minutes=10] [--rows=NAME,...] [--out=runs/accelerator.json] [--toy]
    python -m benchmarks.accelerator --table=runs/accelerator.json

Each row is measured in a process of its own, with a limit on its time. It is written to the JSON file and printed when
it is done; one that fails or is ended keeps the figures that it has reported. A row that no longer fits is skipped:
name it by `--rows` another time, with the same file. `--table` prints the tables of RESULTS.md from the file. All sizes
(`benchmarks.measure.Sizes`) are flags, as `--width=128`; `--toy` sets small ones, at which everything runs on a CPU.

Rows share a new cache of compiled programs and of XLA's choices of kernels, so that a row compiles less than it would
by itself where one before it has layers of the same shapes. `training-1-warm` is `training-1` once more: a warm start.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import fvd, measure, sampling, tables, training
from benchmarks.measure import TOY, Report, Sizes, Skipped
from vf.main import cache_programs
from vf.video import replacing


class Row(NamedTuple):
    """What is measured, and within how many seconds where the whole has ten minutes or less."""

    work: Callable[[Sizes, Report], None]
    limit_s: float


def _training(**options: Any) -> Callable[[Sizes, Report], None]:
    return functools.partial(training.row, **options)


def _sampling(**options: Any) -> Callable[[Sizes, Report], None]:
    return functools.partial(sampling.row, **options)


ROWS: dict[str, Row] = {
    "product": Row(measure.products, 60),
    "training-1": Row(_training(blocks=1, stacked=True), 150),
    "training-1-apart": Row(_training(blocks=1, stacked=False), 150),
    "training": Row(_training(), 240),
    "fvd": Row(fvd.ours, 120),
    "sampling": Row(sampling.row, 240),
    "training-torch": Row(training.in_pytorch, 180),
    "training-mixed": Row(_training(temporal=training.MIXING), 240),
    "training-1-warm": Row(_training(blocks=1, stacked=True), 90),
    "fvd-torch": Row(fvd.in_pytorch, 90),
    "sampling-guided": Row(_sampling(guided=True), 240),
    "sampling-0.5x": Row(_sampling(share=0.5), 180),
    "sampling-2x": Row(_sampling(share=2.0), 180),
    "sampling-4x": Row(_sampling(share=4.0), 180),
    "fvd-distance": Row(fvd.without_network, 60),
}
"""Most worth first. `training-1` has one residual block a level: the kernels of the whole network, a third of its
program; its parameters are in stacks, and in `apart` each by itself. `mixed`: with layers over frames. `0.5x`: with
half as many frames."""


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a process comes to that prints its figures as lines of JSON, within `limit_s` seconds.

    Returns the record of a row: `status` (done, skipped, failed or out of time), `note` (why), `seconds`, and
    `figures`, those of later lines in place of earlier ones'. All processes that it has started end with it.
    """
    with tempfile.TemporaryDirectory(prefix="vf-") as folder:
        printed, log = Path(folder, "figures"), Path(folder, "log")
        with measure.Stopwatch() as watch, printed.open("w") as out, log.open("w") as errors:
            process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment, start_new_session=True)
            code = None
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(limit_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        figures: dict[str, Any] = {}
        for line in printed.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # libraries print too
                figures |= parsed if isinstance(parsed := json.loads(line), dict) else {}
        lines = log.read_text(errors="replace").split("\n")
    note = figures.pop("skipped", "")
    status = "skipped" if note else "done"
    if code is None:
        status, note = "out of time", f"ended after {limit_s:.0f} s"
    elif code:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        status, note = "failed", f"status {code}: {last[:300]}"
    return {"status": status, "note": note, "seconds": watch.seconds, "figures": figures}


def measured(name: str, sizes: Sizes) -> None:
    """Measures a row in this process and prints its figures, one line of JSON for each report."""

    def report(**figures: Any) -> None:
        print(json.dumps(figures), flush=True)

    cache_programs("")  # where the environment names a folder, as jobs do
    try:
        ROWS[name].work(sizes, report)
    except Skipped as missing:
        report(skipped=str(missing))


def opened(path: Path, sizes: Sizes) -> dict[str, Any]:
    """What the file holds, or the beginning of a new one. Exits where it holds figures of other sizes."""
    if not path.exists():
        return {"sizes": sizes._asdict(), "rows": {}}
    held = json.loads(path.read_text())
    if held["sizes"] != sizes._asdict():
        sys.exit(f"{path} holds figures of other sizes, {held['sizes']}: name another file with --out")
    return held


def drive(names: Sequence[str], sizes: Sizes, minutes: float, path: Path) -> None:
    """Measures rows one after the other, for `minutes` altogether, and keeps their records in the file."""
    end = time.monotonic() + 60 * minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    results = opened(path, sizes)
    flags = [f"--{field}={value}" for field, value in sizes._asdict().items()]
    with tempfile.TemporaryDirectory(prefix="vf-") as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        for name in names:
            left, limit = end - time.monotonic(), ROWS[name].limit_s * max(1.0, minutes / 10)
            if left < limit / 4:
                note = f"{max(0.0, left):.0f} s are left, and it may take {limit:.0f} s"
                record: dict[str, Any] = {"status": "skipped", "note": note, "seconds": 0.0, "figures": {}}
            else:
                command = [sys.executable, "-m", "benchmarks.accelerator", f"--row={name}", *flags]
                record = run(command, min(limit, left), environment)
            if record["figures"] or name not in results["rows"]:  # what was measured before is not lost
                results["rows"][name] = record
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(results, indent=1))
            print(tables.line(name, record), flush=True)


def main() -> None:
    """Measures rows, or prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="limit on all (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator.json"), help="default: %(default)s")
    parser.add_argument("--table", type=Path, help="print the tables of this file, and measure nothing")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--row", choices=ROWS, help="measure this row in this process, and print its figures as JSON")
    for field, value in Sizes()._asdict().items():
        parser.add_argument(f"--{field}", type=int, help=f"default: {value}; toy: {TOY._asdict()[field]}")
    args = parser.parse_args()
    base = TOY if args.toy else Sizes()
    sizes = base._replace(**{name: vars(args)[name] for name in Sizes._fields if vars(args)[name] is not None})
    if args.table:
        print(tables.markdown(json.loads(args.table.read_text())))
    elif args.row:
        measured(args.row, sizes)
    else:
        names = args.rows.split(",")
        if unknown := [name for name in names if name not in ROWS]:
            parser.error(f"unknown row {unknown[0]!r}: known are {', '.join(ROWS)}")
        drive(names, sizes, args.minutes, args.out)


if __name__ == "__main__":
    main()
