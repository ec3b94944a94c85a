"""Samples in shards and windows: what is asked of a program, and what a job that was killed goes on with."""

import numpy as np
import pytest

from vf.jobs import drawing
from vf.models.sampler import Extension
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
    parts = drawing.Parts(folder, is_writer=True)
    return drawing.draw(ROWS, extension, 2, batch_size, parts, program, done), parts


def test_windows_go_on_from_each_other(tmp_path):
    asked, told = [], []
    clips, parts = draw(tmp_path / "parts", counting(asked), done=told.append)
    np.testing.assert_array_equal(clips[:, :, 0, 0, 0], 30 * np.arange(5)[:, None] + np.arange(19))
    assert [number for number, _ in asked] == [0, 1, 2, 3]
    assert (told[-1], told == sorted(told)) == (20, True)
    parts.remove()
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_job_that_was_killed_draws_only_what_is_left(tmp_path, monkeypatch, stop):
    """Shards of two clips, each of four windows."""
    monkeypatch.setattr(drawing, "SHARD_BYTES", 2 * 19 * 2 * 2 * 3)
    asked = []
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, counting(asked, stop))
    rest = []
    clips, _ = draw(tmp_path, counting(rest))
    whole = [(number, rows) for rows in ([0, 1], [2, 3], [4]) for number in range(4)]
    assert asked + rest == whole
    np.testing.assert_array_equal(clips[:, :, 0, 0, 0], 30 * np.arange(5)[:, None] + np.arange(19))


def test_a_job_with_another_batch_draws_its_own_shards(tmp_path, monkeypatch):
    """Of other clips than those that a killed one has left."""
    monkeypatch.setattr(drawing, "SHARD_BYTES", 2 * 19 * 2 * 2 * 3)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, counting([], 5))
    clips, _ = draw(tmp_path, counting([]), batch_size=3)
    np.testing.assert_array_equal(clips[:, :, 0, 0, 0], 30 * np.arange(5)[:, None] + np.arange(19))


def test_a_run_that_begins_anew_forgets_what_was_begun(tmp_path):
    folder = media.drawing_folder(tmp_path, 4, "clips", 5, {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        draw(folder / "parts", counting([], 2))
    drawing.forget(tmp_path)
    assert not (folder / "parts").exists()


def test_few_short_clips_leave_nothing_behind(tmp_path):
    asked = []
    clips, _ = draw(tmp_path / "parts", counting(asked), Extension(8, 8, 0))
    assert clips.shape == (5, 8, 2, 2, 3)
    assert asked == [(0, [0, 1, 2, 3, 4])]
    assert not (tmp_path / "parts").exists()
