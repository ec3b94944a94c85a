"""Lineages against transcriptions of the formulas that their public code computes, in NumPy, SciPy and PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from vf.metrics import fvd
from vf.metrics.fvd import BLACK_WHITE, LINEAGES, Lineage, black_white, weights_problem
from vf.nets.feature_network import Network


def features(seed: int, n: int, d: int = 48) -> np.ndarray:
    """Of a spectrum that falls, as logits have it."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d) * np.arange(1, d + 1) ** -0.5
    return (rng.normal(size=(n, d)) @ axes.T * 3 + 0.2 * seed).astype(np.float32)


def tfgan(real: np.ndarray, generated: np.ndarray) -> float:
    """frechet_classifier_distance_from_activations: float64, n - 1, a root by SVD taken twice."""

    def root(matrix):
        u, s, vt = np.linalg.svd(matrix)
        return u @ np.diag(np.where(s < 1e-10, s, np.sqrt(s))) @ vt

    real, generated = real.astype(np.float64), generated.astype(np.float64)
    mean, mean_v = real.mean(0), generated.mean(0)
    sigma = (real - mean).T @ (real - mean) / (len(real) - 1)
    sigma_v = (generated - mean_v).T @ (generated - mean_v) / (len(generated) - 1)
    product = root(sigma) @ sigma_v @ root(sigma)
    return np.trace(sigma + sigma_v) - 2 * np.trace(root(product)) + np.square(mean - mean_v).sum()


def running_sums(real: np.ndarray, generated: np.ndarray) -> float:
    """StyleGAN-V's FeatureStats, batch by batch in float64: E[x x^T] - mu mu^T, scipy's sqrtm, real part."""

    def stats(x):
        total, outer = np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2)
        for batch in np.array_split(x, 7):
            batch = batch.astype(np.float64)
            total += batch.sum(0)
            outer += batch.T @ batch
        mean = total / len(x)
        return mean, outer / len(x) - np.outer(mean, mean)

    (mu_r, sigma_r), (mu_g, sigma_g) = stats(real), stats(generated)
    root = sqrtm(sigma_g @ sigma_r)
    return float(np.real(np.square(mu_g - mu_r).sum() + np.trace(sigma_g + sigma_r - root * 2)))


def numpy_cov(real: np.ndarray, generated: np.ndarray) -> float:
    """JunyaoHu's `styleganv`: np.cov, sqrtm."""
    sigma_r, sigma_g = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = sqrtm(sigma_g @ sigma_r)
    apart = np.square(generated.astype(np.float64).mean(0) - real.astype(np.float64).mean(0)).sum()
    return float(np.real(apart + np.trace(sigma_g + sigma_r - root * 2)))


def torch_float32(real: np.ndarray, generated: np.ndarray) -> float:
    """The VideoGPT lineage: everything in float32 on PyTorch, TF-GAN's root."""
    torch = pytest.importorskip("torch")

    def root(matrix):
        u, s, vh = torch.linalg.svd(matrix)
        return u @ torch.diag(torch.where(s < 1e-10, s, s.sqrt())) @ vh

    def cov(x):
        x = x - x.mean(0, keepdim=True)
        return x.T @ x / (len(x) - 1)

    a, b = torch.from_numpy(real), torch.from_numpy(generated)
    half = root(cov(a))
    overlap = root(half @ cov(b) @ half).trace()
    return float((cov(a) + cov(b)).trace() - 2 * overlap + ((a.mean(0) - b.mean(0)) ** 2).sum())


# Whose formula, and how far rounding may take it, as a share of the covariances' traces: the distance is what is left
# of two such numbers, and float32 rounds each; the root turns a rounded 1e-6 into 1e-3, on every machine anew.
PUBLIC = {
    "google": (tfgan, 1e-10),
    "styleganv": (running_sums, 1e-8),
    "cdfvd-i3d": (running_sums, 1e-8),
    "junyaohu-styleganv": (numpy_cov, 1e-8),
    "tats": (torch_float32, 1e-4),
    "videogpt": (torch_float32, 1e-4),
    "junyaohu-videogpt": (torch_float32, 1e-4),
}


def traces(*sets: np.ndarray) -> float:
    return sum(np.trace(np.cov(x.T)) for x in sets)


def test_every_lineage_has_its_formula():
    assert PUBLIC.keys() == LINEAGES.keys()


@pytest.mark.parametrize("lineage", LINEAGES)
@pytest.mark.parametrize(("n", "m"), [(90, 120), (400, 400)])
def test_the_distance_is_that_of_the_public_code(lineage, n, m):
    formula, tolerance = PUBLIC[lineage]
    real, generated = features(0, n), features(1, m)
    near = tolerance * traces(real, generated)
    assert fvd.fvd(real, generated, LINEAGES[lineage]) == pytest.approx(formula(real, generated), abs=near)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_fewer_clips_than_features(lineage):
    """The roots are singular there: SVD's threshold, sqrtm's noise and float32 show, and no code fails."""
    formula, tolerance = PUBLIC[lineage]
    real, generated = features(0, 20), features(1, 30)
    near = max(2 * tolerance, 1e-6) * traces(real, generated)
    assert fvd.fvd(real, generated, LINEAGES[lineage]) == pytest.approx(formula(real, generated), abs=near)


