"""The sampling job: weights in, clips on disk. Sample k depends on (seed, k) and the weights alone."""

import jax
from absl import logging

from vf.config.specs import RunSpec, Start
from vf.files import AnyPath
from vf.hosts.run import Hosts
from vf.jobs.evaluator import Evaluator
from vf.run import page
from vf.run.recorder import Recorder
from vf.training import sharding
from vf.training.checkpoint import Checkpoints
from vf.types import Params, UserError


def run(spec: RunSpec, workdir: AnyPath, hosts: Hosts) -> dict[str, float]:
    """Samples the latest checkpoint in `workdir`, or else the networks that the spec starts from; returns no scores.

    Raises UserError where there are neither.
    """
    check_weights(spec, workdir)
    abstract = sharding.abstract_params(spec.model.shapes(), spec.mesh)
    with Recorder(workdir, is_writer=jax.process_index() == 0) as recorder:
        evaluator = Evaluator.open(workdir, recorder, spec)
        with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
            params: Params
            if start := start_in_place_of(checkpoints, spec, hosts):
                describe(spec, workdir, recorder)
                step, params = 0, start.read(abstract)
            else:
                latest = hosts.share(checkpoints.latest())
                step, params = latest or 0, checkpoints.restore_params(abstract, spec.sample.weights, latest)
        evaluator.sample(step, params)
        evaluator.show_real()
        if recorder.is_writer:
            recorder.flush()
            logging.info("page: %s", page.write(workdir))
    return {}


def check_weights(spec: RunSpec, workdir: AnyPath) -> None:
    """Raises UserError where there are neither checkpoints nor networks, all that the model has, to start from."""
    folder = workdir / "checkpoints"
    if _whole_start(spec) is None and not folder.is_dir():
        raise UserError(
            f"no checkpoint in {folder}: train first, or give the run's folder as --workdir, or as --config.init_from"
        )


def start_in_place_of(checkpoints: Checkpoints, spec: RunSpec, hosts: Hosts) -> Start | None:
    """What the spec starts from, where that is all networks of the model and no step was trained here; else None."""
    untrained = hosts.share(not checkpoints.steps() and not checkpoints.without_ema())
    return _whole_start(spec) if untrained else None


def describe(spec: RunSpec, workdir: AnyPath, recorder: Recorder) -> None:
    """Writes what is run into the run's folder, unless a training job has described it."""
    if not (workdir / "checkpoints").is_dir():
        begun = {"start": dict(spec.start.origin)} if spec.start else {}
        recorder.describe(spec.config, mesh=spec.mesh, seed=spec.seed, data=dict(spec.data), **begun)


def _whole_start(spec: RunSpec) -> Start | None:
    """What the spec starts from, where that is all networks of the model."""
    start = spec.start
    return start if start is not None and set(start.networks) == set(spec.model.networks) else None
