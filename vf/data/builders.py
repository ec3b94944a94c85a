"""What a prepared clip is on disk: a TFDS data set in ArrayRecord files, written and read without TensorFlow.

A record is a *segment*: SEGMENT neighbouring frames of one clip, each encoded for itself. So a window of 16 frames
costs two records and 16 frame decodes, however long the clip is. Segments of a clip follow each other, and clips follow
the order of the manifest (`manifest.json`), which says how many frames each has: the number of every record follows.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import file_adapters, shuffle
from tensorflow_datasets.proto import tf_example_pb2

from vf.data.embeddings import Layout
from vf.types import UserError

SEGMENT = 16  # frames
MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest; 1 had one embedding a video at most, and is read too


class StagedClip(NamedTuple):
    """A clip that is ready to be packed."""

    name: str
    label: str
    caption: str
    fps: float
    frames: list[bytes]
    embeddings: Mapping[str, np.ndarray]  # of the video, [m d] by field; see vf/data/embeddings.py


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Packs finished clips; `vf.data.prepare` makes them, in parallel and resumably, which TFDS's builders do not.

    Args:
        clips: clips of each split, in order; read once.
        classes: names, in the order of their numbers; () for data without classes (every label is then 0).
        embeddings: which ones clips have.
        about: how the frames were made; kept as the data set's metadata.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        clips: Mapping[str, Iterable[StagedClip]],
        classes: tuple[str, ...],
        embeddings: Layout,
        about: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        self._clips, self._classes, self._embeddings, self._about = clips, classes, embeddings, about
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "frames": tfds.features.Text(doc="frames, each encoded as the metadata says, one after another"),
            "bytes": tfds.features.Tensor(shape=(None,), dtype=np.int64, doc="of each frame"),
            "name": tfds.features.Text(doc="of the clip, relative to the source"),
            "clip": tfds.features.Scalar(np.int64, doc="number of the clip within its split"),
            "segment": tfds.features.Scalar(np.int64, doc=f"which {SEGMENT} frames of the clip"),
            "fps": tfds.features.Scalar(np.float32, doc="frames per second, 0 where unknown"),
            "label": tfds.features.ClassLabel(names=self._classes) if self._classes else np.int64,
            "caption": tfds.features.Text(),
        }
        shape, about = (None, self._embeddings.dim), "of the frames that stand for the segment's frames, in order"
        for name in self._embeddings.fields:
            features[name] = tfds.features.Tensor(shape=shape, dtype=np.float32, doc=about)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Video clips in segments of {SEGMENT} frames, prepared by vf.data.prepare; see {MANIFEST}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._about),
            disable_shuffling=True,  # the manifest's order is the order on disk
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(clips) for split, clips in self._clips.items()}

    def _generate_examples(self, clips: Iterable[StagedClip]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, clip in enumerate(clips):
            for segment, first in enumerate(range(0, len(clip.frames), SEGMENT)):
                frames = clip.frames[first : first + SEGMENT]
                record = {
                    # One string: TFDS spends more on a list of them than ArrayRecord does on writing.
                    "frames": b"".join(frames),
                    "bytes": np.array([len(frame) for frame in frames]),
                    "name": clip.name,
                    "clip": number,
                    "segment": segment,
                    "fps": clip.fps,
                    "label": clip.label if self._classes else 0,
                    "caption": clip.caption,
                }
                # A frame and its embedding are in one record, so that neighbouring records may have one in common.
                start, end = (
                    self._embeddings.nearest(frame, len(clip.frames)) for frame in (first, first + len(frames) - 1)
                )
                record |= {name: rows[start : end + 1].astype(np.float32) for name, rows in clip.embeddings.items()}
                yield f"{number:09d}_{segment:06d}", record


class Ucf101Clips(ClipBuilder):
    """UCF101, prepared."""


class SkyTimelapseClips(ClipBuilder):
    """Sky Time-lapse, prepared."""


class TaichiHdClips(ClipBuilder):
    """TaiChi-HD, prepared."""


class WeizmannClips(ClipBuilder):
    """Weizmann Action, prepared."""


class WebvidClips(ClipBuilder):
    """Captioned videos by a table, prepared."""


class FolderClips(ClipBuilder):
    """Any folder of videos, prepared."""


class _Uncompressed(file_adapters.ArrayRecordFileAdapter):
    """ArrayRecord files without compression, which TFDS has no option for.

    Its zstd takes longer to pack a raw frame of 64 x 64 than FFmpeg takes to decode its video, and makes reading four
    times as slow, for files of half the size; PNG and JPEG it cannot make smaller at all."""

    @classmethod
    def write_examples(cls, path: Any, iterator: Iterable[tuple[Any, bytes]]) -> None:
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        for _, record in iterator:
            writer.write(record)
        try:
            writer.close()  # tells of anything that went wrong before, too
        except RuntimeError as error:
            raise OSError(str(error).split(";")[0]) from error


class _InOrder:
    """In place of TFDS's shuffler: records in the order in which they came, spooled to one file.

    Its own keeps 1000 MiB in memory, beyond that it needs TensorFlow, and then it sorts a whole split in memory."""

    def __init__(self, dirpath: Any, **_: Any) -> None:
        self._path = Path(os.fspath(dirpath)) / "spool"
        self.size = self.num_examples = 0

    @property
    def bucket_lengths(self) -> list[int]:
        return [self.num_examples]

    def add(self, key: Any, data: bytes) -> None:
        with self._path.open("ab") as file:  # opened each time: nobody says when a writer is given up
            file.write(len(data).to_bytes(8, "little") + data)
        self.size += len(data)
        self.num_examples += 1

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with self._path.open("rb") as file:
            for number in range(self.num_examples):
                yield number, file.read(int.from_bytes(file.read(8), "little"))
        self._path.unlink()


BUILDERS: dict[str, type[ClipBuilder]] = {
    "ucf101": Ucf101Clips,
    "sky_timelapse": SkyTimelapseClips,
    "taichi_hd": TaichiHdClips,
    "weizmann": WeizmannClips,
    "webvid": WebvidClips,
    "folder": FolderClips,
}


def pack(
    out: Path,
    dataset: str,
    clips: Mapping[str, Iterable[StagedClip]],
    classes: tuple[str, ...],
    embeddings: Layout,
    about: Mapping[str, Any],
    scratch: Path,
) -> Path:
    """Writes the clips as TFDS data set below `out`; returns its folder relative to `out`. `scratch` is TFDS's.

    It appears whole or not at all: TFDS writes aside and renames."""
    # TFDS takes whatever lies there for finished, but only a manifest says so.
    shutil.rmtree(out / BUILDERS[dataset].name, ignore_errors=True)
    builder = BUILDERS[dataset](
        clips=clips,
        classes=classes,
        embeddings=embeddings,
        about=about,
        data_dir=out,
        file_format="array_record",
    )
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    adapters = {file_adapters.FileFormat.ARRAY_RECORD: _Uncompressed}
    with (
        mock.patch.dict(file_adapters.ADAPTER_FOR_FORMAT, adapters),
        mock.patch.object(shuffle, "Shuffler", _InOrder),
        contextlib.redirect_stdout(io.StringIO()),  # it praises itself in print
    ):
        builder.download_and_prepare(download_dir=scratch, download_config=config)
    return Path(builder.data_dir).relative_to(out)


def fields(record: bytes) -> Any:
    """Fields of a record by name, as protobuf has them (`bytes_list.value`, ...).

    TFDS's own decoding makes arrays of everything, asked for or not."""
    return tf_example_pb2.Example.FromString(record).features.feature


