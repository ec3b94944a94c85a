"""One clip from its source to a staged file: decoded, cropped, resized and encoded once, by a process of the pool.

A staged file is a line of JSON, {facts, bytes of each frame}, and the frames. It appears whole or not at all, under a
name that changes with the source.
"""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from vf.data import archives
from vf.data.decode import (
    DAMAGE,
    RESAMPLER,
    File,
    FrameFolder,
    Pixels,
    Video,
    is_cut_off,
    printable,
    read_header,
    words,
)
from vf.data.encoding import encode
from vf.data.listing import Item
from vf.types import UserError

STAGES = ("hash", "decode", "resize", "encode", "write", "pack")
_NOT_ITS_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN}  # but the system's
_MISSING = 0.01  # share of the frames that a header may promise in excess before the file counts as cut off


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What decides the prepared pixels. `min_frames`: shorter clips are rejected."""

    dataset: str
    source: str
    size: int
    encoding: str
    quality: int  # of JPEG; 0 where it does not apply
    splits: str
    fold: int
    table: str
    embeddings: str
    fps: float  # of folders of frames, which do not say; 0 = unknown
    min_frames: int
    crop: str = "centre square"
    resize: str = RESAMPLER


def stage(item: Item, parameters: Parameters, target: Path) -> dict[str, Any]:
    """Decodes `item` and writes its encoded frames to `target`, whole or not at all; in a process of the pool.

    Returns what is known of the clip, or {"rejected": reason}. Raises UserError where `target` cannot be written.
    """
    laps = _Laps()
    try:
        file = archives.read_member(item.path, item.member) if item.member else item.path
        digest = _digest(file)
        laps.end("hash")
        pictures, fps, notes = _open(file, parameters)
        if printable(item.name) != item.name:
            notes.append("its name is not UTF-8")
        pixels, frames, before = Pixels(parameters.size), list[bytes](), None
        repeated = 0
        for picture in pictures:
            laps.end("decode")
            if picture is before:
                frames.append(frames[-1])
                repeated += 1
                continue
            frame = pixels(picture)
            laps.end("resize")
            frames.append(encode(frame, parameters.encoding, parameters.quality))
            laps.end("encode")
            if before is None and picture.rotation:
                notes.append(f"turned upright by {picture.rotation:g} degrees")
            before = picture
        laps.end("decode")
        if len(frames) < parameters.min_frames:
            count = f"{len(frames)} frame{'s' * (len(frames) != 1)}"
            raise ValueError(f"has {count}, fewer than {parameters.min_frames}")
    except Exception as error:  # whatever it is, it must not cost the other clips
        if not os.path.lexists(item.path) or getattr(error, "errno", None) in _NOT_ITS_FAULT:
            raise UserError(
                f"{printable(str(item.path))} cannot be read any more: {words(error)}; when the source is back, give "
                "the same command again: finished clips are kept"
            ) from error
        return {"rejected": words(error) if isinstance(error, DAMAGE) else f"{type(error).__name__}: {error}"}
    if repeated:
        notes.append(f"{repeated} frames repeat the one before, which the file leaves out")
    facts = {"frames": len(frames), "fps": fps, "sha256": digest, "notes": notes, "seconds": laps.seconds}
    header = json.dumps({"facts": facts, "bytes": [len(frame) for frame in frames]})
    try:
        aside = target.with_suffix(".tmp")
        with aside.open("wb") as whole:
            whole.write(header.encode() + b"\n")
            whole.writelines(frames)
        aside.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror}; make room, then give the same command again: finished "
            "clips are kept; or choose another folder",
            "out",
        ) from error
    laps.end("write")
    return facts


class _Laps:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._since = time.perf_counter()

    def end(self, stage: str) -> None:
        """The time since the last call, or since the beginning, was that of `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now


def _digest(file: File) -> str:
    """sha256 of the source: of a file's bytes; of names and bytes of a folder's frames, in order."""
    if isinstance(file, bytes):
        return hashlib.sha256(file).hexdigest()
    if file.is_dir():
        total = hashlib.sha256()
        for frame in FrameFolder(file).files:
            total.update(os.fsencode(frame.name) + frame.read_bytes())
        return total.hexdigest()
    with file.open("rb") as video:
        return hashlib.file_digest(video, "sha256").hexdigest()


def _open(file: File, parameters: Parameters) -> tuple[Iterator[av.VideoFrame], float, list[str]]:
    """(pictures, frames per second, what is unusual). Raises DAMAGE."""
    notes: list[str] = []
    if isinstance(file, Path) and file.is_dir():
        return FrameFolder(file).pictures(), parameters.fps, notes
    header, video = read_header(file), Video(file)
    missing, cut = header.frames - len(video), is_cut_off(file)
    # A whole AVI may count frames that its encoder dropped.
    if missing > 0 and (cut or (cut is None and missing > max(2, _MISSING * header.frames))):
        raise ValueError(f"is cut off: its header promises {header.frames} frames, {len(video)} are there")
    if missing > 0:
        notes.append(f"its header promises {header.frames} frames, {len(video)} are there")
    if cut:
        notes.append("its end is cut off, but all frames are there")
    if header.width % 2 or header.height % 2:
        notes.append(f"odd size {header.width} x {header.height}")
    if min(header.width, header.height) < parameters.size:
        notes.append(f"enlarged from {header.width} x {header.height}")
    if header.format.startswith(("gray", "mono")):
        notes.append("greyscale")
    if not video.clock.regular:
        notes.append("variable frame rate: frames are kept, fps is their mean")
    return video.pictures(np.arange(len(video))), header.fps, notes


def staged_name(item: Item) -> str:
    """Another one when the source has changed."""
    files = sorted(item.path.iterdir()) if not item.member and item.path.is_dir() else [item.path]
    known = [file.stat() for file in files if file.exists()]
    state = [(stat.st_size, stat.st_mtime_ns) for stat in known]
    return hashlib.sha256(os.fsencode(f"{item.path.name}\0{item.name}\0{state}")).hexdigest()[:32] + ".clip"


def staged_facts(path: Path) -> dict[str, Any] | None:
    """Facts of a staged clip; None where there is none, or not the whole of it (a machine may have crashed)."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        whole = len(line) + sum(header["bytes"]) == path.stat().st_size
        return header["facts"] if whole else None
    except (OSError, ValueError, KeyError):
        return None


def read_staged(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """(facts, frames) of a staged clip."""
    with path.open("rb") as file:
        header = json.loads(file.readline())
        data = file.read()
    ends = list(itertools.accumulate(header["bytes"]))
    return header["facts"], [data[end - size : end] for size, end in zip(header["bytes"], ends, strict=True)]
