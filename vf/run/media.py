"""Clips of a run, exact and as pictures for the eye, in a folder for each step:

samples/real/                 clips.npz (exact)  wall.gif  wall.mp4  strip.png  meta.json
samples/step_00001000/        the same, of clips that were sampled at that step
samples/base_step_00001000/   clips.npz  wall.png  meta.json, of images of the base generator
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vf import files, video
from vf.files import AnyPath
from vf.metrics.protocol import plain

WIDTH = 640  # Walls and film strips are enlarged to about this many pixels, as far as whole factors reach.
STRIP_ROWS, STRIP_PAD = 8, 3


def step_folder(workdir: str | AnyPath, step: int, images: bool = False) -> AnyPath:
    """Where the samples drawn at `step` lie: clips, or images of the base generator."""
    return files.path(workdir) / "samples" / f"{'base_' if images else ''}step_{step:08d}"


def real_folder(workdir: str | AnyPath) -> AnyPath:
    """Where the real clips lie that the samples are shown beside."""
    return files.path(workdir) / "samples" / "real"


def write_samples(
    folder: str | AnyPath,
    clips: np.ndarray,
    *,
    base_frame: int,
    fps: float = 8,
    scale: int | None = None,
    columns: int = 8,
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
) -> AnyPath:
    """Writes clips u8 [n t h w 3] as clips.npz (lossless), wall.gif, wall.mp4, strip.png and meta.json; those of one
    frame are images, with wall.png in place of all that moves.

    `base_frame` is the index of the frame that is marked in the strip of the first eight clips; `scale` enlarges
    every pixel (by default to fill a column of the page); `labels` has one entry for each clip, written by name
    where there are `class_names`; `meta` is any further fact, such as seed and sampler. Returns the folder.
    Raises ValueError on clips, labels or a base frame that do not fit."""
    folder, clips = files.path(folder), np.asarray(clips)
    video.save_npz(folder / "clips.npz", clips, **({} if labels is None else {"label": np.asarray(labels)}))
    count, frames, height, width, _ = clips.shape
    wall = video.grid(clips, columns)
    large = scale or max(1, WIDTH // wall.shape[2])
    facts = {"count": count, "frames": frames, "height": height, "width": width}
    if frames == 1:
        video.write_png(folder / "wall.png", video.enlarge(wall[0], large))
    else:
        video.write_gif(folder / "wall.gif", wall, fps, large)
        video.write_mp4(folder / "wall.mp4", wall, fps, large)
        large = scale or max(1, (WIDTH // frames - 2 * STRIP_PAD) // width)
        video.write_png(folder / "strip.png", video.film_strip(clips[:STRIP_ROWS], base_frame, STRIP_PAD, large))
        facts |= {"base_frame": base_frame, "fps": fps}
    facts |= dict(meta or {})
    if labels is not None:
        facts["labels"] = [class_names[label] if class_names else str(label) for label in labels]
    files.write_whole(folder / "meta.json", json.dumps(plain(facts), indent=2, allow_nan=False) + "\n")
    return folder
