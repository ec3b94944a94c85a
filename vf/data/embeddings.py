"""Embeddings of single frames in a prepared data set: the file that they come from, and which one belongs to a frame.

Context `embedding` conditions the generators on a vector that a network such as CLIP's image encoder makes of a clip's
clean base frame. Any frame of a video may be the base frame of a window, so there is a vector for each frame, or for
every k-th to save memory; and where clips are mirrored at random, another one of each of these frames mirrored.

The file, an .npz for `python -m vf.data.prepare --embeddings=FILE`, holds

    name [n]             names of clips, as in the manifest: paths relative to the source
    every []             k: frames 0, k, 2k, ... of each clip have a vector, which is ceil(frames / k) of them
    frames [n]           how many frames each clip has
    embedding [m d]      the vectors of the first clip, in order, then those of the second, ...
    mirrored [m d]       of the same frames mirrored left to right; may be left out

A file without `every` and `frames` has one vector for each clip, m = n. It belongs to the base frame of the clip's
middle window, so that only this window can be read with it.
"""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vf.types import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which embeddings a data set has; a part of its manifest.

    Attributes:
        dim: numbers in one embedding; 0 for a data set without embeddings.
        every: frames from one that has an embedding to the next; 0 where a whole video has one embedding.
        mirrored: whether there are also embeddings of the mirrored frames.
    """

    dim: int = 0
    every: int = 0
    mirrored: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of a record, and of a clip, that hold embeddings."""
        return ("embedding", "mirrored_embedding")[: (self.dim > 0) + self.mirrored]

    def count(self, frames: int) -> int:
        """Number of embeddings of a video of `frames` frames."""
        return -(-frames // self.every) if self.every else 1

    def nearest(self, frame: int, frames: int) -> int:
        """Index of the embedding that is used for `frame` of a video of `frames` frames.

        It is that of the nearest frame that has one; of two that are equally near, the later one.
        """
        if not self.every:
            return 0
        return min((2 * frame + self.every) // (2 * self.every), self.count(frames) - 1)

    def __str__(self) -> str:
        """A description for the terminal."""
        share = {0: "one a video", 1: "one a frame"}.get(self.every, f"one every {self.every} frames")
        return f"{share}, {self.dim} numbers each" + ", and those of the mirrored frames" * self.mirrored


class Embeddings:
    """The embeddings in a file.

    Args:
        file: see above. Its arrays stay in memory in the file's precision.

    Raises:
        UserError: the file cannot be read, or its arrays do not fit together.
    """

    def __init__(self, file: str | Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as data:
                arrays = dict(data)
            self._read(arrays)
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{file} should hold `name` [n], `every` [], `frames` [n] and `embedding` [m d], m being "
                f"the sum of ceil(frames / every), or `name` [n] and `embedding` [n d] alone; either with `mirrored` "
                f"like `embedding` or without: {error}",
                "embeddings",
            ) from error

    def _read(self, arrays: dict[str, Any]) -> None:
        names, rows, mirrored = arrays["name"], arrays["embedding"], arrays.get("mirrored")
        if (names.ndim, rows.ndim) != (1, 2) or not rows.shape[1]:
            raise ValueError(f"they have shapes {list(names.shape)} and {list(rows.shape)}")
        if mirrored is not None and mirrored.shape != rows.shape:
            raise ValueError(f"embedding has shape {list(rows.shape)}, and mirrored {list(mirrored.shape)}")
        self._rows = [rows] if mirrored is None else [rows, mirrored]
        if bad := [array.dtype for array in self._rows if array.dtype.kind not in "fiu"]:
            raise ValueError(f"embeddings are numbers, and these are {bad[0]}")
        every, frames = 0, np.zeros(len(names), int)
        if ("every" in arrays) != ("frames" in arrays):
            raise ValueError("`every` and `frames` go together, and one of them is missing")
        if "every" in arrays:
            step, frames = arrays["every"], arrays["frames"]
            if step.shape or step.dtype.kind not in "iu" or step < 1:
                raise ValueError(f"every should be one integer, at least 1, not {step.tolist()}")
            every = int(step)
            if frames.shape != names.shape or frames.dtype.kind not in "iu":
                raise ValueError(f"frames should be {len(names)} integers, not {frames.dtype} {list(frames.shape)}")
        self.layout = Layout(rows.shape[1], every, mirrored is not None)
        ends = np.cumsum([self.layout.count(count) for count in frames.tolist()], dtype=int)
        if (total := int(ends[-1]) if len(ends) else 0) != len(rows):
            raise ValueError(f"{len(names)} names need {total} embeddings, and there are {len(rows)}")
        self._frames = dict(zip(names.tolist(), frames.tolist(), strict=True))
        self._ends = dict(zip(names.tolist(), ends.tolist(), strict=True))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` without an embedding in the file."""
        return [name for name in names if name not in self._ends]

    def frames(self, name: str) -> int | None:
        """Number of frames of a clip according to the file; None where the file has one embedding for each clip."""
        return self._frames[name] if self.layout.every else None

    def of(self, name: str) -> dict[str, np.ndarray]:
        """Embeddings of a clip, {field of its record: [m d]}, m = `layout.count` of its frames."""
        end = self._ends[name]
        first = end - self.layout.count(self._frames[name])
        return {field: rows[first:end] for field, rows in zip(self.layout.fields, self._rows, strict=True)}
