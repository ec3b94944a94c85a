"""The command as users give it; for bad input it prints one sentence, exits with 2 and writes no number."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import write, write_frames
from vf import evaluate
from vf.data.clips import Windows
from vf.evaluate import protocol_of
from vf.metrics import fvd
from vf.metrics.protocol import ClipProtocol, Score, protocol_hash
from vf.nets.feature_network import Network
from vf.pretrained import weights
from vf.scores import features
from vf.scores.sets import open_set
from vf.scores.sources import Choice
from vf.types import UserError
from vf.video import save_npz, write_gif

ROOT = Path(__file__).parents[1]


def clips(n: int, seed: int, frames: int = 16, side: int = 8) -> np.ndarray:
    """Noise of 64 colours, so that a GIF holds it, around a grey that each clip has for itself."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 4, (64, 3)) * 20
    grey = rng.integers(0, 190, (n, 1, 1, 1, 1))
    return (grey + palette[rng.integers(0, 64, (n, frames, side, side))]).astype(np.uint8)


def tiny(params, fingerprint, lineage, *, exact=True):
    """Stands in for I3D: mean colours, times a weight."""

    def apply(params, x):
        if x.shape[1] < 9:
            raise ValueError(f"I3D needs 9 frames or more, got {x.shape[1]}")
        return params["scale"] * x.astype(jnp.float32).mean((1, 2, 3)) / 64

    return Network("i3d", 3, params, apply, {"weights": fingerprint, "eps": lineage.eps, "exact": exact})


def save_weights(path: Path, scale: float = 1.0, origin: str = "rgb_scratch") -> Path:
    weights.save(path, "i3d", {"scale": np.float32(scale)}, {"weights": origin, "black_white_16": 1.0})
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A folder with real and generated clips and converted weights of a small network that stands in for I3D."""
    monkeypatch.setattr(fvd, "network", tiny)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_npz("real.npz", clips(40, 0))
    save_npz("generated.npz", clips(30, 1))
    save_weights(Path("i3d.safetensors"))
    return tmp_path


SIDES = ("--real=real.npz", "--generated=generated.npz")
GOOD = (*SIDES, "--i3d=i3d.safetensors", "--out=out.json")


def run(*flags: str) -> dict:
    evaluate.main(flags)
    return json.loads(Path("out.json").read_text())


def error_line(capsys, *flags: str) -> str:
    """The one line on stderr of a command that fails; checks that stdout is empty and no file is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        evaluate.main(flags)
    assert error.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert not Path("out.json").is_file()
    busy = ("still ", "now ")  # on a machine that is
    lines = [line for line in output.err.splitlines() if not line.startswith(busy)]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("vf: ")
    assert "Traceback" not in output.err
    return lines[0]


# ---- a number, and what comes with it --------------------------------------------------------------------------


@pytest.mark.parametrize(("fps", "stride", "told"), [(8, 1, True), (25, 1, False), (0, 1, False), (12.5, 2, False)])
def test_clips_of_another_rate_are_warned_of(tmp_path, caplog, fps, stride, told):
    """As those of a run's drawing, whose data was read at a rate, beside the videos themselves, which are of 25."""
    write(tmp_path / "real" / "a.mp4", times=range(80))
    save_npz(tmp_path / "drawing" / "clips.npz", clips(2, 1))
    (tmp_path / "drawing" / "meta.json").write_text(json.dumps({"fps": fps} if fps else {}))
    protocol = ClipProtocol(frames=16, stride=stride)
    real, generated = evaluate.open_sides(tmp_path / "real", tmp_path / "drawing", protocol)
    assert (real.facts["rate"], generated.facts["rate"]) == (25 / stride, fps or None)
    sentence = "real clips are of 25 frames per second, generated ones of 8 (medians),"
    warned = sentence in caplog.text and "--fps=8" in caplog.text
    assert warned == told
    assert ("frames per second" in caplog.text) == told
    caplog.clear()
    evaluate.open_sides(tmp_path / "real", tmp_path / "drawing", dataclasses.replace(protocol, fps=fps or 5.0))
    assert "frames per second" not in caplog.text


