"""The evaluation job: follows a run, or looks at one checkpoint of it, beside training or after."""

import json
import time
from collections.abc import Callable, Sequence

import jax
from absl import logging

from vf.config.specs import EvaluateSpec, SelfcheckSpec
from vf.files import AnyPath
from vf.hosts.run import Hosts
from vf.jobs.evaluator import Evaluator
from vf.jobs.sample import check_weights, describe, start_in_place_of
from vf.pretrained import i3d
from vf.run import page
from vf.run.recorder import Recorder
from vf.training import sharding
from vf.training.checkpoint import JUDGING, Checkpoints
from vf.types import Params, UserError


def run(spec: EvaluateSpec | SelfcheckSpec, workdir: AnyPath, hosts: Hosts) -> dict[str, float]:
    """Evaluates checkpoints in `workdir`, or else the networks that the spec starts from; returns the last scores.

    Raises UserError where there are neither, or no checkpoint of the step that is asked for.
    """
    if isinstance(spec, SelfcheckSpec):
        print(i3d.selfcheck(spec.file, spec.lineage))
        return {}
    check_weights(spec.run, workdir)
    # It may run beside training: it draws its own curves.
    with Recorder(workdir, is_writer=jax.process_index() == 0, events="tensorboard/evaluate") as recorder:
        evaluator = Evaluator.open(workdir, recorder, spec.run)
        with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
            return _Job(spec, workdir, hosts, recorder, evaluator, checkpoints).run()


class _Job:
    """An evaluation job with all that it has opened."""

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

    def run(self) -> dict[str, float]:
        """The last scores."""
        wanted, steps = self.spec.checkpoint, self.checkpoints.steps
        # A folder without checkpoints is that of a training job that has just begun: it is worth waiting for.
        waits = wanted == "follow" and self.checkpoints.directory.is_dir()
        asked = waits or isinstance(wanted, int)
        if not asked and (start := start_in_place_of(self.checkpoints, self.spec.run, self.hosts)):
            describe(self.spec.run, self.workdir, self.recorder)
            return self.evaluate(0, start.read(self.abstract))
        if wanted == "follow":
            return self.follow()
        if isinstance(wanted, int) and wanted not in steps():
            raise UserError(f"no checkpoint of step {wanted}: there are {steps()}")
        return self.evaluate_checkpoint(wanted if isinstance(wanted, int) else None)

    def follow(self) -> dict[str, float]:
        """Each checkpoint as it is written."""
        share, checkpoints = self.hosts.share, self.checkpoints
        if share(not checkpoints.steps() and bool(checkpoints.without_ema())):
            self.evaluate_checkpoint(None)  # says what is wrong, where waiting would not help
        # Hosts see a folder and a clock a little differently: what process 0 sees decides which step is next.
        done = follow(
            lambda: share(checkpoints.steps()),
            self.evaluate_checkpoint,
            lambda: set(share(list(self.evaluator.evaluated()))),
            last=self.spec.last,
            patience=self.spec.patience,
            clock=lambda: share(time.monotonic()),
        )
        evaluated = self.evaluator.evaluated()
        return evaluated.get(done[-1] if done else max(evaluated, default=-1), {})

    def evaluate_checkpoint(self, step: int | None) -> dict[str, float]:
        """One checkpoint, the latest where `step` is None. Raises FileNotFoundError where training has removed it."""
        at = self.hosts.share(self.checkpoints.latest()) if step is None else step
        if at is not None:  # while it is evaluated, training keeps it
            self.recorder.file(JUDGING, json.dumps({"step": at}))
            if step is not None and not self.hosts.share(step in self.checkpoints.steps()):
                raise FileNotFoundError(f"checkpoint {step}")
        try:
            params = self.checkpoints.restore_params(self.abstract, which=self.spec.run.sample.weights, step=at)
        except UserError as error:
            if step is not None and step not in self.checkpoints.steps():
                raise FileNotFoundError(f"checkpoint {step}") from error
            raise
        return self.evaluate(at or 0, params)

    def evaluate(self, step: int, params: Params) -> dict[str, float]:
        """Samples and scores of `params`."""
        made = self.evaluator.sample(step, params)
        self.evaluator.show_real()
        scores = self.evaluator.evaluate(step, params, made)
        for name, value in scores.items():
            logging.info("step %d, %s: %.4g", step, name, value)
        if self.recorder.is_writer:
            (self.workdir / JUDGING).unlink(missing_ok=True)
            self.recorder.flush()
            logging.info("page: %s", page.write(self.workdir))
        return scores


def follow(
    steps: Callable[[], Sequence[int]],
    evaluate: Callable[[int], object],
    evaluated: Callable[[], set[int]],
    *,
    last: int,
    patience: float,
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Evaluates checkpoints as a run writes them, the newest first, until step `last` is evaluated.

    Args:
        steps: the complete checkpoints now.
        evaluate: evaluates one step; FileNotFoundError where the run has removed it meanwhile, which is no error.
        evaluated: steps that were evaluated already, by this job or another.
        last: final step of the run.
        patience: seconds without a new checkpoint after which the job ends.
        every: seconds between two looks.
        clock, sleep: for tests.

    Returns:
        The steps evaluated here, in order.
    """
    done: list[int] = []
    gone: set[int] = set()
    since, warned = clock(), False
    while True:
        waiting = sorted(set(steps()) - evaluated() - gone - set(done))
        if waiting:
            step = waiting[-1]
            try:
                evaluate(step)
                done.append(step)
            except FileNotFoundError:
                gone.add(step)
            since, warned = clock(), False
        elif last in evaluated() | gone | set(done):
            return done
        elif clock() - since > patience:
            logging.warning("no new checkpoint for %.0f s: the evaluation ends", patience)
            return done
        else:
            if not warned:
                logging.warning("waiting for a new checkpoint, up to step %d, for at most %.0f s", last, patience)
            warned = True
            sleep(every)
