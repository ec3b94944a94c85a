"""Synthetic videos whose colours show frame number and video, inspected before and after preparation."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.data.synthetic import MPEG4
from vf.data import inspect
from vf.data.clips import Windows
from vf.data.preparation import prepare
from vf.data.prepared import Prepared
from vf.data.staging import Parameters
from vf.types import UserError
from vf.video import GAP

SIZE = 32
# Name: (frames, frames per second). Those of class C are `test`, and the last is in no table.
VIDEOS = {
    "A/v0.mkv": (70, 25),
    "A/v1.mkv": (9, 25),
    "A/v2.mkv": (24, 12),
    "B/v3.mkv": (3, 25),
    "C/v4.mkv": (40, 10),
    "C/v5.mkv": (17, 10),
    "C/unlisted.mkv": (5, 10),
}
SPLITS = {"train": list(VIDEOS)[:4], "test": list(VIDEOS)[4:6]}
SMALL = "B/v3.mkv"  # smaller than SIZE
SHORT = {"A/short1.mkv": 2, "B/short2.mkv": 2}
LEAST = 3


def colour(name: str, k: int) -> np.ndarray:
    return np.array([8 + 20 * (k % 12), 8 + 20 * (k // 12), 8 + 30 * list(VIDEOS).index(name)])


def seen(picture: np.ndarray) -> tuple[str, int]:
    """Inverse of `colour`, for a picture of one colour within the codec's error."""
    red, green, blue = picture.reshape(-1, 3).mean(0)
    name, k = list(VIDEOS)[round((blue - 8) / 30)], round((red - 8) / 20) + 12 * round((green - 8) / 20)
    assert np.abs(picture - colour(name, k)).max() < 9, (red, green, blue)
    return name, k


H264 = {"qp": "4", "x264-params": "bframes=0:keyint=8"}


def write(path: Path, pictures: list[np.ndarray], fps: int, codec: str = "libx264", options=H264) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options))
        stream.height, stream.width = pictures[0].shape[:2]
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """CLASS/VIDEO, and a table that leaves one video out."""
    root = tmp_path_factory.mktemp("source")
    for name, (frames, fps) in VIDEOS.items():
        shape = (16, 24) if name == SMALL else (48, 64)
        write(root / name, [np.full((*shape, 3), colour(name, k)) for k in range(frames)], fps)
    for name, frames in SHORT.items():
        write(root / name, [np.zeros((48, 64, 3))] * frames, 25)
    (root / "A" / "text.mkv").write_text("a list of words, not of pictures\n" * 50)
    rows = [(name, split) for split, names in SPLITS.items() for name in names]
    rows += [(name, "train") for name in (*SHORT, "A/text.mkv")]
    (root / "table.csv").write_text("\n".join(["path,label,split", *(f"{n},{n[0]},{split}" for n, split in rows)]))
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    texts = {"splits": "", "table": str(source / "table.csv"), "embeddings": ""}
    how = {"size": SIZE, "encoding": "raw", "quality": 0, "fold": 1, "fps": 0.0, "min_frames": LEAST}
    prepare(Parameters(dataset="folder", source=str(source), **texts, **how), out, workers=1)
    return out


