"""Typing errors on the command line, answered by the nearest known name."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vf.config.values import flat
from vf.types import UserError

FLAGS = flags.FLAGS


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?" with the known word nearest to `word`, or the list of all where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def parse(argv: list[str], names: Iterable[str]) -> list[str]:
    """absl's parsing, with typing errors answered by the nearest of `names` or config fields. Raises UserError."""
    for word in argv:
        path = word.removeprefix("--config=").split(":")[0]
        if word.startswith("--config=") and not Path(path).is_file():
            found = [str(p) for p in Path("configs").glob("*.py") if p.stem != "__init__"]
            raise UserError(f"no config at {path}: {nearest(path, found)}")
    try:
        rest = FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UserError(str(error).split("\n")[0]) from error
    except AttributeError as error:
        raise UserError(_unknown_field(argv) or str(error)) from error
    if rest[1:]:
        word = rest[1].split("=")[0].lstrip("-")
        raise UserError(f"unknown argument {rest[1]}: {nearest(word, names)}")
    for name in ("config", "workdir"):
        if getattr(FLAGS, name) is None:
            raise UserError(f"--{name} is missing; try --config=configs/demo.py --workdir=runs/demo")
    return rest


def _unknown_field(argv: list[str]) -> str | None:
    """Which --config.FIELD is unknown, and what it may have meant."""
    given = [word for word in argv if word.startswith("--config=")]
    if not given:
        return None
    alone = flags.FlagValues()
    alone_argv = [argv[0], given[0]]
    config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=alone_argv)
    alone(alone_argv)
    known = set(flat(alone.config.to_dict()))
    for word in argv:
        field = word.removeprefix("--config.").split("=")[0]
        if word.startswith("--config.") and field not in known:
            return f"unknown field --config.{field}: {nearest(field, known)}"
    return None
