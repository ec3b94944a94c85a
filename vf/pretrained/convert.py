"""Converts weights of a public network, in whatever format it is published, into one safetensors file; and back.

    python -m vf.pretrained.convert i3d --source=FILE_OR_FOLDER --out=FILE.safetensors
    python -m vf.pretrained.convert adm --source=64x64_diffusion.pt --out=adm.safetensors
    python -m vf.pretrained.convert karlo-decoder --source=karlo-v1-alpha --out=karlo.safetensors --text-encoder=FOLDER
    python -m vf.pretrained.convert adm --to=diffusers --source=adm.safetensors --out=FOLDER
    python -m vf.pretrained.convert vf --source=RUN --out=FOLDER

Neither TensorFlow nor PyTorch is needed, and nothing that a pickle names is run. The file names its source (with its
sha256) and carries a fingerprint of its values, which every score that is measured with it repeats.

The families adm and karlo-decoder are base generators: image models that training starts from. `vf` gathers what a run
has trained into one folder, whose base.safetensors is again a file of that family where the base network is one.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vf.data.ucf101 import CLASSES
from vf.diffusion.gaussian import PREDICTIONS
from vf.diffusion.schedule import SCHEDULES
from vf.nets.layers import HEADS
from vf.pretrained import (
    adm,
    base,
    c3d,
    clip,
    export,
    files,
    i3d,
    inception,
    karlo,
    safetensors_file,
    videomae,
    vjepa,
    weights,
)
from vf.types import UserError, naming_flags
from vf.video import replacing

Canonical = Callable[[Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], dict[str, Any]]]
FAMILIES: dict[str, Canonical] = {
    "i3d": i3d.canonical,
    "c3d": c3d.canonical,
    "inception": inception.canonical,
    "videomae": videomae.canonical,
    "vjepa": vjepa.canonical,
    "clip": clip.canonical,
}
TARGETS = {"adm": ("diffusers", "adm"), "karlo-decoder": ("diffusers", "karlo")}
# What may be assumed about a base generator, where no array tells.
ASSUMED: dict[str, tuple[str, ...]] = {  # choices; none where it is a positive number
    "attention_order": tuple(HEADS), "head_dim": (), "norm_groups": (), "schedule": tuple(SCHEDULES), "steps": (),
    "prediction": PREDICTIONS, "image_size": (),
}  # fmt: skip


def convert(family: str, source: Path, out: Path, also: Sequence[Path] = ()) -> weights.Weights:
    """Converts `source`, whose arrays those of `also` complete (and replace), and reads back what was written.

    Raises UserError where the sources are not of the family, or `out` exists or cannot be written."""
    _refuse_existing(out)
    found = {path: files.read(path) for path in (source, *also)}
    merged: dict[str, np.ndarray] = {}
    for one in found.values():
        merged |= one.arrays
    try:
        arrays, about = FAMILIES[family](merged)
    except ValueError as error:
        kind = found[source].format
        raise UserError(f"{source} ({kind}) does not hold {family} weights: {error}") from error
    about |= _origin(found)
    if family == "i3d":
        about |= i3d.identity(arrays, [files.git_blob(path) for one in found.values() for path in one.files])
    weights.save(out, family, arrays, about)
    return weights.load(out, family)


def convert_base(
    family: str,
    source: Path,
    out: Path,
    *,
    also: Sequence[Path] = (),
    assume: Mapping[str, Any] | None = None,
    text_encoder: Path | None = None,
) -> weights.Weights:
    """Converts a base generator, one array at a time, and reads back what was written.

    Args:
        source: a file, a diffusers folder of the network, or one of the whole pipeline.
        also: for karlo-decoder, the folder text_proj where it is not beside the decoder's.
        assume: see `ASSUMED`.
        text_encoder: of CLIP, for the texts that karlo-decoder is told.

    Raises UserError as `convert`.
    """
    _refuse_existing(out)
    if text_encoder is not None and family != "karlo-decoder":
        raise UserError(f"a text encoder is for karlo-decoder; a network of the family {family} reads no texts")
    found = {path: files.read(path) for path in _parts(family, source, also)}
    first, *rest = found.values()
    arrays = dict(first.arrays)
    for one in rest:
        arrays |= {f"text_proj/{name}": array for name, array in one.arrays.items()}
    try:
        read = {"adm": adm.canonical, "karlo-decoder": karlo.canonical}[family]
        made, about = read(arrays, {**first.config, **_scheduler(source)}, assume or {})
        texts, told = karlo.texts(text_encoder, CLASSES, about["clip_dim"]) if text_encoder else ({}, {})
        weights.save(out, family, {**made, **texts}, {**about, **_origin(found), **told})
    except ValueError as error:
        raise UserError(f"{source} ({first.format}) does not hold {family} weights: {error}") from error
    return weights.load(out, family)


def convert_back(family: str, target: str, source: Path, out: Path) -> None:
    """Writes a converted file, also of a base that was trained here, in a public format.

    Args:
        target: `diffusers` (a folder), `adm` (tensors by guided-diffusion's names) or `karlo` (by those of its code).
        source: what `convert_base` wrote, or base.safetensors of an exported run.
        out: the folder, or else the safetensors file, to write, whole or not at all.

    Raises UserError where the source is not of the family, or `out` exists or cannot be written.
    """
    _refuse_existing(out)
    if target not in TARGETS[family]:
        raise UserError(f"{family} is written as {' or '.join(TARGETS[family])}, not as {target}")
    if target != "diffusers" and out.suffix != ".safetensors":
        raise UserError(f"tensors by the names of {target} are written to a file *.safetensors, not to {out}", "out")
    if source.is_dir() and (source / "base.safetensors").is_file():
        source = source / "base.safetensors"
    found = weights.load(source, family)
    try:
        if target == "diffusers":
            write = {"adm": adm.diffusers, "karlo-decoder": karlo.diffusers}[family]
            _write_folder(out, write(found.arrays, found.about))
        else:
            tensors = {"adm": adm.openai, "karlo": karlo.original}[target](found.arrays, found.about)
            with replacing(out) as temporary:
                safetensors_file.write(temporary, tensors.items(), {"format": "pt"})
    except ValueError as error:
        raise UserError(f"{source} cannot be written as {target}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}): choose another place", "out") from error


def _write_folder(out: Path, parts: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """A diffusers folder: {folder below: (tensors, config)}; a scheduler has no tensors."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for name, (tensors, config) in parts.items():
            folder = temporary / name
            folder.mkdir(parents=True, exist_ok=True)
            file = "config.json" if tensors else "scheduler_config.json"
            (folder / file).write_text(json.dumps(config, indent=2) + "\n")
            if tensors:
                path = folder / "diffusion_pytorch_model.safetensors"
                safetensors_file.write(path, sorted(tensors.items()), {"format": "pt"})
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another place", "out")


def _origin(found: Mapping[Path, files.Source]) -> dict[str, Any]:
    """`source`, `source_sha256` and `format`: of one file, or lists of several."""
    told = {
        "source": [path.name for path in found],
        "source_sha256": [files.sha256(one) for one in found.values()],
        "format": [one.format for one in found.values()],
    }
    return {name: value[0] if len(value) == 1 else value for name, value in told.items()}


def _parts(family: str, source: Path, also: Sequence[Path]) -> tuple[Path, ...]:
    """The files or folders that a base generator is read from, the U-Net's first."""
    if not source.is_dir():
        return (source, *also)
    inner = {"adm": "unet", "karlo-decoder": "decoder"}[family]
    unet = source / inner if (source / inner).is_dir() else source
    if family == "adm" or also:
        return (unet, *also)
    beside = unet.parent / "text_proj"
    return (unet, beside) if beside.is_dir() else (unet,)


def _scheduler(source: Path) -> dict[str, Any]:
    """What diffusers' scheduler beside a network says of its training; {} where there is none."""
    if not source.is_dir():
        return {}
    for folder in (source, source.parent):
        for name in ("scheduler", "decoder_scheduler"):
            if (file := folder / name / "scheduler_config.json").is_file():
                found = files.read_json(file)
                return {name: value for name, value in found.items() if not name.startswith("_")}
    return {}


def _assumed(word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    if name not in ASSUMED:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ASSUMED)}")
    choices = ASSUMED[name]
    if not (value in choices if choices else value.isdecimal() and int(value) > 0):
        wanted = f"one of {', '.join(choices)}" if choices else "a positive number"
        raise argparse.ArgumentTypeError(f"{name} should be {wanted}, and is {value!r}")
    return name, value if choices else int(value)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m vf.pretrained.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=(*FAMILIES, *base.FAMILIES, "vf"))
    parser.add_argument("--source", type=Path, required=True, help="the public file, or its folder; for vf, of a run")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write; for vf, a folder")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="a file that completes it; may be given several times"
    )
    parser.add_argument(
        "--to",
        choices=("diffusers", "adm", "karlo"),
        help="write a converted base generator as this: a diffusers folder, or safetensors by the names of that code",
    )
    parser.add_argument("--text-encoder", type=Path, help="folder of CLIP by transformers, for karlo-decoder's texts")
    parser.add_argument(
        "--assume", type=_assumed, action="append", default=[], metavar="NAME=VALUE",
        help=f"what no array of a base generator tells: {', '.join(ASSUMED)}",
    )  # fmt: skip
    parser.add_argument("--step", type=int, help="for vf: which checkpoint, instead of the latest")
    args = parser.parse_args(argv)
    try:
        with naming_flags({name: f"--{name}" for name in ("source", "out")}):
            told = _run(args)
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(told))


