"""Draws samples in shards, which a job that was killed need not draw again, and long clips window by window.

A long clip is drawn in windows of the model's length, in memory on the device that does not grow with it: in turn, as
here, where of each window the first frames are known as the last of the one before (Ho et al. 2022, section 3.1; the
paper's own 512-frame videos extend clips so, by our reading, with their base noise kept); or together (`vf.jobs.
together`).
"""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from vf import files, video
from vf.diffusion.windows import Extension
from vf.files import AnyPath
from vf.run import media

Done = Callable[[int], None]
"""Is told how much of the work is done, in windows of clips."""
Make = Callable[[dict[str, np.ndarray], str, Done], np.ndarray]
"""(rows of conditions and control [n ...], the name of a shard, done) -> its clips u8 [n length h w 3]."""
Program = Callable[[int, dict[str, np.ndarray], Done], np.ndarray]
"""(number of a window, rows, done) -> the window u8 [m f h w 3]. In all but the first `known` are the rows' known
frames."""
SHARD_BYTES = 16 << 20  # of clips that a killed job draws again at most, unless a batch is larger


class Parts:
    """Arrays that are made one after the other, each on disk as soon as it is made, until `remove`.

    Args:
        folder: where they lie.
        is_writer: whether this process writes and reads them; the others get them from it.
        found: is told how many clips were there already, each time.
    """

    def __init__(self, folder: AnyPath, *, is_writer: bool, found: Done = lambda clips: None) -> None:
        self.folder, self._is_writer, self.found = folder, is_writer, found

    def get(
        self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], **further: np.ndarray
    ) -> np.ndarray:
        """Clips u8 of `shape` that were made before under this name, or those that `make` makes.

        further: arrays [n ...] that are written beside them.
        """
        path = self.folder / f"{name}.npz"
        found = self._shared(path, {"clips": np.zeros(shape, np.uint8)}, lambda: video.load_npz(path))
        if found is None:
            clips = make()
            if self._is_writer:
                video.save_npz(path, clips, **further)
            return clips
        self.found(len(found["clips"]))
        return found["clips"]

    def keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps how far something under this name is, in place of what was kept before."""
        if self._is_writer:
            with files.replacing(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

    def kept(self, name: str, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """What was kept, arrays like those of `like`; None for nothing."""
        path = self.folder / f"{name}.npz"

        def load() -> dict[str, np.ndarray]:
            with files.open_bytes(path) as raw, np.load(raw) as file:
                return dict(file)

        return self._shared(path, like, load)

    def _shared(
        self, path: AnyPath, like: Mapping[str, np.ndarray], load: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray] | None:
        """The arrays of a file, on every process; None where it is missing."""
        there = self._is_writer and path.exists()
        if jax.process_count() > 1:
            there = bool(multihost_utils.broadcast_one_to_all(np.asarray(there)))
        if not there:
            return None
        loaded = load() if self._is_writer else like
        found = {name: loaded[name] for name in like}
        return multihost_utils.broadcast_one_to_all(found) if jax.process_count() > 1 else found

    def remove(self, but: tuple[str, ...] = ()) -> None:
        """Removes all of them but some names: when what they make up is written, or the rest is of another job."""
        if not self._is_writer:
            return
        if not but and not files.is_remote(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in files.children(self.folder):
            if path.stem not in but:
                path.unlink()


def forget(workdir: AnyPath) -> None:
    """Removes what killed jobs have left of drawings in a run's folder: their weights are no more."""
    for one in media.drawings(workdir):
        for left in ("parts", "low"):  # the latter, of clips that were to be taken up
            Parts(one.folder / left, is_writer=True).remove()
        if not (one.folder / "meta.json").is_file():
            Parts(one.folder / media.SHARDS, is_writer=True).remove()


def shards(count: int, size: int, extension: Extension, batch_size: int) -> list[slice]:
    """Which of `count` clips of `size` x `size` pixels are drawn one after the other.

    Those of one frame or window in whole batches; of long clips that are denoised together batches are of windows, so
    that `batch_size` is 1.
    """
    each = extension.length * size * size * 3
    shard = max(1, SHARD_BYTES // each // batch_size) * batch_size
    return [slice(first, min(first + shard, count)) for first in range(0, count, shard)]


def shard_name(shard: slice) -> str:
    """The name of a shard. Of a batch of another size other clips are drawn together, under another name."""
    return f"clips_{shard.start:06d}_{shard.stop:06d}"


def draw(
    rows: Mapping[str, np.ndarray], chosen: Sequence[slice], extension: Extension, size: int, make: Make, done: Done,
    parts: Parts | None, beside: Mapping[str, np.ndarray],
) -> Iterator[np.ndarray]:  # fmt: skip
    """The clips u8 [n length size size 3] of each shard.

    Args:
        rows: conditions and control of all samples, [n ...].
        chosen: the shards, as `shards` gives them.
        extension: the windows of a clip.
        size: height and width.
        make: draws the clips of a shard.
        done: is told how much is done of all.
        parts: keeps the shards that are drawn; None for none.
        beside: arrays [n ...] that are kept with them.
    """
    for shard in chosen:
        some, further = ({name: value[shard] for name, value in all_.items()} for all_ in (rows, beside))
        name, count = shard_name(shard), shard.stop - shard.start
        told = functools.partial(_after, done, shard.start * (extension.further + 1))
        made = functools.partial(make, some, name, told)
        shape = (count, extension.length, size, size, 3)
        yield made() if parts is None else parts.get(name, shape, made, **further)
        told(count * (extension.further + 1))


def in_turn(
    rows: dict[str, np.ndarray], name: str, done: Done, *, extension: Extension, size: int, parts: Parts | None,
    program: Program,
) -> np.ndarray:  # fmt: skip
    """The clips u8 [n length size size 3] of a shard `name`, a window after the other.

    parts: keeps windows that are drawn; None for none.
    """
    count = len(next(iter(rows.values())))
    shape = (count, extension.frames, size, size, 3)
    long: list[np.ndarray] = []
    made = np.zeros(shape, np.uint8)
    for number in range(extension.further + 1):
        if number:
            known = np.zeros(shape, np.uint8)
            known[:, : extension.overlap] = made[:, -extension.overlap :]
            rows = rows | {"known": known}
        make = functools.partial(program, number, dict(rows), functools.partial(_after, done, number * count))
        made = make() if parts is None else parts.get(f"{name}_window_{number:05d}", shape, make)
        long.append(made[:, extension.overlap if number else 0 :])
    return np.concatenate(long, axis=1)[:, : extension.length]


def _after(done: Done, before: int, windows: int) -> None:
    done(before + windows)
