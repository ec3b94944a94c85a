"""Does the base frame belong to its clip? Closed forms."""

import numpy as np
import pytest

from vf.metrics.consistency import base_frame_gap


def test_base_frame_gap_is_the_ratio_of_differences() -> None:
    ramp = np.array([0, 2, 4, 9, 14, 16, 18], np.uint8)[None, :, None].repeat(5, axis=-1)  # steps of 2 2 5 5 2 2
    assert base_frame_gap(ramp, 3) == pytest.approx(2.5)
    assert base_frame_gap(ramp, 0) == pytest.approx(2 / (16 / 5))
    assert base_frame_gap(ramp[:, ::-1], 3) == pytest.approx(2.5)  # no wrap-around of uint8
    assert base_frame_gap(np.zeros((2, 5, 1), np.uint8), 2) == 1
    flash = np.zeros((1, 5, 1), np.uint8)
    flash[:, 2] = 200
    assert base_frame_gap(flash, 2) == np.inf
    for base, frames in ((1, 3), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="base"):
            base_frame_gap(np.zeros((1, frames, 1)), base)
