"""Reads video data sets that TFDS itself prepares, such as `ucf101/ucf101_1_256`: whole clips of encoded frames.

Their Video feature needs TensorFlow, and UCF101's 256 x 256 frames have lost their aspect ratio (320 x 240 squashed),
so scores differ from those of prepared data. Needs an ArrayRecord copy: `tfds build ucf101 --file_format=array_record`.
"""

import importlib.util
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vf.data.clips import Windows
from vf.data.pipeline import BadRecord
from vf.data.pixels import RESAMPLER, Pixels
from vf.data.records import fields
from vf.types import UserError


class TfdsVideos:
    """Clips of a data set with the features `video` and `label`; a `vf.data.pipeline.Source`.

    Only the frames of the window are decoded, but whole records are read.

    Args:
        name: TFDS's name of the data set.
        windows: which frames make a clip. Records contain neither rate nor length: `fps` and `start` all are refused.
        size: height and width in pixels.
        split: TFDS's name of the split.
        data_dir: folder of TFDS's data sets; None for TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        UserError: TensorFlow is not installed, the data set is not prepared as ArrayRecord, or windows need a rate or
            a length.
    """

    def __init__(
        self, name: str, *, windows: Windows, size: int, split: str, data_dir: str | Path | None = None
    ) -> None:
        self.name, self.windows, self.size, self.split, self.data_dir = name, windows, size, split, data_dir
        if windows.fps or windows.start == "all":
            raise UserError(
                "clips of TFDS contain neither rate nor length: set data.fps=0 and data.windows=random or centre"
            )
        features = self._builder.info.features
        self.class_names = tuple(getattr(features["label"], "names", None) or ()) if "label" in features else ()
        self.num_classes = len(self.class_names)
        self._length = len(self._source)

    @cached_property
    def _builder(self) -> Any:
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"tfds:{self.name} needs TensorFlow, which is not installed: pip install tensorflow-cpu, or prepare "
                "the videos with python -m vf.data.prepare, which does without"
            )
        try:
            return tfds.builder(self.name, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(f"TFDS knows no data set {self.name}: {str(error).splitlines()[0]}") from error

    @cached_property
    def _source(self) -> Any:
        method = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            return self._builder.as_data_source(split=self.split, deserialize_method=method)
        except (AssertionError, ValueError, NotImplementedError, OSError) as error:
            raise UserError(
                f"tfds:{self.name} is not prepared as ArrayRecord ({str(error).splitlines()[0]}): "
                f"run tfds build {self.name} --file_format=array_record"
            ) from error

    @property
    def fps(self) -> float:
        """0: TFDS keeps no rates."""
        return 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_builder", "_source")}

    def __len__(self) -> int:
        return self._length

    def describe(self) -> dict[str, Any]:
        """Data set, selection and pixel processing, ready for JSON: a part of the protocol of every score."""
        return {
            "source": f"tfds:{self.name}",
            "version": str(self._builder.version),
            "split": self.split,
            "records": len(self),
            "classes": self.num_classes,
            **vars(self.windows),
            "size": self.size,
            "crop": "centre square",
            "resize": RESAMPLER,
        }

    def clip(self, record: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """`video` u8 [f size size 3] and `label` i32 []. Raises BadRecord where it is too short or damaged."""
        try:
            row = fields(self._source[record])
            frames = row["video"].bytes_list.value
            pixels = Pixels(self.size)
            indices = self.windows.indices(len(frames), 0.0, 0, rng)
            video = np.stack([pixels(_picture(frames[i])) for i in indices])
        except Exception as error:  # the reader raises errors of many kinds
            raise BadRecord(f"record {record} of tfds:{self.name}: {error}") from error
        label = row["label"].int64_list.value[0] if self.num_classes else 0
        return {"video": video, "label": np.array(label, np.int32)}


def _picture(data: bytes) -> av.VideoFrame:
    rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return av.VideoFrame.from_ndarray(rgb, format="rgb24")
