"""Prepares a data set: turns the clips of a source into records that load fast. It can be resumed at any point.

A pool of processes decodes, crops and resizes each clip once and *stages* it in a separate file (`staging.py`). Staged
clips are packed in order as a TFDS data set (`records.py`). The manifest is written last (`manifest.py`). Where videos
are cut into shots (`shots.py`), whole videos are staged first, and each shot is then packed as a clip.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vf.activity import ACTIVITY
from vf.data import datasets
from vf.data.decode import error_text, printable
from vf.data.embedder import Embedder
from vf.data.embeddings import Embeddings, Layout
from vf.data.listing import STAGING, Item, Listing
from vf.data.manifest import MANIFEST, make_manifest, read_manifest
from vf.data.notes import is_loss
from vf.data.processes import Workers
from vf.data.shots import Rules, Shot, shot_name
from vf.data.staging import STAGES, Parameters, read_staged, stage, staged_facts, staged_name
from vf.types import UserError, counted


class Preparation:
    """One run of a preparation: stages the clips that are not staged yet, and packs all.

    Args:
        parameters: of the prepared data.
        listing: the clips of the source.
        out: the data set's folder.
        workers: number of processes that decode.
        embeddings: embeddings of all clips of `listing`, or what makes them; None for data without.
    """

    def __init__(
        self,
        parameters: Parameters,
        listing: Listing,
        out: Path,
        workers: int,
        embeddings: Embeddings | Embedder | None,
    ) -> None:
        self.parameters, self.listing, self.out, self.workers = parameters, listing, out, workers
        self.embeddings = embeddings
        self.layout = embeddings.layout if embeddings else Layout()
        self.folder = out / STAGING
        self.facts: dict[str, dict[str, Any]] = {}  # by name; with "rejected" where a clip was lost
        self.shots: dict[str, dict[str, Any]] = {}  # of each video that is cut: the manifest's `shots`
        self.places: dict[str, tuple[Path, Shot]] = {}  # of each shot: its video's staged file, and its frames there
        self.seconds: Counter[str] = Counter()  # spent in each stage

    @ACTIVITY.doing("preparing clips")
    def run(self) -> dict[str, Any]:
        """Prepares the data; returns the manifest. Raises UserError where no clip is left, or `out` is not writable."""
        started = time.perf_counter()
        workers = Workers(self.workers, stage)
        try:
            if self.parameters.shots:
                self._cut(workers, self.parameters.shots)
            splits = sorted({item.split for item in self.listing.items}, key=("train", "val", "test").index)
            while True:
                by_split = {split: [i for i in self.listing.items if i.split == split] for split in splits}
                try:
                    packed = self._pack(workers, by_split)
                    break
                except _EmptySplit as empty:  # every clip of this split was rejected: pack the other splits
                    splits = [split for split in splits if split != empty.split]
                    if not splits:
                        raise UserError(f"every clip was rejected, for example {self._example()}") from None
        finally:
            workers.close()
        by_stage = {name: float(self.seconds[name]) for name in STAGES}
        seconds = {**by_stage, "all": time.perf_counter() - started, "workers": self.workers}
        embedder = self.embeddings.protocol if isinstance(self.embeddings, Embedder) else None
        return make_manifest(
            self.parameters, self.listing, self.facts, splits,
            builder=packed, embeddings=self.layout, embedder=embedder, shots=self.shots, seconds=seconds,
        )  # fmt: skip

    def _cut(self, workers: Workers, rules: Rules) -> None:
        """Stages all videos, and puts the shots that are used in their place. Raises UserError where there is none."""
        videos, shots = self.listing.items, list[Item]()
        has_splits = any(item.split != "train" for item in videos)  # from folders or a table
        for item, path in self._stage_all(workers, videos):
            if path is None:
                continue
            video, facts = printable(item.name), self.facts[item.name]
            self.shots[video] = {"frames": facts["frames"], "fps": facts["fps"], "shots": (listed := [])}
            for shot in (Shot(**fields) for fields in facts["shots"]):
                entry = {name: value for name, value in shot._asdict().items() if name != "left_out"}
                name = shot_name(item.name, shot.first)
                split = item.split if has_splits else rules.split(name)
                listed.append(entry | ({"left_out": shot.left_out} if shot.left_out else {"split": split}))
                if not shot.left_out:
                    shots.append(dataclasses.replace(item, name=name, split=split))
                    self.places[name] = path, shot
                    self.facts[name] = {"frames": shot.frames, "fps": facts["fps"], "sha256": facts["sha256"]}
            if not any("split" in entry for entry in listed):
                reasons = Counter(shot["left_out"] for shot in facts["shots"]).most_common(1)
                self.facts[item.name] = {"rejected": f"no shot of it can be used; most often: {reasons[0][0]}"}
        if not shots:
            raise UserError(f"no shot of any video can be used, for example {self._example()}")
        self.listing = dataclasses.replace(self.listing, items=shots)

    def _example(self) -> str:
        name, facts = next((n, f) for n, f in self.facts.items() if "rejected" in f)
        return f"{printable(name)}: {facts['rejected']}"

    def _pack(self, workers: Workers, by_split: dict[str, list[Item]]) -> Path:
        from vf.data.records import pack  # here, since processes of the pool need no TFDS

        items = [item for split in by_split.values() for item in split]
        if self.parameters.shots:
            in_order: Iterator[tuple[Item, Path | None]] = ((item, self.places[item.name][0]) for item in items)
        else:
            in_order = self._stage_all(workers, items)
        clips = {split: self._clips(split, in_order, len(items_of_split)) for split, items_of_split in by_split.items()}
        about = {name: getattr(self.parameters, name) for name in ("size", "encoding", "quality", "crop", "resize")}
        return pack(self.out, self.parameters.dataset, clips, self.listing.classes, self.layout, about)

    def _clips(self, split: str, in_order: Iterator[tuple[Item, Path | None]], count: int) -> Iterator[Any]:
        from vf.data.records import StagedClip

        empty = True
        for item, path in itertools.islice(in_order, count):
            if path is None:
                continue
            empty = False
            shot = self.places[item.name][1] if self.parameters.shots else None
            facts, frames = read_staged(path, shot.first, shot.frames) if shot else read_staged(path)
            name = printable(item.name)
            # Embeddings are kept beside the staged file, those of each shot of a film by themselves.
            own = path.with_suffix(f".{shot.first}_{shot.frames}{path.suffix}") if shot else path
            embeddings = self._embeddings_of(name, frames, own)
            started = time.perf_counter()
            yield StagedClip(name, item.label, item.caption, facts["fps"], frames, embeddings)
            self.seconds["pack"] += time.perf_counter() - started  # type: ignore[assignment]
        if empty:
            raise _EmptySplit(split)

    def _embeddings_of(self, name: str, frames: list[memoryview], staged: Path) -> dict[str, Any]:
        """Embeddings of a staged clip by field of its record; {} for data without."""
        if not isinstance(self.embeddings, Embedder):
            return self.embeddings.of(name) if self.embeddings else {}
        started = time.perf_counter()
        made = self.embeddings.of(name, frames, self.parameters.encoding, self.parameters.size, staged)
        self.seconds["embed"] += time.perf_counter() - started  # type: ignore[assignment]
        return made

    def _stage_all(self, workers: Workers, items: list[Item]) -> Iterator[tuple[Item, Path | None]]:
        """Yields (clip, staged file or None where it was rejected) in order; the number of clips in work is bounded."""
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
                    self.seconds.update(seconds)
                self.facts[item.name] = facts = self._checked(item, facts)
                if bar.update():
                    ACTIVITY.printed(is_line_open=sys.stderr.isatty())
                yield item, None if "rejected" in facts else target

    def _checked(self, item: Item, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of a clip, which is rejected where its embeddings belong to a video of another length."""
        if not isinstance(self.embeddings, Embeddings) or "rejected" in facts:
            return facts
        frames, expected = facts["frames"], self.embeddings.frames(printable(item.name))
        if expected in (None, frames):
            return facts
        return {"rejected": f"has {counted(frames, 'frame')}, and the file of embeddings says {expected}"}


