"""What a run's folder holds of a job's results: drawings and scores made under the same protocol, by whatever job."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from vf import files
from vf.config.specs import RunSpec
from vf.files import AnyPath
from vf.metrics.protocol import to_json
from vf.models.prior import Prior
from vf.run import media, score_table

EVALUATIONS = "evaluations.jsonl"  # one line for each step that was evaluated: fingerprint, step, start at 0, scores


@dataclasses.dataclass(frozen=True)
class Results:
    """The drawings and scores in a run's folder that a job with these settings would make again.

    Attributes:
        workdir: the run's folder.
        spec: how to sample and evaluate.
    """

    workdir: AnyPath
    spec: RunSpec

    @property
    def sampling(self) -> dict[str, Any]:
        """Everything that changes the samples except the weights, ready for JSON."""
        validation, made = self.spec.evaluation.validation, self.spec.sample.protocol()
        if self.spec.guide:
            made |= {"guide": to_json(self.spec.guide.origin)}
        if self.spec.prior:
            made |= {"prior": to_json(self.spec.prior.protocol())}
        if self.spec.text:
            made |= {"text_encoder": self.spec.text.fingerprint}
        if validation is None:
            return made
        clips = {"set": self.part, **validation.describe()}
        if self.spec.sample.options.known:
            made |= {"known_clips": {"read": self.spec.evaluation.clips, **clips}}
        if self.spec.text and not self.spec.sample.prompts:
            made |= {"captions_of": clips}
        donated = self.spec.model.embedding_dim and not self.spec.prior
        return made | ({"embeddings_of": clips} if donated else {})

    @property
    def part(self) -> str:
        """The prefix of the names of numbers on the validation clips."""
        return "seen" if self.spec.evaluation.seen else "validation"

    def start(self, step: int) -> dict[str, Any]:
        """{"start": where the weights of a step come from}, ready for JSON; {} where the step itself says which.

        At step 0 they are those from which the run begins, which may be others in the next job."""
        return {"start": to_json(self.spec.start.origin)} if self.spec.start and not step else {}

    def drawing(self, step: int) -> AnyPath:
        """Where the samples of a step lie."""
        sample, facts = self.spec.sample, self.sampling | self.start(step)
        folder = media.drawing_folder(self.workdir, step, sample.what, sample.count, facts)
        # Embeddings lie apart from pictures, of which the page is.
        return self.workdir / "embeddings" / folder.name if isinstance(self.spec.model, Prior) else folder

    def is_drawn(self, step: int) -> bool:
        """Whether the samples of a step are there, whole."""
        return (self.drawing(step) / "meta.json").is_file()  # written last

    def scores(self) -> dict[int, dict[str, float]]:
        """{step: scores} of every step that was evaluated under the same protocol, the latest scores of each step.

        Incomplete lines are left out."""
        lines, rest = files.read_lines(self.workdir / EVALUATIONS)
        found: dict[int, dict[str, float]] = {}
        for text in [*lines, *rest]:
            try:
                line = json.loads(text)
                step = int(line["step"])
                if (line["fingerprint"], line.get("start")) == (
                    self.spec.evaluation.fingerprint, self.start(step).get("start")
                ):  # fmt: skip
                    found[step] = line["scores"]
            except (ValueError, TypeError, KeyError):
                continue
        return found

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of one step, for `scores` of this job and of others."""
        # A whole line in one write, so that another job that evaluates this run reads all of it or none.
        line = {"fingerprint": self.spec.evaluation.fingerprint, "step": step, **self.start(step), "scores": scores}
        files.append_line(self.workdir / EVALUATIONS, json.dumps(to_json(line)))

    def report(self, step: int) -> dict[str, float]:
        """Logs the scores of a step as the job that made them did; returns them."""
        found = self.scores()
        scores = found.get(step, {})  # a disk that lags behind may show other hosts less
        table = score_table.table(score_table.recorded(self.workdir, step, scores))
        logging.info("scored before, by the same protocol: steps %s; at step %d:\n%s", sorted(found), step, table)
        return scores
