"""Evaluates one step of a run: samples, validation losses and scores, each number with its protocol.

There are two sets of real clips: the *reference set*, which scores compare samples with (by many protocols clips of the
training split), and the *validation set*, which no training step sees. The validation losses are computed on the
latter, and its clips are the donors of the embeddings that condition samples.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from absl import logging
from jax.sharding import Mesh

from vf import rng
from vf.activity import ACTIVITY
from vf.config.specs import RunSpec, SampleSpec
from vf.data import pipeline
from vf.files import AnyPath
from vf.jobs import control, drawing, memory, meter, prior
from vf.jobs.results import Results
from vf.jobs.superres import Superres
from vf.jobs.together import Together
from vf.metrics.consistency import base_frame_gap
from vf.metrics.protocol import Score, Scorer
from vf.metrics.psnr import psnr
from vf.models.model import GUIDE, Model
from vf.models.superres import SuperResolution
from vf.nets import resize
from vf.nets.text_encoder import TextEncoder
from vf.run import media, provenance, score_table
from vf.run.progress import Progress
from vf.run.recorder import Recorder
from vf.training import programs, sharding
from vf.training.checkpoint import BEST
from vf.types import Batch, Params, UserError, counted


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
        if source is None:
            return cls({}, {})
        with ACTIVITY.doing(f"reading {counted(n, 'real clip')}"):
            return cls(pipeline.fixed_clips(source, n, seed=seed), source.describe())


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
        if spec.embeds and validation.clips:
            clips = {"video": validation.clips["video"]}
            made = programs.in_batches(_reading_texts(spec), clips, settings.batch_size, spec.mesh)
            clips = {**validation.clips, "embedding": made["embedding"]}
            validation = dataclasses.replace(validation, clips=clips)
        phases, drawn, classes = meter.Phases.of(workdir), spec.prior is not None, len(spec.class_names)
        condition = conditions(spec.model, spec.sample, validation.clips, classes, spec.text, drawn=drawn)
        if drawn:
            condition |= {"embedding": prior.draw(spec, phases, condition, _reading_texts(spec))}
        return cls(workdir, recorder, spec, reference, validation, condition, phases)

    @functools.cached_property
    def _sampling_programs(self) -> tuple[Any, Any]:
        """Those of the first window of a clip and of the further ones, (params, batch) -> clips."""
        sample, (model, mesh) = self.spec.sample, (self.spec.model, self.spec.mesh)
        further = sample.options._replace(known=tuple(range(sample.extension.overlap)))
        seed = rng.as_argument(sample.control.content_seed if sample.control else sample.seed)
        pixels = self.spec.superres is None or sample.extension.further > 0  # else they are taken up as they are
        made = (
            self.phases.compiled(programs.sampling(model, mesh, options, pixels), name)
            for options, name in ((sample.options, "sampling"), (further, "further windows"))
        )
        first, other = (lambda params, batch, program=program: program(params, batch, seed) for program in made)
        return first, other

    @functools.cached_property
    def _validation_program(self) -> Any:
        program = self.phases.compiled(programs.validation(self.spec.model, self.spec.mesh), "validation")
        seed, read_texts = rng.as_argument(self.spec.seed), self._read_texts
        return lambda params, batch, t: program(params, read_texts(batch), t, seed)

    @functools.cached_property
    def _read_texts(self) -> Callable[[Batch], Batch]:
        """A batch with what networks read of its texts, in place of their tokens."""
        return _reading_texts(self.spec)

    @functools.cached_property
    def _guide(self) -> Params:
        """Parameters of the networks that guide samples, under the names by which a model finds them; {} for none."""
        if (guide := self.spec.guide) is None:
            return {}
        with self.phases.phase("guide", f"reading the weights of {guide.origin.get('from')} that guide"):
            params = guide.read(sharding.abstract_params(self.spec.model.shapes(), self.spec.mesh))
        return {GUIDE + name: network for name, network in params.items()}

    @ACTIVITY.doing("drawing the samples, or writing them")
    @memory.explained("sampling")
    def sample(self, step: int, params: Any, *, whole: bool = True) -> np.ndarray:
        """Samples with the weights `params`, u8 [n f h w 3], on every host; writes them into the run's folder.

        whole: whether all are returned, or only those of the pictures, so that there may be more than memory holds.
        """
        sample, folder = self.spec.sample, self.results.drawing(step)
        params = {**params, **self._guide}
        rows = control.rows(self.spec, self.phases, params, self.conditions)
        batch = 1 if sample.together else sample.batch_size  # which is of windows then
        chosen = drawing.shards(sample.count, self.spec.model.shape[1], sample.extension, batch)
        each, unit = (sample.extension.further + 1, "windows") if sample.extension.further else (1, "clips")
        progress = Progress(sample.count * each, name="drawn", unit=unit, patient=True)
        parts, shards = (
            drawing.Parts(folder / name, is_writer=self.recorder.is_writer, found=found)
            for name, found in (("parts", progress.skip), (media.SHARDS, lambda clips: progress.skip(clips * each)))
        )
        many, names = len(chosen) > 1, tuple(map(drawing.shard_name, chosen))
        raised = Superres(self.spec, self.recorder, self.phases, self.results, step) if self.spec.superres else None
        left = raised.has(names) if raised else ()  # of a job that was killed
        if self.recorder.is_writer and many and (raised or self.results.is_drawn(step)):  # and is drawn again
            (folder / "meta.json").unlink(missing_ok=True)
            shards.remove(but=left)
        some: list[np.ndarray] = []
        for clips in self._draw(params, rows, chosen, progress, parts, shards if many else None, raised):
            if whole or media.pictures_take_more(some):
                some.append(clips)
        samples = np.concatenate(some)
        self._record_phases(step, "the samples")
        if self.recorder.is_writer:
            beside = {"real": real.name} if (real := self._real_folder) else {}
            command = provenance.command_line(sys.orig_argv)
            facts = {"step": step, **self.results.sampling, **self.results.start(step), **beside, "command": command}
            media.write_samples(
                folder, samples, base_frame=self.spec.model.base_frame, fps=sample.fps, labels=self._shown[0],
                class_names=self._shown[1], meta=facts, columns=control.columns(sample),
                shards=names if many else (), total=sample.count,
            )  # fmt: skip
            parts.remove()
            if many:
                shards.remove(but=names)  # those of a killed job with another batch
            logging.info("samples: %s", folder)
            name = "samples" if sample.what == "clips" else "base samples"
            self.recorder.video(step, name, samples[:16], fps=sample.fps)
        if raised:
            raised.draw(chosen, self.conditions, *self._shown)
        return samples

    def _draw(
        self, params: Any, rows: Mapping[str, np.ndarray], chosen: list[slice], progress: Progress,
        parts: drawing.Parts, shards: drawing.Parts | None, raised: Superres | None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """The samples of these rows, in windows and shards; kept for `raised`, if that is to take them up."""
        sample, size = self.spec.sample, self.spec.model.shape[1]
        extension = sample.extension
        long = f" of {extension.length} frames, in {extension.further + 1} windows" if extension.further else ""
        what = counted(sample.count, "clip" if sample.what == "clips" else "image")
        batch = min(sample.count * (extension.further + 1 if sample.together else 1), sample.batch_size)
        logging.info("drawing %s%s, %d at a time", what, long, batch)

        def program(number: int, rows: dict[str, np.ndarray], done: drawing.Done) -> np.ndarray:
            draw = self._sampling_programs[number > 0]
            rows = control.window(self.spec, number, rows)
            count, devices = len(rows["index"]), self.spec.mesh.size
            # Rows that fill up a batch would cost the same in every window of a long clip.
            whole = -(-count // devices) * devices if extension.further else sample.batch_size
            batch_size = min(whole, sample.batch_size)
            return programs.in_batches(lambda batch: draw(params, batch), rows, batch_size, self.spec.mesh, done)

        make: drawing.Make = functools.partial(
            drawing.in_turn, extension=extension, size=size, parts=parts if extension.further else None, program=program
        )
        if sample.together:
            make = functools.partial(Together(self.spec, self.phases, params).draw, parts=parts)
        seed = sample.control.content_seed if sample.control else sample.seed
        if self.spec.text:
            make = self._with_texts(make)
        if raised:
            make = raised.keeping(make)
        beside = {"index": rows["index"], "seed": np.full(sample.count, seed)}
        beside |= {"label": np.asarray(self._shown[0])} if self._shown[0] is not None else {}
        done = progress.update if self.recorder.is_writer else lambda windows: None
        with ACTIVITY.doing(f"drawing {what}", announced=True):
            yield from drawing.draw(rows, chosen, extension, size, make, done, shards, beside)

    def _with_texts(self, make: drawing.Make) -> drawing.Make:
        """`make` of rows with tokens, whose texts are encoded shard by shard: they need more memory than many clips."""
        sample, mesh = self.spec.sample, self.spec.mesh

        def made(rows: dict[str, np.ndarray], name: str, done: drawing.Done) -> np.ndarray:
            tokens = {"tokens": rows["tokens"]}
            read = programs.in_batches(self._read_texts, tokens, sample.batch_size, mesh)
            return make({field: value for field, value in rows.items() if field != "tokens"} | read, name, done)

        return made

    @memory.explained("evaluation")
    def evaluate(self, step: int, params: Any, samples: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `samples`, recorded."""
        settings = self.spec.evaluation
        self._record_losses(step, params)
        real = self.reference.clips["video"]
        protocol = {"reference_set": dict(self.reference.about), "n_real": len(real), "n_generated": len(samples)}
        protocol |= {"sampling": self.results.sampling}
        results = scores(settings.scorers, real, samples, self.spec.model.base_frame, protocol)
        if isinstance(self.spec.model, SuperResolution):
            results += distances(self.spec.model, self.conditions["video"], samples, protocol)
        for score in results:
            self.recorder.score(
                step, score.name, score.value, score.protocol, reference=score.reference, details=score.details
            )
        logging.info("scores of step %d:\n%s", step, score_table.table(results))
        values = {score.name: score.value for score in results}
        if self.recorder.is_writer:
            self.results.add(step, values)
            self._write_best()
        return values

    def _record_losses(self, step: int, params: Any) -> None:
        """Records the validation losses of `params`."""
        settings = self.spec.evaluation
        with ACTIVITY.doing("computing the validation losses"):
            losses = validation_losses(
                self._validation_program, params, self.validation.clips, settings.levels, settings.batch_size,
                self.spec.mesh,
            )  # fmt: skip
        self._record_phases(step, "the validation losses")
        self.recorder.scalars(step, {f"{self.results.part}/{name}": loss for name, loss in losses.items()})

    def _record_phases(self, step: int, what: str) -> None:
        if seconds := self.phases.take(what):
            self.recorder.scalars(step, seconds)

    @property
    def results(self) -> Results:
        """What the run's folder holds of the results of this job."""
        return Results(self.workdir, self.spec)

    def _write_best(self) -> None:
        """Writes best.json, which names the best step so far; the training job keeps that checkpoint."""
        settings = self.spec.evaluation
        values = {step: float(s[settings.best]) for step, s in self.results.scores().items() if settings.best in s}
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

    @functools.cached_property
    def _shown(self) -> tuple[list[int] | None, tuple[str, ...]]:
        """What is written under each sample, as a number of these names: its class, or its text; None for neither."""
        if "tokens" not in self.conditions or self.spec.text is None:
            return self._labels, self.spec.class_names
        if prompts := self.spec.sample.prompts:
            return prompt_numbers(self.spec.sample).tolist(), prompts
        captions, which = np.unique(self.spec.text.words(self.conditions["tokens"]), return_inverse=True)
        return which.tolist(), tuple(captions.tolist())

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
        rows, absent = np.arange(len(real["video"]))[: sample.count], list[int]()
        if labels is not None:
            rows, absent = media.rows_of(labels, real["label"]), sorted({*labels} - {*real["label"].tolist()})
        if len(rows) and (source := self.spec.evaluation.reference):
            again = int((rows >= len(source)).sum())  # see `pipeline.fixed_clips`
            names = self.spec.class_names
            media.write_samples(
                folder, real["video"][rows], base_frame=self.spec.model.base_frame, fps=sample.fps,
                labels=None if labels is None else real["label"][rows].tolist(), class_names=self.spec.class_names,
                meta={
                    "different": len(np.unique(rows)), "again": again, "source": self.reference.about,
                    "absent": [names[label] if names else str(label) for label in absent],
                },
            )  # fmt: skip


