"""Lists the clips of a source, with file and split of each, before anything is decoded.

- A clip is a video file, a folder of frames or an animated picture. Files whose names tell nothing are looked into.
  Whatever is no clip is told with the reason, also names that begin with a dot, and macOS's `__MACOSX`.
- An outermost folder `train`, `test` or `val` (also `training`, `sky_train`, ...) is the split of the clips in it; all
  other clips are `train`. A single folder around everything, which archives often have, is ignored. Where one such
  folder lies among others, as one of classes, it is no split (`has_splits`).

Layouts, lists and tables of particular data sets are read in `datasets.py`, `ucf101_splits.py` and `tables.py`.
"""

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vf.data import archives
from vf.data.containers import open_video
from vf.data.decode import DAMAGE, VIDEOS, error_text, natural, printable
from vf.data.frames import IMAGES, find_strays, is_animated
from vf.types import UserError, counted

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
HIDDEN = "is hidden"
NO_CLIP = "is neither a video nor a picture that is read"
# How files of FFmpeg's common containers begin: MP4 and QuickTime, Matroska, AVI, ASF, FLV, Ogg, MPEG program and
# elementary streams, MPEG transport streams (packets of 188 or 192 bytes), GIF, RealMedia, MXF, YUV4MPEG, IVF.
_VIDEO = re.compile(
    rb"(....(ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF....AVI |0&\xb2u|FLV|OggS|\x00\x00\x01[\xb3\xba]"
    rb"|G.{187}G|....G.{191}G|GIF8|\.RMF|\x06\x0e\+4|YUV4MPEG|DKIF)",
    re.DOTALL,
)
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
        unlisted: {name: reason} of whatever else lies in the source: clips that split files or a table leave out, and
            files that are no clips.
        table_notes: how a table was read, in sentences for the user.
    """

    items: list[Item]
    classes: tuple[str, ...] = ()
    lost: dict[str, str] = dataclasses.field(default_factory=dict)
    unlisted: dict[str, str] = dataclasses.field(default_factory=dict)
    table_notes: list[str] = dataclasses.field(default_factory=list)

    def passed_over(self) -> str:
        """One sentence on the files that are no clips and are not hidden; "" where there are none."""
        told = {name: why for name, why in self.unlisted.items() if why != HIDDEN}
        if not told:
            return ""
        name, why = next(iter(told.items()))
        return f"{counted(len(told), 'file')} passed over, the first {printable(name)}: {why}"


def clips(source: Path) -> Listing:
    """Lists every video and folder of frames below `source`, or every video in an archive, with its split.

    A video file by itself is a source of one clip.

    Clips are in natural order of their names. Raises UserError where there are none.
    """
    if os.path.isfile(source) and not why_no_clip(source):
        listing = Listing([Item(source.name, source)])
    elif os.path.isfile(source):
        listing = _list_archive(source)
    elif os.path.isdir(source):
        listing = _list_folder(source)
    else:
        raise UserError(
            f"{source} does not exist: name the folder (or .zip, .tar, one video) that holds the data", "source"
        )
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
    found = Listing([])

    def name(path: Path) -> str:
        return path.relative_to(root).as_posix()

    def unreadable(error: OSError) -> None:
        found.lost[name(Path(error.filename or root))] = f"the folder cannot be read: {error_text(error)}"

    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        folder = Path(place)
        skipped = [entry for entry in (*folders, *files) if hidden(entry)]
        found.unlisted |= {name(folder / entry): HIDDEN for entry in skipped}
        folders[:] = sorted(entry for entry in folders if not (hidden(entry) or _is_cycle(folder / entry, root)))
        seen = sorted((entry for entry in files if not hidden(entry)), key=natural)
        videos = [entry for entry in seen if entry.lower().endswith(VIDEOS)]
        pictures = [entry for entry in seen if entry.lower().endswith(IMAGES)]
        for entry in sorted({*seen} - {*videos, *pictures}):
            if why := why_no_video(folder / entry):
                (found.lost if why.startswith(_BROKEN) else found.unlisted)[name(folder / entry)] = why
            else:
                videos.append(entry)
        if folder == root or videos or len(pictures) <= bool(folders):
            place = "videos" if videos else "folders"
            strays = dict.fromkeys(pictures, f"is a picture beside {place}, and no clip")
        elif is_animated(folder / pictures[0]):
            strays = dict.fromkeys(pictures, "is a picture beside animated ones, and no clip")
        else:
            found.items.append(Item(name(folder), folder))
            strays = find_strays(pictures)
        videos += (animated := [entry for entry in strays if is_animated(folder / entry)])
        found.unlisted |= {name(folder / entry): why for entry, why in strays.items() if entry not in animated}
        found.items += [Item(name(folder / entry), folder / entry) for entry in videos]
        if not (seen or folders) and folder.name.lower().endswith(VIDEOS) and folder != root:
            found.lost[name(folder)] = "is a folder, and holds neither a video nor frames"
    return found


_BROKEN = "cannot be read: "


def why_no_clip(file: Path) -> str:
    """Why a file by itself is no clip; "" for a video and for an animated picture."""
    ending = file.suffix.lower()
    if ending in VIDEOS:
        return ""
    if ending in IMAGES:
        return "" if is_animated(file) else "is one picture"
    return why_no_video(file)


def why_no_video(file: Path) -> str:
    """Why a file whose name does not end as a video's is none; "" for a video."""
    if file.exists() and not file.is_file():  # a pipe, which would be waited for
        return NO_CLIP
    try:
        with file.open("rb") as content:
            if not _VIDEO.match(content.read(400)):
                return NO_CLIP
        container, _ = open_video(file)
        container.close()
    except DAMAGE as error:
        has_others = type(error) is ValueError  # as `open_video` raises it for a file of sound
        return error_text(error) if has_others else f"{_BROKEN}{error_text(error)}"
    return ""


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
    frames: dict[str, list[str]] = {}
    unlisted: dict[str, str] = {}
    for member in members:
        name = PurePosixPath(member.replace("\\", "/").lstrip("/")).as_posix()  # also ./NAME and backslashes
        if any(map(hidden, name.split("/"))):
            unlisted[name] = HIDDEN
        elif name.lower().endswith(VIDEOS):
            items[name] = Item(name, archive, member)
        elif name.lower().endswith(IMAGES):
            frames.setdefault(posixpath.dirname(name), []).append(name)
        else:
            unlisted[name] = "its name ends in none of a video's: unpack the archive to have it looked into"
    for folder in {"", *map(posixpath.dirname, items)}:  # as in a folder, pictures beside videos are no clips
        unlisted |= dict.fromkeys(frames.pop(folder, []), "is a picture beside videos, and no clip")
    lost = dict.fromkeys(sorted(frames), "frames in an archive are not read: unpack it")
    return Listing(list(items.values()), lost=lost | ({archive.name: cut} if cut else {}), unlisted=unlisted)


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
    """Whether folders assign clips to splits; otherwise all clips are taken for `train`.

    One folder that is named as a split, among others that are not, is one of classes.
    """
    splits = {split_of(path) for path in folders_and_name(items)}
    return len(splits - {""}) > ("" in splits)


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
