"""Clips to be scored: one set of pixels in every supported form, and errors raised when the set is opened."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import write_frames
from vf.data.clips import Windows
from vf.data.preparation import prepare
from vf.data.staging import Parameters
from vf.run import media
from vf.scores.sets import open_set
from vf.scores.sources import Choice
from vf.types import UserError
from vf.video import save_npz, write_gif

LENGTH, SIDE = 12, 16
NAMES = [f"clip_{k}" for k in range(1, 12)]  # clip_10 follows clip_9, not clip_1


def pixels(n: int = len(NAMES), length: int = LENGTH, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Noise of 128 colours, so that a GIF holds it exactly; no two neighbouring frames alike."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (128, 3), np.uint8)
    return palette[rng.integers(0, 128, (n, length, side, side))]


def write_lossless(path: Path, frames: np.ndarray, fps: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))


def write_pngs(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{k}.png")


def write_prepared(out: Path, source: Path, size: int = SIDE) -> None:
    given = Parameters(
        dataset="folder", source=str(source), size=size, encoding="raw", quality=0, splits="", fold=1, table="",
        embeddings="", fps=0.0, min_frames=2,
    )  # fmt: skip
    prepare(given, out, workers=1)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    """The same 11 clips of 12 frames as videos, GIFs, folders of frames, an array, and a prepared data set."""
    root, clips = tmp_path_factory.mktemp("forms"), pixels()
    for name, clip in zip(NAMES, clips, strict=True):
        write_lossless(root / "videos" / f"{name}.mkv", clip)
        write_pngs(root / "frames" / name, clip)
        (root / "gifs").mkdir(exist_ok=True)
        write_gif(root / "gifs" / f"{name}.gif", clip, fps=7)
    save_npz(root / "clips.npz", clips)
    write_prepared(root / "prepared", root / "frames")
    names = ("videos", "frames", "gifs", "clips.npz", "prepared")
    return {name: root / name for name in names}


CHOICES = {
    "centre": Choice(Windows(4, 2, start="centre")),
    "first": Choice(Windows(12, start="first"), size=SIDE),
    "random": Choice(Windows(3, 2, start="random"), seed=5),
    "all, hop 3": Choice(Windows(5, start="all", hop=3)),
    "blocks": Choice(Windows(3, 2, start="blocks")),
    "the first 3": Choice(Windows(9, start="centre"), n=3, subset="first"),
    "any 4 of all": Choice(Windows(9, start="all"), n=4, seed=1),
}


def expected(choice: Choice) -> np.ndarray:
    """By a loop over the array."""
    found = []
    for clip in pixels():
        for record in range(choice.windows.records(LENGTH, 0.0)):
            rng = np.random.default_rng([choice.seed, len(found)]) if choice.windows.start == "random" else None
            found.append(clip[choice.windows.indices(LENGTH, 0.0, record, rng)])
    if not choice.n:
        return np.stack(found)
    rows = range(choice.n)
    if choice.subset == "random":
        rows = sorted(np.random.default_rng(choice.seed).permutation(len(found))[: choice.n])
    return np.stack([found[k] for k in rows])


@pytest.mark.parametrize("form", ["videos", "frames", "gifs", "clips.npz", "prepared"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_every_form_gives_the_same_clips(forms, form, choice):
    true = expected(choice)
    found = open_set(forms[form], choice)
    assert found.shape == true.shape
    assert len(found) == len(true)
    np.testing.assert_array_equal(found[:], true)
    np.testing.assert_array_equal(found[1:3], true[1:3])
    assert found[5:5].shape == (0, *true.shape[1:])
    assert found.facts["too_short"] == 0


def test_a_drawing_of_a_run_is_its_clips(tmp_path):
    """And not the pictures of them that lie beside."""
    clips = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "clips.npz", clips=clips, label=np.zeros(3, np.int32))
    for name in ("meta.json", "wall.mp4", "wall.gif"):
        (tmp_path / name).write_text("{}")
    np.testing.assert_array_equal(open_set(tmp_path, Choice(Windows(8), 16))[:], clips)


def test_a_folder_of_drawings_is_refused_with_their_names(tmp_path):
    """The walls in a run's folder, or in its `samples`, are no clips; another folder of arrays is no run."""
    run, drawings = tmp_path / "run", [f"step_{step:08d}_clips_seed0_n2_1a2b3c4d" for step in range(10, 18)]
    for name in ["real", *drawings]:
        media.write_samples(run / "samples" / name, pixels(2), base_frame=0)
    for path in (run, run / "samples"):
        with pytest.raises(UserError, match=f"{path} holds 8 drawings of a run") as refused:
            open_set(path, Choice(Windows(4)))
        for name in (*drawings[:2], *drawings[-3:]):
            assert f"{run / 'samples' / name}" in str(refused.value)
        assert "samples/real" not in str(refused.value)  # which is no drawing
    assert open_set(run / "samples" / drawings[0], Choice(Windows(4, start="first"))).shape[0] == 2
    media.write_samples(tmp_path / "young" / "samples" / "real", pixels(2), base_frame=0)
    with pytest.raises(UserError, match="a run that has drawn no samples yet"):
        open_set(tmp_path / "young", Choice(Windows(4)))
    for name in ["real", *drawings]:
        (run / "samples" / name / "meta.json").unlink()
        (run / "samples" / name / "wall.gif").unlink()
    assert open_set(run, Choice(Windows(4, start="first"))).shape[0] == 9


