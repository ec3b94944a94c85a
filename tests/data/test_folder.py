"""Synthetic videos whose frame k has colour k, real clips, and files that are not videos."""

import threading
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.synthetic import H264, LENGTH, MPEG4, VIDEOS, colour, number, parameters, write, write_frames
from vf.data import decode
from vf.data.clips import Windows, num_starts
from vf.data.folder import VideoFolder
from vf.data.pipeline import BadRecord, batches, fixed_clips
from vf.data.pixels import Pixels
from vf.data.preparation import prepare
from vf.types import UserError


class Start:
    """Stands in for a random generator: chooses the given start."""

    def __init__(self, start: int):
        self.start = start

    def integers(self, starts: int) -> int:
        assert self.start < starts
        return self.start


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coloured")
    for name, (codec, options) in VIDEOS.items():
        write(root / name, codec, options)
    return root


@pytest.fixture
def one_video(tmp_path) -> Path:
    write(tmp_path / "Class" / "v.avi", times=range(20))
    return tmp_path


@pytest.mark.parametrize("name", VIDEOS)
def test_frame_k_has_colour_k_in_every_window(coloured, tmp_path, name):
    (tmp_path / name).symlink_to(coloured / name)
    source = VideoFolder(tmp_path, windows=Windows(3, 4), size=16)
    for start in range(num_starts(LENGTH, 3, 4)):
        video = source.clip(0, Start(start))["video"]
        assert [number(picture) for picture in video] == [start, start + 4, start + 8]
    with pytest.raises(AssertionError):
        source.clip(0, Start(num_starts(LENGTH, 3, 4)))  # the file is known to have LENGTH frames, and no more


def test_the_synthetic_videos_are_as_difficult_as_intended(coloured):
    """Guards the test above: key frames are sparse, orders differ, and one container holds false times."""
    orders = {}
    for name in VIDEOS:
        with av.open(str(coloured / name)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
        assert len(packets) == LENGTH
        assert 2 <= sum(p.is_keyframe for p in packets) <= LENGTH // 2, name
        times = [p.pts for p in packets]
        orders[name] = times != sorted(times)
    assert [name for name in VIDEOS if not orders[name]] == ["false_times.avi", "sparse_keys.avi", "vp9.webm"]


def test_a_window_decodes_its_own_group_of_pictures_and_no_other(tmp_path):
    """One broken packet spoils the windows that need it; decoding from the start would spoil all the rest."""
    path = tmp_path / "torn.mp4"
    write(path, "libx264", {"x264-params": H264.format(15) + ":bframes=0"})
    with av.open(str(path)) as container:
        position = [p.pos for p in container.demux(video=0) if p.size][20]
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"\x7f\xff\xff\xff")  # the length of a part of the picture, beyond the packet's end
    source = VideoFolder(tmp_path, windows=Windows(4), size=16)
    for start in (0, 16, 30, 62):
        video = source.clip(0, Start(start))["video"]
        assert [number(picture) for picture in video] == list(range(start, start + 4))
    for start in (17, 20, 21, 28):
        with pytest.raises(BadRecord, match=r"torn\.mp4: Invalid data"):
            source.clip(0, Start(start))


@pytest.mark.parametrize("fault", ["lands too late", "is refused"])
def test_where_seeking_fails_decoding_starts_from_the_first_frame(coloured, tmp_path, monkeypatch, fault):
    seeks = []

    class Container:
        """The real container, except for seeking."""

        def __init__(self, true):
            self.true, self.decode, self.demux, self.format = true, true.decode, true.demux, true.format

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.true.close()

        def seek(self, time, stream):
            seeks.append(time)
            if fault == "is refused":
                raise av.PermissionError(1, "Operation not permitted")
            self.true.seek(60, stream=stream)

    def open_faulty(path):
        container, stream = true_open(path)
        return Container(container), stream

    true_open = decode.open_video
    monkeypatch.setattr(decode, "open_video", open_faulty)
    (tmp_path / "v.avi").symlink_to(coloured / "sparse_keys.avi")
    source = VideoFolder(tmp_path, windows=Windows(4), size=16)
    assert [number(picture) for picture in source.clip(0, Start(40))["video"]] == [40, 41, 42, 43]
    assert seeks == [30]


