"""The embedded data set: one coloured sprite that moves over a plain background, drawn on the fly.

Content (shape, colour, background) is constant over a clip; motion is a straight path at constant speed that bounces
off the walls. Both are known in closed form, so that samples can be scored without a network (`vf/scores/sprites.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from vf.data.share import Share

SHAPES = ("square", "triangle", "cross")
COLOURS = {  # RGB 0..255, far apart from each other and from every background
    "red": (230, 60, 60),
    "green": (70, 200, 90),
    "blue": (70, 120, 240),
    "yellow": (240, 220, 70),
    "magenta": (225, 80, 220),
    "cyan": (80, 220, 225),
}
BACKGROUNDS = {"black": (20, 20, 25), "grey": (105, 105, 110), "white": (240, 240, 240)}
_COLOURS, _BACKGROUNDS = np.array(list(COLOURS.values())), np.array(list(BACKGROUNDS.values()))
MARGIN = 0.28  # the sprite's centre stays this far from the walls, as a share of the frame's side
RADIUS = 0.28  # half the sprite's extent, as a share of the frame's side
DIRECTIONS = 8
WAYS = ("right", "down", "left", "up")  # of a caption: quarters of the circle, each two of the sectors above
SPEED = (0.03, 0.08)  # shares of the frame's side per frame


@dataclasses.dataclass(frozen=True)
class Factors:
    """What a clip shows. Positions are pixel coordinates of the sprite's centre, float64 [f 2] as (y, x)."""

    shape: int
    colour: int
    background: int
    path: np.ndarray
    direction: int  # of the velocity before it bounces, one of DIRECTIONS equal sectors

    @property
    def way(self) -> int:
        """The quarter of the circle to which it moves at the base frame of the paper, an index into WAYS."""
        return (self.direction + 1) // 2 % len(WAYS)

    @property
    def content(self) -> str:
        """What does not change over the clip, in words, such as "red square over white"."""
        return f"{list(COLOURS)[self.colour]} {SHAPES[self.shape]} over {list(BACKGROUNDS)[self.background]}"

    @property
    def caption(self) -> str:
        """The clip in words, such as "a red square moves left over white"."""
        what, where = self.content.split(" over ")
        return f"a {what} moves {WAYS[self.way]} over {where}"


def alpha_mask(shape: int, centre: np.ndarray, size: int) -> np.ndarray:
    """Antialiased coverage of a sprite in [0, 1], float64 [f size size]; `centre` [f 2] in pixels.

    Coverage is 0.5 - distance to the outline (signed, in pixels), clipped: the share of a pixel inside a straight edge.
    """
    grid = np.arange(size) + 0.5
    y = grid[None, :, None] - centre[:, 0, None, None]
    x = grid[None, None, :] - centre[:, 1, None, None]
    r = RADIUS * size
    if SHAPES[shape] == "square":
        distance = np.maximum(abs(x), abs(y)) - 0.85 * r
    elif SHAPES[shape] == "triangle":  # upward, apex at -r, foot at +r * 0.8
        distance = np.maximum(y - 0.8 * r, (2 * abs(x) - (y + r)) / np.sqrt(5))
    else:
        arm = 0.36 * r
        upright = np.maximum(abs(x) - arm, abs(y) - r)
        distance = np.minimum(upright, np.maximum(abs(y) - arm, abs(x) - r))
    return np.clip(0.5 - distance, 0, 1)


def bounce(position: np.ndarray, size: int) -> np.ndarray:
    """Reflects coordinates of a straight line (any real numbers, in pixels) into the space between the walls."""
    low, width = MARGIN * size, (1 - 2 * MARGIN) * size
    return low + width - abs((position - low) % (2 * width) - width)


def draw_factors(rng: np.random.Generator, frames: int, size: int, stride: int = 1) -> Factors:
    """Factors drawn uniformly: shape, colour, background, position at the middle frame, direction, speed."""
    shape, colour, background = (int(rng.integers(n)) for n in (len(SHAPES), len(COLOURS), len(BACKGROUNDS)))
    start = rng.uniform(MARGIN, 1 - MARGIN, 2) * size
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*SPEED) * size * stride
    time = np.arange(frames)[:, None] - frames // 2 + 1
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    direction = int(angle / (2 * np.pi) * DIRECTIONS)
    return Factors(shape, colour, background, bounce(start + time * velocity, size), direction)


