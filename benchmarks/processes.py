"""Compares training by 1, 2 and 4 processes on one machine, with the same devices and batches: losses and speed.

    python -m benchmarks.processes [--steps=60]        (three short trainings of the demo's networks)

Every row is the same training on four CPU devices, in one process or in several by `launch/local.sh`. The losses of all
steps are compared with those of the first row.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
DEVICES = 4


def train(folder: Path, processes: int, steps: int) -> list[dict]:
    """Trains, and returns the logged numbers of each step."""
    flags = [
        "--config=configs/demo.py", f"--workdir={folder}", f"--config.train.steps={steps}",
        "--config.train.schedule=constant", "--config.train.warmup_steps=10", "--config.train.log_every=1",
        "--config.train.checkpoint_every=1000", "--config.train.sample_every=0", "--config.sample.count=4",
        "--config.sample.batch_size=4", "--config.sample.steps=2", "--config.eval.clips=4",
        "--config.eval.batch_size=4",
    ]  # fmt: skip
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // processes), "PYTHON": sys.executable,
    }  # fmt: skip
    command = ["launch/local.sh", str(processes), *flags]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        sys.exit(result.stdout)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def main() -> None:
    """Prints the table."""
    steps = next((int(word.split("=")[1]) for word in sys.argv[1:] if word.startswith("--steps=")), 60)
    print(f"| processes x devices | largest difference of a loss, relative | steps/s, median of {steps} |")
    print("| --- | --- | --- |")
    first: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as name:
        for processes in (1, 2, 4):
            reports = train(Path(name) / str(processes), processes, steps)
            losses = np.array([report["train/loss"] for report in reports])
            first = losses if first is None else first
            difference = np.abs(losses / first - 1).max()
            rate = np.median([report["train/steps_per_s"] for report in reports[5:]])
            print(f"| {processes} x {DEVICES // processes} | {difference:.1e} | {rate:.2f} |", flush=True)


if __name__ == "__main__":
    main()
