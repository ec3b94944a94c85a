"""Inspects a data set before training: prints statistics, and draws a picture of clips chosen at random.

    python -m vf.data.inspect --data=DIR --out=FILE.png [--split=train] [--clips=16] [--frames=8] [--seed=0]
    python -m vf.data.inspect --data=DIR --out=FILE.png --shots [--split=train]

DIR is what `vf.data.prepare` made, or a folder of videos as `vf.data.folder` reads it. Each row of the picture is one
clip from its first frame to its last. With `--shots` it shows the shots into which films were cut, of all splits and in
order of time, and all that were left out are listed.
"""

if __name__ == "__main__" and not __package__:  # `python vf/data/inspect.py` finds no package
    import sys

    print("vf: start this as `python -m vf.data.inspect`, in the folder of the code", file=sys.stderr)
    raise SystemExit(2)

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vf import command
from vf.activity import ACTIVITY
from vf.data.clips import Windows
from vf.data.decode import DAMAGE, error_text, printable
from vf.data.embeddings import Layout
from vf.data.folder import VideoFolder
from vf.data.listing import check_finished
from vf.data.manifest import read_manifest, remark_lines
from vf.data.pipeline import BadRecord
from vf.data.pixels import Pixels
from vf.data.shot_sheet import COLUMNS, captions, sheet, table
from vf.files import make_room
from vf.types import UserError, counted, naming_flags
from vf.video import GAP, enlarge, grid, write_png

SIZE = 128  # side of a frame in pixels, for data that is not prepared at a size
WIDTH = 1024  # small frames are enlarged by the whole factor that makes a row about this wide
MIN_WIDTH = 480  # of the picture, so that a caption has room
MARGIN, PAD, LINE, FONT = 12, 2, 20, 14  # pixels around all rows, between frames, of a caption's line, of its letters
BACKGROUND, INK, PALE_INK = (255, 255, 255), (0, 0, 0), (110, 110, 110)
TOP = 3  # how many of the most frequent, and of the rarest, are listed
FRAMES = Windows(1, start="all")  # every frame is a record, so that every length is known


class Clip(NamedTuple):
    """The facts of a clip that are known without decoding it."""

    name: str
    label: str  # name of its class; "" for none
    frames: int
    fps: float  # 0 where unknown


class Collection(NamedTuple):
    """A data set of either kind."""

    title: str
    clips: list[Clip]  # those from which rows are drawn
    read: Callable[[int, np.ndarray], np.ndarray]
    """(k, ascending frame numbers [n]) -> these frames of `clips[k]`, u8 [n size size 3]. Raises BadRecord."""
    splits: dict[str, list[Clip]]
    classes: tuple[str, ...]
    remarks: dict[str, list[tuple[str, str]]]
    """{kind of remark, such as "rejected": [(clip, reason)]}"""
    shots: Mapping[str, Any]
    """The part `shots` of the manifest; {} for data without."""


class Row(NamedTuple):
    """A clip and some of its frames, u8 [n size size 3]; None and `why` where they cannot be read."""

    clip: Clip
    frames: np.ndarray | None
    why: str = ""


@ACTIVITY.doing("opening the data")
def open_collection(root: Path, split: str | None, every: bool = False) -> Collection:
    """Opens the data set in `root`.

    `split` is the split of a prepared data set from which rows are drawn, by default train, or all splits where `every`
    is set. Raises UserError where there is no data set, or no such split.
    """
    try:
        if (root / "manifest.json").exists():
            return _prepared(root, split or ("" if every else "train"))
        if split:
            check_finished(root)
            raise UserError(f"{root} is no prepared data set, and other folders have no splits: name none", "split")
        return _folder(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error_text(error)}") from error


def _prepared(root: Path, split: str) -> Collection:
    from vf.data.prepared import Prepared  # TFDS takes a second to import

    manifest = read_manifest(root)
    split = split or "+".join(manifest["splits"])
    source, splits = Prepared(root, windows=FRAMES, split=split), {}
    for name, facts in manifest["splits"].items():
        index = facts["index"]
        labels = [manifest["classes"][k] if manifest["classes"] else "" for k in index["label"]]
        splits[name] = list(map(Clip, index["name"], labels, index["frames"], index["fps"]))
    clips = [clip for part in split.split("+") for clip in splits[part]]
    ends = np.cumsum([clip.frames for clip in clips])

    def read(k: int, frames: np.ndarray) -> np.ndarray:
        records = ends[k] - clips[k].frames + frames
        return np.concatenate([source.clip(record, None)["video"] for record in records.tolist()])

    remarks = {
        "rejected": list(manifest["rejected"].items()),
        "unusual": [(name, note) for name, notes in manifest["notes"].items() for note in notes],
        "unlisted": list(manifest["unlisted"].items()),
    }
    about = manifest["parameters"]
    preparation = f"{about['dataset']}, prepared at {source.size} x {source.size}, {about['encoding']}"
    title = f"{root}: {preparation}, fingerprint {manifest['fingerprint']}"
    if manifest["embeddings"]["dim"]:
        title += f"\n  embeddings: {Layout(**manifest['embeddings'])}"
    return Collection(title, clips, read, splits, source.class_names, remarks, manifest["shots"])