def test_a_score_with_its_protocol(workspace, capsys):
    found = run(*GOOD, "--metrics=fvd,kvd", "--bootstrap=20")
    output = capsys.readouterr().out
    for name in ("fvd", "kvd"):
        score = found["scores"][name]
        assert score["protocol_hash"] == protocol_hash(score["protocol"])
        assert score["protocol_hash"] in output
        assert f"{score['value']:.4f}" in output
        assert score["low"] <= score["value"] <= score["high"]
        assert (score["n_real"], score["n_generated"], score["reference_n"]) == (40, 30, 20)
    assert found["scores"]["fvd"]["real_against_real"] < found["scores"]["fvd"]["value"] + 1
    assert found["real"]["path"] == "real.npz"
    assert found["generated"]["clips"] == 30
    protocol = found["scores"]["fvd"]["protocol"]
    assert found["real"]["too_short"] == 0
    assert protocol["real"] == {"fingerprint": found["real"]["fingerprint"], "too_short": 0}
    for warning in ("30 clips the distance is mostly bias", "30 clips the distance varies", "40 real and 30 generated"):
        assert output.count(warning) == 1


def test_the_number_is_the_distance(workspace):
    x, y = (clips(n, seed).astype(np.float64).mean((1, 2, 3)) / 64 for n, seed in ((40, 0), (30, 1)))
    found = run(*GOOD, "--lineage=google")["scores"]["fvd"]["value"]
    assert found == pytest.approx(fvd.fvd(x, y, fvd.LINEAGES["google"]), rel=1e-4)


def test_one_metric_is_shown_with_its_whole_protocol(workspace, capsys):
    run(*GOOD)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("protocol ")]
    assert "metric fvd" in line
    assert "lineage styleganv" in line


@pytest.mark.parametrize("form", ["frames", "gifs"])
def test_the_same_number_from_the_same_pixels(workspace, form):
    """As folders of frames, more than ten of them, or as GIFs of any rate."""
    value = run(*GOOD)["scores"]["fvd"]["value"]
    for k, clip in enumerate(clips(30, 1)):
        if form == "gifs":
            Path("gifs").mkdir(exist_ok=True)
            write_gif(f"gifs/{k}.gif", clip, fps=3 + k)
        else:
            folder = Path("frames") / f"clip_{k}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(clip):
                Image.fromarray(frame).save(folder / f"frame_{t}.png")
    found = run(*GOOD, f"--generated={form}")
    assert found["scores"]["fvd"]["value"] == pytest.approx(value, rel=1e-6)


def test_the_same_number_from_any_batch_and_number_of_devices(workspace, monkeypatch):
    value = run(*GOOD, "--no-cache")["scores"]["fvd"]
    for size, count in ((1, 8), (7, 1), (16, 3), (500, 1)):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: jax.devices()[:count])
        found = run(*GOOD, "--no-cache", f"--batch-size={size}")["scores"]["fvd"]
        assert found["value"] == pytest.approx(value["value"], rel=1e-6)
        assert found["protocol_hash"] == value["protocol_hash"]


