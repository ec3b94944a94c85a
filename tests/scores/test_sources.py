"""What a source of clips to be scored has: files that are whole, damaged, short or something else, and their pixels."""

import logging
import shutil
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import number, write, write_frames
from tests.scores.test_sets import LENGTH, SIDE, pixels, write_lossless, write_pngs, write_prepared
from vf.data.clips import Windows
from vf.data.frames import FrameFolder
from vf.data.manifest import read_manifest
from vf.data.pixels import Pixels
from vf.scores import sources
from vf.scores.sets import open_set
from vf.scores.sources import Choice, UnreadableFile
from vf.types import UserError


@pytest.mark.parametrize("hundredths", [1, 2, 10, 100])
def test_a_gif_has_its_own_frames_at_any_rate(tmp_path, hundredths):
    clip = pixels(1)[0]
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in clip]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=10 * hundredths)
    assert open_set(tmp_path, Choice(Windows(LENGTH, start="first"))).shape[:2] == (1, LENGTH)
    with pytest.raises(UserError, match=r"no video of .* is long enough for 13 frames"):
        open_set(tmp_path, Choice(Windows(LENGTH + 1, start="first")))


def test_frames_are_in_natural_order(tmp_path):
    write_frames(tmp_path / "one", range(20))
    found = open_set(tmp_path, Choice(Windows(20, start="first"), size=16))
    assert [number(frame) for frame in found[:][0]] == list(range(20))


def test_splits(tmp_path, caplog):
    for split in ("train", "test"):
        for k in range(2):
            write_frames(tmp_path / split / str(k), range(4 if split == "train" else 5))
    windows = Windows(2, start="all")
    counts = {split: len(open_set(tmp_path, Choice(windows, split=split))) for split in
              ("", "train", "test", "train+test")}  # fmt: skip
    assert counts == {"": 14, "train": 6, "test": 8, "train+test": 14}
    assert not caplog.records
    with pytest.raises(UserError, match="has no clips of split val: its folders name test, train"):
        open_set(tmp_path, Choice(windows, split="val"))


