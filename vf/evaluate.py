"""Scores clips of any origin against real ones.

    python -m vf.evaluate --real=DIR --generated=DIR --protocol=styleganv --metrics=fvd,kvd --i3d=FILE --out=FILE.json
    python -m vf.evaluate --selfcheck --i3d=FILE

Either side is a folder of videos, animations or folders of frames, one video, an `.npz` with uint8 [n t h w 3] under
`clips`, an `.npy` of that, or a prepared data set. A protocol specifies which clips are compared and how; its fields
are flags too. Features are cached under a hash of everything that determines them. Files that cannot be read, are cut
off or are damaged are left out and named at the end, and the exit status is then 3, or 0 with --skip-bad.
"""

if __name__ == "__main__" and not __package__:  # `python vf/evaluate.py` finds no package
    import sys

    print("vf: start this as `python -m vf.evaluate`, in the folder of the code", file=sys.stderr)
    raise SystemExit(2)

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vf import command
from vf.activity import ACTIVITY
from vf.data.clips import STARTS, Windows
from vf.data.text import encoding, is_utf8, readable
from vf.files import make_room
from vf.metrics import fvd
from vf.metrics.protocol import PROTOCOLS, ClipProtocol, Score, protocol_hash, to_json
from vf.pretrained import i3d
from vf.run import score_table
from vf.scores import features, networks, suite
from vf.scores.sets import ClipSet, open_set
from vf.scores.sources import Choice, UnreadableFile
from vf.types import UserError, counted, naming_flags, nearest
from vf.video import replacing

NAMES = (*suite.metrics(fvd.LINEAGES["google"]), suite.SEGMENTS)
FLAGS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("split", "frames", "fps", "size", "resampler", "other_weights", *networks.FAMILIES)
}
SAME_RATE = 0.05  # the share by which rates may differ without a warning: 24 and 25 are the same film
LOST = 3  # exit status where files were left out, as that of vf.data.prepare
Sides = tuple[ClipSet | None, ClipSet]


@ACTIVITY.doing("opening the clips")
def open_sides(real: Path | None, generated: Path, protocol: ClipProtocol, *, check: bool = False) -> Sides:
    """Opens both sets with the clips that `protocol` selects; None for `real` None. `check`, and UserError, as in
    `open_set`."""
    shared: dict[str, Any] = {
        "size": protocol.size,
        "resampler": protocol.resampler,
        "subset": protocol.subset,
        "seed": protocol.seed,
    }
    several = protocol.trials > 1  # trials draw from all clips there are, up to one set for each
    try:
        windows = Windows(
            protocol.frames, protocol.stride, fps=protocol.fps, start=protocol.windows, hop=protocol.hop
        )  # fmt: skip
        # Generated clips have no stride: a generator that is sampled with one has another protocol.
        generated_windows = Windows(protocol.frames, start=protocol.generated_windows)
    except ValueError as error:
        raise UserError(str(error)) from error
    real_choice = Choice(
        windows, split=protocol.split, n=protocol.n_real * protocol.trials, fewer=protocol.fewer_real or several,
        **shared,
    )  # fmt: skip
    generated_choice = Choice(
        generated_windows, n=protocol.n_generated * protocol.trials, fewer=several, strict=True,
        **shared,
    )  # fmt: skip

    def open_side(flag: str, path: Path, choice: Choice) -> ClipSet:
        with naming_flags({"source": flag}):
            return open_set(path, choice, check=check)

    sides = (
        None if real is None else open_side("--real", real, real_choice),
        open_side("--generated", generated, generated_choice),
    )
    for side, least in zip(sides, (0 if protocol.fewer_real else protocol.n_real, protocol.n_generated), strict=True):
        if side is not None and len(side) < least:
            raise UserError(
                f"{side.name} gives {counted(len(side), 'clip')} where the protocol takes {least}: bring more"
            )
    _warn_of_rates(*sides)
    return sides


