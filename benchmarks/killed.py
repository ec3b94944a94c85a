"""A large sampling job of the demo that is killed, and goes on: what of it is drawn again, and what is the same.

python -m benchmarks.killed RUN --count=10000 --steps=10

RUN is a run of configs/demo.py, which is copied and not written into.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vf.activity import ACTIVITY
from vf.video import load_npz


def command(workdir: Path, count: int, steps: int, *more: str) -> list[str]:
    """The sampling job of `count` clips."""
    return [
        sys.executable, "-m", "vf.main", "--config=configs/demo.py", f"--workdir={workdir}", "--mode=sample",
        f"--config.sample.count={count}", f"--config.sample.steps={steps}", *more,
    ]  # fmt: skip


def shards(workdir: Path) -> dict[str, int]:
    """{name: time of the last change, in ns} of the files of clips of the run's one large drawing."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(workdir.glob("samples/step_*/clips/*.npz"))}


def killed(workdir: Path, count: int, steps: int, after: int) -> float:
    """Starts the job, and kills it half a shard after its shard number `after`; returns the seconds that it had."""
    began = time.monotonic()
    process = subprocess.Popen(command(workdir, count, steps))
    seen = [began]
    while len(seen) <= after or time.monotonic() < seen[-1] + (seen[-1] - seen[-2]) / 2:
        if process.poll() is not None:
            raise SystemExit(f"the job ended by itself, with status {process.returncode}: take more clips")
        if len(shards(workdir)) >= len(seen):
            seen.append(time.monotonic())
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.monotonic() - began


def alone(workdir: Path, clips: np.ndarray, first: int, steps: int, *more: str) -> str:
    """How clips from number `first` on differ from those that a job draws which draws no others."""
    before = set(workdir.glob("samples/step_*"))
    given = (f"--config.sample.first={first}", *more)
    subprocess.run(command(workdir, len(clips), steps, *given), check=True)
    (folder,) = set(workdir.glob("samples/step_*")) - before
    off = np.abs(load_npz(folder / "clips.npz")["clips"].astype(int) - clips)
    return f"{(off > 0).mean():.4%} of the pixels differ, by {off.max()} of 255 at most"


def main() -> None:
    """Prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--count", type=int, default=10000, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--after", type=int, default=2, help="shards before the kill (default: %(default)s)")
    args = parser.parse_args()
    ACTIVITY.speaks = False  # but the jobs
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        shutil.copytree(args.workdir, workdir, ignore=shutil.ignore_patterns("samples"))
        seconds = killed(workdir, args.count, args.steps, args.after)
        before = shards(workdir)
        began = time.monotonic()
        subprocess.run(command(workdir, args.count, args.steps), check=True)
        print(f"killed after {seconds:.0f} s with {len(before)} shards; then {time.monotonic() - began:.0f} s")
        after = shards(workdir)
        again = [name for name, changed in before.items() if after.get(name) != changed]
        print(f"shards that were whole and were written again, or are gone: {again or 'none'}")
        found = [load_npz(path) for path in sorted(workdir.glob("samples/step_*/clips/*.npz"))]
        numbers = np.concatenate([shard["index"] for shard in found])
        clips = np.concatenate([shard["clips"] for shard in found])
        once = np.array_equal(numbers, np.arange(args.count))
        different = len({clip.tobytes() for clip in clips})
        print(f"{len(found)} shards of {[len(shard['clips']) for shard in found]} clips; numbers 0 to {args.count - 1}")
        print(f"each once: {once}; {different} different clips")
        for count, first in ((1, 0), (1, args.count - 1), (100, args.count // 2 - 50)):
            some = clips[first : first + count]
            print(f"{count} alone, from number {first} on: {alone(workdir, some, first, args.steps)}")
        some, size = clips[:100], "--config.sample.batch_size=50"
        print(f"100 alone, in batches of 50: {alone(workdir, some, 0, args.steps, size)}")


if __name__ == "__main__":
    main()