def test_lineages_differ_in_their_stated_fields():
    """With 90 clips ddof changes the distance by a percent, float32 and the root by far less."""
    real, generated = features(0, 90), features(1, 90)
    found = {name: fvd.fvd(real, generated, lineage) for name, lineage in LINEAGES.items()}
    assert found["styleganv"] == found["cdfvd-i3d"]
    assert found["tats"] == found["videogpt"] == found["junyaohu-videogpt"]
    assert found["google"] == pytest.approx(found["tats"], abs=1e-4 * traces(real, generated))
    assert found["google"] == pytest.approx(found["junyaohu-styleganv"], rel=1e-7)
    assert abs(found["google"] / found["styleganv"] - 1) > 1e-3


@pytest.mark.parametrize("lineage", LINEAGES)
def test_equal_sets_and_shifted_ones(lineage):
    x, shift = features(0, 200), np.linspace(0, 1, 48, dtype=np.float32)
    near = 1e-4 * traces(x, x)
    assert fvd.fvd(x, x[::-1], LINEAGES[lineage]) == pytest.approx(0, abs=near)
    assert fvd.fvd(x, x + shift, LINEAGES[lineage]) == pytest.approx(np.square(shift).sum(), abs=near)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 2)])
def test_kvd_is_sklearns_kernel_without_the_diagonals(n, m):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = features(0, n).astype(np.float64), features(1, m).astype(np.float64)
    xx, yy, xy = (pairwise.polynomial_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    true = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
    assert fvd.kvd(x, y) == pytest.approx(true, rel=1e-9)


def test_kvd_may_be_negative():
    found = [fvd.kvd(features(0, 40), np.random.default_rng(k).permutation(features(0, 80))[:40]) for k in range(20)]
    assert min(found) < 0


def grey(frames_seen: list | None = None) -> Network:
    """Features of a clip: its mean, and its mean squared, in units of white."""

    def apply(params, clips):
        if frames_seen is not None:
            frames_seen.append(clips.shape)
        x = params["scale"] * clips.astype(jnp.float32).mean((1, 2, 3, 4)) / 255
        return jnp.stack([x, 2 * x], -1) + 1  # black, too, has features

    return Network("grey", 2, {"scale": np.float32(3)}, apply, {})


def test_the_seven_lineages():
    """The table of differences that change the number, column by column."""
    known = {name: (p.eps, p.grid, p.aspect, p.ddof, p.dtype, p.root) for name, p in LINEAGES.items()}
    assert known == {
        "google": (1e-3, "tf1", "squash", 1, "float64", "svd"),
        "styleganv": (1e-3, "half_pixel", "squash", 0, "float64", "sqrtm"),
        "tats": (1e-5, "half_pixel", "squash", 1, "float32", "svd"),
        "videogpt": (1e-5, "half_pixel", "short_side", 1, "float32", "svd"),
        "cdfvd-i3d": (1e-5, "half_pixel", "squash", 0, "float64", "sqrtm"),
        "junyaohu-styleganv": (1e-3, "half_pixel", "short_side", 1, "float64", "sqrtm"),
        "junyaohu-videogpt": (1e-5, "half_pixel", "short_side", 1, "float32", "svd"),
    }  # fmt: skip


def test_black_against_white():
    seen: list = []
    assert black_white(grey(seen)) == pytest.approx(3**2 + 6**2)
    black_white(grey(seen), frames=11)
    assert seen == [(2, 16, 64, 64, 3), (2, 11, 64, 64, 3)]


@pytest.mark.parametrize("factor", [1, 1.0049, 0.9951])
def test_the_true_weights_pass(factor):
    assert weights_problem(factor * BLACK_WHITE[16]) == ""


@pytest.mark.parametrize(
    ("value", "eps", "cause"),
    [
        (BLACK_WHITE[16] * 1.01, 1e-3, "these are other weights"),
        (BLACK_WHITE[16] * 0.99, 1e-3, "rgb_imagenet"),
        (0.0, 1e-3, "black against white clips give 0.0000 at 16 frames, where FVD's weights give 152.9175"),
        (160.0, 0.01, "the eps is 0.01"),
        (160.0, 1e-5, "the eps is 1e-05, that of the VideoGPT lineage"),
        (float("nan"), 1e-3, "the file is damaged"),
        (float("inf"), 1e-5, "the file is damaged"),
    ],
)
def test_a_failed_check_of_weights_names_the_probable_cause(value, eps, cause):
    assert cause in weights_problem(value, eps)


def test_the_public_figures_cover_10_to_30_frames():
    """The ports agree on the figure for 16 frames; the list is published, so only its form is checked."""
    assert sorted(BLACK_WHITE) == list(range(10, 31))
    assert BLACK_WHITE[16] == pytest.approx(152.9175, abs=1e-4)


@pytest.mark.parametrize("name", LINEAGES)
def test_a_network_records_how_its_lineage_runs_it(name):
    lineage = LINEAGES[name]
    protocol = fvd.network({}, "abc", lineage).protocol
    assert (protocol["eps"], protocol["weights"], protocol["precision"]) == (lineage.eps, "abc", "float32")
    assert lineage.grid in protocol["resize"]
    assert lineage.aspect in protocol["resize"]
    assert fvd.network({}, "abc", lineage, exact=False).protocol["precision"] == "default"


def test_facts_exclude_the_origin_of_the_code():
    one, other = (Lineage("tf1", "squash", 1e-3, 1, "float64", "svd", code) for code in ("a", "b"))
    assert one.facts() == other.facts()
    assert set(one.facts()) == {"grid", "aspect", "eps", "ddof", "dtype", "root"}
