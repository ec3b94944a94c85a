"""Makes the embeddings of a data set's frames while it is prepared, from the frames as they are stored.

So an embedding is that of what a model sees: a frame cropped, resized and encoded. The network comes from above
(`vf.scores.networks.frame_network`); this file knows arrays only. A clip's embeddings are kept beside its staged frames
until the data set is packed, so that a preparation that was stopped does not make them again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vf.activity import ACTIVITY
from vf.data.embeddings import Layout
from vf.data.encoding import decode

Apply = Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]]


class Embedder:
    """Makes embeddings of every frame of staged clips.

    Args:
        apply: the network: frames -> their embeddings. It is called with `batch` frames at a time, the last ones
            being black where a clip has no more, so that one program serves clips of all lengths.
        dim: numbers in one embedding.
        protocol: everything that changes an embedding, ready for JSON.
        batch: frames at a time.
        mirrored: whether to make the embeddings of the mirrored frames too, which takes twice the time and place.
    """

    def __init__(self, apply: Apply, dim: int, protocol: Mapping[str, Any], batch: int, mirrored: bool) -> None:
        self._apply, self._batch, self.protocol = apply, batch, dict(protocol)
        self.layout = Layout(dim, every=1, mirrored=mirrored)
        facts = json.dumps([self.protocol, mirrored], sort_keys=True)
        self._digest = hashlib.sha256(facts.encode()).hexdigest()[:12]

    def of(
        self, name: str, frames: Sequence[bytes | memoryview], encoding: str, size: int, staged: Path
    ) -> dict[str, np.ndarray]:
        """Embeddings of a staged clip, {field of its record: f32 [m d]}, m being its number of frames.

        Args:
            name: the clip, for the line on the progress.
            frames, encoding, size: its frames, as `vf.data.encoding.decode` takes them.
            staged: its staged file, beside which the embeddings are kept, and read again.

        Raises OSError where they cannot be written.
        """
        kept = staged.with_suffix(f".{self._digest}.npy")
        rows = _read(kept)
        if rows is None:
            rows = self._make(name, frames, encoding, size)
            temporary = kept.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, rows)
            temporary.replace(kept)
        return dict(zip(self.layout.fields, rows, strict=True))

    def _make(self, name: str, frames: Sequence[bytes | memoryview], encoding: str, size: int) -> np.ndarray:
        """Embeddings of the frames, and of the mirrored frames, f32 [1 or 2, m, d]."""
        rows = np.empty((len(self.layout.fields), len(frames), self.layout.dim), np.float32)
        with ACTIVITY.doing(f"embedding the frames of {name}") as task:
            for first in range(0, len(frames), self._batch):
                pictures = decode(frames[first : first + self._batch], encoding, size)
                count = len(pictures)
                pictures = np.pad(pictures, [(0, self._batch - count), (0, 0), (0, 0), (0, 0)])
                for k in range(len(rows)):
                    turned = pictures[:, :, ::-1] if k else pictures
                    rows[k, first : first + count] = self._apply(turned)[:count]
                task.describe(f"embedding the frames of {name}, {first + count:,} of {len(frames):,}")
        return rows


def _read(path: Path) -> np.ndarray | None:
    """The array in a file; None where there is none, or it is incomplete (a machine may have crashed)."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