def _folder(root: Path) -> Collection:
    source = VideoFolder(root, windows=FRAMES, size=SIZE)
    names, videos = [printable(name) for name in source.names], source.videos
    clips = list(map(Clip, names, source.labels, map(len, videos), source.rates))

    def read(k: int, frames: np.ndarray) -> np.ndarray:
        # All frames in one call: a single frame that its encoder left out would be taken for damage.
        try:
            return videos[k].clip(frames, Pixels(SIZE))
        except DAMAGE as error:
            raise BadRecord(f"{names[k]}: {error_text(error)}") from error

    rejected = [(printable(name), why) for name, why in source.rejected.items()]
    unlisted = [(printable(name), why) for name, why in source.unlisted.items()]
    title = f"{root}: a folder of videos, not prepared, seen at {SIZE} x {SIZE}"
    return Collection(
        title, clips, read, {"all videos": clips}, source.class_names, {"rejected": rejected, "unlisted": unlisted}, {}
    )


def spread(length: int, count: int) -> np.ndarray:
    """`count` frame numbers, int64, spread evenly over 0 ... `length` - 1; some repeat where there are fewer frames."""
    return np.arange(count) * (length - 1) // max(1, count - 1)


@ACTIVITY.doing("reading the clips of the picture")
def draw(data: Collection, clips: int, frames: int, seed: int) -> list[Row]:
    """Rows of `clips` different clips (or all there are), chosen by `seed`, with `frames` frames of each.

    A smaller number of clips gives the first rows of a larger one. Raises UserError where none of them can be read.
    """
    return read_rows(data, np.random.default_rng(seed).permutation(len(data.clips))[:clips].tolist(), frames)


@ACTIVITY.doing("reading the shots of the picture")
def draw_shots(data: Collection) -> list[Row]:
    """The first, the middle and the last frame of every shot of `data`, in order of time.

    Raises UserError where the data has no shots, or none of them can be read.
    """
    numbers = {clip.name: k for k, clip in enumerate(data.clips)}
    return read_rows(data, [numbers[name] for name in captions(data.shots) if name in numbers], 3)


def read_rows(data: Collection, numbers: Iterable[int], frames: int) -> list[Row]:
    """Rows of these clips, with `frames` frames of each. Raises UserError where none of them can be read."""
    rows = []
    for k in numbers:
        clip = data.clips[k]
        try:
            rows.append(Row(clip, data.read(k, spread(clip.frames, frames))))
        except BadRecord as error:
            rows.append(Row(clip, None, printable(" ".join(str(error).split()))))
    if not any(row.frames is not None for row in rows):
        raise UserError(f"of {counted(len(rows), 'clip')} drawn none can be read, for example {rows[0].why}")
    return rows


def report(data: Collection, rows: Sequence[Row]) -> str:
    """Statistics of all splits and of the pixels of `rows`, for the terminal."""
    lines = [data.title]
    for split, clips in data.splits.items():
        lines += _split_lines(split, clips, data.classes)
    pixels = np.stack([row.frames for row in rows if row.frames is not None])
    mean, std = (" ".join(f"{x:.1f}" for x in f(axis=(0, 1, 2, 3))) for f in (pixels.mean, pixels.std))
    seen = f"{counted(len(pixels), 'clip')} drawn, {counted(pixels.shape[1], 'frame')} each"
    lines += [
        f"pixels of {seen} (red, green, blue in 0..255)",
        f"  mean {mean}, standard deviation {std}",
    ]
    for what, remarks in data.remarks.items():
        lines += remark_lines(what, remarks, "file" if what == "unlisted" else "clip")
    return "\n".join(lines)


def about_sheet(out: Path, rows: Sequence[Row], are_shots: bool = False) -> str:
    """What the picture `out` shows, for the terminal: how many clips, and which rows are grey for what reason."""
    kind, place = ("shot", f"{COLUMNS} a row") if are_shots else ("clip", "one a row")
    grey = [f"  {'shot' if are_shots else 'row'} {k}: {row.why}" for k, row in enumerate(rows, 1) if row.frames is None]
    end = f", grey where a {kind} cannot be read:" if grey else ""
    return "\n".join([f"{out}: {counted(len(rows), kind)}, {place}{end}", *grey])


