"""Converts weights of public networks, from the formats in which they are published, to a safetensors file; and back.

    python -m vf.pretrained.convert i3d --source=FILE_OR_FOLDER --out=FILE.safetensors
    python -m vf.pretrained.convert adm --source=64x64_diffusion.pt --out=adm.safetensors
    python -m vf.pretrained.convert karlo-decoder --source=karlo-v1-alpha --out=karlo.safetensors --text-encoder=FOLDER
    python -m vf.pretrained.convert karlo-prior --source=karlo-v1-alpha --out=prior.safetensors --text-encoder=FOLDER
    python -m vf.pretrained.convert karlo-superres --source=karlo-v1-alpha/super_res_first --out=first.safetensors
    python -m vf.pretrained.convert adm --to=diffusers --source=adm.safetensors --out=FOLDER
    python -m vf.pretrained.convert vf --source=RUN --out=FOLDER

Neither TensorFlow nor PyTorch is needed, and nothing that a pickle names is run. The file records its source (with its
sha256) and a fingerprint of its values, which is part of the protocol of every score that is measured with it.

The families adm and karlo-decoder are base generators, and karlo-superres takes pictures from 64 to 256 pixels: image
models from which training starts; karlo-prior draws embeddings. `vf` exports the networks of a run into one folder. Its
base.safetensors is again a file of adm or karlo-decoder where the base network is one.
"""

if __name__ == "__main__" and not __package__:  # `python vf/pretrained/convert.py` finds no package
    import sys

    print("vf: start this as `python -m vf.pretrained.convert`, in the folder of the code", file=sys.stderr)
    raise SystemExit(2)

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vf import command
from vf.activity import ACTIVITY
from vf.data.ucf101 import CLASSES
from vf.diffusion.gaussian import PREDICTIONS
from vf.diffusion.schedule import SCHEDULES
from vf.files import make_room, replacing
from vf.nets.layers import HEADS
from vf.pretrained import (
    adm,
    base,
    c3d,
    clip,
    efficientnet,
    export,
    files,
    hub_folder,
    i3d,
    inception,
    karlo,
    karlo_superres,
    prior,
    safetensors_file,
    unet,
    videomae,
    vjepa,
    weights,
    wrapped,
)
from vf.types import UserError, naming_flags

Canonical = Callable[[Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], dict[str, Any]]]
FAMILIES: dict[str, Canonical] = {
    "i3d": i3d.canonical,
    "c3d": c3d.canonical,
    "inception": inception.canonical,
    "videomae": videomae.canonical,
    "vjepa": vjepa.canonical,
    "clip": clip.canonical,
    "efficientnet": efficientnet.canonical,
}
GENERATORS = (*base.FAMILIES, base.SUPERRES, prior.FAMILY)
# An array that all networks of a family have, by the names of each layout. C3D and V-JEPA find theirs in other ways.
ROOTS = {
    "i3d": ("Conv3d_1a_7x7.conv3d.weight", "conv3d_1a_7x7.conv3d.weight"),
    "inception": ("Conv2d_1a_3x3.conv.weight", "layers.conv.weight"),
    "videomae": ("patch_embed.proj.weight",),
    "clip": ("visual.conv1.weight", *clip.HUGGING_FACE_ROOTS.values()),
    **dict.fromkeys(GENERATORS, unet.ROOTS),
    prior.FAMILY: (prior.ROOT,),
}
TARGETS = {
    "adm": ("diffusers", "adm"), "karlo-decoder": ("diffusers", "karlo"), base.SUPERRES: ("diffusers", "karlo"),
    prior.FAMILY: ("diffusers",),
}  # fmt: skip
TEXTS = ("karlo-decoder", prior.FAMILY)  # families that may carry texts
# Settings that may be assumed, since they cannot be inferred from arrays: of a generator, and `act` of CLIP.
ASSUMED: dict[str, tuple[str, ...]] = {  # {setting: its values; () for a positive number}
    "attention_order": tuple(HEADS), "head_dim": (), "norm_groups": (), "schedule": tuple(SCHEDULES), "steps": (),
    "prediction": PREDICTIONS, "image_size": (), "act": clip.ACTS,
}  # fmt: skip


