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
    """Any JSON value on one line, escaped."""
    if isinstance(value, dict):
        return " · ".join(f"{escape(key)} {inline(item)}" for key, item in value.items())
    return escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def load(path: AnyPath) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is missing or damaged: the page shows what there is."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
