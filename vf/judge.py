"""The judge of a run: samples, how well the networks denoise, scores; every number with its protocol."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vf import gallery, record, sample, sharding
from vf.build import SampleJob
from vf.metrics.consistency import centre_frame_gap
from vf.metrics.protocol import Evaluator, Score
from vf.model import Model
from vf.step import validation_step
from vf.types import UserError


@dataclasses.dataclass(frozen=True)
class Judge:
    """Samples and evaluates at one step of a run; used by training and by the sampling and evaluation jobs."""

    workdir: Path
    recorder: record.Recorder
    model: Model
    mesh: Mesh
    job: SampleJob
    evaluators: Mapping[str, Evaluator]
    held: Mapping[str, np.ndarray]  # fixed clips that were not trained on
    levels: np.ndarray
    batch_size: int
    class_names: tuple[str, ...]
    data: Mapping[str, Any]  # what the real clips are
    seed: int

    @functools.cached_property
    def _sample(self) -> Any:
        return sample.sampler(self.model, self.job, self.mesh)

    @functools.cached_property
    def _validate(self) -> Any:
        return validator(self.model, self.seed, self.mesh)

    def sample(self, step: int, params: Any) -> np.ndarray:
        """Samples of `params`, written into the run's folder."""
        given = sample.conditions(self.model, self.job, self.held, len(self.class_names))
        made = sample.clips(self._sample, params, given, self.job.batch_size, self.mesh)
        if self.recorder.is_writer:
            sample.write(self.workdir, step, made, given, self.model, self.job, self.class_names)
            self.recorder.video(step, "samples", made[:16], fps=self.job.fps)
        return made

    def evaluate(self, step: int, params: Any, made: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `made`, recorded."""
        losses = validation(self._validate, params, self.held, self.levels, self.batch_size, self.mesh)
        self.recorder.scalars(step, losses)
        protocol = {"real": dict(self.data), "n_real": len(self.held["video"]), "n_generated": len(made)}
        protocol |= {"sampling": self.job.protocol()}
        found = scores(self.evaluators, self.held["video"], made, self.model.base_frame, protocol)
        for score in found:
            self.recorder.score(step, score.name, score.value, score.protocol, reference=score.reference)
        return {score.name: score.value for score in found}

    def show_real(self) -> None:
        """Real clips for the gallery, beside which samples are seen."""
        if self.recorder.is_writer:
            gallery.write_samples(
                self.workdir / "samples" / "real", self.held["video"][: self.job.count],
                centre=self.model.base_frame, fps=self.job.fps, meta=dict(self.data),
            )  # fmt: skip


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
