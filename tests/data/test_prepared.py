"""Clips of a prepared data set are those of its videos; damage is reported."""

import json
import shutil

import numpy as np
import pytest

from tests.data.synthetic import LENGTH, number, parameters, single, write_frames
from vf.data.clips import Windows
from vf.data.folder import VideoFolder
from vf.data.pipeline import BadRecord
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.types import UserError


def test_frame_k_is_colour_k(prepared):
    source = single(prepared[0])
    assert len(source) == 6 * LENGTH
    for record in range(len(source)):
        clip = source.clip(record, None)
        assert number(clip["video"][0]) == record % LENGTH
        assert clip["label"] == record // (2 * LENGTH)


@pytest.mark.parametrize("windows", [Windows(16), Windows(5, 4), Windows(16, fps=10), Windows(20, start="all", hop=7)])
def test_prepared_clips_are_the_decoded_ones_bit_for_bit(prepared, ucf, windows):
    lists = ucf.parent / "ucfTrainTestlist" / "trainlist01.txt"
    decoded = VideoFolder(ucf, windows=windows, size=16, split_file=lists)
    read = Prepared(prepared[0], windows=windows)
    assert len(decoded) == len(read)
    assert decoded.fps == read.fps == (windows.fps or 25 / windows.stride)
    for record in range(0, len(read), max(1, len(read) // 12)):
        for seed in (None, 0, 1):
            one, other = (
                source.clip(record, None if seed is None else np.random.default_rng(seed)) for source in (decoded, read)
            )
            np.testing.assert_array_equal(one["video"], other["video"])
            assert one["label"] == other["label"]


def test_splits_are_separate_and_can_be_joined(prepared):
    out, manifest = prepared
    train, test, both = (Prepared(out, windows=Windows(4), split=s) for s in ("train", "test", "train+test"))
    assert (len(train), len(test), len(both)) == (6, 3, 9)
    for record in range(9):
        part, at = (train, record) if record < 6 else (test, record - 6)
        np.testing.assert_array_equal(both.clip(record, None)["video"], part.clip(at, None)["video"])
    assert train.describe()["fingerprint"] == manifest["fingerprint"]
    with pytest.raises(UserError, match="no split 'dev': known are train, test"):
        Prepared(out, windows=Windows(4), split="dev")


def test_a_damaged_record_is_a_bad_record(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared[0], copy)
    (file,) = copy.glob("*/*/*train.array_record*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    file.write_bytes(data)
    source, bad = single(copy), []
    for record in range(len(source)):
        try:
            assert number(source.clip(record, None)["video"][0]) == record % LENGTH
        except BadRecord as error:
            bad.append(str(error))
    assert 0 < len(bad) < 2 * LENGTH
    assert all(error.startswith(("Archery", "Bowling", "Surfing")) for error in bad)


def test_a_folder_that_is_not_a_prepared_data_set_is_refused(prepared, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(UserError, match="has format 0, expected 1 or 2"):
        Prepared(tmp_path, windows=Windows(4))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Prepared(tmp_path, windows=Windows(4))
    with pytest.raises(UserError, match="has the 71 frames that 71 with stride 1 need"):
        Prepared(prepared[0], windows=Windows(71))


def test_a_rate_needs_videos_of_known_rate(tmp_path):
    write_frames(tmp_path / "videos" / "a")
    prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"set fps to 0 to go by stride"):
        Prepared(tmp_path / "out", windows=Windows(4, fps=8))
    prepare(parameters(tmp_path / "videos", fps=16), tmp_path / "with_rate", workers=1)
    clip = Prepared(tmp_path / "with_rate", windows=Windows(4, fps=8)).clip(0, None)["video"]
    assert np.diff([number(frame) for frame in clip]).tolist() == [2, 2, 2]
