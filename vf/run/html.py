"""Pieces of HTML that the parts of a run's page share, and the JSON that they show."""

import json
from html import escape
from typing import Any

from vf.files import AnyPath


def details(summary: str, inside: str, opened: bool = False) -> str:
    """What is folded under `summary`, both HTML; nothing where there is nothing inside."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{inside}</details>" if inside else ""


def pre(value: Any) -> str:
    """Any JSON value, indented, escaped."""
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def inline(value: Any) -> str:
    """Any JSON value on one line, escaped; of an object without what says nothing: empty values, no rejected clips."""
    if isinstance(value, dict):
        items = [
            (key, item) for key, item in value.items() if item not in (None, "") and (key, item) != ("rejected", 0)
        ]
        return " · ".join(f"{escape(key)} {inline(item)}" for key, item in items)
    return escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def origin(start: dict[str, Any]) -> str:
    """Whose weights a run begins with, in a few words, of the facts of its `start`."""
    whose = f"the run {inline(start['run'])}" if "run" in start else inline(start.get("from"))
    return f"step {inline(start['step'])} of {whose}" if "step" in start else whose


def load(path: AnyPath) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is missing or damaged: the page shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
