"""A folder of video files as a source of clips, which are decoded on the fly.

Layouts: `ROOT/<Class>/<clip>.avi` as in UCF101 (the subfolder is the class), or files directly in `ROOT` (no labels).
Data that `vf.data.prepare` has decoded once loads much faster.
"""

import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vf.data.clips import Windows
from vf.data.decode import DAMAGE, RESAMPLER, VIDEOS, Pixels, Video, error_text, natural, read_header
from vf.data.listing import check_finished
from vf.data.pipeline import BadRecord
from vf.data.share import Share
from vf.types import UserError, counted

_PROBES = 16  # threads that probe files, which wait for the disk most of the time


class VideoFolder:
    """Clips of the video files in a folder; a `vf.data.pipeline.Source`.

    Args:
        root: the folder. Classes are numbered in natural order of their folders' names, letter case aside.
        windows: which frames make a clip. With `start` all, the packets of every file are read at the beginning.
        size: height and width of the clip in pixels.
        split_file: file that names the videos to use, one `<Class>/<clip>.avi` per line as in UCF101's lists; None
            uses all. Labels after the names are ignored, since the folder is the class.
        without: file that names, in the same way, the videos to leave out.
        share: use the videos of this part only; None uses all.

    Raises:
        UserError: there is no such folder, no video in it, none that can be used, or a video that both files name.
    """

    rejected: dict[str, str]
    """{name relative to `root`: reason} of the files that were left out."""

    def __init__(
        self,
        root: str | Path,
        *,
        windows: Windows,
        size: int,
        split_file: str | Path | None = None,
        without: str | Path | None = None,
        share: Share | None = None,
    ):
        self.root, self.windows, self.size = Path(root), windows, size
        self.split_file = None if split_file is None else Path(split_file)
        self.without, self.share = None if without is None else Path(without), share
        names, self.class_names = _list_videos(self.root)
        self.num_classes = len(self.class_names)
        selected = names if self.split_file is None else _read_split(self.split_file)
        if self.without is not None:
            others = set(_read_split(self.without))
            both = [name for name in selected if name in others]
            if self.split_file is not None and both:
                raise UserError(
                    f"{self.split_file} and {self.without} both name {both[0]} (and {len(both) - 1} more): a video "
                    "either trains or validates; take it out of one of them"
                )
            selected = [name for name in selected if name not in others]
            if not selected:
                raise UserError(f"{self.without} names every video of {self.root}, and leaves none to train on")
        if share is not None:
            selected = [name for name, keep in zip(selected, share.select(selected), strict=True) if keep]
        present = set(names)

        def probe(name: str) -> tuple[Video, float, int] | str:
            return _probe(self.root / name, windows) if name in present else "is not in the folder"

        with ThreadPoolExecutor(_PROBES) as pool:
            probed = dict(zip(selected, pool.map(probe, selected), strict=True))
        self.rejected = {name: why for name, why in probed.items() if isinstance(why, str)}
        usable = [(name, *facts) for name, facts in probed.items() if not isinstance(facts, str)]
        if not usable:
            why, count = Counter(self.rejected.values()).most_common(1)[0]
            raise UserError(
                f"Of {counted(len(selected), 'video')} of {self.split_file or self.root} none serves for clips of "
                f"{windows.frames} frames with stride {windows.stride} ({count} of them: {why}); choose another "
                "folder, or shorter clips",
                "frames" if "fewer than" in why else "source",
            )
        for name, why in self.rejected.items():
            logging.warning("left out %s: %s", name, why)
        self.names, self.videos, self.rates, records = zip(*usable, strict=True)
        self._ends = np.cumsum(records)  # of each video's records

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fps(self) -> float:
        """Frames per second of a clip, the median over the videos."""
        return self.windows.rate(float(np.median(self.rates)))

    def describe(self) -> dict[str, Any]:
        """Folder, selection and pixel processing, ready for JSON: a part of the protocol of every score."""
        return {
            "source": "folder",
            "root": str(self.root),
            "split": self.split_file and self.split_file.name,
            **({"without": self.without.name} if self.without else {}),
            **(self.share.describe() if self.share else {}),
            "videos": len(self.names),
            "records": len(self),
            "rejected": len(self.rejected),
            "classes": self.num_classes,
            **vars(self.windows),
            "size": self.size,
            "crop": "centre square",
            "resize": RESAMPLER,
        }

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """`video` u8 [f size size 3] and `label` i32 [] of a random window, or of the middle one where `rng` is None.

        Raises BadRecord where the file cannot be opened or decoded, or is shorter than its header says.
        """
        k = int(np.searchsorted(self._ends, record, side="right"))
        name, video = self.names[k], self.videos[k]
        try:
            first = int(self._ends[k - 1]) if k else 0
            indices = self.windows.indices(len(video), self.rates[k], record - first, rng)
            pixels = video.clip(indices, Pixels(self.size))
        except DAMAGE as error:
            raise BadRecord(f"{name}: {error_text(error)}") from error
        label = self.class_names.index(Path(name).parts[0]) if self.num_classes else 0
        return {"video": pixels, "label": np.array(label, np.int32)}


def _list_videos(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of videos relative to `root`, in natural order, and the classes; () where the folder is flat."""
    expected = f"videos ({' '.join(VIDEOS)}) as {root}/CLASS/VIDEO or {root}/VIDEO"
    if not root.is_dir():
        raise UserError(
            f"Looked for {expected}, but there is no such folder: name one, or a data set that python -m "
            "vf.data.prepare made",
            "source",
        )

    def videos(folder: Path) -> list[str]:
        names = (p.relative_to(root).as_posix() for p in folder.iterdir() if p.suffix.lower() in VIDEOS)
        return sorted(names, key=natural)

    folders = sorted((p.name for p in root.iterdir() if p.is_dir()), key=natural)
    per_class = {folder: names for folder in folders if (names := videos(root / folder))}
    in_classes = [name for names in per_class.values() for name in names]
    if flat := videos(root):
        if in_classes:
            raise UserError(
                f"{root} holds videos ({flat[0]}) and folders of videos ({in_classes[0]}): keep one layout, or "
                "name another folder",
                "source",
            )
        return flat, ()
    if not in_classes:
        check_finished(root)
        deeper = next((p for p in root.rglob("*") if p.suffix.lower() in VIDEOS), None)
        entries = (
            f"the first of its videos is {deeper}"
            if deeper
            else f"it has {counted(len(folders), 'folder')} and no video"
        )
        raise UserError(f"Looked for {expected}, but {entries}: name the right folder", "source")
    return in_classes, tuple(per_class)


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


def _probe(path: Path, windows: Windows) -> tuple[Video, float, int] | str:
    """(video, frames per second, records) of a file that can be opened, has a picture and is long enough.

    For any other file it is the reason why it cannot be used. The length is taken from the header, since reading
    packets takes longer, and `clip` raises BadRecord where it is wrong; unless every window is a record.
    """
    try:
        header, video = read_header(path), Video(path)
        exact = windows.start == "all" or not header.frames
        length = len(video) if exact else header.frames
        records = windows.records(length, header.fps)
        need = windows.need(header.fps)
    except DAMAGE as error:
        return error_text(error)
    return (video, header.fps, records) if records else f"has {counted(length, 'frame')}, fewer than {need}"