def test_features_are_reused_and_never_stale(workspace, monkeypatch):
    """Neither with another video of the same name nor with other weights in a file of the same name."""
    runs: list[int] = []
    whole = features._run
    monkeypatch.setattr(features, "_run", lambda *args: runs.append(1) or whole(*args))
    first = run(*GOOD)["scores"]["fvd"]
    assert len(runs) == 2
    assert run(*GOOD, "--metrics=fvd,kvd,fvd_infinity")["scores"]["fvd"] == first
    assert len(runs) == 2
    save_npz("generated.npz", clips(30, 5))
    second = run(*GOOD)["scores"]["fvd"]
    assert len(runs) == 3  # the real ones are known
    assert second["value"] != first["value"]
    assert second["protocol_hash"] == first["protocol_hash"]
    save_weights(Path("i3d.safetensors"), scale=2.0)
    third = run(*GOOD)["scores"]["fvd"]
    assert len(runs) == 5
    assert third["value"] == pytest.approx(4 * second["value"], rel=1e-5)
    assert third["protocol_hash"] != second["protocol_hash"]
    for path in (workspace / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert run(*GOOD)["scores"]["fvd"] == third
    assert len(runs) == 7


def test_another_real_set_is_another_protocol(workspace):
    first = run(*GOOD)["scores"]["fvd"]
    changed = clips(40, 0)
    changed[0, 0, 0, 0, 0] ^= 1
    save_npz("real.npz", changed)
    assert run(*GOOD)["scores"]["fvd"]["protocol_hash"] != first["protocol_hash"]


def test_other_weights_need_to_be_asked_for(workspace, capsys):
    save_weights(Path("i3d.safetensors"), origin="rgb_imagenet")
    error = error_line(capsys, *GOOD)
    assert "these are the rgb_imagenet weights" in error
    assert error.strip().endswith("(--other-weights)")
    assert list(run(*GOOD, "--other-weights")["scores"]) == ["fd_i3d"]


@pytest.mark.parametrize("field", dataclasses.fields(ClipProtocol), ids=lambda field: field.name)
def test_every_field_of_a_protocol_has_a_flag(field):
    if field.name in ("unknown", "quantisation", "crop"):
        return
    flag = f"--{field.name.replace('_', '-')}"
    value = {bool: True, int: 3, float: 2.5}.get(type(field.default), "tats")
    value = {"windows": "all", "generated_windows": "all", "subset": "first", "resampler": "antialiased"}.get(
        field.name, value
    )
    words = [flag] if value is True else [f"{flag}={value}"]
    made = protocol_of(evaluate.arguments(["--generated=x", "--protocol=google", *words]))
    assert made == dataclasses.replace(ClipProtocol("google"), **{field.name: value})


def test_a_flag_can_override_a_preset():
    args = evaluate.arguments(["--generated=x", "--protocol=styleganv_ucf101_16f", "--no-fewer-real", "--n-real=0"])
    made = protocol_of(args)
    assert (made.fewer_real, made.n_real, made.size) == (False, 0, 256)


def test_fewer_real_clips_are_accepted_where_the_protocol_allows_them(workspace, capsys):
    flags = (*GOOD, "--protocol=styleganv_sky_16f", "--n-generated=30", "--size=0", "--split=")
    assert run(*flags)["scores"]["fvd"]["n_real"] == 40
    Path("out.json").unlink()
    assert "real.npz gives 40 clips" in error_line(capsys, *flags, "--no-fewer-real")


def test_trials(workspace, capsys):
    found = run(*GOOD, "--n-real=10", "--n-generated=10", "--trials=4")["scores"]["fvd"]
    assert found["drawn_from"] == [40, 30]
    assert (found["n_real"], found["n_generated"]) == (10, 10)
    assert f"+- {found['std']:.4g}" in capsys.readouterr().out
    Path("out.json").unlink()
    assert "trials" in error_line(capsys, *GOOD, "--trials=4", "--bootstrap=20")
    assert "gives 30 clips where the protocol takes 31" in error_line(capsys, *GOOD, "--n-generated=31", "--trials=2")


def test_a_property_needs_no_real_clips(workspace, capsys):
    found = run("--generated=generated.npz", "--metrics=flicker", "--out=out.json")
    assert list(found["scores"]) == ["flicker"]
    assert "real" not in found
    assert "flicker" in capsys.readouterr().out


def test_segments(workspace):
    for name, seed in (("real", 0), ("generated", 1)):
        save_npz(f"{name}.npz", clips(20, seed, frames=40))
    assert list(run(*GOOD, "--metrics=fvd_segments", "--frames=40")["scores"]) == ["fvd_segments_00", "fvd_segments_01"]


def test_the_subset_of_a_protocol_is_of_both_sides(workspace):
    """StyleGAN-V takes the first of both."""
    found = run(*GOOD, "--n-real=20", "--n-generated=10", "--subset=first")["scores"]["fvd"]
    save_npz("real.npz", clips(40, 0)[:20])
    save_npz("generated.npz", clips(30, 1)[:10])
    assert run(*GOOD)["scores"]["fvd"]["value"] == pytest.approx(found["value"], rel=1e-6)


# ---- bad input is answered in one sentence ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--generated is missing"),
        (("--generated=generated.npz",), "--real is missing, and fvd compares with real clips"),
        (SIDES, r"no weights of i3d were named: make a file of kinetics-i3d's .* --source=FILE.* \(--i3d\)$"),
        ((*SIDES, "--i3d=no.safetensors"), "no weights at no.safetensors"),
        ((*SIDES, "--i3d=real.npz"), "real.npz is no whole file of i3d weights"),
        ((*GOOD, "--real=nowhere"), r"nowhere does not exist: .* \(--real\)$"),
        ((*GOOD, "--generated=nowhere"), r"nowhere does not exist: .* \(--generated\)$"),
        ((*GOOD, "--generated=nowhere.npz"), r"nowhere.npz does not exist: .* \(--generated\)$"),
        (
            (*GOOD, "--generated=i3d.safetensors"),
            r"is neither a video nor a picture that is read: name .* unpack other archives first .* \(--generated\)$",
        ),
        ((*GOOD, "--metrics=fdv"), "unknown metric fdv in --metrics: did you mean fvd\\?"),
        ((*GOOD, "--metrics=,"), "--metrics must be of .* got none"),
        ((*GOOD, "--protocol=styleganV"), "--protocol must be one of google, .* got 'styleganV'"),
        ((*GOOD, "--protocol=tats_ucf101"), "generated.npz|real.npz"),
        ((*GOOD, "--n-generated=31"), "generated.npz gives 30 clips .* where the protocol takes 31"),
        ((*GOOD, "--size=64"), "holds clips of 8 x 8 pixels and the protocol asks for 64"),
        ((*GOOD, "--frames=17"), "real.npz holds clips of 16 frames, too few for 17 frames"),
        ((*GOOD, "--stride=2"), "real.npz holds clips of 16 frames, too few for 16 frames with stride 2"),
        ((*GOOD, "--frames=8"), "these clips cannot be scored: fvd: I3D needs 9 frames or more, got 8"),
        ((*GOOD, "--fps=8"), r"has no rate, set fps to 0 to go by stride \(--fps\)$"),
        ((*GOOD, "--fps=nan"), "--fps must be 0 to"),
        ((*GOOD, "--fps=inf"), "--fps must be 0 to"),
        ((*GOOD, "--frames=1000000000000"), "--frames must be 1 to 1000000"),
        ((*GOOD, "--fps=8", "--windows=blocks"), "blocks go by stride"),
        ((*GOOD, "--n-real=1"), "2 clips or more on each side, got 1 real"),
        ((*GOOD, "--metrics=fvd_infinity", "--n-generated=7"), "8 clips or more on each side, got 7"),
        ((*GOOD, "--metrics=fvd_segments"), "clips need 32 or more, got 16"),
        ((*GOOD, "--metrics=clipsim"), r"no weights of clip were named: .* \(--clip\)$"),
        ((*GOOD, "--frames=0"), "--frames must be 1 to 1000000, got 0"),
        ((*GOOD, "--seed=-1"), "--seed must be 0 to"),
        ((*GOOD, "--batch-size=0"), "--batch-size must be at least 1"),
        ((*GOOD, "--batch-size=many"), "argument --batch-size: invalid int value: 'many'"),
        ((*GOOD, "--bootstrap=3"), "--bootstrap needs 20 resamples or more"),
        ((*GOOD, "--windows=some"), "argument --windows: invalid choice: 'some'"),
        ((*GOOD, "--fast"), "unrecognized arguments: --fast"),
        (("--selfcheck",), "--i3d is missing"),
        (("--selfcheck", "--i3d=no.safetensors"), "no weights at no.safetensors"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(workspace, capsys, flags, message):
    error = error_line(capsys, *flags)
    assert re.search(message, error), error


def dim(n: int) -> np.ndarray:
    return (clips(n, 3) > 128).astype(np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"clips": clips(5, 0).astype(np.float32) / 127.5 - 1}, "uint8 .* found float32"),
        ({"clips": clips(5, 0).transpose(0, 1, 4, 2, 3)}, r"found uint8 \[5, 16, 3, 8, 8\]"),
        ({"videos": clips(5, 0)}, "expected the key 'clips' and found"),
        ({"clips": dim(5)}, r"no pixel of the generated clips exceeds 1: values of \[0, 1\]"),
        ({"clips": clips(5, 0)[:0]}, "holds no clips"),
        ({"clips": clips(1, 0)}, "2 clips or more on each side, got 1 generated"),
    ],
    ids=["floats", "channels first", "another key", "of 0 to 1", "empty", "one"],
)
def test_arrays_that_are_not_clips(workspace, capsys, arrays, message):
    np.savez("generated.npz", **arrays)
    error = error_line(capsys, *GOOD)
    assert re.search(message, error), error


