"""Batches of records, in an order that is a function of (seed, step) alone.

Row j of global batch n is example g = n * B + j of the run. It is record permutation(seed, g // N)[g % N] of the N
records, and its random choices come from a generator keyed by (seed, g). So a run that restarts at step n, or on
another number of hosts, sees the same examples, and a checkpoint needs no loader state.

grain reads ahead, by threads or processes; order and batches are made here, for three reasons. The rows of a process
may lie anywhere in a batch, and grain takes slices. With grain's shuffle and generators every run would see other
examples than before. And grain reads batches of single elements at half the speed of the blocks of rows below (2 cores,
128 clips of 16 x 64 x 64).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from vf.data.processes import follow_parent
from vf.types import UserError, counted

_EXAMPLES = 2**32  # example numbers are uint32


class BadRecord(Exception):
    """A record cannot be read; the message says which one and why."""


class Source(Protocol):
    """A data set as numbered records, each a clip. `clip` is called from several threads at once."""

    @property
    def num_classes(self) -> int:
        """Number of classes, whose labels are 0 ... num_classes - 1; 0 for data without (every label is then 0)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of labels."""

    @property
    def fps(self) -> float:
        """Frames per second at which a clip plays as fast as what it shows; 0 where that is unknown."""

    def describe(self) -> dict[str, Any]:
        """Which clips these are and how they are read, ready for JSON: a part of the protocol of every score."""

    def __len__(self) -> int:
        """Number of records."""

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """One clip: `video` u8 [f h w 3], `label` i32 [], `embedding` f32 [d] where the data has one, and `tokens` i32
        [t] of its caption where these are asked for.

        A source whose records are read for their embeddings alone gives no `video`.
        `embedding` is that of the clip's base frame; `mirrored_embedding` f32 [d], that of the same frame mirrored left
        to right, replaces it where the clip is mirrored. `rng` chooses the window; None takes the middle one, as
        evaluation does. Raises BadRecord where the record cannot be read.
        """


@dataclass(frozen=True)
class NoClips:
    """A source without clips, for jobs that read none: sampling without data, and planning."""

    class_names: tuple[str, ...] = ()
    embedding_dim: int = 0
    fps: float = 0.0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def describe(self) -> dict[str, Any]:
        """As for every source."""
        return {"source": "none"}

    def __len__(self) -> int:
        return 0

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Raises BadRecord."""
        raise BadRecord(f"there is no record {record}")


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    rows: Sequence[int] | None = None,
    shuffle: bool = True,
    flip: bool = False,
    threads: int = 8,
    workers: int = 0,
    read_ahead: int = 2,
) -> "Batches":
    """An endless iterator over rows of the global batches `start`, `start + 1`, ....

    Args:
        source: the records.
        seed: 0 ... 2**64 - 1; determines the order and every random window.
        batch_size: B, rows of the global batch.
        start: first step; earlier batches are not read.
        rows: which rows of each global batch this process reads, in order; None for all.
        shuffle: False takes records in the order of the source.
        flip: whether every second clip, at random, is mirrored left to right; clips with an embedding then need a
            mirrored one.
        threads: threads that read; 0 reads in the caller's thread. Unused with workers.
        workers: processes that read, for records that keep Python itself busy; 0 reads in this process. `source` is
            pickled into each.
        read_ahead: batches that are read before they are needed; at least one for each worker.

    Returns:
        An iterator over `{video u8 [b f h w 3], label i32 [b], index u32 [b], ...}`, b = len(rows); `index` is g, and
        further fields of the source are stacked in the same way.

    Raises:
        UserError: the source is empty, or has no such rows; while iterating, when more than 1 % of 100 or more
            records, or all of fewer, cannot be read, or a clip is to be mirrored and has no mirrored embedding.
    """
    if not len(source):
        raise UserError("The data source has no records: name one that has", "source")
    chosen = range(batch_size) if rows is None else [int(row) for row in rows]
    if not chosen or min(chosen) < 0 or max(chosen) >= batch_size:
        raise UserError(f"A batch needs rows, of 0 to batch_size - 1 = {batch_size - 1}, but these are {list(chosen)}.")
    # Reading ahead costs per element: a block of rows for each thread keeps all busy at a small price. Between
    # processes a whole batch is handed over in shared memory, without another copy here.
    block_rows = len(chosen) if workers else -(-len(chosen) // max(1, threads))
    blocks = _Blocks(source, seed, shuffle, flip, batch_size, start, tuple(chosen), block_rows)
    return Batches(blocks, threads, workers, read_ahead)


def _in_worker(index: int, count: int) -> None:
    follow_parent()


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over batches; see `batches`. Close it, or use it in a `with`, to end its threads and processes."""

    bad: dict[int, str]
    """{record: reason} of the records of the batches so far that could not be read."""

    waited: float
    """Seconds that callers have waited for batches."""

    def __init__(self, blocks: "_Blocks", threads: int, workers: int, read_ahead: int):
        self.bad, self.waited = {}, 0.0
        self._records = len(blocks.source)
        self._per_batch = blocks.per_batch
        if workers:
            if not flags.FLAGS.is_parsed():  # grain reads absl flags
                flags.FLAGS.mark_as_parsed()
            each = -(-read_ahead // workers) or 1
            options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each)
            dataset = grain.MapDataset.source(blocks).to_iter_dataset(options)
            self._blocks = iter(dataset.mp_prefetch(processes, worker_init_fn=_in_worker))
        else:
            ahead = read_ahead * blocks.per_batch if threads else 0
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
            self._blocks = iter(grain.MapDataset.source(blocks).to_iter_dataset(options))

    def __next__(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        parts = [next(self._blocks) for _ in range(self._per_batch)]
        for part in parts:
            _add_bad(self.bad, part.bad, self._records)
        fields = parts[0].fields
        if len(parts) > 1:
            fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in fields}
        self.waited += time.perf_counter() - started
        return fields

    def close(self) -> None:
        """Stops reading ahead; threads end after their current clip. No further batches can be read."""
        self._blocks.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fixed_clips(source: Source, n: int, seed: int = 0, threads: int = 8) -> dict[str, np.ndarray]:
    """`n` clips, the same on every host: `{video u8 [n f h w 3], label i32 [n], index u32 [n], ...}`.

    They are the middle windows of the first n records of a permutation; where n exceeds the number of records, further
    passes give random windows. `index` is 0 ... n - 1. Raises UserError as `batches` does.
    """
    if not len(source):
        raise UserError("The data source has no records: name one that has", "source")

    def read(g: int) -> _Example:
        return _read(source, seed, g, shuffle=True, flip=False, middle=g < len(source))

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="fixed-clips") as pool:
        examples = list(pool.map(read, range(n)))
    for example in examples:
        _add_bad(bad, example.bad, len(source))
    return _stack(examples)


MOST_COUNTED, MOST_EMBEDDED = 20_000, 2_000  # records from which statistics are computed


def embedding_statistics(
    source: Source, mirrored: bool, threads: int = 8, embed: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) of the embeddings of a source's records, f32 [d] each.

    They are those of the middle windows of all records, or of `MOST_COUNTED` that are spread over them evenly. A number
    that is the same everywhere has deviation 1.

    Args:
        source: the records.
        mirrored: whether embeddings of mirrored frames, where the data has them, count too.
        threads: threads that read.
        embed: what makes an embedding of a clip u8 [f h w 3], for at most `MOST_EMBEDDED` of them; None reads the
            records'.
    """
    most = min(len(source), MOST_COUNTED if embed is None else MOST_EMBEDDED)
    chosen = np.unique(np.linspace(0, len(source) - 1, most).round().astype(int))

    def read(record: int) -> list[np.ndarray]:
        try:
            clip = source.clip(record, None)
        except BadRecord:
            return []
        if embed is not None:
            return [embed(clip["video"])]
        return [clip[name] for name in ("embedding", "mirrored_embedding")[: 1 + mirrored] if name in clip]

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="statistics") as pool:
        rows = np.stack([row for rows in pool.map(read, chosen.tolist()) for row in rows]).astype(np.float64)
    deviation = rows.std(0)
    return rows.mean(0).astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


