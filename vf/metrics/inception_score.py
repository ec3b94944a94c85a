"""Inception score of class probabilities, which is high where they are confident per clip and vary over clips.

    IS = exp(E_x KL(p(y | x) || p(y)))         p(y) = E_x p(y | x);  1 ... number of classes                    (1)

Salimans et al. 2016; for video introduced by TGAN, with C3D. Public codes differ in the number of splits over which (1)
is averaged, and in the eps inside the logarithms: both are arguments, and part of the protocol of a score. So is the
number of clips, with which (1) grows. `VARIANTS` has the settings of the codes behind published scores on UCF-101.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a public code computes the score from probabilities; `vf.nets.c3d` has how it computes probabilities.

    Attributes:
        clips: number of clips in a set, as published.
        loops: number of sets of different clips; the score is the mean over sets, with their standard deviation.
        splits: number of consecutive parts of a set, over which both are taken where there is one set.
        eps: eps inside the logarithms.
        shuffle: seed of NumPy's RandomState, which shuffles a set before it is split; None keeps the order.
    """

    clips: int
    loops: int = 1
    splits: int = 1
    eps: float = 0.0
    shuffle: int | None = None


# TGAN: evaluation/calc_inception.py specifies 10,000 clips in batches of 48, and makes 208 complete batches.
# TGANv2: scripts/compute_inception_score.py. StyleGAN-V: isv2048_ucf, src/metrics/video_inception_score.py.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "tgan": Variant(9_984, eps=1e-7),
        "tganv2": Variant(2_048, loops=10, eps=1e-20),
        "styleganv": Variant(2_048, splits=10, shuffle=42),
    }
)


def score(probabilities: np.ndarray, variant: Variant) -> tuple[float, float]:
    """(mean, standard deviation with ddof 0) as in `variant`, computed in float64 (TGAN and StyleGAN-V: float32).

    Args:
        probabilities: p(y | x), [n classes]. Where n = loops * clips, they are `loops` consecutive sets. Any other n
            is one set (one loop), and the deviation is that over its splits, so 0 for one split. The score grows with
            n: report n with it, and compare only with published scores of the same n.
        variant: how the public code computes it.

    Raises:
        ValueError: as `inception_score`.
    """
    p = np.asarray(probabilities)
    if variant.loops > 1 and p.ndim == 2 and len(p) == variant.loops * variant.clips:
        scores = [score(part, dataclasses.replace(variant, loops=1))[0] for part in np.split(p, variant.loops)]
        return float(np.mean(scores)), float(np.std(scores))
    if variant.shuffle is not None and p.ndim:
        p = p.copy()
        np.random.RandomState(variant.shuffle).shuffle(p)
    return inception_score(p, splits=variant.splits, eps=variant.eps)


def inception_score(probabilities: np.ndarray, *, splits: int = 1, eps: float = 0.0) -> tuple[float, float]:
    """(mean, standard deviation with ddof 0) of (1) over `splits` consecutive parts, in float64.

    Args:
        probabilities: p(y | x), [n classes], each row >= 0 with sum 1 (to 1e-3).
        splits: number of parts; part k has the clips k n // splits ... (k + 1) n // splits - 1, as in OpenAI's,
            TGANv2's and StyleGAN-V's code, so that none is left out and sizes differ by 1 at most.
        eps: added inside both logarithms; 0 takes 0 log 0 = 0.

    Raises:
        ValueError: it is no matrix, its rows are no probabilities, or there are fewer clips than splits.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2:
        raise ValueError(f"expected probabilities [n classes], got {list(p.shape)}")
    if not 1 <= splits <= len(p):
        raise ValueError(f"expected 1 <= splits <= {len(p)} clips, got {splits}")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("expected rows that are probabilities (>= 0, sum 1): apply softmax to logits first")

    def exponential(part: np.ndarray) -> float:
        marginal = part.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = part * (np.log(part + eps) - np.log(marginal + eps))
        return float(np.exp(np.where(part > 0, terms, 0).sum(1).mean()))

    bounds = [k * len(p) // splits for k in range(splits + 1)]
    scores = [exponential(p[first:last]) for first, last in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))
