"""Clips that a list or a CSV names: which of a source's clips is meant, and what the table says of it.

A clip is named by its path relative to the source, by the end of its path where that fits one clip only, with or
without extension. The names that are given and the source lacks are lost, and told.
"""

import csv
import dataclasses
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vf.data.decode import printable, words
from vf.data.listing import SPLITS, Item, Listing, class_names, without_extension, word
from vf.types import UserError

_NAMES = ("path", "video", "file", "filename", "video_path", "video_id", "videoid")  # headings of a table, best first


def finder(items: list[Item], source: Path) -> Callable[[str], list[Item]]:
    """Which clips a name in a list or table may mean: one as a rule; none, or several, is for the caller to tell.

    The name may begin at the source, above it (`videos/1.mp4` where `videos` is the source) or below it, and may lack
    the extension or have another, of a file that was converted. What fits exactly goes first."""
    by_name = {printable(item.name): item for item in items}
    by_last: dict[str, list[str]] = {}
    for name in by_name:
        by_last.setdefault(posixpath.basename(without_extension(name)), []).append(name)
    top = printable(str(source.absolute())).rstrip("/")

    def find(name: str) -> list[Item]:
        for spelling in (name, name.replace("\\", "/")):
            whole = PurePosixPath(spelling).as_posix()
            if whole in by_name:
                return [by_name[whole]]
            bare = without_extension(whole).lstrip("/")
            paths = {path: without_extension(path) for path in by_last.get(posixpath.basename(bare), ())}
            near = [path for path, stem in paths.items() if f"{top}/{stem}".endswith(f"/{bare}")]
            if near:
                return [by_name[path] for path in [path for path in near if paths[path] == bare] or near]
        return []

    return find


def no_match(match: list[Item], file: str) -> str:
    """Why a name that `file` gives is lost: `match`, what `finder` found for it, is not one clip."""
    if not match:
        return f"{file} names it, but it is not in the source"
    return f"{file} names it, and it may be {' or '.join(printable(item.name) for item in match[:3])}"


def select(found: Listing, table: Path, source: Path) -> Listing:
    """The clips of a source that a CSV names, with its labels, captions and splits.

    Raises UserError where the table cannot be read, has no column that names clips, or leaves none.
    """
    find, lost = finder(found.items, source), dict(found.lost)
    given: dict[str, dict[str, str]] = {}
    for where, row in _rows(table, lost):
        name, facts = _row(row)
        if not name:
            lost[where] = "the row names no video"
            continue
        match = find(name)
        if len(match) != 1:
            lost[name] = no_match(match, table.name)
            continue
        item = match[0]
        known = given.setdefault(item.name, {})
        for key, value in facts.items():
            if key == "split" and value not in SPLITS.values():
                lost[item.name] = f"{table.name} gives it the split {value}, which is none of {', '.join(SPLITS)}"
            elif known.setdefault(key, value) != value and key != "caption":
                lost[item.name] = f"{table.name} gives it two {key}s: {known[key]} and {value}"
    kept = [item for item in found.items if item.name in given and item.name not in lost]
    items = [dataclasses.replace(item, **given[item.name]) for item in kept]  # type: ignore[arg-type]
    if classes := class_names(items):
        lost |= {item.name: "has no label, though others have" for item in items if not item.label}
        items = [item for item in items if item.label]
    if not items:
        why = "".join(f", for example {printable(name)}: {why}" for name, why in list(lost.items())[:1])
        raise UserError(f"{table} names no clip of {source} that can be used{why or ', for it has no rows'}", "table")
    return Listing(items, classes, lost, [item.name for item in found.items if item.name not in given])


def _row(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """(name of the clip or "", its fields) from a row under any of the public headings."""

    def first(*names: str) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    name = first(*_NAMES)
    if name and not row.get("path") and row.get("page_dir"):
        name = f"{row['page_dir']}/{name}"
    facts = {"label": word(first("label", "class")), "caption": first("caption", "text", "sentence", "name")}
    split = first("split").lower()
    facts["split"] = SPLITS.get(split, split)
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
                    f"{', '.join(_NAMES)}; its heading is {','.join(headings)[:99]!r}",
                    "table",
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
        raise UserError(f"the table {table} cannot be read: {words(error)}", "table") from error
