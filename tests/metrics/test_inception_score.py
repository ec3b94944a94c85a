"""Closed forms and bounds of the inception score."""

import numpy as np
import pytest

from vf.metrics.inception_score import VARIANTS, Variant, inception_score, score


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.fixture
def drawn() -> np.ndarray:
    return softmax(np.random.default_rng(0).normal(0, 3, (60, 7)))


def test_certain_predictions_score_the_number_of_classes():
    for classes in (1, 2, 7):
        assert inception_score(np.eye(7)[np.arange(70) % classes])[0] == pytest.approx(classes, rel=1e-12)


def test_uncertain_or_identical_predictions_score_one(drawn):
    assert inception_score(np.full((20, 5), 0.2))[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(np.repeat(drawn[:1], 20, 0))[0] == pytest.approx(1, rel=1e-12)


def test_it_is_the_exponential_of_the_mutual_information(drawn):
    """H(y) - E H(y | x)."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(p)).sum(-1)

    expected = np.exp(entropy(drawn.mean(0)) - entropy(drawn).mean())
    assert inception_score(drawn) == (pytest.approx(expected, rel=1e-12), 0.0)
    assert 1 < expected < 7


def test_order_matters_only_between_splits(drawn):
    shuffled = drawn[np.random.default_rng(1).permutation(60)]
    assert inception_score(shuffled)[0] == pytest.approx(inception_score(drawn)[0], rel=1e-12)
    parts = [inception_score(part)[0] for part in np.split(drawn, 4)]
    assert inception_score(drawn, splits=4) == (pytest.approx(np.mean(parts)), pytest.approx(np.std(parts)))
    parts = [inception_score(drawn[first:last])[0] for first, last in ((0, 14), (14, 29), (29, 43), (43, 58))]
    assert inception_score(drawn[:58], splits=4)[0] == pytest.approx(np.mean(parts))  # no clip is left out


def test_eps_is_inside_both_logarithms(drawn):
    marginal = drawn.mean(0)
    kl = (drawn * (np.log(drawn + 1e-2) - np.log(marginal + 1e-2))).sum(1)
    assert inception_score(drawn, eps=1e-2)[0] == pytest.approx(np.exp(kl.mean()), rel=1e-12)
    assert inception_score(np.eye(7), eps=1e-20)[0] == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize(
    ("p", "splits", "what"),
    [
        (np.ones(3), 1, r"got \[3\]"),
        (np.full((4, 2), 0.5), 5, "splits <= 4 clips, got 5"),
        (np.full((4, 2), 0.5), 0, "got 0"),
        (np.array([[2.0, -1.0]]), 1, "apply softmax"),
        (np.array([[3.0, 1.0]]), 1, "apply softmax"),
        (np.array([[np.nan, 1.0]]), 1, "apply softmax"),
    ],
)
def test_values_that_are_not_probabilities_are_refused(p, splits, what):
    with pytest.raises(ValueError, match=what):
        inception_score(p, splits=splits)


@pytest.fixture
def many() -> np.ndarray:
    return softmax(np.random.default_rng(2).normal(0, 3, (205, 6)))


def test_variants_count_classes_and_detect_identical_clips():
    for name, variant in VARIANTS.items():
        sure = np.eye(8)[np.arange(variant.clips) % 8]
        mean, _ = score(sure, variant)
        assert mean == pytest.approx(8, rel=0.03 if name == "styleganv" else 1e-5)  # shuffled, parts are not uniform
        assert score(np.full((40, 5), 0.2), variant) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_tgan_is_its_formula(many):
    """evaluation/calc_inception.py."""
    terms = many * np.log(many + 1e-7) - many * np.log(many.mean(0, keepdims=True) + 1e-7)
    assert score(many, VARIANTS["tgan"]) == (pytest.approx(np.exp(terms.sum() / 205), rel=1e-12), 0.0)


def test_tganv2_is_the_mean_over_loops_of_different_clips(many):
    """tgan2/evaluations/inception_score.py, called once for each loop; eps goes into the probabilities."""

    def one(p: np.ndarray) -> float:
        p = p + 1e-20
        return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())

    assert VARIANTS["tganv2"] == Variant(clips=2048, loops=10, splits=1, eps=1e-20)
    variant = Variant(clips=41, loops=5, eps=1e-20)
    scores = [one(many[41 * k : 41 * (k + 1)]) for k in range(5)]
    assert score(many, variant) == (pytest.approx(np.mean(scores), rel=1e-12), pytest.approx(np.std(scores), rel=1e-9))
    for clips in (many[:41], many[:204]):  # a set of any other size is one loop
        assert score(clips, variant) == (pytest.approx(one(clips), rel=1e-12), 0.0)


@pytest.mark.parametrize("count", [200, 205])
def test_stylegan_v_shuffles_and_splits(many, count):
    """src/metrics/video_inception_score.py, with parts that differ in size where they must."""
    given = many[:count].copy()
    p = given.copy()
    np.random.RandomState(42).shuffle(p)
    scores = []
    for k in range(10):
        part = p[k * count // 10 : (k + 1) * count // 10]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0, keepdims=True)))).sum(1).mean()))
    found = score(given, VARIANTS["styleganv"])
    assert found == (pytest.approx(np.mean(scores), rel=1e-12), pytest.approx(np.std(scores), rel=1e-9))
    assert np.array_equal(given, many[:count])  # the caller's order is left
    assert found[0] != pytest.approx(inception_score(given, splits=10)[0], rel=1e-6)


def test_variants_refuse_what_the_score_refuses():
    for variant in VARIANTS.values():
        for p, what in (
            (np.ones(20), r"got \[20\]"),
            (np.array(1.0), r"got \[\]"),
            (np.ones((20, 2)), "apply softmax"),
        ):
            with pytest.raises(ValueError, match=what):
                score(p, variant)
    with pytest.raises(ValueError, match="splits <= 9 clips, got 10"):
        score(np.full((9, 2), 0.5), VARIANTS["styleganv"])
