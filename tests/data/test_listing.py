"""Which files count as clips, and which are skipped."""

import os
from pathlib import Path

import pytest

from tests.data.sources import error_message, list_clips, make, splits_and_labels


def test_hidden_files_and_files_that_are_not_clips_are_skipped(tmp_path):
    clips = ["a/1.avi", "b/f/1.png", "b/f/2.png"]
    others = [".staging/x.avi", "a/.git/x.avi", "__MACOSX/a/1.avi", "a/._1.avi", "a/1.jpg", "b/cover.png", "c/.1.png"]
    others += ["cover.png", "out/ucf101_clips/1.0.0/x.array_record", "out/manifest.json", "a/notes.txt", "avi", ".avi"]
    found = list_clips("folder", make(tmp_path, *clips, *others))
    assert splits_and_labels(found) == {"a/1.avi": "train a", "b/f": "train b"}
    assert (found.lost, found.unlisted) == ({}, [])


@pytest.mark.parametrize("target", [".", "a", "../elsewhere", "..", "../other"])
def test_links_are_followed_and_loops_end(tmp_path, target):
    make(tmp_path / "other", "y.avi")
    make(tmp_path / "elsewhere", "x.avi")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    source = make(tmp_path / "source", "a/1.avi", "b/2.avi")
    (source / "a" / "there").symlink_to(source / target)
    (source / "b" / "there").symlink_to(source / target)
    (source / "broken").symlink_to(source / "nowhere")
    (source / "self").symlink_to(source / "self")
    found = list_clips("folder", source)
    through = {"../elsewhere": ["there/x.avi"], "../other": ["there/y.avi"]}.get(target, [])
    expected = {"a/1.avi", "b/2.avi"} | {f"{folder}/{name}" for folder in "ab" for name in through}
    if target == "a":
        expected |= {"b/there/1.avi"}
    assert set(splits_and_labels(found)) == expected


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    source = make(tmp_path, "a/1.avi", "b/2.avi")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = {"b"}
    found = list_clips("folder", source)
    assert splits_and_labels(found) == {"a/1.avi": "train a"}
    assert found.lost == {"b": "the folder cannot be read: Permission denied"}
    refused = {source.name}
    assert "Permission denied" in error_message("folder", source)


def test_an_empty_folder_named_as_a_video_is_reported(tmp_path):
    (tmp_path / "train" / "gone.mp4").mkdir(parents=True)
    found = list_clips("taichi_hd", make(tmp_path, "train/a.mp4"))
    assert list(found.lost) == ["train/gone.mp4"]


def test_names_that_are_not_utf8_and_long_names(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    long = "x" * 251 + ".avi"
    found = list_clips("folder", make(tmp_path, f"{odd}/{odd}.avi", f"b/{long}"))
    assert splits_and_labels(found) == {f"b/{long}": "train b", f"{odd}/{odd}.avi": r"train caf\xe9"}
    assert found.classes == ("b", r"caf\xe9")  # as every file can hold it
