"""Inception score of class probabilities: confident per clip, varied over clips.

    IS = exp(E_x KL(p(y | x) || p(y)))         p(y) = E_x p(y | x);  1 ... number of classes                    (1)

Salimans et al. 2016; on video by TGAN with C3D. Public codes differ in the number of splits that (1) is averaged over
and in the eps that they put inside the logarithms: both are arguments, and part of the protocol of a score.
"""

import numpy as np


def inception_score(probabilities: np.ndarray, *, splits: int = 1, eps: float = 0.0) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over `splits` consecutive parts of (1), in float64.

    Args:
        probabilities: p(y | x), [n classes], each row >= 0 with sum 1 (to 1e-3).
        splits: parts of n // splits clips; the n % splits last clips are left out, as public code does.
        eps: added inside both logarithms; 0 takes 0 log 0 = 0.

    Raises:
        ValueError: no such matrix, rows that are no probabilities, or fewer clips than splits.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2:
        raise ValueError(f"expected probabilities [n classes], got {list(p.shape)}")
    if not 1 <= splits <= len(p):
        raise ValueError(f"expected 1 <= splits <= {len(p)} clips, got {splits}")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("expected rows that are probabilities (>= 0, sum 1): apply softmax to logits first")

    def score(part: np.ndarray) -> float:
        marginal = part.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = part * (np.log(part + eps) - np.log(marginal + eps))
        return float(np.exp(np.where(part > 0, terms, 0).sum(1).mean()))

    size = len(p) // splits
    found = [score(p[k * size : (k + 1) * size]) for k in range(splits)]
    return float(np.mean(found)), float(np.std(found))
