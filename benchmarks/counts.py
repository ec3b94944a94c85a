"""What training and sampling at ADM's size cost, counted from their traces on any machine; nothing is run.

    python -m benchmarks.counts

The sizes are those of `benchmarks.accelerator`. A step of training cannot take less time than its FLOPs take at the
chip's published rate, nor than its bytes take: parameters, moments and average are read and written once, gradients are
written and read once, and so is what the forward pass keeps for the backward pass, if everything else were fused. What
attention keeps is left out of that: cuDNN's kernel keeps no weights, but XLA's own does, and has a column. FLOPs of
sampling are those of a step of denoising of one clip.
"""

from typing import Any

import jax

from benchmarks import sampling, tables, training
from benchmarks.measure import Sizes
from vf.config import build
from vf.plan import count, lower, roofline
from vf.plan.chips import CHIPS

CHIP_NAMES = ("H100", "H200")
SAMPLINGS = ((0.5, False), (1.0, False), (1.0, True), (2.0, False), (4.0, False))  # (share of frames, guided)


def floor(sizes: Sizes) -> str:
    """A table of the least time that a step of training takes."""
    rows = []
    for name, temporal in (("bare", ()), ("frames mixed", training.MIXING)):
        config = training.config_of(sizes, sizes.blocks, temporal, "bfloat16")
        subject = build.plan_subject(config, None, None)
        state = subject.state()
        counts = lower.counts(subject, state.params)
        for net in (config.base.net, config.residual.net):
            net.attention = ()
        without = build.plan_subject(config, None, None)
        kept = sizes.batch * lower.counts(without, without.state().params).stored_bytes
        parameters = _bytes(state) + _bytes(state.params)  # with moments, average and gradients
        step = roofline.Step(3 * counts.forward_flops * sizes.batch, 2 * (parameters + kept))
        for chip in CHIP_NAMES:
            least = roofline.estimate(step, CHIPS[chip])
            rows.append([
                name, f"{sum(count.parameters(state.params).values()) / 1e6:,.1f}", f"{step.flops / 1e12:,.2f}",
                f"{2 * parameters / 1e9:,.1f}", f"{2 * kept / 1e9:,.1f}",
                f"{2 * sizes.batch * counts.stored_bytes / 1e9:,.1f}", chip, f"{1e3 * least.compute_s:,.1f}",
                f"{1e3 * least.memory_s:,.1f}", f"{least.mfu:.0%} to {least.serial_mfu:.0%}",
            ])  # fmt: skip
    columns = (
        "a step of training", "M parameters", "TFLOP", "GB of parameters, moments, average and gradients", "GB kept",
        "with XLA's attention", "chip", "FLOPs, ms", "bytes, ms", "MFU at most, if they overlap or not",
    )  # fmt: skip
    return tables.table(columns, rows)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def sampled(sizes: Sizes) -> str:
    """A table of the FLOPs of sampling by each model, beside those of one network over all frames."""
    rows = []
    for share, guided in SAMPLINGS:
        frames, whole = sampling.frames_of(sizes, share), None
        for name in sampling.MODELS:
            config = sampling.config(sizes, name, frames, guided=guided, precision="float32")
            figures = sampling.counted(config, *sampling.traced(config)[:2])
            rows.append([
                f"{frames}{', guided' if guided else ''}", name, f"{figures['parameters'] / 1e6:,.1f}",
                f"{figures['gflop']:,.1f}", tables.number(figures["compiler_gflop"], ",.1f"),
                f"{1 - figures['gflop'] / whole:.1%}" if whole else "",
            ])  # fmt: skip
            whole = whole or figures["gflop"]
    columns = ("frames", "model", "M parameters", "GFLOP a step and clip", "of XLA", "fewer than VDM*")
    return tables.table(columns, rows)


def main() -> None:
    """Prints both tables."""
    print(f"{floor(Sizes())}\n\n{sampled(Sizes(batch=1, steps=2))}")


if __name__ == "__main__":
    main()
