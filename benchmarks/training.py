"""How fast VideoFusion trains, against the same training in PyTorch in the same run.

    python -m benchmarks.training [--width=192] [--residual=128] [--size=64] [--frames=16] [--batch=8] [--repeats=10]
                                  [--precision=float32] [--remat=none] [--no-compile]

Both train a base network of `width` (ADM's at 64 x 64 unless given; widths are multiples of 64) on the base frame,
and a residual network of `residual` (about a quarter of its parameters) on all frames, by the paper's bare equations,
with dropout, clipping, AdamW and an average of the parameters. PyTorch's networks are diffusers' UNet2DModel with as
many parameters, channels last, eagerly and compiled: it has no network that mixes frames as ours does, so that ours
leaves that out, and a row of its own says what it costs. All train on the same device in turn, and the best of
`repeats` counts. The precision is bfloat16 on a GPU (by autocast in PyTorch; parameters are float32 in both) and
float32 on a CPU unless given. FLOPs are those of products and convolutions, backward pass included, nothing computed
again. The floor is the faster product of two large matrices of both libraries.
"""

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.program import RESIDUAL, adm
from benchmarks.unet import SIDE, Work, both_start, products, runnable, seconds, synchronise
from vf.config import build
from vf.plan import lower
from vf.training import programs, sharding

LAMBDA = 0.5
MIXING = ("conv", "attention")


class Training(NamedTuple):
    """One way to train: a step as a function of nothing, and its figures."""

    step: Work
    parameters: int
    flops: float  # of a clip, forward and backward
    memory: Callable[[], float]  # bytes at most, once it has run


def ours(args: argparse.Namespace, clips: np.ndarray, precision: str, temporal: tuple[str, ...]) -> Training:
    """vf's own step, compiled."""
    config = adm(args.width, args.residual, args.size, args.frames, args.batch, temporal, precision)
    config.model.remat = args.remat
    mesh = build.mesh(config, "train")
    subject = build.plan_subject(config, mesh, None)
    create, abstract = programs.first_state(subject.model, subject.tx, mesh, 0, subject.param_dtype)
    update = programs.update(subject.model, subject.tx, mesh, abstract, seed=0, ema_decay=0.9999, accumulate=1)
    rows = {"video": clips, "label": np.zeros(len(clips), np.int32), "index": np.arange(len(clips), dtype=np.uint32)}
    batch = sharding.put_batch(rows, mesh)
    compiled, state = update.lower(abstract, batch).compile(), [create()]

    def step() -> None:
        state[0], _ = jax.block_until_ready(compiled(state[0], batch))  # the state given is used up

    def memory() -> float:
        plan = compiled.memory_analysis()
        held = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes
        return held - plan.alias_size_in_bytes

    shapes = subject.state()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    return Training(step, parameters, 3 * lower.counts(subject, shapes.params).forward_flops, memory)


