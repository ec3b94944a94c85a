"""Lists the clips of a source, with file and split of each, before anything is decoded.

- A clip is a video file or a folder of frames; names that begin with a dot, and macOS's `__MACOSX`, are skipped.
- An outermost folder `train`, `test` or `val` (also `training`, `sky_train`, ...) is the split of the clips in it; all
  other clips are `train`. A single folder around everything, which archives often have, is ignored.

Layouts, lists and tables of particular data sets are read in `datasets.py`, `ucf101_splits.py` and `tables.py`.
"""

import dataclasses
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vf.data import archives
from vf.data.decode import IMAGES, VIDEOS, error_text, natural, printable
from vf.types import UserError

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
STAGING = ".staging"  # folder of clips that a preparation has finished, in the folder that it prepares


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip to prepare.

    Attributes:
        name: unique name, its path relative to the source with `/`.
        path: a video file, a folder of frames, or the archive that holds `member`.
        member: name within the archive; "" for a clip outside archives.
        split: `train`, `test` or `val`.
        label: name of its class; "" for none.
        caption: description of what it shows; "" for none.
    """

    name: str
    path: Path
    member: str = ""
    split: str = "train"
    label: str = ""
    caption: str = ""


@dataclasses.dataclass
class Listing:
    """The clips of a source.

    Attributes:
        items: the clips that can be used. Where there are classes, each has one of them.
        classes: names of the classes, in the order of labels.
        lost: {name: reason} of the clips that cannot be used.
        unlisted: names of the clips that split files or a table leave out.
        table_notes: how a table was read, in sentences for the user.
    """

    items: list[Item]
    classes: tuple[str, ...] = ()
    lost: dict[str, str] = dataclasses.field(default_factory=dict)
    unlisted: list[str] = dataclasses.field(default_factory=list)
    table_notes: list[str] = dataclasses.field(default_factory=list)


def clips(source: Path) -> Listing:
    """Lists every video and folder of frames below `source`, or every video in an archive, with its split.

    Clips are in natural order of their names. Raises UserError where there are none.
    """
    if os.path.isfile(source):
        listing = _list_archive(source)
    elif os.path.isdir(source):
        listing = _list_folder(source)
    else:
        raise UserError(f"{source} does not exist: name the folder (or .zip, .tar) that holds the data", "source")
    if not listing.items:
        check_finished(source)
        lost = "".join(f" ({printable(name)}: {why})" for name, why in list(listing.lost.items())[:1])
        raise UserError(
            f"{source} holds no videos ({' '.join(VIDEOS)}) and no folders of frames ({' '.join(IMAGES)}){lost}: "
            "unpack archives, give the frames of each clip a folder of their own, or name another source",
            "source",
        )
    listing.items.sort(key=lambda item: natural(item.name))
    splits = [split_of(path) or "train" for path in folders_and_name(listing.items)]
    listing.items = [dataclasses.replace(i, split=split) for i, split in zip(listing.items, splits, strict=True)]
    return listing


def _list_folder(root: Path) -> Listing:
    items: list[Item] = []
    lost: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        place = Path(error.filename or root).relative_to(root)
        lost[place.as_posix()] = f"the folder cannot be read: {error_text(error)}"

    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not (hidden(name) or _is_cycle(folder / name, root)))
        files = [name for name in files if not hidden(name)]
        paths = [folder / name for name in files if name.lower().endswith(VIDEOS)]
        if not paths and folder != root:  # pictures beside videos are previews, as is a single one beside folders
            frames = sum(name.lower().endswith(IMAGES) for name in files)
            if frames > bool(folders):
                paths = [folder]
            elif not folders and folder.name.lower().endswith(VIDEOS):
                lost[folder.relative_to(root).as_posix()] = "is a folder, and holds neither a video nor frames"
        items += [Item(path.relative_to(root).as_posix(), path) for path in paths]
    return Listing(items, lost=lost)


def check_finished(root: Path) -> None:
    """Raises UserError where a preparation into the folder `root` has begun and not finished."""
    if (root / STAGING).is_dir():
        raise UserError(
            f"the preparation of {root} has not finished: give the same python -m vf.data.prepare command again, which "
            "goes on from there",
            "source",
        )


def hidden(name: str) -> bool:
    """Whether a name belongs to files of the system or a program, such as macOS's `._NAME` or our `.staging`."""
    return name.startswith(".") or name == "__MACOSX"


def _is_cycle(folder: Path, root: Path) -> bool:
    """Whether `folder` is a link to one of the folders above it, so that following it would never end."""
    ancestors = (parent for parent in folder.parents if parent.is_relative_to(root))
    return folder.is_symlink() and any(parent.resolve().is_relative_to(folder.resolve()) for parent in ancestors)


def _list_archive(archive: Path) -> Listing:
    members, cut = archives.members(archive)
    items: dict[str, Item] = {}  # a name that occurs twice stands for the later member
    frames: set[str] = set()
    for member in members:
        name = PurePosixPath(member.replace("\\", "/").lstrip("/")).as_posix()  # also ./NAME and backslashes
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
    """Parts of every clip's path, without outer folders that hold all clips and are neither a split nor a class."""
    paths = [PurePosixPath(item.name).parts for item in items]
    while min(map(len, paths)) > 2 and len({path[0] for path in paths}) == 1 and not split_of(paths[0]):
        paths = [path[1:] for path in paths]
    return paths


def split_of(path: tuple[str, ...]) -> str:
    """The split that the outermost folder of a path names; "" where it names none."""
    top = path[0].lower().removeprefix("sky_").removeprefix("taichi_")
    return SPLITS.get(top, "") if len(path) > 1 else ""


def has_splits(items: list[Item]) -> bool:
    """Whether folders assign clips to splits; otherwise all clips are taken for `train`."""
    return any(map(split_of, folders_and_name(items)))


def labelled(item: Item, label: str) -> Item:
    """A copy of the clip with this class."""
    return dataclasses.replace(item, label=clean_label(label))


def clean_label(label: str) -> str:
    """The name of a class as printable text on one line."""
    return " ".join(printable(label).split())


def without_extension(name: str) -> str:
    """`name` without its extension, if that is one of a video."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS else name


def class_names(items: Iterable[Item]) -> tuple[str, ...]:
    """The distinct labels of clips, in natural order."""
    return tuple(sorted({item.label for item in items if item.label}, key=natural))
