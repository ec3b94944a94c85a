"""Distance of clips to the very clips that they should be: for super-resolution, which has such a clip for each."""

import numpy as np

MOST = 100.0  # dB, of frames that are equal


def psnr(clips: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error), mean over all frames.

    A frame that is equal counts `MOST`.

    Args:
        clips, real: u8 [n f h w 3].

    Raises ValueError where the shapes differ.
    """
    if clips.shape != real.shape:
        raise ValueError(f"expected clips of the shape of the real ones, {list(real.shape)}, got {list(clips.shape)}")
    # Clip by clip, without a float copy of the whole set.
    pairs = zip(clips, real, strict=True)
    errors = np.array([np.square(a.astype(np.float32) - b).mean((1, 2, 3), dtype=np.float64) for a, b in pairs])
    return float(np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-12)), MOST).mean())
