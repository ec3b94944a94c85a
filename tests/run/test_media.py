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
    assert meta["strip_size"] == list(pixels.shape[1::-1])
    media.write_samples(tmp_path, clips, base_frame=1, labels=[1, 0] * 5, class_names=("red", "green"))
    assert json.loads((tmp_path / "meta.json").read_text())["labels"] == ["green", "red"] * 5


def test_clips_of_one_frame_are_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 8, 8, 3), dtype=np.uint8)
    folder = media.drawing_folder(tmp_path, 7, "base", 3, {"seed": 2})
    assert media.write_samples(folder, images, base_frame=1, scale=2) == folder
    assert folder.parent == tmp_path / "samples"
    assert folder.name.startswith("step_00000007_base_seed2_n3_")
    assert {path.name for path in folder.iterdir()} == {"clips.npz", "wall.png", "meta.json"}
    with Image.open(folder / "wall.png") as wall:
        np.testing.assert_array_equal(np.asarray(wall)[::2, ::2], video.grid(images, 8)[0])
    assert "base_frame" not in json.loads((folder / "meta.json").read_text())  # It is the only frame.


def test_each_drawing_has_a_folder_of_its_own(tmp_path):
    """Whatever it is that the samples depend on; the same drawing again has the same folder."""
    sampling = {"seed": 0, "eta": 0.0, "label": -1}
    drawn = [
        media.drawing_folder(tmp_path, step, what, count, sampling | changes)
        for step, what, count, changes in (
            (30, "clips", 16, {}), (30, "clips", 8, {}), (30, "base", 16, {}), (60, "clips", 16, {}),
            (30, "clips", 16, {"seed": 1}), (30, "clips", 16, {"label": 3}), (30, "clips", 16, {"start": "a run"}),
        )
    ]  # fmt: skip
    assert len(set(drawn)) == len(drawn)
    assert media.drawing_folder(tmp_path, 30, "clips", 16, dict(reversed(sampling.items()))) == drawn[0]


def test_drawings_are_listed_by_step_and_clips_before_images(tmp_path):
    """Those of earlier versions too; what is no drawing is left out."""
    old = [tmp_path / "samples" / name for name in ("step_00000009", "base_step_00000009", "step_100000000")]
    new = [media.drawing_folder(tmp_path, step, what, 16, {"seed": -1}) for step, what in ((5, "base"), (9, "clips"))]
    for folder in (*old, *new, media.real_folder(tmp_path), tmp_path / "samples" / "step_draft"):
        folder.mkdir(parents=True)
    found = media.drawings(tmp_path)
    assert [one.folder for one in found] == [new[0], old[0], new[1], old[1], old[2]]
    assert [(one.step, one.images, one.facts) for one in found] == [
        (5, True, ": 16, seed -1"), (9, False, ""), (9, False, ": 16, seed -1"), (9, True, ""),
        (100_000_000, False, ""),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"base_frame": 4}, {"base_frame": 0, "labels": [1, 2]}])
def test_inconsistent_conditions_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"base_frame must be in|expected one 'label' for each of 3 clips"):
        media.write_samples(tmp_path, np.zeros((3, 4, 8, 8, 3), np.uint8), **wrong)


def test_a_wall_has_so_many_clips_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "PICTURED", 4)
    media.write_samples(tmp_path, np.zeros((6, 2, 8, 8, 3), np.uint8), base_frame=1, scale=1, columns=2)
    with Image.open(tmp_path / "wall.gif") as wall:
        assert wall.size == (2 * 8 + 1, 2 * 8 + 1)
    assert len(video.load_npz(tmp_path / "clips.npz")["clips"]) == 6
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["count"], meta["pictured"], meta["columns"]) == (6, 4, 2)


def test_clips_of_wanted_classes_are_taken_in_turn():
    """A class comes again when its clips are used up; one that is not there is left out."""
    np.testing.assert_array_equal(media.rows_of([2, 0, 2, 5, 2, 0], np.array([0, 2, 2, 1])), [1, 0, 2, 1, 0])
    assert media.rows_of([5], np.array([0])).tolist() == []
    assert media.real_folder("run", [1, 2]) != media.real_folder("run", [2, 1]) != media.real_folder("run")
