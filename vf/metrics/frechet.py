"""Fréchet distance of two Gaussians fitted to features, from moments that merge over batches and hosts.

    d^2 = |mu_1 - mu_2|^2 + Tr S_1 + Tr S_2 - 2 Tr (S_1 S_2)^(1/2)                    (Dowson & Landau 1982)
    Tr (S_1 S_2)^(1/2) = sum_i sqrt(lambda_i(S_1^(1/2) S_2 S_1^(1/2)))                                   (1)

The matrix in (1) is symmetric and positive semidefinite, so that `eigh` in float64 suffices and no root is complex,
even with fewer samples than dimensions. The estimate is biased upwards by about 1 / samples: compare numbers of equal n
only, and report that of two real sets too.
"""

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of deviations) of features. Moments of parts can be merged."""

    n: int
    mean: np.ndarray  # float64 [d]
    scatter: np.ndarray  # float64 [d d]

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Moments of no features, the neutral element of `merge`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Moments of `features` [n d]. Raises ValueError where they are no matrix, or not all finite."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2:
            raise ValueError(f"expected features [n d], got {list(features.shape)}")
        if not np.isfinite(features).all():
            raise ValueError(f"expected finite features, got NaN or inf in {len(features)} clips")
        if len(features) == 0:
            return cls.empty(features.shape[1])
        mean = features.mean(0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def update(self, features: np.ndarray) -> "Moments":
        """Moments of all features so far and `features` [n d]."""
        return self.merge(Moments.of(features))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets (Chan et al. 1979). Raises ValueError where the dimensions differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"expected moments of one dimension, got {len(self.mean)} and {len(other.mean)}")
        n = self.n + other.n
        if n == 0:
            return self
        difference = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(difference, difference) * (self.n * other.n / n)
        return Moments(n, self.mean + difference * (other.n / n), scatter)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Scatter / (n - ddof), float64 [d d]. Raises ValueError for fewer than two features."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 clips, got {self.n}")
        return self.scatter / (self.n - ddof)


Root = Literal["sqrtm", "svd"]
_SMALL = 1e-10  # TF-GAN takes no root of smaller singular values


def frechet_distance(
    a: Moments, b: Moments, ddof: int = 1, *, dtype: Literal["float64", "float32"] = "float64", root: Root = "sqrtm"
) -> float:
    """Squared Fréchet distance (what FID and FVD report) of the Gaussians with the moments `a` and `b`; >= 0.

    Args:
        a, b: moments of the two sets.
        ddof: covariances divide by n - ddof.
        dtype: of everything after the moments, which are float64; some public code computes in float32.
        root: `sqrtm` is (1), which scipy's sqrtm approximates; `svd` takes two symmetric roots, as TF-GAN does.

    Raises:
        ValueError: the dimensions differ, a set has fewer than 2 features, or moments are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"expected features of one dimension, got {len(a.mean)} and {len(b.mean)}")
    moments = a.mean, b.mean, a.covariance(ddof), b.covariance(ddof)
    if not all(np.isfinite(x).all() for x in moments):
        raise ValueError("expected finite moments: the features overflow or hold NaN")
    mean_a, mean_b, first, second = (x.astype(dtype) for x in moments)
    overlap = (_overlap if root == "sqrtm" else _overlap_tfgan)(first, second)
    distance = np.square(mean_a - mean_b).sum() + np.trace(first + second) - 2 * overlap
    return max(float(distance), 0.0)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Tr (S_1 S_2)^(1/2) by (1)."""
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # rounding makes eigenvalues of 0 slightly negative
    return float(np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum())


def _overlap_tfgan(first: np.ndarray, second: np.ndarray) -> float:
    """Tr (S_1 S_2)^(1/2) as TF-GAN's trace_sqrt_product computes it."""

    def root(matrix: np.ndarray) -> np.ndarray:
        u, s, v = np.linalg.svd(matrix)
        return (u * np.where(s < _SMALL, s, np.sqrt(s))) @ v

    root_of_first = root(first)
    return float(np.trace(root(root_of_first @ second @ root_of_first)))
