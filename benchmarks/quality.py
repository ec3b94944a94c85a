"""Scores of the demo's samples by solver, times, guidance and passes: which default is best.

    python -m benchmarks.quality runs/demo [--passes=10,20,50] [--settings=NAME,...] [--seeds=3]

Draws as many clips as the demo's config says, with each seed, from the run's averaged weights, and scores them as its
evaluation does. A pass is one run of the networks on all clips: a step of Heun's method takes two, one with guidance
takes two, and restarts take more steps, so that rows of a table cost the same.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import demo
from vf import rng
from vf.config import build
from vf.jobs import evaluator
from vf.jobs.evaluate import run_config
from vf.models.model import GUIDE
from vf.pretrained import export
from vf.training import programs, sharding
from vf.training.checkpoint import Checkpoints

SDE = {"sample.solver": "dpm", "sample.eta": 1.0}
ODE = {"sample.eta": 0.0, "sample.solver": "dpm"}
GUIDED = SDE | {"sample.guide": "1300", "sample.guidance_scale": 1.5}
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "ddim, eta 1": (SDE | {"sample.solver": "ddim"}, 1),
    "dpm, eta 1": (SDE, 1),
    "dpm, eta 1, log_snr": (SDE | {"sample.spacing": "log_snr"}, 1),
    "dpm, eta 1, karras": (SDE | {"sample.spacing": "karras"}, 1),
    "dpm, eta 1, trailing": (SDE | {"sample.spacing": "trailing"}, 1),
    "dpm, eta 1, quadratic": (SDE | {"sample.spacing": "quadratic"}, 1),
    "dpm, eta 0": (ODE, 1),
    "unipc": (ODE | {"sample.solver": "unipc"}, 1),
    "unipc, log_snr": (ODE | {"sample.solver": "unipc", "sample.spacing": "log_snr"}, 1),
    "heun, log_snr": (ODE | {"sample.solver": "heun", "sample.spacing": "log_snr"}, 2),
    "dpm, eta 0, restart (200, 600, 2)": (ODE | {"sample.restart": (200, 600, 2)}, 1.8),
    "dpm, eta 1, autoguidance 1.5": (GUIDED, 2),
    "dpm, eta 1, autoguidance 2.5": (GUIDED | {"sample.guidance_scale": 2.5}, 2),
    "dpm, eta 1, autoguidance 2.5, apg": (GUIDED | {"sample.guidance_scale": 2.5, "sample.guidance": "apg"}, 2),
    "dpm, eta 1, autoguidance 1.5, cfg_zero": (GUIDED | {"sample.guidance": "cfg_zero"}, 2),
    "dpm, eta 1, autoguidance 1.5, 200 to 800": (GUIDED | {"sample.guidance_interval": (200, 800)}, 2),
}  # fmt: skip
"""Fields of the config by name, and how many passes a step takes: of a restart, the 40 % of the steps between its times
are walked three times."""
CFG = SDE | {"sample.guidance_scale": 1.5}
CONDITIONAL: dict[str, tuple[dict[str, Any], float]] = {
    "dpm, eta 1, cfg 1.5": (CFG, 2),
    "dpm, eta 1, cfg 1.5, 200 to 800": (CFG | {"sample.guidance_interval": (200, 800)}, 2),
    "dpm, eta 1, cfg_pp 0.6": (CFG | {"sample.guidance_scale": 0.6, "sample.guidance": "cfg_pp"}, 2),
}
"""Further settings, for a run that was trained with `--config.model.condition_dropout=0.1`; by name alone."""
SCORES = ("found", "content_constant", "smooth", "moving", "valid")


def drawn(workdir: Path, fields: dict[str, Any], steps: int, seeds: int) -> tuple[list[dict[str, float]], float]:
    """The scores of each seed's samples, and the seconds of one drawing, compiled before."""
    config = demo.get_config()
    config.update_from_flattened_dict(fields | {"sample.steps": steps, "eval.checkpoint": "latest"})
    run = build.evaluate(config, workdir, export.of_run(workdir)).run
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        abstract = sharding.abstract_params(run.model.shapes(), run.mesh)
        params = dict(checkpoints.restore_params(abstract, which="ema", step=None))
    if run.guide:
        params |= {GUIDE + name: network for name, network in run.guide.read(abstract).items()}
    settings = run.evaluation
    real = evaluator.RealClips.read(settings.reference, settings.clips, run.seed).clips
    rows = evaluator.conditions(run.model, run.sample, real, len(run.class_names))
    sample = programs.sampling(run.model, run.mesh, run.sample.options)
    scores, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        clips = programs.in_batches(
            lambda batch, seed=seed: sample(params, batch, rng.as_argument(seed)), rows, run.sample.batch_size, run.mesh
        )
        seconds.append(time.perf_counter() - start)
        made = evaluator.scores(settings.scorers, real["video"], clips, run.model.base_frame, {})
        scores.append({score.name.removeprefix("sprites/"): score.value for score in made})
    return scores, min(seconds)


def line(name: str, passes: int, steps: int, scores: list[dict[str, float]], seconds: float) -> str:
    """A row of the table: means over the seeds, and the values of each where they decide."""
    means = {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}
    each = ", ".join(f"{s['valid']:.1%}" for s in scores)
    cells = [f"{means[key]:.1%}" for key in SCORES]
    cells[-1] += f" ({each})"
    return f"| {name} | {passes} | {steps} | {' | '.join(cells)} | {means['fd_random_conv3d']:.2f} | {seconds:.1f} |"


def main() -> None:
    """Prints a table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--passes", default="10,20,50", help="default: %(default)s")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="names, between semicolons (default: SETTINGS)")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", demo.get_config().mesh.cpu_devices)
    trained = run_config(args.workdir)["train"]["steps"]
    print(
        f"{args.workdir}, {trained} steps, {args.seeds} seeds, {jax.devices()[0].device_kind}, jax {jax.__version__}\n"
    )
    columns = ("setting", "passes", "steps", *SCORES, "fd_random_conv3d", "s")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for passes in (int(number) for number in args.passes.split(",")):
        for name in args.settings.split(";"):
            fields, cost = {**SETTINGS, **CONDITIONAL}[name]
            steps = round(passes / cost)
            print(line(name, passes, steps, *drawn(args.workdir, fields, steps, args.seeds)), flush=True)


if __name__ == "__main__":
    main()
