"""Runs every case of a folder of awkward inputs, and prints a line for each: its name, whether it is right, what came.

    python -m tests.cases FOLDER [NAME ...]

A case is a folder with a script `make.py DIR` or `make.sh DIR CLIP` that makes the input, or with the input itself.
What is right is said by a function of `CASES`, which takes the made input and an empty folder to work in. The exit
status is 1 where any case is wrong, or has no function.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.data.synthetic import parameters, write
from vf import evaluate
from vf.data import datasets
from vf.data.clips import Windows
from vf.data.folder import VideoFolder
from vf.data.notes import is_loss
from vf.data.pixels import Pixels
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.metrics import fvd
from vf.nets.clip import frame_consistency
from vf.pretrained import adm, convert, unet, weights
from vf.scores import networks
from vf.scores.sets import open_set
from vf.scores.sources import Choice
from vf.types import UserError
from vf.video import save_npz

ROOT = Path(__file__).parents[1]
SIZE = 32


class Wrong(Exception):
    """What came is not right; the message says what came."""


def check(is_right: bool, came: Any) -> None:
    """Raises Wrong with what came, unless it is right."""
    if not is_right:
        raise Wrong(str(came))


def prepared(made: Path, work: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest of a prepared source, and the frames u8 [n 32 32 3] of each clip of its split train."""
    manifest = prepare(parameters(made, size=SIZE), work / "out", workers=1)
    source, index = Prepared(work / "out", windows=Windows(1, start="all")), manifest["splits"]["train"]["index"]
    frames = np.concatenate([source.clip(record, None)["video"] for record in range(len(source))])
    ends = np.cumsum(index["frames"])[:-1]
    return manifest, dict(zip(index["name"], np.split(frames, ends), strict=True))


def summary(manifest: dict[str, Any]) -> str:
    """The clips of a manifest with their frames, notes and losses, on one line."""
    index = manifest["splits"]["train"]["index"]
    clips = ", ".join(f"{name} ({frames})" for name, frames in zip(index["name"], index["frames"], strict=True))
    told = {name: manifest[name] for name in ("notes", "rejected", "unlisted") if manifest[name]}
    return f"{clips}; {told}"


