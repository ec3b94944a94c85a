"""Consistency of the base frame with its clip, in closed form for any video, without a network."""

import numpy as np


def base_frame_gap(clips: np.ndarray, base_frame: int) -> float:
    """Mean |x^base - x^(base +- 1)| over the mean |x^i - x^(i+1)| of all pairs that do not touch `base_frame`.

    1 where the base frame is a frame like any other; above 1 where it shows other content than its neighbours, as it
    does where a residual generator disagrees with its base generator. For clips without motion 0 / 0 is taken as 1;
    x / 0 is inf.

    Args:
        clips: [n f ...] of any real dtype.
        base_frame: index of the base frame.

    Raises ValueError where `base_frame` is out of range, or every pair of neighbours touches it.
    """
    frames = clips.shape[1]
    first = np.arange(frames - 1)  # pair i is frames i and i + 1
    touches = (first == base_frame) | (first + 1 == base_frame)
    if not 0 <= base_frame < frames or touches.all():
        raise ValueError(f"expected a base frame with pairs beside it, got base {base_frame} of {frames} frames")
    # One frame at a time, without a float copy of the whole set.
    pairs = np.array([abs(clips[:, i].astype(np.float32) - clips[:, i + 1]).mean(dtype=np.float64) for i in first])
    at_base, elsewhere = pairs[touches].mean(), pairs[~touches].mean()
    if elsewhere == 0:
        return 1.0 if at_base == 0 else float("inf")
    return float(at_base / elsewhere)