def _split_lines(split: str, clips: Sequence[Clip], classes: Sequence[str]) -> list[str]:
    lengths = [clip.frames for clip in clips]
    timed = [clip for clip in clips if clip.fps]
    rates = Counter(f"{clip.fps:g} fps" if clip.fps else "unknown" for clip in clips).most_common()
    time = f", {timedelta(seconds=round(sum(clip.frames / clip.fps for clip in timed)))} (h:m:s)" if timed else ""
    partly = f" (of {counted(len(timed), 'clip')})" if timed and len(timed) < len(clips) else ""
    lines = [
        f"{split}: {counted(len(clips), 'clip')}, {counted(sum(lengths), 'frame')}{time}{partly}",
        f"  length: {min(lengths):,} to {counted(max(lengths), 'frame')}, median {np.median(lengths):,g}",
        f"  rate: {_ranking(rates)}",
    ]
    if classes:
        counts = Counter(dict.fromkeys(classes, 0))  # includes classes without a clip
        counts.update(clip.label for clip in clips)
        lines.append(f"  classes: {len(classes)}, clips of each: {_ranking(counts.most_common())}")
    return lines


def _ranking(counts: list[tuple[str, int]]) -> str:
    """Names with their counts, most frequent first; only the first and the last of many."""
    entries = [f"{name} ({count:,})" for name, count in counts]
    return ", ".join(entries if len(entries) <= 2 * TOP else [*entries[:TOP], "...", *entries[-TOP:]])


def contact_sheet(rows: Sequence[Row]) -> np.ndarray:
    """Picture u8 [H W 3] with a row of frames for each clip, below its name, class and length.

    The row of a clip that cannot be read is grey. At least one clip must be readable.
    """
    shape = next(row.frames.shape for row in rows if row.frames is not None)
    scale = max(1, WIDTH // (shape[0] * shape[1]))
    side, pitch = scale * shape[1], scale * shape[1] + LINE + MARGIN
    width = max(MIN_WIDTH, shape[0] * (side + PAD) - PAD)
    sheet = Image.new("RGB", (width + 2 * MARGIN, len(rows) * pitch + MARGIN), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for k, (clip, frames, why) in enumerate(rows):
        top = k * pitch + MARGIN
        about = shorten("cannot be read" if why else clip.label, width // 2, font.getlength)
        about = f"{about}   {counted(clip.frames, 'frame')}".strip()
        room = width - font.getlength(about) - MARGIN
        pen.text((MARGIN, top), shorten(clip.name, room, font.getlength), INK, font)
        pen.text((MARGIN + width, top), about, PALE_INK, font, anchor="ra")
        shown = np.full(shape, GAP, np.uint8) if frames is None else frames
        strip = grid(enlarge(shown, scale)[:, None], len(shown), PAD)[0]
        sheet.paste(Image.fromarray(strip), (MARGIN, top + LINE))
    return np.asarray(sheet)


def shorten(text: str, width: float, length: Callable[[str], float]) -> str:
    """`text` on one line, shortened to `width` by an ellipsis in its middle; `length` measures text."""
    text = " ".join(text.split())
    if length(text) <= width:
        return text
    cut = (f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}" for kept in range(len(text) - 1, 0, -1))
    return next((short for short in cut if length(short) <= width), "…")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses flags. Ends the program where argparse cannot; raises UserError where a number is out of range, or the
    picture has another name than a PNG."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = command.Parser(prog="python -m vf.data.inspect", description=about)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set, or a folder of videos")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG file")
    parser.add_argument(
        "--split", help="of a prepared data set: which clips to draw from (default: train; --shots: all)"
    )
    parser.add_argument("--shots", action="store_true", help="draw all shots into which films were cut")
    parser.add_argument("--clips", type=int, default=16, help="rows of the picture (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="of each clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the clips (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out={args.out} is to be a PNG file: name it *.png")
    for name, least in (("clips", 1), ("frames", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


@command.until_ended()
def main(argv: list[str] | None = None) -> None:
    """The command."""
    logging.basicConfig(level=logging.WARNING)
    try:
        args = arguments(argv)
        with naming_flags({"source": "--data", "split": "--split", "shots": "--shots"}):
            data = open_collection(args.data, args.split, every=args.shots)
            rows = draw_shots(data) if args.shots else draw(data, args.clips, args.frames, args.seed)
        print(report(data, rows), flush=True)
        if args.shots:
            print(table(data.shots), flush=True)
            said = captions(data.shots)
            picture = sheet([(said[row.clip.name], row.frames) for row in rows])
        else:
            picture = contact_sheet(rows)
        try:
            write_png(args.out, picture)
        except OSError as error:
            raise UserError(
                f"cannot write {args.out}: {error_text(error)}; {make_room(error)}choose another --out"
            ) from error
    except UserError as error:
        print(f"vf: {error}", file=sys.stderr)
        sys.exit(2)
    print(about_sheet(args.out, rows, args.shots))


if __name__ == "__main__":
    main()
