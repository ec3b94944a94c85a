"""Prepares a data set: from the files that people have to clips that load fast.

    python -m vf.data.prepare {ucf101,sky_timelapse,taichi_hd,weizmann,webvid,folder} --source=DIR --out=DIR

A pool of processes decodes, crops and resizes each clip once and *stages* it as a file of its own; staged clips are
packed in order as a TFDS data set (`vf/data/builders.py`). The manifest is written last: a folder without it is no data
set. The same command goes on where it was stopped, and does nothing where it has finished.

Exit status: 0 all clips are in; 3 done, but clips were lost (each is named in the manifest, with the reason); 2 failed.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from vf.data import datasets
from vf.data.decode import printable, words
from vf.data.embeddings import Embeddings, Layout
from vf.data.encoding import ENCODINGS
from vf.data.listing import Item, Listing
from vf.data.processes import follow_parent
from vf.data.staging import STAGES, Parameters, read_staged, stage, staged_facts, staged_name
from vf.types import UserError

LOST = 3  # exit status where clips were lost


class Stopped(Exception):
    """The system asked to stop."""


class _Crew:
    """Processes that work. A decoder that crashes takes down its process and whatever was under way in the pool: each
    of these jobs is then tried alone, and the one that crashes again is rejected."""

    def __init__(self, workers: int, work: Callable[..., dict[str, Any]] = stage) -> None:
        self._workers, self._work = workers, work
        self._pool, self._alone = self._make(workers), self._make(1)  # a pool starts its processes when it is used,
        for _ in range(workers):  # and this one soon, while TFDS is imported
            self._pool.submit(int)

    @staticmethod
    def _make(workers: int) -> ProcessPoolExecutor:
        # Not fork: TFDS and the progress bar have threads.
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), follow_parent)

    def submit(self, *job: Any) -> "Future[dict[str, Any]]":
        """`work(*job)`, under way."""
        try:
            return self._pool.submit(self._work, *job)
        except BrokenProcessPool:
            self._pool = self._make(self._workers)
            return self._pool.submit(self._work, *job)

    def result(self, future: "Future[dict[str, Any]]", *job: Any) -> dict[str, Any]:
        """What became of the job."""
        try:
            return future.result()
        except BrokenProcessPool:
            try:
                return self._alone.submit(self._work, *job).result()
            except BrokenProcessPool:
                self._alone = self._make(1)
                return {"rejected": "crashes the decoder"}

    def close(self) -> None:
        """Lets the processes finish what they are at, and go."""
        self._pool.shutdown(cancel_futures=True)
        self._alone.shutdown(cancel_futures=True)


class Preparation:
    """One run of the command: stages what is not staged yet, packs, and writes the manifest.

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
        crew = _Crew(self.workers)
        try:
            while True:
                kept = {split: [i for i in self.found.items if i.split == split] for split in splits}
                try:
                    packed = self._pack(crew, kept)
                    break
                except _EmptySplit as empty:  # every clip of it was rejected: pack the others
                    splits = [split for split in splits if split != empty.split]
                    if not splits:
                        raise UserError(f"every clip was rejected, for example {self._example()}") from None
        finally:
            crew.close()
        return self._manifest(packed, splits, time.perf_counter() - started)

    def _example(self) -> str:
        name, facts = next((n, f) for n, f in self.facts.items() if "rejected" in f)
        return f"{printable(name)}: {facts['rejected']}"

    def _pack(self, crew: _Crew, kept: dict[str, list[Item]]) -> Path:
        from vf.data.builders import pack  # the pool's processes do without TFDS

        items = [item for split in kept.values() for item in split]
        in_order = self._stage_all(crew, items)
        clips = {split: self._clips(split, in_order, len(own)) for split, own in kept.items()}
        about = {name: getattr(self.parameters, name) for name in ("size", "encoding", "quality", "crop", "resize")}
        return pack(self.out, self.parameters.dataset, clips, self.found.classes, self.layout, about)

    def _clips(self, split: str, in_order: Iterator[tuple[Item, Path | None]], count: int) -> Iterator[Any]:
        from vf.data.builders import StagedClip

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

    def _stage_all(self, crew: _Crew, items: list[Item]) -> Iterator[tuple[Item, Path | None]]:
        """(clip, staged file or None where it was rejected), in order, with a bounded number of clips under way."""
        quiet = {"mininterval": 0.2 if sys.stderr.isatty() else 10.0}
        under_way: deque[tuple[Item, Path, Any]] = deque()
        rest = iter(items)
        with tqdm(total=len(items), desc="preparing", unit="clip", **quiet) as bar:
            while True:
                for item in itertools.islice(rest, max(0, 16 * self.workers - len(under_way))):
                    target = self.folder / staged_name(item)
                    known = self.facts.get(item.name) or staged_facts(target)
                    under_way.append((item, target, known or crew.submit(item, self.parameters, target)))
                if not under_way:
                    return
                item, target, job = under_way.popleft()
                facts = job if isinstance(job, dict) else crew.result(job, item, self.parameters, target)
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
        return {"rejected": f"has {frames} frames, and --embeddings says {expected}"}

    def _manifest(self, packed: Path, splits: list[str], seconds: float) -> dict[str, Any]:
        from vf.data.builders import FORMAT

        classes = self.found.classes
        label = {name: k for k, name in enumerate(classes)}
        made: dict[str, Any] = {}
        for split in splits:
            items = [i for i in self.found.items if i.split == split and "rejected" not in self.facts[i.name]]
            facts = [self.facts[item.name] for item in items]
            counts = Counter(item.label for item in items)
            made[split] = {
                "clips": len(items),
                "frames": sum(f["frames"] for f in facts),
                "per_class": {name: counts[name] for name in classes if counts[name]},
                "index": {
                    "name": [printable(item.name) for item in items],
                    "frames": [f["frames"] for f in facts],
                    "fps": [f["fps"] for f in facts],
                    "label": [label.get(item.label, 0) for item in items],
                    "sha256": [f["sha256"] for f in facts],
                },
            }
        rejected = {printable(name): f["rejected"] for name, f in self.facts.items() if "rejected" in f}
        notes = {printable(name): f["notes"] for name, f in self.facts.items() if f.get("notes")}
        spent = {name: float(self.spent[name]) for name in STAGES}
        manifest = {
            "format": FORMAT,
            "builder": packed.as_posix(),
            "parameters": dataclasses.asdict(self.parameters),
            "classes": list(classes),
            "embeddings": dataclasses.asdict(self.layout),
            "splits": made,
            "rejected": dict(sorted((self.found_lost() | rejected).items())),
            "notes": notes,
            "unlisted": [printable(name) for name in self.found.unlisted],
            "seconds": {**spent, "all": seconds, "workers": self.workers},
            "libraries": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info},
        }
        decisive = json.dumps([manifest["parameters"], made], sort_keys=True)
        return manifest | {"fingerprint": hashlib.sha256(decisive.encode()).hexdigest()[:12]}

    def found_lost(self) -> dict[str, str]:
        """What the listing already missed."""
        return {printable(name): why for name, why in self.found.lost.items()}


