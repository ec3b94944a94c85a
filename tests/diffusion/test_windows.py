"""Windows of long clips: which frames they hold, how they are averaged, and whose noise they have."""

import numpy as np
import pytest

from vf.diffusion import windows

EXTENSIONS = [windows.Extension(*sizes) for sizes in ((16, 16, 8), (19, 8, 4), (20, 8, 3), (13, 8, 7), (30, 8, 1))]
every_extension = pytest.mark.parametrize("extension", EXTENSIONS)


@every_extension
def test_windows_cover_the_clip(extension):
    """Each frame is in some window, and without the last one some are in none."""
    clips = np.arange(2.0 * extension.covered).reshape(2, extension.covered)
    cut = windows.cut(clips, extension)
    assert cut.shape == (2, extension.further + 1, extension.frames)
    np.testing.assert_array_equal(np.unique(cut[1]), clips[1])
    assert extension.covered - extension.stride < extension.length <= extension.covered
    np.testing.assert_array_equal(cut[:, 1:, : extension.overlap], cut[:, :-1, extension.stride :])


@every_extension
@pytest.mark.parametrize("without", [None, 3])
def test_windows_of_one_clip_average_to_it(extension, without):
    clips = np.random.default_rng(0).normal(size=(2, extension.covered, 5)).astype(np.float32)
    mean = windows.Mean(clips.shape, extension, windows.weights(extension.frames, without))
    for clip, one in enumerate(windows.cut(clips, extension)):
        for number, window in enumerate(one):
            mean.add(clip, number, window)
    seen = np.zeros(extension.covered, bool)
    for number in range(extension.further + 1):
        places = [place for place in range(extension.frames) if place != without]
        seen[np.array(places) + number * extension.stride] = True
    np.testing.assert_allclose(mean.value()[:, seen], clips[:, seen], rtol=1e-5, atol=1e-6)
    assert not mean.value()[:, ~seen].any()


@every_extension
def test_each_window_has_all_noises_of_the_first(extension):
    """Each once, so that independent noises stay so; and frames that two windows hold have one noise."""
    order = windows.shuffled(extension)
    np.testing.assert_array_equal(order[: extension.frames], np.arange(extension.frames))
    for window in windows.cut(order[None].astype(float), extension)[0]:
        np.testing.assert_array_equal(np.sort(window), np.arange(extension.frames))
    if extension.stride > 1 and extension.further > 2:
        again = [order[extension.frames + k * extension.stride :][: extension.stride] for k in range(extension.further)]
        before = [order[k * extension.stride :][: extension.stride] for k in range(extension.further)]
        assert any(not np.array_equal(*pair) for pair in zip(again, before, strict=True))


def test_weights_are_largest_in_the_middle():
    np.testing.assert_array_equal(windows.weights(5), [1, 2, 3, 2, 1])
    np.testing.assert_array_equal(windows.weights(4, 1), [1, 0, 2, 1])
