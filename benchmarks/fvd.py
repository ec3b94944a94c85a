"""How fast clips become features of I3D, against PyTorch in the same run; and what an FVD costs beside the network.

    python -m benchmarks.fvd [--clips=64] [--batch=16] [--repeats=3]

Clips are uint8 [16 128 128 3] in host memory, resized to 224 x 224. PyTorch runs the independent network of the parity
tests, in inference mode, (a) as evaluation scripts commonly do: float32 clips of 224 x 224 pixels, made on the host and
shipped in batches of 16, and (b) fed uint8, resized where the network runs. All at strict float32; on a GPU also at the
platforms' defaults (TF32). One clip is 55.6 GFLOP.
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

GFLOP = 55.6  # of one clip of 16 frames


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The least of several, after one that compiles."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def ours(params, clips: np.ndarray, batch: int, *, exact: bool) -> Callable[[], Features]:
    """Features of all clips."""
    network = fvd.network(params, "random", fvd.LINEAGES["styleganv"], exact=exact)
    return lambda: features.extract(network, clips, batch_size=batch)


def theirs(net, clips: np.ndarray, batch: int, *, raw: bool, exact: bool) -> Callable[[], object]:
    """The same in PyTorch, on a GPU where it has one."""
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
        found = []
        with torch.inference_mode():
            for first in range(0, len(clips), batch):
                x = torch.from_numpy(clips[first : first + batch])
                x = resized(x.to(device)) if raw else resized(x).contiguous().to(device)
                found.append(net(x).cpu())
        return torch.cat(found)

    return work


def beside_the_network(n: int) -> dict[str, float]:
    """Seconds of an FVD of n against n clips whose real features are kept, with a network that costs nothing."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (n, 16, 128, 128, 3), np.uint8) for _ in range(2)]
    network = Network("i3d", 400, {}, lambda params, x: jax.numpy.zeros((x.shape[0], 400)), {"network": "none"})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        judge = suite.Suite(("fvd",), {"i3d": network}, ClipProtocol(), 16, cache, keep_generated=False)
        seen = features.extract(network, clips[0], batch_size=16, cache=cache)
        start = time.perf_counter()
        judge(clips[0], clips[1])
        found["decoded clips -> batches -> features, both sides' digests, the cache"] = time.perf_counter() - start
    values = rng.normal(size=(2, n, 400)).astype(np.float32)
    for name, lineage in (("styleganv", "styleganv"), ("google (two SVDs)", "google"), ("tats (float32)", "tats")):
        start = time.perf_counter()
        fvd.fvd(values[0], values[1], fvd.LINEAGES[lineage])
        found[f"distance, {name}"] = time.perf_counter() - start
    start = time.perf_counter()
    fvd.kvd(values[0], values[1])
    found["KVD"] = time.perf_counter() - start
    assert len(seen) == n
    return found


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
    for name, value in beside_the_network(args.set).items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