def test_short_videos_are_left_out_or_an_error(tmp_path, caplog):
    write_frames(tmp_path / "long", range(8))
    write_frames(tmp_path / "short", range(5))
    windows = Windows(6, start="first")
    with caplog.at_level(logging.WARNING):
        found = open_set(tmp_path, Choice(windows))
    assert (len(found), found.facts) == (1, found.facts | {"clips_there": 1, "too_short": 1})
    assert "1 video of" in caplog.text
    with pytest.raises(
        UserError, match=r"1 clip of .* too short .* \(the first, short has 5 frames\): repeating frames"
    ):
        open_set(tmp_path, Choice(windows, strict=True))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"clips": np.zeros((2, 4, 8, 8, 3), np.float32)}, "uint8 .* found float32"),
        ({"clips": np.zeros((2, 3, 4, 8, 8), np.uint8)}, r"found uint8 \[2, 3, 4, 8, 8\]"),
        ({"samples": np.zeros((2, 4, 8, 8, 3), np.uint8)}, "expected the key 'clips' and found"),
        ({"clips": np.zeros((0, 4, 8, 8, 3), np.uint8)}, "holds no clips"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_set(tmp_path / "a.npz", Choice(Windows(2)))


def test_files_that_are_not_arrays(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_set(tmp_path / "no.npz", Choice(Windows(2)))
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 not at all")
    np.save(tmp_path / "objects.npy", np.array([1, "a"], object))
    for name in ("a.npz", "objects.npy"):
        with pytest.raises(UserError, match=r"cannot read .* as an \.npz or \.npy of clips"):
            open_set(tmp_path / name, Choice(Windows(2)))


def test_arrays_under_other_names_with_something_beside_them(tmp_path):
    """Of whatever program: rates, names, features; compressed; an .npy; in capitals. They are one set."""
    clips = pixels(5)
    beside = {
        "fps": np.float32(8),
        "names": np.array(["a"] * 5, object),
        "features": np.zeros((7, 2)),
        "x.y": np.zeros(0),
    }
    np.savez_compressed(tmp_path / "a.npz", clips=clips, **beside)
    np.save(tmp_path / "b.npy", clips)
    np.save(tmp_path / "c.npy", np.asfortranarray(clips))
    (tmp_path / "D.NPZ").write_bytes((tmp_path / "a.npz").read_bytes())
    (tmp_path / "E.Npy").write_bytes((tmp_path / "b.npy").read_bytes())
    found = [open_set(tmp_path / name, Choice(Windows(4))) for name in ("a.npz", "b.npy", "c.npy", "D.NPZ", "E.Npy")]
    assert len({one.fingerprint for one in found}) == 1
    for one in found:
        np.testing.assert_array_equal(one[:], found[0][:])


@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_arrays_with_time_first_are_refused_by_their_shape(tmp_path, caplog, n):
    """Whether or not there are as many clips as the windows need frames. Where it may be right, it is a warning."""
    frames = 5
    rng = np.random.default_rng(0)
    clips = (rng.integers(0, 200, (n, 1, 8, 8, 3)) + rng.integers(0, 9, (n, frames, 8, 8, 3))).astype(np.uint8)
    np.save(tmp_path / "a.npy", clips)
    assert len(open_set(tmp_path / "a.npy", Choice(Windows(frames)))) == n
    assert not caplog.records
    np.save(tmp_path / "a.npy", clips.swapaxes(0, 1))
    if n == frames:
        open_set(tmp_path / "a.npy", Choice(Windows(frames)))
        assert "whose neighbouring clips are more alike than neighbouring frames: is time its first axis" in caplog.text
    else:
        with pytest.raises(UserError, match=rf"(array is|holds an array) \[5, {n}, 8, 8, 3\]"):
            open_set(tmp_path / "a.npy", Choice(Windows(frames)))


@pytest.mark.parametrize("damage", ["empty.mp4", "noise.avi", "text.gif", "cut.mkv"])
def test_broken_files_are_named(tmp_path, damage):
    clip = pixels(1, 40, 64)[0]
    write_lossless(tmp_path / "a.mkv", clip[:, :SIDE, :SIDE])
    content = {"empty.mp4": b"", "noise.avi": bytes(range(256)) * 9, "text.gif": b"GIF89a and no more"}.get(damage)
    if content is None:
        write_lossless(tmp_path / "whole.mkv", clip)
        content = (tmp_path / "whole.mkv").read_bytes()[:200]
        (tmp_path / "whole.mkv").unlink()
    (tmp_path / damage).write_bytes(content)
    found = open_set(tmp_path, Choice(Windows(4, start="first")))
    assert list(found.facts["bad"]) == [damage]
    assert all(found.facts["bad"].values())  # with its reason
    (tmp_path / damage).unlink()
    alone = open_set(tmp_path, Choice(Windows(4, start="first")))
    assert found.fingerprint == alone.fingerprint
    np.testing.assert_array_equal(found[:], alone[:])
    (tmp_path / "a.mkv").write_bytes(content)
    with pytest.raises(UserError, match=r"of 1 clip of .* none can be read \(the first, a\.mkv: "):
        open_set(tmp_path, Choice(Windows(4, start="first")))


def test_broken_frames_are_named(tmp_path):
    write_frames(tmp_path / "a", range(6))
    write_frames(tmp_path / "b", range(6))
    (tmp_path / "b" / "frame_3.png").write_bytes(b"no picture")
    found = open_set(tmp_path, Choice(Windows(6, start="first"), size=8))
    with pytest.raises(
        UnreadableFile, match=r"b: its frame frame_3\.png cannot be read: no image; remove or repair it"
    ):
        found[:]
    (tmp_path / "b" / "frame_3.png").unlink()
    assert "has no frame between" in open_set(tmp_path, Choice(Windows(4, start="first"), size=8)).facts["bad"]["b"]


def test_files_that_only_look_whole_are_left_out_when_all_are_checked(tmp_path):
    """What remains is the set without them, random windows too."""
    for name in "abc":
        write_frames(tmp_path / name, range(12), size=(8, 8))
    (tmp_path / "a" / "frame_3.png").write_bytes(b"no picture")
    choice = Choice(Windows(11), seed=5)
    with pytest.raises(UnreadableFile):
        open_set(tmp_path, choice)[:]
    found = open_set(tmp_path, choice, check=True)
    assert found.facts["bad"] == {"a": "its frame frame_3.png cannot be read: no image"}
    shutil.rmtree(tmp_path / "a")
    alone = open_set(tmp_path, choice)
    assert found.fingerprint == alone.fingerprint
    np.testing.assert_array_equal(found[:], alone[:])


def write_mp4(path: Path, frames: int = 60, hidden: int = 0) -> None:
    """Noise, with the index before the frames; the first `hidden` frames are cut away by an edit list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = pixels(1, frames, 32)[0]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "60", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        packets = [p for f in source for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        for packet in packets + list(stream.encode(None)):
            packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
            container.mux(packet)


def test_a_set_leaves_out_the_files_that_a_preparation_loses(tmp_path):
    """Cut off, or damaged behind the clip that is taken; a video trimmed by an edit list is whole."""
    source = tmp_path / "source"
    write_mp4(source / "whole.mp4")
    write_mp4(source / "trimmed.mp4", hidden=20)
    content = bytearray((source / "whole.mp4").read_bytes())
    (source / "cut.mp4").write_bytes(content[: len(content) // 2])
    content[-len(content) // 3 :] = bytes(len(content) // 3 + 1)
    (source / "damaged.mp4").write_bytes(content)
    choice = Choice(Windows(8, start="first"), size=SIDE)
    with pytest.raises(UnreadableFile, match=r"damaged\.mp4"):
        open_set(source, choice)[:]
    checked = open_set(source, choice, check=True)
    assert len(checked[:]) == 2
    write_prepared(tmp_path / "out", source)
    lost = read_manifest(tmp_path / "out")["rejected"]
    assert checked.facts["bad"].keys() == lost.keys() == {"cut.mp4", "damaged.mp4"}
    assert checked.facts["bad"]["cut.mp4"] == lost["cut.mp4"]
    assert lost["cut.mp4"].startswith("is cut off: its header promises 60 frames")


def test_a_file_that_disappears(tmp_path):
    for name in "abc":
        write_lossless(tmp_path / f"{name}.mkv", pixels(1)[0])
    found = open_set(tmp_path, Choice(Windows(4, start="first")))
    (tmp_path / "b.mkv").unlink()
    assert found[:1].shape == (1, 4, SIDE, SIDE, 3)
    with pytest.raises(UserError, match=r"b\.mkv: No such file"):
        found[:]


def test_the_antialiased_resampler_is_pillows_cut_to_whole_numbers(tmp_path):
    """cd-fvd resizes the short side by antialiased bilinear, takes the centre and truncates."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 64, 3), np.uint8)
    write_lossless(tmp_path / "a.mkv", frames)
    found = open_set(tmp_path, Choice(Windows(3, start="first"), size=20, resampler="antialiased"))[:][0]
    for frame, clip in zip(frames, found, strict=True):
        planes = [Image.fromarray(frame[..., c].astype(np.float32)).resize((32, 20), Image.Resampling.BILINEAR)
                  for c in range(3)]  # fmt: skip
        true = np.stack([np.asarray(plane) for plane in planes], -1)[:, 6:26]
        assert np.abs(clip - np.floor(true + 1e-3)).max() <= 1  # where a float32 lies at a whole number
        assert (clip == np.floor(true + 1e-3)).mean() > 0.999


def test_the_antialiased_resampler_preserves_flat_colours(tmp_path):
    """Rounding below whole numbers, truncated, would make every flat colour one darker."""
    frames = np.repeat(np.arange(256, dtype=np.uint8), 24 * 32 * 3).reshape(256, 24, 32, 3)
    write_lossless(tmp_path / "a.mkv", frames)
    found = open_set(tmp_path, Choice(Windows(256, start="first"), size=17, resampler="antialiased"))[:][0]
    assert (found == np.arange(256)[:, None, None, None]).all()


def test_size_0_is_the_whole_picture(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 37, 3), np.uint8)
    write_pngs(tmp_path / "a", frames)
    write_lossless(tmp_path / "video" / "a.mkv", frames)
    np.testing.assert_array_equal(FrameFolder(tmp_path / "a").clip(np.array([2, 0]), Pixels(0)), frames[[2, 0]])
    np.testing.assert_array_equal(open_set(tmp_path / "video", Choice(Windows(3, start="first")))[:][0], frames)
    one = Pixels(0)
    for path, shape in ((tmp_path / "a", (24, 37)), (tmp_path / "b", (10, 8)), (tmp_path / "a", (24, 37))):
        if not path.exists():
            write_pngs(path, frames[:, :10, :8])
        assert one(next(FrameFolder(path).pictures())).shape == (*shape, 3)  # one scaler after another


def test_a_rate_needs_a_video_that_has_one(tmp_path):
    write_frames(tmp_path / "frames" / "a", range(20))
    with pytest.raises(UserError, match=r"a: a clip at 5 frames per second needs a video of known rate.*go by stride"):
        open_set(tmp_path / "frames", Choice(Windows(4, fps=5, start="first")))
    write(tmp_path / "videos" / "a.mp4")
    found = open_set(tmp_path / "videos", Choice(Windows(4, fps=5, start="first"), size=16))
    assert [number(frame) for frame in found[:][0]] == [0, 5, 10, 15]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # closed by the garbage collector
def test_names_that_are_not_utf8(tmp_path):
    name = b"clip_\xff.mkv".decode("utf-8", "surrogateescape")
    write_lossless(tmp_path / "a.mkv", pixels(1)[0])
    (tmp_path / "a.mkv").rename(tmp_path / name)
    assert open_set(tmp_path, Choice(Windows(4, start="first"))).shape[0] == 1
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"clip_\\xff\.mkv"):
        open_set(tmp_path, Choice(Windows(4, start="first")))