def test_a_frame_that_the_codec_left_out_shows_the_one_before(tmp_path):
    """MPEG-4 may mark a frame "not coded"; FFmpeg then gives no picture for it."""
    path = tmp_path / "gaps.avi"
    write(path, "mpeg4", {**MPEG4, "g": "40"}, paint=lambda k: np.full((48, 64, 3), colour(k - k % 2)))
    with av.open(str(path)) as container:
        data = [bytes(p) for p in container.demux(video=0) if p.size]
    content = path.read_bytes()
    for k in (11, 13, 51, 52, 53, 54, 55):
        head = "".join(f"{byte:08b}" for byte in data[k][4:8])
        coded = head.index("01", 2) + 2 + 5 + 1  # type, seconds in unary, marker, time in 5 bits, marker
        assert (data[k][:4], head[:2], head[coded]) == (b"\0\0\1\xb6", "01", "1")
        bits = int(head[:coded] + "0" + head[coded + 1 :], 2)
        content = content.replace(data[k], data[k][:4] + bits.to_bytes(4) + data[k][8:])
    path.write_bytes(content)
    source = VideoFolder(tmp_path, windows=Windows(4), size=16)
    for start in (*range(46), 57, 66):
        video = source.clip(0, Start(start))["video"]
        assert [number(picture) for picture in video] == [k - k % 2 for k in range(start, start + 4)]
    with pytest.raises(BadRecord, match="4 of 4 frames from frame 51 on have no picture"):
        source.clip(0, Start(51))


def test_frames_are_counted_and_not_timed(tmp_path):
    """A variable frame rate: frame k is the k-th picture, wherever in time it is."""
    times = [k for k in range(LENGTH) if k % 5 and k not in range(30, 37)]
    write(tmp_path / "gaps.mp4", "libx264", {"x264-params": H264.format(8) + ":bframes=2"}, times=times)
    source = VideoFolder(tmp_path, windows=Windows(4), size=16)
    for start in range(num_starts(len(times), 4, 1)):
        video = source.clip(0, Start(start))["video"]
        assert [number(picture) for picture in video] == times[start : start + 4]


def test_without_a_generator_the_window_is_the_middle_one(coloured):
    source = VideoFolder(coloured, windows=Windows(5, 3), size=16)
    assert len(source) == len(VIDEOS)
    for record in range(len(source)):
        assert [number(picture) for picture in source.clip(record, None)["video"]] == [28, 31, 34, 37, 40]


