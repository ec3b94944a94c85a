"""Opens a clip, whatever holds it: a video, a folder of frames, or an animated picture.

Preparation, decoding on the fly and evaluation read clips through this one door.
"""

import hashlib
import os
from pathlib import Path

from vf.data import archives
from vf.data.decode import Video
from vf.data.frames import IMAGES, Animation, FrameFolder

Clip = Video | FrameFolder | Animation


def open_clip(path: Path, member: str = "", fps: float = 0.0) -> Clip:
    """The clip at `path`, or the one that is a member of the archive `path`; raises `vf.data.decode.DAMAGE`.

    fps: rate of folders of frames, which do not record it; 0 = unknown.
    """
    if member:
        return Video(archives.read_member(path, member))
    if path.is_dir():
        return FrameFolder(path, fps)
    return Animation(path) if path.suffix.lower() in IMAGES else Video(path)


def digest(clip: Clip) -> str:
    """sha256 of a file's bytes, or of the names and bytes of a folder's frames in order. Raises OSError."""
    if isinstance(clip, FrameFolder):
        total = hashlib.sha256()
        for frame in clip.files:
            total.update(os.fsencode(frame.name) + frame.read_bytes())
        return total.hexdigest()
    if isinstance(clip.file, bytes):
        return hashlib.sha256(clip.file).hexdigest()
    with clip.file.open("rb") as video:
        return hashlib.file_digest(video, "sha256").hexdigest()
