"""The judge of a run: samples, how well the networks denoise, scores; every number with its protocol."""

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
from vf.files import AnyPath
from vf.metrics.consistency import centre_frame_gap
from vf.metrics.protocol import Evaluator, Score
from vf.model import Model
from vf.step import validation_step
from vf.types import UserError

EVALUATIONS = "evaluations.jsonl"  # one line for each step that was judged: mark, step, scores


@dataclasses.dataclass(frozen=True)
class Judge:
    """Samples and evaluates at one step of a run; used by training and by the sampling and evaluation jobs."""

    workdir: AnyPath
    recorder: record.Recorder
    model: Model
    mesh: Mesh
    job: SampleJob
    evaluators: Mapping[str, Evaluator]
    held: Mapping[str, np.ndarray]  # fixed clips that were not trained on; none where samples alone are asked for
    levels: np.ndarray
    batch_size: int
    class_names: tuple[str, ...]
    data: Mapping[str, Any]  # what the real clips are
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
        given = sample.conditions(self.model, self.job, self.held, len(self.class_names))
        made = sample.clips(self._sample, params, given, self.job.batch_size, self.mesh)
        if self.recorder.is_writer:
            sample.write(self.workdir, step, made, given, self.model, self.job, self.class_names)
            name = "samples" if self.job.what == "clips" else "base samples"
            self.recorder.video(step, name, made[:16], fps=self.job.fps)
        return made

    def evaluate(self, step: int, params: Any, made: np.ndarray) -> dict[str, float]:
        """Validation losses of `params` and scores of the samples `made`, recorded."""
        losses = validation(self._validate, params, self.held, self.levels, self.batch_size, self.mesh)
        self.recorder.scalars(step, losses)
        protocol = {"real": dict(self.data), "n_real": len(self.held["video"]), "n_generated": len(made)}
        protocol |= {"sampling": self.job.protocol()}
        found = scores(self.evaluators, self.held["video"], made, self.model.base_frame, protocol)
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
        """Real clips for the gallery, beside which samples are seen: where there are any, and clips are sampled."""
        if self.recorder.is_writer and self.held and self.job.what == "clips":
            gallery.write_samples(
                self.workdir / "samples" / "real", self.held["video"][: self.job.count],
                centre=self.model.base_frame, fps=self.job.fps, meta=dict(self.data),
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
    held: Mapping[str, np.ndarray],
    levels: np.ndarray,
    batch_size: int,
    mesh: Mesh,
) -> dict[str, float]:
    """Mean error in eps at each noise level over the same clips with the same noise: `eval/eps_base/t500`, ....

    Clips that fill up the last batch do not count.
    """
    count = len(held["index"])
    rows = sharding.my_rows(mesh, batch_size, sharding.EVERY)
    sums: dict[str, float] = {}
    for first in range(0, count, batch_size):
        mine = np.minimum(first + rows, count - 1)
        batch = sharding.put_batch(
            {name: value[mine] for name, value in held.items()}, mesh, batch_size, sharding.EVERY
        )
        for t in levels:
            errors = multihost_utils.process_allgather(validate(params, batch, t), tiled=True)
            for name, error in errors.items():
                total = np.asarray(error, np.float64)[: count - first].sum()
                sums[f"eval/{name}/t{t}"] = sums.get(f"eval/{name}/t{t}", 0.0) + total / count
    return sums
