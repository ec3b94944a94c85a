"""Prepared clips on disk: a TFDS data set in ArrayRecord files, written and read without TensorFlow.

A record is a *segment*: SEGMENT neighbouring frames of one clip, each encoded separately. So a window of 16 frames
takes two records and 16 frame decodes, however long the clip is. Segments of a clip are consecutive, and clips are in
the order of the manifest (`manifest.json`), which gives their numbers of frames; these determine the number of every
record.
"""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from vf.data.embeddings import Layout
from vf.data.manifest import MANIFEST

SEGMENT = 16  # frames
VERSION = "1.0.0"  # of the TFDS data set
SHARD = 2**28  # bytes after which a split continues in another file


class StagedClip(NamedTuple):
    """A staged clip, ready to be packed."""

    name: str
    label: str
    caption: str
    fps: float
    frames: Sequence[bytes | memoryview]
    embeddings: Mapping[str, np.ndarray]  # of the video, [m d] by field; see vf/data/embeddings.py


def pack(
    out: Path,
    dataset: str,
    clips: Mapping[str, Iterable[StagedClip]],
    classes: tuple[str, ...],
    embeddings: Layout,
    about: Mapping[str, Any],
) -> Path:
    """Writes clips as a TFDS data set in `out`; returns its folder relative to `out`.

    The folder appears whole or not at all. TFDS's own builders are not used: they compress ArrayRecord files, which
    takes longer than decoding a video and makes reading four times as slow, and they keep a split in memory to sort it.

    Args:
        out: the prepared data set's folder.
        dataset: name such as `ucf101`; the TFDS data set is called `ucf101_clips`.
        clips: {split: its clips in order}; each is iterated once.
        classes: names in the order of labels; () for data without classes (every label is then 0).
        embeddings: which embeddings clips have.
        about: how the frames were made, stored as the data set's metadata.

    Raises:
        OSError: a file cannot be written.
    """
    folder = out / f"{dataset}_clips" / VERSION
    shutil.rmtree(
        folder.parent, ignore_errors=True
    )  # it is incomplete: a finished data set has a manifest, and is not packed again
    temporary = folder.with_name(f"incomplete.{VERSION}")
    temporary.mkdir(parents=True)
    features = tfds.features.FeaturesDict(_features(classes, embeddings))
    files = tfds.core.ShardedFileTemplate(
        data_dir=temporary, dataset_name=folder.parent.name, filetype_suffix="array_record"
    )
    splits = [
        _write_split(files.replace(split=split), _records(clips_of_split, features, embeddings, bool(classes)))
        for split, clips_of_split in clips.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=temporary,
        features=features,
        split_infos=splits,
        version=VERSION,
        check_data=False,  # it would take TensorFlow
        description=f"Video clips in segments of {SEGMENT} frames, prepared by vf.data.prepare; see {MANIFEST}.",
        metadata=tfds.core.MetadataDict(about),
        disable_shuffling=True,  # the manifest's order is the order on disk
    )
    return temporary.rename(folder).relative_to(out)


def _features(classes: tuple[str, ...], embeddings: Layout) -> dict[str, Any]:
    """{name: feature} of a record."""
    features: dict[str, Any] = {
        "frames": tfds.features.Text(doc="frames, each encoded as the metadata says, one after another"),
        "bytes": tfds.features.Tensor(shape=(None,), dtype=np.int64, doc="of each frame"),
        "name": tfds.features.Text(doc="of the clip, relative to the source"),
        "clip": tfds.features.Scalar(np.int64, doc="number of the clip within its split"),
        "segment": tfds.features.Scalar(np.int64, doc=f"which {SEGMENT} frames of the clip"),
        "fps": tfds.features.Scalar(np.float32, doc="frames per second, 0 where unknown"),
        "label": tfds.features.ClassLabel(names=classes) if classes else np.int64,
        "caption": tfds.features.Text(),
    }
    shape, about = (None, embeddings.dim), "of the frames that stand for the segment's frames, in order"
    for name in embeddings.fields:
        features[name] = tfds.features.Tensor(shape=shape, dtype=np.float32, doc=about)
    return features


