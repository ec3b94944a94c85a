"""A preparation goes on where it was stopped, and leaves out what is broken."""

import shutil
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import interrupt, number, parameters, write, write_frames
from vf.data import records
from vf.data.clips import Windows
from vf.data.folder import VideoFolder
from vf.data.inspect import open_collection
from vf.data.preparation import locked_staging, prepare
from vf.data.prepared import Prepared
from vf.types import UserError


def test_repeating_a_command_changes_nothing_and_another_command_is_refused(prepared, ucf):
    out, manifest = prepared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare(parameters(ucf, "ucf101"), out, workers=2) == manifest | {"already": True}
    with pytest.raises(UserError, match=r"prepared already with other parameters .size was 16 and is 32"):
        prepare(parameters(ucf, "ucf101", size=32), out, workers=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def inspected(root: Path, windows: Windows) -> None:
    open_collection(root, "train")


def test_a_killed_preparation_resumes_where_it_stopped(many, tmp_path):
    out = tmp_path / "out"
    assert interrupt(many, out, signal.SIGKILL)[0] == -signal.SIGKILL
    time.sleep(0.5)  # for its worker to follow
    staged = {path.name: path.stat().st_mtime_ns for path in out.glob(".staging/*.clip")}
    assert len(staged) >= 2
    for door in (Prepared, partial(VideoFolder, size=8), inspected):  # half a data set does not look whole
        with pytest.raises(UserError, match=r"out has not finished: give the same .* again, which goes on from there"):
            door(out, windows=Windows(4))
    with pytest.raises(UserError, match="unfinished preparation with other parameters"):
        prepare(parameters(many, size=8), out, workers=1)

    def record_and_remove(path, *args, **kwargs):  # what is cleared away
        removed.update({p.name: p.stat().st_mtime_ns for p in Path(path).glob("*.clip")})
        remove(path, *args, **kwargs)

    removed: dict[str, int] = {}
    remove = shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", record_and_remove)
        manifest = prepare(parameters(many), out, workers=1)
    assert {name: removed[name] for name in staged} == staged  # finished clips were not decoded again
    assert len(removed) == 63
    assert manifest["fingerprint"] == prepare(parameters(many), tmp_path / "again", workers=2)["fingerprint"]


def staged_only(source: Path, out: Path) -> list[Path]:
    """Staged clips of a preparation that fails when it comes to packing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_write_file", refusing)
        with pytest.raises(UserError, match="cannot write"):
            prepare(parameters(source), out, workers=1)
    return sorted(out.glob(".staging/*.clip"))


def refusing(path: Path, records: Iterable[bytes]) -> int:
    """A file that has no room, found out at its end."""
    list(records)
    raise OSError("no room")


def test_a_source_that_has_changed_is_staged_again(tmp_path):
    write(tmp_path / "videos" / "a.avi", times=range(5))
    write_frames(tmp_path / "videos" / "b", range(5))
    assert len(staged_only(tmp_path / "videos", tmp_path / "out")) == 2
    write(tmp_path / "videos" / "a.avi", times=range(9))
    write_frames(tmp_path / "videos" / "b", range(7))
    manifest = prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert manifest["splits"]["train"]["index"]["frames"] == [9, 7]


def test_a_torn_staged_clip_is_made_again(tmp_path):
    for name in "abc":
        write(tmp_path / "videos" / f"{name}.avi", times=range(5))
    empty, torn, _ = staged_only(tmp_path / "videos", tmp_path / "out")
    empty.write_bytes(b"")
    torn.write_bytes(torn.read_bytes()[:-100])
    prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    source = Prepared(tmp_path / "out", windows=Windows(5))
    assert [[number(frame) for frame in source.clip(k, None)["video"]] for k in range(3)] == [[0, 1, 2, 3, 4]] * 3


def test_two_preparations_do_not_mix(ucf, tmp_path):
    with (
        locked_staging(tmp_path, parameters(ucf)),
        pytest.raises(UserError, match="another preparation is writing"),
    ):
        prepare(parameters(ucf), tmp_path, workers=1)


def test_a_source_of_bad_clips_alone_gives_no_data_set(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "empty.avi").touch()
    with pytest.raises(UserError, match=r"every clip was rejected, for example empty.avi"):
        prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)


def test_a_split_of_bad_clips_alone_is_left_out(tmp_path):
    write_frames(tmp_path / "videos" / "train" / "a")
    write_frames(tmp_path / "videos" / "test" / "b", [0, 1, 3])
    manifest = prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert list(manifest["splits"]) == ["train"]
    assert list(manifest["rejected"]) == ["test/b"]
    assert len(Prepared(tmp_path / "out", windows=Windows(4))) == 1


def test_a_missing_embedding_is_reported(ucf, tmp_path):
    np.savez(tmp_path / "vectors.npz", name=["other.avi"], embedding=np.zeros((1, 5), np.float32))
    for bad in (np.zeros(9, np.float32), np.zeros((2, 3), np.float32)):
        np.savez(tmp_path / "bad.npz", name=["a"], embedding=bad)
        with pytest.raises(UserError, match=r"should hold `name` .* or `name` .n. and `embedding` .n d. alone"):
            prepare(parameters(ucf, embeddings=str(tmp_path / "bad.npz")), tmp_path / "out", workers=1)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(UserError, match="should hold"):
        prepare(parameters(ucf, embeddings=str(tmp_path / "bad.npy")), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"has no embeddings of 9 clips, the first is Archery/v_Archery_g01_c01.avi"):
        prepare(parameters(ucf, embeddings=str(tmp_path / "vectors.npz")), tmp_path / "out", workers=1)


def test_the_real_clips(real_clips, tmp_path):
    manifest = prepare(parameters(real_clips / "UCF-101", "ucf101", size=64), tmp_path, workers=2)
    assert manifest["splits"]["train"]["index"]["frames"] == [250] * 10
    assert manifest["splits"]["train"]["per_class"] == {"PlayingGuitar": 10}
    decoded = VideoFolder(real_clips / "UCF-101", windows=Windows(16), size=64)
    read = Prepared(tmp_path, windows=Windows(16))
    for record in range(10):
        one, other = (source.clip(record, np.random.default_rng(record)) for source in (decoded, read))
        np.testing.assert_array_equal(one["video"], other["video"])


def test_the_real_broken_clip_and_another_container(real_clips, tmp_path):
    for folder in ("broken", "other"):
        shutil.copytree(real_clips / folder, tmp_path / "videos", dirs_exist_ok=True)
    manifest = prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert list(manifest["rejected"]) == ["corrupted.mp4"]
    assert manifest["splits"]["train"]["index"]["frames"] == [310]
    assert manifest["splits"]["train"]["index"]["fps"] == [30.0]
