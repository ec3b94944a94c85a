"""Draws the shots of a prepared data set in order of time, for `python -m vf.data.inspect --shots`.

Each shot has its first, its middle and its last frame, so that a cut within it, or one that is none, can be seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vf.data.shots import clock_time, shot_name
from vf.types import UserError, counted
from vf.video import GAP, enlarge, grid

COLUMNS = 4
CELL = 288  # pixels; small frames are enlarged by the whole factor that makes three of them about as wide
MARGIN, PAD, LINE, FONT = 12, 2, 16, 12  # pixels around cells, between frames, of a caption's line, of its letters
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)


def captions(shots: Mapping[str, Any]) -> dict[str, str]:
    """{name of a clip: when its shot begins, how long it is, its split} of the part `shots` of a manifest, in order.

    Raises UserError where the data has no shots.
    """
    if not shots:
        raise UserError(
            "the data has no shots: python -m vf.data.prepare folder --shots cuts videos into them", "shots"
        )
    found = {}
    for video, facts in shots.items():
        for shot in facts["shots"]:
            if "split" in shot:
                seconds = shot["end"] - shot["start"]
                about = f"{clock_time(shot['start'])}  {seconds:.2f} s  {shot['split']}"
                found[shot_name(video, shot["first"])] = about
    return found


def table(shots: Mapping[str, Any]) -> str:
    """Every shot, for the terminal: when it begins and ends, its frames, and its split or why it is left out."""
    lines = []
    for video, facts in shots.items():
        lines.append(f"{video}: {counted(facts['frames'], 'frame')}, {facts['fps']:g} fps")
        for shot in facts["shots"]:
            times = f"{clock_time(shot['start']):>10} {clock_time(shot['end']):>10} {shot['frames']:>6,}"
            lines.append(f"{times}  {shot.get('split') or 'left out: ' + shot['left_out']}")
    return "\n".join(lines)


def sheet(shots: Sequence[tuple[str, np.ndarray | None]]) -> np.ndarray:
    """Picture u8 [H W 3] of shots, (caption, frames u8 [n size size 3]), in rows of COLUMNS.

    A shot without frames is grey. At least one must have some.
    """
    shape = next(frames.shape for _, frames in shots if frames is not None)
    scale = max(1, CELL // (shape[0] * shape[1]))
    width = shape[0] * (scale * shape[1] + PAD) - PAD
    across, down = width + MARGIN, scale * shape[1] + LINE + MARGIN
    rows = -(-len(shots) // COLUMNS)
    size = (min(COLUMNS, len(shots)) * across + MARGIN, rows * down + MARGIN)
    image = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    for k, (caption, frames) in enumerate(shots):
        left, top = MARGIN + k % COLUMNS * across, MARGIN + k // COLUMNS * down
        pen.text((left, top), caption, INK, font)
        shown = np.full(shape, GAP, np.uint8) if frames is None else frames
        strip = grid(enlarge(shown, scale)[:, None], len(shown), PAD)[0]
        image.paste(Image.fromarray(strip), (left, top + LINE))
    return np.asarray(image)
