"""From files to a prepared data set and back: colours tell frames, and everything that is broken is told."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.made import LENGTH, MPEG4, colour, number, write, write_frames
from vf.data import builders, prepare
from vf.data.clips import Windows
from vf.data.encoding import decode
from vf.data.folder import VideoFolder
from vf.data.listing import Item
from vf.data.pipeline import BadRecord
from vf.data.prepare import LOST
from vf.data.prepared import Prepared
from vf.data.staging import Parameters, stage
from vf.types import UserError

CLASSES = ("Archery", "Bowling", "Surfing")
ROOT = Path(__file__).parents[2]


def parameters(source: Path, dataset: str = "folder", **changes) -> Parameters:
    given = {
        "source": str(source), "size": 16, "encoding": "raw", "quality": 0, "splits": "", "fold": 1, "table": "",
        "embeddings": "", "fps": 0.0, "min_frames": 2,
    }  # fmt: skip
    return Parameters(dataset=dataset, **(given | changes))


def run(source: Path, out: Path, *flags: str, largest: int = 0) -> subprocess.CompletedProcess:
    """The command as users give it; on a system that refuses files of more than `largest` bytes, 0 = any."""
    words = [sys.executable, "-m", "vf.data.prepare", "folder", f"--source={source}", f"--out={out}", *flags]
    words += ["--size=16", "--workers=1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, cwd=ROOT, **streams) as process:
        if largest:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
        said = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, *said)


def single(root: Path, split: str = "train") -> Prepared:
    """Every frame of the data set is a clip."""
    return Prepared(root, windows=Windows(1, start="all"), split=split)


@pytest.fixture(scope="module")
def ucf(tmp_path_factory) -> Path:
    """UCF101's layout: three classes of three videos of 70 frames, and official split files beside."""
    root = tmp_path_factory.mktemp("made") / "UCF-101"
    for name in CLASSES:
        for group in (1, 2, 3):
            write(root / name / f"v_{name}_g0{group}_c01.avi")
    lists = root.parent / "ucfTrainTestlist"
    lists.mkdir()
    numbers = {name: k for k, name in enumerate(CLASSES, 1)}
    (lists / "classInd.txt").write_text("".join(f"{k} {name}\n" for name, k in numbers.items()))
    train = [f"{name}/v_{name}_g0{g}_c01.avi {numbers[name]}\n" for name in CLASSES for g in (2, 3)]
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(f"{name}/v_{name}_g01_c01.avi\n" for name in CLASSES))
    return root


