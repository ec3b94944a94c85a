"""What must be the same on every host, and the sentence on what is not."""

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vf.config import values
from vf.run import provenance

ROOT = Path(__file__).resolve().parents[2]
# What compiles, where it is there: programs that differ wait for one another for ever.
COMPILERS = ("libtpu", "jax-cuda12-pjrt", "jax-cuda12-plugin", "jax-cuda13-pjrt", "jax-cuda13-plugin")


def card(config: Any, mode: str, workdir: str) -> dict[str, str]:
    """{name: value} of all that must be the same on every host, as text."""
    found = {"mode": mode, "workdir": workdir, "config": values.fingerprint(config), "code": _code()}
    found |= {f"config.{name}": json.dumps(value) for name, value in _flat(values.to_json(config)).items()}
    found |= {"Python": platform.python_version()}
    found |= {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}
    return found | {name: str(provenance.version(name)) for name in (*provenance.PACKAGES, *COMPILERS)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _code() -> str:
    """Hash of the sources, wherever they come from; behind it, for the reader, the revision or what REVISION says."""
    revision = provenance.revision(ROOT)
    told = f"revision {revision['revision'][:10]}{', changed' * revision['dirty']}" if revision else ""
    with contextlib.suppress(OSError):
        told = told or f"revision {(ROOT / 'REVISION').read_text().strip()[:10]}"
    return provenance.sources(ROOT) + (f" ({told})" if told else "")


def unlike(cards: Mapping[int, Mapping[str, str]], names: Mapping[int, str], most: int = 3) -> str | None:
    """One sentence on the first host whose card is not that of process 0, or None."""
    reference = cards[0]
    for process, mine in sorted(cards.items()):
        differing = [key for key in {**reference, **mine} if _key(key, reference) != _key(key, mine)]
        if len(differing) > 1 and "config" in differing:
            differing.remove("config")  # a hash, where fields can be named
        if differing:
            told = "; ".join(
                f"{key} is {mine.get(key, 'missing')} here and {reference.get(key, 'missing')} there"
                for key in differing[:most]
            )
            more = f" (and {len(differing) - most} more)" if len(differing) > most else ""
            others = [other for other, card in cards.items() if other > process and card != reference]
            also = f"; process {', '.join(map(str, others))} too" if others else ""
            return (
                f"host {names[process]} (process {process}) differs from host {names[0]} (process 0): {told}{more}"
                f"{also}: start all hosts with the same command, code and packages"
            )
    return None


def _key(key: str, card: Mapping[str, str]) -> str | None:
    value = card.get(key)
    return value.split(" (")[0] if value and key == "code" else value  # how the revision is known may differ