class _EmptySplit(Exception):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.split = split


@ACTIVITY.doing("listing the clips")
def prepare(
    parameters: Parameters,
    out: Path,
    workers: int,
    strict: bool = False,
    make_embedder: Callable[[], Embedder] | None = None,
) -> dict[str, Any]:
    """Prepares a data set in `out`, or continues an earlier preparation of it; returns the manifest.

    Args:
        parameters: of the prepared data.
        out: the data set's folder.
        workers: number of processes that decode.
        strict: whether to fail where a clip is lost; finished clips then stay staged.
        make_embedder: makes what `parameters.embed` names; needed where it names something.

    Raises UserError where the source is not as expected, `out` holds other data or cannot be written, no clip is left,
    or one is lost and `strict` forbids that.
    """
    if parameters.shots and parameters.dataset != "folder":
        raise UserError(f"videos of {parameters.dataset} are clips already: only those of a folder are cut", "shots")
    if parameters.shots and parameters.embeddings:
        raise UserError(
            "embeddings go by the names of clips, and shots get theirs as they are cut: leave one out", "shots"
        )
    manifest = out / MANIFEST
    if manifest.exists():
        shutil.rmtree(out / STAGING, ignore_errors=True)  # left where a run was killed at its very end
        return _finished(out, parameters, strict)
    splits, table = (Path(p) if p else None for p in (parameters.splits, parameters.table))
    listing = datasets.DATASETS[parameters.dataset](Path(parameters.source), splits, parameters.fold, table)
    if not listing.items:
        reason = "; ".join(f"{printable(name)}: {why}" for name, why in itertools.islice(listing.lost.items(), 3))
        raise UserError(f"no clip of {parameters.source} can be used: {reason}")
    embeddings: Embeddings | Embedder | None = None
    if parameters.embeddings:
        embeddings = _embeddings(parameters.embeddings, listing.items)
    elif parameters.embed:
        if make_embedder is None:
            raise ValueError(f"embeddings of {parameters.embed} need make_embedder")
        embeddings = make_embedder()
    with locked_staging(out, parameters) as folder:
        if manifest.exists():  # another run has finished since
            return _finished(out, parameters, strict)
        result = Preparation(parameters, listing, out, workers, embeddings).run()
        _check_losses(strict, result)
        temporary = folder / MANIFEST
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(manifest)
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _finished(out: Path, parameters: Parameters, strict: bool) -> dict[str, Any]:
    result = read_manifest(out)
    _check_parameters(result["parameters"], parameters, f"{out} is prepared already")
    _check_losses(strict, result)
    return result | {"already": True}


