"""Measures ADM's U-Net, forward and with its backward pass, against diffusers' in the same run.

    python -m benchmarks.unet [--width=192] [--size=64] [--batch=1] [--repeats=3] [--precision=float32] [--no-compile]

The network is ADM's for ImageNet at 64 pixels: 1, 2, 3 and 4 x `width` channels, three residual blocks a level,
attention at 32, 16 and 8 pixels, 1,000 classes, learned variance; `width` is a multiple of 64. Both run on the same
device with the same threads, in turn, and the best of `repeats` counts: ours as one jitted function; PyTorch's eagerly,
with channels last, and compiled. The backward pass is the gradient of the mean square with respect to all parameters.
The precision is bfloat16 on a GPU (by autocast in PyTorch; parameters are float32 in both) and float32 on a CPU unless
given. FLOPs are those of products and convolutions alone, as PyTorch counts them. On a CPU PyTorch takes minutes to
compile; --no-compile leaves that out.
"""

import argparse
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Work, seconds
from benchmarks.torch_training import network
from vf.nets.unet import UNet

MULT = (1, 2, 3, 4)
CLASSES = 1000
SIDE = 4096  # side of the matrices whose product gives the device's practical peak
PASSES = ("forward", "forward + backward")


def inputs(batch: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise `b h w c`, steps and labels."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((batch, size, size, 3), np.float32)
    return z, rng.integers(0, 1000, batch).astype(np.int32), rng.integers(0, CLASSES, batch).astype(np.int32)


def ours(width: int, data: tuple, precision: str) -> tuple[int, dict[str, Work], dict[str, float]]:
    """(parameters, {pass: a function that runs it}, {pass: bytes of device memory that it needs})."""
    net = UNet(width, MULT, 3, (2, 4, 8), learned_variance=True, num_classes=CLASSES, dtype=jnp.dtype(precision))
    args = (jnp.asarray(data[0])[:, None], jnp.asarray(data[1]))
    label = jnp.asarray(data[2])

    def forward(params: Any, z: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        return net.apply({"params": params}, z, t, label=label)

    def gradient(*args: Any) -> Any:
        return jax.value_and_grad(lambda *args: (forward(*args) ** 2).mean())(*args)

    abstract = jax.eval_shape(lambda: net.init(jax.random.key(0), *args, label=label))["params"]
    rng = np.random.default_rng(0)  # random, since some layers are initialised with zeros
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), abstract)
    works, planned_bytes = {}, {}
    for name, function in zip(PASSES, (forward, gradient), strict=True):
        compiled = jax.jit(function).lower(params, *args, label).compile()
        works[name] = lambda compiled=compiled: jax.block_until_ready(compiled(params, *args, label))
        plan = compiled.memory_analysis()
        planned_bytes[name] = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes
    return sum(leaf.size for leaf in jax.tree.leaves(params)), works, planned_bytes


def diffusers_net(width: int, size: int) -> UNet2DModel:
    """The same network in diffusers."""
    return network(width, MULT, 3, size, out_channels=6, num_class_embeds=CLASSES)


def synchronise() -> None:
    """Waits for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def passes(net: Any, data: tuple, device: str, precision: str, layout: torch.memory_format) -> dict[str, Work]:
    """{pass: a function that runs it} of `net`, a UNet2DModel that may be compiled."""
    z = torch.from_numpy(data[0]).permute(0, 3, 1, 2).to(device, memory_format=layout)
    t, label = (torch.from_numpy(array).to(device) for array in data[1:])

    def predict() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            return net(z, t, class_labels=label, return_dict=False)[0]

    def forward() -> None:
        with torch.no_grad():
            predict()
        synchronise()

    def gradient() -> None:
        predict().float().square().mean().backward()
        synchronise()
        net.zero_grad(set_to_none=True)

    return dict(zip(PASSES, (forward, gradient), strict=True))


def theirs(width: int, data: tuple, device: str, precision: str, *, compiled: bool) -> tuple[int, dict, int]:
    """(parameters, {way to run diffusers' network: its passes}, bytes of one such network)."""
    torch.manual_seed(0)
    works = {}
    for name, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
        net = diffusers_net(width, data[0].shape[1]).to(device, memory_format=layout)
        works[f"PyTorch{name}"] = passes(net, data, device, precision, layout)
    if compiled:
        works["PyTorch, channels last, compiled"] = passes(torch.compile(net), data, device, precision, layout)
    return net.num_parameters(), works, sum(p.nbytes for p in net.parameters())


def gflop(width: int, size: int) -> dict[str, float]:
    """GFLOP of each pass for one image."""
    with torch.device("meta"):
        net = diffusers_net(width, size)
        z, t, label = torch.empty(1, 3, size, size), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    gflops = {}
    for name in PASSES:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(name != "forward"):
            loss = net(z, t, class_labels=label).sample.square().mean()
            if loss.requires_grad:
                loss.backward()
        gflops[name] = counter.get_total_flops() / 1e9
    return gflops


def runnable(works: dict[str, Work]) -> dict[str, Work]:
    """Runs each function once, which compiles it; those that fail are reported and left out."""
    works_here = {}
    for name, work in works.items():
        try:
            work()
            works_here[name] = work
        except Exception as error:
            print(f"{name}: does not run here, {type(error).__name__}: {str(error)[:200]}", flush=True)
    return works_here


def products(device: str, precision: str) -> dict[str, Work]:
    """{library: a function that multiplies two large matrices}."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    x, y = jnp.asarray(a, precision), torch.from_numpy(a).to(device, getattr(torch, precision))
    product = jax.jit(jnp.matmul)

    def multiply() -> None:
        y.mm(y)
        synchronise()

    return {"jax": lambda: jax.block_until_ready(product(x, x)), "PyTorch": multiply}


def table(times: dict[str, dict[str, float]], work: dict[str, float], batch: int) -> None:
    """Prints milliseconds, the ratio of each row's time to ours, and GFLOP/s."""
    print("\n| | " + " | ".join(f"{name}, ms | ratio | GFLOP/s" for name in PASSES) + " |")
    print("| --- |" + " --- |" * (3 * len(PASSES)))
    for row in dict.fromkeys(row for name in PASSES for row in times[name]):
        cells = []
        for name in PASSES:
            value = times[name].get(row, float("nan"))
            cells += [f"{1e3 * value:,.1f}", f"{value / times[name]['ours']:.2f}"]
            cells += [f"{batch * work[name] / value:,.0f}"]
        print(f"| {row} | " + " | ".join(cells) + " |")


def memory(name: str, planned: float, works: dict[str, Work], network_bytes: int) -> None:
    """Prints the peak memory of one pass on a GPU: ours as planned by XLA, PyTorch's as measured by its allocator."""
    cells = [f"ours {planned / 2**30:.2f}"]
    for row, work in works.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()  # includes the parameters of both layouts
        work()
        cells.append(f"{row} {(torch.cuda.max_memory_allocated() - before + network_bytes) / 2**30:.2f}")
    print(f"{name}, GiB: " + "; ".join(cells))


def start_both(precision: str | None) -> tuple[jax.Device, str, str]:
    """Starts both libraries on all cores; returns (jax's device, PyTorch's name of it, the precision).

    The precision is the argument, or else the platform's.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU; read when jax starts
    kind = jax.devices()[0]
    device = "cuda" if kind.platform == "gpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, jax's default too
    return kind, device, precision or ("bfloat16" if device == "cuda" else "float32")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="without PyTorch's compiler")
    args = parser.parse_args()
    kind, device, precision = start_both(args.precision)

    data = inputs(args.batch, args.size)
    parameters, our_works, plans = ours(args.width, data, precision)
    expected, others, network_bytes = theirs(args.width, data, device, precision, compiled=args.compiled)
    if parameters != expected:
        raise SystemExit(f"the networks differ: {parameters:,} parameters against {expected:,}")
    work = gflop(args.width, args.size)
    print(f"{kind.device_kind}, {os.cpu_count()} cores, {precision}; {parameters:,} parameters, batch {args.batch}; "
          f"GFLOP of one image: " + ", ".join(f"{name} {value:.1f}" for name, value in work.items()))  # fmt: skip
    ready = {}
    for name in PASSES:
        ready[name] = runnable(
            {"ours": our_works[name], **{row: their_works[name] for row, their_works in others.items()}}
        )
    table({name: seconds(works, args.repeats) for name, works in ready.items()}, work, args.batch)
    floor = seconds(runnable(products(device, precision)), args.repeats)
    print(f"\nproduct of {SIDE} x {SIDE} matrices, GFLOP/s: "
          + ", ".join(f"{name} {2 * SIDE**3 / value / 1e9:,.0f}" for name, value in floor.items()))  # fmt: skip
    if device == "cuda":
        for name, works in ready.items():
            memory(name, plans[name], {row: f for row, f in works.items() if row != "ours"}, network_bytes)


if __name__ == "__main__":
    main()