def _records(
    clips: Iterable[StagedClip], features: tfds.features.FeaturesDict, embeddings: Layout, has_classes: bool
) -> Iterator[bytes]:
    """Serialised segments of all clips, in order."""
    for number, clip in enumerate(clips):
        for segment, first in enumerate(range(0, len(clip.frames), SEGMENT)):
            frames = clip.frames[first : first + SEGMENT]
            record = {
                # One string: TFDS takes longer to encode a list of them than ArrayRecord does to write it.
                "frames": b"".join(frames),
                "bytes": np.array([len(frame) for frame in frames]),
                "name": clip.name,
                "clip": number,
                "segment": segment,
                "fps": clip.fps,
                "label": clip.label if has_classes else 0,
                "caption": clip.caption,
            }
            # A frame and its embedding are in one record, so neighbouring records may repeat an embedding.
            start, end = (embeddings.nearest(frame, len(clip.frames)) for frame in (first, first + len(frames) - 1))
            record |= {name: rows[start : end + 1].astype(np.float32) for name, rows in clip.embeddings.items()}
            yield features.serialize_example(features.encode_example(record))


def _write_split(files: tfds.core.ShardedFileTemplate, records: Iterable[bytes]) -> tfds.core.SplitInfo:
    """Writes records in order, into one file until it has SHARD bytes and then into the next."""
    written = 0

    def shard(record: bytes) -> int:
        nonlocal written
        written += len(record)
        return (written - len(record)) // SHARD

    folder = Path(files.data_dir)
    lengths = [_write_file(folder / f"{k}", part) for k, (_, part) in enumerate(itertools.groupby(records, shard))]
    for k in range(len(lengths)):  # the name of a file contains their number
        (folder / f"{k}").rename(files.sharded_filepath(shard_index=k, num_shards=len(lengths)))
    return tfds.core.SplitInfo(name=files.split, shard_lengths=lengths, num_bytes=written, filename_template=files)


def _write_file(path: Path, records: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file without compression; returns how many records it has. Raises OSError."""
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        try:
            writer.close()
        except RuntimeError as error:  # reports a failed write too, such as on a full disk
            raise OSError(str(error).split(";")[0]) from error
    return count


def fields(record: bytes) -> Any:
    """Fields of a record by name, as protobuf values (`bytes_list.value`, ...).

    TFDS's decoding is not used: it makes arrays of all fields, needed or not.
    """
    return tf_example_pb2.Example.FromString(record).features.feature


class Segment:
    """Neighbouring frames of a clip, as they are stored in a record."""

    def __init__(self, record: bytes) -> None:
        self.fields = fields(record)
        self.clip, self.number = (self.fields[name].int64_list.value[0] for name in ("clip", "segment"))
        self._data = memoryview(self.fields["frames"].bytes_list.value[0])
        self._ends = list(itertools.accumulate(self.fields["bytes"].int64_list.value, initial=0))

    @property
    def caption(self) -> str:
        """The video's caption; "" for none."""
        return self.fields["caption"].bytes_list.value[0].decode()

    def frame(self, k: int) -> memoryview:
        """Encoded bytes of frame k of the segment. Raises IndexError beyond its end."""
        return self._data[self._ends[k] : self._ends[k + 1]]

    def embeddings(self, layout: Layout, k: int, frames: int) -> dict[str, np.ndarray]:
        """{field: f32 [d]} of frame k of the segment, which belongs to a video of `frames` frames."""
        first = SEGMENT * self.number
        row = layout.nearest(first + k, frames) - layout.nearest(first, frames)
        numbers = slice(row * layout.dim, (row + 1) * layout.dim)
        return {name: np.array(self.fields[name].float_list.value[numbers], np.float32) for name in layout.fields}
