"""Clips of a run, exact and as pictures for the eye, in a folder for each drawing:

samples/real/                                     clips.npz (exact)  wall.gif  wall.mp4  strip.png  meta.json
samples/real_1a2b3c4d/                            the same, of real clips of the classes that a drawing has
samples/step_00001000_clips_seed0_n16_1a2b3c4d/   the same, of 16 clips that were sampled at step 1000 with seed 0
samples/step_00001000_base_seed0_n16_1a2b3c4d/    clips.npz  wall.png  meta.json, of images of the base generator
samples/step_00001000_clips_seed0_n9999_.../      clips/clips_000000_001344.npz ... in place of clips.npz, of many

The last part of a name is a hash of everything else that the samples depend on, but for the weights of that step:
another drawing has another folder, and the same one again rewrites its own. Earlier versions had one folder for each
step, samples/step_00001000/ and samples/base_step_00001000/.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vf import files, video
from vf.activity import ACTIVITY
from vf.files import AnyPath
from vf.metrics.protocol import protocol_hash, to_json

WIDTH = 640  # Walls and film strips are enlarged to about this many pixels, as far as whole factors reach.
STRIP_ROWS, STRIP_PAD = 8, 3
LONG, STRIP_COLUMNS = 64, 16  # longer clips have no GIF, and a strip of so many frames, evenly chosen
PICTURED = 128  # the most clips of a wall; clips.npz, or the shards, have all
PICTURED_BYTES = 256 << 20  # of the first clips of many that are held for the pictures, about
SHARDS = "clips"  # folder of the files in which many clips lie
DRAWING = re.compile(r"(base_)?step_(\d+)(?:_(clips|base)_seed(-?\d+)_n(\d+)_[0-9a-f]{8})?")


def drawing_folder(workdir: str | AnyPath, step: int, what: str, count: int, sampling: Mapping[str, Any]) -> AnyPath:
    """Where the samples of one drawing lie.

    Args:
        workdir: the run's folder.
        step: the step whose weights drew them.
        what: `clips`, or `base` for images of the base generator.
        count: their number.
        sampling: everything else that they depend on, its `seed` among it, in JSON's types.
    """
    name = f"step_{step:08d}_{what}_seed{sampling['seed']}_n{count}_{protocol_hash(sampling)}"
    return files.path(workdir) / "samples" / name


@dataclasses.dataclass(frozen=True, order=True)
class Drawing:
    """A folder of samples, as its name describes it; drawings are ordered by step, clips before images.

    Attributes:
        step: the step whose weights drew them.
        images: whether they are images of the base generator.
        folder: where they lie.
        facts: count and seed, for the eye; "" for those of earlier versions.
    """

    step: int
    images: bool
    folder: AnyPath
    facts: str


def drawings(workdir: str | AnyPath) -> list[Drawing]:
    """All drawings of the run in `workdir`, in order."""
    found = []
    for path in files.children(files.path(workdir) / "samples"):
        if match := DRAWING.fullmatch(path.name):
            before, step, what, seed, count = match.groups()
            facts = f": {count}, seed {seed}" if count else ""
            found.append(Drawing(int(step), bool(before) or what == "base", path, facts))
    return sorted(found)


def real_folder(workdir: str | AnyPath, labels: Sequence[int] | None = None) -> AnyPath:
    """Where the real clips lie that samples are shown beside; `labels` are the classes of these, if they have any."""
    name = "real" if labels is None else f"real_{protocol_hash({'labels': list(labels)})}"
    return files.path(workdir) / "samples" / name


def rows_of(wanted: Sequence[int], labels: np.ndarray) -> np.ndarray:
    """For each label in `wanted` the next row in turn of those rows of `labels` [m] that equal it, int [k].

    Labels that no row has are left out, so that k may be smaller than the number of labels that are wanted."""
    rows = {int(label): itertools.cycle(np.flatnonzero(labels == label)) for label in np.unique(labels)}
    return np.array([next(rows[label]) for label in wanted if label in rows], int)


def pictures_take_more(some: Sequence[np.ndarray]) -> bool:
    """Whether pictures of a drawing's clips show more than these first ones, [n t h w 3] of each shard."""
    return sum(map(len, some)) < PICTURED and sum(clips.nbytes for clips in some) < PICTURED_BYTES


