"""Decomposed diffusion against one-network baselines, and its three contexts, on the sprites at equal training FLOPs.

    python -m benchmarks.compare --out=DIR [--share=1] [--only=NAME]

Every row is a run of `vf.main` on configs/demo.py with a few fields changed, as many steps as the FLOPs of `share` of
the demo's steps allow (counted before the compiler rewrites them), and the same seed. Prints a Markdown table; the runs
stay in DIR.
"""

import argparse
import importlib.util
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vf.config import build, data, models
from vf.data import pipeline
from vf.training import programs, sharding
from vf.training import step as steps

CONFIG = "configs/demo.py"
ONE_NETWORK: dict[str, Any] = {
    "model.predictor": "one_network", "model.context": "none",
    "base.net.temporal": ("conv", "attention"), "base.net.temporal_attention_at": (1,),
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "base + residual, context base_frame (ours)": {},
    "base + residual, context embedding (the paper's)": {"model.context": "embedding"},
    "base + residual, no context": {"model.context": "none"},
    "base + residual, lambda 0, no context: disconnected": {"model.context": "none", "noise.lam": (0.0,)},
    "one network, independent noise (VDM*)": {**ONE_NETWORK, "noise.prior": "independent"},
    "the same, parameters as base + residual": {
        **ONE_NETWORK, "noise.prior": "independent", "base.net.width": 88, "base.net.head_dim": 8
    },
    "one network, mixed noise (PYoCo)": {**ONE_NETWORK, "noise.prior": "mixed"},
    "one network, progressive noise (PYoCo)": {**ONE_NETWORK, "noise.prior": "progressive"},
}  # fmt: skip
SCORES = (
    "sprites/found", "sprites/unexplained", "sprites/colour_constant", "sprites/background_constant",
    "sprites/shape_constant", "sprites/smooth", "sprites/moving", "sprites/path_error", "sprites/base_frame_gap",
    "fd_random_conv3d",
)  # fmt: skip


def load(path: str) -> ConfigDict:
    """The config that the file at `path` describes."""
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def config_with(fields: dict[str, Any]) -> ConfigDict:
    """The demo's config with `fields` set."""
    config = load(CONFIG)
    config.update_from_flattened_dict(fields)
    return config


def cost(config: ConfigDict) -> tuple[int, float]:
    """(parameters, FLOPs of one training step), counted without compiling."""
    source = data.source(config)
    model, mesh = models.model(config, source), build.mesh(config)
    tx = build.optimizer(config)
    _, abstract = programs.first_state(model, tx, mesh, config.seed)
    size = config.train.batch_size
    batch = sharding.put_batch(next(pipeline.batches(source, seed=0, batch_size=size, threads=0)), mesh)

    def update(state: Any, batch: Any) -> Any:
        return steps.train_step(state, batch, model=model, tx=tx, seed=0, ema_decay=0.999)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    return parameters, jax.jit(update).lower(abstract, batch).cost_analysis()["flops"]


def train(fields: dict[str, Any], steps: int, workdir: Path) -> dict[str, float]:
    """Trains with `fields`, unless `workdir` has that run already; returns its scores."""
    overrides = {
        **fields,
        "sample.steps": 50,
        "train.steps": steps,
        "train.checkpoint_every": steps,
        "train.sample_every": 0,
    }
    command = [sys.executable, "-m", "vf.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    print(shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["score"]: line["value"] for line in lines if "score" in line}


def main() -> None:
    """Trains every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the demo's training FLOPs (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose name contains this (default: all)")
    args = parser.parse_args()
    build.cpu_devices(load(CONFIG))
    _, demo_flops = cost(load(CONFIG))
    budget = args.share * load(CONFIG).train.steps * demo_flops
    print("| model | parameters, M | GFLOP a step | steps |", " | ".join(SCORES), "|")
    print("| --- " * (4 + len(SCORES)) + "|", flush=True)
    for number, (name, fields) in zip(itertools.count(), ROWS.items(), strict=False):
        if args.only not in name:
            continue
        parameters, flops = cost(config_with(fields))
        number_of_steps = round(budget / flops)
        scores = train(fields, number_of_steps, args.out / f"{number}")
        cells = [
            f"{parameters / 1e6:.2f}",
            f"{flops / 1e9:.2f}",
            str(number_of_steps),
            *(f"{scores[key]:.3g}" for key in SCORES),
        ]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
