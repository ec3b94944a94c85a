"""How near samples are to the frames they were trained on, in EfficientNet's features: do they copy?

    python -m benchmarks.copying data/film32 runs/film/samples/step_00002800_... [MORE ...] [--picture=nearest.png]

DATA is prepared with `--embed=efficientnet`. Of each sample's base frame the cosine to its nearest training frame,
after the training frames' mean feature is subtracted, beside that of frames of the split `val`, and of training frames
to those of other shots. Copies are nearer than real frames of other shots are. Besides, of the clips: the kernel
distance of `kd_efficientnet` to windows of `val`, and the base frame's gap to its neighbours. The picture shows, for
the first samples of each drawing, the base frame and beside it the nearest training frame.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from vf.data.clips import Windows
from vf.data.prepared import Prepared
from vf.metrics.consistency import base_frame_gap
from vf.metrics.kernel import polynomial_mmd
from vf.scores.networks import frame_network
from vf.video import load_npz

BATCH = 16
SHOWN = 8  # samples of each drawing in the picture
FPS = 12.0  # of configs/film.py


def frames_of(data: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All frames of a split, u8 [n h w 3], their features [n d], and the number of each one's shot [n]."""
    source = Prepared(data, windows=Windows(1, start="all"), split=split, base_frame=0)
    records = [source.clip(k, None) for k in range(len(source))]
    lengths = json.loads((data / "manifest.json").read_text())["splits"][split]["index"]["frames"]
    frames, features = (np.stack([record[name] for record in records]) for name in ("video", "embedding"))
    return frames[:, 0], features, np.repeat(np.arange(len(lengths)), lengths)


def features_of(frames: np.ndarray) -> np.ndarray:
    """EfficientNet's features [n d] of frames u8 [n h w 3]."""
    network = frame_network("efficientnet")
    padded = np.pad(frames, [(0, -len(frames) % BATCH), (0, 0), (0, 0), (0, 0)])
    parts = [network.compiled(network.placed, padded[k : k + BATCH, None]) for k in range(0, len(padded), BATCH)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(frames)]


def units(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """`features` less their mean, of length 1."""
    centred = features - mean
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True)


def quantiles(values: np.ndarray) -> str:
    """Median, 95 % quantile and largest."""
    return "".join(f"{value:9.3f}" for value in (np.median(values), np.quantile(values, 0.95), values.max()))


def main() -> None:
    """Prints a line for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("drawings", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    train, features, shot = frames_of(args.data, "train")
    mean = features.mean(0)
    known = units(features, mean)
    print(
        f"{len(train)} training frames of {shot[-1] + 1} shots\n{'cosine to the nearest':40}   median     95 %  largest"
    )
    some = np.random.default_rng(0).choice(len(known), 1000, replace=False)
    others = np.where(shot[some][:, None] == shot[None], -1, known[some] @ known.T).max(1)
    print(f"{'training frames, of another shot':40}{quantiles(others)}")
    print(f"{'frames of val':40}{quantiles((units(frames_of(args.data, 'val')[1], mean) @ known.T).max(1))}")
    rows, real = [], None
    for folder in args.drawings:
        clips, base = (
            load_npz(folder / "clips.npz")["clips"],
            (load_npz(folder / "clips.npz")["clips"].shape[1] - 1) // 2,
        )
        if real is None:
            windows = Prepared(args.data, windows=Windows(clips.shape[1], fps=FPS, start="all"), split="val")
            chosen = np.random.default_rng(0).choice(len(windows), min(64, len(windows)), replace=False)
            real = np.stack([windows.clip(k, None)["video"] for k in chosen])
            halves = features_of(real.reshape(-1, *real.shape[2:])).reshape(len(real), clips.shape[1], -1)
            gap, floor = base_frame_gap(real, base), kernel(halves[::2], halves[1::2])
            print(f"val: {len(real)} windows, base frame gap {gap:.2f}, kernel distance of its halves {floor:.4f}")
        made = features_of(clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:2], -1)
        similar = units(made[:, base], mean) @ known.T
        print(f"{folder.parent.parent.name:40}{quantiles(similar.max(1))}")
        print(f"  base frame gap {base_frame_gap(clips, base):.2f}, kernel distance to val {kernel(made, halves):.4f}")
        nearest = train[similar.argmax(1)]
        rows.append(np.concatenate([np.concatenate([clips[k, base], nearest[k]], 1) for k in range(SHOWN)], 1))
    if args.picture:
        Image.fromarray(np.concatenate(rows)).save(args.picture)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    """The distance of `kd_efficientnet` of two sets of clips' features [n f d]."""
    (frames, dim) = x.shape[1:]
    return polynomial_mmd(x.reshape(-1, dim), y.reshape(-1, dim), degree=3, coef0=1.0, rows=frames)


if __name__ == "__main__":
    main()