class _Example(NamedTuple):
    number: int
    clip: Mapping[str, np.ndarray]
    bad: dict[int, str]


class _Part(NamedTuple):
    """Neighbouring rows of a batch."""

    fields: dict[str, np.ndarray]
    bad: dict[int, str]


@dataclass(frozen=True)
class _Blocks:
    """Random access to blocks of the rows of one process, which are the elements that grain reads ahead."""

    source: Source
    seed: int
    shuffle: bool
    flip: bool
    batch_size: int
    start: int
    rows: tuple[int, ...]  # rows of each global batch that this process reads
    block_rows: int

    @property
    def per_batch(self) -> int:
        return -(-len(self.rows) // self.block_rows)

    def __len__(self) -> int:
        return max(0, _EXAMPLES // self.batch_size - self.start) * self.per_batch

    def __getitem__(self, block: Any) -> _Part:
        step, part = divmod(int(block), self.per_batch)
        first = (self.start + step) * self.batch_size
        rows = self.rows[part * self.block_rows : (part + 1) * self.block_rows]
        examples = [_read(self.source, self.seed, first + row, self.shuffle, self.flip) for row in rows]
        bad = {record: why for example in examples for record, why in example.bad.items()}
        return _Part(_stack(examples), bad)


def _read(source: Source, seed: int, g: int, shuffle: bool, flip: bool, middle: bool = False) -> _Example:
    """Example g. Where its record cannot be read, the next one of the source takes its place, whatever the order."""
    records = len(source)
    epoch, position = divmod(g, records)
    record = int(_permutation(seed, epoch, records)[position]) if shuffle else position
    bad: dict[int, str] = {}
    while True:
        try:
            clip = dict(source.clip(record, None if middle else _generator(seed, _WINDOW, g)))
            mirrored = clip.pop("mirrored_embedding", None)
            if flip and "embedding" in clip and mirrored is None:
                raise UserError(
                    "Clips are to be mirrored, and the data has no embeddings of mirrored frames: set flip to False, "
                    "or prepare it into another folder with --embed-mirrored, or with `mirrored` in the file of "
                    "embeddings",
                    "flip",
                )
            if flip and _generator(seed, _FLIP, g).random() < 0.5:
                if "video" in clip:
                    clip["video"] = clip["video"][:, :, ::-1]
                if mirrored is not None:
                    clip["embedding"] = mirrored
            return _Example(g, clip, bad)
        except BadRecord as error:
            bad[record] = str(error)
            _check_bad(bad, records)
            record = (record + 1) % records


_WINDOW, _ORDER, _FLIP = range(3)  # purposes of generators: append, never renumber


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """A generator for one purpose. Philox is a keyed function of a counter: distinct keys give independent numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose << 32 | number], np.uint64)))


@lru_cache(maxsize=4)  # a batch belongs to one epoch or two
def _permutation(seed: int, epoch: int, records: int) -> np.ndarray:
    return _generator(seed, _ORDER, epoch).permutation(records)


def _check_bad(bad: Mapping[int, str], records: int) -> None:
    """Raises UserError where more records are bad than a run may replace by others."""
    allowed = records // 100 if records >= 100 else records - 1
    if len(bad) > allowed:
        reasons = "; ".join(list(bad.values())[:10]) + ("; ..." if len(bad) > 10 else "")
        raise UserError(
            f"{len(bad)} of {counted(records, 'record')} cannot be read, where at most {allowed} may fail: {reasons}. "
            "Repair or remove them."
        )


def _add_bad(bad: dict[int, str], new: Mapping[int, str], records: int) -> None:
    """Adds the bad records `new` to `bad`, and logs each once. Raises UserError as `_check_bad`."""
    for record, reason in new.items():
        if record not in bad:
            bad[record] = reason
            logging.warning("record %d cannot be read, the next one takes its place: %s", record, reason)
    _check_bad(bad, records)


def _stack(examples: list[_Example]) -> dict[str, np.ndarray]:
    batch = {name: np.stack([example.clip[name] for example in examples]) for name in examples[0].clip}
    return batch | {"index": np.array([example.number for example in examples], np.uint32)}