@ACTIVITY.doing("writing clips")
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
    shards: Sequence[str] = (),
    total: int | None = None,
) -> AnyPath:
    """Writes clips u8 [n t h w 3] as clips.npz (lossless), wall.gif, wall.mp4, strip.png and meta.json; those of one
    frame are images, with wall.png in place of all that moves.

    Where `total` clips lie in files below `SHARDS` already, whose names are `shards`, `clips` are the first of them.

    `base_frame` is the index of the frame that is marked in the strip of the first eight clips; `scale` enlarges
    every pixel (by default to fill a column of the page); `labels` has one entry for each clip, written by name
    where there are `class_names`; `meta` is any further fact, such as seed and sampler. Returns the folder.
    Raises ValueError on clips, labels or a base frame that do not fit."""
    folder, clips = files.path(folder), np.asarray(clips)
    if shards:
        (folder / "clips.npz").unlink(missing_ok=True)  # of a version that had no shards
    else:
        video.save_npz(folder / "clips.npz", clips, **({} if labels is None else {"label": np.asarray(labels)}))
    _, frames, height, width, _ = clips.shape
    drawn, count = len(clips), total or len(clips)
    wall = video.grid(clips[:PICTURED], columns)
    long = frames > LONG
    large = scale or max(1, WIDTH // wall.shape[2])
    facts = {"count": count, "frames": frames, "height": height, "width": width}
    facts |= {"columns": min(columns, drawn), "pictured": min(drawn, PICTURED)}
    facts |= {"shards": list(shards)} if shards else {}
    if frames == 1:
        video.write_png(folder / "wall.png", video.enlarge(wall[0], large))
    else:
        if not long:
            video.write_gif(folder / "wall.gif", wall, fps, large)
        video.write_mp4(folder / "wall.mp4", wall, fps, large)
        shown = np.linspace(0, frames - 1, STRIP_COLUMNS).round().astype(int) if long else np.arange(frames)
        large = scale or max(1, (WIDTH // len(shown) - 2 * STRIP_PAD) // width)
        strip = video.film_strip(clips[:STRIP_ROWS, shown], None if long else base_frame, STRIP_PAD, large)
        video.write_png(folder / "strip.png", strip)
        facts |= {"base_frame": base_frame, "fps": fps}
        facts |= {"strip_size": list(strip.shape[1::-1]), "strip_rows": min(drawn, STRIP_ROWS)}
    facts |= dict(meta or {})
    if labels is not None:
        facts["labels"] = [class_names[label] if class_names else str(label) for label in labels]
    files.write_whole(folder / "meta.json", json.dumps(to_json(facts), indent=2, allow_nan=False) + "\n")
    return folder


class Shards:
    """The clips of a drawing that lie in several files, of which one is held at a time.

    Raises UserError where the folder of the drawing does not have all that its meta.json names.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.shape = (*(meta[name] for name in ("count", "frames", "height", "width")), 3)
        self._paths = [folder / SHARDS / f"{name}.npz" for name in meta["shards"]]
        self._first = [int(name.split("_")[1]) for name in meta["shards"]]
        self._held = functools.lru_cache(1)(lambda path: video.load_npz(path)["clips"])
        self._lock = threading.Lock()  # many threads ask, and each may not hold a file of its own

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, k: int) -> np.ndarray:
        """Clip k, u8 [t h w 3]."""
        number = bisect.bisect_right(self._first, k) - 1
        return self._load(self._paths[number])[k - self._first[number]]

    def _load(self, path: Path) -> np.ndarray:
        with self._lock:
            return self._held(path)

    def pieces(self) -> Iterator[np.ndarray]:
        """All clips, file by file."""
        return map(self._load, self._paths)
