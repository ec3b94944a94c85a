"""Converts weights of a public network, in whatever format it is published, into one safetensors file.

    python -m vf.pretrained.convert i3d --source=FILE_OR_FOLDER --out=FILE.safetensors

Neither TensorFlow nor PyTorch is needed. The file names its source (with its sha256) and carries a fingerprint of its
values, which every score that is measured with it repeats.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vf.pretrained import c3d, clip, files, i3d, inception, videomae, vjepa, weights
from vf.types import UserError

Canonical = Callable[[Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], dict[str, Any]]]
FAMILIES: dict[str, Canonical] = {
    "i3d": i3d.canonical,
    "c3d": c3d.canonical,
    "inception": inception.canonical,
    "videomae": videomae.canonical,
    "vjepa": vjepa.canonical,
    "clip": clip.canonical,
}


def convert(family: str, source: Path, out: Path, also: Sequence[Path] = ()) -> weights.Weights:
    """Converts `source`, whose arrays those of `also` complete (and replace), and reads back what was written.

    Raises UserError where the sources are not of the family, or `out` exists or cannot be written."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another --out")
    found = {path: files.read(path) for path in (source, *also)}
    merged: dict[str, np.ndarray] = {}
    for one in found.values():
        merged |= one.arrays
    try:
        arrays, about = FAMILIES[family](merged)
    except ValueError as error:
        kind = found[source].format
        raise UserError(f"{source} ({kind}) does not hold {family} weights: {error}") from error
    for name, value in (
        ("source", [path.name for path in found]),
        ("source_sha256", [files.sha256(one) for one in found.values()]),
        ("format", [one.format for one in found.values()]),
    ):
        about[name] = value[0] if len(value) == 1 else value
    if family == "i3d":
        about |= i3d.identity(arrays, [files.git_blob(path) for one in found.values() for path in one.files])
    weights.save(out, family, arrays, about)
    return weights.load(out, family)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m vf.pretrained.convert", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("family", choices=tuple(FAMILIES))
    parser.add_argument("--source", type=Path, required=True, help="the public file, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="a file that completes it; may be given several times"
    )
    args = parser.parse_args(argv)
    try:
        made = convert(args.family, args.source, args.out, args.also)
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    count = sum(array.size for array in made.arrays.values())
    print(f"{args.out}: {made.family}, {len(made.arrays)} arrays, {count:,} parameters, fingerprint {made.fingerprint}")
    for name, value in made.about.items():
        print(f"  {name}: {value}")
    if made.family == "i3d" and (doubt := i3d.doubt(made.about)):
        print(f"  not FVD's: {doubt}")


if __name__ == "__main__":
    main()
