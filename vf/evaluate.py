"""The evaluation job: what samples are worth, and how well the networks denoise; every number with its protocol."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vf import sharding
from vf.metrics.consistency import centre_frame_gap
from vf.metrics.protocol import Evaluator, Score
from vf.model import Model
from vf.step import validation_step
from vf.types import UserError


def scores(
    evaluators: Mapping[str, Evaluator],
    real: np.ndarray,
    generated: np.ndarray,
    base_frame: int,
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Every evaluator's scores of clips u8 [n f h w 3], and the centre frame's gap to its neighbours, for any data.

    `protocol` says which clips these are; it is added to each score's own.
    """
    try:
        found = [score for evaluate in evaluators.values() for score in evaluate(real, generated)]
    except ValueError as error:
        raise UserError(f"the samples cannot be scored: {error}") from error
    if real.shape[1] > 3 and not any(score.name.endswith("centre_gap") for score in found):
        gap, reference = (centre_frame_gap(clips, base_frame) for clips in (generated, real))
        found.append(Score("centre_gap", gap, reference, {"metric": "centre_frame_gap", "base_frame": base_frame}))
    return [Score(s.name, s.value, s.reference, {**s.protocol, **protocol}) for s in found]


def validator(model: Model, seed: int, mesh: Mesh) -> Any:
    """Compiled (params, batch, t) -> errors [b] of each clip at noise level t."""
    step = functools.partial(validation_step, model=model, seed=seed)
    return jax.jit(step, out_shardings=sharding.batch_sharding(mesh))


def validation(
    validate: Any,
    params: Any,
    held: Mapping[str, np.ndarray],
    levels: np.ndarray,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, float]:
    """Mean error in eps at each noise level over the same clips with the same noise: `eval/eps_base/t500`, ....

    Clips that fill up the last batch do not count.
    """
    count = len(held["index"])
    hosts, me = jax.process_count(), jax.process_index()
    rows = batch_size // hosts
    sums: dict[str, float] = {}
    for first in range(0, count, batch_size):
        mine = np.minimum(first + me * rows + np.arange(rows), count - 1)
        batch = sharding.put_batch({name: value[mine] for name, value in held.items()}, mesh)
        for t in levels:
            errors = multihost_utils.process_allgather(validate(params, batch, t), tiled=True)
            for name, error in errors.items():
                total = np.asarray(error, np.float64)[: count - first].sum()
                sums[f"eval/{name}/t{t}"] = sums.get(f"eval/{name}/t{t}", 0.0) + total / count
    return sums