def test_folders_that_hold_something_else(workspace, capsys):
    Path("folder").mkdir()
    assert "folder holds no videos" in error_line(capsys, *GOOD, "--generated=folder")
    write(Path("folder/a.mp4"))
    write(Path("folder/b.mp4"), times=range(12))
    error = error_line(capsys, *GOOD, "--generated=folder")
    assert "1 clip of folder too short for 16 frames with stride 1 (the first, b.mp4 has 12" in error
    assert error.rstrip().endswith("so take shorter clips (--frames)")
    Path("folder/b.mp4").unlink()
    write_frames(Path("folder/c"), range(20), size=(32, 32))
    assert "choose one size for all (--size)" in error_line(capsys, *GOOD, "--generated=folder")
    shutil.rmtree("folder/c")
    Path("folder/a.mp4").write_bytes(b"no video")
    assert "of 1 clip of folder none can be read" in error_line(capsys, *GOOD, "--generated=folder", "--size=8")


@pytest.mark.parametrize("damage", ["video", "frame"])
def test_files_that_cannot_be_read_are_left_out_and_named(workspace, capsys, damage):
    """Status 3, or 0 where that is asked for; the score is that of the others, on either side."""
    for k, clip in enumerate(clips(7, 2)):
        write_gif(f"folder/{k}.gif", clip, fps=8)
    flags = (*GOOD, "--real=folder", "--generated=folder", "--metrics=fvd", "--frames=16", "--fewer-real")
    flags = (*flags, "--n-generated=0", "--n-real=0")
    alone = run(*flags)
    name = "0.mp4"
    if damage == "video":
        Path("folder/0.mp4").write_bytes(b"no video")
    else:  # which is found while clips are read
        name = "7"
        write_frames(Path("folder/7"), range(16), size=(8, 8))
        Path("folder/7/frame_9.png").write_bytes(b"no picture")
    for more, status in (((), 3), (("--skip-bad",), 0)):
        capsys.readouterr()
        Path("out.json").unlink()
        with pytest.raises(SystemExit) as ended:
            evaluate.main((*flags, *more))
        assert ended.value.code == status
        lines = capsys.readouterr().err.splitlines()
        assert lines[-2] == "vf: left out of folder, since it could not be read (1 in all):"
        assert lines[-1].startswith(f"  {name}: ")
        found = json.loads(Path("out.json").read_text())
        assert list(found["generated"]["bad"]) == list(found["real"]["bad"]) == [name]
        assert found["real"]["too_short"] == 0
        assert found["scores"] == alone["scores"]