def _warn_of_rates(real: ClipSet | None, generated: ClipSet) -> None:
    """Warns where the clips of both sets are known to have different rates: the same motion takes other steps then."""
    rates = [side.facts["rate"] if side is not None else None for side in (real, generated)]
    if rates[0] and rates[1] and abs(rates[0] / rates[1] - 1) > SAME_RATE:
        logging.warning(
            "real clips are of %g frames per second, generated ones of %g (medians), so that distances are of speed "
            "too: take clips of one rate; --fps=%g takes real videos at that rate",
            *rates, rates[1],
        )  # fmt: skip


def result(scores: Sequence[Score], sides: Sides, protocol: ClipProtocol) -> dict[str, Any]:
    """The content of the JSON file: facts of both sets, and every score with its protocol."""
    sets = {
        name: {"path": side.name, "fingerprint": side.fingerprint, "clips": len(side), **side.facts}
        for name, side in zip(("real", "generated"), sides, strict=True)
        if side is not None
    }
    results = {
        score.name: {
            "value": score.value, "real_against_real": score.reference, **score.details,
            "protocol": score.protocol, "protocol_hash": protocol_hash(score.protocol),
        }
        for score in scores
    }  # fmt: skip
    return to_json({**sets, "unknown": protocol.unknown, "scores": results})


def report(scores: Sequence[Score], unknown: str = "") -> str:
    """The scores as a table for a terminal, followed by each warning once and every protocol by its hash."""
    lines = [score_table.table(scores)]
    protocols = {protocol_hash(score.protocol): to_json(score.protocol) for score in scores}
    shared = set.intersection(*({json.dumps(item) for item in p.items()} for p in protocols.values()))
    for digest, protocol in protocols.items():
        differing = {k: v for k, v in protocol.items() if len(protocols) == 1 or json.dumps((k, v)) not in shared}
        lines.append(f"protocol {digest}: {_on_one_line(differing)}")
    if shared and len(protocols) > 1:
        lines.append(f"and of all of them: {_on_one_line(dict(sorted(json.loads(item) for item in shared)))}")
    if unknown:
        lines.append(f"not known of this protocol: {unknown}")
    return "\n".join(lines)


