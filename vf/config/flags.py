"""Errors on the command line: a mistyped name is answered by the nearest known one, an old one by its successors."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from vf.config.values import flat
from vf.types import UserError, nearest

FLAGS = flags.FLAGS
REPLACED = {
    "data.eval_split": "data.validation_split (for losses) and eval.reference_split (for scores)",
    "data.eval_split_file": "data.validation_split_file (for losses) and eval.reference_split_file (for scores)",
}
"""Fields that earlier versions had, and those that replaced them."""
EXPECTED = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "True or False",
}
"""{beginning of what Python or absl says of a value: what was expected}."""


def parse(argv: list[str], names: Iterable[str]) -> list[str]:
    """Parses flags as absl does, and returns the other arguments.

    Raises UserError for an unknown flag or config field, with the nearest of `names` or of the config's fields; for a
    value of the wrong type; and where --config or --workdir is missing. Help ends the program with status 0.
    """
    if {"-h", "-help", "--help"} & set(argv[1:]):
        app.usage(writeto_stdout=True, shorthelp=True, exitcode=0)
    for word in argv:
        path = word.removeprefix("--config=").split(":")[0]
        if word.startswith("--config=") and not Path(path).is_file():
            configs = [str(p) for p in Path("configs").glob("*.py") if p.stem != "__init__"]
            hint = nearest(path, configs) if configs else "start this in the folder of the code, which has configs/"
            raise UserError(f"no config at {path}: {hint}")
    try:
        rest = FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UserError(_wrong_value(str(error).split("\n")[0])) from error
    except UserError:
        raise
    except Exception as error:  # whatever the config file, which is Python, raises
        # Of a field's name the last part raises AttributeError, an earlier one KeyError.
        if isinstance(error, (AttributeError, KeyError)) and (sentence := _unknown_field(argv)):
            raise UserError(sentence) from error
        if isinstance(error, AttributeError):
            raise UserError(str(error)) from error
        raise UserError(
            f"--config must be a Python file with get_config(), as in configs/: {type(error).__name__}: {error}"
        ) from error
    if rest[1:]:
        word = rest[1].split("=")[0].lstrip("-")
        raise UserError(f"unknown argument {rest[1]}: {_nearest_field(word) or nearest(word, names)}")
    for name in ("config", "workdir"):
        if getattr(FLAGS, name) is None:
            raise UserError(f"--{name} is missing; try --config=configs/demo.py --workdir=runs/demo")
    return rest


def _wrong_value(message: str) -> str:
    """absl's message about a flag, in other words where it is about a value of the wrong type."""
    for beginning, expected in EXPECTED.items():
        if match := re.match(rf"flag (--[\w.]+)=(.*): {re.escape(beginning)}", message):
            return f"{match[1]} must be {expected}, got {match[2]!r}"
    return message


def _nearest_field(word: str) -> str:
    """ "did you mean --config.FIELD?" where `word` is a field's name, or the end of one, or near one; else "".

    `word` may begin with `config.`."""
    word = word.removeprefix("config.")
    known = list(flat(FLAGS.config.to_dict())) if FLAGS.config else []
    near = [field for field in known if f".{field}".endswith(f".{word}")]
    near = near or (difflib.get_close_matches(word, known, 1, 0.8) if "." in word else [])
    return f"did you mean {' or '.join(f'--config.{field}' for field in near)}?" if near else ""


def _unknown_field(argv: list[str]) -> str | None:
    """A sentence on the first --config.FIELD that is unknown and what may be meant; None where all are known."""
    config_flag = next((word for word in argv if word.startswith("--config=")), None)
    if config_flag is None:
        return None
    # The fields of the config as its file gives them, without the overrides on the command line.
    defaults = flags.FlagValues()
    config_argv = [argv[0], config_flag]
    config_flags.DEFINE_config_file("config", flag_values=defaults, sys_argv=config_argv)
    try:
        defaults(config_argv)
    except AttributeError as error:  # of the file itself, which sets a field that a locked config has not
        given, near = (re.search(pattern, str(error)) for pattern in (r'Key "(\w+)" does', r'Did you mean "(\w+)"'))
        if given is None:
            raise
        hint = f"did you mean {near[1]}?" if near else "see configs/base.py"
        return f"{config_flag.removeprefix('--config=')} sets {given[1]}, which no config has: {hint}"
    except KeyError:  # likewise, of its own
        return None
    known = set(flat(defaults.config.to_dict()))
    for word in argv:
        field = word.removeprefix("--config.").split("=")[0]
        if word.startswith("--config.") and field not in known:
            if field in REPLACED:
                return f"unknown field --config.{field}: it was replaced by {REPLACED[field]}"
            return f"unknown field --config.{field}: {nearest(field, known)}"
    return None
