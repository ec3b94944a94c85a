"""Stages one clip: decodes, crops, resizes and encodes it once, in a process of the pool, and writes a staged file.

A staged file holds the frames, then JSON {facts, bytes of each frame}, and in its last eight bytes how long that is:
so frames are written as they are decoded, however long the video. It appears whole or not at all, under a name that
changes when the source does.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av

from vf.data.decode import DAMAGE, Video, error_text, printable
from vf.data.encoding import encode
from vf.data.listing import Item
from vf.data.notes import ON_BLACK, lost
from vf.data.pixels import RESAMPLER, Pixels, deinterlaced
from vf.data.reader import digest, open_clip
from vf.data.shots import Meter, Rules, find_shots
from vf.types import UserError, counted

STAGES = ("hash", "decode", "resize", "encode", "write", "embed", "pack")
_LENGTH = 8  # bytes that hold the length of the JSON of a staged file
_ADDED = ("deinterlace", "embed", "embed_mirrored", "shots")  # parameters that first versions did not have
# Errors of the system, which say nothing about the clip that was being read.
_SYSTEM_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Everything that determines the prepared data.

    Clips of fewer than `min_frames` frames are rejected. With `shots` every video is cut into shots, which are then the
    clips.
    """

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
    embed: str = ""  # the network whose embeddings of frames are made, as --embed names it; "" = none
    embed_mirrored: bool = False
    shots: Rules | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields, without those that later versions added where they have no effect: older data has the same."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name not in _ADDED}


def stage(item: Item, parameters: Parameters, target: Path) -> dict[str, Any]:
    """Decodes `item` and writes its encoded frames to `target`, whole or not at all.

    Returns the clip's facts (frames, fps, sha256, notes, seconds of each stage; with `parameters.shots` also shots), or
    {"rejected": reason} for a clip that cannot be used. Raises UserError where `target` cannot be written, or the
    source can no longer be read.
    """
    laps = _Laps()
    staged = _StagedFile(target)
    try:
        clip = open_clip(item.path, item.member, parameters.fps)
        sha256 = digest(clip)
        laps.end("hash")
        fps, notes = clip.fps, list[str]()
        if printable(item.name) != item.name:
            notes.append("its name is not UTF-8")
        if isinstance(clip, Video):
            notes += clip.notes()
        meter = Meter() if parameters.shots else None
        pixels, frame, before = Pixels(parameters.size), b"", None
        passing = _Passing()
        pictures = passing.counted(clip.pictures())
        for picture in deinterlaced(pictures) if parameters.deinterlace else pictures:
            laps.end("decode")
            if picture is before:
                staged.write(frame)
                if meter:
                    meter.repeat()
                continue
            if meter:
                meter.add(picture)
            resized = pixels(picture, clip.aspect)
            laps.end("resize")
            frame = encode(resized, parameters.encoding, parameters.quality)
            laps.end("encode")
            staged.write(frame)
            laps.end("write")
            if before is None:
                notes += _first_notes(picture, parameters.size)
            before = picture
        laps.end("decode")
        count = len(staged.sizes)
        if count < parameters.min_frames:
            raise ValueError(f"has {counted(count, 'frame')}, fewer than {parameters.min_frames}")
        if not isinstance(clip, Video):
            notes += clip.notes()
        if passing.repeated:
            notes.append(f"{counted(passing.repeated, 'repeated frame')}, which the file leaves out")
        if pixels.transparent:
            notes.append(ON_BLACK)
        if passing.interlaced and parameters.deinterlace:
            notes.append(f"{counted(passing.interlaced, 'interlaced frame')}, of which the first field is kept")
        elif passing.interlaced:
            notes.append(
                lost(f"the times of the fields of {counted(passing.interlaced, 'interlaced frame')}: --deinterlace")
            )
        facts = {"frames": count, "fps": fps, "sha256": sha256, "notes": notes}
        if meter and parameters.shots:
            shots = find_shots(meter, fps, parameters.shots, parameters.min_frames)
            facts["shots"] = [shot._asdict() for shot in shots]
        staged.finish(facts | {"seconds": laps.seconds})
    except UserError:
        raise
    except Exception as error:  # an error of any kind in one clip must not end the preparation of the others
        if not os.path.lexists(item.path) or getattr(error, "errno", None) in _SYSTEM_ERRORS:
            raise UserError(
                f"{printable(str(item.path))} cannot be read any more: {error_text(error)}; when the source is back, "
                "give the same command again: finished clips are kept"
            ) from error
        return {"rejected": error_text(error) if isinstance(error, DAMAGE) else f"{type(error).__name__}: {error}"}
    finally:
        staged.close()
    laps.end("write")
    return facts | {"seconds": laps.seconds}


class _StagedFile:
    """A staged file that is being written beside its place, where `finish` puts it.

    Raises UserError in every method but `close` where it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self._target, self._temporary = target, target.with_suffix(".tmp")
        self._file: BinaryIO | None = None
        self.sizes: list[int] = []  # bytes of each frame

    def write(self, frame: bytes) -> None:
        with self._telling():
            if self._file is None:
                self._file = self._temporary.open("wb")
            self._file.write(frame)
        self.sizes.append(len(frame))

    def finish(self, facts: dict[str, Any]) -> None:
        """The frames are written; `facts` are what is said of them."""
        header = json.dumps({"facts": facts, "bytes": self.sizes}).encode()
        with self._telling():
            assert self._file is not None, "a staged file has frames"
            self._file.write(header + len(header).to_bytes(_LENGTH, "little"))
            self._file.close()
            self._temporary.replace(self._target)

    def close(self) -> None:
        """Leaves nothing behind of a file that is not finished."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self._target.parent}: {error.strerror}; make room, then give the same command "
                "again: finished clips are kept; or choose another folder",
                "out",
            ) from error


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


class _Passing:
    """Counts the pictures that pass: those that are interlaced, and those that are the last one again."""

    def __init__(self) -> None:
        self.interlaced = self.repeated = 0

    def counted(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        before = None
        for picture in pictures:
            self.interlaced += picture.interlaced_frame
            self.repeated += picture is before
            before = picture
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
            header, size = _read_header(file)
        return header["facts"] if sum(header["bytes"]) == size else None
    except (OSError, ValueError, KeyError):
        return None


def read_staged(path: Path, first: int = 0, count: int | None = None) -> tuple[dict[str, Any], list[memoryview]]:
    """(facts, encoded frames) of a staged clip: `count` frames from `first` on, by default all.

    Frames are read from disk when they are used, so that a long clip takes no memory. Raises OSError or ValueError
    where the file cannot be read.
    """
    with path.open("rb") as file:
        header, _ = _read_header(file)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    ends = list(itertools.accumulate(header["bytes"], initial=0))
    last = len(header["bytes"]) if count is None else first + count
    return header["facts"], [data[start:end] for start, end in itertools.pairwise(ends[first : last + 1])]


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """(JSON at the end of a staged file, bytes before it). Raises OSError or ValueError."""
    file.seek(-_LENGTH, os.SEEK_END)
    length = int.from_bytes(file.read(_LENGTH), "little")
    size = file.tell() - _LENGTH - length
    if size < 0:
        raise ValueError("it is no staged file")
    file.seek(size)
    return json.loads(file.read(length)), size
