"""Where the numbers of a run come from: command, versions, revision, devices, mesh and seed of each of its starts."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or of what was copied from one
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What compiles, where it is installed: hosts that run different programs wait for one another for ever.
COMPILERS = ("libtpu", "jax-cuda12-pjrt", "jax-cuda12-plugin", "jax-cuda13-pjrt", "jax-cuda13-plugin")


def describe_start(
    *, mesh: jax.sharding.Mesh | Mapping[str, int] | None = None, seed: int | None = None, **facts: Any
) -> dict[str, Any]:
    """One start of a run, as run.json lists it: what is known of this process, and any further `facts`."""
    devices = jax.devices()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command_line(sys.orig_argv),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "git": revision(ROOT),
        "devices": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
        },
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape) if isinstance(mesh, jax.sharding.Mesh) else mesh,
        "seed": seed,
        **facts,
    }


def command_line(argv: list[str]) -> str:
    """The command line as a shell would take it, with the folders of this machine cut from absolute paths."""
    words = [Path(argv[0]).name, *argv[1:]] if argv else []
    # An absolute path begins a word or follows "=" or ","; a URL's slashes follow a colon and stay.
    return shlex.join(
        re.sub(r"(^|[=,])(?:~|[A-Za-z]:)?[/\\](?:[^,]*[/\\])?(?=[^,])", r"\1.../", word) for word in words
    )


def parts_of(command: str) -> tuple[list[str], dict[str, str | None]]:
    """The words of a command line up to its program, and {name: value} of its flags, None for one without a value.

    Of a flag that is given twice the last value counts, as for the command itself, in its last place. Raises ValueError
    for quotes that do not end."""
    words = shlex.split(command)
    first = words.index("-m") + 2 if "-m" in words else 1
    flags: dict[str, str | None] = {}
    name = ""
    for word in words[first:]:
        if re.match("--?[A-Za-z]", word):  # absl takes one hyphen, too
            name, given, value = word.lstrip("-").partition("=")
            flags.pop(name, None)
            flags[name] = value if given else None
        elif name in flags and flags[name] is None:  # as in `--name value`
            flags[name] = word
    return words[:first], flags


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint(config: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, str]:
    """{name: value}, as text, of all that must be the same on every host of a run.

    config: the resolved config, as JSON values. facts: further entries that must be equal in all processes.
    """
    entries = {**facts, "code": sources(ROOT), "python": platform.python_version()}
    entries |= {f"config.{name}": json.dumps(value) for name, value in flatten_dict(config, sep=".").items()}
    entries |= {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}
    return entries | {name: str(version(name)) for name in (*PACKAGES, *COMPILERS)}


def sources(root: Path, folders: Sequence[str] = ("vf", "configs")) -> str:
    """A hash of the names and contents of all Python files in `folders` of `root`: 12 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def revision(root: Path) -> dict[str, Any] | None:
    """{revision, dirty} of the git checkout at `root`, dirty when code or configs differ from it; None without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed package may lie inside somebody else's checkout, whose revision says nothing about us.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "vf", "configs")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
