"""How long the program of a training step is, and what it takes to get to the first one.

    python -m benchmarks.program [--rows=demo,smoke,adm] [--compile]

Counts lines of StableHLO as lowered on this machine, with parameters in stacks (as on accelerators) and each by itself
(as on CPUs); nothing is run but the draw of the first state. `adm` is the row `training-mixed` of
`benchmarks.accelerator`: ADM's network at 64 x 64 with a quarter of it beside it, 8 clips of 16 frames, bfloat16. With
--compile XLA compiles the step for one device of this machine; the time is that of all its threads together, which
other jobs disturb less.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import base, demo, ucf101
from vf.config import build
from vf.plan import lower
from vf.training import programs, stacks
from vf.training import state as states
from vf.training import step as steps

RESIDUAL = {"width_mult": (1, 2, 2, 3), "num_res_blocks": 2}  # of `configs/ucf101.py:adm`
COLUMNS = (
    "parameter arrays", "state arrays", "lines", "loss and gradient", "update", "first state, s", "lower, s",
    "compile, CPU s",
)  # fmt: skip


def adm(
    width: int = 192, residual: int = 128, size: int = 64, frames: int = 16, batch: int = 8,
    temporal: tuple[str, ...] = ("conv", "attention"), precision: str = "bfloat16",
) -> ConfigDict:  # fmt: skip
    """A base network of `width` (ADM's unless given) and a residual network of `residual`, by the bare equations."""
    config = ucf101.get_config()
    config.model.context = "none"
    config.model.dtype = precision
    config.base.net = base.network(width=width)
    config.residual.net = base.network(width=residual, temporal=temporal, **RESIDUAL)
    config.noise.lam = (0.5,)
    config.data.update({"frames": frames, "size": size, "source": ""})
    config.train.batch_size = config.sample.batch_size = config.eval.batch_size = batch
    return config


CONFIGS: dict[str, Callable[[], ConfigDict]] = {
    "demo": demo.get_config, "smoke": lambda: ucf101.get_config("smoke"), "adm": adm,
}  # fmt: skip


def lines(lowered: Any) -> int:
    """Lines of a lowered program."""
    return int(lowered.as_text().count("\n"))


def row(config: ConfigDict, *, stacked: bool, compiled: bool) -> list[str]:
    """The figures of `COLUMNS`."""
    mesh = build.mesh(config)
    subject = build.plan_subject(config, mesh, None)
    began = time.perf_counter()
    create, abstract = programs.first_state(
        subject.model, subject.tx, mesh, subject.seed, subject.param_dtype, stacked=stacked
    )
    jax.block_until_ready(create())
    first = time.perf_counter() - began
    batch = lower.batch_shapes(subject, subject.batch_size, mesh)
    update = programs.update(subject.model, mesh, abstract, accumulate=1)
    settings = programs.settings(subject.tx, subject.seed, subject.ema_decay)
    began = time.perf_counter()
    step = update.lower(abstract, batch, settings)
    lowering = time.perf_counter() - began
    loss = functools.partial(steps.batch_loss, model=subject.model, seed=subject.seed)
    gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(stacks.unstack(abstract.params), batch)
    alone = jax.jit(lambda state, grads, settings: states.update(state, grads, settings.tx, settings.ema_decay))
    cpu = time.process_time()
    if compiled:
        step.compile()
    cpu = time.process_time() - cpu
    arrays = [len(jax.tree.leaves(tree)) for tree in (abstract.params, abstract)]
    counts = [*arrays, *map(lines, (step, gradient, alone.lower(abstract, abstract.ema, settings)))]
    return [*(f"{n:,}" for n in counts), f"{first:.1f}", f"{lowering:.1f}", f"{cpu:.1f}" if compiled else ""]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default=",".join(CONFIGS), help="default: %(default)s")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"| | {' | '.join(COLUMNS)} |\n| --- |" + " --- |" * len(COLUMNS))
    for name in args.rows.split(","):
        for stacked in (False, True):
            config = CONFIGS[name]()
            config.mesh.cpu_devices = 0
            values = row(config, stacked=stacked, compiled=args.compile)
            print(f"| {name}, {'in stacks' if stacked else 'each by itself'} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
