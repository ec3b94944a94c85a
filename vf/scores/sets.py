"""Clips to be scored: a fixed set, from whatever people have, decoded when asked for.

A folder of videos, GIFs or folders of frames; an `.npz` with uint8 [n t h w 3] under `clips`; a prepared data set.
Which windows, how many and in what order is settled when a set is opened; after that it is an array that lives on disk.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from vf.data import archives, datasets, listing
from vf.data.clips import Windows
from vf.data.decode import DAMAGE, RESAMPLER, FrameFolder, Pixels, Video, printable, read_header, words
from vf.data.manifest import read_manifest
from vf.data.pipeline import BadRecord
from vf.nets import resize
from vf.types import UserError
from vf.video import load_npz

_THREADS = 8
Resampler = Literal["swscale", "antialiased"]
Subset = Literal["random", "first"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which clips of what is there, and their pixels.

    Attributes:
        windows: which frames make a clip.
        size: of a side in pixels, of the largest centred square; 0 leaves pictures as they are.
        resampler: `swscale` as preparation has it, or `antialiased`: Pillow's bilinear, cut to whole numbers, as cd-fvd
            has it; for videos and frames only.
        split: of the videos, several as `train+test`; "" takes all.
        n: clips; 0 takes all.
        fewer: whether fewer than n will do.
        subset: which n: at random (a permutation by `seed`) or the first in the order of their names.
        seed: of the permutation and of random windows.
        strict: whether a video that is too short is an error; else it is left out, and counted.
    """

    windows: Windows
    size: int = 0
    resampler: Resampler = "swscale"
    split: str = ""
    n: int = 0
    fewer: bool = False
    subset: Subset = "random"
    seed: int = 0
    strict: bool = False