def test_pixels_are_the_centre_square_and_do_not_alias(tmp_path):
    """The margins are green, the square is a fine chequerboard, whose antialiased picture is grey."""

    def paint(_):
        rows, columns = np.indices((64, 128))
        picture = np.repeat(255 * ((rows // 2 + columns // 2) % 2)[..., None], 3, axis=2)
        picture[:, :32] = picture[:, 96:] = (0, 255, 0)
        return picture

    write(tmp_path / "v.mkv", "libx264", {"qp": "0"}, times=range(2), paint=paint)
    video = VideoFolder(tmp_path, windows=Windows(2), size=8).clip(0, None)["video"]
    assert video.shape == (2, 8, 8, 3)
    assert video.dtype == np.uint8
    inner = video[:, 1:-1, 1:-1].astype(int)
    assert np.abs(inner - 127).max() < 12
    assert np.ptp(video.astype(int), axis=-1).max() < 40  # green bleeds in by the chroma's resolution only


def test_classes_are_folders_in_natural_order(tmp_path):
    names = [
        "HammerThrow/v_1.avi",
        "Hammering/v_10.avi",
        "Hammering/v_9.avi",
        "Class10/v.avi",
        "Class9/v.avi",
    ]
    for name in names:
        write(tmp_path / name, times=range(2))
    (tmp_path / "Empty").mkdir()
    source = VideoFolder(tmp_path, windows=Windows(2), size=8)
    assert source.class_names == ("Class9", "Class10", "Hammering", "HammerThrow")
    assert source.num_classes == 4
    labels = [source.clip(record, None)["label"] for record in range(len(source))]
    assert labels == [0, 1, 2, 2, 3]
    assert {(label.dtype, label.shape) for label in labels} == {(np.dtype(np.int32), ())}


def test_a_split_file_selects_and_does_not_renumber(tmp_path, caplog):
    for name in ("A/v_A_g01_c01.avi", "B/v_B_g01_c01.avi", "B/v_B_g02_c01.avi", "C/v_C_g01_c01.avi"):
        write(tmp_path / name, times=range(2))
    train, test = tmp_path / "trainlist01.txt", tmp_path / "testlist01.txt"
    train.write_text("B/v_B_g02_c01.avi 2\r\nC/v_C_g01_c01.avi 3\r\nC/v_C_g99_c01.avi 3\r\n")
    test.write_text("B/v_B_g01_c01.avi\n\nA/v_A_g01_c01.avi\n")
    one = VideoFolder(tmp_path, windows=Windows(2), size=8, split_file=train)
    other = VideoFolder(tmp_path, windows=Windows(2), size=8, split_file=test)
    assert one.class_names == other.class_names == ("A", "B", "C")
    assert [int(one.clip(r, None)["label"]) for r in range(len(one))] == [1, 2]
    assert [int(other.clip(r, None)["label"]) for r in range(len(other))] == [1, 0]
    assert one.rejected == {"C/v_C_g99_c01.avi": "is not in the folder"}
    assert "v_C_g99_c01.avi" in caplog.text
    assert one.describe()["split"] == "trainlist01.txt"


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa/1.avi 1\nb/caf\xe9.avi 2\n".encode(), b"a\\1.avi 1\r\nb\\caf\xc3\xa9.avi 2\r\n",
        b"a/1.avi\nb/caf\xe9.avi\n", "a/1.avi\nb/caf\xe9.avi\n".encode("utf-16"),
        "a/1.avi\nb/caf\xe9.avi\n".encode("utf-16-le"),
        "a/1.avi\nb/caf\xe9.avi\n".encode("utf-16-be"), b"./a/1\nb/caf\xc3\xa9.mp4",
    ],
)  # fmt: skip
def test_lists_as_editors_leave_them_name_the_same_videos(tmp_path, content):
    for name in ("a/1.avi", "b/caf\xe9.avi", "b/2.avi"):
        write(tmp_path / "videos" / name, times=range(2))
    (tmp_path / "list.txt").write_bytes(content)
    source = VideoFolder(tmp_path / "videos", windows=Windows(2), size=8, split_file=tmp_path / "list.txt")
    assert (list(source.names), source.rejected) == (["a/1.avi", "b/caf\xe9.avi"], {})
    others = VideoFolder(tmp_path / "videos", windows=Windows(2), size=8, without=tmp_path / "list.txt")
    assert list(others.names) == ["b/2.avi"]


def test_a_folder_is_listed_as_preparation_lists_it(tmp_path, caplog):
    """Hidden folders are no classes, splits of folders are kept apart, and whatever is no clip is told."""
    for name in (
        "train/a/1.avi",
        "train/b/1.avi",
        "test/a/2.avi",
        "train/.ipynb_checkpoints/1.avi",
        "__MACOSX/a/1.avi",
    ):
        write(tmp_path / name, times=range(4))
    write_frames(tmp_path / "train" / "b" / "frames", range(4))
    (tmp_path / "train" / "notes.txt").touch()
    source = VideoFolder(tmp_path, windows=Windows(2), size=8)
    assert source.class_names == ("a", "b")
    assert list(source.names) == ["train/a/1.avi", "train/b/1.avi", "train/b/frames"]
    assert [number(frame) for frame in source.clip(2, None)["video"]] == [1, 2]
    assert "1 clip of other splits than train left out" in caplog.text
    assert "1 file passed over, the first train/notes.txt" in caplog.text
    prepared = prepare(parameters(tmp_path), tmp_path.parent / f"{tmp_path.name}.out", workers=1)
    assert tuple(prepared["splits"]["train"]["index"]["name"]) == source.names
    assert prepared["classes"] == list(source.class_names)
    assert set(prepared["unlisted"]) == set(source.unlisted)


def test_a_flat_folder_has_no_labels(coloured):
    source = VideoFolder(coloured, windows=Windows(2), size=8)
    assert (source.num_classes, source.class_names) == (0, ())
    assert source.clip(0, None)["label"] == 0


def test_files_that_are_not_videos_are_left_out_with_a_reason(one_video, caplog):
    place = one_video / "Class"
    (place / "text.avi").write_text("a list of words, not of pictures\n" * 50)
    (place / "zero.mp4").write_bytes(b"")
    (place / "notes.txt").write_text("not even tried")
    (place / "folder.mkv").mkdir()
    (place / "cut.avi").write_bytes((place / "v.avi").read_bytes()[:300])
    write(place / "short.avi", times=range(10))
    with av.open(str(place / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    source = VideoFolder(one_video, windows=Windows(4, 4), size=8)
    names = {"text.avi", "zero.mp4", "folder.mkv", "cut.avi", "short.avi", "sound.mov"}
    assert set(source.rejected) == {f"Class/{name}" for name in names}
    assert source.rejected["Class/short.avi"] == "has 10 frames, fewer than 13"
    assert source.rejected["Class/sound.mov"] == "has no video stream"
    assert all(source.rejected.values())
    assert all(f"{name}: {reason}" in caplog.text for name, reason in source.rejected.items())
    assert len(source) == 1
    assert source.describe()["rejected"] == len(names)


def test_exactly_the_needed_length_is_enough(one_video):
    assert len(VideoFolder(one_video, windows=Windows(20), size=8)) == 1
    with pytest.raises(UserError, match="has 20 frames, fewer than 21") as caught:
        VideoFolder(one_video, windows=Windows(21), size=8)
    assert caught.value.parameter == "frames"
    (one_video / "Class" / "v.avi").write_bytes(b"no video")
    with pytest.raises(UserError, match="none serves") as caught:
        VideoFolder(one_video, windows=Windows(20), size=8)
    assert caught.value.parameter == "source"


def test_a_file_that_disappears_is_a_bad_record(one_video):
    source = VideoFolder(one_video, windows=Windows(2), size=8)
    (one_video / "Class" / "v.avi").unlink()
    with pytest.raises(BadRecord, match=r"Class/v\.avi: No such file"):
        source.clip(0, None)


def test_unusable_folders_are_explained(tmp_path, one_video):
    def error_message(root: Path, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            VideoFolder(root, windows=Windows(2), size=8, **kwargs)
        return str(caught.value)

    missing = error_message(tmp_path / "nowhere")
    assert all(part in missing for part in ("no such folder", "CLASS/VIDEO", "name one"))
    (tmp_path / "empty" / "Class").mkdir(parents=True)
    empty = error_message(tmp_path / "empty")
    assert all(part in empty for part in ("holds no videos", ".avi", ".png", "name another source"))
    deep = tmp_path / "deep" / "UCF-101"
    deep.mkdir(parents=True)
    (one_video / "Class").rename(deep / "Class")
    assert "split file" in error_message(deep, split_file=tmp_path / "nowhere.txt")
    (tmp_path / "blank.txt").write_text("\n\n")
    assert "is empty" in error_message(deep, split_file=tmp_path / "blank.txt")
    (tmp_path / "other.txt").write_text("Other/v.avi 1\n")
    assert "is not in the folder" in error_message(deep, split_file=tmp_path / "other.txt")


def test_batches_of_videos_are_the_same_for_any_number_of_threads(coloured):
    source = VideoFolder(coloured, windows=Windows(3, 2), size=8)

    def run(threads: int) -> list[dict[str, np.ndarray]]:
        with batches(source, seed=5, batch_size=6, threads=threads) as iterator:
            return list(islice(iterator, 3))

    for one, other in zip(run(0), run(6), strict=True):
        np.testing.assert_array_equal(one["video"], other["video"])


def test_real_clips(real_clips):
    source = VideoFolder(real_clips / "UCF-101", windows=Windows(16, 4), size=64)
    assert (len(source), source.class_names, source.rejected) == (10, ("PlayingGuitar",), {})
    last = num_starts(250, 16, 4) - 1
    for record in range(len(source)):
        assert source.clip(record, Start(last))["video"].shape == (16, 64, 64, 3)
        with pytest.raises(AssertionError):
            source.clip(record, Start(last + 1))
    clips = fixed_clips(source, 10)
    assert clips["video"].std(axis=(1, 2, 3, 4)).min() > 10
    assert len({clip.tobytes() for clip in clips["video"]}) == 10


def test_seeking_in_real_clips_gives_the_frames_of_plain_decoding(real_clips):
    source = VideoFolder(real_clips / "UCF-101", windows=Windows(4), size=240)
    path = real_clips / "UCF-101" / "PlayingGuitar" / "v_PlayingGuitar_g03_c01.avi"
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
    pixels = Pixels(240)
    frames = [pixels(picture) for picture in pictures]
    by_ffmpeg = pictures[0].to_ndarray(format="rgb24")[:, 40:280]  # rounds otherwise, but shows the same
    assert np.abs(frames[0].astype(int) - by_ffmpeg).mean() < 2.5
    for start in range(0, 247, 13):
        np.testing.assert_array_equal(source.clip(0, Start(start))["video"], frames[start : start + 4])


def test_a_corrupted_file_is_skipped_with_its_name(real_clips, tmp_path, caplog):
    (tmp_path / "corrupted.mp4").symlink_to(real_clips / "broken" / "corrupted.mp4")
    write(tmp_path / "sound.avi", times=range(20))
    source = VideoFolder(tmp_path, windows=Windows(16), size=16)
    assert len(source) == 2  # the file opens, and its first pictures are sound
    for clip in fixed_clips(source, 2)["video"]:
        assert [number(picture) for picture in clip] == list(range(2, 18))
    assert "corrupted.mp4: has lost a picture that others need, after 31 frames" in caplog.text


def test_no_file_of_a_folder_stays_open(coloured):
    def opened() -> set[Path]:
        descriptors = Path("/proc/self/fd")
        found = descriptors.iterdir() if descriptors.is_dir() else ()
        return {fd for fd in found if coloured in Path(fd).resolve().parents}

    before = set(threading.enumerate()), opened()  # threads of another test may still be reading
    source = VideoFolder(coloured, windows=Windows(2), size=8)
    source.clip(0, None)
    assert not set(threading.enumerate()) - before[0]
    assert not opened() - before[1]
