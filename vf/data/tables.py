"""Finds the clips of a source that a list or a CSV names, and reads what the CSV says of them.

A clip is named by its path relative to the source, or by the end of its path where that fits one clip only, with or
without extension. Names that fit no clip are reported as lost.
"""

import codecs
import csv
import dataclasses
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vf.data.decode import error_text, printable
from vf.data.listing import SPLITS, Item, Listing, class_names, clean_label, without_extension
from vf.types import UserError

_NAMES = ("path", "video", "file", "filename", "video_path", "video_id", "videoid")  # headings of a table, best first


def finder(items: list[Item], source: Path) -> Callable[[str], list[Item]]:
    """A function from a name in a list or table to the clips that it may stand for: one, or none, or several.

    The name may begin at the source, above it (`videos/1.mp4` where `videos` is the source) or below it, and may lack
    the extension or have another one, of a file that was converted. An exact match takes precedence.
    """
    by_name = {printable(item.name): item for item in items}
    by_last: dict[str, list[str]] = {}
    for name in by_name:
        by_last.setdefault(posixpath.basename(without_extension(name)), []).append(name)
    top = printable(str(source.absolute())).rstrip("/")

    def find(name: str) -> list[Item]:
        in_latin_1 = re.sub(r"\\x([0-9a-f]{2})", lambda byte: chr(int(byte[1], 16)), name)
        for spelling in (name, in_latin_1, name.replace("\\", "/"), in_latin_1.replace("\\", "/")):
            normalised = PurePosixPath(spelling).as_posix()
            if normalised in by_name:
                return [by_name[normalised]]
            bare = without_extension(normalised).lstrip("/")
            stems = {path: without_extension(path) for path in by_last.get(posixpath.basename(bare), ())}
            matches = [path for path, stem in stems.items() if f"{top}/{stem}".endswith(f"/{bare}")]
            if matches:
                return [by_name[path] for path in [path for path in matches if stems[path] == bare] or matches]
        return []

    return find


def list_lines(content: bytes) -> list[str]:
    """The lines of a list that are not blank, stripped, in UTF-8 or UTF-16; other bytes become \\xNN (`printable`)."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = content.decode("utf-16", "replace")
    elif b"\0" in content:
        text = content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be", "replace")
    else:
        text = printable(content.decode("utf-8-sig", "surrogateescape"))
    return [stripped for line in re.split(r"[\r\n]", text) if (stripped := line.strip())]


def no_match(match: list[Item], file: str) -> str:
    """The reason why a name in `file` is lost whose `match`, as `finder` gives it, is not exactly one clip."""
    if not match:
        return f"{file} names it, but it is not in the source"
    return f"{file} names it, and it may be {' or '.join(printable(item.name) for item in match[:3])}"


def select(listing: Listing, table: Path, source: Path) -> Listing:
    """The clips of a source that a CSV names, with the labels, captions and splits that it gives them.

    Raises UserError where the table cannot be read, has no column that names clips, or leaves none.
    """
    find, lost = finder(listing.items, source), dict(listing.lost)
    facts_of: dict[str, dict[str, str]] = {}
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
        merged = facts_of.setdefault(item.name, {})
        for key, value in facts.items():
            if key == "split" and value not in SPLITS.values():
                lost[item.name] = f"{table.name} gives it the split {value}, which is none of {', '.join(SPLITS)}"
            elif merged.setdefault(key, value) != value and key != "caption":
                lost[item.name] = f"{table.name} gives it two {key}s: {merged[key]} and {value}"
    selected = [item for item in listing.items if item.name in facts_of and item.name not in lost]
    items = [dataclasses.replace(item, **facts_of[item.name]) for item in selected]  # type: ignore[arg-type]
    if classes := class_names(items):
        lost |= {item.name: "has no label, though others have" for item in items if not item.label}
        items = [item for item in items if item.label]
    if not items:
        why = "".join(f", for example {printable(name)}: {why}" for name, why in list(lost.items())[:1])
        raise UserError(f"{table} names no clip of {source} that can be used{why or ', for it has no rows'}", "table")
    left_out = {item.name: f"{table.name} does not name it" for item in listing.items if item.name not in facts_of}
    others = {name: why for name, why in listing.unlisted.items() if (source / name).resolve() != table.resolve()}
    return Listing(items, classes, lost, others | left_out)


def _row(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """(name of the clip or "", its fields) of a row, under any of the headings of public data sets."""

    def first(*names: str) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    name = first(*_NAMES)
    if name and not row.get("path") and row.get("page_dir"):
        name = f"{row['page_dir']}/{name}"
    facts = {"label": clean_label(first("label", "class")), "caption": first("caption", "text", "sentence", "name")}
    split = first("split").lower()
    facts["split"] = SPLITS.get(split, split)
    return name, {key: value for key, value in facts.items() if value}


def _rows(table: Path, lost: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place in the file, {heading: cell}) of every row that is not blank.

    Rows that cannot be read are added to `lost`. Raises UserError where the file cannot be read, or has no column that
    names clips.
    """
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
        raise UserError(f"the table {table} cannot be read: {error_text(error)}", "table") from error
