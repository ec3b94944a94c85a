"""Draws the embeddings of samples from a trained prior, before the samples themselves are drawn."""

from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from vf import rng
from vf.activity import ACTIVITY
from vf.config.specs import RunSpec
from vf.jobs import memory, meter
from vf.training import programs, sharding
from vf.types import Batch


@ACTIVITY.doing("drawing embeddings")
@memory.explained("sampling")
def draw(
    spec: RunSpec, phases: meter.Phases, rows: Mapping[str, np.ndarray], read_texts: Callable[[Batch], Batch]
) -> np.ndarray:
    """Embeddings f32 [n d] for samples of the numbers `index`, and classes `label` or texts `tokens`, in `rows` [n].

    `read_texts` gives a batch what networks read of its texts, in place of their tokens.

    That of sample n depends on (seed, n), its class and the prior alone; by the same settings it is the one that the
    prior's own run draws.
    """
    prior, sample = spec.prior, spec.sample
    assert prior is not None
    origin = prior.start.origin.get("from")
    with phases.phase("prior", f"reading the weights of {origin}"):
        params = prior.start.read(sharding.abstract_params(prior.model.shapes(), spec.mesh))
    logging.info("drawing %d embeddings by the prior of %s", sample.count, origin)
    program = phases.compiled(programs.embeddings(prior.model, spec.mesh, prior.options), "prior")
    seed = rng.as_argument(sample.control.content_seed if sample.control else sample.seed)
    given = {"label": np.asarray(prior.labels, np.int32)[rows["label"]]} if prior.labels else {}
    if prior.model.readers:
        given["tokens"] = rows["tokens"]
    drawn: np.ndarray = programs.in_batches(
        lambda batch: program(params, read_texts(batch), seed), {"index": rows["index"], **given}, sample.batch_size,
        spec.mesh,
    )  # fmt: skip
    return drawn