def render(factors: Factors, size: int) -> np.ndarray:
    """The clip that shows `factors`, uint8 [f size size 3]."""
    mask = alpha_mask(factors.shape, factors.path, size)[..., None]
    colour, background = _COLOURS[factors.colour], _BACKGROUNDS[factors.background]
    return np.round(mask * colour + (1 - mask) * background).astype(np.uint8)


CONTENTS = [f"{colour} {shape} over {where}" for shape in SHAPES for colour in COLOURS for where in BACKGROUNDS]


class Sprites:
    """A source of `length` clips, each a function of (split, record) alone; a `vf.data.pipeline.Source`.

    A clip has `video` u8 [f size size 3]; `label` i32 [], a combination of colour and shape such as "red square";
    `motion` i32 [], the sector of its direction; `embedding` f32 [14], the base frame's factors (one-hot shape, colour,
    background; position (y, x) in [-1, 1]), in place of an ideal image encoder's output; `mirrored_embedding`
    f32 [14], that of the mirrored base frame, in which x has the other sign; and with `tokenize` also `tokens` i32
    [t], those of its caption.

    Args:
        frames: frames per clip.
        size: height and width in pixels.
        base_frame: index of the frame to which the embedding belongs.
        split: "train" or "test", which share no clip.
        length: number of clips.
        video: whether clips have their pixels.
        tokenize: caption -> tokens; None reads clips without.
        share: show only the contents of this part, chosen by their words; None shows all.
    """

    class_names = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
    num_classes = len(class_names)
    embedding_dim = len(SHAPES) + len(COLOURS) + len(BACKGROUNDS) + 2
    fps = 0.0  # they move by so much a frame

    def __init__(
        self, *, frames: int, size: int, base_frame: int, split: str = "train", length: int = 100_000,
        tokenize: Callable[[str], Int[np.ndarray, " t"]] | None = None, share: Share | None = None, video: bool = True,
    ) -> None:  # fmt: skip
        self._video = video
        self.frames, self.size, self.base_frame, self.split, self.length = frames, size, base_frame, split, length
        self._salt, self._tokenize, self._share = {"train": 1, "test": 2}[split], tokenize, share
        self._shown = set(CONTENTS) if share is None else {CONTENTS[k] for k in np.flatnonzero(share.select(CONTENTS))}

    def __len__(self) -> int:
        return self.length

    def describe(self) -> dict[str, Any]:
        """Split and sizes, ready for JSON: a part of the protocol of every score."""
        return {
            "source": "sprites", "split": self.split, "clips": self.length, "frames": self.frames, "size": self.size,
            **(self._share.describe() if self._share else {}),
        }  # fmt: skip

    def factors(self, record: int) -> Factors:
        """The factors of clip `record`."""
        rng = np.random.default_rng((self._salt, record))
        while (factors := draw_factors(rng, self.frames, self.size)).content not in self._shown:
            pass
        return factors

    def clip(self, record: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Clip `record`; `rng` is unused, since a record has exactly one window."""
        factors = self.factors(record)
        position = 2 * factors.path[self.base_frame] / self.size - 1
        one_hot = [
            np.arange(n) == k
            for n, k in (
                (len(SHAPES), factors.shape),
                (len(COLOURS), factors.colour),
                (len(BACKGROUNDS), factors.background),
            )
        ]
        extra = {} if self._tokenize is None else {"tokens": self._tokenize(factors.caption)}
        if self._video:
            extra["video"] = render(factors, self.size)
        return extra | {
            "label": np.array(factors.shape * len(COLOURS) + factors.colour, np.int32),
            "motion": np.array(factors.direction, np.int32),
            "embedding": np.concatenate([*one_hot, position]).astype(np.float32),
            "mirrored_embedding": np.concatenate([*one_hot, position * (1, -1)]).astype(np.float32),
        }
