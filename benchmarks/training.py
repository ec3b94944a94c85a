"""Rows of training: VideoFusion's step, and the same in PyTorch.

Both train a base network of ADM's kind on the base frame and a residual network on all frames, by the paper's bare
equations, with dropout, clipping, AdamW and an average of the parameters. PyTorch's networks are diffusers' and have as
many parameters; it has none that mixes frames as ours does, so that ours leaves that out where the two are compared.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import kernels, measure
from benchmarks.measure import Report, Sizes, Skipped
from benchmarks.program import adm
from vf.config import build
from vf.plan import lower
from vf.training import programs, sharding

MIXING = ("conv", "attention")


def config_of(sizes: Sizes, blocks: int, temporal: tuple[str, ...], precision: str) -> ConfigDict:
    """A base network of ADM's kind with at most `blocks` residual blocks a level, and a residual network beside it."""
    config = adm(sizes.width, sizes.residual, sizes.size, sizes.frames, sizes.batch, temporal, precision)
    for net in (config.base.net, config.residual.net):
        net.width_mult = net.width_mult[: sizes.levels]
        net.attention = tuple(factor for factor in net.attention if factor < 2**sizes.levels)
        net.num_res_blocks = min(blocks, net.num_res_blocks)
    return config


def clips_of(sizes: Sizes) -> np.ndarray:
    """Random clips, uint8 `b f h w 3`."""
    shape = (sizes.batch, sizes.frames, sizes.size, sizes.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def row(
    sizes: Sizes, report: Report, *, blocks: int | None = None, temporal: tuple[str, ...] = (),
    stacked: bool | None = None,
) -> None:  # fmt: skip
    """Row: seconds of each phase until the first step, then time, FLOPs, memory and kernels of a step.

    blocks: residual blocks a level at most; default those of the sizes. temporal: how frames are mixed. stacked:
    whether the optimizer works on stacks of parameters of one shape; default as in a run, on accelerators.
    """
    phases = measure.Phases(report)
    report(**measure.machine(), clips=sizes.batch, frames=sizes.frames)
    phases.end("start")
    config = config_of(sizes, blocks or sizes.blocks, temporal, measure.precision())
    mesh = build.mesh(config, "train")
    subject = build.plan_subject(config, mesh, None)
    phases.end("model")
    create, abstract = programs.first_state(
        subject.model, subject.tx, mesh, subject.seed, subject.param_dtype, stacked=stacked
    )
    state = jax.block_until_ready(create())
    phases.end("first state")
    update = programs.update(subject.model, mesh, abstract, accumulate=1)
    settings = programs.settings(subject.tx, subject.seed, subject.ema_decay)
    clips = clips_of(sizes)
    fields = {"video": clips, "label": np.zeros(len(clips), np.int32), "index": np.arange(len(clips), dtype=np.uint32)}
    batch = sharding.put_batch(fields, mesh)
    lowered = update.lower(abstract, batch, settings)
    phases.end("lowering")
    compiled = lowered.compile()
    phases.end("compiling")

    def step() -> None:
        nonlocal state  # the state given is used up
        state, _ = jax.block_until_ready(compiled(state, batch, settings))

    step()
    phases.end("first step")
    report(
        step_s=measure.seconds({"": step}, 2 * sizes.repeats)[""],
        parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
        program_gib=measure.program_gib(compiled), peak_gib=measure.peak_gib(),
    )  # fmt: skip
    counts = lower.counts(subject, subject.model.shapes())
    report(
        useful_gflop=3 * counts.forward_flops * sizes.batch / 1e9,
        compiler_gflop=measure.scaled(measure.costs(lowered).get("flops"), 1e-9),
        compiler_gb=measure.scaled(measure.costs(compiled).get("bytes accessed"), 1e-9),
    )
    report(**kernels.profiled(step, compiled.as_text()))


def in_pytorch(sizes: Sizes, report: Report) -> None:
    """Row: the same step in PyTorch, channels last and compiled. Raises Skipped where a library is missing."""
    try:
        from benchmarks import torch_training
    except ModuleNotFoundError as error:
        raise Skipped(f"{error.name} is not installed") from error
    torch_training.row(sizes, config_of(sizes, sizes.blocks, (), "float32"), clips_of(sizes), report)
