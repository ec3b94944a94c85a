"""Samples in shards and windows: what is asked of a program, and what a job that was killed goes on with."""

import functools

import numpy as np
import pytest

from vf import video
from vf.diffusion.windows import Extension
from vf.jobs import drawing
from vf.run import media

ROWS = {"index": np.arange(5, dtype=np.uint32)}
LONG = Extension(
    length=19, frames=8, overlap=4
)  # windows of frames 0..7, 4..11, 8..15, 12..19, of which the last is cut


def counting(asked, stop=None):
    """A program whose frame i of clip k is i + 30 k, counted on from its known frames; it ends at call `stop`."""

    def program(number, rows, done):
        if stop is not None and len(asked) == stop:
            raise KeyboardInterrupt
        asked.append((number, rows["index"].tolist()))
        first = 30 * rows["index"] if number == 0 else rows["known"][:, 0, 0, 0, 0]
        if number:
            expected = first[:, None] + np.arange(LONG.overlap)
            np.testing.assert_array_equal(rows["known"][:, : LONG.overlap, 0, 0, 0], expected)
            assert not rows["known"][:, LONG.overlap :].any()
        done(len(rows["index"]))
        frames = first[:, None] + np.arange(LONG.frames)
        return np.broadcast_to(frames[:, :, None, None, None], (*frames.shape, 2, 2, 3)).astype(np.uint8)

    return program


def draw(folder, program, extension=LONG, batch_size=2, done=lambda n: None):
    """(clips of each shard, windows that are kept, shards that are kept); shards are kept where there are several."""
    parts, shards = (drawing.Parts(folder / name, is_writer=True) for name in ("parts", media.SHARDS))
    make = functools.partial(
        drawing.in_turn, extension=extension, size=2, parts=parts if extension.further else None, program=program
    )
    chosen = drawing.shards(5, 2, extension, batch_size)
    kept = shards if len(chosen) > 1 else None
    clips = list(drawing.draw(ROWS, chosen, extension, 2, make, done, kept, {"label": ROWS["index"] + 10}))
    return clips, parts, shards


def expected(frames=19):
    return 30 * np.arange(5)[:, None] + np.arange(frames)


def first_pixels(clips):
    return np.concatenate(clips)[:, :, 0, 0, 0]


def test_windows_go_on_from_each_other(tmp_path):
    asked, told = [], []
    clips, parts, shards = draw(tmp_path, counting(asked), done=told.append)
    np.testing.assert_array_equal(first_pixels(clips), expected())
    assert [number for number, _ in asked] == [0, 1, 2, 3]
    assert (told[-1], told == sorted(told)) == (20, True)
    assert not shards.folder.exists()
    parts.remove()
    assert not parts.folder.exists()


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two clips of four windows."""
    monkeypatch.setattr(drawing, "SHARD_BYTES", 2 * 19 * 2 * 2 * 3)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_job_that_was_killed_draws_only_what_is_left(tmp_path, small_shards, stop):
    asked = []
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, counting(asked, stop))
    rest, told = [], []
    clips, _, _ = draw(tmp_path, counting(rest), done=told.append)
    whole = [(number, rows) for rows in ([0, 1], [2, 3], [4]) for number in range(4)]
    assert asked + rest == whole
    assert told == sorted(told)
    assert told[-1] == 20
    np.testing.assert_array_equal(first_pixels(clips), expected())


def test_many_clips_stay_in_their_shards(tmp_path, small_shards):
    """With what is told beside them, and read like one array of which a file is held at a time."""
    clips, _, shards = draw(tmp_path, counting([]))
    names = [f"clips_{first:06d}_{last:06d}" for first, last in ((0, 2), (2, 4), (4, 5))]
    assert sorted(path.stem for path in shards.folder.iterdir()) == names
    labels = [video.load_npz(shards.folder / f"{name}.npz")["label"] for name in names]
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(10, 15))
    media.write_samples(tmp_path, clips[0], base_frame=1, shards=names, total=5)
    read = media.Shards(tmp_path)
    assert (len(read), read.shape) == (5, (5, 19, 2, 2, 3))
    np.testing.assert_array_equal(np.stack([read[k] for k in range(5)]), np.concatenate(clips))
    np.testing.assert_array_equal(np.concatenate(list(read.pieces())), np.concatenate(clips))
    assert not (tmp_path / "clips.npz").exists()


def test_a_job_with_another_batch_draws_its_own_shards(tmp_path, small_shards):
    """Of other clips than those that a killed one has left, whose shards are removed in the end."""
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, counting([], 5))
    clips, _, shards = draw(tmp_path, counting([]), batch_size=3)
    np.testing.assert_array_equal(first_pixels(clips), expected())
    names = [drawing.shard_name(shard) for shard in drawing.shards(5, 2, LONG, 3)]
    shards.remove(but=tuple(names))
    assert (
        sorted(path.stem for path in shards.folder.iterdir()) == names == ["clips_000000_000003", "clips_000003_000005"]
    )


def test_a_run_that_begins_anew_forgets_what_was_begun(tmp_path, small_shards):
    """But not what was finished."""
    folder, finished = (media.drawing_folder(tmp_path, step, "clips", 5, {"seed": 0}) for step in (4, 5))
    with pytest.raises(KeyboardInterrupt):
        draw(folder, counting([], 6))
    draw(finished, counting([]))
    (finished / "meta.json").write_text("{}")
    drawing.forget(tmp_path)
    assert not list(folder.iterdir())
    assert [path.name for path in (finished / media.SHARDS).iterdir()]


def test_few_short_clips_leave_nothing_behind(tmp_path):
    asked = []
    clips, parts, shards = draw(tmp_path, counting(asked), Extension(8, 8, 0))
    np.testing.assert_array_equal(first_pixels(clips), expected(8))
    assert asked == [(0, [0, 1, 2, 3, 4])]
    assert not parts.folder.exists()
    assert not shards.folder.exists()