def _reading_texts(spec: RunSpec) -> Callable[[Batch], Batch]:
    embeds = spec.model.base_frame if spec.embeds else None
    return programs.text_encoding(spec.text, spec.mesh, embeds=embeds)


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
    model: Model,
    spec: SampleSpec,
    records: Mapping[str, np.ndarray],
    classes: int,
    text: TextEncoder | None = None,
    *,
    drawn: bool = False,
) -> dict[str, np.ndarray]:
    """The conditions of `spec.count` samples: `index` u32 [n], `label` i32 [n] and, where the model uses an embedding,
    `embedding` f32 [n d]; where it reads texts, `tokens` i32 [n t] of the prompts in turn, or of the donors' captions;
    for super-resolution `video` u8 [n f h w 3], the donors themselves, which are reduced and taken up.

    All labels are `spec.label`, or the classes take turns. The paper draws the embedding from a prior network; where
    none is named, clips of the validation set are the donors, so that a score is that of a perfect prior. The donor of
    sample k is the next clip of its class, so that its label and embedding belong to one clip. For a model without
    classes all clips are donors, or those of `spec.label` where that is set.

    Args:
        model: whose conditions they are.
        spec: number of samples and their class.
        records: `label` [m] and `embedding` [m d] of the validation clips, and `video` [m f h w 3]; read only for the
            embedding, for super-resolution, and for known frames that no file gives; `tokens` [m t] for texts where
            there are no prompts.
        classes: number of classes.
        drawn: whether a prior draws the embeddings, which are then left out here.
        text: the encoder, where the model reads texts.

    Raises UserError for a label that is no class, or a class without a donor in `records`.
    """
    if model.null_label is not None and spec.label >= classes:
        raise UserError(f"sample.label must be a class, 0 to {classes - 1}, or -1 for all in turn; got {spec.label}")
    rows = control.numbers(spec)
    index = rows["index"]
    known = bool(spec.options.known) and "video" in records  # the validation clips give the known frames
    raised = isinstance(model, SuperResolution)
    label = index % max(classes, 1) if spec.label < 0 else np.full(spec.count, spec.label)
    borrowed = ["label", *["embedding"][: bool(model.embedding_dim) and not drawn]]
    borrowed += ["video"][: isinstance(model, SuperResolution)]
    if text is not None and spec.prompts:
        tokens = np.stack([text.tokens(prompt) for prompt in spec.prompts])
        rows["tokens"] = tokens[prompt_numbers(spec)]
    elif text is not None:
        borrowed.append("tokens")
    if borrowed == ["label"] and not known:
        return rows | {"label": label.astype(np.int32)}
    if spec.label < 0 and (known or raised or model.null_label is None):
        donors = index % len(records["label"])
    else:
        donors = _donors(label, index // max(classes, 1) if spec.label < 0 else index, records["label"])
    if known:
        rows["known"] = records["video"][donors]
    return rows | {name: records[name][donors] for name in borrowed if name in records}


def prompt_numbers(spec: SampleSpec) -> np.ndarray:
    """Which of the prompts each sample shows, int [n]: that of sample k is the same whatever others are drawn."""
    return np.arange(spec.first, spec.first + spec.count) % len(spec.prompts)


def _donors(wanted: np.ndarray, turns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label in `wanted` [n] that one of the rows of `labels` [m] that equal it whose turn it is, int [n]; so
    that a sample that is drawn alone has the donor that it has among others."""
    donors = np.zeros(len(wanted), int)
    for label in np.unique(wanted):
        rows, same = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(rows):
            raise UserError(
                f"samples of class {label} need the embedding of a validation clip of that class, and none of the "
                f"{len(labels)} is: read more by --config.eval.clips=N, or ask for another class by "
                "--config.sample.label=K"
            )
        donors[same] = rows[turns[same] % len(rows)]
    return donors


def distances(
    model: SuperResolution, real: np.ndarray, samples: np.ndarray, protocol: Mapping[str, Any]
) -> list[Score]:
    """PSNR of samples u8 to the clips `real` u8 that were reduced, and of those, enlarged without a network.

    `protocol` describes the clips, and is added to the protocol of each score.
    """
    grids: dict[str, resize.Grid] = {"psnr_bilinear": "half_pixel", "psnr_bicubic": "antialiased_bicubic"}
    one_by_one = np.array_split(real, len(real))
    made = {"psnr": samples} | {
        name: np.concatenate([model.interpolated(clip, grid) for clip in one_by_one]) for name, grid in grids.items()
    }
    facts = {"metric": "psnr", "to": "the clips that were reduced", "low_size": model.low_size, **protocol}
    return [Score(name, psnr(clips, real), None, facts | {"clips": name}) for name, clips in made.items()]


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
    sets = counted(len(generated), "sample"), counted(len(real), "real clip")
    logging.info("scoring %s against %s by %s", *sets, ", ".join(scorers))
    try:
        with ACTIVITY.doing("scoring the samples", announced=True):
            results = [score for scorer in scorers.values() for score in scorer(real, generated)]
    except ValueError as error:
        raise UserError(f"the samples cannot be scored: {error}") from error
    if real.shape[1] > 3 and not any(score.name.endswith("base_frame_gap") for score in results):
        gap, reference = (base_frame_gap(clips, base_frame) for clips in (generated, real))
        results.append(Score("base_frame_gap", gap, reference, {"metric": "base_frame_gap", "base_frame": base_frame}))
    return [dataclasses.replace(s, protocol={**s.protocol, **protocol}) for s in results]
