"""Preparation of a data set: from the clips of a source to records that load fast, resumable at any point.

A pool of processes decodes, crops and resizes each clip once and *stages* it as a file of its own (`staging.py`).
Staged clips are packed in order as a TFDS data set (`records.py`). The manifest is written last (`manifest.py`).
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vf.data import datasets
from vf.data.decode import printable, words
from vf.data.embeddings import Embeddings, Layout
from vf.data.listing import Item, Listing
from vf.data.manifest import MANIFEST, make_manifest, read_manifest
from vf.data.processes import Workers
from vf.data.staging import STAGES, Parameters, read_staged, stage, staged_facts, staged_name
from vf.types import UserError


class Preparation:
    """One run: stages what is not staged yet, and packs all.

    Args:
        parameters: what to make.
        found: the clips of the source.
        out: the data set's folder.
        workers: processes that decode.
        embeddings: those of all clips of `found`, or None.
    """

    def __init__(
        self,
        parameters: Parameters,
        found: Listing,
        out: Path,
        workers: int,
        embeddings: Embeddings | None,
    ) -> None:
        self.parameters, self.found, self.out, self.workers = parameters, found, out, workers
        self.embeddings = embeddings
        self.layout = embeddings.layout if embeddings else Layout()
        self.folder = out / ".staging"
        self.facts: dict[str, dict[str, Any]] = {}  # by name; with "rejected" where a clip was lost
        self.spent: Counter[str] = Counter()  # seconds of each stage

    def run(self) -> dict[str, Any]:
        """The manifest. Raises UserError where nothing is left, or `out` cannot be written."""
        started = time.perf_counter()
        splits = sorted({item.split for item in self.found.items}, key=("train", "val", "test").index)
        workers = Workers(self.workers, stage)
        try:
            while True:
                kept = {split: [i for i in self.found.items if i.split == split] for split in splits}
                try:
                    packed = self._pack(workers, kept)
                    break
                except _EmptySplit as empty:  # every clip of it was rejected: pack the others
                    splits = [split for split in splits if split != empty.split]
                    if not splits:
                        raise UserError(f"every clip was rejected, for example {self._example()}") from None
        finally:
            workers.close()
        spent = {name: float(self.spent[name]) for name in STAGES}
        seconds = {**spent, "all": time.perf_counter() - started, "workers": self.workers}
        return make_manifest(
            self.parameters, self.found, self.facts, splits, builder=packed, embeddings=self.layout, seconds=seconds
        )

    def _example(self) -> str:
        name, facts = next((n, f) for n, f in self.facts.items() if "rejected" in f)
        return f"{printable(name)}: {facts['rejected']}"

    def _pack(self, workers: Workers, kept: dict[str, list[Item]]) -> Path:
        from vf.data.records import pack  # the pool's processes do without TFDS

        items = [item for split in kept.values() for item in split]
        in_order = self._stage_all(workers, items)
        clips = {split: self._clips(split, in_order, len(own)) for split, own in kept.items()}
        about = {name: getattr(self.parameters, name) for name in ("size", "encoding", "quality", "crop", "resize")}
        return pack(self.out, self.parameters.dataset, clips, self.found.classes, self.layout, about)

    def _clips(self, split: str, in_order: Iterator[tuple[Item, Path | None]], count: int) -> Iterator[Any]:
        from vf.data.records import StagedClip

        empty = True
        for item, path in itertools.islice(in_order, count):
            if path is None:
                continue
            empty = False
            facts, frames = read_staged(path)
            name = printable(item.name)
            embeddings = self.embeddings.of(name) if self.embeddings else {}
            started = time.perf_counter()
            yield StagedClip(name, item.label, item.caption, facts["fps"], frames, embeddings)
            self.spent["pack"] += time.perf_counter() - started  # type: ignore[assignment]
        if empty:
            raise _EmptySplit(split)

    def _stage_all(self, workers: Workers, items: list[Item]) -> Iterator[tuple[Item, Path | None]]:
        """(clip, staged file or None where it was rejected), in order, with a bounded number of clips under way."""
        quiet = {"mininterval": 0.2 if sys.stderr.isatty() else 10.0}
        under_way: deque[tuple[Item, Path, Any]] = deque()
        rest = iter(items)
        with tqdm(total=len(items), desc="preparing", unit="clip", **quiet) as bar:
            while True:
                for item in itertools.islice(rest, max(0, 16 * self.workers - len(under_way))):
                    target = self.folder / staged_name(item)
                    known = self.facts.get(item.name) or staged_facts(target)
                    under_way.append((item, target, known or workers.submit(item, self.parameters, target)))
                if not under_way:
                    return
                item, target, job = under_way.popleft()
                facts = job if isinstance(job, dict) else workers.result(job, item, self.parameters, target)
                seconds = facts.pop("seconds", {})
                if job is not facts:  # else it was done by an earlier run
                    self.spent.update(seconds)
                self.facts[item.name] = facts = self._checked(item, facts)
                bar.update()
                yield item, None if "rejected" in facts else target

    def _checked(self, item: Item, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of a clip; rejected where its embeddings are those of a video of another length."""
        if self.embeddings is None or "rejected" in facts:
            return facts
        frames, expected = facts["frames"], self.embeddings.frames(printable(item.name))
        if expected in (None, frames):
            return facts
        return {"rejected": f"has {frames} frames, and the file of embeddings says {expected}"}