def trimmed(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    shown = clips["trim.mp4"].mean((1, 2, 3))
    check(len(shown) == 40 and np.abs(shown - 4 * np.arange(20, 60)).max() < 4, summary(manifest))
    check("edit list" in str(manifest["notes"]) and not manifest["rejected"], summary(manifest))
    return summary(manifest)


def hidden_frames(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    check(len(clips["altref.webm"]) == 50 and "variable" not in str(manifest["notes"]), summary(manifest))
    return summary(manifest)


def packed(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    pixels = Pixels(SIZE)
    with av.open(str(made / "packed.avi")) as container:
        decoded = [pixels(picture) for picture in container.decode(video=0)]
    check(np.array_equal(clips["packed.avi"], decoded) and len(decoded) == 12, summary(manifest))
    check("counted as they are decoded" in str(manifest["notes"]), summary(manifest))
    return summary(manifest)


def no_first_key(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    rows, columns = np.mgrid[:48, :64]
    pixels = Pixels(SIZE)
    for name, frames in clips.items():
        check(len(frames) == 40, summary(manifest))
        for k, frame in enumerate(frames, 20):
            picture = np.stack([(columns * 3 + 4 * k) % 256, (rows * 5 + 2 * k) % 256, (rows + columns) % 256], -1)
            true = pixels(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24"))
            check(np.abs(frame.astype(int) - true).mean() < 10, f"frame {k} of {name} is another picture")
    check(all(any(map(is_loss, manifest["notes"][name])) for name in clips), summary(manifest))
    return summary(manifest)


def alpha(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    corner, centre = clips["clip"][:, 0, 0], clips["clip"][:, 15, 15].astype(int)
    check(corner.max() == 0 and np.abs(centre - (10, 200, 10)).max() < 4, f"corner {corner[0]}, centre {centre[0]}")
    check("transparency, laid on black" in str(manifest["notes"]), summary(manifest))
    return summary(manifest)


def grey_16(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    ramp = clips["clip"][0, 0, :, 0].astype(float)
    check(np.abs(ramp - np.linspace(2, 253, SIZE)).max() < 5, ramp)
    check("16 bits" in str(manifest["notes"]), summary(manifest))
    return summary(manifest)


def animated(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    check([len(frames) for frames in clips.values()] == [6] * 6, summary(manifest))
    check(manifest["splits"]["train"]["per_class"] == {"cats": 3, "dogs": 3}, summary(manifest))
    return summary(manifest)


def frame_numbers(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    check({len(frames) for frames in clips.values()} == {4} and len(clips) == 5, summary(manifest))
    strays = {"with_cover/cover.jpg", "with_cover/Thumbs.png", *(f"both_kinds/{k:04d}.jpg" for k in range(4))}
    check(set(manifest["unlisted"]) == strays, summary(manifest))
    return summary(manifest)


def unknown_extensions(made: Path, work: Path) -> str:
    manifest, clips = prepared(made, work)
    check([len(frames) for frames in clips.values()] == [20] * 7, summary(manifest))
    scored = open_set(made, Choice(Windows(8, start="first"), size=SIZE))
    check(len(scored) == 7 and not scored.facts["bad"], f"evaluation has {len(scored)} clips, {scored.facts['bad']}")
    return summary(manifest)


def class_named_train(made: Path, work: Path) -> str:
    manifest, _ = prepared(made, work)
    classes = manifest["splits"]["train"]["per_class"]
    check(classes == {"bus": 2, "car": 2, "plane": 2, "train": 2}, classes)
    return str(classes)


def on_the_fly(made: Path, work: Path) -> str:
    def names(root: str, split: str | None = None) -> tuple[tuple[str, ...], dict[str, str]]:
        file = None if split is None else made / split
        source = VideoFolder(made / root, windows=Windows(8), size=SIZE, split_file=file)
        return source.names, source.rejected

    both, missing = ("a/1.avi", "b/1.avi"), {"b/caf\\xe9.avi": "is not in the folder"}
    expected = {
        ("d", None): (both, {}), ("e", None): (("1.avi",), {}), ("d", "bom.txt"): (both, {}),
        ("d", "backslash.txt"): (both, {}), ("d", "latin1.txt"): (both[:1], missing),
        ("d", "utf16.txt"): (both[:1], {}),
    }  # fmt: skip
    found = {which: names(*which) for which in expected}
    check(found == expected, found)
    return f"{len(found)} folders and lists as preparation reads them"


def memory(made: Path, work: Path) -> str:
    peaks = {}
    for resampler in ("swscale", "antialiased"):
        command = [sys.executable, "-m", "vf.evaluate", "--protocol=styleganv", "--metrics=flicker", "--n-real=0"]
        command += ["--n-generated=0", "--frames=16", "--size=256", f"--resampler={resampler}", "--no-cache"]
        command += [f"--real={made}", f"--generated={made}"]
        with (work / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        check(status == 0, (work / "log").read_text()[-300:])
        peaks[resampler] = usage.ru_maxrss / 2**20  # of KiB on Linux
    came = ", ".join(f"{peak:.2f} GiB with {name}" for name, peak in peaks.items())
    check(max(peaks.values()) < 1.5, came)
    return came


def command(*words: Any, seconds: float = 900, **environment: str) -> tuple[int, str]:
    """The status of a command in the folder of the code, and what it printed; `python` is this one."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, words)], cwd=ROOT, env=os.environ | path | environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def tables(made: Path, work: Path) -> str:
    told = []
    for table, captions, word in (
        ("latin1.csv", ["café au lait", "tea"], "read as Windows-1252"),
        ("prompt.csv", ["a cat", "a dog"], "captions are the column 'prompt'"),
    ):
        listing = datasets.webvid(made / "v", None, 1, made / table)
        check([item.caption for item in listing.items] == captions, listing.items)
        check(word in str(listing.table_notes), listing.table_notes)
        told += listing.table_notes
    return "; ".join(told)


def captions(made: Path, work: Path) -> str:
    plain = ["a cat", "a dog", "a man", "the sea"]
    for name, lines in (("bom.txt", plain), ("u2028.txt", ["a cat\u2028 sits", *plain[1:]])):
        found = evaluate.read_captions(made / name)
        check(found == lines, found)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        logging.basicConfig(force=True)
        found = evaluate.read_captions(made / "blank.txt")
    check(found == ["a cat", "", *plain[2:]] and "blank (the first, line 2)" in told.getvalue(), told.getvalue())
    return told.getvalue()


def arrays_to_score(made: Path, work: Path) -> str:
    write(work / "one.mp4")
    sets = {path.name: open_set(path, Choice(Windows(16, start="first"))) for path in sorted(made.iterdir())}
    check(len({one.fingerprint for one in sets.values()}) == 1, {name: one.fingerprint for name, one in sets.items()})
    check(len(open_set(work / "one.mp4", Choice(Windows(16, start="first")))) == 1, "one.mp4")
    np.save(work / "first.npy", np.load(made / "clips.npy").repeat(3, 0).swapaxes(0, 1))
    try:
        open_set(work / "first.npy", Choice(Windows(16, start="first")))
    except UserError as error:
        return f"{', '.join(sets)}; {error}"
    raise Wrong("an array with time first passes")


def checkpoints(made: Path, work: Path) -> str:
    found = {}
    for path in sorted(made.glob("*.pt")):
        found[path.name] = convert.convert_base("adm", path, work / f"{path.stem}.st", assume={"head_dim": 32})
    prints = {name: one.fingerprint for name, one in found.items()}
    check(len(prints) == 9 and len(set(prints.values())) == 1, prints)
    both = found["both.pt"].about
    check((both["copy"], both["other_copies"]) == ("ema", ["model"]), both)
    raw = convert.convert_base("adm", made / "both.pt", work / "raw.st", assume={"head_dim": 32}, copy="model")
    check(not any(array.any() for array in raw.arrays.values()), "--weights=model gives others")
    return f"{prints}, of both.pt {both['copy']}"


def variants(made: Path, work: Path) -> str:
    found = {
        name: convert.convert_base("adm", made / name, work / f"{name}.st") for name in ("fp16", "non_ema", "no_index")
    }
    check(len({one.fingerprint for one in found.values()}) == 1, found)
    try:
        convert.convert_base("adm", made / "bin_shards", work / "bin.st")
    except UserError as error:
        check("diffusion_pytorch_model-00001-of-00001.bin: its format is none" in str(error), error)  # it is empty
    return ", ".join(f"{name}: {one.about.get('copy', '')}" for name, one in found.items())


def gelu(made: Path, work: Path) -> str:
    about = convert.convert("clip", made, work / "c.safetensors").about
    check(about["vision"]["act"] == about["language"]["act"] == "gelu" and "OpenAI" not in about["licence"], about)
    return f"{about['vision']['act']} by {about['act_from']}, licence {about['licence']}"


def clip_width(made: Path, work: Path) -> str:
    clips = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 64, 3), np.uint8)
    save_npz(work / "g.npz", clips)
    convert.convert("clip", made, work / "c.safetensors")
    built, _ = networks.networks(["clip"], {"clip": work / "c.safetensors"}, fvd.LINEAGES["google"], 16)
    features = np.asarray(built["clip"].apply(built["clip"].params, clips)).reshape(2, 16, 64)
    true = frame_consistency(features).mean()
    flags = [f"--generated={work / 'g.npz'}", "--metrics=frame_consistency", f"--clip={work / 'c.safetensors'}"]
    evaluate.main([*flags, f"--out={work / 'o.json'}", "--no-cache", "--n-generated=0"])
    value = json.loads((work / "o.json").read_text())["scores"]["frame_consistency"]["value"]
    check(abs(value - true) < 1e-5, f"{value}, where {true} is right")
    return f"{value:.6f}, right {true:.6f}"


def another_meaning(made: Path, work: Path) -> str:
    _, said = command("bash", made / "run.sh", work / "run")
    lines = [line for line in said.splitlines() if line.startswith("vf: ") or "status" in line]
    check("init_from: status 2" in said and "in place: status 2" in said, said[-300:])
    check("base.prediction is eps here and x_0 there" in lines[-2] and "noise.lam" in lines[-2], lines)
    return lines[-2]


def interrupted(made: Path, work: Path) -> str:
    words = ["-m", "vf.main", "--config=configs/demo.py", f"--workdir={work / 'run'}", "--config.train.log_every=1"]
    with (work / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=log, stderr=log)
        while "\nstep 1/" not in (work / "log").read_text() and process.poll() is None:
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        status = process.wait(120)
    last = (work / "log").read_text().splitlines()[-1]
    check(status == 130 and last.startswith("vf: ") and any((work / "run/checkpoints").iterdir()), f"{status}, {last}")
    return last


def no_home(made: Path, work: Path) -> str:
    for words, expected in (
        (("vf.evaluate", "--help"), 0), (("vf.evaluate", "--no-cache"), 2),
        (("vf.main", "--config=configs/demo.py", f"--workdir={work / 'run'}", "--config.train.warmup_steps=9999"), 2),
    ):  # fmt: skip
        status, said = command(sys.executable, made / "run.py", *words)
        check(status == expected and "Traceback" not in said, f"{words}: {status}, {said[-300:]}")
    return said


def disk_full(made: Path, work: Path) -> str:
    _, said = command("bash", made / "run.sh", work / "disk")  # as root
    lines = said.splitlines()
    check(
        lines[-1] == "status 1" and lines[-2].startswith("vf: the disk is full") and "Traceback" not in said,
        said[-500:],
    )
    return lines[-2]


def proxy(made: Path, work: Path) -> str:
    words = ["launch/local.sh", 2, "--config=configs/demo.py", f"--workdir={work / 'run'}", "--startup_timeout=40"]
    status, said = command(
        "bash", *words, "--config.train.warmup_steps=9999", http_proxy="http://127.0.0.1:9", PYTHON=sys.executable
    )
    check(status == 2 and "all processes have joined" in said, f"{status}, {said[-300:]}")  # and then the slip is told
    return said.splitlines()[-1]


CASES: dict[str, Callable[[Path, Path], str]] = {
    "captions-lines": captions,
    "clip-gelu": gelu,
    "clip-width": clip_width,
    "csv-latin1": tables,
    "ctrl-c": interrupted,
    "diffusers-variants": variants,
    "disk-full": disk_full,
    "no-home": no_home,
    "npz-extras": arrays_to_score,
    "proxy": proxy,
    "resume-meaning": another_meaning,
    "torch-extras": checkpoints,
    "4k-memory": memory,
    "alpha-frames": alpha,
    "animated-webp": animated,
    "class-named-train": class_named_train,
    "folder-on-the-fly": on_the_fly,
    "frame-numbers": frame_numbers,
    "gray16-png": grey_16,
    "no-first-key": no_first_key,
    "trimmed-mp4": trimmed,
    "unknown-extensions": unknown_extensions,
    "vp8-hidden-frames": hidden_frames,
    "xvid-packed": packed,
}


def make(case: Path, made: Path) -> None:
    """Makes the input of a case in the folder `made`."""
    made.mkdir()
    scripts = {"clip-gelu": case.parent / "clip-width" / "make.py"}  # whose input is that of another case
    words = ["512"] if case.name == "clip-gelu" else []
    if (script := scripts.get(case.name, case / "make.py")).exists():
        path = {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, str(script), str(made), *words], check=True, env=os.environ | path)
    elif (case / "make.sh").exists():
        source = made.parent / "source.avi"
        if case.name == "diffusers-variants":
            write_diffusers(source)
        else:
            write(source)
        subprocess.run(["bash", str(case / "make.sh"), str(made), str(source)], check=True)
    else:
        for file in case.iterdir():
            if file.name != "README":
                shutil.copy(file, made)


def write_diffusers(folder: Path) -> None:
    """A diffusers folder of a small ADM with random weights."""
    network = {
        "width": 64, "width_mult": (1, 2), "num_res_blocks": 1, "attention": (2,), "head_dim": 64,
        "attention_order": "new", "learned_variance": True, "norm_groups": 32, "patch": 1, "num_classes": 0,
    }  # fmt: skip
    about = {
        "network": network, "schedule": {"name": "cosine", "steps": 1000}, "prediction": "eps", "image_size": 64,
        "layout": "diffusers", "dtype": "float32", "other_dtypes": {}, "classes": [], "licence": "none",
    }  # fmt: skip
    draw = np.random.default_rng(0)
    shapes = unet.shapes(adm.net(about))
    arrays = {path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    weights.save(folder.with_suffix(".safetensors"), "adm", arrays, about)
    convert.convert_back("adm", "diffusers", folder.with_suffix(".safetensors"), folder)


def run(case: Path) -> tuple[bool, str]:
    """(whether a case is right, what came)."""
    if case.name not in CASES:
        return False, "no function of tests/cases.py checks it"
    with tempfile.TemporaryDirectory() as folder:
        made, work = Path(folder) / "made", Path(folder) / "work"
        work.mkdir()
        try:
            make(case, made)
            return True, CASES[case.name](made, work)
        except (Wrong, UserError) as error:
            return False, str(error)
        except Exception as error:
            traceback.print_exc()
            return False, f"{type(error).__name__}: {error}"


def main(folder: Path, *names: str) -> int:
    """Runs the cases of `folder`, or those of them that are named; returns the exit status."""
    wrong = 0
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and (not names or path.name in names)):
        is_right, came = run(case)
        wrong += not is_right
        print(f"{case.name:20} {'right' if is_right else 'WRONG'}  {' '.join(came.split())[:200]}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("vf: name the folder of cases, as python -m tests.cases FOLDER")
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
