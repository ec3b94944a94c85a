"""Samples are stored exactly, and drawn with the base frame marked."""

import json

import numpy as np
import pytest
from PIL import Image

from vf import video
from vf.run import media


def test_samples_are_lossless_and_marked_at_the_base_frame(tmp_path):
    clips = np.random.default_rng(0).integers(0, 99, (10, 4, 8, 8, 3), dtype=np.uint8)
    media.write_samples(tmp_path, clips, base_frame=1, labels=range(10), scale=3, columns=5, meta={"seed": 7})
    loaded = video.load_npz(tmp_path / "clips.npz")
    np.testing.assert_array_equal(loaded["clips"], clips)
    np.testing.assert_array_equal(loaded["label"], np.arange(10))
    with Image.open(tmp_path / "strip.png") as strip:
        pixels = np.asarray(strip)
    columns = np.flatnonzero((pixels == video.BASE_FRAME_COLOUR).all(-1).any(0)) // (pixels.shape[1] // 4)
    assert set(columns) == {1}
    assert pixels.shape[0] == media.STRIP_ROWS * pixels.shape[1] // 4  # Square cells, eight rows.
    with Image.open(tmp_path / "wall.gif") as wall:
        assert (wall.n_frames, wall.size) == (4, (3 * (5 * 8 + 4), 3 * (2 * 8 + 1)))
    assert (tmp_path / "wall.mp4").stat().st_size > 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["base_frame"], meta["seed"], meta["count"]) == (1, 7, 10)
    assert meta["labels"] == [str(label) for label in range(10)]
    media.write_samples(tmp_path, clips, base_frame=1, labels=[1, 0] * 5, class_names=("red", "green"))
    assert json.loads((tmp_path / "meta.json").read_text())["labels"] == ["green", "red"] * 5


def test_clips_of_one_frame_are_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 8, 8, 3), dtype=np.uint8)
    folder = media.write_samples(media.step_folder(tmp_path, 7, images=True), images, base_frame=1, scale=2)
    assert folder == tmp_path / "samples" / "base_step_00000007"
    assert {path.name for path in folder.iterdir()} == {"clips.npz", "wall.png", "meta.json"}
    with Image.open(folder / "wall.png") as wall:
        np.testing.assert_array_equal(np.asarray(wall)[::2, ::2], video.grid(images, 8)[0])
    assert "base_frame" not in json.loads((folder / "meta.json").read_text())  # It is the only frame.


@pytest.mark.parametrize("wrong", [{"base_frame": 4}, {"base_frame": 0, "labels": [1, 2]}])
def test_inconsistent_conditions_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"base_frame must be in|expected one 'label' for each of 3 clips"):
        media.write_samples(tmp_path, np.zeros((3, 4, 8, 8, 3), np.uint8), **wrong)