def shown(sheet: np.ndarray, rows: int, frames: int, size: int) -> list[list[tuple[str, int]]]:
    """(video, frame number) at each place of the sheet, which is checked to hold nothing else but captions."""
    scale = max(1, inspect.WIDTH // (frames * size))
    side = scale * size
    across, down = side + inspect.PAD, side + inspect.LINE + inspect.MARGIN
    assert sheet.shape[0] == rows * down + inspect.MARGIN
    assert sheet.shape[1] == max(inspect.MIN_WIDTH, frames * across - inspect.PAD) + 2 * inspect.MARGIN
    found, rest = [], sheet.copy()
    for top in range(inspect.MARGIN + inspect.LINE, sheet.shape[0], down):
        lefts = range(inspect.MARGIN, inspect.MARGIN + frames * across, across)
        found.append([seen(sheet[top : top + side, left : left + side]) for left in lefts])
        strip = rest[top : top + side, inspect.MARGIN : inspect.MARGIN + frames * across - inspect.PAD]
        for left in range(0, strip.shape[1] - side, across):
            assert np.all(strip[:, left + side : left + across] == GAP)
        strip[:] = inspect.BACKGROUND
        rest[top - inspect.LINE : top] = inspect.BACKGROUND
    assert np.all(rest == inspect.BACKGROUND)
    return found


def run(capsys, *flags: str) -> str:
    inspect.main(list(flags))
    return capsys.readouterr().out


@pytest.fixture
def written(monkeypatch) -> list[tuple[int, str]]:
    """(top, text) of everything that is written into pictures."""
    found = []
    true_text = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        found.append((xy[1], text))
        return true_text(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


@pytest.mark.parametrize(("frames", "split"), [(8, "train"), (5, "test"), (1, "test+train"), (80, "train")])
def test_the_sheet_shows_each_clip_from_end_to_end(prepared, tmp_path, written, frames, split):
    out = tmp_path / "new" / "sheet.png"
    inspect.main([f"--data={prepared}", f"--out={out}", f"--split={split}", f"--frames={frames}"])
    names = [name for part in split.split("+") for name in SPLITS[part]]
    rows = shown(np.asarray(Image.open(out)), len(names), frames, SIZE)
    assert sorted(row[0][0] for row in rows) == sorted(names)  # every clip once
    side = SIZE * max(1, inspect.WIDTH // (frames * SIZE))
    for k, row in enumerate(rows):
        name, length = row[0][0], VIDEOS[row[0][0]][0]
        assert row == [(name, at) for at in inspect.spread(length, frames)]
        top = inspect.MARGIN + k * (side + inspect.LINE + inspect.MARGIN)
        assert [text for y, text in written if y == top] == [name, f"{name[0]}   {length} frames"]


def test_captions_are_within_the_line_above_their_clip(prepared):
    data = inspect.open_collection(prepared, "train")
    sheet = inspect.contact_sheet(inspect.draw(data, 1, 4, 0))
    dark = np.argwhere(np.any(sheet[: inspect.MARGIN + inspect.LINE] < 200, axis=-1))
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    assert inspect.MARGIN <= top < bottom < inspect.MARGIN + inspect.LINE - 1
    assert inspect.MARGIN <= left < inspect.MARGIN + 5  # flush left and right with the frames
    assert sheet.shape[1] - inspect.MARGIN - 5 <= right < sheet.shape[1] - inspect.MARGIN


@pytest.mark.parametrize(("length", "count"), [(1, 1), (1, 4), (70, 1), (70, 2), (70, 8), (3, 8), (8, 8), (250, 16)])
def test_frames_are_spread_evenly_from_the_first_to_the_last(length, count):
    frames = inspect.spread(length, count)
    assert len(frames) == count
    assert frames[0] == 0
    assert count == 1 or frames[-1] == length - 1
    assert count <= 2 or np.ptp(np.diff(frames)) <= 1
    assert length != count or frames.tolist() == list(range(length))


def test_the_seed_alone_chooses_and_fewer_clips_are_the_first_of_more(prepared, tmp_path, capsys):
    def sheet(name: str, *flags: str) -> Path:
        run(capsys, f"--data={prepared}", f"--out={tmp_path / name}", "--split=train+test", *flags)
        return tmp_path / name

    one, again = sheet("one.png", "--seed=3"), sheet("again.png", "--seed=3")
    assert one.read_bytes() == again.read_bytes()
    names = [name for split in ("train", "test") for name in SPLITS[split]]
    orders = set()
    for seed in range(4):
        rows = inspect.draw(inspect.open_collection(prepared, "train+test"), len(names), 1, seed)
        orders.add(tuple(row.clip.name for row in rows))
    assert len(orders) == 4
    assert {frozenset(order) for order in orders} == {frozenset(names)}
    few = np.asarray(Image.open(sheet("few.png", "--seed=3", "--clips=2")))
    np.testing.assert_array_equal(few, np.asarray(Image.open(one))[: len(few)])


def test_statistics_of_a_prepared_set(prepared, tmp_path, capsys):
    lines = run(capsys, f"--data={prepared}", f"--out={tmp_path / 'x.png'}", "--frames=6").splitlines()
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert lines[:9] == [
        f"{prepared}: folder, prepared at 32 x 32, raw, fingerprint {manifest['fingerprint']}",
        "train: 4 clips, 106 frames, 0:00:05 (h:m:s)",  # 82 / 25 + 24 / 12 = 5.28 s
        "  length: 3 to 70 frames, median 16.5",
        "  rate: 25 fps (3), 12 fps (1)",
        "  classes: 3, clips of each: A (3), B (1), C (0)",
        "test: 2 clips, 57 frames, 0:00:06 (h:m:s)",  # 5.7 s
        "  length: 17 to 40 frames, median 28.5",
        "  rate: 10 fps (2)",
        "  classes: 3, clips of each: C (2), A (0), B (0)",
    ]
    reader = Prepared(prepared, windows=Windows(1, start="all"), split="train")
    first, drawn = 0, []
    for name in SPLITS["train"]:
        drawn += [reader.clip(first + k, None)["video"] for k in inspect.spread(VIDEOS[name][0], 6).tolist()]
        first += VIDEOS[name][0]
    pixels = np.concatenate(drawn).reshape(-1, 3)
    mean, std = (" ".join(f"{x:.1f}" for x in values) for values in (pixels.mean(0), pixels.std(0)))
    assert lines[9:11] == [
        "pixels of 4 clips drawn, 6 frames each (red, green, blue in 0..255)",
        f"  mean {mean}, standard deviation {std}",
    ]
    assert lines[11:] == [
        "rejected: 3 clips",
        f"  2 x such as A/short1.mkv: {manifest['rejected']['A/short1.mkv']}",
        f"  1 x such as A/text.mkv: {manifest['rejected']['A/text.mkv']}",
        "unusual: 1 clip",
        f"  1 x such as {SMALL}: {manifest['notes'][SMALL][0]}",
        "unlisted: 1 file",
        "  1 x such as C/unlisted.mkv: table.csv does not name it",
        f"{tmp_path / 'x.png'}: 4 clips, one a row",
    ]


def test_a_folder_of_videos_needs_no_preparation(source, tmp_path, capsys, written):
    out = tmp_path / "x.png"
    lines = run(capsys, f"--data={source}", f"--out={out}", "--frames=4").splitlines()
    assert lines[:5] == [
        f"{source}: a folder of videos, not prepared, seen at 128 x 128",
        "all videos: 9 clips, 172 frames, 0:00:12 (h:m:s)",  # 86 / 25 + 24 / 12 + 62 / 10 = 11.6 s
        "  length: 2 to 70 frames, median 9",
        "  rate: 25 fps (5), 10 fps (3), 12 fps (1)",
        "  classes: 3, clips of each: A (4), C (3), B (2)",
    ]
    assert lines[-5:] == [
        "rejected: 1 clip",
        "  1 x such as A/text.mkv: Invalid data found when processing input",
        "unlisted: 1 file",
        "  1 x such as table.csv: is neither a video nor a picture that is read",
        f"{out}: 9 clips, one a row",
    ]
    names = [text for _, text in written[::2]]
    assert sorted(names) == sorted([*VIDEOS, *SHORT])
    sheet, side = np.asarray(Image.open(out)), 2 * inspect.SIZE
    for k, name in enumerate(names):
        top = k * (side + inspect.LINE + inspect.MARGIN) + inspect.MARGIN + inspect.LINE
        for j, at in enumerate(inspect.spread((VIDEOS | {n: (f, 25) for n, f in SHORT.items()})[name][0], 4)):
            left = inspect.MARGIN + j * (side + inspect.PAD)
            picture = sheet[top : top + side, left : left + side]
            assert picture.max() < 9 if name in SHORT else seen(picture) == (name, at)


def test_a_flat_folder_has_no_classes(source, tmp_path, capsys, written):
    lines = run(capsys, f"--data={source / 'C'}", f"--out={tmp_path / 'x.png'}", "--frames=1")
    assert "classes" not in lines
    assert sorted(text for _, text in written) == sorted(
        ["v4.mkv", "40 frames", "v5.mkv", "17 frames", "unlisted.mkv", "5 frames"]
    )


def test_a_clip_that_cannot_be_read_is_reported_and_shown_grey(source, tmp_path, capsys, written):
    for name in ("v0.mkv", "v2.mkv"):
        (tmp_path / name).write_bytes((source / "A" / name).read_bytes())
    torn = tmp_path / "v0.mkv"
    with av.open(str(torn)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    assert torn.read_bytes().count(packets[30]) == 1
    # The length of a part of the picture, beyond the packet's end.
    torn.write_bytes(torn.read_bytes().replace(packets[30], b"\x7f\xff\xff\xff" + packets[30][4:]))
    lines = run(capsys, f"--data={tmp_path}", f"--out={tmp_path / 'x.png'}", "--frames=4").splitlines()
    row = [text for _, text in written].index("v0.mkv") // 2
    assert lines[-2:] == [
        f"{tmp_path / 'x.png'}: 2 clips, one a row, grey where a clip cannot be read:",
        f"  row {row + 1}: v0.mkv: Invalid data found when processing input",
    ]
    assert "pixels of 1 clip drawn, 4 frames each (red, green, blue in 0..255)" in lines
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert written[2 * row + 1][1] == "cannot be read   70 frames"
    side = 2 * inspect.SIZE
    rows = [
        sheet[top : top + side, inspect.MARGIN : -inspect.MARGIN]
        for top in range(inspect.MARGIN + inspect.LINE, len(sheet), side + inspect.LINE + inspect.MARGIN)
    ]
    assert np.all(rows[row] == GAP)
    assert seen(rows[1 - row][:, -side:]) == ("A/v2.mkv", 23)
    (tmp_path / "v2.mkv").unlink()
    with pytest.raises(UserError, match=r"of 1 clip drawn none can be read, for example v0\.mkv: Invalid data"):
        inspect.draw(inspect.open_collection(tmp_path, None), 4, 4, 0)


def test_a_frame_that_the_codec_left_out_shows_the_one_before(tmp_path):
    """MPEG-4 may mark a frame "not coded"; FFmpeg then gives no picture for it."""
    path = tmp_path / "gap.avi"
    write(path, [np.full((48, 64, 3), colour("A/v0.mkv", k)) for k in range(12)], 25, "mpeg4", MPEG4 | {"g": "40"})
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][7]
    head = "".join(f"{byte:08b}" for byte in packet[4:8])
    coded = head.index("01", 2) + 2 + 5 + 1  # type, seconds in unary, marker, time in 5 bits, marker
    assert (packet[:4], head[:2], head[coded]) == (b"\0\0\1\xb6", "01", "1")
    bits = int(head[:coded] + "0" + head[coded + 1 :], 2)
    path.write_bytes(path.read_bytes().replace(packet, packet[:4] + bits.to_bytes(4) + packet[8:]))
    (row,) = inspect.draw(inspect.open_collection(tmp_path, None), 1, 12, 0)
    assert [seen(picture)[1] for picture in row.frames[:8]] == [0, 1, 2, 3, 4, 5, 6, 6]


def collection(clips: list[inspect.Clip], classes: tuple[str, ...] = (), **remarks) -> inspect.Collection:
    black = np.zeros((1, 8, 8, 3), np.uint8)
    return inspect.Collection(
        "title", clips, lambda k, at: black.repeat(len(at), 0), {"all": clips}, classes, remarks, {}
    )


def report(data: inspect.Collection) -> list[str]:
    return inspect.report(data, inspect.draw(data, 1, 1, 0)).splitlines()


def test_duration_counts_only_clips_of_known_rate():
    clips = [inspect.Clip("a", "", 3600 * 30, 30.0), inspect.Clip("b", "", 10, 0.0), inspect.Clip("c", "", 20, 0.0)]
    lines = report(collection(clips))
    assert lines[1] == "all: 3 clips, 108,030 frames, 1:00:00 (h:m:s) (of 1 clip)"
    assert lines[3] == "  rate: unknown (2), 30 fps (1)"
    assert report(collection(clips[1:]))[1] == "all: 2 clips, 30 frames"


def test_of_many_classes_the_largest_and_smallest_are_reported():
    classes = tuple("abcdefgh")
    clips = [inspect.Clip(f"{name}{k}", name, 5, 25.0) for k in range(7) for name in classes[k + 1 :]]
    line = "  classes: 8, clips of each: h (7), g (6), f (5), ..., c (2), b (1), a (0)"
    assert line in report(collection(clips, classes))


def test_reasons_that_differ_only_in_numbers_are_grouped_with_the_most_frequent_first():
    remarks = [("a", "is odd"), *((f"{k}", f"has {k} frames") for k in range(12)), ("c", "x"), ("d", "y"), ("a", "x")]
    lines = report(collection([inspect.Clip("a", "", 1, 0.0)], unusual=remarks))
    assert lines[-5:] == [
        "unusual: 15 clips",  # one of them twice
        "  12 x such as 0: has 0 frames",
        "  2 x such as c: x",
        "  1 x such as a: is odd",
        "  and 1 more reason",
    ]


@pytest.mark.parametrize("width", range(1, 12))
def test_long_names_lose_their_middle_and_no_more_than_they_must(width):
    short = inspect.shorten("0123456789", width, len)
    assert len(short) == min(width, 10)
    head, ellipsis, tail = short.partition("…")
    assert bool(ellipsis) == (width < 10)
    assert "0123456789".startswith(head)
    assert "0123456789".endswith(tail)
    assert not ellipsis or len(head) - len(tail) in (0, 1)


def test_names_of_any_length_fit_into_the_sheet(written):
    clips = [inspect.Clip("n\nm" * 80, "c" * 200, 12345, 0.0)]
    sheet = inspect.contact_sheet(inspect.draw(collection(clips), 1, 1, 0))
    (_, name), (_, about) = written
    assert "\n" not in name
    assert name.startswith("n mn m")
    assert name.endswith("mn m")
    assert about.startswith("ccc")
    assert about.endswith("   12,345 frames")
    rest = sheet.copy()
    rest[inspect.MARGIN :, inspect.MARGIN : -inspect.MARGIN] = inspect.BACKGROUND
    assert np.all(rest == inspect.BACKGROUND)  # nothing in the margins
    length = ImageFont.load_default(inspect.FONT).getlength
    gap = sheet.shape[1] - 2 * inspect.MARGIN - length(name) - length(about)
    assert inspect.MARGIN <= gap < 3 * inspect.MARGIN


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--data=DIR/nowhere --out=DIR/x.png", r"there is no such folder: .* \(--data\)"),
        ("--data=PREPARED --out=DIR/x.png --split=tset", r"no split 'tset': known are train, test \(--split\)"),
        ("--data=SOURCE --out=DIR/x.png --split=test", r"no prepared data set, .* name none \(--split\)"),
        ("--data=PREPARED --out=DIR/s.txt", r"--out=.*s\.txt is to be a PNG file: name it \*\.png"),
        ("--data=PREPARED --out=.", r"--out=\. is to be a PNG file"),
        ("--data=PREPARED --out=PREPARED/manifest.json/x.png", "cannot write .*; choose another --out"),
        ("--data=PREPARED --out=DIR/x.png --clips=0", "--clips must be at least 1, got 0"),
        ("--data=PREPARED --out=DIR/x.png --frames=-1", "--frames must be at least 1, got -1"),
        ("--data=PREPARED --out=DIR/x.png --seed=-1", "--seed must be at least 0, got -1"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(prepared, source, tmp_path, capsys, flags, why):
    for name, place in (("PREPARED", prepared), ("SOURCE", source), ("=DIR", f"={tmp_path}")):
        flags = flags.replace(name, str(place))
    with pytest.raises(SystemExit, match=r"^2$"):
        inspect.main(flags.split())
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("vf: ")
    assert "--config" not in error
    assert re.search(why, error)
    assert not list(tmp_path.iterdir())
