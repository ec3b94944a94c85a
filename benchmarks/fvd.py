"""Rows of FVD: from clips on the host to I3D's features, ours and the usual way in PyTorch; its costs beside that.

Clips are uint8 in host memory, and resized to 224 x 224.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.measure import Report, Sizes, Skipped
from vf.metrics import fvd
from vf.metrics.protocol import ClipProtocol
from vf.nets import i3d
from vf.nets.feature_network import Network
from vf.plan import count
from vf.scores import features, suite

LINEAGE = fvd.LINEAGES["styleganv"]
WITHOUT_NETWORK = ("digests and ranges alone, on the host", "transfer alone", "resize alone")
"""Rates of the row `ours` at which the network does not run."""


def clips_of(sizes: Sizes, clips: int) -> np.ndarray:
    """Random clips, uint8 `n f h w 3`."""
    shape = (clips, sizes.clip_frames, sizes.clip_size, sizes.clip_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def batches(clips: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive rows."""
    return (clips[first : first + size] for first in range(0, len(clips), size))


def free(dim: int = i3d.CLASSES) -> Network:
    """A network without cost, whose features are zero."""
    return Network("i3d", dim, {}, lambda params, x: jax.numpy.zeros((x.shape[0], dim)), {"network": "none"})


def ours(sizes: Sizes, report: Report) -> None:
    """Row: clips/s from the host to features in strict float32, and of each part alone."""
    clips = clips_of(sizes, sizes.clips)
    params = random_params()
    network = fvd.network(params, "random", LINEAGE)
    first = clips[: sizes.clip_batch]
    traced = jax.make_jaxpr(network.apply)(params, first)
    report(
        **measure.machine() | {"precision": "strict float32"}, clips=len(clips), clip_batch=sizes.clip_batch,
        clip_gflop=count.flops(traced.jaxpr) / len(first) / 1e9,
    )  # fmt: skip

    def extraction(network: Network) -> Callable[[], object]:
        return lambda: features.extract(network, clips, batch_size=sizes.clip_batch)

    with measure.Stopwatch() as compiling:
        extraction(network)()
    report(first_s=compiling.seconds)

    rates: dict[str, float] = {}

    def rate(name: str, work: Callable[[], object], n: int) -> None:
        work()
        rates[name] = n / measure.seconds({name: work}, sizes.repeats)[name]
        report(rates=rates)

    rate("host to feature", extraction(network), len(clips))
    rate("digests and ranges alone, on the host", extraction(free()), len(clips))

    def transfer() -> None:
        jax.block_until_ready([jax.device_put(batch) for batch in batches(clips, sizes.clip_batch)])

    rate("transfer alone", transfer, len(clips))
    resident = jax.device_put(first)
    rate("resize and network, on the device", _call(network.compiled, network.placed, resident), len(first))
    resize = jax.jit(lambda batch: i3d.pixels(batch, LINEAGE.grid, LINEAGE.aspect))
    rate("resize alone", _call(resize, resident), len(first))
    module = jax.jit(lambda params, x: i3d.I3D(eps=LINEAGE.eps).apply({"params": params}, x))
    rate("network alone", _call(module, network.placed, resize(resident)), len(first))
    report(peak_gib=measure.peak_gib())


def _call(function: Callable[..., Any], *args: Any) -> Callable[[], object]:
    return lambda: jax.block_until_ready(function(*args))


def random_params() -> Any:
    """Random parameters of I3D, whose activations keep their size from layer to layer."""
    shape = (1, i3d.MIN_FRAMES, i3d.SIZE, i3d.SIZE, 3)
    shapes = jax.eval_shape(lambda: i3d.I3D().init(jax.random.key(0), jax.numpy.zeros(shape)))["params"]
    rng = np.random.default_rng(0)

    def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:  # of batch norms, where equal means and offsets cancel
            return np.ones(leaf.shape, np.float32)
        return (2 / np.prod(leaf.shape[:-1])) ** 0.5 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(one, shapes)


def in_pytorch(sizes: Sizes, report: Report) -> None:
    """Row: clips/s of PyTorch in inference mode, in strict float32 and on a GPU also in TF32.

    The usual way of evaluation scripts is float32 clips of 224 x 224 pixels that are made on the host and sent in
    batches. The network is the independent one of the parity tests. Raises Skipped where PyTorch is missing.
    """
    try:
        import torch

        from tests.nets import torch_i3d
    except ModuleNotFoundError as error:
        raise Skipped(f"{error.name} is not installed") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    net, clips = torch_i3d.made().to(device), clips_of(sizes, sizes.clips)
    report(
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu", cores=os.cpu_count(),
        torch=torch.__version__, precision="strict float32", clips=len(clips), clip_batch=sizes.clip_batch,
    )  # fmt: skip

    def resized(x: Any) -> Any:  # b t h w c, 0 ... 255 -> b c t 224 224 in [-1, 1]
        frames = x.reshape(-1, *x.shape[2:]).permute(0, 3, 1, 2).float()
        frames = torch.nn.functional.interpolate(frames, (i3d.SIZE, i3d.SIZE), mode="bilinear", align_corners=False)
        return (2 * frames / 255 - 1).unflatten(0, x.shape[:2]).transpose(1, 2)

    def work(*, raw: bool, exact: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
        with torch.inference_mode():
            for batch in batches(clips, sizes.clip_batch):
                x = torch.from_numpy(batch)
                net(resized(x.to(device)) if raw else resized(x).contiguous().to(device)).cpu()

    ways = {"uint8 from the host": (True, True), "float32 224 x 224 from the host": (False, True)}
    if device == "cuda":
        ways["uint8 from the host, TF32"] = (True, False)
    rates = {}
    for name, (raw, exact) in ways.items():
        work(raw=raw, exact=exact)
        least = measure.seconds({name: lambda raw=raw, exact=exact: work(raw=raw, exact=exact)}, sizes.repeats)[name]
        rates[name] = len(clips) / least
        report(rates=rates)


def without_network(sizes: Sizes, report: Report) -> None:
    """Row: seconds of an FVD of `sizes.set` against as many clips beside the network, with real features kept."""
    real, generated = clips_of(sizes, sizes.set), clips_of(sizes, sizes.set)[::-1]
    network = free()
    report(**measure.machine() | {"precision": "as named"}, set=sizes.set)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        scorer = suite.Suite(("fvd",), {"i3d": network}, ClipProtocol(), sizes.clip_batch, cache, keep_generated=False)
        features.extract(network, real, batch_size=sizes.clip_batch, cache=cache)
        with measure.Stopwatch() as whole:
            scorer(real, generated)
    costs = {"batches, digests of both sides, the kept features, the distance and its floor": whole.seconds}
    values = np.random.default_rng(0).normal(size=(2, sizes.set, network.dim)).astype(np.float32)
    for name in ("styleganv", "google", "tats"):
        with measure.Stopwatch() as distance:
            fvd.fvd(values[0], values[1], fvd.LINEAGES[name])
        costs[f"of these the distance, {name}"] = distance.seconds
    with measure.Stopwatch() as distance:
        fvd.kvd(values[0], values[1])
    report(costs_s=costs | {"KVD": distance.seconds})