class ClipSet:
    """u8 [n f h w 3], decoded as it is sliced; see `vf.scores.features.Clips`."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, name: str, readers: Sequence[Callable[[], np.ndarray]], fingerprint: str, facts: dict[str, Any]
    ) -> None:
        self.name, self._readers, self.fingerprint, self.facts = name, readers, fingerprint, facts
        self._first = self._read(0)
        self.shape = (len(readers), *self._first.shape)

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Raises UserError where a clip cannot be read, or has another shape than the first one."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
            found = list(pool.map(self._checked, range(*rows.indices(len(self)))))
        return np.stack(found) if found else np.zeros((0, *self.shape[1:]), np.uint8)

    def _checked(self, k: int) -> np.ndarray:
        clip = self._read(k)
        if clip.shape != self.shape[1:]:
            raise UserError(
                f"the clips of {self.name} differ in size: the first is {_size(self._first)}, another {_size(clip)}; "
                "choose one size for all",
                "size",
            )
        return clip

    def _read(self, k: int) -> np.ndarray:
        try:
            return self._readers[k]()
        except BadRecord as error:
            raise UserError(f"{self.name}: {error}; remove or repair it") from error


def _size(clip: np.ndarray) -> str:
    return f"{clip.shape[0]} frames of {clip.shape[1]} x {clip.shape[2]}"


def open_set(path: Path, choice: Choice) -> ClipSet:
    """The clips of `path` that `choice` names.

    Raises UserError where there is nothing, a file is broken, a video is too short (if `strict`), fewer clips are there
    than asked for, or `choice` asks for what this kind of source cannot give.
    """
    if path.suffix == ".npz":
        found = _array(path, choice)
    elif (path / "manifest.json").is_file():
        found = _prepared(path, choice)
    else:
        found = _folder(path, choice)
    rows = _chosen(path, found, choice)
    known = (found.digest, _decoding(choice), choice.windows, choice.size, choice.seed, rows.tolist())
    mark = hashlib.sha256(repr(known).encode()).hexdigest()[:12]
    facts = {"clips_there": len(found.readers), "left_out": found.left_out, "content": found.digest}
    return ClipSet(str(path), [found.readers[k] for k in rows], mark, facts)


class _Found(NamedTuple):
    readers: list[Callable[[], np.ndarray]]
    digest: str  # 12 hex digits, of the content of the files
    left_out: int  # videos that are too short


def _decoding(choice: Choice) -> str:
    return "as it is" if not choice.size else RESAMPLER if choice.resampler == "swscale" else "antialiased, truncated"


def _chosen(path: Path, found: _Found, choice: Choice) -> np.ndarray:
    there = len(found.readers)
    if not there:
        raise UserError(f"no video of {path} is long enough for {_asked(choice.windows)}: take shorter clips")
    if choice.n > there and not choice.fewer:
        raise UserError(
            f"{path} gives {there} clips of {_asked(choice.windows)} where the protocol takes {choice.n}: bring more, "
            "or take another protocol or number"
        )
    n = min(choice.n or there, there)
    if choice.subset == "first" or n == there:
        return np.arange(n)
    return np.sort(np.random.default_rng(choice.seed).permutation(there)[:n])


def _asked(windows: Windows) -> str:
    pace = f"at {windows.fps:g} frames per second" if windows.fps else f"with stride {windows.stride}"
    return f"{windows.frames} frames {pace}"


def _generator(choice: Choice, record: int) -> np.random.Generator | None:
    return np.random.default_rng([choice.seed, record]) if choice.windows.start == "random" else None


def _array(path: Path, choice: Choice) -> _Found:
    clips = load_npz(path)["clips"]
    if not len(clips):
        raise UserError(f"{path} holds no clips")
    if choice.size and clips.shape[2:4] != (choice.size, choice.size):
        raise UserError(
            f"{path} holds clips of {clips.shape[2]} x {clips.shape[3]} pixels and the protocol asks for "
            f"{choice.size}: store that size, or score videos, which are resized here"
        )
    if choice.split:
        _unsplit(path, choice)
    windows = choice.windows
    try:
        each = windows.records(clips.shape[1], 0.0)
    except ValueError as error:
        raise UserError(f"{path}: {error}; an .npz has no rate, set fps to 0 to go by stride", "fps") from error
    if not each:
        raise UserError(f"{path} holds clips of {clips.shape[1]} frames, too few for {_asked(windows)}")

    def read(k: int) -> np.ndarray:
        return clips[k // each][windows.indices(clips.shape[1], 0.0, k % each, _generator(choice, k))]

    digest = hashlib.sha256(str(clips.shape).encode())
    digest.update(np.ascontiguousarray(clips).data)
    return _Found([functools.partial(read, k) for k in range(len(clips) * each)], digest.hexdigest()[:12], 0)


def _prepared(path: Path, choice: Choice) -> _Found:
    from vf.data.prepared import Prepared  # TFDS takes a second to import

    manifest = read_manifest(path)
    source = Prepared(path, windows=choice.windows, split=choice.split or "+".join(manifest["splits"]))
    if choice.size and source.size != choice.size:
        raise UserError(
            f"{path} was prepared at {source.size} pixels and the protocol asks for {choice.size}: prepare it again "
            "at that size",
            "size",
        )
    if choice.size and choice.resampler != "swscale":
        raise UserError(
            f"{path} was prepared with FFmpeg's scaler and the protocol asks for the resampler {choice.resampler}: "
            "score the videos themselves, or take the resampler swscale",
            "resampler",
        )
    if source.rejected and choice.strict:
        _too_short(path, choice, [f"{name} {why}" for name, why in source.rejected.items()])

    def read(k: int) -> np.ndarray:
        return source.clip(k, _generator(choice, k))["video"]

    # The manifest's own fingerprint also knows where the sources lay; the same data prepared elsewhere is the same set.
    made = {name: manifest["parameters"][name] for name in ("size", "encoding", "quality", "crop", "resize")}
    index = [manifest["splits"][name]["index"] for name in source.split.split("+")]
    digest = hashlib.sha256(json.dumps([made, index], sort_keys=True).encode()).hexdigest()[:12]
    return _Found([functools.partial(read, k) for k in range(len(source))], digest, len(source.rejected))


def _unsplit(path: Path, choice: Choice) -> None:
    logging.warning("%s does not say which of its clips are of split %s: all are taken", path, choice.split)


def _too_short(path: Path, choice: Choice, short: Sequence[str]) -> NoReturn:
    raise UserError(
        f"{len(short)} of the clips of {path} are too short for {_asked(choice.windows)} (the first, {short[0]}): "
        "repeating frames would change the score"
    )


class _Probed(NamedTuple):
    frames: int
    fps: float
    digest: str


def _folder(path: Path, choice: Choice) -> _Found:
    found = datasets.folder(path, None, 1, None)
    lost = dict(found.lost)
    splits = set(filter(None, choice.split.split("+")))
    if splits and not listing.names_splits(found.items):
        _unsplit(path, choice)
        splits = set()
    items = [item for item in found.items if not splits or item.split in splits]
    if not items:
        there = sorted({item.split for item in found.items})
        raise UserError(f"{path} has no clips of split {choice.split}: its folders name {', '.join(there)}", "split")

    def probe(item: listing.Item) -> _Probed | str:
        try:
            return _probe(item)
        except DAMAGE as error:
            return words(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        probed = dict(zip(items, pool.map(probe, items), strict=True))
    lost |= {item.name: why for item, why in probed.items() if isinstance(why, str)}
    if lost:
        name, why = next(iter(lost.items()))
        raise UserError(f"{len(lost)} of the clips of {path} cannot be read (the first, {printable(name)}: {why}): "
                        "repair or remove them")  # fmt: skip
    readers: list[Callable[[], np.ndarray]] = []
    short: list[str] = []
    total = hashlib.sha256()
    for item, facts in probed.items():
        assert not isinstance(facts, str)
        total.update(f"{item.name} {facts.digest}\n".encode("utf-8", "surrogateescape"))
        try:
            count = choice.windows.records(facts.frames, facts.fps)
        except ValueError as error:
            raise UserError(f"{path}: {printable(item.name)}: {error}; set fps to 0 to go by stride", "fps") from error
        if not count:
            short.append(f"{printable(item.name)} has {facts.frames} frames")
        for record in range(count):
            rng = _generator(choice, len(readers))
            indices = choice.windows.indices(facts.frames, facts.fps, record, rng)
            readers.append(functools.partial(_decode, item, indices, choice))
    if short and choice.strict:
        _too_short(path, choice, short)
    if short:
        logging.warning("%d videos of %s are too short for %s", len(short), path, _asked(choice.windows))
    return _Found(readers, total.hexdigest()[:12], len(short))


def _open(item: listing.Item) -> Video | FrameFolder:
    if item.member:
        return Video(archives.read_member(item.path, item.member))
    return FrameFolder(item.path) if item.path.is_dir() else Video(item.path)


def _probe(item: listing.Item) -> _Probed:
    """Length, rate and content of one video. Raises DAMAGE."""
    digest = hashlib.sha256()
    video = _open(item)
    if isinstance(video, FrameFolder):
        for frame in video.files:
            digest.update(frame.name.encode("utf-8", "surrogateescape") + frame.read_bytes())
        return _Probed(len(video), 0.0, digest.hexdigest())
    content = video.file if isinstance(video.file, bytes) else video.file.read_bytes()
    digest.update(content)
    return _Probed(len(video), read_header(video.file).fps, digest.hexdigest())


def _decode(item: listing.Item, indices: np.ndarray, choice: Choice) -> np.ndarray:
    """One clip. Raises BadRecord."""
    native = choice.resampler == "antialiased" or not choice.size
    try:
        clip = _open(item).clip(indices, Pixels(0 if native else choice.size))
    except DAMAGE as error:
        raise BadRecord(f"{printable(item.name)}: {words(error)}") from error
    if not (native and choice.size):
        return clip
    rows, columns = resize.matrices("antialiased", "short_side", clip.shape[1], clip.shape[2], choice.size)
    x = np.einsum("thwc,Ww->thWc", clip.astype(np.float32), columns.astype(np.float32), optimize=True)
    x = np.einsum("thWc,Hh->tHWc", x, rows.astype(np.float32), optimize=True)
    return np.clip(x + 1e-3, 0, 255).astype(np.uint8)  # rounding leaves whole numbers just below themselves
