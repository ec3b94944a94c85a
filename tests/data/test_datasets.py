"""Each data set's layouts: those in use, and malformed ones."""

from pathlib import Path

import pytest

from tests.data.sources import UCF, error_message, list_clips, make, pack, splits_and_labels, write
from vf.data.datasets import DATASETS, WEIZMANN
from vf.data.decode import natural

# Files in the order of their clips, a folder of frames by its only frame; and each clip's split and class.
LAYOUTS = [
    ("ucf101", {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "train Bowling"}),
    ("ucf101", {f"UCF-101/{UCF[0]}": "train Bowling"}),
    ("ucf101", {f"train/{UCF[0]}": "train Bowling", f"val/{UCF[2]}": "val Archery"}),
    (
        "sky_timelapse",
        {"sky_test/c/c_1/1.JPG": "test", "sky_train/a/a_2/f.jpg": "train", "sky_train/a/a_10/f.jpg": "train"},
    ),
    ("sky_timelapse", {"test/c2/1.png": "test", "train/c1/1.png": "train"}),
    ("taichi_hd", {"test/c/1.png": "test", "train/a#1#2.mp4/0001.png": "train", "train/b.mp4": "train"}),
    ("taichi_hd", {"taichi/test/b.mp4": "test", "taichi/train/a.mp4/deep/1.png": "train"}),
    ("weizmann", {"Eli_PJump.avi": "train pjump", "eli_wave2.avi": "train wave2", "lena_walk2.avi": "train walk"}),
    (
        "weizmann",
        {"bend/ido/1.png": "train bend", "Wave1/ido.avi": "train wave1", "Wave1/lyova_wave1.avi": "train wave1"},
    ),
    ("folder", {"clip_2.MP4": "train", "clip_10.gif": "train"}),
    ("folder", {"a/2.webm": "train a", "a/f/1.png": "train a", "b/1.mp4": "train b"}),
    ("folder", {"Training/b/1.mp4": "train b", "valid/a/1.mp4": "val a"}),
    ("folder", {"sky_test/a/1.mp4": "test a", "sky_train/b/1.mp4": "train b"}),
    ("folder", {"top/a/1.mp4": "train a", "top/b/1.mp4": "train b"}),
    ("folder", {"only/1.mp4": "train only"}),
    ("folder", {"test/a/1.mp4": "test a"}),
    ("folder", {"a/1.mp4": "train", "b/deep/1.mp4": "train"}),
    ("folder", {"bus/1.mp4": "train bus", "train/1.mp4": "train train"}),  # one class is called as a split
    ("folder", {"bus/1.mp4": "train bus", "Test/1.mp4": "train Test"}),
    ("folder", {"bus/1.mp4": "train bus", "VAL/f/1.png": "train VAL"}),
    ("folder", {"top/bus/1.mp4": "train bus", "top/train/1.mp4": "train train"}),
    ("folder", {"test/bus/1.mp4": "test bus", "test/train/1.mp4": "test train", "train/train/1.mp4": "train train"}),
    ("folder", {"bus/a/1.mp4": "train", "test/a/1.mp4": "test", "train/a/1.mp4": "train"}),
    ("ucf101", {"bus/1.avi": "train bus", "test/1.avi": "train test"}),
]


@pytest.mark.parametrize(("dataset", "expected"), LAYOUTS)
def test_layouts_in_natural_order(tmp_path, dataset, expected):
    found = list_clips(dataset, make(tmp_path, *reversed(expected)))
    names = [str(Path(name).parent) if name.lower().endswith((".jpg", ".png")) else name for name in expected]
    assert list(splits_and_labels(found).items()) == list(zip(names, expected.values(), strict=True))
    labels = {item.label for item in found.items} - {""}
    assert found.classes == (WEIZMANN if dataset == "weizmann" else tuple(sorted(labels, key=natural)))
    assert (found.lost, list(found.unlisted)) == ({}, [])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ("bus/1.mp4", "test/a/1.mp4", "train/a/1.mp4"),
            "folders beside bus name splits, so that it is taken for train",
        ),
        (("a/train/1.mp4", "a/test/2.mp4", "b/train/1.mp4"), "test lies in another folder, and names no split"),
        (("a/1.mp4", "b/2.mp4", "3.mp4"), "folders are no classes, since 3.mp4 does not lie in one folder alone"),
    ],
)
def test_folders_that_may_mean_something_else_are_told(tmp_path, caplog, names, sentence):
    list_clips("folder", make(tmp_path, *names))
    assert sentence in caplog.text


@pytest.mark.parametrize("dataset", DATASETS)
def test_sources_without_clips_are_explained(tmp_path, dataset):
    table = write(tmp_path, {"t.csv": "path\na.avi\n"}) / "t.csv"
    kwargs = {"table": table} if dataset == "webvid" else {}
    assert "does not exist" in error_message(dataset, tmp_path / "nowhere", **kwargs)
    assert "does not exist" in error_message(dataset, tmp_path / ("x" * 300), **kwargs)
    empty = make(tmp_path / "empty", "1.png", "UCF101.rar")
    assert all(
        part in error_message(dataset, empty, **kwargs)
        for part in ("no videos", ".avi", "no folders", ".png", "another source")
    )


def test_options_of_other_data_sets_are_refused(tmp_path):
    make(tmp_path, "bend/a_bend.avi")
    for dataset in DATASETS:
        if dataset != "ucf101":
            assert "split files are for ucf101" in error_message(dataset, tmp_path, splits=tmp_path)
        if dataset not in ("webvid", "folder"):
            assert "a table is for" in error_message(dataset, tmp_path, table=tmp_path)


def test_videos_outside_of_classes(tmp_path):
    found = list_clips("ucf101", make(tmp_path, *UCF, "loose.avi"))
    assert set(splits_and_labels(found)) == set(UCF)
    assert found.lost == {"loose.avi": "lies in no folder of a class"}
    assert "CLASS/v_CLASS" in error_message("ucf101", tmp_path / "Bowling")


@pytest.mark.parametrize(
    ("file", "why"), [("eli_swim.avi", "no action"), ("run/eli_walk.avi", "two actions: run and walk")]
)
def test_a_name_without_one_action_is_lost(tmp_path, file, why):
    found = list_clips("weizmann", make(tmp_path, "eli_skip.avi", file))
    assert splits_and_labels(found) == {"eli_skip.avi": "train skip"}
    assert list(found.lost) == [file]
    assert why in found.lost[file]


def test_webvid_requires_exactly_one_table(tmp_path):
    source = make(tmp_path, "1.mp4")
    assert "found 0: name one" in error_message("webvid", source)
    assert "found 2: name one" in error_message("webvid", make(source, "a.csv", "b.csv"))
    assert "found 0: name one" in error_message("webvid", pack(tmp_path / "u.zip", {"1.mp4": b""}))