class Segment:
    """Neighbouring frames of a clip, as they are stored."""

    def __init__(self, record: bytes) -> None:
        self.fields = fields(record)
        self.clip, self.number = (self.fields[name].int64_list.value[0] for name in ("clip", "segment"))
        self._data = memoryview(self.fields["frames"].bytes_list.value[0])
        self._ends = list(itertools.accumulate(self.fields["bytes"].int64_list.value, initial=0))

    def frame(self, k: int) -> memoryview:
        """Bytes of frame k of the segment, not decoded yet. Raises IndexError beyond its end."""
        return self._data[self._ends[k] : self._ends[k + 1]]

    def embeddings(self, layout: Layout, k: int, frames: int) -> dict[str, np.ndarray]:
        """f32 [d] by field: those that stand for frame k of the segment, of a video of `frames` frames."""
        first = SEGMENT * self.number
        row = layout.nearest(first + k, frames) - layout.nearest(first, frames)
        numbers = slice(row * layout.dim, (row + 1) * layout.dim)
        return {name: np.array(self.fields[name].float_list.value[numbers], np.float32) for name in layout.fields}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a prepared data set. Raises UserError where there is none or it is another version's."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(
            f"no {MANIFEST} in {root}: it is no prepared data set, or its preparation did not end; "
            f"run python -m vf.data.prepare with --out={root} (again)"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{root / MANIFEST} cannot be read: {error}; prepare the data again") from error
    if manifest.get("format") == 1:
        return manifest | {"embeddings": dataclasses.asdict(Layout(manifest["embedding_dim"]))}
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{root / MANIFEST} has format {manifest.get('format')}, expected 1 or {FORMAT}: prepare the data again"
        )
    return manifest