def test_a_fingerprint_depends_on_pixels_and_choice_and_not_on_the_path(forms, tmp_path):
    choice = Choice(Windows(4, start="centre"), size=8)
    moved = tmp_path / "moved"
    shutil.copytree(forms["videos"], moved)
    fingerprint = open_set(forms["videos"], choice).fingerprint
    assert open_set(moved, choice).fingerprint == fingerprint
    others = [
        Choice(Windows(4, start="first"), size=8), Choice(Windows(5, start="centre"), size=8),
        Choice(Windows(4, 2, start="centre"), size=8), Choice(Windows(4, fps=25, start="centre"), size=8),
        Choice(Windows(4, start="centre"), size=9), Choice(Windows(4, start="centre")),
        Choice(Windows(4, start="centre"), size=8, resampler="antialiased"),
        Choice(Windows(4, start="centre"), size=8, n=4), Choice(Windows(4, start="centre"), size=8, n=4, seed=1),
        Choice(Windows(4, start="centre"), size=8, n=4, subset="first"),
        Choice(Windows(4, start="all", hop=2), size=8), Choice(Windows(4, start="all", hop=3), size=8),
        Choice(Windows(4, start="random"), size=8), Choice(Windows(4, start="random"), size=8, seed=1),
    ]  # fmt: skip
    fingerprints = [open_set(moved, other).fingerprint for other in others]
    assert len({fingerprint, *fingerprints}) == 1 + len(others)
    changed = pixels(1, seed=9)[0]
    write_lossless(moved / "clip_4.mkv", changed)  # another video under the same name
    assert open_set(moved, choice).fingerprint != fingerprint
    shutil.copy(forms["videos"] / "clip_4.mkv", moved / "clip_4.mkv")
    assert open_set(moved, choice).fingerprint == fingerprint
    (moved / "clip_11.mkv").unlink()
    assert open_set(moved, choice).fingerprint != fingerprint


def test_a_prepared_data_set_does_not_depend_on_the_path_of_its_source(forms, tmp_path):
    choice = Choice(Windows(4, start="centre"))
    fingerprint = open_set(forms["prepared"], choice).fingerprint
    shutil.copytree(forms["frames"], tmp_path / "elsewhere")
    write_prepared(tmp_path / "again", tmp_path / "elsewhere")
    assert open_set(tmp_path / "again", choice).fingerprint == fingerprint
    write_prepared(tmp_path / "smaller", tmp_path / "elsewhere", size=8)
    assert open_set(tmp_path / "smaller", choice).fingerprint != fingerprint
    write_pngs(tmp_path / "elsewhere" / NAMES[2], pixels(1, seed=9)[0])
    write_prepared(tmp_path / "changed", tmp_path / "elsewhere")
    assert open_set(tmp_path / "changed", choice).fingerprint != fingerprint


@pytest.mark.parametrize("form", ["frames", "clips.npz"])
def test_one_changed_pixel_changes_the_fingerprint(forms, tmp_path, form):
    choice, clips = Choice(Windows(4, start="first")), pixels()
    clips[7, 11, 3, 3, 1] ^= 1
    if form == "frames":
        shutil.copytree(forms["frames"], tmp_path / "other")
        write_pngs(tmp_path / "other" / NAMES[7], clips[7])
        other = tmp_path / "other"
    else:
        save_npz(other := tmp_path / "other.npz", clips)
    assert open_set(other, choice).fingerprint != open_set(forms[form], choice).fingerprint


@pytest.mark.parametrize("form", ["videos", "clips.npz"])
@pytest.mark.parametrize("split", ["train", "test", "train+test"])
def test_sources_without_splits_are_used_whole_with_a_warning(forms, caplog, form, split):
    assert len(open_set(forms[form], Choice(Windows(4, start="first"), split=split))) == len(NAMES)
    assert f"does not say which of its clips are of split {split}: all are taken" in caplog.text


