"""Stages one clip: decodes, crops, resizes and encodes it once, in a process of the pool, and writes a staged file.

A staged file is one line of JSON, {facts, bytes of each frame}, followed by the frames. It appears whole or not at all,
under a name that changes when the source does.
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
    check_whole,
    error_text,
    printable,
    read_header,
)
from vf.data.encoding import encode
from vf.data.listing import Item
from vf.types import UserError, counted

STAGES = ("hash", "decode", "resize", "encode", "write", "embed", "pack")
# Errors of the system, which say nothing about the clip that was being read.
_SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Everything that determines the prepared data. Clips of fewer than `min_frames` frames are rejected."""

    dataset: str
    source: str
    size: int
    encoding: str
    quality: int  # of JPEG; 0 where it does not apply
    splits: str
    fold: int
    table: str
    embeddings: str
    fps: float  # rate of folders of frames, which do not record it; 0 = unknown
    min_frames: int
    crop: str = "centre square"
    resize: str = RESAMPLER
    embed: str = ""  # the network whose embeddings of frames are made, as --embed names it; "" = none
    embed_mirrored: bool = False


def stage(item: Item, parameters: Parameters, target: Path) -> dict[str, Any]:
    """Decodes `item` and writes its encoded frames to `target`, whole or not at all.

    Returns the clip's facts (frames, fps, sha256, notes, seconds of each stage), or {"rejected": reason} for a clip
    that cannot be used. Raises UserError where `target` cannot be written, or the source can no longer be read.
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
            raise ValueError(f"has {counted(len(frames), 'frame')}, fewer than {parameters.min_frames}")
    except Exception as error:  # an error of any kind in one clip must not end the preparation of the others
        if not os.path.lexists(item.path) or getattr(error, "errno", None) in _SYSTEM_ERRORS:
            raise UserError(
                f"{printable(str(item.path))} cannot be read any more: {error_text(error)}; when the source is back, "
                "give the same command again: finished clips are kept"
            ) from error
        return {"rejected": error_text(error) if isinstance(error, DAMAGE) else f"{type(error).__name__}: {error}"}
    if repeated:
        notes.append(f"{counted(repeated, 'repeated frame')}, which the file leaves out")
    facts = {"frames": len(frames), "fps": fps, "sha256": digest, "notes": notes, "seconds": laps.seconds}
    header = json.dumps({"facts": facts, "bytes": [len(frame) for frame in frames]})
    try:
        temporary = target.with_suffix(".tmp")
        with temporary.open("wb") as output:
            output.write(header.encode() + b"\n")
            output.writelines(frames)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror}; make room, then give the same command again: finished "
            "clips are kept; or choose another folder",
            "out",
        ) from error
    laps.end("write")
    return facts


class _Laps:
    """Measures the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._since = time.perf_counter()

    def end(self, stage: str) -> None:
        """Adds the time since the last call, or since the beginning, to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now


def _digest(file: File) -> str:
    """sha256 of the source: of a file's bytes, or of the names and bytes of a folder's frames in order."""
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
    """(pictures, frames per second, notes on what is unusual). Raises DAMAGE."""
    notes: list[str] = []
    if isinstance(file, Path) and file.is_dir():
        return FrameFolder(file).pictures(), parameters.fps, notes
    header, video = read_header(file), Video(file)
    notes += check_whole(file, header, len(video))
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
    """File name of a staged clip: a hash of name, size and modification time of the source."""
    files = sorted(item.path.iterdir()) if not item.member and item.path.is_dir() else [item.path]
    stats = [file.stat() for file in files if file.exists()]
    state = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return hashlib.sha256(os.fsencode(f"{item.path.name}\0{item.name}\0{state}")).hexdigest()[:32] + ".clip"


def staged_facts(path: Path) -> dict[str, Any] | None:
    """Facts of a staged clip; None where there is none, or the file is incomplete (a machine may have crashed)."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        is_complete = len(line) + sum(header["bytes"]) == path.stat().st_size
        return header["facts"] if is_complete else None
    except (OSError, ValueError, KeyError):
        return None


def read_staged(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """(facts, encoded frames) of a staged clip. Raises OSError or ValueError where the file cannot be read."""
    with path.open("rb") as file:
        header = json.loads(file.readline())
        data = file.read()
    ends = list(itertools.accumulate(header["bytes"]))
    return header["facts"], [data[end - size : end] for size, end in zip(header["bytes"], ends, strict=True)]
