"""Closed forms and bounds of the inception score."""

import numpy as np
import pytest

from vf.metrics.inception_score import inception_score


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.fixture
def drawn() -> np.ndarray:
    return softmax(np.random.default_rng(0).normal(0, 3, (60, 7)))


def test_it_counts_classes_that_are_told_with_certainty():
    for classes in (1, 2, 7):
        assert inception_score(np.eye(7)[np.arange(70) % classes])[0] == pytest.approx(classes, rel=1e-12)


def test_doubt_or_sameness_scores_one(drawn):
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
    assert inception_score(np.concatenate([drawn, drawn[:3]]), splits=4) == inception_score(drawn, splits=4)


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
def test_what_is_no_probability_is_told(p, splits, what):
    with pytest.raises(ValueError, match=what):
        inception_score(p, splits=splits)
