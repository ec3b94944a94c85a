"""Does the base frame belong to its clip? A closed form for any video; no network."""

import numpy as np


def base_frame_gap(clips: np.ndarray, base: int) -> float:
    """Mean |x^base - x^(base +- 1)| over the mean |x^i - x^(i+1)| of all pairs that do not touch `base`.

    1 where the base frame is a frame like any other; above 1 where it shows other content than its
    neighbours, which is how a residual generator that disagrees with its base generator shows itself. A set
    that stands still has no gap: 0 / 0 is 1 here, and x / 0 is inf. `clips` [n f ...] of any real dtype.
    Raises ValueError when `base` is out of range or every pair of neighbours touches it.
    """
    frames = clips.shape[1]
    first = np.arange(frames - 1)  # pair i holds frames i and i + 1
    touches = (first == base) | (first + 1 == base)
    if not 0 <= base < frames or touches.all():
        raise ValueError(f"expected a base frame with pairs beside it, got base {base} of {frames} frames")
    # One frame at a time: no float copy of the whole set.
    pairs = np.array([abs(clips[:, i].astype(np.float32) - clips[:, i + 1]).mean(dtype=np.float64) for i in first])
    centre, others = pairs[touches].mean(), pairs[~touches].mean()
    if others == 0:
        return 1.0 if centre == 0 else float("inf")
    return float(centre / others)