def _run(args: argparse.Namespace) -> list[str]:
    """What was asked for; what there is to tell of it."""
    unused = {"text_encoder": args.family != "karlo-decoder" or args.to, "step": args.family != "vf"}
    unused |= {"to": args.family not in TARGETS, "assume": args.family not in TARGETS or args.to}
    unused |= {"also": args.family == "vf" or args.to}
    if wrong := [name for name, useless in unused.items() if useless and getattr(args, name) not in (None, [])]:
        what = f"{args.family} --to={args.to}" if args.to and args.family in TARGETS else args.family
        raise UserError(f"--{wrong[0].replace('_', '-')} has no use for {what}: leave it out")
    if args.family == "vf":
        export.export(args.source, args.out, args.step)
        return [f"{args.out}: the networks of {args.source}; use them with --config={args.out}/config.py"]
    if args.to:
        convert_back(args.family, args.to, args.source, args.out)
        return [f"{args.out}: {args.source} as {args.to}"]
    if args.family in base.FAMILIES:
        made = convert_base(
            args.family, args.source, args.out, also=args.also, assume=dict(args.assume), text_encoder=args.text_encoder
        )
    else:
        made = convert(args.family, args.source, args.out, args.also)
    count = sum(array.size for name, array in made.arrays.items() if not name.startswith("texts/"))
    told = [
        f"{args.out}: {made.family}, {len(made.arrays)} arrays, {count:,} parameters, fingerprint {made.fingerprint}",
        *(f"  {name}: {_short(value)}" for name, value in made.about.items()),
    ]
    if made.family == "i3d" and (doubt := i3d.doubt(made.about)):
        told.append(f"  not FVD's: {doubt}")
    if made.family == "karlo-decoder" and not made.about["texts"]:
        told.append("  no --text-encoder was given: text tokens are masked, and classes cannot be told to it")
    return told


def _short(value: Any) -> str:
    """A list as far as one wants to read it."""
    if isinstance(value, list | dict) and len(value) > 12:
        return f"{', '.join(map(str, list(value)[:3]))}, ... ({len(value)})"
    return str(value)


if __name__ == "__main__":
    main()
