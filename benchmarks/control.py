"""How far content, motion and known frames of the sprites' samples follow what controls them.

python -m benchmarks.control grid samples/.../clips.npz       # a grid drawn by sample.grid, its size from meta.json
python -m benchmarks.control long samples/.../clips.npz       # long clips drawn by sample.length
python -m benchmarks.control known samples/.../clips.npz      # drawn by sample.known, of validation clips
"""

import json
import sys
from pathlib import Path

import numpy as np

from configs import demo
from vf.config import data
from vf.data import pipeline
from vf.scores.sprites import NONE, analyse
from vf.video import load_npz

BASE = 3
SHUFFLES = 500
BLOCK = 64


def explained(values: np.ndarray, group: np.ndarray) -> float:
    """Share of the variance of `values` [n d] between groups [n]: 1 where each group has one value."""
    centred = values - values.mean(0)
    means = {g: centred[group == g].mean(0) for g in np.unique(group)}
    return float(sum(np.square(means[g]).sum() for g in group) / np.square(centred).sum())


def grid(clips: np.ndarray, facts: dict) -> None:
    """Share of variance of content and of motion that rows (content) and columns (motion) explain; chance beside it."""
    rows, columns = facts["control"]["grid"]
    seen, random = analyse(clips, BASE), np.random.default_rng(0)
    position = seen.position
    factors = {
        "background": seen.background.mean(1),
        "position at the base frame": position[:, BASE],
        "displacement, last frame from first": position[:, -1] - position[:, 0],
        "displacement, last frame from base frame": position[:, -1] - position[:, BASE],
    }
    row, column = np.divmod(np.arange(rows * columns), columns)
    print(f"{rows} contents x {columns} motions, {seen.found.mean():.1%} found")
    print(f"{'':42}{'by content':>12}{'chance':>9}{'by motion':>12}{'chance':>9}")
    for name, values in factors.items():
        cells = []
        for group in (row, column):
            chance = np.mean([explained(values, random.permutation(group)) for _ in range(SHUFFLES)])
            cells += [f"{explained(values, group):.1%}", f"{chance:.1%}"]
        print(f"{name:42}{cells[0]:>12}{cells[1]:>9}{cells[2]:>12}{cells[3]:>9}")


def long(clips: np.ndarray, facts: dict) -> None:
    """Shares of frames in which a sprite is found, and that show the content of the clip's first frames, by time."""
    seen = analyse(clips, BASE)
    indices = (seen.colour_index, seen.background_index, seen.shape)
    first = [np.array([np.bincount(row[row != NONE], minlength=1).argmax() for row in i[:, :8]]) for i in indices]
    print(f"{len(clips)} clips of {clips.shape[1]} frames, {facts.get('length')}")
    print(f"{'frames':>12}{'found':>8}{'colour':>8}{'ground':>8}{'shape':>8}{'step, px':>10}")
    steps = np.linalg.norm(np.diff(seen.position, axis=1), axis=-1)
    for start in range(0, clips.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        same = [float((i[:, part] == f[:, None]).mean()) for i, f in zip(indices, first, strict=True)]
        cells = "".join(f"{share:8.1%}" for share in (float(seen.found[:, part].mean()), *same))
        print(f"{start:>5}-{min(start + BLOCK, clips.shape[1]) - 1:<6}{cells}{steps[:, part].mean():10.2f}")


def known_frames(clips: np.ndarray, facts: dict) -> None:
    """Distance of the sprites in frames that were found from the real ones, in pixels, by frame; and of simple guesses:
    as in the nearest known frame, and on the straight line through the nearest known ones, one on each side if there
    are."""
    config = demo.get_config()
    config.eval.clips = len(clips)
    source = data.source(config, "validation")
    real = pipeline.fixed_clips(source, len(clips), seed=config.seed)["video"]
    known = facts["known"]
    assert np.array_equal(real[:, known], clips[:, known]), "these are not the clips that the samples go on from"
    found, truth = analyse(clips, BASE).position, analyse(real, BASE).position
    print(f"{len(clips)} clips, known frames {known}")
    print(f"{'frame':>6}{'sampled':>9}{'standing':>10}{'straight':>10}")
    for i in sorted({*range(clips.shape[1])} - {*known}):
        nearest = sorted(known, key=lambda k: abs(k - i))
        before, after = ([k for k in nearest if (k < i) == earlier] for earlier in (True, False))
        a, b = (before[0], after[0]) if before and after else nearest[:2]
        line = truth[:, a] + (i - a) / (b - a) * (truth[:, b] - truth[:, a])
        errors = [np.sqrt(np.square(x - truth[:, i]).sum(-1).mean()) for x in (found[:, i], truth[:, nearest[0]], line)]
        print(f"{i:>6}{errors[0]:9.2f}{errors[1]:10.2f}{errors[2]:10.2f}")


def main() -> None:
    """Prints the tables of RESULTS.md."""
    what, path = sys.argv[1], Path(sys.argv[2])
    facts = json.loads((path.parent / "meta.json").read_text())
    {"grid": grid, "long": long, "known": known_frames}[what](load_npz(path)["clips"], facts)


if __name__ == "__main__":
    main()
