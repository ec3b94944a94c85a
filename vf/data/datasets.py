"""Lists the clips of each known data set with split, class and caption, before anything is decoded.

There is one function per data set, for the layouts in which it is distributed. Each takes the source, the folder of
split files, the number of the split, and a table; returns a `Listing` in natural order of names; and raises UserError
where no clip can be listed.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vf.data import tables, ucf101_splits
from vf.data.decode import printable
from vf.data.listing import (
    Listing,
    class_names,
    clips,
    folders_and_name,
    has_splits,
    hidden,
    labelled,
    split_of,
    without_extension,
)
from vf.types import UserError

WEIZMANN = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")


def ucf101(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """`<Class>/v_<Class>_g01_c01.avi` anywhere below `source`, or in an archive of that.

    With `splits`, a folder (.zip, .tar) of the official `trainlist0F.txt`, `testlist0F.txt` (F = `fold`, 1 to 3) and
    `classInd.txt`, clips are split and classes numbered as these say; lists in the archive itself, and a folder
    `ucfTrainTestlist` in, above or beside the folder of the classes are found without being named.
    """
    _no_table(table)
    listing = clips(source)
    items = [labelled(item, PurePosixPath(item.name).parts[-2]) for item in listing.items if "/" in item.name]
    if not has_splits(listing.items):
        items = [dataclasses.replace(item, split="train") for item in items]
    if not items:
        raise UserError(
            f"looked for UCF101 as {source}/CLASS/v_CLASS_g01_c01.avi, but no folder of a class has videos", "source"
        )
    loose = {item.name: "lies in no folder of a class" for item in listing.items if "/" not in item.name}
    listing = Listing(items, class_names(items), listing.lost | loose, listing.unlisted)
    if splits is None and os.path.isfile(source) and ucf101_splits.lists_in(source):
        splits = source
    if splits is None:
        ancestors = [folder for folder in items[0].path.parents if folder.is_relative_to(source.parent)]
        splits = next(
            (folder / "ucfTrainTestlist" for folder in ancestors if (folder / "ucfTrainTestlist").is_dir()), None
        )
    return listing if splits is None else ucf101_splits.apply(listing, splits, fold, source)


def sky_timelapse(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Folders of frames below `sky_train`, `sky_test` (MDGAN's release, VIDEO/CLIP/*.jpg) or `train`, `test`
    (DTVNet's, CLIP/*.png or videos)."""
    _no_table(table)
    _no_splits(splits)
    return clips(source)


def taichi_hd(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Chunks below `train` and `test`, as MP4 files or as folders of PNG frames (also named *.mp4)."""
    return sky_timelapse(source, splits, fold, table)


def weizmann(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """`<person>_<action>.avi`, flat or in folders of actions; a second take (`lena_walk2.avi`) is of its action."""
    _no_table(table)
    _no_splits(splits)
    listing = clips(source)
    items = []
    for item in listing.items:
        *folders, name = PurePosixPath(without_extension(item.name).lower()).parts
        word = name.split("_")[-1]
        take = word if word in WEIZMANN else word.rstrip("0123456789")  # wave1 and wave2 are actions, not takes
        actions = {word for word in (take, *folders) if word in WEIZMANN}
        if len(actions) == 1:
            items.append(labelled(item, *actions))
        elif actions:
            listing.lost[item.name] = f"it has two actions: {' and '.join(sorted(actions))}"
        else:
            listing.lost[item.name] = f"its name ends in no action of Weizmann's ({', '.join(WEIZMANN)})"
    return Listing(items, WEIZMANN, listing.lost, listing.unlisted)


def webvid(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Videos named by a CSV with captions, in WebVid's columns (videoid, page_dir, name) or MSR-VTT's (path, caption;
    the first of several). `table` is the CSV, by default the only one in `source`."""
    _no_splits(splits)
    if table is None:
        candidates = [path for path in source.glob("*.csv") if not hidden(path.name)] if os.path.isdir(source) else []
        if len(candidates) != 1:
            raise UserError(
                f"looked for one CSV of captions in {source} and found {len(candidates)}: name one", "table"
            )
        table = candidates[0]
    return tables.select(clips(source), table, source)


def folder(source: Path, splits: Path | None, fold: int, table: Path | None) -> Listing:
    """Any videos, animated pictures or folders of frames. Where every clip lies in exactly one folder (below those of
    splits), that folder is its class. `table`, a CSV with a column `path` and any of `label`, `caption`, `split`,
    selects clips and overrides what folders say."""
    _no_splits(splits)
    listing = clips(source)
    paths = folders_and_name(listing.items)
    if has_splits(listing.items):
        if others := sorted({path[0] for path in paths if not split_of(path)}):
            logging.warning("%s: folders beside %s name splits, so that it is taken for train", source, others[0])
        paths = [path[1:] if split_of(path) else path for path in paths]
    else:
        if inner := [path for path in paths if len(path) > 2 and split_of(path[1:])]:
            logging.warning("%s: %s lies in another folder, and names no split: all are train", source, inner[0][1])
        listing.items = [dataclasses.replace(item, split="train") for item in listing.items]
    depths = {len(path): item.name for item, path in zip(listing.items, paths, strict=True)}
    if set(depths) == {2}:
        listing.items = [labelled(item, path[0]) for item, path in zip(listing.items, paths, strict=True)]
    elif set(depths) > {2}:
        odd = next(name for depth, name in depths.items() if depth != 2)
        logging.warning("%s: folders are no classes, since %s does not lie in one folder alone", source, printable(odd))
    if table is not None:
        return tables.select(listing, table, source)
    return Listing(listing.items, class_names(listing.items), listing.lost, listing.unlisted)


Lister = Callable[[Path, Path | None, int, Path | None], Listing]
DATASETS: dict[str, Lister] = {
    "ucf101": ucf101,
    "sky_timelapse": sky_timelapse,
    "taichi_hd": taichi_hd,
    "weizmann": weizmann,
    "webvid": webvid,
    "folder": folder,
}


def _no_table(table: Path | None) -> None:
    if table is not None:
        raise UserError(
            "a table is for the data sets webvid and folder; this one says its classes by its own layout", "table"
        )


def _no_splits(splits: Path | None) -> None:
    if splits is not None:
        raise UserError(
            "split files are for ucf101; other data sets are split by their folders, or by a table's `split`", "splits"
        )
