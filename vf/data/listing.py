"""What is in a source: every clip's file, split, class and caption, before anything is decoded.

One function per data set, each for the layouts in which people really have it. What they share:

- A clip is a video file or a folder of frames; names that begin with a dot, and macOS's `__MACOSX`, are skipped.
- An outermost folder `train`, `test` or `val` (also `training`, `sky_train`, ...) is the split of what lies in it; what
  lies outside is `train`. A folder that holds everything, as archives often have one, does not count.
- Lists and tables name a clip by its path relative to the source, by the end of its path where that fits one clip only,
  with or without extension. The names that they give and the source lacks are lost, and told.

All return a `Listing` in natural order of names, and raise UserError where nothing can be listed.
"""

import csv
import dataclasses
import functools
import lzma
import os
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from vf.data.decode import IMAGES, VIDEOS, natural, printable, words
from vf.types import UserError

WEIZMANN = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
_ARCHIVES = (".zip", ".tar")
_NAMES = ("path", "video", "file", "filename", "video_path", "video_id", "videoid")  # headings of a table, best first
_DAMAGE = (  # what reading a broken archive may raise, next to OSError
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(LookupError, RuntimeError, EOFError, ValueError),
)


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


def ucf101(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """`<Class>/v_<Class>_g01_c01.avi` anywhere below `source`, or in an archive of that.

    With `splits`, a folder (.zip, .tar) of the official `trainlist0F.txt`, `testlist0F.txt` (F = `fold`, 1 to 3) and
    `classInd.txt`, clips are split and classes numbered as these say; lists in the archive itself, and a folder
    `ucfTrainTestlist` in, above or beside the folder of the classes are found without being named.
    """
    _no_table(table)
    found = _clips(source)
    items = [_labelled(item, PurePosixPath(item.name).parts[-2]) for item in found.items if "/" in item.name]
    if not items:
        raise UserError(f"looked for UCF101 as {source}/CLASS/v_CLASS_g01_c01.avi, but no folder of a class has videos")
    loose = {item.name: "lies in no folder of a class" for item in found.items if "/" not in item.name}
    found = Listing(items, _classes(items), found.lost | loose)
    if splits is None and os.path.isfile(source) and _lists_in(source):
        splits = source
    if splits is None:
        above = [folder for folder in items[0].path.parents if folder.is_relative_to(source.parent)]
        splits = next((folder / "ucfTrainTestlist" for folder in above if (folder / "ucfTrainTestlist").is_dir()), None)
    return found if splits is None else _official(found, splits, fold, source)


def _official(found: Listing, splits: Path, fold: int, source: Path) -> Listing:
    """UCF101's own lists: `Class/video.avi 12` to train on, `Class/video.avi` to test, `12 Class` to number."""
    ids = _class_ids(splits)
    find, lost = _finder(found.items, source), dict(found.lost)
    splits_of: dict[str, set[str]] = {}
    classes_of = {item.name: {item.label} for item in found.items}  # the folder says the class, too
    for split in ("train", "test"):
        file = f"{split}list{fold:02d}.txt"
        for line in _lines(splits, file, "a video CLASS/NAME.avi"):
            name, number = re.fullmatch(r"(.+?)(?:\s+(\d{1,9}))?", line).groups()  # type: ignore[union-attr]
            match = find(name)
            if len(match) != 1:
                lost[name] = _no_match(match, file)
                continue
            splits_of.setdefault(match[0].name, set()).add(split)
            if number:
                said = ids.get(int(number), f"number {number}, which classInd.txt does not know")
                classes_of[match[0].name].add(said)
    items = []
    for item in found.items:
        where, classes = splits_of.get(item.name, set()), classes_of[item.name]
        if len(where) > 1:
            lost[item.name] = "both the train list and the test list name it"
        elif where and len(classes) > 1:
            lost[item.name] = f"it has two classes: {' and '.join(sorted(classes))}"
        elif where and item.label not in ids.values():
            lost[item.name] = f"its class {item.label} is not in classInd.txt"
        elif where:
            items.append(dataclasses.replace(item, split=min(where)))
    unlisted = [item.name for item in found.items if item.name not in splits_of]
    return Listing(items, tuple(ids[number] for number in sorted(ids)), lost, unlisted)


def _class_ids(splits: Path) -> dict[int, str]:
    """Numbers and names of the classes."""
    what = "a number and a class, each once"
    ids: dict[int, str] = {}
    for line in _lines(splits, "classInd.txt", what):
        match = re.fullmatch(r"(\d{1,9})\s+(.+)", line)
        if not match or int(match[1]) in ids or _word(match[2]) in ids.values():
            raise UserError(f"each line of {splits / 'classInd.txt'} should be {what}; mend the line {line[:99]!r}")
        ids[int(match[1])] = _word(match[2])
    return ids


def sky_timelapse(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Folders of frames below `sky_train`, `sky_test` (MDGAN's release, VIDEO/CLIP/*.jpg) or `train`, `test`
    (DTVNet's, CLIP/*.png or videos)."""
    _no_table(table)
    _no_splits(splits)
    return _clips(source)


def taichi_hd(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Chunks below `train` and `test`, as MP4 files or as folders of PNG frames (also named *.mp4)."""
    return sky_timelapse(source, splits, fold, table)


def weizmann(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """`<person>_<action>.avi`, flat or in folders of actions; second takes (`lena_walk2.avi`) are of their action."""
    _no_table(table)
    _no_splits(splits)
    found = _clips(source)
    items = []
    for item in found.items:
        *folders, name = PurePosixPath(_bare(item.name).lower()).parts
        word = name.split("_")[-1]
        take = word if word in WEIZMANN else word.rstrip("0123456789")  # wave1 and wave2 are actions, not takes
        actions = {word for word in (take, *folders) if word in WEIZMANN}
        if len(actions) == 1:
            items.append(_labelled(item, *actions))
        elif actions:
            found.lost[item.name] = f"it has two actions: {' and '.join(sorted(actions))}"
        else:
            found.lost[item.name] = f"its name ends in no action of Weizmann's ({', '.join(WEIZMANN)})"
    return Listing(items, WEIZMANN, found.lost)


def webvid(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Videos named by a CSV with captions: WebVid's columns (videoid, page_dir, name) or MSR-VTT style (path,
    caption; the first of several). `table` is the CSV; without, the only one in `source`."""
    _no_splits(splits)
    if table is None:
        tables = [path for path in source.glob("*.csv") if not _hidden(path.name)] if os.path.isdir(source) else []
        if len(tables) != 1:
            raise UserError(
                f"looked for one CSV of captions in {source} and found {len(tables)}: name it with --table=FILE"
            )
        table = tables[0]
    return _tabled(_clips(source), table, source)


def folder(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Any videos, GIFs or folders of frames. Where every clip lies in exactly one folder (below those of splits), that
    is its class. `table`, a CSV with a column `path` and any of `label`, `caption`, `split`, overrides and selects."""
    _no_splits(splits)
    found = _clips(source)
    inside = [path[1:] if _split(path) else path for path in _paths(found.items)]
    if all(len(path) == 2 for path in inside):
        found.items = [_labelled(item, path[0]) for item, path in zip(found.items, inside, strict=True)]
    if table is not None:
        return _tabled(found, table, source)
    return Listing(found.items, _classes(found.items), found.lost)


Lister = Callable[[Path, Path | None, int, Path | None], Listing]
DATASETS: dict[str, Lister] = {
    "ucf101": ucf101,
    "sky_timelapse": sky_timelapse,
    "taichi_hd": taichi_hd,
    "weizmann": weizmann,
    "webvid": webvid,
    "folder": folder,
}


def _clips(source: Path) -> Listing:
    """Every video and folder of frames below `source`, or every video in it where it is an archive, with its split.

    UserError where there are none."""
    if os.path.isfile(source):
        found = _archived(source)
    elif os.path.isdir(source):
        found = _walked(source)
    else:
        raise UserError(f"--source={source} does not exist: name the folder (or .zip, .tar) that holds the data")
    if not found.items:
        lost = "".join(f" ({printable(name)}: {why})" for name, why in list(found.lost.items())[:1])
        raise UserError(
            f"{source} holds no videos ({' '.join(VIDEOS)}) and no folders of frames ({' '.join(IMAGES)}){lost}: "
            "unpack archives, give the frames of each clip a folder of their own, or name another --source"
        )
    found.items.sort(key=lambda item: natural(item.name))
    splits = [_split(path) or "train" for path in _paths(found.items)]
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
        folders[:] = sorted(name for name in folders if not (_hidden(name) or _leads_back(here / name, root)))
        files = [name for name in files if not _hidden(name)]
        clips = [here / name for name in files if name.lower().endswith(VIDEOS)]
        if not clips and here != root:  # pictures beside videos are previews, as is a single one beside folders
            frames = sum(name.lower().endswith(IMAGES) for name in files)
            if frames > bool(folders):
                clips = [here]
            elif not folders and here.name.lower().endswith(VIDEOS):
                lost[here.relative_to(root).as_posix()] = "is a folder, and holds neither a video nor frames"
        items += [Item(path.relative_to(root).as_posix(), path) for path in clips]
    return Listing(items, lost=lost)


def _hidden(name: str) -> bool:
    """Is this a file or folder of the system's or a program's own, such as macOS's `._NAME` or our `.staging`?"""
    return name.startswith(".") or name == "__MACOSX"


def _leads_back(folder: Path, root: Path) -> bool:
    """Is `folder` a link to something that holds a folder on the way to it? Without these, every walk ends."""
    way = (parent for parent in folder.parents if parent.is_relative_to(root))
    return folder.is_symlink() and any(parent.resolve().is_relative_to(folder.resolve()) for parent in way)


def _archived(archive: Path) -> Listing:
    members, cut = _members(archive)
    items: dict[str, Item] = {}  # a name that comes twice means the later member
    frames: set[str] = set()
    for member in members:
        name = PurePosixPath(member.replace("\\", "/").lstrip("/")).as_posix()  # also ./NAME, and Windows's own way
        if any(map(_hidden, name.split("/"))):
            continue
        if name.lower().endswith(VIDEOS):
            items[name] = Item(name, archive, member)
        elif name.lower().endswith(IMAGES):
            frames.add(posixpath.dirname(name))
    frames -= {"", *map(posixpath.dirname, items)}
    lost = dict.fromkeys(sorted(frames), "frames in an archive are not read: unpack it")
    return Listing(list(items.values()), lost=lost | ({archive.name: cut} if cut else {}))


def _members(archive: Path) -> tuple[list[str], str]:
    """Names of an archive's files, and what is wrong with the rest of it ("" for nothing). UserError for no archive."""
    kind = archive.suffix.lower()
    if kind not in _ARCHIVES:
        raise UserError(
            f"{archive} is neither a folder nor one of {', '.join(_ARCHIVES)}: unpack it first "
            "(`tar xf` for .tar.gz, `unrar x` for .rar) and name the folder"
        )
    try:
        if kind == ".tar":
            infos, cut = _open_tar(archive, archive.stat().st_mtime_ns)
            return list(infos), cut
        file = _open_zip(archive, archive.stat().st_mtime_ns)
        return [info.filename for info in file.infolist() if not info.is_dir()], ""
    except (OSError, *_DAMAGE) as error:
        raise UserError(f"the archive {archive} cannot be read ({words(error)}): copy it again") from error


def read_member(archive: Path, name: str) -> bytes:
    """Content of one member of a .zip or .tar. Raises OSError or ValueError where it is damaged."""
    changed = archive.stat().st_mtime_ns
    try:
        if archive.suffix.lower() == ".zip":
            return _open_zip(archive, changed).read(name)
        info = _open_tar(archive, changed)[0][name]
        with tarfile.open(archive, "r:") as file:
            member = file.extractfile(info if info.isreg() else name)  # of a link, what it leads to
            return member.read() if member else b""
    except _DAMAGE as error:
        raise ValueError(f"cannot be read from its archive: {words(error)}") from error


# Tables of contents are kept: in an archive of 13,000 videos, reading it anew takes longer than decoding a video.


@functools.lru_cache(maxsize=2)
def _open_zip(archive: Path, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


@functools.lru_cache(maxsize=2)
def _open_tar(archive: Path, changed: int) -> tuple[dict[str, tarfile.TarInfo], str]:
    """Files and links by name, and where the archive ends too early ("" where it does not)."""
    infos: dict[str, tarfile.TarInfo] = {}
    last = ""
    with tarfile.open(archive, "r:") as file:
        try:
            for info in file:
                last = info.name
                if info.isreg() or info.islnk() or info.issym():
                    infos[last] = info
            # The reader takes a damaged header for the end; the true end is a block of zeros.
            with archive.open("rb") as raw:
                raw.seek(file.offset)
                whole = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.ReadError:
            whole = False
    return infos, "" if whole else f"is damaged or cut off after {printable(last)}: copy it again"


def _paths(items: list[Item]) -> list[tuple[str, ...]]:
    """Folders and name of every clip, without outer folders that hold them all and are neither split nor class."""
    paths = [PurePosixPath(item.name).parts for item in items]
    while min(map(len, paths)) > 2 and len({path[0] for path in paths}) == 1 and not _split(paths[0]):
        paths = [path[1:] for path in paths]
    return paths


def _split(path: tuple[str, ...]) -> str:
    """The split that the outermost folder names, or ""."""
    top = path[0].lower().removeprefix("sky_").removeprefix("taichi_")
    return _SPLITS.get(top, "") if len(path) > 1 else ""


def names_splits(items: list[Item]) -> bool:
    """Do folders say of which split clips are? Else all of them pass for `train`."""
    return any(map(_split, _paths(items)))


def _labelled(item: Item, label: str) -> Item:
    return dataclasses.replace(item, label=_word(label))


def _word(label: str) -> str:
    """A class's name as every file can hold it: printable, in one line."""
    return " ".join(printable(label).split())


def _bare(name: str) -> str:
    """`name` without the extension of a video."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS else name


def _classes(items: Iterable[Item]) -> tuple[str, ...]:
    return tuple(sorted({item.label for item in items if item.label}, key=natural))


def _finder(items: list[Item], source: Path) -> Callable[[str], list[Item]]:
    """Which clips a name in a list or table may mean: one as a rule; none, or several, is for the caller to tell.

    The name may begin at the source, above it (`videos/1.mp4` where `videos` is the source) or below it, and may lack
    the extension or have another, of a file that was converted. What fits exactly goes first."""
    by_name = {printable(item.name): item for item in items}
    by_last: dict[str, list[str]] = {}
    for name in by_name:
        by_last.setdefault(posixpath.basename(_bare(name)), []).append(name)
    top = printable(str(source.absolute())).rstrip("/")

    def find(said: str) -> list[Item]:
        for spelling in (said, said.replace("\\", "/")):
            whole = PurePosixPath(spelling).as_posix()
            if whole in by_name:
                return [by_name[whole]]
            bare = _bare(whole).lstrip("/")
            near = [n for n in by_last.get(posixpath.basename(bare), ()) if f"{top}/{_bare(n)}".endswith(f"/{bare}")]
            if near:
                return [by_name[name] for name in [n for n in near if _bare(n) == bare] or near]
        return []

    return find


def _no_match(match: list[Item], file: str) -> str:
    if not match:
        return f"{file} names it, but it is not in the source"
    return f"{file} names it, and it may be {' or '.join(printable(item.name) for item in match[:3])}"


def _tabled(found: Listing, table: Path, source: Path) -> Listing:
    """The clips that a CSV names, with its labels, captions and splits. UserError where none is left."""
    find, lost = _finder(found.items, source), dict(found.lost)
    said: dict[str, dict[str, str]] = {}
    for where, row in _rows(table, lost):
        name, facts = _row(row)
        if not name:
            lost[where] = "the row names no video"
            continue
        match = find(name)
        if len(match) != 1:
            lost[name] = _no_match(match, table.name)
            continue
        item = match[0]
        known = said.setdefault(item.name, {})
        for key, value in facts.items():
            if key == "split" and value not in _SPLITS.values():
                lost[item.name] = f"{table.name} gives it the split {value}, which is none of {', '.join(_SPLITS)}"
            elif known.setdefault(key, value) != value and key != "caption":
                lost[item.name] = f"{table.name} gives it two {key}s: {known[key]} and {value}"
    kept = [item for item in found.items if item.name in said and item.name not in lost]
    items = [dataclasses.replace(item, **said[item.name]) for item in kept]  # type: ignore[arg-type]
    if classes := _classes(items):
        lost |= {item.name: "has no label, though others have" for item in items if not item.label}
        items = [item for item in items if item.label]
    if not items:
        why = "".join(f", for example {printable(name)}: {why}" for name, why in list(lost.items())[:1])
        raise UserError(f"{table} names no clip of {source} that can be used{why or ', for it has no rows'}")
    return Listing(items, classes, lost, [item.name for item in found.items if item.name not in said])


def _row(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """(name of the clip or "", its fields) from a row under any of the public headings."""

    def first(*names: str) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    name = first(*_NAMES)
    if name and not row.get("path") and row.get("page_dir"):
        name = f"{row['page_dir']}/{name}"
    facts = {"label": _word(first("label", "class")), "caption": first("caption", "text", "sentence", "name")}
    split = first("split").lower()
    facts["split"] = _SPLITS.get(split, split)
    return name, {key: value for key, value in facts.items() if value}


def _rows(table: Path, lost: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, cells by heading) of every row that is not blank. Rows that cannot be read go to `lost`; UserError where
    the file cannot be read, or none of its headings says which clip a row is about."""
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)  # else a quote that is never closed swallows all rows after it
            headings = [printable(cell).strip().lower() for cell in next(reader, [])]
            if not set(_NAMES) & set(headings):
                raise UserError(
                    f"the table {table} should be a CSV in UTF-8 with commas, whose heading has one of "
                    f"{', '.join(_NAMES)}; its heading is {','.join(headings)[:99]!r}"
                )
            while True:
                where = f"{table.name}, line {reader.line_num + 1}"
                try:
                    cells = [printable(cell).strip() for cell in next(reader)]
                except StopIteration:
                    return
                except csv.Error as error:
                    lost[where] = f"the row cannot be read: {error}"
                    continue
                if any(cells[len(headings) :]):
                    lost[where] = "has more cells than the heading: put text with commas in quotes"
                elif any(cells):
                    yield where, dict(zip(headings, cells, strict=False))
    except (OSError, csv.Error) as error:
        raise UserError(f"the table {table} cannot be read: {words(error)}") from error


def _lists_in(archive: Path) -> dict[str, str]:
    """Members of an archive that are UCF101's own lists, by their last names."""
    names = {PurePosixPath(member.replace("\\", "/")).name: member for member in _members(archive)[0]}
    return {name: m for name, m in names.items() if re.fullmatch(r"(classInd|(train|test)list\d\d)\.txt", name)}


def _lines(splits: Path, file: str, what: str) -> list[str]:
    """Lines that are not blank. UserError where the file cannot be read or is empty."""
    try:
        if os.path.isfile(splits) and splits.suffix.lower() in _ARCHIVES:
            content = read_member(splits, _lists_in(splits).get(file, file))
        else:
            content = (splits / file).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the split file {splits / file} cannot be read ({words(error)}): --splits should name the folder of "
            f"UCF101's own lists, in which each line of {file} is {what}"
        ) from error
    text = printable(content.decode("utf-8-sig", "surrogateescape"))
    lines = [stripped for line in re.split(r"[\r\n]", text) if (stripped := line.strip())]
    if not lines:
        raise UserError(f"the split file {splits / file} is empty; each line of it should be {what}: download it again")
    return lines


def _no_table(table: Path | None) -> None:
    if table is not None:
        raise UserError("--table is for the data sets webvid and folder; this one says its classes by its own layout")


def _no_splits(splits: Path | None) -> None:
    if splits is not None:
        raise UserError("--splits is for ucf101; other data sets are split by their folders, or by a table's `split`")
