"""Scores of embeddings: their references on real ones, what each of them sees, and wrong shapes."""

import numpy as np
import pytest

from vf.scores.embeddings import scores


def clusters(n: int, seed: int, spread: float = 0.05, classes: int = 4):
    """Embeddings around `classes` orthogonal ones, and a large vector that all have in common."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    return (np.eye(classes, 6)[label] + spread * rng.normal(size=(n, 6)) + 10).astype(np.float32), label


def found(*args):
    return {score.name: score for score in scores(*args)}


def test_samples_of_the_same_kind_score_as_real_ones():
    (real, real_label), (sampled, label) = clusters(4000, 0), clusters(1000, 1)
    result = found(real, sampled, (real_label, label))
    assert result.keys() == {"embedding_fd", "embedding_precision", "embedding_recall", "embedding_class"}
    for score in result.values():
        assert score.protocol["real"] == 2000
        np.testing.assert_allclose(score.value, score.reference, atol=0.02)
    assert result["embedding_class"].value == 1
    assert result["embedding_fd"].value < 0.01
    assert "embedding_class" not in found(real, sampled)


def test_each_sees_its_own_failure():
    (real, real_label), (sampled, label) = clusters(4000, 0), clusters(1000, 1)
    other = found(real, sampled, (real_label, (label + 1) % 4))
    assert other["embedding_class"].value == 0
    assert other["embedding_fd"].value < 0.01
    one = found(real, sampled[label == 0])  # all of one class
    assert one["embedding_precision"].value > 0.95
    assert one["embedding_recall"].value < 0.6
    assert one["embedding_fd"].value > 0.5
    noise = found(real, 10 + np.random.default_rng(2).normal(size=(1000, 6)))
    assert noise["embedding_precision"].value < 0.9


def test_the_distance_is_that_of_gaussians():
    rng = np.random.default_rng(0)
    real, sampled = rng.normal(size=(40_000, 2)), 2 * rng.normal(size=(20_000, 2)) + [3, 0]
    np.testing.assert_allclose(found(real, sampled)["embedding_fd"].value, 9 + 2 * (2 - 1) ** 2, rtol=0.03)


@pytest.mark.usefixtures("unchecked")
def test_too_few_or_of_another_length():
    for real, sampled in (((3, 2), (5, 2)), ((8, 2), (1, 2)), ((8, 2), (8, 3))):
        with pytest.raises(ValueError, match="of one length, got"):
            scores(np.ones(real), np.ones(sampled))