class _EmptySplit(Exception):
    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.split = split


def prepare(parameters: Parameters, out: Path, workers: int, strict: bool = False) -> dict[str, Any]:
    """Prepares what `parameters` say below `out`, or goes on with it; returns the manifest.

    Raises UserError where the source is not as expected, `out` holds something else or cannot be written, nothing is
    left, or `strict` and a clip was lost (finished clips stay staged).
    """
    manifest = out / "manifest.json"
    if manifest.exists():
        shutil.rmtree(out / ".staging", ignore_errors=True)  # where a run was killed at its very end
        return _finished(out, parameters, strict)
    splits, table = (Path(p) if p else None for p in (parameters.splits, parameters.table))
    found = datasets.DATASETS[parameters.dataset](Path(parameters.source), splits, parameters.fold, table)
    if not found.items:
        reason = "; ".join(f"{printable(name)}: {why}" for name, why in itertools.islice(found.lost.items(), 3))
        raise UserError(f"no clip of {parameters.source} can be used: {reason}")
    embeddings = _embeddings(parameters.embeddings, found.items) if parameters.embeddings else None
    with _folder_of_our_own(out, parameters) as folder:
        if manifest.exists():  # another run has finished since
            return _finished(out, parameters, strict)
        made = Preparation(parameters, found, out, workers, embeddings).run()
        _be_strict(strict, made["rejected"])
        aside = folder / "manifest.json"
        aside.write_text(json.dumps(made, indent=1))
        aside.replace(manifest)
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _finished(out: Path, parameters: Parameters, strict: bool) -> dict[str, Any]:
    from vf.data.builders import read_manifest

    made = read_manifest(out)
    _same(made["parameters"], parameters, f"{out} is prepared already")
    _be_strict(strict, made["rejected"])
    return made | {"already": True}


def _be_strict(strict: bool, rejected: dict[str, str]) -> None:
    if strict and rejected:
        told = "; ".join(f"{name}: {why}" for name, why in itertools.islice(rejected.items(), 5))
        raise UserError(f"{len(rejected)} clips were rejected, and --strict allows none: {told}")


def _same(old: dict[str, Any], parameters: Parameters, where: str) -> None:
    """UserError where `old` parameters are others."""
    new = dataclasses.asdict(parameters)
    if differ := [f"{name} was {old.get(name)!r} and is {new[name]!r}" for name in new if old.get(name) != new[name]]:
        raise UserError(f"{where} with other parameters ({'; '.join(differ)}): choose another --out, or delete it")


