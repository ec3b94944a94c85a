"""The judge of a run: samples, how well the networks denoise, scores; every number with its protocol.

It knows two sets of real clips: the *reference set*, which scores compare samples with (by many protocols clips of the
training split), and the *validation set*, which no step sees, for the losses and for the embeddings that condition
samples.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vf import files, gallery, record, sample, sharding
from vf.build import SampleJob
from vf.checkpoint import BEST
from vf.data import pipeline
from vf.files import AnyPath
from vf.metrics.consistency import centre_frame_gap
from vf.metrics.protocol import Evaluator, Score
from vf.model import Model
from vf.step import validation_step
from vf.types import UserError

EVALUATIONS = "evaluations.jsonl"  # one line for each step that was judged: mark, step, scores


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Fixed clips, the same at every step.

    Attributes:
        clips: `video` u8 [n f h w 3], `label` i32 [n], `index` u32 [n], ...; nothing where the job needs no clips.
        about: what they are, ready for JSON.
    """

    clips: Mapping[str, np.ndarray]
    about: Mapping[str, Any]


def real_clips(source: pipeline.Source, n: int, seed: int) -> RealClips:
    """`n` fixed clips of `source`. Raises UserError as `pipeline.fixed_clips`."""
    return RealClips(pipeline.fixed_clips(source, n, seed=seed), source.describe())


@dataclasses.dataclass(frozen=True)
class Judge:
    """Samples and evaluates at one step of a run; used by training and by the sampling and evaluation jobs."""

    workdir: AnyPath
    recorder: record.Recorder
    model: Model
    mesh: Mesh
    job: SampleJob
    evaluators: Mapping[str, Evaluator]
    reference: RealClips
    validation: RealClips
    conditions: Mapping[str, np.ndarray]  # of the samples, as `sample.conditions` gives them
    seen: bool  # whether steps see the validation clips: then numbers on them are called `seen`, not `validation`
    levels: np.ndarray
    batch_size: int
    class_names: tuple[str, ...]
    seed: int
    mark: str  # of this kind of evaluation: what was judged under another one is judged again
    best: str  # score by which checkpoints are compared
    lowest: bool  # whether its lowest value is the best

    @functools.cached_property
    def _sample(self) -> Any:
        return sample.sampler(self.model, self.job, self.mesh)

    @functools.cached_property
    def _validate(self) -> Any:
        return validator(self.model, self.seed, self.mesh)

    def sample(self, step: int, params: Any) -> np.ndarray:
        """Samples of `params`, written into the run's folder."""
        made = sample.clips(self._sample, params, self.conditions, self.job.batch_size, self.mesh)
        if self.recorder.is_writer:
            sample.write(
                self.workdir, step, made, self.conditions, self.model, self.job, self.class_names, self.sampling
            )
            name = "samples" if self.job.what == "clips" else "base samples"
            self.recorder.video(step, name, made[:16], fps=self.job.fps)
        return made

    def evaluate(self, step: int, params: Any, made: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `made`, recorded."""
        losses = validation(self._validate, params, self.validation.clips, self.levels, self.batch_size, self.mesh)
        self.recorder.scalars(step, {f"{self._part}/{name}": loss for name, loss in losses.items()})
        real = self.reference.clips["video"]
        protocol = {"reference_set": dict(self.reference.about), "n_real": len(real), "n_generated": len(made)}
        protocol |= {"sampling": self.sampling}
        found = scores(self.evaluators, real, made, self.model.base_frame, protocol)
        for score in found:
            self.recorder.score(
                step, score.name, score.value, score.protocol, reference=score.reference, details=score.details
            )
            for warning in score.details.get("warnings", ()):
                logging.warning("%s: %s", score.name, warning)
        values = {score.name: score.value for score in found}
        if self.recorder.is_writer:
            # A line at once, so that another job that judges this run sees all of it or nothing.
            line = json.dumps(record.plain({"mark": self.mark, "step": step, "scores": values}))
            files.append_line(self.workdir / EVALUATIONS, line)
            self._mark_best()
        return values

    @property
    def _part(self) -> str:
        """What numbers on the validation clips are called."""
        return "seen" if self.seen else "validation"

    @property
    def sampling(self) -> dict[str, Any]:
        """What changes the samples, beside the weights."""
        if not self.model.embedding_dim:
            return self.job.protocol()
        return self.job.protocol() | {"embeddings_of": {"set": self._part, **self.validation.about}}

    def judged(self) -> dict[int, dict[str, float]]:
        """{step: scores} of every step that was judged like this, by this job or another."""
        return read_evaluations(self.workdir, self.mark)

    def _mark_best(self) -> None:
        """Writes best.json; the training job keeps that checkpoint."""
        known = {step: float(s[self.best]) for step, s in self.judged().items() if self.best in s}
        known = {step: value for step, value in known.items() if np.isfinite(value)}
        if not known:
            return
        step = (min if self.lowest else max)(known, key=known.__getitem__)
        found = {"step": step, "score": self.best, "value": known[step], "mark": self.mark}
        self.recorder.file(BEST, json.dumps(found))

    def show_real(self) -> None:
        """Writes the reference set for the gallery, beside which samples are seen; where clips are sampled."""
        if self.recorder.is_writer and self.reference.clips and self.job.what == "clips":
            gallery.write_samples(
                self.workdir / "samples" / "real", self.reference.clips["video"][: self.job.count],
                centre=self.model.base_frame, fps=self.job.fps, meta=dict(self.reference.about),
            )  # fmt: skip


def read_evaluations(workdir: AnyPath, mark: str) -> dict[int, dict[str, float]]:
    """{step: scores} of a run under one mark; the later of two evaluations of a step. Torn lines are left out."""
    lines, more = files.read_lines(workdir / EVALUATIONS)
    found: dict[int, dict[str, float]] = {}
    for text in [*lines, *more]:
        try:
            line = json.loads(text)
            if line["mark"] == mark:
                found[int(line["step"])] = line["scores"]
        except (ValueError, TypeError, KeyError):
            continue
    return found


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
    return [dataclasses.replace(s, protocol={**s.protocol, **protocol}) for s in found]


def validator(model: Model, seed: int, mesh: Mesh) -> Any:
    """Compiled (params, batch, t) -> errors [b] of each clip at noise level t."""
    step = functools.partial(validation_step, model=model, seed=seed)
    return jax.jit(step, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def validation(
    validate: Any,
    params: Any,
    clips: Mapping[str, np.ndarray],
    levels: np.ndarray,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, float]:
    """Means over all clips of `validation_step`'s errors, by network and noise level: `base/t500`, `base_eps/t500`.

    Clips that fill up the last batch do not count.
    """
    count = len(clips["index"])
    rows = sharding.my_rows(mesh, batch_size, sharding.EVERY)
    sums: dict[str, float] = {}
    for first in range(0, count, batch_size):
        mine = np.minimum(first + rows, count - 1)
        batch = sharding.put_batch(
            {name: value[mine] for name, value in clips.items()}, mesh, batch_size, sharding.EVERY
        )
        for t in levels:
            errors = multihost_utils.process_allgather(validate(params, batch, t), tiled=True)
            for name, error in errors.items():
                total = np.asarray(error, np.float64)[: count - first].sum()
                sums[f"{name}/t{t}"] = sums.get(f"{name}/t{t}", 0.0) + total / count
    return sums