def network(width: int, mult: tuple[int, ...], blocks: int, size: int, *, indexed: bool) -> UNet2DModel:
    """ADM's network in diffusers; `indexed` ones are told a number beside the step, here the frame's."""
    return UNet2DModel(
        sample_size=size,
        layers_per_block=blocks,
        class_embed_type="timestep" if indexed else None,
        block_out_channels=tuple(width * m for m in mult),
        attention_head_dim=64,
        dropout=0.1,
        down_block_types=("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * (len(mult) - 1)),
        up_block_types=(*("AttnUpBlock2D",) * (len(mult) - 1), "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        upsample_type="resnet",
        downsample_type="resnet",
    )


class Both(torch.nn.Module):
    """Base and residual network; its value is the training loss."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.base = network(args.width, (1, 2, 3, 4), 3, args.size, indexed=False)
        self.residual = network(
            args.residual, RESIDUAL["width_mult"], RESIDUAL["num_res_blocks"], args.size, indexed=True
        )
        angle = torch.linspace(0, 1, 1000, dtype=torch.float64) * torch.pi / 2
        self.register_buffer("alpha", angle.cos().float(), persistent=False)
        self.register_buffer("sigma", angle.sin().float(), persistent=False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """clips: uint8 `b f c h w`."""
        n, f = clips.shape[:2]
        c = f // 2 - 1
        x = clips.float() / 127.5 - 1
        t = torch.randint(0, 1000, (n,), device=x.device)
        alpha, sigma = (scale[t][:, None, None, None] for scale in (self.alpha, self.sigma))
        b, r = torch.randn_like(x[:, 0]), torch.randn_like(x)
        lam = torch.full((f, 1, 1, 1), LAMBDA, device=x.device)
        lam[c] = 1
        eps = lam.sqrt() * b[:, None] + (1 - lam).sqrt() * r
        z = alpha[:, None] * x + sigma[:, None] * eps
        b_hat = self.base(z[:, c], t, return_dict=False)[0].float()
        known = b_hat.detach()[:, None]  # the stop-gradient that protects the base
        inputs = (z - sigma[:, None] * lam.sqrt() * known).flatten(0, 1)
        index = torch.arange(f, device=x.device).repeat(n)
        r_hat = self.residual(inputs, t.repeat_interleave(f), class_labels=index, return_dict=False)[0].float()
        eps_hat = lam.sqrt() * known + (1 - lam).sqrt() * r_hat.unflatten(0, (n, f))
        return (b_hat - b).square().mean() + (eps_hat - eps).square().mean() * f / (f - 1)


def theirs(args: argparse.Namespace, clips: np.ndarray, device: str, precision: str, *, compiled: bool) -> Training:
    """The same in PyTorch, channels last."""
    torch.manual_seed(0)
    nets = Both(args).to(device, memory_format=torch.channels_last)
    average = [p.detach().clone() for p in nets.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": nets.base.parameters(), "lr": 1e-5}, {"params": nets.residual.parameters(), "lr": 1e-4}],
        weight_decay=0.0, fused=True,
    )  # fmt: skip
    data = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).to(device)
    loss_of = torch.compile(nets) if compiled else nets
    peak = [0.0]

    def own() -> int:
        """Bytes kept from step to step."""
        moments = [v for kept in optimizer.state.values() for v in kept.values()]
        return sum(v.nbytes for v in (*nets.parameters(), *average, *moments, data))

    def step() -> None:
        others = torch.cuda.memory_allocated() - own() if device == "cuda" else 0  # of other rows
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(data)
        loss.backward()
        for net in (nets.base, nets.residual):
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(nets.parameters()), 1e-4)
        synchronise()
        if device == "cuda":
            peak[0] = torch.cuda.max_memory_allocated() - others

    return Training(step, sum(p.numel() for p in nets.parameters()), gradient_flops(args), lambda: peak[0])


def gradient_flops(args: argparse.Namespace) -> float:
    """FLOPs of a clip, as PyTorch counts them, without any work."""
    with torch.device("meta"):
        nets, clips = Both(args), torch.empty(1, args.frames, 3, args.size, args.size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            nets(clips).backward()
    return float(counter.get_total_flops())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    for name, value in (("width", 192), ("residual", 128), ("size", 64), ("frames", 16), ("batch", 8), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", choices=("none", "dots", "blocks"), default="none")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="without PyTorch's compiler")
    args = parser.parse_args()
    kind, device, precision = both_start(args.precision)

    shape = (args.batch, args.frames, args.size, args.size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows: dict[str, Training] = {}
    for name, temporal in (("vf", ()), ("vf, frames mixed", MIXING)):
        rows[name] = ours(args, clips, precision, temporal)
    for name, compiled in (("PyTorch", False), ("PyTorch, compiled", True)):
        if args.compiled or not compiled:
            rows[name] = theirs(args, clips, device, precision, compiled=compiled)
    if rows["vf"].parameters != rows["PyTorch"].parameters:
        raise SystemExit(
            f"the networks differ: {rows['vf'].parameters:,} parameters against {rows['PyTorch'].parameters:,}"
        )
    times = seconds(runnable({name: row.step for name, row in rows.items()}), args.repeats)
    floor = seconds(runnable(products(device, precision)), args.repeats)
    peak = 2 * SIDE**3 / min(floor.values())
    print(
        f"{kind.device_kind}, {os.cpu_count()} cores, {precision}, {args.batch} clips of {args.frames} x {args.size} x "
        f"{args.size}, remat {args.remat}; the product of two matrices: {peak / 1e12:.3f} TFLOP/s"
    )
    columns = ("M parameters", "GFLOP a clip", "ms", "clips/s", "TFLOP/s", "of the product's", "time over vf's", "GiB")
    print(f"\n| | {' | '.join(columns)} |\n| --- |" + " --- |" * len(columns))
    for name, time in times.items():
        row, rate = rows[name], args.batch / time
        memory = row.memory() / 2**30
        print(
            f"| {name} | {row.parameters / 1e6:.1f} | {row.flops / 1e9:,.1f} | {1e3 * time:,.1f} | {rate:.3f} | "
            f"{rate * row.flops / 1e12:.3f} | {rate * row.flops / peak:.1%} | {time / times['vf']:.2f} | "
            f"{f'{memory:.2f}' if memory else 'not known'} |"
        )


if __name__ == "__main__":
    main()
