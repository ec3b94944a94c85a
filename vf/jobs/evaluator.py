"""Evaluates one step of a run: samples, validation losses and scores, each number with its protocol.

There are two sets of real clips: the *reference set*, which scores compare samples with (by many protocols clips of the
training split), and the *validation set*, which no training step sees. The validation losses are computed on the
latter, and its clips are the donors of the embeddings that condition samples.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from absl import logging
from jax.sharding import Mesh

from vf import files, rng
from vf.config.specs import RunSpec, SampleSpec
from vf.data import pipeline
from vf.files import AnyPath
from vf.jobs import memory, meter
from vf.metrics.consistency import base_frame_gap
from vf.metrics.protocol import Score, Scorer, to_json
from vf.models.model import GUIDE, Model
from vf.run import media, score_table
from vf.run.progress import Progress
from vf.run.recorder import Recorder
from vf.training import programs, sharding
from vf.training.checkpoint import BEST
from vf.types import Params, UserError

EVALUATIONS = "evaluations.jsonl"  # one line for each step that was evaluated: fingerprint, step, scores


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Real clips that are the same at every evaluation of a run.

    Attributes:
        clips: `video` u8 [n f h w 3], `label` i32 [n], `index` u32 [n], ...; empty where the job needs no clips.
        about: description of their source, ready for JSON.
    """

    clips: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    @classmethod
    def read(cls, source: pipeline.Source | None, n: int, seed: int) -> Self:
        """`n` fixed clips of `source`; none where it is None. Raises UserError as `pipeline.fixed_clips`."""
        return cls({}, {}) if source is None else cls(pipeline.fixed_clips(source, n, seed=seed), source.describe())


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Samples and evaluates steps of a run; used by the training, sampling and evaluation jobs.

    Attributes:
        workdir: the run's folder.
        recorder: writes numbers and files into it.
        spec: how to sample and evaluate.
        reference: the reference set.
        validation: the validation set.
        conditions: of the samples, as the function `conditions` gives them.
        phases: of the job's start.
    """

    workdir: AnyPath
    recorder: Recorder
    spec: RunSpec
    reference: RealClips
    validation: RealClips
    conditions: Mapping[str, np.ndarray]
    phases: meter.Phases

    @classmethod
    def open(cls, workdir: AnyPath, recorder: Recorder, spec: RunSpec) -> Self:
        """Reads the real clips. Raises UserError where they cannot be read, and as the function `conditions`."""
        settings = spec.evaluation
        reference = RealClips.read(settings.reference, settings.clips, spec.seed)
        n = settings.clips if settings.validation is None else min(settings.clips, len(settings.validation))
        validation = RealClips.read(settings.validation, n, spec.seed)
        condition = conditions(spec.model, spec.sample, validation.clips, len(spec.class_names))
        return cls(workdir, recorder, spec, reference, validation, condition, meter.Phases.of(workdir))

    @functools.cached_property
    def _sampling_program(self) -> Any:
        sample = self.spec.sample
        program = self.phases.compiled(programs.sampling(self.spec.model, self.spec.mesh, sample.options), "sampling")
        seed = rng.as_argument(sample.seed)
        return lambda params, batch: program(params, batch, seed)

    @functools.cached_property
    def _validation_program(self) -> Any:
        program = self.phases.compiled(programs.validation(self.spec.model, self.spec.mesh), "validation")
        seed = rng.as_argument(self.spec.seed)
        return lambda params, batch, t: program(params, batch, t, seed)

    @functools.cached_property
    def _guide(self) -> Params:
        """Parameters of the networks that guide samples, under the names by which a model finds them; {} for none."""
        if (guide := self.spec.guide) is None:
            return {}
        with self.phases.phase("guide", f"reading the weights of {guide.origin.get('from')} that guide"):
            params = guide.read(sharding.abstract_params(self.spec.model.shapes(), self.spec.mesh))
        return {GUIDE + name: network for name, network in params.items()}

    @memory.explained("sampling")
    def sample(self, step: int, params: Any) -> np.ndarray:
        """Samples with the weights `params`, u8 [n f h w 3], on every host; writes them into the run's folder."""
        sample = self.spec.sample
        logging.info("drawing %d %s, %d at a time", sample.count, sample.what, sample.batch_size)
        params = {**params, **self._guide}
        progress = Progress(sample.count, name="drawn", unit="clips", patient=True)
        samples = programs.in_batches(
            lambda batch: self._sampling_program(params, batch), self.conditions, sample.batch_size, self.spec.mesh,
            progress.update if self.recorder.is_writer else lambda rows: None,
        )  # fmt: skip
        self._record_phases(step, "the samples")
        if self.recorder.is_writer:
            # At step 0 the weights are those from which the run begins, which may be others in the next job.
            sampling = self.sampling | ({"start": dict(self.spec.start.origin)} if self.spec.start and not step else {})
            beside = {"real": folder.name} if (folder := self._real_folder) else {}
            folder = media.write_samples(
                media.drawing_folder(self.workdir, step, sample.what, len(samples), sampling), samples,
                base_frame=self.spec.model.base_frame, fps=sample.fps, labels=self._labels,
                class_names=self.spec.class_names, meta={"step": step, **sampling, **beside},
            )  # fmt: skip
            logging.info("samples: %s", folder)
            name = "samples" if sample.what == "clips" else "base samples"
            self.recorder.video(step, name, samples[:16], fps=sample.fps)
        return samples

    @memory.explained("evaluation")
    def evaluate(self, step: int, params: Any, samples: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `samples`, recorded."""
        settings = self.spec.evaluation
        losses = validation_losses(
            self._validation_program,
            params,
            self.validation.clips,
            settings.levels,
            settings.batch_size,
            self.spec.mesh,
        )
        self._record_phases(step, "the validation losses")
        self.recorder.scalars(step, {f"{self._part}/{name}": loss for name, loss in losses.items()})
        real = self.reference.clips["video"]
        protocol = {"reference_set": dict(self.reference.about), "n_real": len(real), "n_generated": len(samples)}
        protocol |= {"sampling": self.sampling}
        results = scores(settings.scorers, real, samples, self.spec.model.base_frame, protocol)
        for score in results:
            self.recorder.score(
                step, score.name, score.value, score.protocol, reference=score.reference, details=score.details
            )
        logging.info("scores of step %d:\n%s", step, score_table.table(results))
        values = {score.name: score.value for score in results}
        if self.recorder.is_writer:
            # A whole line in one write, so that another job that evaluates this run reads all of it or none.
            line = {"fingerprint": settings.fingerprint, "step": step, "scores": values}
            files.append_line(self.workdir / EVALUATIONS, json.dumps(to_json(line)))
            self._write_best()
        return values

    def _record_phases(self, step: int, what: str) -> None:
        if seconds := self.phases.take(what):
            self.recorder.scalars(step, seconds)

    @property
    def _part(self) -> str:
        """The prefix of the names of numbers on the validation clips."""
        return "seen" if self.spec.evaluation.seen else "validation"

    @property
    def sampling(self) -> dict[str, Any]:
        """Everything that changes the samples except the weights, ready for JSON."""
        guide = {"guide": dict(self.spec.guide.origin)} if self.spec.guide else {}
        if not self.spec.model.embedding_dim:
            return self.spec.sample.protocol() | guide
        return self.spec.sample.protocol() | guide | {"embeddings_of": {"set": self._part, **self.validation.about}}

    def evaluated(self) -> dict[int, dict[str, float]]:
        """{step: scores} of every step that this job or another has evaluated under the same protocol."""
        return read_evaluations(self.workdir, self.spec.evaluation.fingerprint)

    def _write_best(self) -> None:
        """Writes best.json, which names the best step so far; the training job keeps that checkpoint."""
        settings = self.spec.evaluation
        values = {step: float(s[settings.best]) for step, s in self.evaluated().items() if settings.best in s}
        values = {step: value for step, value in values.items() if np.isfinite(value)}
        if not values:
            return
        step = (min if settings.lowest else max)(values, key=values.__getitem__)
        best = {"step": step, "score": settings.best, "value": values[step], "fingerprint": settings.fingerprint}
        self.recorder.file(BEST, json.dumps(best))

    @property
    def _labels(self) -> list[int] | None:
        """The class of each sample; None for a model without classes."""
        return None if self.spec.model.null_label is None else self.conditions["label"].tolist()

    @property
    def _real_folder(self) -> AnyPath | None:
        """Where the real clips lie that samples are shown beside; None where the job has none."""
        shows = bool(self.reference.clips) and self.spec.sample.what == "clips"
        return media.real_folder(self.workdir, self._labels) if shows else None

    def show_real(self) -> None:
        """Writes clips of the reference set for the page, which shows samples beside them, where clips are sampled.

        Where the samples have classes, these are of the same classes, in the same order.
        """
        sample, real, labels = self.spec.sample, self.reference.clips, self._labels
        if not self.recorder.is_writer or (folder := self._real_folder) is None:
            return
        rows = np.arange(len(real["video"]))[: sample.count]
        if labels is not None:
            rows = media.rows_of(labels, real["label"])
        if len(rows) and (source := self.spec.evaluation.reference):
            again = int((rows >= len(source)).sum())  # see `pipeline.fixed_clips`
            media.write_samples(
                folder, real["video"][rows], base_frame=self.spec.model.base_frame, fps=sample.fps,
                labels=None if labels is None else real["label"][rows].tolist(), class_names=self.spec.class_names,
                meta={"different": len(np.unique(rows)), "again": again, "source": self.reference.about},
            )  # fmt: skip


def validation_losses(
    program: Any, params: Any, clips: Mapping[str, np.ndarray], levels: np.ndarray, batch_size: int, mesh: Mesh
) -> dict[str, float]:
    """Means over `clips` of `validation_step`'s errors, by network and noise level: `base/t500`, `base_eps/t500`, ....

    program: `training.programs.validation` with a seed.
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
    """The conditions of `spec.count` samples: `index` u32 [n], `label` i32 [n] and, where the model uses an embedding,
    `embedding` f32 [n d].

    All labels are `spec.label`, or the classes take turns. The paper draws the embedding from a prior network; until
    there is one, clips of the validation set are the donors, so a score with context `embedding` is that of a perfect
    prior. The donor of sample k is the next clip of its class, so that its label and embedding belong to one clip. For
    a model without classes all clips are donors, or those of `spec.label` where that is set.

    Args:
        model: whose conditions they are.
        spec: number of samples and their class.
        records: `label` [m] and `embedding` [m d] of the validation clips; read only for the embedding.
        classes: number of classes.

    Raises UserError for a label that is no class, or a class without a donor in `records`.
    """
    if model.null_label is not None and spec.label >= classes:
        raise UserError(f"sample.label must be a class, 0 to {classes - 1}, or -1 for all in turn; got {spec.label}")
    index = np.arange(spec.count, dtype=np.uint32)
    label = index % max(classes, 1) if spec.label < 0 else np.full(spec.count, spec.label)
    if not model.embedding_dim:
        return {"index": index, "label": label.astype(np.int32)}
    if model.null_label is None and spec.label < 0:
        donors = index % len(records["label"])
    else:
        donors = _donors(label, records["label"])
    return {"index": index, **{name: records[name][donors] for name in ("label", "embedding")}}


def _donors(wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label in `wanted` [n], the next row in turn of those rows of `labels` [m] that equal it, int [n]."""
    donors = np.zeros(len(wanted), int)
    for label in np.unique(wanted):
        rows, same = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(rows):
            raise UserError(
                f"samples of class {label} need the embedding of a validation clip of that class, and none of the "
                f"{len(labels)} is: read more by --config.eval.clips=N, or ask for another class by "
                "--config.sample.label=K"
            )
        donors[same] = rows[np.arange(len(same)) % len(rows)]
    return donors


def read_evaluations(workdir: AnyPath, fingerprint: str) -> dict[int, dict[str, float]]:
    """{step: scores} of a run under one fingerprint, the latest scores of each step. Incomplete lines are left out."""
    lines, rest = files.read_lines(workdir / EVALUATIONS)
    evaluations: dict[int, dict[str, float]] = {}
    for text in [*lines, *rest]:
        try:
            line = json.loads(text)
            if line["fingerprint"] == fingerprint:
                evaluations[int(line["step"])] = line["scores"]
        except (ValueError, TypeError, KeyError):
            continue
    return evaluations


def scores(
    scorers: Mapping[str, Scorer],
    real: np.ndarray,
    generated: np.ndarray,
    base_frame: int,
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Every scorer's scores of clips u8 [n f h w 3], and for any data the base frame's gap to its neighbours.

    `protocol` describes the clips, and is added to the protocol of each score. Raises UserError where the clips cannot
    be scored.
    """
    logging.info("scoring %d samples against %d real clips by %s", len(generated), len(real), ", ".join(scorers))
    try:
        results = [score for scorer in scorers.values() for score in scorer(real, generated)]
    except ValueError as error:
        raise UserError(f"the samples cannot be scored: {error}") from error
    if real.shape[1] > 3 and not any(score.name.endswith("base_frame_gap") for score in results):
        gap, reference = (base_frame_gap(clips, base_frame) for clips in (generated, real))
        results.append(Score("base_frame_gap", gap, reference, {"metric": "base_frame_gap", "base_frame": base_frame}))
    return [dataclasses.replace(s, protocol={**s.protocol, **protocol}) for s in results]