@pytest.fixture(scope="module")
def prepared(ucf, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("prepared")
    return out, prepare.prepare(parameters(ucf, "ucf101"), out, workers=2)


def test_the_manifest_tells_what_there_is(prepared):
    out, manifest = prepared
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["classes"] == list(CLASSES)
    counts = {split: (made["clips"], made["frames"], made["per_class"]) for split, made in manifest["splits"].items()}
    assert counts == {
        "train": (6, 6 * LENGTH, dict.fromkeys(CLASSES, 2)),
        "test": (3, 3 * LENGTH, dict.fromkeys(CLASSES, 1)),
    }
    index = manifest["splits"]["train"]["index"]
    assert index["label"] == [0, 0, 1, 1, 2, 2]
    assert index["fps"] == [25.0] * 6
    assert all(len(digest) == 64 for digest in index["sha256"])
    assert manifest["rejected"] == {}
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "ucf101_clips"]  # nothing else is left


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
    for record in range(0, len(read), max(1, len(read) // 12)):
        for seed in (None, 0, 1):
            one, other = (
                source.clip(record, None if seed is None else np.random.default_rng(seed)) for source in (decoded, read)
            )
            np.testing.assert_array_equal(one["video"], other["video"])
            assert one["label"] == other["label"]


def test_splits_are_told_apart_and_can_be_joined(prepared):
    out, manifest = prepared
    train, test, both = (Prepared(out, windows=Windows(4), split=s) for s in ("train", "test", "train+test"))
    assert (len(train), len(test), len(both)) == (6, 3, 9)
    for record in range(9):
        part, at = (train, record) if record < 6 else (test, record - 6)
        np.testing.assert_array_equal(both.clip(record, None)["video"], part.clip(at, None)["video"])
    assert train.describe()["fingerprint"] == manifest["fingerprint"]
    with pytest.raises(UserError, match="no split 'dev': known are train, test"):
        Prepared(out, windows=Windows(4), split="dev")


def test_it_is_a_data_set_of_tfds(prepared):
    out, manifest = prepared
    builder = tfds.builder_from_directory(out / manifest["builder"])
    assert builder.info.features["label"].names == list(CLASSES)
    assert dict(builder.info.metadata)["encoding"] == "raw"
    rows = builder.as_data_source("test")
    assert len(rows) == 3 * -(-LENGTH // builders.SEGMENT)
    assert [(row["clip"], row["segment"], len(row["bytes"])) for row in rows][:6] == [
        (0, 0, 16), (0, 1, 16), (0, 2, 16), (0, 3, 16), (0, 4, 6), (1, 0, 16)
    ]  # fmt: skip
    assert list(rows[1]["bytes"]) == [16 * 16 * 3] * 16
    frame = rows[1]["frames"][2 * 16 * 16 * 3 :][: 16 * 16 * 3]
    assert number(decode([frame], "raw", 16)[0]) == 18
    assert rows[0]["name"] == b"Archery/v_Archery_g01_c01.avi"


def test_neither_writing_nor_reading_needs_tensorflow(ucf, tmp_path):
    program = (
        "import sys\n"
        "from vf.data.prepare import *\n"
        "from vf.data.prepared import Prepared\n"
        "from vf.data.clips import Windows\n"
        "if __name__ == '__main__':\n"
        "    parameters, args = arguments()\n"
        "    prepare(parameters, args.out, 1)\n"
        "    Prepared(args.out, windows=Windows(4)).clip(0, None)\n"
        "    print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])\n"
    )
    (tmp_path / "program.py").write_text(program)
    words = [sys.executable, str(tmp_path / "program.py"), "folder", f"--source={ucf / 'Bowling'}", "--size=8"]
    done = subprocess.run(
        [*words, f"--out={tmp_path / 'out'}"],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_encodings(ucf, tmp_path, prepared):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3)) for _ in range(20)]
    write(tmp_path / "videos" / "noise.avi", times=range(20), paint=lambda k: noise[k])
    found = {}
    for encoding, quality in (("raw", 0), ("png", 0), ("jpeg", 95)):
        out = tmp_path / encoding
        prepare.prepare(parameters(tmp_path / "videos", encoding=encoding, quality=quality), out, workers=1)
        found[encoding] = Prepared(out, windows=Windows(20)).clip(0, None)["video"].astype(int)
    np.testing.assert_array_equal(found["png"], found["raw"])
    assert 0 < np.abs(found["jpeg"] - found["raw"]).mean() < 8


def test_the_same_command_again_does_nothing_and_another_is_refused(prepared, ucf):
    out, manifest = prepared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare.prepare(parameters(ucf, "ucf101"), out, workers=2) == manifest | {"already": True}
    with pytest.raises(UserError, match=r"prepared already with other parameters .size was 16 and is 32"):
        prepare.prepare(parameters(ucf, "ucf101", size=32), out, workers=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.fixture(scope="module")
def many(ucf, tmp_path_factory) -> Path:
    """Sixty clips: enough to take seconds."""
    root = tmp_path_factory.mktemp("many")
    for k, file in itertools.product(range(60 // 9 + 1), sorted(ucf.rglob("*.avi"))):
        (root / f"{k}_{file.name}").symlink_to(file)
    return root


def interrupt(source: Path, out: Path, number: int) -> tuple[int, str]:
    """(status, what it said) of a preparation that gets a signal after its second clip."""
    words = [sys.executable, "-m", "vf.data.prepare", "folder", f"--source={source}", f"--out={out}", "--size=16"]
    process = subprocess.Popen([*words, "--workers=1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob(".staging/*.clip"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_killed_preparation_goes_on_where_it_was(many, tmp_path):
    out = tmp_path / "out"
    assert interrupt(many, out, signal.SIGKILL)[0] == -signal.SIGKILL
    time.sleep(0.5)  # for its worker to follow
    staged = {path.name: path.stat().st_mtime_ns for path in out.glob(".staging/*.clip")}
    assert len(staged) >= 2
    with pytest.raises(UserError, match=r"no manifest.json"):
        Prepared(out, windows=Windows(4))  # half a data set does not look whole
    with pytest.raises(UserError, match="unfinished preparation with other parameters"):
        prepare.prepare(parameters(many, size=8), out, workers=1)

    def keep(path, *args, **kwargs):  # what is cleared away
        kept.update({p.name: p.stat().st_mtime_ns for p in Path(path).glob("*.clip")})
        remove(path, *args, **kwargs)

    kept: dict[str, int] = {}
    remove = shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare.shutil, "rmtree", keep)
        made = prepare.prepare(parameters(many), out, workers=1)
    assert {name: kept[name] for name in staged} == staged  # finished clips were not decoded again
    assert len(kept) == 63
    assert made["fingerprint"] == prepare.prepare(parameters(many), tmp_path / "again", workers=2)["fingerprint"]


def staged_only(source: Path, out: Path) -> list[Path]:
    """Staged clips of a preparation that fails when it comes to packing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "_write_file", refusing)
        with pytest.raises(UserError, match="cannot write"):
            prepare.prepare(parameters(source), out, workers=1)
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
    made = prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert made["splits"]["train"]["index"]["frames"] == [9, 7]


def test_a_torn_staged_clip_is_made_again(tmp_path):
    for name in "abc":
        write(tmp_path / "videos" / f"{name}.avi", times=range(5))
    empty, torn, _ = staged_only(tmp_path / "videos", tmp_path / "out")
    empty.write_bytes(b"")
    torn.write_bytes(torn.read_bytes()[:-100])
    prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    source = Prepared(tmp_path / "out", windows=Windows(5))
    assert [[number(frame) for frame in source.clip(k, None)["video"]] for k in range(3)] == [[0, 1, 2, 3, 4]] * 3


def test_a_source_that_goes_away_stops_the_run(tmp_path):
    write(tmp_path / "a.avi", times=range(5))
    item = Item("a.avi", tmp_path / "a.avi")
    (tmp_path / "a.avi").unlink()
    with pytest.raises(UserError, match=r"a.avi cannot be read any more: .*No such file"):
        stage(item, parameters(tmp_path), tmp_path / "x.clip")
    (tmp_path / "a.avi").symlink_to("nowhere")
    assert "No such file" in stage(item, parameters(tmp_path), tmp_path / "x.clip")["rejected"]


@pytest.mark.parametrize("numbers", [[10**25, 10**25 + 1, 10**25 + 2], [0, 3 * 10**13], [5, 5, 6], [3, 2, 1]])
def test_numbers_of_frames_of_any_size(tmp_path, numbers):
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, name in enumerate(numbers):
        Image.fromarray(np.full((16, 16, 3), colour(k), np.uint8)).save(folder / f"{'abc'[k]}_{name}.png")
    facts = stage(Item("frames", folder), parameters(tmp_path), tmp_path / "x.clip")
    assert facts.get("frames") == len(numbers) or "has no frame between" in facts["rejected"]


def test_a_large_split_is_several_files(ucf, tmp_path, prepared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "SHARD", 20_000)  # two records and a bit
        made = prepare.prepare(parameters(ucf, "ucf101"), tmp_path, workers=1)
    assert made["fingerprint"] == prepared[1]["fingerprint"]
    assert len(list(tmp_path.rglob("ucf101_clips-train.array_record-*"))) == 17  # of 6 clips of 54 kB
    one, other = single(tmp_path), single(prepared[0])
    for record in range(len(other)):
        np.testing.assert_array_equal(one.clip(record, None)["video"], other.clip(record, None)["video"])


def test_two_preparations_do_not_mix(ucf, tmp_path):
    with (
        prepare._folder_of_our_own(tmp_path, parameters(ucf)),
        pytest.raises(UserError, match="another preparation is writing"),
    ):
        prepare.prepare(parameters(ucf), tmp_path, workers=1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Every kind of unusual and of broken input."""
    root = tmp_path_factory.mktemp("zoo")
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


def test_bad_files_are_left_out_and_told(zoo, tmp_path):
    done = run(zoo, tmp_path / "out")
    assert done.returncode == LOST, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["rejected"]) == set(REASONS)
    for name, reason in REASONS.items():
        assert reason in manifest["rejected"][name]
        assert manifest["rejected"][name]
        assert f"{name}: {manifest['rejected'][name]}" in done.stdout
    for name, note in UNUSUAL.items():
        assert any(note in told for told in manifest["notes"][name]), name
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


def test_strict_makes_any_loss_a_failure(zoo, tmp_path):
    done = run(zoo, tmp_path, "--strict")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"vf: {len(REASONS)} clips were rejected, and --strict allows none")
    assert not (tmp_path / "manifest.json").exists()
    again = run(zoo, tmp_path)  # what was packed before is not taken for finished
    assert again.returncode == LOST, again.stderr
    assert len(Prepared(tmp_path, windows=Windows(2))) == len(
        json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["index"]["name"]
    )


def test_where_every_clip_is_bad_there_is_no_data_set(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "empty.avi").touch()
    with pytest.raises(UserError, match=r"every clip was rejected, for example empty.avi"):
        prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)


def test_a_split_that_is_all_bad_is_left_out(tmp_path):
    write_frames(tmp_path / "videos" / "train" / "a")
    write_frames(tmp_path / "videos" / "test" / "b", [0, 1, 3])
    made = prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert list(made["splits"]) == ["train"]
    assert list(made["rejected"]) == ["test/b"]
    assert len(Prepared(tmp_path / "out", windows=Windows(4))) == 1


@pytest.mark.parametrize("largest", [30_000, 200_000])  # a clip has 70 x 16 x 16 x 3 bytes, and there are nine
def test_a_full_disk_is_told_and_finished_clips_are_kept(ucf, tmp_path, largest):
    done = run(ucf, tmp_path / "out", largest=largest)  # refused as on a full disk
    assert done.returncode == 2
    assert f"vf: cannot write to {tmp_path / 'out'}" in done.stderr
    assert "File too large" in done.stderr
    assert "finished clips are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(ucf, tmp_path / "out").returncode == 0


def test_a_disk_that_fills_while_records_are_written_is_told(tmp_path):
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            builders._write_file(tmp_path / "file", itertools.repeat(bytes(10**6), 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_an_output_that_cannot_be_written_is_told(ucf, tmp_path):
    (tmp_path / "file").touch()
    done = run(ucf, tmp_path / "file" / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"vf: cannot write to {tmp_path / 'file' / 'out'}: Not a directory")


def test_sigterm_stops_it_in_one_sentence(many, tmp_path):
    status, said = interrupt(many, tmp_path, signal.SIGTERM)
    assert status == 130
    assert "vf: stopped; finished clips are kept" in said
    assert "Traceback" not in said


def crash_on_seven(k: int) -> dict:
    """Work for a crew."""
    if k == 7:
        os._exit(11)
    return {"k": k}


def test_a_crash_of_the_decoder_costs_one_clip():
    crew = prepare._Crew(2, crash_on_seven)
    jobs = [(crew.submit(k), k) for k in range(12)]
    found = [crew.result(*job) for job in jobs]
    after = crew.submit(20)
    assert crew.result(after, 20) == {"k": 20}
    crew.close()
    assert found[7] == {"rejected": "crashes the decoder"}
    assert [f for k, f in enumerate(found) if k != 7] == [{"k": k} for k in range(12) if k != 7]


def test_damaged_files_never_raise(tmp_path):
    """A fuzz over containers: whatever the damage, a clip is staged or rejected with a reason."""
    rng = np.random.default_rng(0)
    codecs = {
        "a.avi": ("mpeg4", MPEG4),
        "b.mp4": ("libx264", {}),
        "c.mkv": ("libx264", {}),
        "d.webm": ("libvpx-vp9", {}),
    }
    rejected = 0
    for name, (codec, options) in codecs.items():
        write(tmp_path / name, codec, options, times=range(12))
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for case in range(25):
            data = whole[: rng.integers(1, len(whole))].copy() if case % 2 else whole.copy()
            places = rng.integers(0, len(data), rng.integers(1, 40))
            data[places] = rng.integers(0, 256, len(places))
            broken = tmp_path / f"{case}_{name}"
            broken.write_bytes(data.tobytes())
            facts = stage(Item(broken.name, broken), parameters(tmp_path), tmp_path / "x.clip")
            assert facts.get("rejected") or facts["frames"] >= 2, (name, case)
            rejected += "rejected" in facts
    assert 20 < rejected < 100


def test_captions_labels_and_embeddings_travel_in_records(ucf, tmp_path):
    names = [f"{name}/v_{name}_g0{g}_c01" for name in CLASSES for g in (1, 2)]
    rows = [f'{name}.avi,kind {k % 2},"clip {k}, with a comma"\n' for k, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("path,label,caption\n" + "".join(rows))
    vectors = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", name=[f"{name}.avi" for name in names], embedding=vectors)
    given = parameters(ucf, table=str(tmp_path / "table.csv"), embeddings=str(tmp_path / "vectors.npz"))
    made = prepare.prepare(given, tmp_path / "out", workers=1)
    source = Prepared(tmp_path / "out", windows=Windows(4, start="centre"), base_frame=1)
    assert source.class_names == ("kind 0", "kind 1")
    assert source.embedding_dim == 5
    for k in range(6):
        clip = source.clip(k, None)
        assert clip["label"] == k % 2
        np.testing.assert_array_equal(clip["embedding"], vectors[k])
    rows = tfds.builder_from_directory(tmp_path / "out" / made["builder"]).as_data_source("train")
    assert {row["caption"].decode() for row in rows} == {f"clip {k}, with a comma" for k in range(6)}
    assert len(made["unlisted"]) == 3


def test_an_embedding_that_is_missing_is_told(ucf, tmp_path):
    np.savez(tmp_path / "vectors.npz", name=["other.avi"], embedding=np.zeros((1, 5), np.float32))
    for bad in (np.zeros(9, np.float32), np.zeros((2, 3), np.float32)):
        np.savez(tmp_path / "bad.npz", name=["a"], embedding=bad)
        with pytest.raises(UserError, match=r"should hold `name` .* or `name` .n. and `embedding` .n d. alone"):
            prepare.prepare(parameters(ucf, embeddings=str(tmp_path / "bad.npz")), tmp_path / "out", workers=1)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(UserError, match="should hold"):
        prepare.prepare(parameters(ucf, embeddings=str(tmp_path / "bad.npy")), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"has no vector for 9 clips, the first is Archery/v_Archery_g01_c01.avi"):
        prepare.prepare(parameters(ucf, embeddings=str(tmp_path / "vectors.npz")), tmp_path / "out", workers=1)


def test_a_damaged_record_is_bad_and_no_crash(prepared, tmp_path):
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


def test_what_is_no_prepared_data_set_is_told(prepared, tmp_path):
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
    prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match=r"set --config.data.fps=0 to go by stride"):
        Prepared(tmp_path / "out", windows=Windows(4, fps=8))
    prepare.prepare(parameters(tmp_path / "videos", fps=16), tmp_path / "with_rate", workers=1)
    clip = Prepared(tmp_path / "with_rate", windows=Windows(4, fps=8)).clip(0, None)["video"]
    assert np.diff([number(frame) for frame in clip]).tolist() == [2, 2, 2]


def test_the_real_clips(real_clips, tmp_path):
    made = prepare.prepare(parameters(real_clips / "UCF-101", "ucf101", size=64), tmp_path, workers=2)
    assert made["splits"]["train"]["index"]["frames"] == [250] * 10
    assert made["splits"]["train"]["per_class"] == {"PlayingGuitar": 10}
    decoded = VideoFolder(real_clips / "UCF-101", windows=Windows(16), size=64)
    read = Prepared(tmp_path, windows=Windows(16))
    for record in range(10):
        one, other = (source.clip(record, np.random.default_rng(record)) for source in (decoded, read))
        np.testing.assert_array_equal(one["video"], other["video"])


def test_the_real_broken_clip_and_another_container(real_clips, tmp_path):
    for folder in ("broken", "other"):
        shutil.copytree(real_clips / folder, tmp_path / "videos", dirs_exist_ok=True)
    made = prepare.prepare(parameters(tmp_path / "videos"), tmp_path / "out", workers=1)
    assert list(made["rejected"]) == ["corrupted.mp4"]
    assert made["splits"]["train"]["index"]["frames"] == [310]
    assert made["splits"]["train"]["index"]["fps"] == [30.0]
