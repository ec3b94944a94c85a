"""Evaluates a prior: samples are embeddings, of which there are no pictures, and are scored in closed form."""

import functools
import io
import json
from typing import Any

import numpy as np
from absl import logging

from vf import files, rng
from vf.activity import ACTIVITY
from vf.config.specs import RunSpec
from vf.files import AnyPath
from vf.jobs import memory
from vf.jobs.evaluator import Evaluator
from vf.metrics.protocol import to_json
from vf.models.prior import Prior
from vf.run import score_table
from vf.run.recorder import Recorder
from vf.scores import embeddings
from vf.training import programs
from vf.types import UserError

FILE = "embeddings.npz"


def evaluator(workdir: AnyPath, recorder: Recorder, spec: RunSpec) -> Evaluator:
    """What evaluates the model of `spec`. Raises UserError as `Evaluator.open`."""
    kind = EmbeddingEvaluator if isinstance(spec.model, Prior) else Evaluator
    return kind.open(workdir, recorder, spec)


class EmbeddingEvaluator(Evaluator):
    """Samples embeddings, writes them into the run's folder, and compares them with those of the validation clips."""

    @functools.cached_property
    def _program(self) -> Any:
        assert isinstance(self.spec.model, Prior)
        made = programs.embeddings(self.spec.model, self.spec.mesh, self.spec.sample.options)
        program, seed = self.phases.compiled(made, "sampling"), rng.as_argument(self.spec.sample.seed)
        read_texts = self._read_texts
        return lambda params, batch: program(params, read_texts(batch), seed)

    @ACTIVITY.doing("drawing the embeddings, or writing them")
    @memory.explained("sampling")
    def sample(self, step: int, params: Any, *, whole: bool = True) -> np.ndarray:
        """Embeddings with the weights `params`, f32 [n d], on every host; writes them, with labels and facts."""
        sample, params = self.spec.sample, {**params, **self._guide}
        logging.info("drawing %d embeddings, %d at a time", sample.count, min(sample.count, sample.batch_size))
        rows = {name: self.conditions[name] for name in ("index", "label", "tokens") if name in self.conditions}
        drawn: np.ndarray = programs.in_batches(
            functools.partial(self._program, params), rows, sample.batch_size, self.spec.mesh
        )
        self._record_phases(step, "the embeddings")
        if self.recorder.is_writer:
            folder = self.results.drawing(step)
            folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            labels: dict[str, Any] = {} if self._labels is None else {"label": rows["label"]}
            labels |= {"tokens": rows["tokens"]} if "tokens" in rows else {}
            np.savez(buffer, embedding=drawn, index=rows["index"], **labels)
            files.write_whole(folder / FILE, buffer.getvalue())
            facts = {"step": step, "count": len(drawn), **self.results.sampling, **self.results.start(step)}
            facts |= {"class_names": list(self.spec.class_names)} if "label" in labels else {}
            files.write_whole(folder / "meta.json", json.dumps(to_json(facts), indent=1))  # last: then it is whole
            place = folder.relative_to(self.workdir).as_posix()
            self.recorder.text(step, "samples", f"{place}/{FILE}: {len(drawn)} embeddings, which have no pictures")
            logging.info("embeddings: %s", folder / FILE)
        return drawn

    @memory.explained("evaluation")
    def evaluate(self, step: int, params: Any, samples: np.ndarray) -> dict[str, float]:
        """Validation losses of `params`, and scores of the embeddings `samples`, recorded."""
        self._record_losses(step, params)
        real = self.validation.clips
        labels = None if self._labels is None else (real["label"], np.asarray(self._labels))
        try:
            found = embeddings.scores(real["embedding"], samples, labels)
        except ValueError as error:
            raise UserError(f"the embeddings cannot be scored: {error}") from error
        about = {"validation_set": dict(self.validation.about), "sampling": self.results.sampling}
        for score in found:
            self.recorder.score(step, score.name, score.value, {**score.protocol, **about}, reference=score.reference)
        logging.info("scores of step %d:\n%s", step, score_table.table(found))
        values = {score.name: score.value for score in found}
        if self.recorder.is_writer:
            self.results.add(step, values)
            self._write_best()
        return values

    def show_real(self) -> None:
        """Nothing: embeddings have no pictures."""