@pytest.mark.parametrize("out", [".", "/dev/null", "file/out.json", "/proc/none/out.json"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(workspace, capsys, monkeypatch, out):
    Path("file").write_text("in the way")
    monkeypatch.setattr(evaluate, "open_sides", lambda *args: pytest.fail("work was done"))
    assert out in error_line(capsys, *GOOD[:-1], f"--out={out}")
    assert not Path("/dev/null").is_file()


def test_a_cache_that_cannot_be_written_is_a_warning(workspace, capsys):
    Path("file").write_text("in the way")
    run(*GOOD, "--cache=file")
    assert "features are not kept" in capsys.readouterr().err


def test_a_damaged_file_of_weights(workspace, capsys):
    content = bytearray(Path("i3d.safetensors").read_bytes())
    content[-1] ^= 1
    Path("i3d.safetensors").write_bytes(content)
    assert "holds other values than were written" in error_line(capsys, *GOOD)


def test_weights_of_another_network(workspace, capsys):
    weights.save("c3d.safetensors", "c3d", {"scale": np.float32(1)}, {})
    assert "holds weights of c3d, where those of i3d are needed" in error_line(capsys, *GOOD, "--i3d=c3d.safetensors")


def test_features_that_are_not_finite(workspace, capsys):
    save_weights(Path("i3d.safetensors"), scale=np.inf)
    assert "features with NaN or infinities" in error_line(capsys, *GOOD)


def test_captions_must_match_the_clips(workspace, capsys, monkeypatch):
    monkeypatch.setattr(evaluate.networks, "networks", lambda *args, **more: ({}, True))
    flags = ("--generated=generated.npz", "--metrics=clipsim")
    assert "clipsim needs --captions=FILE" in error_line(capsys, *flags)
    assert "clipsim needs --vocabulary=FILE" in error_line(capsys, *flags, "--captions=captions.txt")
    flags = (*flags, "--captions=captions.txt", "--vocabulary=words.txt.gz")
    assert "captions.txt cannot be read" in error_line(capsys, *flags)
    assert "set --n-generated=0" in error_line(capsys, *flags, "--n-generated=10")


@pytest.mark.parametrize(
    ("content", "lines", "told"),
    [
        ("a cat\nun café\n", ["a cat", "un café"], ""),
        ("\ufeffa cat\r\nun café\r\n \n\n", ["a cat", "un café"], ""),
        ("a cat\u2028 sits\x0bdown\nun café", ["a cat\u2028 sits\x0bdown", "un café"], ""),
        ("a cat\n\nun café\n", ["a cat", "", "un café"], "1 line of captions.txt blank (the first, line 2)"),
        ("a cat\nun café\n".encode("utf-16"), ["a cat", "un café"], ""),
        (
            "a cat\nun café\n".encode("cp1252"),
            ["a cat", "un café"],
            "1 line of captions.txt not in UTF-8 (the first, line 2)",
        ),
    ],
)
def test_a_caption_is_a_line(workspace, capsys, monkeypatch, content, lines, told):
    """However an editor saves it: with a byte order mark, with letters that end lines elsewhere, with blank lines."""
    Path("captions.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    read: list[list[str]] = []

    def captions(texts, *args):
        read.append(texts)
        raise UserError("that is all")

    monkeypatch.setattr(evaluate.networks, "networks", lambda *args, **more: ({}, True))
    monkeypatch.setattr(evaluate.networks, "captions", captions)
    flags = ("--generated=generated.npz", "--metrics=clipsim", "--captions=captions.txt", "--vocabulary=words.txt.gz")
    with pytest.raises(SystemExit):
        evaluate.main(flags)
    assert read == [lines]
    warnings = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "that is all" not in line and not line.startswith(("still ", "now "))
    ]
    assert len(warnings) == bool(told)
    assert all(told in line for line in warnings)


def test_the_command_itself(tmp_path):
    """In a process of its own: exit status and streams."""
    command = [sys.executable, "-m", "vf.evaluate", "--generated=/nowhere", "--metrics=flicker"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    wrong = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        "vf: /nowhere does not exist: name a folder (or .zip, .tar) of videos, a video, an .npz or .npy, a prepared "
        "data set or a drawing of a run (--generated)\n"
    )


def test_help(capsys):
    with pytest.raises(SystemExit) as error:
        evaluate.main(["--help"])
    assert error.value.code == 0
    output = capsys.readouterr().out
    assert all(f"--{name}" in output for name in ("real", "generated", "protocol", "i3d", "n-real", "no-fewer-real"))


@pytest.mark.slow
def test_the_whole_command_with_i3d(tmp_path, monkeypatch, capsys):
    """Random weights in place of the public ones: the number is |f - g|^2 of two features, and not called FVD."""
    from flax.traverse_util import flatten_dict

    from vf.nets.i3d import I3D

    monkeypatch.chdir(tmp_path)
    shapes = jax.eval_shape(I3D().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 224, 224, 3), float))
    rng = np.random.default_rng(0)
    arrays = {
        name: (np.ones(leaf.shape) if name.endswith("var") else rng.normal(size=leaf.shape) * 0.05).astype(np.float32)
        for name, leaf in flatten_dict(shapes["params"], sep="/").items()
    }
    weights.save("i3d.safetensors", "i3d", arrays, {"weights": "", "black_white_16": 3.0})
    for name, seed in (("real", 0), ("generated", 1)):
        save_npz(f"{name}.npz", clips(4, seed, frames=9, side=16))
    flags = (*GOOD, "--frames=9", "--cache=cache", "--metrics=fvd,kvd")
    assert "--other-weights" in error_line(capsys, *flags)
    found = run(*flags, "--other-weights", "--batch-size=8")["scores"]
    assert found.keys() == {"fd_i3d", "kd_i3d"}
    assert found["fd_i3d"]["value"] > 0
    assert run(*flags, "--other-weights")["scores"] == found  # from the cache
    output = capsys.readouterr().out
    assert "9 frames are no multiple of 8" in output
    assert "4 real clips leave the covariance of 400 features singular" in output