def test_prepared_short_clips_are_left_out_or_an_error(tmp_path):
    write_frames(tmp_path / "frames" / "long", range(8))
    write_frames(tmp_path / "frames" / "short", range(5))
    write_prepared(tmp_path / "data", tmp_path / "frames")
    found = open_set(tmp_path / "data", Choice(Windows(6, start="first")))
    assert (len(found), found.facts["too_short"]) == (1, 1)
    with pytest.raises(UserError, match=r"1 clip of .* too short"):
        open_set(tmp_path / "data", Choice(Windows(6, start="first"), strict=True))
    with pytest.raises(UserError, match="has the 9 frames"):
        open_set(tmp_path / "data", Choice(Windows(3, 3, start="blocks")))


def test_fewer_clips_than_the_protocol_requires(forms):
    windows = Windows(4, start="first")
    with pytest.raises(UserError, match="gives 11 clips of 4 frames with stride 1 where the protocol takes 12"):
        open_set(forms["videos"], Choice(windows, n=12))
    assert len(open_set(forms["videos"], Choice(windows, n=12, fewer=True))) == 11


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(Windows(4, start="first"), size=8), "was prepared at 16 pixels and the protocol asks for 8"),
        (Choice(Windows(4, start="first"), split="val"), "no split 'val'"),
        (Choice(Windows(13, start="first")), "of 11 clips of .* none has the 13 frames"),
        (Choice(Windows(4, start="first"), size=16, resampler="antialiased"), "the resampler antialiased"),
    ],
)
def test_requests_that_a_prepared_data_set_cannot_meet(forms, choice, message):
    with pytest.raises(UserError, match=message):
        open_set(forms["prepared"], choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(Windows(4, start="first"), size=8), "holds clips of 16 x 16 pixels and the protocol asks for 8"),
        (Choice(Windows(13, start="first")), "clips of 12 frames, too few for 13 frames"),
        (Choice(Windows(4, fps=8, start="first")), "an .npz has no rate, set fps to 0 to go by stride"),
    ],
)
def test_requests_that_an_array_cannot_meet(forms, choice, message):
    with pytest.raises(UserError, match=message):
        open_set(forms["clips.npz"], choice)


def test_one_video_is_a_set_of_its_windows(forms, tmp_path):
    whole = Choice(Windows(LENGTH, start="first"))
    for name in ("videos/clip_1.mkv", "gifs/clip_1.gif"):
        file = forms["videos"].parent / name
        np.testing.assert_array_equal(open_set(file, whole)[:], pixels(1))
        assert open_set(file, Choice(Windows(4, start="blocks"))).shape[:2] == (3, 4)
    for name in ("x.ogv", "without"):  # which are looked into
        (tmp_path / name).write_bytes((forms["videos"].parent / "videos" / "clip_1.mkv").read_bytes())
        np.testing.assert_array_equal(open_set(tmp_path / name, whole)[:], pixels(1))
    Image.fromarray(pixels(1)[0, 0]).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"one\.png is one picture: name a folder"):
        open_set(tmp_path / "one.png", whole)
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"of 1 clip of .*x\.mp4 none can be read"):
        open_set(tmp_path / "x.mp4", whole)


def test_missing_paths_are_refused(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=r"does not exist|holds no videos"):
            open_set(folder, Choice(Windows(2)))


def test_sizes_that_differ(tmp_path):
    for name, side in (("a", 16), ("b", 24)):
        write_lossless(tmp_path / f"{name}.mkv", pixels(1, side=side)[0])
    windows = Windows(4, start="first")
    with pytest.raises(UserError, match="is 4 frames of 16 x 16, another 4 frames of 24 x 24; choose one size"):
        open_set(tmp_path, Choice(windows))[:]
    assert open_set(tmp_path, Choice(windows, size=8))[:].shape == (2, 4, 8, 8, 3)


def test_an_archive_of_videos(forms, tmp_path):
    shutil.make_archive(str(tmp_path / "videos"), "zip", forms["videos"])
    choice = CHOICES["centre"]
    np.testing.assert_array_equal(open_set(tmp_path / "videos.zip", choice)[:], expected(choice))


def test_readers_of_a_set_close_what_they_open(forms):
    """A set of thousands of videos holds no file open."""
    found = open_set(forms["videos"], CHOICES["centre"])
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(3):
        found[:]
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after <= before + 1
