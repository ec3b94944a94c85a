"""Films made of known shots: textures that move, pictures that stand still or are black."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.synthetic import write

LOSSLESS = ("ffv1", {"level": "3"})
# What a film is made of, in order: (kind, frames).
PLAN = (
    ("moving", 24), ("moving", 12), ("black", 6), ("moving", 18), ("moving", 5), ("moving", 31), ("frozen", 30),
    ("moving", 13), ("still", 20), ("moving", 16), ("black", 1), ("moving", 15), ("moving", 40),
)  # fmt: skip


def texture(seed: int) -> np.ndarray:
    """A smooth random picture u8 [48 64 3], which can be rolled."""
    blocks = np.random.default_rng(seed).integers(20, 236, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(np.tile(blocks, (3, 3, 1))).resize((192, 144), Image.Resampling.BICUBIC))[
        48:96, 64:128
    ]


def film(seed: int, plan=PLAN) -> list[np.ndarray]:
    """The frames of a film; shots that move show their texture rolled by one pixel more in each."""
    frames = []
    for number, (kind, count) in enumerate(plan):
        picture = np.zeros((48, 64, 3), np.uint8) if kind == "black" else texture(100 * seed + number)
        frames += [np.roll(picture, k * (kind == "moving"), axis=1) for k in range(count)]
    return frames


def write_film(path: Path, seed: int = 0, plan=PLAN, codec=LOSSLESS) -> list[np.ndarray]:
    frames = film(seed, plan)
    write(path, *codec, times=range(len(frames)), paint=lambda k: frames[k])
    return frames