@contextlib.contextmanager
def _folder_of_our_own(out: Path, parameters: Parameters) -> Iterator[Path]:
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
                    f"another preparation is writing to {out}: wait for it, or choose another --out"
                ) from None
            if known.exists():
                _same(json.loads(known.read_text()), parameters, f"{out} holds an unfinished preparation")
            known.write_text(json.dumps(dataclasses.asdict(parameters)))
            for half in out.glob("*/incomplete.*"):  # of an earlier, killed packing
                shutil.rmtree(half, ignore_errors=True)
            yield folder
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {words(error)}; make room or choose another --out, then give the same command "
            "again: finished clips are kept"
        ) from error


def _embeddings(file: str, items: list[Item]) -> Embeddings:
    """Those of all `items`. Raises UserError where the file is not as it should be, or one is missing."""
    found = Embeddings(file)
    if missing := found.missing([printable(item.name) for item in items]):
        raise UserError(f"--embeddings={file} has no vector for {len(missing)} clips, the first is {missing[0]}")
    return found


def table(manifest: dict[str, Any], out: Path) -> str:
    """What was made, for the terminal."""
    rows = [("split", "clips", "frames", "classes")]
    rows += [
        (split, f"{made['clips']:,}", f"{made['frames']:,}", f"{len(made['per_class'])}")
        for split, made in manifest["splits"].items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    size, how = manifest["parameters"]["size"], manifest["parameters"]["encoding"]
    lines.append(f"{out}: {size} x {size}, {how}, fingerprint {manifest['fingerprint']}")
    if manifest["embeddings"]["dim"]:
        lines.append(f"embeddings: {Layout(**manifest['embeddings'])}")
    seconds = manifest["seconds"]
    if manifest.get("already"):
        lines.append("it was prepared already, with the same parameters: nothing to do")
    elif spent := sum(seconds[name] for name in STAGES):
        shares = ", ".join(f"{name} {100 * seconds[name] / spent:.0f} %" for name in STAGES)
        frames = sum(made["frames"] for made in manifest["splits"].values())
        rate = frames / seconds["all"]
        lines.append(f"{seconds['all']:.1f} s, {rate:,.0f} frames/s with {seconds['workers']} workers ({shares})")
    for name, what in (
        ("unlisted", "clips are in no split file or table and were left out"),
        ("notes", "clips are unusual"),
    ):
        if manifest[name]:
            lines.append(f"{len(manifest[name])} {what}: see {name!r} in the manifest")
    if rejected := manifest["rejected"]:
        reasons = Counter(rejected.values()).most_common()
        lines.append(f"{len(rejected)} clips were lost:")
        lines += [f"  {name}: {why}" for name, why in itertools.islice(rejected.items(), 20)]
        if len(rejected) > 20:
            lines.append(f"  ... and {len(rejected) - 20} more, most often: {reasons[0][0]}")
    return "\n".join(lines)


def arguments(argv: list[str] | None = None) -> tuple[Parameters, argparse.Namespace]:
    """Typed parameters and the rest of the flags."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m vf.data.prepare", description=about)
    parser.add_argument("dataset", choices=tuple(datasets.DATASETS))
    parser.add_argument("--source", required=True, help="folder, .zip or .tar that holds the data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared data set")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--splits", default="", help="ucf101: folder of the official split files")
    parser.add_argument("--fold", type=int, default=1, choices=(1, 2, 3), help="ucf101: which of the official splits")
    parser.add_argument("--table", default="", help="webvid, folder: CSV of path and label, caption, split")
    parser.add_argument("--embeddings", default="", help=".npz of embeddings of frames (vf/data/embeddings.py)")
    parser.add_argument("--encoding", choices=ENCODINGS, default="raw", help="of frames; raw and png are lossless")
    parser.add_argument("--quality", type=int, default=95, help="of jpeg, 1 to 100")
    parser.add_argument("--fps", type=float, default=0.0, help="of folders of frames, which do not say")
    parser.add_argument("--min-frames", type=int, default=2, help="shorter clips are rejected")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--strict", action="store_true", help="fail where any clip is lost")
    args = parser.parse_args(argv)
    for name, least, most in (("size", 2, 4096), ("quality", 1, 100), ("workers", 1, 4096), ("min_frames", 1, 10**9)):
        if not least <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} must lie in {least}..{most}, got {getattr(args, name)}")
    if args.fps < 0:
        parser.error(f"--fps must be at least 0, got {args.fps}")

    def absolute(path: str) -> str:
        return os.path.abspath(path) if path else ""

    parameters = Parameters(
        dataset=args.dataset,
        source=absolute(args.source),
        size=args.size,
        encoding=args.encoding,
        quality=args.quality if args.encoding == "jpeg" else 0,
        splits=absolute(args.splits),
        fold=args.fold,
        table=absolute(args.table),
        embeddings=absolute(args.embeddings),
        fps=args.fps,
        min_frames=args.min_frames,
    )
    return parameters, args


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.WARNING)
    parameters, args = arguments()

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        manifest = prepare(parameters, args.out, args.workers, args.strict)
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Stopped):
        print("vf: stopped; finished clips are kept, give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    print(table(manifest, args.out))
    sys.exit(LOST if manifest["rejected"] else 0)


if __name__ == "__main__":
    main()
