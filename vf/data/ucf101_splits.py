"""UCF101's official split lists, a folder or archive of text files; F is the number of the split, 1 to 3.

trainlist0F.txt     lines as `Class/video.avi 12`
testlist0F.txt      lines as `Class/video.avi`
classInd.txt        lines as `12 Class`: the numbers of the classes
"""

import dataclasses
import os
import re
from pathlib import Path, PurePosixPath

from vf.data import archives
from vf.data.decode import error_text
from vf.data.listing import Listing, clean_label
from vf.data.tables import finder, list_lines, no_match
from vf.types import UserError

_LIST = re.compile(r"(classInd|(train|test)list\d\d)\.txt")


def apply(listing: Listing, splits: Path, fold: int, source: Path) -> Listing:
    """The clips of a source that the lists name, with split and class from the lists.

    Clips that no list names are left out. A clip that both lists name, or that has two classes, is lost.

    Args:
        listing: all clips of the source.
        splits: folder or archive of the lists.
        fold: number of the split, 1 to 3.
        source: where the clips lie.

    Raises UserError where a list cannot be read.
    """
    ids = _class_ids(splits)
    find, lost = finder(listing.items, source), dict(listing.lost)
    splits_of: dict[str, set[str]] = {}
    classes_of = {item.name: {item.label} for item in listing.items}  # the folder names a class too
    for split in ("train", "test"):
        file = f"{split}list{fold:02d}.txt"
        for line in _lines(splits, file, "a video CLASS/NAME.avi"):
            name, number = re.fullmatch(r"(.+?)(?:\s+(\d{1,9}))?", line).groups()  # type: ignore[union-attr]
            match = find(name)
            if len(match) != 1:
                lost[name] = no_match(match, file)
                continue
            splits_of.setdefault(match[0].name, set()).add(split)
            if number:
                name = ids.get(int(number), f"number {number}, which classInd.txt does not know")
                classes_of[match[0].name].add(name)
    items = []
    for item in listing.items:
        in_splits, classes = splits_of.get(item.name, set()), classes_of[item.name]
        if len(in_splits) > 1:
            lost[item.name] = "both the train list and the test list name it"
        elif in_splits and len(classes) > 1:
            lost[item.name] = f"it has two classes: {' and '.join(sorted(classes))}"
        elif in_splits and item.label not in ids.values():
            lost[item.name] = f"its class {item.label} is not in classInd.txt"
        elif in_splits:
            items.append(dataclasses.replace(item, split=min(in_splits)))
    unlisted = {item.name: "no list names it" for item in listing.items if item.name not in splits_of}
    others = {name: why for name, why in listing.unlisted.items() if not _LIST.fullmatch(PurePosixPath(name).name)}
    return Listing(items, tuple(ids[number] for number in sorted(ids)), lost, others | unlisted)


def _class_ids(splits: Path) -> dict[int, str]:
    """{number: name} of the classes. Raises UserError where classInd.txt cannot be read or repeats a class."""
    expected = "a number and a class, each once"
    ids: dict[int, str] = {}
    for line in _lines(splits, "classInd.txt", expected):
        match = re.fullmatch(r"(\d{1,9})\s+(.+)", line)
        if not match or int(match[1]) in ids or clean_label(match[2]) in ids.values():
            raise UserError(f"each line of {splits / 'classInd.txt'} should be {expected}; mend the line {line[:99]!r}")
        ids[int(match[1])] = clean_label(match[2])
    return ids


def lists_in(archive: Path) -> dict[str, str]:
    """{file name: member} of the members of an archive that are UCF101's lists."""
    names = {PurePosixPath(member.replace("\\", "/")).name: member for member in archives.members(archive)[0]}
    return {name: m for name, m in names.items() if _LIST.fullmatch(name)}


def _lines(splits: Path, file: str, expected: str) -> list[str]:
    """Lines that are not blank. Raises UserError where the file cannot be read or is empty."""
    try:
        if os.path.isfile(splits) and splits.suffix.lower() in archives.ARCHIVES:
            content = archives.read_member(splits, lists_in(splits).get(file, file))
        else:
            content = (splits / file).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the split file {splits / file} cannot be read ({error_text(error)}): name the folder of UCF101's own "
            f"lists, in which each line of {file} is {expected}",
            "splits",
        ) from error
    lines = list_lines(content)
    if not lines:
        raise UserError(
            f"the split file {splits / file} is empty; each line of it should be {expected}: download it again"
        )
    return lines
