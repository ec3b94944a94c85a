"""The sampling job: reads weights and writes clips. Sample k depends on (seed, k) and the weights alone."""

import jax
from absl import logging

from vf.config.specs import RunSpec, Start
from vf.files import AnyPath
from vf.hosts.run import Hosts
from vf.jobs import embeddings, memory
from vf.models.prior import Prior
from vf.run import page
from vf.run.recorder import Recorder
from vf.training import sharding
from vf.training.checkpoint import Checkpoints
from vf.types import Params, UserError, counted


@memory.explained("sampling")
def run(spec: RunSpec, workdir: AnyPath, hosts: Hosts) -> dict[str, float]:
    """Samples with the latest checkpoint in `workdir`, or the initial networks of the spec where there is none.

    Returns {}: no scores. Raises UserError where there are neither.
    """
    check_weights(spec, workdir)
    abstract = sharding.abstract_params(spec.model.shapes(), spec.mesh)
    with Recorder(workdir, is_writer=jax.process_index() == 0) as recorder:
        hosts.before_end(recorder.flush)
        evaluator = embeddings.evaluator(workdir, recorder, spec)
        evaluator.phases.end("import and preparation")
        with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
            params: Params
            if start := untrained_start(checkpoints, spec, hosts):
                describe(spec, workdir, recorder)
                with evaluator.phases.phase("weights", f"reading the weights of {start.origin.get('from')}"):
                    step, params = 0, start.read(abstract)
            else:
                latest, which = hosts.share(checkpoints.latest()), spec.sample.weights
                with evaluator.phases.phase("weights", f"reading the weights {which} of step {latest}"):
                    step, params = latest or 0, checkpoints.restore_params(abstract, which, latest)
        weights = f"those of {start.origin['from']}" if start else f"{spec.sample.weights} of step {step} in {workdir}"
        images = spec.sample.what == "base"
        noun = "embedding" if isinstance(spec.model, Prior) else "image" if images else "clip"
        what = counted(spec.sample.count, noun) + " of the base generator" * images
        logging.info("sampling %s, seed %d; weights: %s", what, spec.sample.seed, weights)
        evaluator.sample(step, params, whole=False)
        evaluator.show_real()
        if recorder.is_writer:
            recorder.flush()
            logging.info("page: %s", page.write(workdir))
    return {}


def check_weights(spec: RunSpec, workdir: AnyPath) -> None:
    """Raises UserError where there are no checkpoints, and `spec.start` does not give all networks of the model."""
    folder = workdir / "checkpoints"
    if _whole_start(spec) is None and not folder.is_dir():
        raise UserError(
            f"no checkpoint in {folder}: train first, or give the run's folder as --workdir, or as --config.init_from"
        )


def untrained_start(checkpoints: Checkpoints, spec: RunSpec, hosts: Hosts) -> Start | None:
    """`spec.start` where it gives all networks of the model and this run has trained no step; else None."""
    untrained = hosts.share(not checkpoints.steps() and not checkpoints.without_ema())
    return _whole_start(spec) if untrained else None


def describe(spec: RunSpec, workdir: AnyPath, recorder: Recorder) -> None:
    """Writes config and provenance into the run's folder, unless a training job has done so."""
    if not (workdir / "checkpoints").is_dir():
        facts = {"start": dict(spec.start.origin)} if spec.start else {}
        recorder.describe(spec.config, mesh=spec.mesh, seed=spec.seed, data=dict(spec.data), **facts)


def _whole_start(spec: RunSpec) -> Start | None:
    """`spec.start` where it gives all networks of the model; else None."""
    start = spec.start
    return start if start is not None and set(start.networks) == set(spec.model.networks) else None