# ---- both sides ------------------------------------------------------------------------------------------------


def test_the_stride_applies_to_real_clips_only(workspace):
    """The stride applies to real videos: every frame of a generated clip counts."""
    save_npz("long.npz", clips(10, 2, frames=64))
    protocol = ClipProtocol("google", windows="first", stride=4)
    real, generated = evaluate.open_sides(Path("long.npz"), Path("long.npz"), protocol)
    true = clips(10, 2, frames=64)
    np.testing.assert_array_equal(real[:], true[:, ::4])
    np.testing.assert_array_equal(generated[:], true[:, :16])


def test_sides_are_what_open_set_gives(workspace):
    protocol = ClipProtocol("google", windows="random", seed=4, n_real=12)
    real, generated = evaluate.open_sides(Path("real.npz"), Path("generated.npz"), protocol)
    choice = Choice(Windows(16, start="random"), n=12, seed=4)
    assert real.fingerprint == open_set(Path("real.npz"), choice).fingerprint
    assert len(generated) == 30
    assert evaluate.open_sides(None, Path("generated.npz"), protocol)[0] is None


def test_a_table_states_every_fact_once():
    protocol = {"metric": "a", "clips": {"n": 3, "size": [4, 4]}, "empty": ""}
    scores = [
        Score("a", 1234.56789, 0.001234, protocol, {"low": 1200.0, "high": 1300.0, "reference_n": 9, "n_real": 20,
                                                    "warnings": ["few", "odd"]}),
        Score("b", float("nan"), None, {**protocol, "metric": "b"}, {"std": 0.5, "warnings": ["few"]}),
    ]  # fmt: skip
    lines = evaluate.report(scores, unknown="the order").splitlines()
    assert lines[0].split() == ["score", "value", "95", "%", "real", "clips", "n", "real", "protocol"]
    assert lines[2].split() == ["a", "1234.5679", "1200", "...", "1300", "0.001234", "real", "to", "real", "(n", "=",
                                "9)", "20", protocol_hash(protocol)]  # fmt: skip
    assert lines[3].split()[:4] == ["b", "nan", "+-", "0.5"]
    assert lines[4:6] == ["warning: few", "warning: odd"]
    assert lines[6:8] == [f"protocol {protocol_hash(score.protocol)}: metric {score.name}" for score in scores]
    assert lines[8] == "and of all of them: clips (n 3, size 4 x 4), empty -"
    assert lines[9:] == ["not known of this protocol: the order"]
