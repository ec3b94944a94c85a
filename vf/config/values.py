"""Values of a config: chosen among known names, converted to JSON, written as a flag takes them."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flax import traverse_util
from ml_collections import ConfigDict

from vf.types import UserError

T = TypeVar("T")


def choose(name: str, value: str, known: Mapping[str, T]) -> T:
    """known[value]. Raises UserError that lists the known names where `value` is none of them."""
    if value not in known:
        names = ", ".join(one or "'' (none)" for one in known)
        raise UserError(f"--config.{name} must be one of {names}, got {value!r}")
    return known[value]


def as_user_error(make: Callable[[], T], fields: Mapping[str, str]) -> T:
    """make(), with a ValueError converted to the UserError that `vf.main` prints.

    fields: {word, such as a parameter's name: field of the config}. The error ends with the flags of those fields whose
        word its sentence has, other than in quotes, where values are.
    """
    try:
        return make()
    except ValueError as error:
        named = [field for word, field in fields.items() if re.search(rf"(?<!')\b{word}\b", str(error))]
        flags = ", ".join(f"--config.{field}" for field in dict.fromkeys(named))
        raise UserError(f"{error} ({flags})" if flags else str(error)) from error


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as nested dicts of JSON's types; tuples become lists."""
    return json.loads(json.dumps(config.copy_and_resolve_references().to_dict(), default=list))


def fingerprint(config: ConfigDict) -> str:
    """First 12 hex digits of the sha256 of the resolved config."""
    return hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode()).hexdigest()[:12]


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{a.b.c: value} of nested dicts."""
    return traverse_util.flatten_dict(fields, sep=".", keep_empty_nodes=False)


def as_flag(value: Any) -> str:
    """A value of a config as text that a flag takes; lists become tuples in Python's notation."""
    if isinstance(value, list):
        return f"({','.join(map(json.dumps, value))}{',' if len(value) == 1 else ''})"
    return str(value)
