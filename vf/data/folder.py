"""A folder of video files as a source of clips, decoded as they are asked for.

Layouts: `ROOT/<Class>/<clip>.avi` as UCF101 comes (the subfolder is the class), or files straight in `ROOT`
(no labels). Pixels: largest centred square, then Pillow's bicubic filter on uint8, whose kernel widens as it
reduces and so does not alias.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from vf.data.clips import centre_crop_box, centre_start, random_start, span, window
from vf.data.pipeline import BadRecord
from vf.types import UserError

EXTENSIONS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
_PROBES = 16  # threads; a probe waits for the disk more than it computes

av.logging.set_level(None)  # what FFmpeg has to say about a broken file comes back in the exception


class VideoFolder:
    """Clips of the video files in a folder; a `vf.data.pipeline.Source`.

    Args:
        root: the folder. Classes are numbered in natural order of their folders' names, letter case aside.
        frames: frames of a clip.
        stride: source frames from one frame of the clip to the next.
        size: height and width of the clip in pixels.
        split_file: keep only the files named here, one `<Class>/<clip>.avi` a line as in UCF101's own
            lists. A label after the name is not read: the folder is the class, in train and test files alike.

    Raises:
        UserError: no such folder, no video in it, or none that can be used.
    """

    rejected: dict[str, str]
    """Files left out, by name relative to `root`, and why."""

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int,
        stride: int = 1,
        size: int,
        split_file: str | Path | None = None,
    ):
        self.root, self.frames, self.stride, self.size = Path(root), frames, stride, size
        self.split_file = None if split_file is None else Path(split_file)
        found, self.class_names = _list(self.root)
        self.num_classes = len(self.class_names)
        wanted = found if self.split_file is None else _read_split(self.split_file)
        present = set(found)
        need = span(frames, stride)

        def reason(name: str) -> str:
            return _reject(self.root / name, need) if name in present else "is not in the folder"

        with ThreadPoolExecutor(_PROBES) as pool:
            reasons = dict(zip(wanted, pool.map(reason, wanted), strict=True))
        self.rejected = {name: why for name, why in reasons.items() if why}
        self._names = [name for name, why in reasons.items() if not why]
        if not self._names:
            why, count = Counter(self.rejected.values()).most_common(1)[0]
            raise UserError(
                f"None of the {len(wanted)} videos of {self.split_file or self.root} serves for clips of "
                f"{frames} frames with stride {stride} ({count} of them: {why}); choose another folder with "
                "--config.data.source=DIR or shorter clips."
            )
        for name, why in self.rejected.items():
            logging.warning("left out %s: %s", name, why)
        self._clocks: dict[int, _Clock] = {}

    def __len__(self) -> int:
        return len(self._names)

    def describe(self) -> dict[str, Any]:
        """Folder, selection and treatment of the pixels, ready for JSON."""
        return {
            "source": "folder",
            "root": str(self.root),
            "split": self.split_file and self.split_file.name,
            "records": len(self),
            "rejected": len(self.rejected),
            "classes": self.num_classes,
            "frames": self.frames,
            "stride": self.stride,
            "size": self.size,
            "crop": "centre square",
            "resize": "Pillow bicubic with antialiasing, uint8",
        }

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """`video` u8 [f size size 3] and `label` i32 []; a random window, or the middle one without `rng`.

        Raises BadRecord where the file cannot be opened or decoded, or is shorter than its header says.
        """
        name = self._names[record]
        path = self.root / name
        try:
            if record not in self._clocks:
                self._clocks[record] = _read_clock(path)
            clock = self._clocks[record]
            shape = clock.length, self.frames, self.stride
            start = centre_start(*shape) if rng is None else random_start(rng, *shape)
            video = np.stack([self._pixels(p) for p in _pictures(path, clock, window(*shape, start))])
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadRecord(f"{name}: {_words(error)}") from error
        label = self.class_names.index(Path(name).parts[0]) if self.num_classes else 0
        return {"video": video, "label": np.array(label, np.int32)}

    def _pixels(self, picture: av.VideoFrame) -> np.ndarray:
        # Left to itself the conversion starts threads for every single picture, at ten times the price.
        rgb = Image.fromarray(picture.reformat(format="rgb24", threads=1).to_ndarray())
        box = centre_crop_box(picture.height, picture.width)
        return np.asarray(rgb.resize((self.size, self.size), Image.Resampling.BICUBIC, box))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key: numbers by value, letters without their case (UCF101 has Hammering before HammerThrow)."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], name


def _list(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Videos' names relative to `root` in natural order, and the classes (none where the folder is flat)."""
    sought = f"videos ({' '.join(EXTENSIONS)}) as {root}/CLASS/VIDEO or {root}/VIDEO"
    if not root.is_dir():
        raise UserError(f"Looked for {sought}, but there is no such folder; name one with --config.data.source=DIR.")

    def videos(folder: Path) -> list[str]:
        names = (p.relative_to(root).as_posix() for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
        return sorted(names, key=_natural)

    folders = sorted((p.name for p in root.iterdir() if p.is_dir()), key=_natural)
    per_class = {folder: names for folder in folders if (names := videos(root / folder))}
    found = [name for names in per_class.values() for name in names]
    if flat := videos(root):
        if found:
            raise UserError(
                f"{root} holds videos ({flat[0]}) and folders of videos ({found[0]}): keep one layout, or "
                "name another folder with --config.data.source=DIR."
            )
        return flat, ()
    if not found:
        deeper = next((p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS), None)
        entries = f"the first of its videos is {deeper}" if deeper else f"it has {len(folders)} folders and no video"
        raise UserError(f"Looked for {sought}, but {entries}; name the right folder with --config.data.source=DIR.")
    return found, tuple(per_class)


def _read_split(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(
            f"The split file {path} cannot be read ({error.strerror}); it should name one CLASS/VIDEO a line."
        ) from error
    names = [re.sub(r"\s+\d+$", "", line.strip()) for line in lines]
    if not any(names):
        raise UserError(f"The split file {path} is empty; it should name one CLASS/VIDEO a line.")
    return list(dict.fromkeys(filter(None, names)))


def _open(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The file and its first video stream, decoded in the caller's thread: the loader has threads enough."""
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise ValueError("has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return container, stream


def _reject(path: Path, need: int) -> str:
    """Why a file is of no use; empty where it opens, shows a first picture and has `need` frames."""
    try:
        container, stream = _open(path)
        with container:
            if next(container.decode(stream), None) is None:
                return "has no picture"
            length = stream.frames
        length = length or _read_clock(path).length
    except (av.FFmpegError, OSError, ValueError) as error:
        return _words(error)
    return "" if length >= need else f"has {length} frames, fewer than {need}"


def _words(error: Exception) -> str:
    """What went wrong, without the number and the path that system errors carry."""
    return getattr(error, "strerror", None) or str(error)


class _Clock(NamedTuple):
    """When the frames of a file are shown, in the stream's time base.

    `times` int64 [length] ascends; None if only counting tells the frames apart. `keys` int64 [any] are the
    times of the key frames, where decoding can begin.
    """

    length: int
    times: np.ndarray | None
    keys: np.ndarray


def _read_clock(path: Path) -> _Clock:
    """Reads packets without decoding them; where their times cannot number the frames, decodes and counts."""
    container, stream = _open(path)
    with container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
        times = [time for time, _ in packets if time is not None]
        keys = [time for time, is_key in packets if time is not None and is_key]
        # AVI tells no order of display: its reader then passes off the order of decoding as times.
        in_disguise = stream.codec_context.has_b_frames and times == sorted(times)
    if len(set(times)) == len(packets) and not in_disguise:
        return _Clock(len(times), np.array(sorted(times), np.int64), np.array(sorted(keys), np.int64))
    container, stream = _open(path)
    with container:
        return _Clock(sum(1 for _ in container.decode(stream)), None, np.array([], np.int64))


def _pictures(path: Path, clock: _Clock, indices: np.ndarray) -> Iterator[av.VideoFrame]:
    """The picture on show at each index: the frame's own, or the last before it where the codec left one out.

    Encoders leave out pictures that equal the one before; ValueError where more than half of the clip is
    missing, which is more likely damage.
    """
    wanted = indices if clock.times is None else clock.times[indices]
    shown, at, held = None, 0, 0
    for time, picture in _decode(path, clock, wanted[0]):
        while shown and at < len(wanted) and wanted[at] < time:
            yield shown
            at, held = at + 1, held + 1
        shown = picture
        if at < len(wanted) and wanted[at] == time:
            yield shown
            at += 1
        if at == len(wanted):
            break
    held += len(wanted) - at
    if shown is None or 2 * held > len(wanted):
        raise ValueError(f"{held} of {len(wanted)} frames from frame {indices[0]} on have no picture")
    yield from [shown] * (len(wanted) - at)


def _decode(path: Path, clock: _Clock, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from a key frame at or before the time `first` on; times as in `clock`."""
    keys = clock.keys[clock.keys <= first]
    for key in (int(keys[-1]), None) if len(keys) > 1 else (None,):
        container, stream = _open(path)
        with container:
            if key is not None:
                try:
                    container.seek(key, stream=stream)
                except av.FFmpegError:
                    continue
            pictures = _in_order(container, stream, clock)
            head = next(pictures, None)
            # A seek by decoding time may land past the key frame: then begin at the beginning.
            if head and (key is None or head[0] <= key):
                yield head
                yield from pictures
                return


def _in_order(
    container: av.container.InputContainer, stream: av.VideoStream, clock: _Clock
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(time, picture) from where the container stands; ValueError where times do not ascend."""
    before = None
    for count, picture in enumerate(container.decode(stream)):
        time = count if clock.times is None else picture.pts
        if time is None:
            continue
        if before is not None and time <= before:
            raise ValueError(f"shows a picture of time {time} after one of time {before}")
        yield time, picture
        before = time