def convert(
    family: str,
    source: Path,
    out: Path,
    also: Sequence[Path] = (),
    *,
    assume: Mapping[str, Any] | None = None,
    copy: str = "",
) -> weights.Weights:
    """Converts `source`, to which the arrays of the files `also` are added, and reads the written file.

    Args:
        family: one of `FAMILIES`.
        source: a file, or its folder.
        out: the safetensors file to write.
        also: files that complete it.
        assume: `act` of a CLIP whose source does not say it.
        copy: which of several variants or copies of the network, see `hub_folder` and `wrapped`; "" takes the average.

    Raises UserError where the sources are not of the family, or `out` exists or cannot be written.
    """
    _refuse_existing(out)
    first, taken = _network(family, source, copy)
    sources = {source: first, **{path: files.read(path) for path in also}}
    merged = dict(first.arrays)
    for source_file in list(sources.values())[1:]:
        merged |= source_file.arrays
    try:
        if family == "clip":
            arrays, about = clip.canonical(merged, first.config, assume or {})
        else:
            arrays, about = FAMILIES[family](merged)
    except ValueError as error:
        raise UserError(f"{source} ({first.format}) does not hold {family} weights: {error}") from error
    about |= taken | _origin(sources)
    if family == "i3d":
        about |= i3d.identify(
            arrays, [files.git_blob(path) for source_file in sources.values() for path in source_file.files]
        )
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
    copy: str = "",
) -> weights.Weights:
    """Converts an image generator or a prior, one array at a time, and reads the written file.

    Args:
        family: one of `GENERATORS`.
        source: a file, a diffusers folder of the network, or one of the whole pipeline.
        out: the safetensors file to write.
        also: for karlo-decoder, the folder text_proj where it is not next to the decoder's.
        assume: values of settings, see `ASSUMED`.
        text_encoder: folder of CLIP, by which a family of `TEXTS` is conditioned on texts of classes.
        copy: as in `convert`.

    Raises UserError as `convert`.
    """
    _refuse_existing(out)
    if text_encoder is not None and family not in TEXTS:
        raise UserError(f"a text encoder is for {' or '.join(TEXTS)}; a network of the family {family} reads no texts")
    unet_source, *beside = _parts(family, source, also)
    first, taken = _network(family, unet_source, copy)
    rest = [files.read(path) for path in beside]
    sources = dict(zip((unet_source, *beside), (first, *rest), strict=True))
    arrays = dict(first.arrays)
    for source_file in rest:
        arrays |= {f"text_proj/{name}": array for name, array in source_file.arrays.items()}
    try:
        modules: dict[str, Any] = {
            "adm": adm, "karlo-decoder": karlo, base.SUPERRES: karlo_superres, prior.FAMILY: prior
        }  # fmt: skip
        scheduler = _scheduler(source, family)
        converted, about = modules[family].canonical(arrays, {**first.config, **scheduler}, assume or {})
        dim = about["network"]["dim"] if family == prior.FAMILY else about.get("clip_dim", 0)
        texts, facts = karlo.texts(text_encoder, CLASSES, dim) if text_encoder else ({}, {})
        weights.save(out, family, {**converted, **texts}, {**about, **taken, **_origin(sources), **facts})
    except ValueError as error:
        raise UserError(f"{source} ({first.format}) does not hold {family} weights: {error}") from error
    return weights.load(out, family)


def convert_back(family: str, target: str, source: Path, out: Path) -> None:
    """Writes a converted file, or the base network of an exported run, in a public format.

    Args:
        family: one of `GENERATORS`.
        target: `diffusers` (a folder), `adm` (tensors by guided-diffusion's names) or `karlo` (by those of its code).
        source: a file of `convert_base`, or base.safetensors of an exported run.
        out: the folder or safetensors file to write, whole or not at all.

    Raises UserError where the source is not of the family, or `out` exists or cannot be written.
    """
    _refuse_existing(out)
    if target not in TARGETS[family]:
        raise UserError(f"{family} is written as {' or '.join(TARGETS[family])}, not as {target}")
    if target != "diffusers" and out.suffix != ".safetensors":
        raise UserError(f"tensors by the names of {target} are written to a file *.safetensors, not to {out}", "out")
    if source.is_dir() and (source / "base.safetensors").is_file():
        source = source / "base.safetensors"
    converted = weights.load(source, family)
    try:
        if target == "diffusers":
            write = {
                "adm": adm.diffusers, "karlo-decoder": karlo.diffusers, base.SUPERRES: karlo_superres.diffusers,
                prior.FAMILY: prior.diffusers,
            }  # fmt: skip
            _write_folder(out, write[family](converted.arrays, converted.about))
        else:
            rename = {"adm": adm.openai, "karlo-decoder": karlo.original, base.SUPERRES: karlo_superres.original}
            tensors = rename[family](converted.arrays, converted.about)
            with replacing(out) as temporary:
                safetensors_file.write(temporary, tensors.items(), {"format": "pt"})
    except ValueError as error:
        raise UserError(f"{source} cannot be written as {target}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}): {make_room(error)}choose another place", "out") from error


