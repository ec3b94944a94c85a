"""Measures the extraction of I3D's features against PyTorch in the same run, and an FVD without the network.

    python -m benchmarks.fvd [--clips=64] [--batch=16] [--repeats=3]

Clips are uint8 [16 128 128 3] in host memory, resized to 224 x 224. PyTorch runs the independent network of the parity
tests, in inference mode, (a) as evaluation scripts commonly do, with float32 clips of 224 x 224 pixels that are made on
the host and sent in batches of 16, and (b) with uint8 that is resized on the device. All at strict float32; on a GPU
also at the platforms' defaults (TF32). One clip is 55.6 GFLOP.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from vf.metrics import fvd
from vf.metrics.protocol import ClipProtocol
from vf.nets.feature_network import Network
from vf.pretrained.i3d import canonical
from vf.pretrained.weights import Weights
from vf.scores import features, suite
from vf.scores.features import Features

GFLOP = 55.6  # FLOPs of one clip of 16 frames


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The least seconds of several repetitions, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(params, clips: np.ndarray, batch: int, *, exact: bool) -> Callable[[], Features]:
    """A function that computes features of all clips."""
    network = fvd.network(params, "random", fvd.LINEAGES["styleganv"], exact=exact)
    return lambda: features.extract(network, clips, batch_size=batch)


def theirs(net, clips: np.ndarray, batch: int, *, raw: bool, exact: bool) -> Callable[[], object]:
    """The same in PyTorch, on a GPU where there is one."""
    import torch
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device)

    def resized(x):  # b t h w c, 0 ... 255 -> b c t 224 224 in [-1, 1]
        frames = x.reshape(-1, *x.shape[2:]).permute(0, 3, 1, 2).float()
        frames = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
        return (2 * frames / 255 - 1).reshape(x.shape[0], x.shape[1], 3, 224, 224).transpose(1, 2)

    def work():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
        parts = []
        with torch.inference_mode():
            for first in range(0, len(clips), batch):
                x = torch.from_numpy(clips[first : first + batch])
                x = resized(x.to(device)) if raw else resized(x).contiguous().to(device)
                parts.append(net(x).cpu())
        return torch.cat(parts)

    return work


def without_network(n: int) -> dict[str, float]:
    """Seconds of an FVD of n against n clips, with cached features of real clips and a network of no cost."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (n, 16, 128, 128, 3), np.uint8) for _ in range(2)]
    network = Network("i3d", 400, {}, lambda params, x: jax.numpy.zeros((x.shape[0], 400)), {"network": "none"})
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        scorer = suite.Suite(("fvd",), {"i3d": network}, ClipProtocol(), 16, cache, keep_generated=False)
        cached = features.extract(network, clips[0], batch_size=16, cache=cache)
        start = time.perf_counter()
        scorer(clips[0], clips[1])
        times["decoded clips -> batches -> features, both sides' digests, the cache"] = time.perf_counter() - start
    values = rng.normal(size=(2, n, 400)).astype(np.float32)
    for name, lineage in (("styleganv", "styleganv"), ("google (two SVDs)", "google"), ("tats (float32)", "tats")):
        start = time.perf_counter()
        fvd.fvd(values[0], values[1], fvd.LINEAGES[lineage])
        times[f"distance, {name}"] = time.perf_counter() - start
    start = time.perf_counter()
    fvd.kvd(values[0], values[1])
    times["KVD"] = time.perf_counter() - start
    assert len(cached) == n
    return times


def main() -> None:
    """Prints the tables of RESULTS.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", type=int, default=2048, help="clips on each side, for the cost beside the network")
    args = parser.parse_args()
    from tests.nets import torch_i3d

    net = torch_i3d.made()
    arrays, _ = canonical({name: array.numpy() for name, array in net.state_dict().items()})
    params = Weights("i3d", arrays, "", {}).tree()
    clips = np.random.default_rng(0).integers(0, 256, (args.clips, 16, 128, 128, 3), np.uint8)
    device = jax.devices()[0]
    print(f"{len(jax.devices())} x {device.device_kind}; {args.clips} clips, batches of {args.batch}")
    runs = {"ours, uint8": ours(params, clips, args.batch, exact=True)}
    runs["PyTorch, float32 224 x 224 from the host"] = theirs(net, clips, args.batch, raw=False, exact=True)
    runs["PyTorch, uint8"] = theirs(net, clips, args.batch, raw=True, exact=True)
    if device.platform != "cpu":
        runs["ours, uint8, default precision"] = ours(params, clips, args.batch, exact=False)
        runs["PyTorch, uint8, TF32"] = theirs(net, clips, args.batch, raw=True, exact=False)
    print("\n| | clips/s | TFLOP/s | ratio to ours |\n| --- | --- | --- | --- |")
    base = None
    for name, work in runs.items():
        rate = args.clips / seconds(work, args.repeats)
        base = base or rate
        print(f"| {name} | {rate:.2f} | {rate * GFLOP / 1e3:.3f} | {rate / base:.2f} |", flush=True)
    a, b = runs["ours, uint8"]().values, runs["PyTorch, uint8"]().numpy()
    print(f"\nlargest difference of features: {abs(a - b).max() / abs(b).max():.1e} of the largest feature")
    print(f"\n| {args.set} against {args.set} clips, beside the network | seconds |\n| --- | --- |")
    for name, value in without_network(args.set).items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
