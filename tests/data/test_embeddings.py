"""Embeddings belong to the base frame of the window: that of frame k holds k, or -k where it is mirrored."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from tests.data.synthetic import colour, number
from vf.config import build, networks
from vf.config import data as config_data
from vf.data import inspect, prepare
from vf.data.clips import Windows
from vf.data.embeddings import Layout
from vf.data.pipeline import batches, fixed_clips
from vf.data.prepared import Prepared
from vf.types import UserError

SIZE = 16
VIDEOS = {"A/clip": 70, "B/clip": 41, "C/clip": 23}  # numbers of frames; the class identifies the video


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Folders of frames. The left half of frame k has colour k, and the right half is black."""
    root = tmp_path_factory.mktemp("source")
    for name, frames in VIDEOS.items():
        (root / name).mkdir(parents=True)
        for k in range(frames):
            picture = np.zeros((SIZE, SIZE, 3), np.uint8)
            picture[:, : SIZE // 2] = colour(k)
            Image.fromarray(picture).save(root / name / f"{k}.png")
    return root


def vectors(video: int, frames: range) -> np.ndarray:
    """f32 [n 3]: the embedding of each of `frames`."""
    return np.array([(video + 1, k, 7) for k in frames], np.float32)


def arrays(every: int, mirrored: bool = True) -> dict:
    """The arrays of a file of embeddings; with `every` 0 one embedding a video, written as that of frame 1,000."""
    parts = [vectors(v, range(0, n, every) if every else range(1000, 1001)) for v, n in enumerate(VIDEOS.values())]
    found = {"name": list(VIDEOS), "embedding": np.concatenate(parts)}
    if every:
        found |= {"every": every, "frames": list(VIDEOS.values())}
    return found | ({"mirrored": -found["embedding"]} if mirrored else {})


def save(file: Path, found: dict) -> Path:
    np.savez(file, **{name: value for name, value in found.items() if value is not None})
    return file


def make(source: Path, out: Path, file: Path | None) -> dict:
    """Prepares with the command's flags, and returns the manifest."""
    flags = ["folder", f"--source={source}", f"--out={out}", f"--size={SIZE}", "--workers=1"]
    parameters, args = prepare.arguments(flags + ([f"--embeddings={file}"] if file else []))
    return prepare.prepare(parameters, args.out, args.workers)


@pytest.fixture(scope="module")
def prepare_with(source, tmp_path_factory):
    """A function of (every, mirrored) that gives a prepared data set, made once."""
    known: dict[tuple[int, bool], Path] = {}

    def get(every: int, mirrored: bool = True) -> Path:
        if (every, mirrored) not in known:
            root = tmp_path_factory.mktemp("made")
            make(source, root / "data", save(root / "vectors.npz", arrays(every, mirrored)))
            known[every, mirrored] = root / "data"
        return known[every, mirrored]

    return get


def configured(data: Path, **changes):
    config = base.get_config()
    fields = {"data.source": str(data), "data.size": SIZE, "data.frames": 6, "model.context": "embedding"}
    config.update_from_flattened_dict(fields | changes)
    return config


def nearest(frame: int, frames: int, every: int) -> int:
    """The frame nearest to `frame` that has an embedding, by looking at each; the later of two."""
    return min(range(0, frames, every), key=lambda k: (abs(k - frame), -k))


def seen(batch: dict[str, np.ndarray], base_frame: int) -> list[tuple[int, int, bool]]:
    """(video, number of its frame that is the base frame, whether it is mirrored) of each clip, by its pixels."""
    found = []
    for label, clip in zip(batch["label"].tolist(), batch["video"], strict=True):
        left, right = np.split(clip[base_frame], 2, axis=1)
        flipped = bool(left.sum() < right.sum())
        found.append((label, number(right if flipped else left), flipped))
    return found


@pytest.mark.parametrize("every", [1, 3, 10, 50])
@pytest.mark.parametrize(
    ("base_frame", "changes"),
    [
        (-1, {}),
        (5, {"data.stride": 3}),
        (0, {"data.windows": "all", "data.hop": 3}),
        (4, {"data.windows": "blocks"}),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_a_clip_has_the_embedding_of_its_own_base_frame(prepare_with, every, base_frame, changes, flip):
    config = configured(prepare_with(every), **{"noise.base_frame": base_frame}, **changes)
    clips = config_data.source(config)
    at = config_data.base_frame(config)
    assert at == (2 if base_frame == -1 else base_frame)
    seen_vectors = set()
    with batches(clips, seed=1, batch_size=16, threads=2, flip=flip) as iterator:
        for batch in islice(iterator, 4):
            assert set(batch) == {"video", "label", "embedding", "index"}
            for (video, frame, flipped), vector in zip(seen(batch, at), batch["embedding"], strict=True):
                nearest_frame = nearest(frame, list(VIDEOS.values())[video], every)
                assert (
                    vector.tolist()
                    == (vectors(video, range(nearest_frame, nearest_frame + 1))[0] * (1 - 2 * flipped)).tolist()
                )
                seen_vectors.add((video, nearest_frame, flipped))
    assert {flipped for *_, flipped in seen_vectors} == ({False, True} if flip else {False})
    assert len({(video, frame) for video, frame, _ in seen_vectors}) > (16 if every == 1 else 4 if every < 50 else 2)


def test_a_middle_window_has_the_embedding_of_its_own_base_frame(prepare_with):
    """Evaluation takes middle windows; they are neither random nor mirrored."""
    for start in ("random", "centre"):
        clips = fixed_clips(Prepared(prepare_with(3), windows=Windows(6, 2, start=start), base_frame=1), 3)
        for (video, frame, _), vector in zip(seen(clips, 1), clips["embedding"], strict=True):
            frames = list(VIDEOS.values())[video]
            assert frame == (frames - 11) // 2 + 2
            assert vector[1] == nearest(frame, frames, 3)


def older(data: Path, out: Path) -> Path:
    """`data`, which has one embedding a video, as the manifest's format 1 describes it."""
    out.mkdir()
    manifest = json.loads((data / "manifest.json").read_text())
    dim = manifest.pop("embeddings")["dim"]
    (out / manifest["builder"]).parent.mkdir(parents=True)
    (out / manifest["builder"]).symlink_to(data / manifest["builder"])
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": 1, "embedding_dim": dim}))
    return out


@pytest.mark.parametrize("age", ["new", "old"])
def test_one_embedding_a_video_serves_its_middle_window_alone(prepare_with, tmp_path, age):
    data = prepare_with(0, False) if age == "new" else older(prepare_with(0, False), tmp_path / "old")
    for start in ("random", "first", "all", "blocks"):
        with pytest.raises(
            UserError, match=rf"one embedding for each video.* start at {start}: take windows at the centre"
        ):
            config_data.source(configured(data, **{"data.windows": start}))
        clips = config_data.source(configured(data, **{"data.windows": start, "model.context": "base_frame"}))
        assert set(clips.clip(0, np.random.default_rng(0))) == {"video", "label"}  # nobody asks for embeddings
    clips = config_data.source(configured(data, **{"data.windows": "centre"}))
    assert clips.embedding_dim == 3
    for record, frames in enumerate(VIDEOS.values()):
        clip = clips.clip(record, np.random.default_rng(0))
        assert clip["embedding"].tolist() == [record + 1, 1000, 7]
        assert number(clip["video"][2][:, : SIZE // 2]) == (frames - 6) // 2 + 2


def test_mirrored_clips_need_mirrored_embeddings(prepare_with):
    for root, windows in ((prepare_with(3, False), Windows(6)), (prepare_with(0, False), Windows(6, start="centre"))):
        clips = Prepared(root, windows=windows, base_frame=2)
        for how in ({"threads": 2}, {"workers": 1}) if windows.start == "random" else ({"threads": 0},):
            iterator = batches(clips, seed=0, batch_size=1, flip=True, **how)
            with iterator, pytest.raises(UserError, match=r"no embeddings of mirrored frames: set flip to False"):
                next(iterator)
        with batches(clips, seed=0, batch_size=4) as iterator:
            assert (next(iterator)["embedding"][:, 0] > 0).all()
        with batches(Prepared(root, windows=windows), seed=0, batch_size=4, flip=True) as iterator:
            assert set(next(iterator)) == {"video", "label", "index"}
    clips = Prepared(
        prepare_with(0), windows=Windows(6, start="centre"), base_frame=2
    )  # one a video may be mirrored too
    with batches(clips, seed=0, batch_size=30, flip=True) as iterator:
        batch = next(iterator)
    assert set(batch["embedding"][:, 1]) == {1000, -1000}
    assert [flipped for *_, flipped in seen(batch, 2)] == (batch["embedding"][:, 1] < 0).tolist()


def test_training_on_mirrored_clips_without_mirrored_embeddings_is_refused_at_the_start(prepare_with, tmp_path):
    """The error names the flag. Clips that are read without embeddings may be mirrored."""
    config = configured(prepare_with(3, False), **{"data.flip": True, "data.validation_share": 0.0})
    with pytest.raises(UserError, match=r"no embeddings of mirrored frames.* \(--config\.data\.flip\)$"):
        build.train(config, tmp_path, None)
    for changes in ({"data.flip": False}, {"model.context": "base_frame"}, {"data.source": str(prepare_with(3))}):
        allowed = config.copy_and_resolve_references()
        allowed.update_from_flattened_dict(changes)
        config_data.check_flip(allowed, config_data.source(allowed))


def test_a_base_frame_outside_the_clip_is_refused(prepare_with):
    for base_frame in (-1, 6):
        with pytest.raises(UserError, match=rf"the base frame must be one of 0..5, got {base_frame}"):
            Prepared(prepare_with(3), windows=Windows(6), base_frame=base_frame)


def test_the_embeddings_of_a_data_set_are_reported(prepare_with, source, tmp_path, capsys):
    manifest = json.loads((prepare_with(3) / "manifest.json").read_text())
    assert manifest["embeddings"] == {"dim": 3, "every": 3, "mirrored": True}
    line = "embeddings: one every 3 frames, 3 numbers each, and those of the mirrored frames"
    assert line in prepare.report(manifest, prepare_with(3)).splitlines()
    inspect.main([f"--data={prepare_with(3)}", f"--out={tmp_path / 'sheet.png'}"])
    assert line in capsys.readouterr().out
    bare = make(source, tmp_path / "bare", None)
    assert bare["embeddings"] == {"dim": 0, "every": 0, "mirrored": False}
    assert "embeddings:" not in prepare.report(bare, tmp_path)
    with pytest.raises(UserError, match="no embedding of the base frame"):
        networks.embedding_dim(configured(tmp_path / "bare"), config_data.source(configured(tmp_path / "bare")))


def test_a_video_of_another_length_than_its_embeddings_is_lost(source, tmp_path):
    """Another decoder may have found other frames, and then no embedding is known to be that of its frame."""
    found = arrays(3) | {"frames": [70, 42, 23]}  # 42 frames have as many embeddings as 41
    manifest = make(source, tmp_path / "data", save(tmp_path / "vectors.npz", found))
    assert manifest["rejected"] == {"B/clip": "has 41 frames, and the file of embeddings says 42"}
    assert manifest["splits"]["train"]["index"]["name"] == ["A/clip", "C/clip"]
    batch = fixed_clips(Prepared(tmp_path / "data", windows=Windows(6), base_frame=2), 2)
    for (video, frame, _), vector in zip(seen(batch, 2), batch["embedding"], strict=True):
        assert vector[1] == nearest(frame, [70, 41, 23][video], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": [70, 41, 26]}, "3 names need 47 embeddings, and there are 46"),
        ({"frames": [70, 41]}, r"frames should be 3 integers, not int64 \[2\]"),
        ({"frames": [70.0, 41.0, 23.0]}, r"frames should be 3 integers, not float64 \[3\]"),
        ({"frames": None}, "`every` and `frames` go together"),
        ({"every": None}, "`every` and `frames` go together"),
        ({"every": 0}, "every should be one integer, at least 1, not 0"),
        ({"every": 3.5}, "every should be one integer, at least 1, not 3.5"),
        ({"every": [3, 3]}, r"every should be one integer, at least 1, not \[3, 3\]"),
        ({"mirrored": np.zeros((46, 2))}, r"embedding has shape \[46, 3\], and mirrored \[46, 2\]"),
        ({"mirrored": np.full((46, 3), "x")}, "embeddings are numbers, and these are <U1"),
        ({"embedding": np.zeros((46, 0)), "mirrored": None}, r"they have shapes \[3\] and \[46, 0\]"),
    ],
)
def test_an_inconsistent_file_of_embeddings_is_refused(source, tmp_path, changes, message):
    file = save(tmp_path / "vectors.npz", arrays(3) | changes)
    with pytest.raises(UserError, match=rf"should hold `name` .*{message}"):
        make(source, tmp_path / "data", file)


@pytest.mark.parametrize("every", [1, 2, 3, 7, 16, 40])
def test_the_nearest_embedding_is_that_of_a_naive_search(every):
    layout = Layout(5, every)
    for frames in range(1, 60):
        assert layout.count(frames) == len(range(0, frames, every))
        for frame in range(frames):
            assert layout.nearest(frame, frames) * every == nearest(frame, frames, every)
