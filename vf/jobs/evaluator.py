"""One step of a run, looked at: samples, validation losses, scores; every number with its protocol.

There are two sets of real clips: the *reference set*, which scores compare samples with (by many protocols clips of the
training split), and the *validation set*, which no step sees, for the losses and for the embeddings that condition
samples.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from absl import logging
from jax.sharding import Mesh

from vf import files
from vf.config.specs import RunSpec, SampleSpec
from vf.data import pipeline
from vf.files import AnyPath
from vf.metrics.consistency import base_frame_gap
from vf.metrics.protocol import Score, Scorer
from vf.metrics.protocol import plain as to_json
from vf.models.model import Model
from vf.run import media
from vf.run.recorder import Recorder
from vf.training import programs
from vf.training.checkpoint import BEST
from vf.types import UserError

EVALUATIONS = "evaluations.jsonl"  # one line for each step that was evaluated: fingerprint, step, scores


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Fixed clips, the same at every step.

    Attributes:
        clips: `video` u8 [n f h w 3], `label` i32 [n], `index` u32 [n], ...; nothing where the job needs no clips.
        about: what they are, ready for JSON.
    """

    clips: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, source: pipeline.Source | None, n: int, seed: int) -> Self:
        """`n` fixed clips of `source`. Raises UserError as `pipeline.fixed_clips`."""
        return cls({}, {}) if source is None else cls(pipeline.fixed_clips(source, n, seed=seed), source.describe())


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Samples and evaluates one step of a run; used by training and by the sampling and evaluation jobs."""

    workdir: AnyPath
    recorder: Recorder
    spec: RunSpec
    reference: RealClips
    validation: RealClips
    conditions: Mapping[str, np.ndarray]  # of the samples, as `conditions` gives them

    @classmethod
    def open(cls, workdir: AnyPath, recorder: Recorder, spec: RunSpec) -> Self:
        """Reads the real clips. Raises UserError where they cannot be read, or as `conditions`."""
        wanted = spec.evaluation
        reference = RealClips.read(wanted.reference, wanted.clips, spec.seed)
        n = wanted.clips if wanted.validation is None else min(wanted.clips, len(wanted.validation))
        validation = RealClips.read(wanted.validation, n, spec.seed)
        given = conditions(spec.model, spec.sample, validation.clips, len(spec.class_names))
        return cls(workdir, recorder, spec, reference, validation, given)

    @functools.cached_property
    def _sampling_program(self) -> Any:
        sample = self.spec.sample
        return programs.sampling(self.spec.model, self.spec.mesh, sample.seed, sample.options)

    @functools.cached_property
    def _validation_program(self) -> Any:
        return programs.validation(self.spec.model, self.spec.mesh, self.spec.seed)

    def sample(self, step: int, params: Any) -> np.ndarray:
        """Samples of `params`, u8 [n f h w 3] on every host, written into the run's folder."""
        sample = self.spec.sample
        made = programs.in_batches(
            lambda batch: self._sampling_program(params, batch), self.conditions, sample.batch_size, self.spec.mesh
        )
        if self.recorder.is_writer:
            labels = self.conditions["label"].tolist() if self.spec.model.null_label is not None else None
            media.write_samples(
                media.step_folder(self.workdir, step, images=sample.what == "base"), made,
                base_frame=self.spec.model.base_frame, fps=sample.fps, labels=labels,
                class_names=self.spec.class_names, meta={"step": step, **self.sampling},
            )  # fmt: skip
            name = "samples" if sample.what == "clips" else "base samples"
            self.recorder.video(step, name, made[:16], fps=sample.fps)
        return made

    def evaluate(self, step: int, params: Any, made: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `made`, recorded."""
        wanted = self.spec.evaluation
        losses = validation_losses(
            self._validation_program, params, self.validation.clips, wanted.levels, wanted.batch_size, self.spec.mesh
        )
        self.recorder.scalars(step, {f"{self._part}/{name}": loss for name, loss in losses.items()})
        real = self.reference.clips["video"]
        protocol = {"reference_set": dict(self.reference.about), "n_real": len(real), "n_generated": len(made)}
        protocol |= {"sampling": self.sampling}
        found = scores(wanted.scorers, real, made, self.spec.model.base_frame, protocol)
        for score in found:
            self.recorder.score(
                step, score.name, score.value, score.protocol, reference=score.reference, details=score.details
            )
            for warning in score.details.get("warnings", ()):
                logging.warning("%s: %s", score.name, warning)
        values = {score.name: score.value for score in found}
        if self.recorder.is_writer:
            # A line at once, so that another job that evaluates this run sees all of it or nothing.
            line = {"fingerprint": wanted.fingerprint, "step": step, "scores": values}
            files.append_line(self.workdir / EVALUATIONS, json.dumps(to_json(line)))
            self._remember_best()
        return values

    @property
    def _part(self) -> str:
        """What numbers on the validation clips are called."""
        return "seen" if self.spec.evaluation.seen else "validation"

    @property
    def sampling(self) -> dict[str, Any]:
        """What changes the samples, beside the weights."""
        if not self.spec.model.embedding_dim:
            return self.spec.sample.protocol()
        return self.spec.sample.protocol() | {"embeddings_of": {"set": self._part, **self.validation.about}}

    def evaluated(self) -> dict[int, dict[str, float]]:
        """{step: scores} of every step that was evaluated like this, by this job or another."""
        return read_evaluations(self.workdir, self.spec.evaluation.fingerprint)

    def _remember_best(self) -> None:
        """Writes best.json; the training job keeps that checkpoint."""
        wanted = self.spec.evaluation
        known = {step: float(s[wanted.best]) for step, s in self.evaluated().items() if wanted.best in s}
        known = {step: value for step, value in known.items() if np.isfinite(value)}
        if not known:
            return
        step = (min if wanted.lowest else max)(known, key=known.__getitem__)
        found = {"step": step, "score": wanted.best, "value": known[step], "fingerprint": wanted.fingerprint}
        self.recorder.file(BEST, json.dumps(found))

    def show_real(self) -> None:
        """Writes the reference set for the page, beside which samples are seen; where clips are sampled."""
        sample = self.spec.sample
        if self.recorder.is_writer and self.reference.clips and sample.what == "clips":
            media.write_samples(
                media.real_folder(self.workdir), self.reference.clips["video"][: sample.count],
                base_frame=self.spec.model.base_frame, fps=sample.fps, meta=dict(self.reference.about),
            )  # fmt: skip


def validation_losses(
    program: Any, params: Any, clips: Mapping[str, np.ndarray], levels: np.ndarray, batch_size: int, mesh: Mesh
) -> dict[str, float]:
    """Means over `clips` of `validation_step`'s errors, by network and noise level: `base/t500`, `base_eps/t500`, ....

    program: `training.programs.validation`.
    """
    errors = programs.in_batches(
        lambda batch: {int(t): program(params, batch, t) for t in levels}, clips, batch_size, mesh
    )
    return {
        f"{name}/t{t}": float(np.mean(error, dtype=np.float64))
        for t, by_name in errors.items()
        for name, error in by_name.items()
    }


def conditions(
    model: Model, spec: SampleSpec, records: Mapping[str, np.ndarray], classes: int
) -> dict[str, np.ndarray]:
    """What `spec.count` samples are conditioned on: `index` u32 [n], `label` i32 [n] and, where the model uses one,
    `embedding` f32 [n d].

    Labels are as asked, or all in turn. The paper draws the embedding from a prior network; until there is one, the
    clips of the validation set lend theirs, so a score with context `embedding` is that of a perfect prior. Sample k
    gets the embedding of the next clip of its own class, so that its label and embedding are those of one clip; a model
    that knows no classes gets clips of all of them, unless a class is asked for.

    Args:
        records: `label` [m] and `embedding` [m d] of the validation clips; read only for the embedding.
        classes: how many there are.

    Raises UserError for a class that is none, or that no clip in `records` is of.
    """
    if model.null_label is not None and spec.label >= classes:
        raise UserError(f"sample.label must be a class, 0 to {classes - 1}, or -1 for all in turn; got {spec.label}")
    index = np.arange(spec.count, dtype=np.uint32)
    label = index % max(classes, 1) if spec.label < 0 else np.full(spec.count, spec.label)
    if not model.embedding_dim:
        return {"index": index, "label": label.astype(np.int32)}
    if model.null_label is None and spec.label < 0:
        donor = index % len(records["label"])
    else:
        donor = _donors(label, records["label"])
    return {"index": index, **{name: records[name][donor] for name in ("label", "embedding")}}


def _donors(wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label of `wanted` [n] the row of `labels` [m] that is next in turn among those equal to it, int [n]."""
    donor = np.zeros(len(wanted), int)
    for label in np.unique(wanted):
        rows, mine = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(rows):
            raise UserError(
                f"samples of class {label} need the embedding of a validation clip of that class, and none of the "
                f"{len(labels)} is: read more by --config.eval.clips=N, or ask for another class by "
                "--config.sample.label=K"
            )
        donor[mine] = rows[np.arange(len(mine)) % len(rows)]
    return donor


def read_evaluations(workdir: AnyPath, fingerprint: str) -> dict[int, dict[str, float]]:
    """{step: scores} of a run under one fingerprint, of a step the latest. Torn lines are left out."""
    lines, more = files.read_lines(workdir / EVALUATIONS)
    found: dict[int, dict[str, float]] = {}
    for text in [*lines, *more]:
        try:
            line = json.loads(text)
            if line["fingerprint"] == fingerprint:
                found[int(line["step"])] = line["scores"]
        except (ValueError, TypeError, KeyError):
            continue
    return found


def scores(
    scorers: Mapping[str, Scorer],
    real: np.ndarray,
    generated: np.ndarray,
    base_frame: int,
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Every scorer's scores of clips u8 [n f h w 3], and the base frame's gap to its neighbours, for any data.

    `protocol` says which clips these are; it is added to each score's own.
    """
    try:
        found = [score for scorer in scorers.values() for score in scorer(real, generated)]
    except ValueError as error:
        raise UserError(f"the samples cannot be scored: {error}") from error
    if real.shape[1] > 3 and not any(score.name.endswith("base_frame_gap") for score in found):
        gap, reference = (base_frame_gap(clips, base_frame) for clips in (generated, real))
        found.append(Score("base_frame_gap", gap, reference, {"metric": "base_frame_gap", "base_frame": base_frame}))
    return [dataclasses.replace(s, protocol={**s.protocol, **protocol}) for s in found]
