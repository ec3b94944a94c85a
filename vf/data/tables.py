"""Finds the clips of a source that a list or a CSV names, and reads what the CSV says of them.

A clip is named by its path relative to the source, or by the end of its path where that fits one clip only, with or
without extension. Names that fit no clip are reported as lost.
"""

import codecs
import csv
import dataclasses
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vf.data.decode import error_text, printable
from vf.data.listing import SPLITS, Item, Listing, class_names, clean_label, without_extension
from vf.data.text import encoding, is_utf8, readable
from vf.types import UserError, counted

# Headings of a table, best first.
_NAMES = (
    "path", "video", "file", "filename", "file_name", "video_path", "file_path", "filepath", "video_name", "video_id",
    "videoid",
)  # fmt: skip
_CAPTIONS = ("caption", "text", "sentence", "prompt", "description", "captions", "title", "name")
_LABELS, _SPLIT, _FOLDER = ("label", "class"), "split", "page_dir"
# How files begin that are taken for tables, and are none.
_OTHERS = {
    b"{": "JSON", b"[": "JSON", b"PK\3\4": "an Excel workbook, or another .zip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"PAR1": "Parquet", b"\x1f\x8b": "compressed by gzip",
}  # fmt: skip


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
    headings, rows = _read(table, lost)
    others = 0
    for where, row in rows:
        others += not all(map(is_utf8, row.values()))
        name, facts = _row(row)
        if not name:
            lost[where] = "the row names no video"
            continue
        match = find(printable(name)) or find(name := readable(name))
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
    passed = {name: why for name, why in listing.unlisted.items() if (source / name).resolve() != table.resolve()}
    return Listing(items, classes, lost, passed | left_out, _notes(table.name, headings, items, others))


def _notes(table: str, headings: list[str], items: list[Item], others: int) -> list[str]:
    """How a table was read, given the clips that it gives and the number of rows that are not UTF-8."""
    column = _column(headings)
    used = {*_NAMES, *_LABELS, _SPLIT, _FOLDER, column}
    unread = [readable(name) for name in headings if name not in used and name]
    without = sum(not item.caption for item in items)
    notes = {
        f"captions are the column {column!r} of {table}": column not in ("", "caption"),
        f"{table} has no column of captions ({', '.join(_CAPTIONS)})": not column and not set(_LABELS) & set(headings),
        f"{counted(without, 'clip')} without a caption in {table}": bool(column and without),
        f"{table} has columns that are not read: {', '.join(unread)}": bool(unread),
        f"{counted(others, 'row')} of {table} not in UTF-8, and read as Windows-1252: save it as UTF-8 where letters "
        "are wrong": bool(others),
    }
    return [note for note, holds in notes.items() if holds]


def _column(headings: Iterable[str]) -> str:
    """The heading under which captions stand; "" where there is none."""
    return next((name for name in _CAPTIONS if name in headings), "")


def _row(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """(name of the clip or "", its fields) of a row, under any of the headings of public data sets."""

    def first(*names: str) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    name = first(*_NAMES)
    if name and not row.get("path") and row.get(_FOLDER):
        name = f"{row[_FOLDER]}/{name}"
    split = readable(first(_SPLIT)).lower()
    facts = {
        "label": clean_label(readable(first(*_LABELS))), "caption": readable(first(_column(row))),
        "split": SPLITS.get(split, split),
    }  # fmt: skip
    return name, {key: value for key, value in facts.items() if value}


def _read(table: Path, lost: dict[str, str]) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """(headings, rows) of a table, where a row is (its place in the file, {heading: cell}). Blank rows are left out.

    Cells are separated by commas, semicolons or tabs, whichever lets the heading name clips. Rows that cannot be read
    are added to `lost`. Raises UserError where the file cannot be read, or has no column that names clips.
    """
    with _reading(table):
        with table.open("rb") as file:
            head = file.read(1000)
        for delimiter in ",;\t":
            settings = _Settings(encoding(head), delimiter)
            if set(_NAMES) & set(headings := _headings(table, settings)):
                return headings, _rows(table, settings, lost)
        first = ",".join(map(printable, _headings(table, _Settings(encoding(head), ","))))
    kind = next((f"is {kind}: it " for magic, kind in _OTHERS.items() if head.lstrip().startswith(magic)), "")
    raise UserError(
        f"the table {table} {kind}should be a CSV in UTF-8 with commas, whose heading has one of {', '.join(_NAMES)}; "
        f"its heading is {first[:99]!r}",
        "table",
    )


class _Settings(NamedTuple):
    encoding: str
    delimiter: str


@contextmanager
def _reading(table: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the table {table} cannot be read: {error_text(error)}", "table") from error


def _headings(table: Path, settings: _Settings) -> list[str]:
    """The first row that is neither blank nor Excel's `sep=;`; [] where there is none."""
    with table.open(newline="", encoding=settings.encoding, errors="surrogateescape") as file:
        for row in csv.reader(file, strict=True, delimiter=settings.delimiter):
            if any(map(str.strip, row)) and not row[0].startswith("sep="):
                return [cell.strip().lower() for cell in row]
    return []


def _rows(table: Path, settings: _Settings, lost: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    with _reading(table), table.open(newline="", encoding=settings.encoding, errors="surrogateescape") as file:
        # Strict, or else a quote that is never closed swallows all rows after it.
        reader = csv.reader(file, strict=True, delimiter=settings.delimiter)
        headings: list[str] = []
        while True:
            where = f"{table.name}, line {reader.line_num + 1}"
            try:
                cells = [cell.strip() for cell in next(reader)]
            except StopIteration:
                return
            except csv.Error as error:
                lost[where] = f"the row cannot be read: {error}"
                continue
            if not any(cells):
                continue
            if not headings:
                headings = [] if cells[0].startswith("sep=") else [cell.lower() for cell in cells]
            elif any(cells[len(headings) :]):
                lost[where] = "has more cells than the heading: put text with commas in quotes"
            else:
                yield where, dict(zip(headings, cells, strict=False))
