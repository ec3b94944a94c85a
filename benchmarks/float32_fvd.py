"""Compares Fréchet distances in float32, ours and PyTorch's, with the same in float64, on synthetic features.

    python -m benchmarks.float32_fvd

Features have 400 dimensions and standard deviations 10 k^-p along random axes; the second set is 5 % wider and slightly
shifted. PyTorch computes as in TATS's code: float32 covariances, two singular value decompositions.
"""

import numpy as np
import torch

from vf.metrics.frechet import Moments, frechet_distance

DIM, SEEDS = 400, 3


def two_sets(n: int, power: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of both sets, float64 [n 400] each."""
    random = np.random.default_rng(seed)
    deviations = 10 * np.arange(1, DIM + 1) ** -power
    axes = np.linalg.qr(random.normal(size=(DIM, DIM)))[0]
    first, second = random.normal(size=(2, n, DIM)) * deviations
    return first @ axes, (1.05 * second + 0.02 * deviations) @ axes


def in_pytorch(first: np.ndarray, second: np.ndarray, dtype: torch.dtype) -> float:
    """The distance with every number in `dtype`."""
    a, b = (torch.tensor(features, dtype=dtype) for features in (first, second))

    def root(matrix: torch.Tensor) -> torch.Tensor:
        u, s, v = torch.svd(matrix)
        return u @ torch.diag(torch.where(s < 1e-10, s, s.sqrt())) @ v.T

    first_root = root(torch.cov(a.T))
    overlap = torch.trace(root(first_root @ torch.cov(b.T) @ first_root))
    trace = torch.trace(torch.cov(a.T) + torch.cov(b.T))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + trace - 2 * overlap)


def main() -> None:
    """Prints the table of RESULTS.md."""
    print("| n | p | distance, float64 | ours, float32 | PyTorch, float32 |\n| --- | --- | --- | --- | --- |")
    for n in (500, 2048):
        for power in (0.5, 1.0, 2.0):
            rows = []
            for seed in range(SEEDS):
                sets = two_sets(n, power, seed)
                a, b = map(Moments.of, sets)
                exact = frechet_distance(a, b, root="svd")
                ours = frechet_distance(a, b, dtype="float32", root="svd")
                rows.append((exact, abs(ours / exact - 1), abs(in_pytorch(*sets, torch.float32) / exact - 1)))
                assert abs(in_pytorch(*sets, torch.float64) / exact - 1) < 1e-3
            exact, ours, theirs = np.array(rows).T
            distances = f"{exact.min():.3g} to {exact.max():.3g}"
            print(f"| {n} | {power} | {distances} | at most {ours.max():.1e} | at most {theirs.max():.1e} |")


if __name__ == "__main__":
    main()
