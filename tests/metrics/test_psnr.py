"""PSNR in closed form."""

import numpy as np
import pytest

from vf.metrics.psnr import MOST, psnr


def test_psnr_is_the_mean_over_frames():
    real = np.full((2, 3, 4, 4, 3), 100, np.uint8)
    clips = real.copy()
    clips[:, 1] += 10  # mean squared error 100, over the whole range of u8
    clips[:, 2] -= 1
    of_frames = [MOST, 20 * np.log10(25.5), 20 * np.log10(255)]
    np.testing.assert_allclose(psnr(clips, real), np.mean(of_frames), rtol=1e-9)
    assert psnr(np.full_like(real, 255), np.zeros_like(real)) == 0
    with pytest.raises(ValueError, match=r"of the real ones, \[2, 3, 4, 4, 3\], got \[2, 2, 4, 4, 3\]"):
        psnr(clips[:, :2], real)
