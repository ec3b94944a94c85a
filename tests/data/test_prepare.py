"""The command as users give it: frames are known by their colours, and everything that is broken is reported."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import LENGTH, ROOT, colour, interrupt, number, write, write_frames
from vf.data.clips import Windows
from vf.data.prepare import LOST, arguments, main
from vf.data.prepared import Prepared


@pytest.fixture(scope="module")
def unusual_videos(tmp_path_factory) -> Path:
    """A folder with every kind of unusual and of broken input."""
    root = tmp_path_factory.mktemp("unusual")
    write(root / "good.avi")
    whole = (root / "good.avi").read_bytes()
    for tenth in range(1, 10):
        (root / f"cut_{tenth}.avi").write_bytes(whole[: len(whole) * tenth // 10])
    (root / "no_index.avi").write_bytes(whole[: whole.rindex(b"idx1")])
    (root / "empty.avi").touch()
    (root / "text.avi").write_text("this is no video\n" * 50)
    write(root / "one.avi", times=[3])
    write(root / "odd.mkv", "ffv1", {"level": "3"}, paint=lambda k: np.full((37, 51, 3), colour(k)), times=range(5))
    write(root / "variable.mkv", "libx264", {}, times=[0, 1, 5, 6, 13, 14, 15, 31])
    with av.open(str(root / "grey.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "gray"
        for k in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32), 50 * k, np.uint8), format="gray")))
        container.mux(stream.encode(None))
    with av.open(str(root / "sound.mov"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    write(root / "turned.mp4", times=range(6), paint=quarters)
    turn(root / "turned.mp4")
    write_frames(root / "frames")
    write_frames(root / "gap", [0, 1, 2, 4, 5])
    write_frames(root / "unreadable")
    (root / "unreadable" / "frame_7.png").write_bytes(b"no image")
    pictures = [Image.fromarray(np.full((20, 20, 3), colour(k), np.uint8)) for k in range(4)]
    pictures[0].save(root / "moving.gif", save_all=True, append_images=pictures[1:], duration=100)
    write(root / (240 * "n" + ".avi"), times=range(3))
    shutil.copy(root / "good.avi", os.fsdecode(os.fsencode(root) + b"/caf\xe9.avi"))
    return root


def quarters(k: int) -> np.ndarray:
    """Red above left, green above right, blue below left, black below right."""
    frame = np.zeros((64, 64, 3))
    frame[:32, :32, 0] = frame[:32, 32:, 1] = frame[32:, :32, 2] = 200
    return frame


def turn(path: Path) -> None:
    """Writes into an MP4 that it is to be shown turned by 90 degrees clockwise."""
    data = path.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    zero, unit = bytes(4), (1 << 30).to_bytes(4, "big")
    upright = one + zero + zero + zero + one + zero + zero + zero + unit
    at = data.index(upright, data.index(b"tkhd"))
    turned = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero + zero + zero + zero + unit
    path.write_bytes(data[:at] + turned + data[at + len(upright) :])


REASONS = {
    "empty.avi": "",
    "text.avi": "",
    "one.avi": "has 1 frame, fewer than 2",
    "sound.mov": "has no video stream",
    "gap": "has no frame between frame_2.png and frame_4.png",
    "unreadable": "its frame frame_7.png cannot be read: no image",
    **{f"cut_{tenth}.avi": "" for tenth in range(1, 10)},
}


UNUSUAL = {
    "no_index.avi": "its end is cut off, but all frames are there",
    "odd.mkv": "odd size 51 x 37",
    "variable.mkv": "variable frame rate",
    "grey.avi": "greyscale",
    "turned.mp4": "turned upright by",
    "caf\\xe9.avi": "not UTF-8",
}


def run(source: Path, out: Path, *flags: str, largest: int = 0) -> subprocess.CompletedProcess:
    """The command as users give it, on a system that refuses files of more than `largest` bytes (0: any size)."""
    words = [sys.executable, "-m", "vf.data.prepare", "folder", f"--source={source}", f"--out={out}", *flags]
    words += ["--size=16", "--workers=1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, cwd=ROOT, **streams) as process:
        if largest:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
        outputs = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, *outputs)


def test_bad_files_are_left_out_and_reported(unusual_videos, tmp_path):
    done = run(unusual_videos, tmp_path / "out")
    assert done.returncode == LOST, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "no classes, which model.condition=label alone needs: a folder around every clip, as" in done.stdout
    assert set(manifest["rejected"]) == set(REASONS)
    for name, reason in REASONS.items():
        assert reason in manifest["rejected"][name]
        assert manifest["rejected"][name]
        assert f"{name}: {manifest['rejected'][name]}" in done.stdout
    for name, note in UNUSUAL.items():
        assert any(note in recorded for recorded in manifest["notes"][name]), name
    index = manifest["splits"]["train"]["index"]
    frames = dict(zip(index["name"], index["frames"], strict=True))
    expected = {"good.avi": LENGTH, "odd.mkv": 5, "variable.mkv": 8, "grey.avi": 4, "turned.mp4": 6, "frames": 20}
    assert frames == expected | {"moving.gif": 4, 240 * "n" + ".avi": 3, "caf\\xe9.avi": LENGTH, "no_index.avi": LENGTH}
    assert "Traceback" not in done.stderr

    source = Prepared(tmp_path / "out", windows=Windows(2, start="centre"))
    clips = {name: source.clip(k, None)["video"] for k, name in enumerate(source.names)}
    assert [number(frame) for frame in clips["frames"]] == [9, 10]  # in natural order
    assert [number(frame) for frame in clips["moving.gif"]] == [1, 2]
    assert [number(frame) for frame in clips["variable.mkv"]] == [6, 13]
    np.testing.assert_array_equal(clips["grey.avi"][0], 50)
    # Clockwise: what was below left comes to be above left.
    corners = clips["turned.mp4"][0][[2, 2, 13, 13], [2, 13, 2, 13]]
    assert corners.argmax(1).tolist()[:2] == [2, 0]
    assert corners[3].argmax() == 1
    assert corners[2].max() < 60


def test_how_a_table_was_read_is_told(tmp_path, capsys, monkeypatch):
    """In the manifest, and at the end of the command, also where the data are prepared already."""
    write_frames(tmp_path / "in" / "1")
    (tmp_path / "table.csv").write_bytes("path;prompt;licence\n1;café;free\n".encode("cp1252"))
    flags = [f"--source={tmp_path / 'in'}", f"--table={tmp_path / 'table.csv'}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["prepare", "folder", *flags, "--size=16", "--workers=1"])
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        printed = capsys.readouterr().out.splitlines()
        told = json.loads((tmp_path / "out" / "manifest.json").read_text())["table_notes"]
        assert [line.split()[0] for line in told] == ["captions", "table.csv", "1"]
        assert set(told) <= set(printed)


def test_an_unknown_data_set_is_answered_by_the_nearest(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        arguments(["foldr", "--source=a", "--out=b"])
    assert "there is no data set 'foldr': did you mean folder?" in capsys.readouterr().err


def test_strict_makes_any_loss_a_failure(unusual_videos, tmp_path):
    done = run(unusual_videos, tmp_path, "--strict")
    assert done.returncode == 2
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith(f"vf: {len(REASONS)} clips rejected, and none may be")
    assert last_line.endswith("(--strict)")
    assert not (tmp_path / "manifest.json").exists()
    again = run(unusual_videos, tmp_path)  # what was packed before is not taken for finished
    assert again.returncode == LOST, again.stderr
    assert len(Prepared(tmp_path, windows=Windows(2))) == len(
        json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["index"]["name"]
    )


def test_strict_knows_of_what_pictures_lose(tmp_path):
    for k in range(3):
        (tmp_path / "videos" / "clip").mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 20), (255, 0, 0, 9)).save(tmp_path / "videos" / "clip" / f"{k}.png")
    (tmp_path / "videos" / "notes.txt").touch()
    done = run(tmp_path / "videos", tmp_path / "strict", "--strict")
    assert done.returncode == 2
    assert "vf: 1 loss of pictures, and none may be: clip: lost: its transparency, laid on black" in done.stderr
    assert not (tmp_path / "strict" / "manifest.json").exists()
    done = run(tmp_path / "videos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 x such as clip: lost: its transparency, laid on black" in done.stdout
    assert "1 x such as notes.txt: is neither a video nor a picture that is read" in done.stdout


@pytest.mark.parametrize("largest", [30_000, 200_000])  # a clip has 70 x 16 x 16 x 3 bytes, and there are nine
def test_a_full_disk_is_reported_and_finished_clips_remain(ucf, tmp_path, largest):
    done = run(ucf, tmp_path / "out", largest=largest)  # refused as on a full disk
    assert done.returncode == 2
    assert f"vf: cannot write to {tmp_path / 'out'}" in done.stderr
    assert "File too large" in done.stderr
    assert "finished clips are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(ucf, tmp_path / "out").returncode == 0


def test_an_output_that_cannot_be_written_is_reported(ucf, tmp_path):
    (tmp_path / "file").touch()
    done = run(ucf, tmp_path / "file" / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"vf: cannot write to {tmp_path / 'file' / 'out'}: Not a directory")


def test_sigterm_stops_it_in_one_sentence(many, tmp_path):
    status, stderr = interrupt(many, tmp_path, signal.SIGTERM)
    assert status == 130
    assert "vf: stopped; finished clips are kept" in stderr
    assert "Traceback" not in stderr
