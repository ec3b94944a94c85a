"""Index arithmetic against the loops that it replaces."""

import numpy as np
import pytest

from vf.data.clips import Windows, centre_crop_box, centre_start, num_starts, random_start, span, window


def naive_windows(length: int, frames: int, stride: int) -> list[list[int]]:
    """Every clip that fits, found by trying each start and walking to the end."""
    clips = []
    for start in range(length):
        clip = [start]
        while len(clip) < frames:
            clip.append(clip[-1] + stride)
        if clip[-1] < length:
            clips.append(clip)
    return clips


def test_windows_are_those_of_a_naive_loop():
    rng = np.random.default_rng(0)
    for length, frames, stride in zip(
        rng.integers(1, 60, 3000), rng.integers(1, 20, 3000), rng.integers(1, 6, 3000), strict=True
    ):
        expected = naive_windows(length, frames, stride)
        assert num_starts(length, frames, stride) == len(expected)
        assert [window(length, frames, stride, s).tolist() for s in range(len(expected))] == expected


def test_the_last_frame_is_reached_and_not_passed():
    assert window(250, 16, 4, num_starts(250, 16, 4) - 1)[-1] == 249
    for start in (-1, num_starts(250, 16, 4)):
        with pytest.raises(ValueError, match="do not fit"):
            window(250, 16, 4, start)


def test_span_is_the_shortest_video():
    assert num_starts(span(16, 3), 16, 3) == 1
    assert num_starts(span(16, 3) - 1, 16, 3) == 0


def test_random_starts_are_uniform_over_all_starts():
    rng = np.random.default_rng(1)
    counts = np.bincount([random_start(rng, 24, 4, 5) for _ in range(9000)])
    assert len(counts) == num_starts(24, 4, 5) == 9
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize("length", range(16, 40))
def test_centre_start_leaves_as_much_before_as_after(length):
    start = centre_start(length, 8, 2)
    after = length - 1 - window(length, 8, 2, start)[-1]
    assert after - start in (0, 1)


def test_a_video_that_is_too_short_is_refused():
    for choose in (centre_start, lambda *shape: random_start(np.random.default_rng(0), *shape)):
        with pytest.raises(ValueError, match=r"need a video of 16 frames, but it has 15"):
            choose(15, 16, 1)


@pytest.mark.parametrize(("frames", "stride"), [(0, 1), (1, 0), (-2, 3)])
def test_empty_clips_are_refused(frames, stride):
    with pytest.raises(ValueError, match="frames >= 1"):
        num_starts(10, frames, stride)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (5, 8), (7, 7)])
def test_crop_is_the_largest_centred_square(height, width):
    left, top, right, bottom = centre_crop_box(height, width)
    assert right - left == bottom - top == min(height, width)
    assert (width - right) - left in (0, 1)
    assert (height - bottom) - top in (0, 1)


def naive_blocks(length: int, frames: int, stride: int) -> list[list[int]]:
    """DIGAN's clips: the video in pieces of frames x stride, its frames dealt in turn to `stride` clips."""
    clips = []
    video = list(range(length))
    while len(video) >= frames * stride:
        piece, video = video[: frames * stride], video[frames * stride :]
        hands: list[list[int]] = [[] for _ in range(stride)]
        for k, frame in enumerate(piece):
            hands[k % stride].append(frame)
        clips += hands
    return clips


def random_shapes(count: int = 1000):
    rng = np.random.default_rng(2)
    return zip(rng.integers(1, 90, count), rng.integers(1, 20, count), rng.integers(1, 6, count), strict=True)


def records(windows: Windows, length: int, fps: float = 0.0) -> list[list[int]]:
    return [windows.indices(length, fps, k, None).tolist() for k in range(windows.records(length, fps))]


def test_blocks_are_those_of_a_naive_loop():
    for length, frames, stride in random_shapes():
        windows = Windows(int(frames), int(stride), start="blocks")
        found = records(windows, int(length))
        assert found == naive_blocks(length, frames, stride)
        assert (windows.need(0.0) <= length) == bool(found)
        used = [k for clip in found for k in clip]
        assert len(used) == len(set(used))  # no frame twice


def test_the_first_window_is_the_first_of_all():
    for length, frames, stride in random_shapes():
        every = naive_windows(length, frames, stride)
        assert records(Windows(int(frames), int(stride), start="first"), int(length)) == every[:1]
        assert records(Windows(int(frames), int(stride), start="all", hop=3), int(length)) == every[::3]


def test_the_first_window_at_a_rate():
    assert records(Windows(4, fps=10, start="first"), 30, fps=25.0) == [[0, 3, 5, 8]]  # 2.5 frames apart, halves up


def test_blocks_and_first_windows_leave_the_generator_alone():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    for start in ("blocks", "first"):
        Windows(4, 2, start=start).indices(40, 0.0, 0, rng)
    assert rng.bit_generator.state == before


def test_blocks_go_by_stride():
    with pytest.raises(ValueError, match="blocks go by stride"):
        Windows(16, fps=10, start="blocks")


def test_a_record_past_the_last_is_refused():
    for start in ("blocks", "all"):
        windows = Windows(4, 2, start=start)
        with pytest.raises(ValueError, match="do not fit"):
            windows.indices(19, 0.0, windows.records(19, 0.0), None)
