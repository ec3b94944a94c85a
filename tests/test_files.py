"""Files on a disk, on mounts that cannot rename, and in an object store that can neither append nor rename."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils import epath

from vf import files, video
from vf.types import UserError

RUN = "gs://bucket/run"


def test_local_paths_are_unchanged(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.path("~/x") == tmp_path / "x"
    assert files.path("runs/x") == Path("runs/x")
    assert files.path(Path("~/x")) == Path("~/x")  # a path made by the program is taken literally
    assert isinstance(files.path("x"), Path)
    assert not files.is_remote("runs/x")
    assert files.folder(str(tmp_path / "new")) == tmp_path / "new"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "make room, or "), (errno.EACCES, "")])
def test_a_full_disk_is_told_from_one_that_is_refused(monkeypatch, tmp_path, number, said):
    def refuse(**kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=rf"\({os.strerror(number)}\): {said}choose another$"):
        files.check_writable(tmp_path)


def test_slashes_of_addresses_are_preserved(bucket):
    found = files.path(RUN)
    assert os.fspath(found) == RUN
    assert os.fspath(files.path(found) / "a.b") == f"{RUN}/a.b"
    assert files.is_remote(found)
    assert files.folder(RUN) == found  # though it does not exist yet


def test_a_store_without_its_package_is_a_user_error(monkeypatch):
    def missing(name):
        raise ImportError("Please install gcsfs")

    files._check_client.cache_clear()
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reads and writes gs:// and found none: pip install gcsfs$"):
        files.path(RUN)
    with pytest.raises(UserError, match=r"expected a local path or an address of gs, s3, az and got ftp://"):
        files.path("ftp://host/run")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("Forbidden: bucket/run\nAnonymous caller"), r"OSError: Forbidden: bucket/run Anonymous.*gcloud auth"),
        (RuntimeError("401, Invalid Credentials"), r"401.*gcloud auth"),
        (FileNotFoundError("The specified bucket does not exist."), r"bucket gs://bucket exists and that"),
    ],
)
def test_a_store_that_refuses_is_a_user_error(bucket, monkeypatch, error, message):
    def refuse(self, *_, **__):
        raise error

    store = files.path(RUN)._backend.fs(RUN)
    monkeypatch.setattr(type(store), "_open", refuse)
    with pytest.raises(UserError, match=message) as found:
        files.check_writable(files.path(RUN))
    assert "\n" not in str(found.value)
    monkeypatch.setattr(type(store), "ls", refuse)
    if isinstance(error, FileNotFoundError):
        files.folder(RUN)  # the same answer as where nothing was written yet
    else:
        with pytest.raises(UserError, match=message):
            files.folder(RUN)


def test_the_fake_store_is_strict(bucket):
    path = files.path(RUN) / "a"
    path.write_text("1")
    with pytest.raises(AssertionError, match="mode"):
        path.open("ab")
    with pytest.raises(AssertionError, match="rename"):
        path.rename(files.path(RUN) / "b")
    with pytest.raises(AssertionError, match="folders"):
        (path.parent / "folder").mkdir()
    writing = path.open("wb")
    writing.write(b"2")
    assert bucket["bucket/run/a"] == b"1"
    writing.close()
    assert bucket["bucket/run/a"] == b"2"


@pytest.mark.parametrize("place", ["disk", "store"])
def test_whole_files_clips_and_lines(tmp_path, bucket, place):
    folder = tmp_path / "run" if place == "disk" else files.path(RUN)
    files.check_writable(folder)
    assert files.children(folder) == []
    for text in ("first", "ä"):
        files.write_whole(folder / "x.json", text)
        assert (folder / "x.json").read_bytes() == text.encode()
    clips = np.arange(2 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 4, 3)
    video.save_npz(folder / "deep" / "clips.npz", clips, label=np.arange(2))
    np.testing.assert_array_equal(video.load_npz(folder / "deep" / "clips.npz")["clips"], clips)
    video.write_mp4(folder / "deep" / "a.mp4", clips[0])
    assert (folder / "deep" / "a.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(ZeroDivisionError), files.replacing(folder / "x.json") as temporary:
        temporary.write_text(f"half: {1 / 0}")
    assert (folder / "x.json").read_text() == "ä"
    for line in ("1", "2", "3"):
        files.append_line(folder / "log.jsonl", line)
    assert ["1", "2", "3"] in files.read_lines(folder / "log.jsonl")
    assert files.read_lines(folder / "none.jsonl") == ([], [])
    assert [path.name for path in files.children(folder / "deep")] == ["a.mp4", "clips.npz"]
    assert files.children(folder / "x.json") == []
    with pytest.raises(UserError, match="does not exist"):
        video.load_npz(folder / "none.npz")


def test_other_jobs_files_are_seen(bucket):
    """The listing is not the one that was remembered."""
    folder = files.path(RUN)
    files.write_whole(folder / "a", "")
    assert len(files.children(folder)) == 1
    bucket["bucket/run/b"] = b"of another job"
    assert [path.name for path in files.children(folder)] == ["a", "b"]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_mount_that_cannot_rename_is_written_in_place(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no rename here")

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(files.os, "replace", refuse)
    if code == errno.EACCES:
        with pytest.raises(OSError, match="no rename"):
            files.write_whole(tmp_path / "x", "new")
    else:
        files.write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == ("old" if code == errno.EACCES else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def store_writer(seconds=60.0):
    return files.StoreWriter(files.path(RUN) / "log.jsonl", seconds)


def lines():
    return files.read_lines(files.path(RUN) / "log.jsonl")[1]


def test_lines_are_buffered_and_the_last_part_grows(bucket, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(files.time, "time", lambda: clock[0])
    one = store_writer()
    one.line("1")
    assert lines() == []  # a job killed here loses the buffered lines
    one.flush()
    clock[0] += 10
    one.line("2")
    one.flush()
    one.flush()
    assert lines() == ["1", "2"]
    assert len(bucket) == 1
    one.line("3")  # within the second in which the part was written: another name
    one.flush()
    assert lines() == ["1", "2", "3"]
    assert len(bucket) == 2
    monkeypatch.setattr(files, "PART_LINES", 5)
    for number in range(4, 13):
        clock[0] += 10
        one.line(str(number))
    assert lines() == [str(number) for number in range(1, 9)]  # five wait no longer
    one.flush()
    assert lines() == [str(number) for number in range(1, 13)]
    assert len(bucket) == 3


def test_waiting_lines_are_written_without_another_call(bucket):
    one = store_writer(0.05)
    one.line("1")
    for _ in range(200):
        if lines():
            break
        threading.Event().wait(0.02)
    assert lines() == ["1"]


def test_a_store_that_fails_for_a_while_loses_no_lines(bucket, monkeypatch):
    one, good = store_writer(0.05), files.write_whole
    failed = threading.Event()

    def fail(path, content):
        failed.set()
        raise OSError("no network")

    monkeypatch.setattr(files, "write_whole", fail)
    one.line("1")
    assert failed.wait(10)  # in the background, where an error does not end the job
    with pytest.raises(OSError, match="no network"):
        one.flush()
    one.line("2")
    monkeypatch.setattr(files, "write_whole", good)
    one.flush()
    assert lines() == ["1", "2"]


def test_parts_are_read_in_the_order_of_starts_and_numbers(bucket):
    for name in ("9-10", "9-2", "10-0", "x-1", "notes"):
        bucket[f"bucket/run/log/{name}.jsonl"] = name.encode() + b"\n"
    assert lines() == ["9-2", "9-10", "10-0"]
    assert isinstance(files.path(RUN), epath.Path)


def test_a_user_without_a_home_has_a_folder_for_temporary_files(tmp_path, monkeypatch):
    """A user id that the system does not know, without HOME: that of many containers."""

    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files._temporary_home.cache_clear()
    user = os.getuid()
    own = tmp_path / f"vf-{user}"
    assert files.home() == files.expand("~") == own
    assert files.expand("~/a/b") == own / "a" / "b"
    assert (own.stat().st_mode & 0o777, own.stat().st_uid) == (0o700, user)
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    files._temporary_home.cache_clear()
    others = own.rename(tmp_path / f"vf-{user + 1}")  # which belongs to somebody else
    assert files.home() != others
    assert files.home().parent == tmp_path
    files._temporary_home.cache_clear()
