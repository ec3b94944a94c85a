"""A data set that `vf.data.prepare` made, as a source of clips. A clip takes two reads and no video decoding."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from vf.data.clips import Windows
from vf.data.embeddings import Layout
from vf.data.encoding import decode
from vf.data.manifest import read_manifest
from vf.data.pipeline import BadRecord
from vf.data.records import SEGMENT, Segment
from vf.data.share import Share
from vf.types import UserError, counted


class Prepared:
    """Clips of a prepared data set; a `vf.data.pipeline.Source`.

    Args:
        root: the folder that holds `manifest.json`.
        windows: which frames make a clip.
        split: name of a split, or several joined by `+`, such as `train+test`.
        base_frame: index in the clip, 0 ... windows.frames - 1, of the base frame, whose embedding is read with the
            clip; None reads clips without embeddings.
        share: use the clips of this part only; None uses all.
        video: whether clips have their pixels; without, embeddings are read alone, and no frame is decoded.
        tokenize: caption -> tokens; None reads clips without.

    Raises:
        UserError: there is no prepared data set, no such split, or no clip that is long enough; the base frame lies
            outside the clip; or there is one embedding per video, and windows other than the middle one are read.
    """

    rejected: dict[str, str]
    """{name: reason} of the clips that are too short."""

    def __init__(
        self,
        root: str | Path,
        *,
        windows: Windows,
        split: str = "train",
        base_frame: int | None = None,
        share: Share | None = None,
        video: bool = True,
        tokenize: Callable[[str], Int[np.ndarray, " t"]] | None = None,
    ) -> None:
        self._video, self._tokenize = video, tokenize
        self.root, self.windows, self.split, self.share = Path(root), windows, split, share
        manifest = read_manifest(self.root)
        self.parameters = manifest["parameters"]
        self.size, self._encoding = self.parameters["size"], self.parameters["encoding"]
        self.class_names = tuple(manifest["classes"])
        self.num_classes = len(self.class_names)
        if base_frame is not None and not 0 <= base_frame < windows.frames:
            raise UserError(f"the base frame must be one of 0..{windows.frames - 1}, got {base_frame}")
        self._base_frame = base_frame
        self._embeddings = Layout() if base_frame is None else Layout(**manifest["embeddings"])
        self.embedding_dim = self._embeddings.dim
        if self.embedding_dim and not self._embeddings.every and windows.start != "centre":
            raise UserError(
                f"{self.root} has one embedding for each video, which is that of its middle window, and windows start "
                f"at {windows.start}: take windows at the centre, or prepare the videos into another folder with "
                "embeddings of every frame, or of every k-th",
                "windows",
            )
        self._folder, self._fingerprint = self.root / manifest["builder"], manifest["fingerprint"]
        names, frames, rates, labels, parts, numbers, firsts = [], [], [], [], [], [], []
        self._parts = split.split("+")
        for part, name in enumerate(self._parts):
            if name not in manifest["splits"]:
                known = ", ".join(manifest["splits"])
                raise UserError(f"{self.root} has no split {name!r}: known are {known}", "split")
            index = manifest["splits"][name]["index"]
            lengths = np.array(index["frames"], np.int64)
            segments = -(-lengths // SEGMENT)
            names += index["name"]
            frames.append(lengths)
            rates.append(np.array(index["fps"], np.float64))
            labels.append(np.array(index["label"], np.int32))
            parts.append(np.full(len(lengths), part))
            numbers.append(np.arange(len(lengths)))
            firsts.append(np.cumsum(segments) - segments)
        selected = np.arange(len(names)) if share is None else np.flatnonzero(share.select(names))
        self.names = names = [names[k] for k in selected]
        self._frames, self._rates, self._labels, self._part, self._number, self._first = (
            np.concatenate(column)[selected] for column in (frames, rates, labels, parts, numbers, firsts)
        )
        records = self._count()
        self._ends = np.cumsum(records)  # of each clip's records
        short = np.flatnonzero(records == 0)
        self.rejected = {names[k]: f"has {counted(int(self._frames[k]), 'frame')}, too few" for k in short}
        if self.rejected and len(self):
            logging.warning("%d of %d clips of %s (%s) are too short", len(short), len(names), self.root, split)
        if not len(self):
            raise UserError(
                f"of {counted(len(names), 'clip')} of {self.root} ({split}) none has the "
                f"{windows.need(float(self._rates[0]))} frames that {windows.frames} with stride {windows.stride} "
                "need; take fewer or a smaller stride",
                "frames",
            )

    @property
    def can_flip(self) -> bool:
        """Whether clips may be mirrored: they are read without embeddings, or have mirrored ones too."""
        return self._embeddings.mirrored or not self._embeddings.dim

    def _count(self) -> np.ndarray:
        """Number of records of each clip, int64 [clips]; computed once for all clips of equal length and rate."""
        kinds, kind = np.unique(np.stack([self._frames, self._rates], 1), axis=0, return_inverse=True)
        try:
            counts = [self.windows.records(int(length), float(rate)) for length, rate in kinds]
        except ValueError as error:
            raise UserError(f"{self.root}: {error}; set fps to 0 to go by stride", "fps") from error
        return np.array(counts, np.int64)[kind.reshape(-1)]

    @cached_property
    def _sources(self) -> list[Any]:
        builder = tfds.builder_from_directory(self._folder)
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        return [builder.as_data_source(split=part, deserialize_method=method) for part in self._parts]

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name != "_sources"
        }  # every process opens the files anew

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fps(self) -> float:
        """Frames per second of a clip, the median over the videos."""
        return self.windows.rate(float(np.median(self._rates)))

    def describe(self) -> dict[str, Any]:
        """Data set, selection and pixel processing, ready for JSON: a part of the protocol of every score."""
        return {
            "source": "prepared",
            "root": str(self.root),
            "fingerprint": self._fingerprint,
            "split": self.split,
            **(self.share.describe() if self.share else {}),
            "videos": len(self.names),
            "records": len(self),
            "rejected": len(self.rejected),
            "classes": self.num_classes,
            **vars(self.windows),
            **{name: self.parameters[name] for name in ("dataset", "size", "encoding", "quality", "crop", "resize")},
        }

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """`video` u8 [f size size 3] and `label` i32 [] of a random window, or of the middle one where `rng` is None.

        Where embeddings are read, also `embedding` f32 [d] and, where the data has it, `mirrored_embedding` f32 [d] of
        the base frame, or of the frame nearest to it that has one; and with `tokenize`, `tokens` i32 [t] of the video's
        caption. Raises BadRecord where the data is damaged.
        """
        k = int(np.searchsorted(self._ends, record, side="right"))
        within = record - (int(self._ends[k - 1]) if k else 0)
        indices = self.windows.indices(int(self._frames[k]), float(self._rates[k]), within, rng)
        shown = indices if self._video or self._base_frame is None else indices[self._base_frame :][:1]
        needed = sorted(set((shown // SEGMENT).tolist()))
        try:
            # One by one, since the reader starts a pool of threads for every call that reads several records.
            source = self._sources[self._part[k]]
            segments = {s: Segment(source[int(self._first[k]) + s]) for s in needed}
            if any((segment.clip, segment.number) != (self._number[k], s) for s, segment in segments.items()):
                raise ValueError("another clip is in its place")
            fields = {"label": self._labels[k]}
            if self._video:
                frames = [segments[i // SEGMENT].frame(i % SEGMENT) for i in indices.tolist()]
                fields = {"video": decode(frames, self._encoding, self.size), **fields}
            if self._base_frame is not None:
                segment, within = divmod(int(indices[self._base_frame]), SEGMENT)
                fields |= segments[segment].embeddings(self._embeddings, within, int(self._frames[k]))
            if self._tokenize is not None:
                fields["tokens"] = self._tokenize(segments[needed[0]].caption)
        except Exception as error:  # the reader raises errors of many kinds
            raise BadRecord(f"{self.names[k]} in {self.root}: {error}") from error
        return fields