class _EmptySplit(Exception):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.split = split


def prepare(parameters: Parameters, out: Path, workers: int, strict: bool = False) -> dict[str, Any]:
    """Prepares what `parameters` say below `out`, or goes on with it; returns the manifest.

    Raises UserError where the source is not as expected, `out` holds something else or cannot be written, nothing is
    left, or `strict` and a clip was lost (finished clips stay staged).
    """
    manifest = out / MANIFEST
    if manifest.exists():
        shutil.rmtree(out / ".staging", ignore_errors=True)  # where a run was killed at its very end
        return _finished(out, parameters, strict)
    splits, table = (Path(p) if p else None for p in (parameters.splits, parameters.table))
    found = datasets.DATASETS[parameters.dataset](Path(parameters.source), splits, parameters.fold, table)
    if not found.items:
        reason = "; ".join(f"{printable(name)}: {why}" for name, why in itertools.islice(found.lost.items(), 3))
        raise UserError(f"no clip of {parameters.source} can be used: {reason}")
    embeddings = _embeddings(parameters.embeddings, found.items) if parameters.embeddings else None
    with locked_staging(out, parameters) as folder:
        if manifest.exists():  # another run has finished since
            return _finished(out, parameters, strict)
        made = Preparation(parameters, found, out, workers, embeddings).run()
        _be_strict(strict, made["rejected"])
        aside = folder / MANIFEST
        aside.write_text(json.dumps(made, indent=1))
        aside.replace(manifest)
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _finished(out: Path, parameters: Parameters, strict: bool) -> dict[str, Any]:
    made = read_manifest(out)
    _same(made["parameters"], parameters, f"{out} is prepared already")
    _be_strict(strict, made["rejected"])
    return made | {"already": True}


def _be_strict(strict: bool, rejected: dict[str, str]) -> None:
    if strict and rejected:
        told = "; ".join(f"{name}: {why}" for name, why in itertools.islice(rejected.items(), 5))
        raise UserError(f"{len(rejected)} clips were rejected, and none may be: {told}", "strict")


def _same(old: dict[str, Any], parameters: Parameters, where: str) -> None:
    """UserError where `old` parameters are others."""
    new = dataclasses.asdict(parameters)
    if differ := [f"{name} was {old.get(name)!r} and is {new[name]!r}" for name in new if old.get(name) != new[name]]:
        raise UserError(
            f"{where} with other parameters ({'; '.join(differ)}): delete it, or choose another folder", "out"
        )


@contextlib.contextmanager
def locked_staging(out: Path, parameters: Parameters) -> Iterator[Path]:
    """The staging folder, locked against a second preparation; keeps what it holds if the parameters are the same."""
    folder = out / ".staging"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        known = folder / "parameters.json"
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another preparation is writing to {out}: wait for it, or choose another folder", "out"
                ) from None
            if known.exists():
                _same(json.loads(known.read_text()), parameters, f"{out} holds an unfinished preparation")
            known.write_text(json.dumps(dataclasses.asdict(parameters)))
            for half in out.glob("*/incomplete.*"):  # of an earlier, killed packing
                shutil.rmtree(half, ignore_errors=True)
            yield folder
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {words(error)}; make room, then give the same command again: finished clips are "
            "kept; or choose another folder",
            "out",
        ) from error


def _embeddings(file: str, items: list[Item]) -> Embeddings:
    """Those of all `items`. Raises UserError where the file is not as it should be, or one is missing."""
    found = Embeddings(file)
    if missing := found.missing([printable(item.name) for item in items]):
        raise UserError(f"{file} has no embeddings of {len(missing)} clips, the first is {missing[0]}", "embeddings")
    return found