def _write_folder(out: Path, parts: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Writes a diffusers folder of {folder below it: (tensors, config)}; a scheduler has no tensors."""
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


def _network(family: str, path: Path, copy: str) -> tuple[files.Source, dict[str, Any]]:
    """The network of a family in a file or folder, and facts of which of several copies it is: `copy`, `copies`.

    Raises UserError as `files.read` and `wrapped.find`.
    """
    source = files.read(path, copy)
    named = copy if copy not in source.variants else ""
    found = wrapped.find(source.arrays, ROOTS[family], named) if family in ROOTS else wrapped.Network(source.arrays)
    names = [*filter(None, (source.variant, found.name.strip(wrapped.TOP)))]
    others = [*(word or "without a word" for word in source.variants if word != source.variant), *found.others]
    facts: dict[str, Any] = {"copy": " ".join(names), "other_copies": others} if names or others else {}
    facts |= {"unread_copy": found.unread} if found.unread else {}
    return source._replace(arrays=found.arrays), facts


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another place", "out")


def _origin(sources: Mapping[Path, files.Source]) -> dict[str, Any]:
    """`source`, `source_sha256` and `format` of one file, or lists of those of several."""
    facts = {
        "source": [path.name for path in sources],
        "source_sha256": [files.sha256(source_file) for source_file in sources.values()],
        "format": [source_file.format for source_file in sources.values()],
    }
    return {name: value[0] if len(value) == 1 else value for name, value in facts.items()}


def _parts(family: str, source: Path, also: Sequence[Path]) -> tuple[Path, ...]:
    """The files or folders from which a generator is read, that of its network first."""
    if not source.is_dir():
        return (source, *also)
    inner = {"adm": "unet", "karlo-decoder": "decoder", prior.FAMILY: "prior"}.get(family, "")
    unet = source / inner if (source / inner).is_dir() else source
    if family != "karlo-decoder" or also:
        return (unet, *also)
    sibling = unet.parent / "text_proj"
    return (unet, sibling) if sibling.is_dir() else (unet,)


def _scheduler(source: Path, family: str) -> dict[str, Any]:
    """Fields of the scheduler_config.json next to a diffusers network of a family; {} where there is none."""
    home = hub_folder.described_in(source)
    others = {base.SUPERRES: "super_res_scheduler", prior.FAMILY: "prior_scheduler"}
    of_pipeline = others.get(family, "decoder_scheduler")
    for folder in (home, home.parent) if home else ():
        for name in ("scheduler", of_pipeline):
            if (file := folder / name / "scheduler_config.json").is_file():
                fields = hub_folder.read_json(file)
                return {name: value for name, value in fields.items() if not name.startswith("_")}
    return {}


def _assumed(word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    if name not in ASSUMED:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ASSUMED)}")
    choices = ASSUMED[name]
    if not (value in choices if choices else value.isdecimal() and int(value) > 0):
        allowed = f"one of {', '.join(choices)}" if choices else "a positive number"
        raise argparse.ArgumentTypeError(f"{name} should be {allowed}, and is {value!r}")
    return name, value if choices else int(value)


@command.until_ended()
def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = command.Parser(
        prog="python -m vf.pretrained.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=(*FAMILIES, *GENERATORS, "vf"))
    parser.add_argument("--source", type=Path, required=True, help="the public file, or its folder; for vf, of a run")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write; for vf, a folder")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="a file that completes it; may be given several times"
    )
    parser.add_argument(
        "--to",
        choices=("diffusers", "adm", "karlo"),
        help="write a converted generator as this: a diffusers folder, or safetensors by the names of that code",
    )
    parser.add_argument("--text-encoder", type=Path, help="folder of CLIP by transformers, for Karlo's texts")
    parser.add_argument(
        "--assume", type=_assumed, action="append", default=[], metavar="NAME=VALUE",
        help=f"settings that arrays do not determine: {', '.join(ASSUMED)} (act of clip, others of a generator)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="NAME",
        help="which of several copies in a checkpoint, as model or ema, or of a folder's variants, as fp16 or non_ema "
        "(default: the average, in full precision)",
    )  # fmt: skip
    parser.add_argument("--step", type=int, help="for vf: which checkpoint, instead of the latest")
    args = parser.parse_args(argv)
    try:
        with naming_flags({"source": "--source", "out": "--out", "copy": "--weights"}):
            lines = _run(args)
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))


@ACTIVITY.doing("converting weights")
def _run(args: argparse.Namespace) -> list[str]:
    """Does what the flags say; returns lines for the terminal. Raises UserError."""
    unused = {"text_encoder": args.family not in TEXTS or args.to, "step": args.family != "vf"}
    unused |= {"to": args.family not in TARGETS, "assume": args.family not in (*TARGETS, "clip") or args.to}
    unused |= {"also": args.family == "vf" or args.to, "weights": args.family not in ROOTS or args.to}
    if wrong := [name for name, is_unused in unused.items() if is_unused and getattr(args, name) not in (None, [])]:
        target = f"{args.family} --to={args.to}" if args.to and args.family in TARGETS else args.family
        raise UserError(f"--{wrong[0].replace('_', '-')} has no use for {target}: leave it out")
    if args.family == "vf":
        export.export(args.source, args.out, args.step)
        return [f"{args.out}: the networks of {args.source}; use them with --config={args.out}/config.py"]
    if args.to:
        convert_back(args.family, args.to, args.source, args.out)
        return [f"{args.out}: {args.source} as {args.to}"]
    assume, copy = dict(args.assume), args.weights or ""
    if odd := [name for name in assume if (name == "act") != (args.family == "clip")]:
        raise UserError(f"--assume={odd[0]} has no use for {args.family}: leave it out")
    if args.family in GENERATORS:
        result = convert_base(
            args.family, args.source, args.out, also=args.also, assume=assume, text_encoder=args.text_encoder, copy=copy
        )
    else:
        result = convert(args.family, args.source, args.out, args.also, assume=assume, copy=copy)
    count = sum(array.size for name, array in result.arrays.items() if not name.startswith("texts/"))
    lines = [
        f"{args.out}: {result.family}, {len(result.arrays)} arrays, {count:,} parameters, "
        f"fingerprint {result.fingerprint}",
        *(f"  {name}: {_short(value)}" for name, value in result.about.items()),
    ]
    if others := result.about.get("other_copies"):
        copy = result.about["copy"] or "that without a name"
        lines.append(f"  took {copy} and left {', '.join(others)}: --weights=NAME takes another")
    if unread := result.about.get("unread_copy"):
        lines.append(f"  the arrays of {unread} have no names, so that the weights of {result.about['copy']} are taken")
    if result.family == "clip" and not result.about["act_from"]:
        lines.append(
            f"  assumed the GELU of OpenAI's CLIPs, {clip.ACTS[0]}, as no file says it: LAION's have another "
            f"(--assume act={clip.ACTS[1]})"
        )
    if result.family == "i3d" and (problem := i3d.problem(result.about)):
        lines.append(f"  not FVD's: {problem}")
    if result.family == "karlo-decoder" and not result.about["texts"]:
        lines.append("  no --text-encoder was given: text tokens are masked, and it has no classes")
    if result.family == prior.FAMILY and not result.about["texts"]:
        lines.append("  no --text-encoder was given: it has neither classes nor the empty prompt, to be guided from")
    return lines


def _short(value: Any) -> str:
    """A value as text; only the first items of a long list."""
    if isinstance(value, list | dict) and len(value) > 12:
        return f"{', '.join(map(str, list(value)[:3]))}, ... ({len(value)})"
    return str(value)


if __name__ == "__main__":
    main()
