"""Scores of the embeddings that a prior samples, in closed form, without a network.

    embedding_fd              Fréchet distance of Gaussians that are fitted to samples and to real embeddings
    embedding_precision       mean over samples of the cosine with the nearest real embedding
    embedding_recall          mean over real embeddings of the cosine with the nearest sample
    embedding_class           share of samples whose nearest real embedding is of the class that was asked for

Cosines are of embeddings less the mean of the real ones, so that what all have in common does not count. Every second
real embedding is what samples are compared with, and the references are the scores of the others, at most as many as
there are samples, in the samples' place.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.protocol import Score

VERSION = 1


def scores(
    real: Float[np.ndarray, "n d"],
    sampled: Float[np.ndarray, "m d"],
    labels: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
) -> list[Score]:
    """The scores of `sampled` against `real`.

    Args:
        real: real embeddings.
        sampled: the samples.
        labels: classes of these two; None for samples without.

    Raises ValueError where there are fewer than four real ones or two samples, or they are not of one length.
    """
    if real.shape[1] != sampled.shape[1] or len(real) < 4 or len(sampled) < 2:
        shapes = f"{list(real.shape)} and {list(sampled.shape)}"
        raise ValueError(f"expected four real embeddings or more and two samples or more, of one length, got {shapes}")
    compared, other = real[::2], real[1::2][: len(sampled)]
    classes = (None, None) if labels is None else (labels[0][::2], labels[0][1::2][: len(sampled)])
    found = _numbers(compared, sampled, classes[0], None if labels is None else labels[1])
    reference = _numbers(compared, other, *classes)
    facts = {"version": VERSION, "real": len(compared), "samples": len(sampled), "references": len(other)}
    return [Score(name, found[name], reference[name], {"metric": name, **facts}) for name in found]


def _numbers(
    real: np.ndarray, sampled: np.ndarray, real_label: np.ndarray | None, label: np.ndarray | None
) -> Mapping[str, float]:
    cosine = _units(sampled - real.mean(0)) @ _units(real - real.mean(0)).T  # samples x real ones
    found = {
        "embedding_fd": frechet_distance(Moments.of(real), Moments.of(sampled)),
        "embedding_precision": float(cosine.max(1).mean()),
        "embedding_recall": float(cosine.max(0).mean()),
    }
    if real_label is not None:
        found["embedding_class"] = float((real_label[cosine.argmax(1)] == label).mean())
    return found


def _units(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
