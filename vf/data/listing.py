"""What is in a source: every clip's file and split, before anything is decoded.

- A clip is a video file or a folder of frames; names that begin with a dot, and macOS's `__MACOSX`, are skipped.
- An outermost folder `train`, `test` or `val` (also `training`, `sky_train`, ...) is the split of what lies in it; what
  lies outside is `train`. A folder that holds everything, as archives often have one, does not count.

What the data sets' own layouts, lists and tables say besides is in `datasets.py`, `ucf101_splits.py` and `tables.py`.
"""

import dataclasses
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vf.data import archives
from vf.data.decode import IMAGES, VIDEOS, natural, printable, words
from vf.types import UserError

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip to prepare.

    Attributes:
        name: relative to the source, with `/`; unique.
        path: of a video file, of a folder of frames, or of the archive that holds `member`.
        member: name within the archive; "" for none.
        split: `train`, `test` or `val`.
        label: its class; "" for none.
        caption: what it shows, in words; "" for none.
    """

    name: str
    path: Path
    member: str = ""
    split: str = "train"
    label: str = ""
    caption: str = ""


@dataclasses.dataclass
class Listing:
    """Clips, class names in the order of their numbers, and what is missing.

    Where there are classes, every clip has one of them. `lost` maps names to the reason; `unlisted` are clips of the
    source that its split files or table leave out."""

    items: list[Item]
    classes: tuple[str, ...] = ()
    lost: dict[str, str] = dataclasses.field(default_factory=dict)
    unlisted: list[str] = dataclasses.field(default_factory=list)


def clips(source: Path) -> Listing:
    """Every video and folder of frames below `source`, or every video in it where it is an archive, with its split.

    They are in natural order of their names. Raises UserError where there are none.
    """
    if os.path.isfile(source):
        found = _archived(source)
    elif os.path.isdir(source):
        found = _walked(source)
    else:
        raise UserError(f"{source} does not exist: name the folder (or .zip, .tar) that holds the data", "source")
    if not found.items:
        lost = "".join(f" ({printable(name)}: {why})" for name, why in list(found.lost.items())[:1])
        raise UserError(
            f"{source} holds no videos ({' '.join(VIDEOS)}) and no folders of frames ({' '.join(IMAGES)}){lost}: "
            "unpack archives, give the frames of each clip a folder of their own, or name another source",
            "source",
        )
    found.items.sort(key=lambda item: natural(item.name))
    splits = [split_of(path) or "train" for path in folders_and_name(found.items)]
    found.items = [dataclasses.replace(i, split=split) for i, split in zip(found.items, splits, strict=True)]
    return found


def _walked(root: Path) -> Listing:
    items: list[Item] = []
    lost: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        place = Path(error.filename or root).relative_to(root)
        lost[place.as_posix()] = f"the folder cannot be read: {words(error)}"

    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not (hidden(name) or _leads_back(here / name, root)))
        files = [name for name in files if not hidden(name)]
        found = [here / name for name in files if name.lower().endswith(VIDEOS)]
        if not found and here != root:  # pictures beside videos are previews, as is a single one beside folders
            frames = sum(name.lower().endswith(IMAGES) for name in files)
            if frames > bool(folders):
                found = [here]
            elif not folders and here.name.lower().endswith(VIDEOS):
                lost[here.relative_to(root).as_posix()] = "is a folder, and holds neither a video nor frames"
        items += [Item(path.relative_to(root).as_posix(), path) for path in found]
    return Listing(items, lost=lost)


def hidden(name: str) -> bool:
    """Is this a file or folder of the system's or a program's own, such as macOS's `._NAME` or our `.staging`?"""
    return name.startswith(".") or name == "__MACOSX"


def _leads_back(folder: Path, root: Path) -> bool:
    """Is `folder` a link to something that holds a folder on the way to it? Without these, every walk ends."""
    way = (parent for parent in folder.parents if parent.is_relative_to(root))
    return folder.is_symlink() and any(parent.resolve().is_relative_to(folder.resolve()) for parent in way)


def _archived(archive: Path) -> Listing:
    members, cut = archives.members(archive)
    items: dict[str, Item] = {}  # a name that comes twice means the later member
    frames: set[str] = set()
    for member in members:
        name = PurePosixPath(member.replace("\\", "/").lstrip("/")).as_posix()  # also ./NAME, and Windows's own way
        if any(map(hidden, name.split("/"))):
            continue
        if name.lower().endswith(VIDEOS):
            items[name] = Item(name, archive, member)
        elif name.lower().endswith(IMAGES):
            frames.add(posixpath.dirname(name))
    frames -= {"", *map(posixpath.dirname, items)}
    lost = dict.fromkeys(sorted(frames), "frames in an archive are not read: unpack it")
    return Listing(list(items.values()), lost=lost | ({archive.name: cut} if cut else {}))


def folders_and_name(items: list[Item]) -> list[tuple[str, ...]]:
    """Folders and name of every clip, without outer folders that hold them all and are neither split nor class."""
    paths = [PurePosixPath(item.name).parts for item in items]
    while min(map(len, paths)) > 2 and len({path[0] for path in paths}) == 1 and not split_of(paths[0]):
        paths = [path[1:] for path in paths]
    return paths


def split_of(path: tuple[str, ...]) -> str:
    """The split that the outermost folder names, or ""."""
    top = path[0].lower().removeprefix("sky_").removeprefix("taichi_")
    return SPLITS.get(top, "") if len(path) > 1 else ""


def names_splits(items: list[Item]) -> bool:
    """Do folders say of which split clips are? Else all of them pass for `train`."""
    return any(map(split_of, folders_and_name(items)))


def labelled(item: Item, label: str) -> Item:
    """The clip with its class."""
    return dataclasses.replace(item, label=word(label))


def word(label: str) -> str:
    """A class's name as every file can hold it: printable, in one line."""
    return " ".join(printable(label).split())


def without_extension(name: str) -> str:
    """`name` without the extension of a video."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS else name


def class_names(items: Iterable[Item]) -> tuple[str, ...]:
    """The labels of the clips, each once, in natural order."""
    return tuple(sorted({item.label for item in items if item.label}, key=natural))
