"""Synthetic videos and folders of frames whose frame k has colour k, and their preparation."""

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vf.data.clips import Windows
from vf.data.prepared import Prepared
from vf.data.staging import Parameters

ROOT = Path(__file__).parents[2]
CLASSES = ("Archery", "Bowling", "Surfing")
LENGTH = 70
H264 = "keyint={}:min-keyint=2:b-adapt=0:scenecut=0"
MPEG4 = {"qmin": "1", "qmax": "2", "sc_threshold": "1000000000"}
VIDEOS = {
    "open_groups.mp4": ("libx264", {"x264-params": H264.format(12) + ":bframes=3:open-gop=1"}),
    "tiny_open_groups.mp4": ("libx264", {"x264-params": H264.format(2) + ":bframes=1:open-gop=1"}),
    "b_frames.mkv": ("libx264", {"x264-params": H264.format(15) + ":bframes=3"}),
    "false_times.avi": ("libx264", {"x264-params": H264.format(20) + ":bframes=3"}),
    "sparse_keys.avi": ("mpeg4", {**MPEG4, "g": "30"}),
    "sparse_keys_b_frames.avi": ("mpeg4", {**MPEG4, "g": "30", "bf": "2"}),
    "CAPITALS.MP4": ("mpeg4", {**MPEG4, "g": "9", "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "cpu-used": "8"}),
}


def colour(k: int) -> tuple[int, int, int]:
    return 8 + 20 * (k % 12), 8 + 20 * (k // 12), 128


def number(picture: np.ndarray) -> int:
    """Inverse of `colour`, for a picture of one colour within the codec's error."""
    red, green, blue = picture.reshape(-1, 3).mean(0)
    k = round((red - 8) / 20) + 12 * round((green - 8) / 20)
    assert np.abs(picture - np.array(colour(k))).max() < 9, (red, green, blue)
    return k


def write(
    path: Path,
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    *,
    times: range | list[int] = range(LENGTH),
    paint=lambda k: np.full((48, 64, 3), colour(k)),
):
    """A 25 Hz video with one picture for each of `times`, in frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format={".MP4": "mp4"}.get(path.suffix)) as container:
        stream = container.add_stream(codec, rate=25, options=dict(MPEG4 if options is None else options))
        stream.height, stream.width = paint(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        for k in times:
            frame = av.VideoFrame.from_ndarray(paint(k).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_frames(folder: Path, times: range | list[int] = range(20), size: tuple[int, int] = (48, 64)) -> None:
    """A folder of frames, PNG files numbered without leading zeros: frame_10 follows frame_2."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in times:
        Image.fromarray(np.full((*size, 3), colour(k), np.uint8)).save(folder / f"frame_{k}.png")


def parameters(source: Path, dataset: str = "folder", **changes) -> Parameters:
    given = {
        "source": str(source), "size": 16, "encoding": "raw", "quality": 0, "splits": "", "fold": 1, "table": "",
        "embeddings": "", "fps": 0.0, "min_frames": 2,
    }  # fmt: skip
    return Parameters(dataset=dataset, **(given | changes))


def single(root: Path, split: str = "train") -> Prepared:
    """Every frame of the data set is a clip."""
    return Prepared(root, windows=Windows(1, start="all"), split=split)


def interrupt(source: Path, out: Path, number: int) -> tuple[int, str]:
    """(status, standard error) of a preparation that gets a signal after its second clip."""
    words = [sys.executable, "-m", "vf.data.prepare", "folder", f"--source={source}", f"--out={out}", "--size=16"]
    process = subprocess.Popen([*words, "--workers=1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob(".staging/*.clip"))) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr
