"""Runs every case of a folder of awkward inputs, and prints a line for each: its name, whether it is right, what came.

    python -m tests.cases FOLDER [NAME ...]

A case is a folder with a script `make.py DIR` or `make.sh DIR CLIP` that makes the input, or with the input itself.
What is right is said by a function of `CASES`, which takes the made input and an empty folder to work in. The exit
status is 1 where any case is wrong, or has no function.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.data.synthetic import parameters, write
from vf.data.clips import Windows
from vf.data.folder import VideoFolder
from vf.data.notes import is_loss
from vf.data.pixels import Pixels
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.scores.sets import Choice, open_set
from vf.types import UserError

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


CASES: dict[str, Callable[[Path, Path], str]] = {
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
    if (case / "make.py").exists():
        subprocess.run([sys.executable, str(case / "make.py"), str(made)], check=True)
    elif (case / "make.sh").exists():
        clip = made.parent / "clip.avi"
        write(clip)
        subprocess.run(["bash", str(case / "make.sh"), str(made), str(clip)], check=True)
    else:
        for file in case.iterdir():
            if file.name != "README":
                shutil.copy(file, made)


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