def test_a_long_clip_of_large_pictures_is_resized_picture_by_picture(tmp_path):
    """48 pictures of 480 x 640 in float32 have 177 MB, and one has 3.7."""
    write(tmp_path / "a.mp4", "libx264", {}, times=range(48), paint=lambda k: np.full((480, 640, 3), 5 * k))
    found = open_set(tmp_path, Choice(Windows(48, start="first"), size=32, resampler="antialiased"))
    tracemalloc.start()
    clip = found[:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.shape == (1, 48, 32, 32, 3)
    assert peak < 5 * 480 * 640 * 3 * 4


def test_as_many_large_pictures_are_decoded_at_once_as_there_is_room():
    room, inside, most = sources._Room(100), [], []

    def decode(pixels: int) -> None:
        with room.of(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40] * 8 + [1000] + [0] * 3))
    assert max(most[:8]) == 80
    assert max(most) <= 1000  # a picture that is too large for the room has it alone
    assert [total for total in most if total > 100] == [1000] * sum(total > 100 for total in most)


def test_what_clips_have_lost_and_files_that_are_none_are_told(tmp_path, caplog):
    write(tmp_path / "whole.mp4", "libx264", {"x264-params": "keyint=5:min-keyint=5"}, times=range(20))
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "a.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][1:]:
            packet.stream = stream
            target.mux(packet)
    (tmp_path / "whole.mp4").unlink()
    (tmp_path / "notes.txt").touch()
    found = open_set(tmp_path, Choice(Windows(4, start="first"), size=8))
    lost = "lost: its first 4 frames, before the first whole picture"
    assert found.facts["notes"]["a.mp4"] == [lost]
    assert f"notes: 1 clip; 1 x such as a.mp4: {lost}" in caplog.text
    assert "1 file passed over, the first notes.txt: is neither a video nor a picture that is read" in caplog.text
    assert [number(frame) for frame in found[:][0]] == [5, 6, 7, 8]
