"""A folder of clips as a source, which are decoded on the fly.

Clips, classes and splits are those that `python -m vf.data.prepare folder` would find: `ROOT/<Class>/<clip>.avi` as in
UCF101 (the subfolder is the class), or clips directly in `ROOT` (no labels). Data that has been prepared loads much
faster.
"""

import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vf.data import datasets
from vf.data.clips import Windows
from vf.data.decode import DAMAGE, Video, error_text, printable
from vf.data.listing import Item, Listing
from vf.data.notes import ON_BLACK, is_loss
from vf.data.pipeline import BadRecord
from vf.data.pixels import RESAMPLER, Pixels
from vf.data.reader import Clip, open_clip
from vf.data.share import Share
from vf.data.tables import finder, list_lines, no_match
from vf.types import UserError, counted

_PROBES = 16  # threads that probe files, which wait for the disk most of the time


class VideoFolder:
    """Clips of the videos, folders of frames and animated pictures in a folder; a `vf.data.pipeline.Source`.

    Where folders name splits, the clips of `train` are taken, unless `split_file` names others.

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
    """{name relative to `root`: reason} of the clips that were left out."""

    unlisted: dict[str, str]
    """{name relative to `root`: reason} of whatever else lies in the folder and is no clip."""

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
        listing = _listing(self.root)
        items, self.unlisted = {item.name: item for item in listing.items}, listing.unlisted
        self.class_names, self.num_classes = listing.classes, len(listing.classes)
        missing: dict[str, str] = {}
        selected = list(items)
        if self.split_file is not None:
            selected = _read_split(self.split_file, listing, self.root, missing)
        elif kept := [name for name, item in items.items() if item.split == "train"]:
            if left_out := len(items) - len(kept):
                logging.warning("%s: %s of other splits than train left out", root, counted(left_out, "clip"))
            selected = kept
        if self.without is not None:
            others = set(_read_split(self.without, listing, self.root, {}))
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

        def probe(name: str) -> tuple[Clip, float, int] | str:
            return _probe(items[name], windows)

        with ThreadPoolExecutor(_PROBES) as pool:
            probed = dict(zip(selected, pool.map(probe, selected), strict=True))
        self.rejected = missing | {name: why for name, why in probed.items() if isinstance(why, str)}
        if self.split_file is None:
            self.rejected = listing.lost | self.rejected
        usable = [(name, *facts) for name, facts in probed.items() if not isinstance(facts, str)]
        if not usable:
            why, count = Counter(self.rejected.values()).most_common(1)[0]
            raise UserError(
                f"Of {counted(len(selected) + len(missing), 'clip')} of {self.split_file or self.root} none serves for "
                f"clips of {windows.frames} frames with stride {windows.stride} ({count} of them: {why}); choose "
                "another folder, or shorter clips",
                "frames" if "fewer than" in why else "source",
            )
        for name, why in self.rejected.items():
            logging.warning("left out %s: %s", printable(name), why)
        if sentence := listing.passed_over():
            logging.warning("%s: %s", root, sentence)
        self.names, self.videos, self.rates, records = zip(*usable, strict=True)
        self.labels = [items[name].label for name in self.names]
        self._whole: set[int] = set()  # videos that are known to be
        self._told: set[str] = set()  # kinds of losses
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
            if k not in self._whole:
                self._tell(name, video.notes())  # raises an error where it is cut off
                self._whole.add(k)
            indices = self.windows.indices(len(video), self.rates[k], record - first, rng)
            pixels = video.clip(indices, scaler := Pixels(self.size))
            seen = [] if isinstance(video, Video) else video.notes()  # of images, as they are read
            self._tell(name, seen + [ON_BLACK] * scaler.transparent)
        except DAMAGE as error:
            raise BadRecord(f"{name}: {error_text(error)}") from error
        label = self.class_names.index(self.labels[k]) if self.num_classes else 0
        return {"video": pixels, "label": np.array(label, np.int32)}

    def _tell(self, name: str, notes: list[str]) -> None:
        """Warns of what a clip has lost, once of each kind: those that differ only by their numbers are one."""
        for note in filter(is_loss, notes):
            if (kind := re.sub(r"\d+", "#", note)) not in self._told:
                self._told.add(kind)
                logging.warning("%s, the first of this kind: %s", printable(name), note)


def _listing(root: Path) -> Listing:
    """The clips of a folder. Raises UserError where it holds none."""
    if not root.is_dir():
        raise UserError(
            f"Looked for videos as {root}/CLASS/VIDEO or {root}/VIDEO, but there is no such folder: name one, or a "
            "data set that python -m vf.data.prepare made",
            "source",
        )
    return datasets.folder(root, None, 1, None)


def _read_split(path: Path, listing: Listing, root: Path, missing: dict[str, str]) -> list[str]:
    """Names of the clips that a list names; names of none are added to `missing`, with the reason."""
    try:
        lines = list_lines(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"The split file {path} cannot be read ({error.strerror}); it should name one CLASS/VIDEO a line."
        ) from error
    if not lines:
        raise UserError(f"The split file {path} is empty; it should name one CLASS/VIDEO a line.")
    find, names = finder(listing.items, root), list[str]()
    for line in lines:
        name = re.sub(r"\s+\d+$", "", line)  # a label, since the folder is the class
        match = find(name) or find(line)
        if len(match) == 1:
            names.append(match[0].name)
        else:
            missing[name] = no_match(match, path.name) if match else "is not in the folder"
    return list(dict.fromkeys(names))


def _probe(item: Item, windows: Windows) -> tuple[Clip, float, int] | str:
    """(clip, frames per second, records) of a clip that can be opened, has a picture and is long enough.

    For any other it is the reason why it cannot be used. The length of a video is taken from the header, since reading
    packets takes longer, and `clip` raises BadRecord where it is wrong; unless every window is a record, or the video
    is so short that frames which are not shown would matter.
    """
    try:
        clip = open_clip(item.path, item.member)
        need = windows.need(clip.fps)
        promised = clip.header.frames if isinstance(clip, Video) and windows.start != "all" else 0
        length = promised if promised >= 2 * need else len(clip)
        records = windows.records(length, clip.fps)
    except DAMAGE as error:
        return error_text(error)
    return (clip, clip.fps, records) if records else f"has {counted(length, 'frame')}, fewer than {need}"