def _check_losses(strict: bool, manifest: dict[str, Any]) -> None:
    rejected = manifest["rejected"]
    if strict and rejected:
        reasons = "; ".join(f"{name}: {why}" for name, why in itertools.islice(rejected.items(), 5))
        raise UserError(f"{counted(len(rejected), 'clip')} rejected, and none may be: {reasons}", "strict")
    losses = [f"{name}: {note}" for name, notes in manifest["notes"].items() for note in notes if is_loss(note)]
    if strict and losses:
        raise UserError(
            f"{counted(len(losses), 'loss')} of pictures, and none may be: {'; '.join(losses[:5])}", "strict"
        )


def _check_parameters(old: dict[str, Any], parameters: Parameters, where: str) -> None:
    """Raises UserError where `old` parameters differ from `parameters`."""
    # Older data has no parameters that were added since.
    added = {f.name: f.default for f in dataclasses.fields(parameters) if f.default not in (dataclasses.MISSING, None)}
    old, new = added | old, added | parameters.to_json()
    differ = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    if differ := [f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in differ]:
        raise UserError(
            f"{where} with other parameters ({'; '.join(differ)}): delete it, or choose another folder", "out"
        )


@contextlib.contextmanager
def locked_staging(out: Path, parameters: Parameters) -> Iterator[Path]:
    """The staging folder, locked against a second preparation.

    Staged clips of an earlier run stay. Raises UserError where these were made with other parameters, another
    preparation holds the lock, or `out` cannot be written.
    """
    folder = out / STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        parameters_file = folder / "parameters.json"
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another preparation is writing to {out}: wait for it, or choose another folder", "out"
                ) from None
            if parameters_file.exists():
                _check_parameters(
                    json.loads(parameters_file.read_text()), parameters, f"{out} holds an unfinished preparation"
                )
            parameters_file.write_text(json.dumps(parameters.to_json()))
            for unfinished in out.glob("*/incomplete.*"):  # of an earlier, killed packing
                shutil.rmtree(unfinished, ignore_errors=True)
            yield folder
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error_text(error)}; make room, then give the same command again: finished clips "
            "are kept; or choose another folder",
            "out",
        ) from error


def _embeddings(file: str, items: list[Item]) -> Embeddings:
    """Embeddings of all `items`. Raises UserError where the file cannot be read or lacks one."""
    embeddings = Embeddings(file)
    if missing := embeddings.missing([printable(item.name) for item in items]):
        raise UserError(
            f"{file} has no embeddings of {counted(len(missing), 'clip')}, the first is {missing[0]}", "embeddings"
        )
    return embeddings
