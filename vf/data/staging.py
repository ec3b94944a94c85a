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

from vf.data.decode import DAMAGE, Video, error_text, printable
from vf.data.encoding import encode
from vf.data.listing import Item
from vf.data.notes import ON_BLACK, lost
from vf.data.pixels import RESAMPLER, Pixels, deinterlaced
from vf.data.reader import digest, open_clip
from vf.types import UserError, counted

STAGES = ("hash", "decode", "resize", "encode", "write", "pack")
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
    deinterlace: bool = False  # whether pictures of two fields become pictures of the first


def stage(item: Item, parameters: Parameters, target: Path) -> dict[str, Any]:
    """Decodes `item` and writes its encoded frames to `target`, whole or not at all.

    Returns the clip's facts (frames, fps, sha256, notes, seconds of each stage), or {"rejected": reason} for a clip
    that cannot be used. Raises UserError where `target` cannot be written, or the source can no longer be read.
    """
    laps = _Laps()
    try:
        clip = open_clip(item.path, item.member, parameters.fps)
        sha256 = digest(clip)
        laps.end("hash")
        fps, notes = clip.fps, list[str]()
        if printable(item.name) != item.name:
            notes.append("its name is not UTF-8")
        if isinstance(clip, Video):
            notes += clip.notes()
        pixels, frames, before = Pixels(parameters.size), list[bytes](), None
        repeated, fields = 0, _Fields()
        pictures = fields.counted(clip.pictures())
        for picture in deinterlaced(pictures) if parameters.deinterlace else pictures:
            laps.end("decode")
            if picture is before:
                frames.append(frames[-1])
                repeated += 1
                continue
            frame = pixels(picture, clip.aspect)
            laps.end("resize")
            frames.append(encode(frame, parameters.encoding, parameters.quality))
            laps.end("encode")
            if before is None:
                notes += _first_notes(picture, parameters.size)
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
    if not isinstance(clip, Video):
        notes += clip.notes()
    if repeated:
        notes.append(f"{counted(repeated, 'repeated frame')}, which the file leaves out")
    if pixels.transparent:
        notes.append(ON_BLACK)
    if fields.interlaced and parameters.deinterlace:
        notes.append(f"{counted(fields.interlaced, 'interlaced frame')}, of which the first field is kept")
    elif fields.interlaced:
        notes.append(
            lost(f"the times of the fields of {counted(fields.interlaced, 'interlaced frame')}: --deinterlace")
        )
    facts = {"frames": len(frames), "fps": fps, "sha256": sha256, "notes": notes, "seconds": laps.seconds}
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


class _Fields:
    """Counts the interlaced pictures that pass."""

    def __init__(self) -> None:
        self.interlaced = 0

    def counted(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for picture in pictures:
            self.interlaced += picture.interlaced_frame
            yield picture


def _first_notes(picture: av.VideoFrame, size: int) -> list[str]:
    """Notes on the first picture of a clip that becomes `size` pixels high and wide."""
    notes = [f"turned upright by {picture.rotation:g} degrees"] * bool(picture.rotation)
    if min(picture.width, picture.height) < size:
        notes.append(f"enlarged from {picture.width} x {picture.height}")
    return notes


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
