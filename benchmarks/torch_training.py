"""The training step of `benchmarks.training` in PyTorch, and diffusers' networks of ADM's kind."""

import os
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.measure import Report, Sizes

LAMBDA = 0.5


def network(width: int, mult: tuple[int, ...], blocks: int, size: int, **fields: Any) -> UNet2DModel:
    """ADM's network in diffusers."""
    return UNet2DModel(
        sample_size=size,
        layers_per_block=blocks,
        block_out_channels=tuple(width * m for m in mult),
        attention_head_dim=64,
        down_block_types=("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * (len(mult) - 1)),
        up_block_types=(*("AttnUpBlock2D",) * (len(mult) - 1), "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        upsample_type="resnet",
        downsample_type="resnet",
        **fields,
    )


class Both(torch.nn.Module):
    """Base and residual network; its value is the training loss."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()

        def made(net: ConfigDict, **fields: Any) -> UNet2DModel:
            return network(net.width, net.width_mult, net.num_res_blocks, config.data.size, dropout=0.1, **fields)

        self.base = made(config.base.net)
        self.residual = made(config.residual.net, class_embed_type="timestep")  # is told the frame's number
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


def row(sizes: Sizes, config: ConfigDict, clips: np.ndarray, report: Report) -> None:
    """Row: time and memory of a step on clips uint8 `b f h w 3`, channels last.

    On a GPU compiled, and in bfloat16 by autocast; on a CPU in float32 and not compiled, for that takes minutes there.
    """
    phases = measure.Phases(report)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")  # TF32, jax's default on GPUs too
    report(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu", cores=os.cpu_count(),
        torch=torch.__version__, precision="bfloat16" if device == "cuda" else "float32",
        compiled=device == "cuda", clips=sizes.batch, frames=sizes.frames,
    )  # fmt: skip
    phases.end("start")
    torch.manual_seed(0)
    nets = Both(config).to(device, memory_format=torch.channels_last)
    parameters = list(nets.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        [{"params": nets.base.parameters(), "lr": 1e-5}, {"params": nets.residual.parameters(), "lr": 1e-4}],
        weight_decay=0.0, fused=True,
    )  # fmt: skip
    data = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).to(device)
    phases.end("first state")
    report(parameters=sum(p.numel() for p in parameters))
    loss_of = torch.compile(nets) if device == "cuda" else nets

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(data)
        loss.backward()
        for net in (nets.base, nets.residual):
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, parameters, 1e-4)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    phases.end("compiling")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # which compiling raises
    report(step_s=measure.seconds({"": step}, 2 * sizes.repeats)[""])
    if device == "cuda":
        report(program_gib=torch.cuda.max_memory_allocated() / 2**30)
