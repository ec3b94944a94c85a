"""The evaluation job: follows a run, or evaluates one checkpoint of it, during training or afterwards."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

from vf.activity import ACTIVITY
from vf.config.specs import EvaluateSpec, SelfcheckSpec
from vf.files import AnyPath
from vf.hosts.run import Hosts
from vf.jobs import embeddings, memory
from vf.jobs.evaluator import Evaluator
from vf.jobs.results import Results
from vf.jobs.sample import check_weights, describe, untrained_start
from vf.pretrained import i3d
from vf.run import page
from vf.run.recorder import Recorder
from vf.training import sharding
from vf.training.checkpoint import EVALUATING, Checkpoints
from vf.types import Params, UserError


@memory.explained("evaluation")
def run(spec: EvaluateSpec | SelfcheckSpec, workdir: AnyPath, hosts: Hosts) -> dict[str, float]:
    """Evaluates checkpoints in `workdir`, or the initial networks of the spec where there are none.

    Returns the scores of the last one. What is scored already by the same protocol is not scored again. Raises
    UserError where there is nothing to evaluate, no checkpoint of the specified step, or where the run has learned
    something else than the config of this job says.
    """
    if isinstance(spec, SelfcheckSpec):
        print(i3d.selfcheck(spec.file, spec.lineage))
        return {}
    check_weights(spec.run, workdir)
    if (step := hosts.share(_scored(spec, workdir))) is not None:
        scores: dict[str, float] = hosts.share(Results(workdir, spec.run).report(step))
        logging.info(
            "nothing is left to be scored; another --config.sample.seed or --config.sample.count, or other "
            "--config.eval.metrics, would be scored anew"
        )
        if jax.process_index() == 0:
            logging.info("page: %s", page.write(workdir))
        return scores
    # Training may write at the same time, so this job's TensorBoard events have a folder to themselves.
    with Recorder(workdir, is_writer=jax.process_index() == 0, events="tensorboard/evaluate") as recorder:
        hosts.before_end(recorder.flush)
        evaluator = embeddings.evaluator(workdir, recorder, spec.run)
        evaluator.phases.end("import and preparation")
        with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
            return _Job(spec, workdir, hosts, recorder, evaluator, checkpoints).run()


class _Job:
    """An evaluation job with the files that it has opened."""

    def __init__(
        self,
        spec: EvaluateSpec,
        workdir: AnyPath,
        hosts: Hosts,
        recorder: Recorder,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
    ) -> None:
        self.spec, self.workdir, self.hosts = spec, workdir, hosts
        self.recorder, self.evaluator, self.checkpoints = recorder, evaluator, checkpoints
        self.abstract = sharding.abstract_params(spec.run.model.shapes(), spec.run.mesh)
        # The run's config that was compared last, and whether with a checkpoint's facts.
        self.compared = spec.compared, bool(spec.compared)

    def run(self) -> dict[str, float]:
        """Evaluates what the spec says; returns the last scores."""
        which, steps = self.spec.checkpoint, self.checkpoints.steps
        # An empty folder of checkpoints belongs to a training job that has just begun: its first one will come.
        waits = which == "follow" and self.checkpoints.directory.is_dir()
        needs_checkpoint = waits or isinstance(which, int)
        if not needs_checkpoint and (start := untrained_start(self.checkpoints, self.spec.run, self.hosts)):
            describe(self.spec.run, self.workdir, self.recorder)
            with self.evaluator.phases.phase("weights", f"reading the weights of {start.origin.get('from')}"):
                params = start.read(self.abstract)
            return self.evaluate(0, params)
        if which == "follow":
            return self.follow()
        if isinstance(which, int) and which not in steps():
            raise UserError(f"no checkpoint of step {which}: there are {steps()}")
        return self.evaluate_checkpoint(which if isinstance(which, int) else None)

    def follow(self) -> dict[str, float]:
        """Evaluates each checkpoint as it is written; returns the last scores."""
        share, checkpoints = self.hosts.share, self.checkpoints
        if share(not checkpoints.steps() and bool(checkpoints.without_ema())):
            self.evaluate_checkpoint(None)  # raises the error that describes these checkpoints: waiting would not help
        results = self.evaluator.results
        if before := results.scores():
            results.report(max(before))
        # Folder listings and clocks differ a little between hosts, so process 0 decides which step is next.
        done = follow(
            self.steps,
            self.evaluate_checkpoint,
            lambda: set(share(list(results.scores()))),
            last=lambda: share(last_step(self.workdir, self.spec.last)),
            patience=self.spec.patience,
            clock=lambda: share(time.monotonic()),
        )
        if not done and self.recorder.is_writer:
            logging.info("page: %s", page.write(self.workdir))
        evaluated = results.scores()
        return evaluated.get(done[-1] if done else max(evaluated, default=-1), {})

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the same on all hosts."""
        self.compare()
        steps: list[int] = self.hosts.share(self.checkpoints.steps())
        return steps

    def compare(self, step: int = 0) -> None:
        """Compares this job's config with the run's where that is new, or `step` is its first checkpoint.

        A job may begin before the run has a config or a checkpoint. Raises UserError where the two do not fit.
        """
        config: dict[str, Any] = self.hosts.share(run_config(self.workdir))
        if not (config or step) or (config == self.compared[0] and bool(step) <= self.compared[1]):
            return
        classes = self.hosts.share(self.checkpoints.meta(step).get("classes", [])) if step else []
        self.spec.compare(config, step, classes)
        self.compared = config, bool(step)

    def evaluate_checkpoint(self, step: int | None) -> dict[str, float]:
        """Evaluates one checkpoint, the latest where `step` is None.

        Raises FileNotFoundError where training has removed it.
        """
        chosen = self.hosts.share(self.checkpoints.latest()) if step is None else step
        if chosen is not None:  # while it is evaluated, training keeps it
            self.recorder.file(EVALUATING, json.dumps({"step": chosen}))
            if step is not None and not self.hosts.share(step in self.checkpoints.steps()):
                raise FileNotFoundError(f"checkpoint {step}")
        try:
            self.compare(chosen or 0)
            which = self.spec.run.sample.weights
            with self.evaluator.phases.phase("weights", f"reading the weights {which} of step {chosen}"):
                params = self.checkpoints.restore_params(self.abstract, which=which, step=chosen)
        except UserError as error:
            if self.recorder.is_writer:
                (self.workdir / EVALUATING).unlink(missing_ok=True)
            if step is not None and step not in self.checkpoints.steps():
                raise FileNotFoundError(f"checkpoint {step}") from error
            raise
        return self.evaluate(chosen or 0, params)

    def evaluate(self, step: int, params: Params) -> dict[str, float]:
        """Samples with the weights `params` and scores the samples; returns the scores."""
        samples = self.evaluator.sample(step, params)
        self.evaluator.show_real()
        scores = self.evaluator.evaluate(step, params, samples)
        if self.recorder.is_writer:
            (self.workdir / EVALUATING).unlink(missing_ok=True)
            self.recorder.flush()
            logging.info("page: %s", page.write(self.workdir))
        return scores


