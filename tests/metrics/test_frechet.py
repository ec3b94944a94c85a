import numpy as np
import pytest
from scipy.linalg import sqrtm

from vf.metrics.frechet import Moments, frechet_distance


def gaussian(seed: int, n: int = 60, d: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def exact(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments whose covariance with ddof 1 is `covariance`."""
    return Moments(11, mean, 10 * covariance)


def assert_same(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-11, atol=1e-10)


def test_moments_are_numpys() -> None:
    x = gaussian(0)
    for ddof in (0, 1):
        np.testing.assert_allclose(Moments.of(x).covariance(ddof), np.cov(x.T, ddof=ddof), rtol=1e-11)
    np.testing.assert_allclose(Moments.of(x).mean, x.mean(0))


def test_parts_merge_to_the_whole_in_any_order() -> None:
    x = gaussian(1) + 1e4  # far from 0, where sums of squares would cancel
    parts = [Moments.of(part) for part in np.split(x, [1, 20, 20, 45])]  # one of them empty
    one, two, none, three, four = parts
    for merged in (one.merge(two).merge(none).merge(three).merge(four), four.merge(one.merge(three)).merge(two)):
        assert merged.n == len(x)
        np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(merged.covariance(), np.cov(x.T), rtol=1e-8)
    streamed = Moments.empty(7)
    for batch in np.split(x, 6):
        streamed = streamed.update(batch)
    np.testing.assert_allclose(streamed.covariance(), np.cov(x.T), rtol=1e-8)


def test_the_empty_set_is_neutral() -> None:
    whole, empty = Moments.of(gaussian(2)), Moments.empty(7)
    assert_same(empty.merge(whole), whole)
    assert_same(whole.merge(empty), whole)
    assert empty.merge(empty).n == 0


@pytest.mark.parametrize("n", [60, 4])  # 4 < 7 dimensions: singular covariance
def test_equal_sets_are_at_no_distance(n: int) -> None:
    x = gaussian(3, n)
    assert frechet_distance(Moments.of(x), Moments.of(x[::-1])) < 1e-6 * np.trace(np.cov(x.T))


def test_a_shift_costs_its_square() -> None:
    x, shift = gaussian(4), np.arange(7.0)
    assert frechet_distance(Moments.of(x), Moments.of(x + shift)) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    first, second = rng.uniform(0, 4, (2, 6))
    second[2] = 0  # a flat direction
    a = exact(np.zeros(6), axes @ np.diag(first) @ axes.T)
    b = exact(np.ones(6), axes @ np.diag(second) @ axes.T)
    expected = 6 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_agrees_with_the_matrix_root_of_scipy_and_is_symmetric() -> None:
    x, y = gaussian(6), gaussian(7)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = sqrtm(s1 @ s2)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2) - 2 * np.trace(root).real
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_dimensions() -> None:
    """Against the nuclear norm of the cross product of the centred features, which needs no covariance."""
    x, y = gaussian(8, n=5, d=20), gaussian(9, n=6, d=20)
    centred = [z - z.mean(0) for z in (x, y)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(4 * 5)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * overlap
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-6)


def test_ddof_scales_the_covariance_part() -> None:
    a, b = exact(np.zeros(3), np.eye(3)), exact(np.zeros(3), 4 * np.eye(3))
    assert frechet_distance(a, b, ddof=1) == pytest.approx(3)
    assert frechet_distance(a, b, ddof=0) == pytest.approx(3 * 10 / 11)


def test_two_features_have_a_covariance() -> None:
    pair = np.array([[0.0], [2.0]])
    assert frechet_distance(Moments.of(pair), Moments.of(2 * pair)) == pytest.approx(1 + (np.sqrt(8) - np.sqrt(2)) ** 2)


def test_what_cannot_be_measured_is_refused() -> None:
    x = gaussian(10)
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        frechet_distance(Moments.of(x), Moments.of(x[:1]))
    with pytest.raises(ValueError, match="one dimension, got 7 and 5"):
        frechet_distance(Moments.of(x), Moments.of(x[:, :5]))
    with pytest.raises(ValueError, match="one dimension"):
        Moments.of(x).merge(Moments.of(x[:, :1]))
    with pytest.raises(ValueError, match="features \\[n d\\]"):
        Moments.of(x[0])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            Moments.empty(7).update(np.where(np.arange(7) == 3, bad, x))
        with pytest.raises(ValueError, match="finite"):
            frechet_distance(Moments.of(x), exact(np.full(7, bad), np.eye(7)))


def tfgan_root(matrix: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return u @ np.diag(np.where(s < 1e-10, s, np.sqrt(s))) @ vt


@pytest.mark.parametrize("n", [60, 4])  # 4 < 7 dimensions
def test_the_root_by_svd_is_tfgans(n: int) -> None:
    x, y = gaussian(11, n), gaussian(12, n)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    half = tfgan_root(s1)
    overlap = np.trace(tfgan_root(half @ s2 @ half))
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2) - 2 * overlap
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(a, b, root="svd") == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b, root="svd") == pytest.approx(frechet_distance(a, b), rel=1e-4)


def test_tfgan_leaves_singular_values_below_its_threshold_unrooted() -> None:
    """A direction of variance 1e-11 overlaps by its square there, by itself here: 1e-11 either way, times many."""
    tiny = exact(np.zeros(2), np.diag([1.0, 1e-11]))
    assert frechet_distance(tiny, tiny) == pytest.approx(0, abs=1e-15)
    left = 2e-11 - 2 * 1e-33  # root(1e-11) stays 1e-11; 1e-11 * 1e-11 * 1e-11 stays as it is
    assert frechet_distance(tiny, tiny, root="svd") == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("root", ["sqrtm", "svd"])
def test_float32_is_float64_to_its_rounding(root) -> None:
    a, b = Moments.of(gaussian(13)), Moments.of(gaussian(14))
    exactly = frechet_distance(a, b, root=root)
    rounded = frechet_distance(a, b, root=root, dtype="float32")
    assert rounded == pytest.approx(exactly, rel=1e-4)
    assert rounded != exactly


@pytest.mark.parametrize("root", ["sqrtm", "svd"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_in_parts_give_the_distance_of_the_whole(root, ddof) -> None:
    """As several hosts would: in any order, to the last bits of float64."""
    x, y = gaussian(15, 90) + 1e3, gaussian(16, 70) + 1e3
    parts = [Moments.of(part.astype(np.float32)) for part in np.array_split(x, 8)]
    merged = Moments.empty(7)
    for part in parts[::-1]:
        merged = part.merge(merged)
    other = Moments.of(y)
    whole = frechet_distance(Moments.of(x.astype(np.float32)), other, ddof, root=root)
    assert frechet_distance(merged, other, ddof, root=root) == pytest.approx(whole, rel=1e-8)


@pytest.mark.parametrize("root", ["sqrtm", "svd"])
def test_features_too_large_for_float32_are_refused(root) -> None:
    a, b = exact(np.zeros(3), 1e39 * np.eye(3)), exact(np.zeros(3), np.eye(3))
    assert np.isfinite(frechet_distance(a, b, root=root))
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError):  # noqa: PT011  NumPy's own words
        frechet_distance(a, b, root=root, dtype="float32")