def _on_one_line(value: Any) -> str:
    """Any JSON value on one line."""
    if isinstance(value, dict):
        return ", ".join(
            f"{k} ({_on_one_line(v)})" if isinstance(v, dict) else f"{k} {_on_one_line(v)}" for k, v in value.items()
        )
    return " x ".join(map(str, value)) if isinstance(value, list) else "-" if value in ("", None) else str(value)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses flags. Ends the program where argparse cannot, and raises UserError for a value that is out of range."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = command.Parser(prog="python -m vf.evaluate", description=about)
    add = parser.add_argument
    add("--real", type=Path, help="real clips: a folder, a video, an .npz or .npy, a prepared data set")
    add("--generated", type=Path, help="clips to be scored, likewise")
    add("--protocol", default="styleganv", help=f"one of {', '.join(PROTOCOLS)} (default: %(default)s)")
    add("--metrics", default="fvd", help=f"with commas: {', '.join(NAMES)} (default: %(default)s)")
    add("--out", type=Path, help="JSON file of the result")
    for name in networks.FAMILIES:
        add(f"--{name}", type=Path, help=f"weights of {name}, as python -m vf.pretrained.convert {name} writes them")
    add("--captions", type=Path, help="for clipsim: one caption a line, of each generated clip by name")
    add("--vocabulary", type=Path, help="for clipsim: bpe_simple_vocab_16e6.txt.gz, tokenizer.json, or their folder")
    add("--prefix", default="", help="for clipsim: before every caption (default: none)")
    add("--selfcheck", action="store_true", help="check --i3d by black against white clips, and nothing else")
    add("--other-weights", action="store_true", help="take weights of I3D that are not FVD's, under another name")
    add("--platform-precision", action="store_true", help="not strictly float32: faster on accelerators, other numbers")
    add("--bootstrap", type=int, default=0, help="resamples for a 95 %% interval (default: none)")
    add("--batch-size", type=int, default=16, help="clips at a time (default: %(default)s)")
    add("--skip-bad", action="store_true", help=f"end with status 0, not {LOST}, where files could not be read")
    add("--cache", type=Path, default=features.default_cache(), help="folder of features (default: %(default)s)")
    add("--no-cache", action="store_true", help="keep no features")
    group = parser.add_argument_group("fields of the protocol that override it")
    for field in dataclasses.fields(ClipProtocol):
        if field.name not in ("unknown", "quantisation", "crop"):
            _override(group, field)
    args = parser.parse_args(argv)
    if args.protocol not in PROTOCOLS:
        raise UserError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {args.protocol!r}")
    for name, least in (("bootstrap", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    if args.bootstrap and args.bootstrap < 20:
        raise UserError(f"--bootstrap needs 20 resamples or more for an interval, got {args.bootstrap}")
    needed = ("i3d",) if args.selfcheck else ("generated",)
    for name in needed:
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing; try --real=DIR --generated=DIR --protocol=styleganv --i3d=FILE")
    return args


_CHOICES: dict[str, Sequence[str]] = {
    "lineage": tuple(fvd.LINEAGES), "windows": STARTS, "generated_windows": STARTS, "subset": ("random", "first"),
    "resampler": ("swscale", "antialiased"),
}  # fmt: skip


def _override(group: Any, field: dataclasses.Field) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    if isinstance(field.default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
    else:
        group.add_argument(flag, type=type(field.default), choices=_CHOICES.get(field.name), default=None)


def protocol_of(args: argparse.Namespace) -> ClipProtocol:
    """The protocol that --protocol names, with the fields that flags change. UserError for numbers out of range."""
    changes = {
        field.name: value
        for field in dataclasses.fields(ClipProtocol)
        if (value := getattr(args, field.name, None)) is not None
    }
    protocol = dataclasses.replace(PROTOCOLS[args.protocol], **changes)
    for name, least in (("frames", 1), ("stride", 1), ("hop", 1), ("trials", 1), ("n_real", 0), ("n_generated", 0),
                        ("size", 0), ("fps", 0), ("seed", 0)):  # fmt: skip
        most = 2**63 - 1 if name == "seed" else 10**6
        if not least <= getattr(protocol, name) <= most:
            raise UserError(f"--{name.replace('_', '-')} must be {least} to {most}, got {getattr(protocol, name)}")
    return protocol


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Scores two sets, prints a table and writes `--out`; returns the content of that file. Raises UserError."""
    protocol = protocol_of(args)
    lineage = fvd.LINEAGES[protocol.lineage]
    names = tuple(dict.fromkeys(name.strip() for name in args.metrics.split(",") if name.strip()))
    if not names:
        raise UserError(f"--metrics must be of {', '.join(NAMES)}, got none")
    if unknown := next((name for name in names if name not in NAMES), None):
        raise UserError(f"unknown metric {unknown} in --metrics: {nearest(unknown, NAMES)}")
    if args.bootstrap and protocol.trials > 1:
        raise UserError(f"{protocol.trials} trials give a deviation already: take --trials=1 or no --bootstrap")
    if args.out:
        _check_writable(args.out)
    known = suite.metrics(lineage)
    needed = [known["fvd" if name == suite.SEGMENTS else name] for name in names]
    if args.real is None and (distances := [n for n, m in zip(names, needed, strict=True) if m.distance is not None]):
        raise UserError(f"--real is missing, and {distances[0]} compares with real clips; try --real=DIR")
    files = {name: getattr(args, name) for name in networks.FAMILIES if getattr(args, name)}
    built, others = networks.networks(
        [metric.network for metric in needed], files, lineage, protocol.frames,
        exact=not args.platform_precision, other=args.other_weights,
    )  # fmt: skip

    def score(check: bool) -> tuple[Sides, list[Score]]:
        sides = open_sides(args.real, args.generated, protocol, check=check)
        if "clipsim" in names:
            _check_captioned(sides[1])
        scorer = suite.Suite(
            names, built, protocol, args.batch_size, None if args.no_cache else args.cache, args.bootstrap, others,
            _captions(args, files) if "clipsim" in names else None,
        )  # fmt: skip
        try:
            return sides, scorer(*sides)
        except ValueError as error:
            raise UserError(f"these clips cannot be scored: {error}") from error

    try:
        sides, scores = score(check=False)
    except UnreadableFile as error:
        logging.warning("%s: %s; to leave out all such files, every clip is read first", error.name, error.reason)
        sides, scores = score(check=True)
    if sides[0] is not None:
        # The protocol of a number includes the content of the real clips, but not their path.
        real = {"fingerprint": sides[0].fingerprint, "too_short": sides[0].facts["too_short"]}
        scores = [dataclasses.replace(s, protocol={**s.protocol, "real": real}) for s in scores]
    output = result(scores, sides, protocol)
    if args.out:
        try:
            with replacing(args.out) as temporary:
                temporary.write_text(json.dumps(output, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(args.out, error) from error
    print(report(scores, protocol.unknown))
    return output


def _check_captioned(generated: ClipSet) -> None:
    """Raises UserError where captions, one for each clip by name, would not be those of the clips."""
    if bad := generated.facts["bad"]:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"clipsim has a caption for each generated clip, and {len(bad)} of them cannot be read (the first, {name}: "
            f"{reason}): repair them, or remove them and their captions"
        )
    if (available := generated.facts["clips_there"]) != len(generated):
        raise UserError(
            f"clipsim has a caption for each generated clip, and the protocol takes {len(generated)} of {available}: "
            "set --n-generated=0"
        )


def _check_writable(out: Path) -> None:
    """Raises UserError where `out` cannot be written, before hours of work."""
    if out.exists() and not out.is_file():
        raise UserError(f"--out={out} is no ordinary file: name a JSON file to be written")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {out} ({error.strerror}): {make_room(error)}choose another --out")


def _captions(args: argparse.Namespace, files: Mapping[str, Path]) -> suite.Captions:
    for name, expected in (("captions", "a text file with one caption a line"), ("vocabulary", "CLIP's")):
        if getattr(args, name) is None:
            raise UserError(f"clipsim needs --{name}=FILE: {expected}")
    return networks.captions(read_captions(args.captions), files, args.vocabulary, args.prefix)


def read_captions(captions: Path) -> list[str]:
    """The lines of a file of captions; blank ones at its end are left out, and others are told.

    A line ends at a line feed alone: letters at which Unicode lets a line end are parts of captions. Raises UserError
    where the file cannot be read.
    """
    try:
        content = captions.read_bytes()
        text = content.decode(encoding(content), "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{captions} cannot be read ({error}): expected one caption a line") from error
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if blank := [number for number, line in enumerate(lines, 1) if not line]:
        logging.warning(
            "%s of %s blank (the first, line %d): their clips are compared with an empty caption",
            counted(len(blank), "line"), captions, blank[0],
        )  # fmt: skip
    if others := [number for number, line in enumerate(lines, 1) if not is_utf8(line)]:
        logging.warning(
            "%s of %s not in UTF-8 (the first, line %d), and read as Windows-1252: save it as UTF-8 where letters are "
            "wrong",
            counted(len(others), "line"), captions, others[0],
        )  # fmt: skip
    return [readable(line) for line in lines]


@command.until_ended()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    logging.basicConfig(
        level=logging.WARNING, format="vf: %(message)s", force=True
    )  # force, since orbax configures logging
    command.leave_out_absent_tpu()
    try:
        args = arguments(argv)
        with naming_flags(FLAGS):
            if args.selfcheck:
                print(i3d.selfcheck(args.i3d, fvd.LINEAGES[protocol_of(args).lineage]))
            else:
                output = run(args)
                if lines := bad_files(output):
                    print("\n".join(lines), file=sys.stderr)
                    sys.exit(0 if args.skip_bad else LOST)
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)


def bad_files(output: Mapping[str, Any]) -> list[str]:
    """Lines on the files of both sides that could not be read, given the content of `--out`."""
    lines = []
    for side in (output[name] for name in ("real", "generated") if name in output):
        if bad := side["bad"]:
            lines.append(f"vf: left out of {side['path']}, since it could not be read ({len(bad)} in all):")
            lines += [f"  {name}: {reason}" for name, reason in bad.items()]
    return lines


if __name__ == "__main__":
    main()
