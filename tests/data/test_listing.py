"""Which files count as clips, and which are skipped."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.data.sources import error_message, list_clips, make, pack, splits_and_labels
from vf.data.decode import Video
from vf.data.listing import NO_CLIP
from vf.data.pixels import Pixels


def test_whatever_is_no_clip_is_told_with_the_reason(tmp_path):
    clips = ["a/1.avi", "b/f/1.png", "b/f/2.png"]
    others = [".staging/x.avi", "a/.git/x.avi", "__MACOSX/a/1.avi", "a/._1.avi", "a/1.jpg", "b/cover.png", "c/.1.png"]
    others += ["cover.png", "out/ucf101_clips/1.0.0/x.array_record", "out/manifest.json", "a/notes.txt", "avi", ".avi"]
    found = list_clips("folder", make(tmp_path, *clips, *others))
    assert splits_and_labels(found) == {"a/1.avi": "train a", "b/f": "train b"}
    assert found.lost == {}
    hidden = {".staging", "a/.git", "__MACOSX", "a/._1.avi", "c/.1.png", ".avi"}  # of a hidden folder, its name alone
    pictures = {"a/1.jpg": "videos", "b/cover.png": "folders", "cover.png": "folders"}
    assert {name for name, why in found.unlisted.items() if why == "is hidden"} == hidden
    for name, place in pictures.items():
        assert found.unlisted[name] == f"is a picture beside {place}, and no clip"
    rest = set(found.unlisted) - hidden - set(pictures)
    assert rest == {name for name in others if name.startswith("out/")} | {"a/notes.txt", "avi"}
    assert {found.unlisted[name] for name in rest} == {"is neither a video nor a picture that is read"}


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


EXTENSIONS = {
    "ts": ("libx264", "mpegts"), "flv": ("flv", "flv"), "3gp": ("mpeg4", "3gp"), "wmv": ("wmv2", "asf"),
    "m2ts": ("mpeg2video", "mpegts"), "VOB": ("mpeg2video", "vob"), "y4m": ("wrapped_avframe", "yuv4mpegpipe"),
    "mxf": ("mpeg2video", "mxf"), "mp4.part": ("libx264", "mp4"), "bin": ("mpeg4", "avi"), "": ("libvpx", "webm"),
}  # fmt: skip


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_video_is_known_by_its_name_or_its_content(tmp_path, extension):
    codec, form = EXTENSIONS[extension]
    path = tmp_path / f"1.{extension}".rstrip(".")
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(12):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k, np.uint8), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    found = list_clips("folder", tmp_path)
    assert [item.name for item in found.items] == [path.name]
    frames = Video(path).clip(np.arange(12), Pixels(8))
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 20 * np.arange(12), atol=6)


def test_files_that_look_like_videos_and_are_none_are_told(tmp_path):
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "album.m4b"), "w", format="mp4") as container:  # a song with its cover
        stream, cover = container.add_stream("aac", rate=44100), container.add_stream("png")
        cover.height, cover.width, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    (tmp_path / "broken.part").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    (tmp_path / "code.py").write_text("print()\n")
    (tmp_path / "nothing").touch()
    os.mkfifo(tmp_path / "pipe")
    make(tmp_path, "1.mp4")
    found = list_clips("folder", tmp_path)
    assert [item.name for item in found.items] == ["1.mp4"]
    assert found.unlisted["song.m4a"] == found.unlisted["album.m4b"] == "has no video stream"
    assert {found.unlisted[name] for name in ("code.py", "nothing", "pipe")} == {NO_CLIP}
    assert found.lost["broken.part"].startswith("cannot be read: ")


def test_files_of_an_archive_that_are_no_clips_are_told(tmp_path):
    members = ("a/1.avi", "a/1.jpg", "a/notes.txt", "b/1.png", ".x/1.avi", "cover.png")
    found = list_clips("folder", pack(tmp_path / "a.zip", dict.fromkeys(members, b"")))
    assert [item.name for item in found.items] == ["a/1.avi"]
    assert set(found.lost) == {"b"}
    assert set(found.unlisted) == {"a/1.jpg", "a/notes.txt", ".x/1.avi", "cover.png"}
