"""Video data sets of TFDS; most of this needs TensorFlow, which is no requirement, and is skipped without."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.synthetic import colour, number
from vf.data.clips import Windows
from vf.data.pipeline import BadRecord, batches
from vf.data.tfds_video import TfdsVideos
from vf.types import UserError

LENGTHS = (20, 12, 3)


def test_without_tensorflow_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tfds:ucf101 needs TensorFlow, which is not installed: pip install"):
        TfdsVideos("ucf101", windows=Windows(4), size=16, split="train")


@pytest.mark.parametrize("windows", [Windows(4, fps=8), Windows(4, start="all")])
def test_options_that_need_what_tfds_does_not_record_are_refused(windows):
    with pytest.raises(UserError, match="neither rate nor length"):
        TfdsVideos("ucf101", windows=windows, size=16, split="train")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A data set like TFDS's ucf101, of three clips whose frame k has colour k."""
    pytest.importorskip("tensorflow")

    class MadeVideos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "video": tfds.features.Video(shape=(None, 40, 40, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, length in enumerate(LENGTHS):
                video = np.stack([np.full((40, 40, 3), colour(k), np.uint8) for k in range(length)])
                yield n, {"video": video, "label": n % 2}

    root = tmp_path_factory.mktemp("tfds")
    MadeVideos(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_frame_k_is_colour_k(data_dir):
    source = TfdsVideos("made_videos", windows=Windows(4, 2), size=16, split="train", data_dir=data_dir)
    assert (len(source), source.class_names) == (3, ("a", "b"))
    for record, length in enumerate(LENGTHS[:2]):
        clip = source.clip(record, None)
        start = (length - 7) // 2
        assert [number(frame) for frame in clip["video"]] == [start + 2 * k for k in range(4)]
        assert clip["label"] == record % 2
    with pytest.raises(BadRecord, match=r"record 2 of tfds:made_videos: .* it has 3"):
        source.clip(2, None)
    with batches(source, seed=0, batch_size=4) as iterator:
        assert next(iterator)["video"].shape == (4, 4, 16, 16, 3)


def test_a_missing_data_set_or_split_is_refused(data_dir):
    with pytest.raises(UserError, match="TFDS knows no data set no_such_set"):
        TfdsVideos("no_such_set", windows=Windows(4), size=16, split="train", data_dir=data_dir)
    with pytest.raises(UserError, match="is not prepared as ArrayRecord"):
        TfdsVideos("made_videos", windows=Windows(4), size=16, split="test", data_dir=data_dir)