def _scored(spec: EvaluateSpec, workdir: AnyPath) -> int | None:
    """The step whose scores answer the job, where all that it would score is scored by its protocol; else None."""
    scored = Results(workdir, spec.run).scores()
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        steps, follows = checkpoints.steps(), spec.checkpoint == "follow" and checkpoints.directory.is_dir()
    if follows:
        ended = max(scored, default=-1) >= last_step(workdir, spec.last)
        return max(scored) if ended and scored.keys() >= set(steps) else None
    step = spec.checkpoint if isinstance(spec.checkpoint, int) else max(steps, default=0)
    return step if step in scored else None


def run_config(workdir: AnyPath) -> dict[str, Any]:
    """The config of the run in `workdir`; {} where it has written none yet."""
    try:
        return dict(json.loads((workdir / "config.json").read_text()))
    except FileNotFoundError:
        return {}


def last_step(workdir: AnyPath, default: int) -> int:
    """The step at which the run in `workdir` ends, by its own config; `default` where it has written none yet."""
    config = run_config(workdir)
    return int(config["train"]["steps"]) if config else default


def follow(
    steps: Callable[[], Sequence[int]],
    evaluate: Callable[[int], object],
    evaluated: Callable[[], set[int]],
    *,
    last: Callable[[], int],
    patience: float,
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Evaluates the checkpoints that are there, then each as a run writes it, the newest first, until the last step.

    Args:
        steps: returns the steps of the checkpoints that are complete now.
        evaluate: evaluates one step; may raise FileNotFoundError where the run has removed the checkpoint meanwhile.
        evaluated: returns the steps that this job or another has already evaluated.
        last: returns the final step of the run, which may be started again to train longer.
        patience: seconds without a new checkpoint after which the job ends.
        every: seconds between two calls of `steps`.
        clock, sleep: seconds now, and a pause of so many seconds; replaced in tests.

    Returns:
        The steps that were evaluated by this call, in order.
    """
    done: list[int] = []
    removed: set[int] = set()
    last_found, warned = clock(), False
    while True:
        waiting = sorted(set(steps()) - evaluated() - removed - set(done))
        if waiting:
            step = waiting[-1]
            try:
                evaluate(step)
                done.append(step)
            except FileNotFoundError:
                removed.add(step)
            last_found, warned = clock(), False
        elif max(evaluated() | removed | set(done), default=-1) >= (final := last()):
            return done
        elif (rest := patience - (clock() - last_found)) <= 0:
            logging.warning("no new checkpoint for %.0f s: the evaluation ends", patience)
            return done
        else:
            if not warned:
                logging.warning(
                    "%s: waiting for a new checkpoint, up to step %d, where the run ends, for at most %.0f s; Ctrl-C "
                    "stops the job, which loses no score, and --config.eval.checkpoint=latest scores the latest alone",
                    "every checkpoint so far is scored" if steps() else "there is no checkpoint yet", final, patience,
                )  # fmt: skip
            warned = True
            with ACTIVITY.doing(f"waiting for a new checkpoint, at most {rest:.0f} s more"):
                sleep(min(every, rest))
