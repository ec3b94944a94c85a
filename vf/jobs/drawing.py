"""Draws samples in shards, which a job that was killed need not draw again, and long clips window by window.

A long clip is drawn in windows of the model's length, one after the other, in memory that does not grow with it: of
each window the first frames are known, as the last of the one before (Ho et al. 2022, section 3.1; the paper's own
512-frame videos extend clips so, by our reading, with their base noise kept).
"""

import functools
import shutil
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from vf import files, video
from vf.files import AnyPath
from vf.models.sampler import Extension
from vf.run import media

Program = Callable[[int, dict[str, np.ndarray], Callable[[int], None]], np.ndarray]
"""(number of a window, rows, done) -> the window u8 [m f h w 3]. In all but the first `known` are the rows' known
frames; `done` is told how many rows are drawn."""
SHARD_BYTES = 64 << 20  # of clips that a killed job draws again at most, unless a batch is larger


class Parts:
    """Arrays that are made one after the other, each on disk as soon as it is made, until `remove`.

    Args:
        folder: where they lie.
        is_writer: whether this process writes and reads them; the others get them from it.
    """

    def __init__(self, folder: AnyPath, *, is_writer: bool) -> None:
        self.folder, self._is_writer = folder, is_writer

    def get(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """Clips u8 of `shape` that were made before under this name, or those that `make` makes."""
        path = self.folder / f"{name}.npz"
        there = self._is_writer and path.exists()
        if jax.process_count() > 1:
            there = bool(multihost_utils.broadcast_one_to_all(np.asarray(there)))
        if not there:
            clips = make()
            if self._is_writer:
                video.save_npz(path, clips)
            return clips
        clips = video.load_npz(path)["clips"] if self._is_writer else np.zeros(shape, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(clips)) if jax.process_count() > 1 else clips

    def remove(self) -> None:
        """Removes all of them, when what they make up is written."""
        if self._is_writer and not files.is_remote(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)


def forget(workdir: AnyPath) -> None:
    """Removes what killed jobs have left of drawings in a run's folder: their weights are no more."""
    for one in media.drawings(workdir):
        Parts(one.folder / "parts", is_writer=True).remove()


def draw(
    rows: Mapping[str, np.ndarray],
    extension: Extension,
    size: int,
    batch_size: int,
    parts: Parts,
    program: Program,
    done: Callable[[int], None],
) -> np.ndarray:
    """Samples u8 [n length size size 3].

    Args:
        rows: conditions and control of the samples, [n ...].
        extension: the windows of which they consist.
        size: height and width.
        batch_size: samples that are drawn at a time.
        parts: keeps what is drawn.
        program: draws a window.
        done: is told how many windows are drawn, of all clips.
    """
    count = len(next(iter(rows.values())))
    each = extension.length * size * size * 3
    shard = max(1, SHARD_BYTES // each // batch_size) * batch_size
    only = count <= shard and not extension.further  # then there is nothing to go on with
    clips, drawn = [], 0
    for first in range(0, count, shard):
        some = {name: value[first : first + shard] for name, value in rows.items()}
        shape = (min(shard, count - first), extension.frames, size, size, 3)
        long: list[np.ndarray] = []
        made = np.zeros(shape, np.uint8)
        for number in range(extension.further + 1):
            if number:
                known = np.zeros(shape, np.uint8)
                known[:, : extension.overlap] = made[:, -extension.overlap :]
                some["known"] = known
            make = functools.partial(program, number, dict(some), functools.partial(_after, done, drawn))
            # Of a batch of another size other clips are drawn together.
            name = f"clips_{first:06d}_{first + shape[0]:06d}_window_{number:05d}"
            made = make() if only else parts.get(name, shape, make)
            long.append(made[:, extension.overlap if number else 0 :])
            drawn += len(made)
        clips.append(np.concatenate(long, axis=1)[:, : extension.length])
    return np.concatenate(clips)


def _after(done: Callable[[int], None], before: int, rows: int) -> None:
    done(before + rows)
