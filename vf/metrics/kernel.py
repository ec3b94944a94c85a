"""Maximum mean discrepancy with a polynomial kernel: a distance of two sets of features that fits no Gaussians.

    k(x, y) = (gamma x.y + coef0)^degree                          gamma = 1 / d unless given, d features
    MMD^2   = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)                                                   (1)

Unbiased, the first two means leave out the pairs of a clip with itself (Gretton et al. 2012); the estimate may then be
negative, and is not clipped. Where a clip has several features, those of its frames, all their pairs are left out: they
resemble each other, and so tell nothing of the set. KVD is (1) unbiased with degree 3 and coef0 1, over whole sets,
without subsets or a factor, in the public code of DIGAN, TATS and LVDM; JEDi is 100 times (1) biased with degree 2 and
coef0 0.
"""

import numpy as np


def polynomial_mmd(
    x: np.ndarray,
    y: np.ndarray,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
    rows: int = 1,
    block: int = 4096,
) -> float:
    """MMD^2 (1) of `x` [m d] and `y` [n d] in float64; `block` rows of a kernel matrix are in memory at a time.

    Every `rows` features in turn are of one clip.

    Raises ValueError where they are no matrices of one width with whole clips, not all finite, or too few (2 clips each
    if unbiased, else 1).
    """
    x, y = (np.asarray(features, np.float64) for features in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features [m d] and [n d], got {list(x.shape)} and {list(y.shape)}")
    if len(x) % rows or len(y) % rows:
        raise ValueError(f"expected {rows} features of every clip, got {len(x)} and {len(y)} features")
    if min(len(x), len(y)) < rows * (1 + unbiased):
        counts = len(x) // rows, len(y) // rows
        raise ValueError(f"expected at least {1 + unbiased} clips on each side, got {counts[0]} and {counts[1]}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite features, got NaN or inf")
    scale = 1 / x.shape[1] if gamma is None else gamma

    def total(a: np.ndarray, b: np.ndarray) -> float:
        parts = (a[i : i + block] for i in range(0, len(a), block))
        return sum(float(((scale * part @ b.T + coef0) ** degree).sum()) for part in parts)

    def within(a: np.ndarray) -> float:
        own = sum(total(a[i : i + rows], a[i : i + rows]) for i in range(0, len(a), rows)) if unbiased else 0.0
        return (total(a, a) - own) / (len(a) * (len(a) - rows * unbiased))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))
