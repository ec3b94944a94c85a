"""Hugging Face folders: which files of one are the weights, in how many shards, and in which variant.

NAME.safetensors, NAME.bin                           weights: of diffusers, the average where training had one
NAME.fp16.safetensors, NAME.non_ema.safetensors      variants: of half precision, of the last step
NAME-00001-of-00002.safetensors                      shards, which NAME.safetensors.index.json may list; of variants,
NAME.fp16-00001-of-00002.safetensors                 with the variant's word before or after the numbers
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vf.types import UserError

_SHARD = r"(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?"
_WEIGHTS = re.compile(rf"(?P<stem>[^.]+?)(?:\.(?P<early>\w+))?{_SHARD}(?:\.(?P<late>\w+))?\.(?P<kind>safetensors|bin)")
_INDEX = re.compile(r"(?P<stem>[^.]+)(?:\.(?P<early>\w+))?\.(?P<kind>safetensors|bin)\.index(?:\.(?P<late>\w+))?\.json")
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")  # best first
_CONFIGS = ("config.json", "open_clip_config.json")


class Weights(NamedTuple):
    """The weights of a folder that are to be read.

    Attributes:
        files: in the order of shards.
        kind: `safetensors` or `bin`.
        variant: its word, as `fp16`; "" for none.
        variants: all that the folder has, best first.
    """

    files: tuple[Path, ...]
    kind: str
    variant: str
    variants: tuple[str, ...]


def find(folder: Path, variant: str = "") -> Weights | None:
    """The weights in a folder, None where there are none: those of `variant`, where it has them, or else the best.

    The best are those without a word; `non_ema` comes last. One variant that is there alone is taken whatever
    `variant` says, since that may name a part of its content.

    Raises UserError where there is no such variant, and ValueError where there are several networks, or a shard is
    missing.
    """
    models = _models(folder)
    if not models:
        return None
    known = [model for model in models if model.stem in _STEMS] or list(models)
    if (stems := sorted({model.stem for model in known}))[1:] and stems[0] not in _STEMS:
        raise ValueError(f"it holds several models ({', '.join(stems)}): name a file")
    # One network may be there under several names and in both formats: the best of each variant comes last.
    known.sort(key=lambda model: (model.kind == "safetensors", model.stem in _STEMS and -_STEMS.index(model.stem)))
    of_variant = {model.variant: model for model in known}
    order = sorted(of_variant, key=lambda word: (bool(word), "non_ema" in word, word))
    if variant and variant not in of_variant and len(order) > 1:
        words = ", ".join(word or "those without a word" for word in order)
        raise UserError(f"the weights in {folder} are {words}, and {variant} is none of them", "copy")
    chosen = of_variant[variant if variant in of_variant else order[0]]
    return Weights(_whole(models[chosen]), chosen.kind, chosen.variant, tuple(order))


def config(path: Path) -> dict[str, Any]:
    """The fields of the config.json that describes a folder or file; {} for none. Raises ValueError as `read_json`."""
    folder = described_in(path)
    found = [folder / name for name in _CONFIGS if (folder / name).is_file()] if folder else []
    return read_json(found[0]) if found else {}


def described_in(path: Path) -> Path | None:
    """The folder whose config.json describes `path`: itself, or that in which it is a model's file; None for none."""
    if path.is_dir():
        return path
    match = _WEIGHTS.fullmatch(path.name)
    return path.parent if match and match["stem"] in _STEMS else None


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file. Raises ValueError that names the file where it has none, and OSError."""
    try:
        fields = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no whole JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} holds no fields")
    return fields


class _Model(NamedTuple):
    stem: str
    variant: str
    kind: str


class _Part(NamedTuple):
    file: Path
    shard: int = 0  # from 1; 0 for a file that is whole, or that a list names
    shards: int = 0


def _models(folder: Path) -> dict[_Model, list[_Part]]:
    """{model: its files} by their names. Raises ValueError where a list of shards names one that is not there."""
    found: dict[_Model, list[_Part]] = {}
    listed: dict[_Model, list[_Part]] = {}
    for file in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(file.name):
            part = _Part(file, int(match["shard"] or 0), int(match["shards"] or 0))
            found.setdefault(_model(match), []).append(part)
        elif match := _INDEX.fullmatch(file.name):
            by_name = read_json(file).get("weight_map")
            if not isinstance(by_name, dict):
                raise ValueError(f"{file.name} has no weight_map")
            files = sorted({folder / part for part in by_name.values()})
            if missing := [part.name for part in files if not part.is_file()]:
                raise ValueError(f"{file.name} names {missing[0]}, which is not there")
            listed[_model(match)] = [_Part(part) for part in files]
    return found | listed


def _model(match: re.Match[str]) -> _Model:
    return _Model(match["stem"], match["early"] or match["late"] or "", match["kind"])


def _whole(parts: Iterable[_Part]) -> tuple[Path, ...]:
    """The files that are whole or listed, or else all shards. Raises ValueError where a shard is missing."""
    if whole := tuple(part.file for part in parts if not part.shards):
        return whole
    name, _, count = next(iter(parts))
    there = {part.shard: part.file for part in parts if part.shards == count}
    if missing := [number for number in range(1, count + 1) if number not in there]:
        raise ValueError(f"{name.name} is one of {count} shards, and number {missing[0]} is not there")
    return tuple(there[number] for number in range(1, count + 1))
