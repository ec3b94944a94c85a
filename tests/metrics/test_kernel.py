"""Against loops over pairs, closed forms, and the figures of public code."""

import itertools

import numpy as np
import pytest

from vf.metrics.kernel import polynomial_mmd


def features(seed: int, n: int, d: int = 5, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (n, d))


def naive(x, y, degree, gamma, coef0, unbiased):
    def k(a, b):
        return (gamma * a @ b + coef0) ** degree

    def within(z):
        pairs = [(i, j) for i, j in itertools.product(range(len(z)), repeat=2) if i != j or not unbiased]
        return np.mean([k(z[i], z[j]) for i, j in pairs])

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a, b in itertools.product(x, y)])


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("degree", "gamma", "coef0"), [(3, 0.2, 1.0), (2, 0.2, 0.0), (1, 1.0, 0.5), (3, 0.7, 2.0)])
def test_it_is_the_mean_over_pairs(degree, gamma, coef0, unbiased):
    x, y = features(0, 7), features(1, 11, mean=0.3)
    found = polynomial_mmd(x, y, degree=degree, gamma=gamma, coef0=coef0, unbiased=unbiased, block=3)
    np.testing.assert_allclose(found, naive(x, y, degree, gamma, coef0, unbiased), rtol=1e-10)


def test_gamma_is_one_over_the_width_by_default():
    x, y = features(0, 6), features(1, 8)
    assert polynomial_mmd(x, y) == polynomial_mmd(x, y, degree=3, gamma=1 / 5, coef0=1.0)


def test_the_public_figures():
    """JEDi's mmd_polynomial.py on its own example, before its factor of 100."""
    a = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    b = np.array([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    assert polynomial_mmd(a, b, degree=2, coef0=0, unbiased=False) == pytest.approx(270.7222, abs=5e-5)
    assert polynomial_mmd(a, b, degree=3, coef0=1, unbiased=False) == pytest.approx(23088.0833, abs=5e-5)


def test_of_a_linear_kernel_only_the_means_are_left():
    x, y = features(0, 40), features(1, 30, mean=2.0)
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    assert polynomial_mmd(x, y, degree=1, gamma=1, coef0=0, unbiased=False) == pytest.approx(apart, rel=1e-10)
    spread = np.trace(np.cov(x.T)) / len(x) + np.trace(np.cov(y.T)) / len(y)  # what the biased estimate has too much
    assert polynomial_mmd(x, y, degree=1, gamma=1, coef0=0) == pytest.approx(apart - spread, rel=1e-10)


def test_unbiased_means_zero_on_average_and_sometimes_below():
    found = np.array([polynomial_mmd(features(2 * k, 30), features(2 * k + 1, 30)) for k in range(400)])
    assert abs(found.mean()) < 4 * found.std() / 20
    assert (found < 0).any()
    biased = [polynomial_mmd(features(2 * k, 30), features(2 * k + 1, 30), unbiased=False) for k in range(20)]
    assert min(biased) > 0


def test_frames_of_one_clip_make_no_pairs():
    """So that clips whose frames resemble each other are no farther apart than others, on average."""

    def found(rows: int, seed: int) -> float:
        x, y = (np.repeat(features(s, 12), 4, 0) + 0.1 * features(s + 500, 48) for s in (2 * seed, 2 * seed + 1))
        return polynomial_mmd(x, y, rows=rows)

    values, pooled = (np.array([found(rows, seed) for seed in range(200)]) for rows in (4, 1))
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200) < pooled.mean() / 2
    x, y = features(0, 6), features(1, 8)
    pairs = [(i, j) for i, j in itertools.product(range(6), repeat=2) if i // 2 != j // 2]
    within = np.mean([(x[i] @ x[j] / 5 + 1) ** 3 for i, j in pairs])
    alone = polynomial_mmd(x, y, rows=2) - polynomial_mmd(np.ones_like(x), y, rows=2)
    across = 2 * (np.mean((x @ y.T / 5 + 1) ** 3) - np.mean((np.ones_like(x) @ y.T / 5 + 1) ** 3))
    assert alone == pytest.approx(within - 8 - across, rel=1e-9)  # a row of ones has the kernel 2^3 with itself


def test_it_is_symmetric_and_grows_with_the_distance():
    x = features(0, 200)
    found = [polynomial_mmd(x, features(1, 150, mean=mean)) for mean in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert polynomial_mmd(features(1, 150), x) == pytest.approx(found[0], rel=1e-9)


def test_float64_arithmetic_for_any_input():
    x, y = 300 * features(0, 50), 300 * features(1, 50)  # kernel values of 1e14, which float32 sums would blur
    exact = polynomial_mmd(x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64))
    assert polynomial_mmd(x.astype(np.float32), y.astype(np.float32)) == exact


@pytest.mark.parametrize(
    ("x", "y", "what"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5)), "got [3, 4] and [3, 5]"),
        (np.zeros(3), np.zeros((3, 5)), "got [3] and [3, 5]"),
        (np.zeros((1, 4)), np.zeros((3, 4)), "at least 2 clips on each side, got 1 and 3"),
        (np.full((3, 4), np.nan), np.zeros((3, 4)), "NaN"),
    ],
)
def test_bad_features_are_refused(x, y, what):
    with pytest.raises(ValueError, match="expected") as error:
        polynomial_mmd(x, y)
    assert what in str(error.value)


def test_parts_of_clips_are_refused():
    with pytest.raises(ValueError, match="expected 3 features of every clip, got 6 and 7 features"):
        polynomial_mmd(np.zeros((6, 2)), np.zeros((7, 2)), rows=3)
    with pytest.raises(ValueError, match="at least 2 clips on each side, got 1 and 2"):
        polynomial_mmd(np.zeros((3, 2)), np.zeros((6, 2)), rows=3)
