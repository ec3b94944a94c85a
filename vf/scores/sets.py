"""Opens fixed sets of clips to be scored, which are decoded as they are sliced.

A source is a folder of videos, animations or folders of frames, or one video; a drawing of a run, `samples/step_...`;
an `.npz` with uint8 [n t h w 3] under `clips`, or an `.npy` of that; or a prepared data set. Which windows, how many
and in what order is decided when a set is opened; from then on it is used like an array.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vf.data.pipeline import BadRecord
from vf.data.pixels import RESAMPLER
from vf.run import media
from vf.scores import sources
from vf.scores.sources import Choice
from vf.types import UserError, counted


class ClipSet:
    """A set of clips u8 [n f h w 3], decoded as it is sliced; a `vf.scores.features.Clips`.

    Args:
        name: of the set, for errors.
        readers: one function for each clip, which reads it; may raise BadRecord.
        fingerprint: hash of everything that determines the pixels.
        facts: description for the result, ready for JSON.
    """

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
        """The clips of a slice. Raises UserError where one cannot be read, or has another shape than the first."""
        with ThreadPoolExecutor(sources.THREADS, thread_name_prefix="decode") as pool:
            clips = list(pool.map(self._checked, range(*rows.indices(len(self)))))
        return np.stack(clips) if clips else np.zeros((0, *self.shape[1:]), np.uint8)

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
        except sources.UnreadableFile:
            raise
        except BadRecord as error:
            raise UserError(f"{self.name}: {error}; remove or repair it") from error


def _size(clip: np.ndarray) -> str:
    return f"{counted(clip.shape[0], 'frame')} of {clip.shape[1]} x {clip.shape[2]}"


def open_set(path: Path, choice: Choice, *, check: bool = False) -> ClipSet:
    """Opens the clips of `path` that `choice` selects. Files of a folder that cannot be read, or are cut off, are left
    out, and named in its fact `bad`, {name: reason}.

    check: whether every file of a folder is decoded now, so that those that only look whole are left out too; otherwise
        slicing raises `UnreadableFile` for them, wherever their damage lies.

    Raises UserError where there are no clips or too few, data is damaged, a video is too short (if `strict`), or this
    kind of source cannot give what `choice` specifies.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist: name {sources.SOURCES}",
            "source",
        )
    if (path / "clips.npz").is_file() and (path / "meta.json").is_file():
        path = path / "clips.npz"  # a drawing of a run, whose other files are pictures of these clips
    sharded = (path / "meta.json").is_file() and any(path.glob(f"{media.SHARDS}/clips_*.npz"))  # one of many clips
    _refuse_drawings(path)
    if path.suffix.lower() in sources.ARRAYS or sharded:
        candidates = sources.of_array(path, choice)
    elif (path / "manifest.json").is_file():
        candidates = sources.of_prepared(path, choice)
    else:
        candidates = sources.of_folder(path, choice, check)
    rows = _select(path, candidates, choice)
    hashed = (candidates.digest, _decoding(choice), choice.windows, choice.size, choice.seed, rows.tolist())
    fingerprint = hashlib.sha256(repr(hashed).encode()).hexdigest()[:12]
    facts = {
        "clips_there": len(candidates.readers), "too_short": candidates.too_short, "content": candidates.digest,
        "bad": dict(candidates.bad), "notes": dict(candidates.notes), "rate": candidates.rate or None,
    }  # fmt: skip
    return ClipSet(str(path), [candidates.readers[k] for k in rows], fingerprint, facts)


def _refuse_drawings(path: Path) -> None:
    """Raises UserError for a run's folder, or its `samples`: their videos are walls of clips, one for each drawing."""
    folders = {file.parent for pattern in ("", "samples/") for file in path.glob(f"{pattern}*/clips.npz")}
    folders |= {file.parents[1] for pattern in ("", "samples/") for file in path.glob(f"{pattern}*/clips/clips_*.npz")}
    found = sorted(folder for folder in folders if (folder / "meta.json").is_file())
    if drawn := [folder for folder in found if not folder.name.startswith("real")]:
        found = drawn
    elif found:
        raise UserError(f"{path} is of a run that has drawn no samples yet: name others", "source")
    if found:
        named = ", ".join(map(str, found if len(found) <= 6 else [*found[:2], "...", *found[-3:]]))
        raise UserError(
            f"{path} holds {counted(len(found), 'drawing')} of a run, whose videos show many clips in one picture: "
            f"name the one to score, {named}",
            "source",
        )


def _decoding(choice: Choice) -> str:
    return "as it is" if not choice.size else RESAMPLER if choice.resampler == "swscale" else "antialiased, truncated"


def _select(path: Path, candidates: sources.Candidates, choice: Choice) -> np.ndarray:
    available = len(candidates.readers)
    if not available:
        raise UserError(
            f"no video of {path} is long enough for {sources.describe(choice.windows)}: take shorter clips", "frames"
        )
    if choice.n > available and not choice.fewer:
        raise UserError(
            f"{path} gives {counted(available, 'clip')} of {sources.describe(choice.windows)} where the protocol takes "
            f"{choice.n}: bring more, or take another protocol or number"
        )
    n = min(choice.n or available, available)
    if choice.subset == "first" or n == available:
        return np.arange(n)
    return np.sort(np.random.default_rng(choice.seed).permutation(available)[:n])
