"""Fréchet distance of two Gaussians fitted to features, from moments that merge over batches and hosts.

    d^2 = |mu_1 - mu_2|^2 + Tr S_1 + Tr S_2 - 2 Tr (S_1 S_2)^(1/2)                    (Dowson & Landau 1982)
    Tr (S_1 S_2)^(1/2) = sum_i sqrt(lambda_i(S_1^(1/2) S_2 S_1^(1/2)))                                   (1)

The matrix in (1) is symmetric and positive semidefinite, so that `eigh` in float64 does and no complex root
appears, also where there are fewer samples than dimensions. The estimate is biased upwards by about
1 / samples: compare numbers of equal n only, and quote that of two real sets.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of deviations) of features; parts merge to the whole."""

    n: int
    mean: np.ndarray  # float64 [d]
    scatter: np.ndarray  # float64 [d d]

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Of no features: the neutral element of `merge`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Of `features` [n d]. Raises ValueError when they are no matrix or not all finite."""
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
        """New moments, of all features so far and `features` [n d]."""
        return self.merge(Moments.of(features))

    def merge(self, other: "Moments") -> "Moments":
        """New moments, of both sets (Chan et al. 1979). Raises ValueError when the dimensions differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"expected moments of one dimension, got {len(self.mean)} and {len(other.mean)}")
        n = self.n + other.n
        if n == 0:
            return self
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), scatter)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Scatter / (n - ddof), float64 [d d]. Raises ValueError for fewer than two features."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 clips, got {self.n}")
        return self.scatter / (self.n - ddof)


def frechet_distance(a: Moments, b: Moments, ddof: int = 1) -> float:
    """Squared Fréchet distance (what FID and FVD report) of the Gaussians with the moments `a` and `b`; >= 0.

    Raises ValueError when the dimensions differ, a set has fewer than 2 features, or a moment is not finite."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"expected features of one dimension, got {len(a.mean)} and {len(b.mean)}")
    first, second = a.covariance(ddof), b.covariance(ddof)
    if not all(np.isfinite(x).all() for x in (a.mean, b.mean, first, second)):
        raise ValueError("expected finite moments: the features overflow or hold NaN")
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # rounding leaves eigenvalues just below 0
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(first) + np.trace(second) - 2 * overlap
    return max(float(distance), 0.0)
