"""The training job, in the order in which it happens.

Restore, then step by step: fetch a batch, update, look at the numbers of the steps before (one behind, so that the
host never waits for the device), now and then save, sample and evaluate. The order within a step has reasons: numbers
are checked before a checkpoint is written, so that a checkpoint always holds finite losses; samples come after the
checkpoint, so that a failure there loses nothing.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from vf.activity import ACTIVITY
from vf.config.specs import TrainSpec
from vf.data import pipeline
from vf.files import AnyPath
from vf.hosts.errors import Stopped
from vf.hosts.run import Hosts
from vf.jobs import drawing, embeddings, memory, meter
from vf.jobs.evaluator import Evaluator
from vf.jobs.results import Results
from vf.models.model import Model
from vf.models.prior import Prior
from vf.plan import count
from vf.run import page
from vf.run.progress import Progress
from vf.run.recorder import Recorder
from vf.training import programs, sharding, stacks
from vf.training.checkpoint import Checkpoints
from vf.training.step import batch_loss
from vf.types import Batch, Params, UserError, counted


def useful_flops(model: Model, seed: int, params: Params, batch: Batch) -> float:
    """Useful FLOPs of one training step, summed over all devices: three times those of the forward pass.

    What rematerialisation computes again is not counted.
    """
    loss = functools.partial(batch_loss, model=model, seed=seed)
    return 3.0 * count.flops(jax.make_jaxpr(loss)(params, batch).jaxpr)


@memory.explained("training")
def run(
    spec: TrainSpec, workdir: AnyPath, hosts: Hosts, *, profile: int = 0, compile_only: bool = False
) -> dict[str, float]:
    """Trains to `spec.steps` updates, from the latest checkpoint in `workdir` if any; returns the last scores.

    A run that has ended, its last step drawn and scored by these settings, is left as it is.

    Args:
        spec: the job.
        workdir: the run's folder.
        hosts: this process among those of the run.
        profile: number of steps that are traced into `workdir`/profile, for xprof.
        compile_only: whether to end once the training step is compiled.

    Raises UserError for a non-finite loss (the last good checkpoint stays), unreadable data, too little memory, or a
    checkpoint of another architecture; Stopped when SIGTERM has ended it, after a checkpoint of the step at which all
    hosts stop.
    """
    if (ended := hosts.share(_ended(spec, workdir))) is not None:
        logging.info(
            "the run in %s has ended at step %d, whose samples and scores by these settings are there: nothing is left "
            "to do. --config.train.steps=N trains on to a later step N", workdir, ended,
        )  # fmt: skip
        scores: dict[str, float] = hosts.share(Results(workdir, spec.run).report(ended))
        if jax.process_index() == 0:
            logging.info("page: %s", page.write(workdir))
        return scores
    with Recorder(workdir, is_writer=jax.process_index() == 0) as recorder:
        hosts.before_end(recorder.flush)
        evaluator = embeddings.evaluator(workdir, recorder, spec.run)
        _describe(spec, recorder, evaluator)
        evaluator.phases.end("import and preparation")
        return _train(spec, workdir, hosts, recorder, evaluator, profile, compile_only)


def _ended(spec: TrainSpec, workdir: AnyPath) -> int | None:
    """The last step of a run that is trained, drawn and scored to its end as the spec says; None for other runs."""
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        step = checkpoints.latest()
    results = Results(workdir, spec.run)
    ended = step is not None and step >= spec.steps and step in results.scores() and results.is_drawn(step)
    return step if ended else None


def _describe(spec: TrainSpec, recorder: Recorder, evaluator: Evaluator) -> None:
    """Writes config, data, provenance and the table of parameters into the run's folder."""
    run = spec.run
    facts: dict[str, Any] = {"data": dict(run.data), "validation": evaluator.validation.about}
    if run.start is not None:
        facts["start"] = dict(run.start.origin)
    recorder.describe(run.config, mesh=run.mesh, seed=run.seed, **facts)
    table = parameter_overview.get_parameter_overview(run.model.shapes(), include_stats=False)
    for name, text in {**spec.files, "parameters.txt": table}.items():
        recorder.file(name, text)
    logging.info("parameters: %s (table in parameters.txt)", table.splitlines()[-1])


def _train(
    spec: TrainSpec,
    workdir: AnyPath,
    hosts: Hosts,
    recorder: Recorder,
    evaluator: Evaluator,
    profile: int,
    compile_only: bool,
) -> dict[str, float]:
    run, model, mesh, seed = spec.run, spec.run.model, spec.run.mesh, spec.run.seed
    phases = evaluator.phases
    about = {"config": spec.fingerprint, "seed": seed, "classes": list(run.class_names), "fps": run.sample.fps}
    if isinstance(model, Prior):
        about |= {"embedding_dim": model.shape[-1], "text_shape": list(model.text_shape)}
    about |= {"text_encoder": run.text.fingerprint} if run.text else {}
    with phases.phase("first state", "preparing the first state"):
        create, abstract = programs.first_state(model, spec.tx, mesh, seed, spec.param_dtype)
    update = programs.update(model, mesh, abstract, spec.accumulate)
    embeds = model.base_frame if run.embeds else None
    read_texts = programs.text_encoding(run.text, mesh, sharding.ROWS, embeds=embeds)

    def put(rows: Mapping[str, np.ndarray]) -> Batch:
        return read_texts(sharding.put_batch(rows, mesh, spec.batch_size))

    settings = jax.device_put(programs.settings(spec.tx, seed, spec.ema_decay), sharding.replicated(mesh))

    def due(step: int) -> bool:
        """Whether samples are drawn and scored after a step within the training."""
        return bool(spec.sample_every) and step % spec.sample_every == 0 and step < spec.steps

    with Checkpoints(str(workdir / "checkpoints"), keep=spec.keep) as checkpoints, ACTIVITY.doing("preparing") as task:
        hosts.before_end(checkpoints.settle)
        first = hosts.share(checkpoints.latest() or 0)
        if first:
            with phases.phase("restore", f"restoring step {first}"):
                state = checkpoints.restore(abstract, first)
            logging.info("restored step %d", first)
            if first >= spec.steps and not compile_only:
                logging.info("it is the last one; its samples and scores by these settings are missing, and made now")
        else:
            if recorder.is_writer:
                drawing.forget(workdir)
            with phases.phase(
                "first state", "drawing the first parameters" if run.start is None else "reading weights"
            ):
                state = create(None if run.start is None else run.start.read(stacks.unstack(abstract.ema)))
        evaluator.show_real()

        trace = meter.Trace(workdir / "profile", first, profile if recorder.is_writer else 0)
        pending: list[tuple[int, Mapping[str, jax.Array]]] = []  # numbers still on their way from the device
        with pipeline.batches(
            spec.source,
            seed=seed,
            batch_size=spec.batch_size,
            start=first,
            rows=sharding.my_rows(mesh, spec.batch_size).tolist(),
            flip=spec.loading.flip,
            threads=spec.loading.threads,
            workers=spec.loading.workers,
            read_ahead=spec.loading.read_ahead,
        ) as batches:
            rates, waited, reported, since = None, 0.0, first, time.perf_counter()
            if first < spec.steps:
                with phases.phase("first batch", "reading the first batch"):
                    batch = put(next(batches))
                with phases.phase("lower", "tracing the training step"):
                    lowered = update.lower(state, batch, settings)
                with phases.phase("compile", "compiling the training step"):
                    update = lowered.compile()
                with phases.phase("count operations", "counting its operations"):
                    flops = useful_flops(model, seed, stacks.unstack(abstract.params), batch)
                recorder.scalars(first, phases.take("the first step"))
                rates = meter.Meter(mesh, flops, spec.batch_size, spec.half)
                waited, since = batches.waited, time.perf_counter()
            if compile_only:
                if first < spec.steps:
                    lines, arrays = lowered.as_text().count("\n"), len(jax.tree.leaves(state))
                    logging.info("the step: %d lines of StableHLO, a state of %d arrays", lines, arrays)
                return {}
            # A stop may have come in between; process 0 knows, whose files all others see a little later.
            if first and due(first) and hosts.share(first not in evaluator.results.scores()):
                evaluator.evaluate(first, state.ema, evaluator.sample(first, state.ema))
                waited, since = batches.waited, time.perf_counter()
                rates = rates and meter.Meter(mesh, flops, spec.batch_size, spec.half)
            progress = Progress(spec.steps, first)
            for step in range(first + 1, spec.steps + 1):
                task.begin(f"training step {step} of {spec.steps}")
                trace.before(step)
                state, numbers = update(state, batch, settings)
                pending.append((step, numbers))
                trace.after(step, numbers)
                if step < spec.steps:  # while the device works
                    batch = put(next(batches))
                if len(pending) > 1:  # one step runs and one waits: the device is never idle, and a signal soon heard
                    jax.block_until_ready(pending[-2][1])
                checkpoints.check()
                last = step == spec.steps
                stop = hosts.stopping()
                sample = due(step)
                save = step % spec.checkpoint_every == 0 or last or sample or bool(stop)
                if save or (len(pending) > 1 and (step - 1) % spec.log_every == 0):
                    # The newest step is still running: leave it out, unless a checkpoint must know that it is good.
                    ready, pending = (pending, []) if save else (pending[:-1], pending[-1:])
                    means = _fetch(ready)
                    means |= {f"lr_{name}": float(rate) for name, rate in spec.tx.learning_rates(ready[-1][0]).items()}
                    now = time.perf_counter()
                    means["data_wait"] = (batches.waited - waited) / (now - since)  # share of the time
                    means |= rates.read(ready[-1][0] - reported) if rates else {}
                    since, waited, reported = now, batches.waited, ready[-1][0]
                    recorder.scalars(ready[-1][0], {f"train/{name}": value for name, value in means.items()})
                    progress.update(
                        ready[-1][0], loss=means["loss"], **{"data wait": f"{100 * means['data_wait']:.1f} %"}
                    )
                if save:
                    checkpoints.save(step, state, {**about, "step": step})
                if stop:
                    text = f"stopped by a signal; step {step} is saved, and the same command goes on from there"
                    raise Stopped(text, stop)
                if sample:
                    began = time.perf_counter()
                    hosts.pause(for_good=False)
                    evaluator.evaluate(step, state.ema, evaluator.sample(step, state.ema))
                    if recorder.is_writer:
                        recorder.flush()  # the page shows what is in the folder
                        page.write(workdir)
                    paused = time.perf_counter() - began
                    since += paused  # rates are those of training alone
                    if rates:
                        rates.skip(paused)
            trace.close()
            hosts.pause(for_good=True)
            last = max(first, spec.steps)
            _report_bad(spec.source, batches.bad, recorder, last)
        scores = evaluator.evaluate(last, state.ema, evaluator.sample(last, state.ema))
    if recorder.is_writer:
        recorder.flush()
        logging.info("page: %s", page.write(workdir))
    return scores


def _fetch(ready: list[tuple[int, Mapping[str, jax.Array]]]) -> dict[str, float]:
    """Means over steps. Raises UserError that names the first step whose loss or gradient is not finite."""
    numbers = jax.device_get([values for _, values in ready])
    for (step, _), values in zip(ready, numbers, strict=True):
        if broken := [name for name, value in values.items() if not np.isfinite(value)]:
            raise UserError(
                f"{broken[0]} is {values[broken[0]]} at step {step}: the run stops and keeps its last checkpoint; "
                "lower the learning rate, lengthen the warm-up, or clip gradients harder"
            )
    return {name: float(np.mean([values[name] for values in numbers])) for name in numbers[0]}


def _report_bad(source: pipeline.Source, bad: Mapping[int, str], recorder: Recorder, step: int) -> None:
    """Reports every clip that was left out, in the log and in the run's folder."""
    lost = {**getattr(source, "rejected", {}), **{f"record {number}": why for number, why in bad.items()}}
    if lost:
        names = "; ".join(f"{name}: {why}" for name, why in sorted(lost.items()))
        logging.warning("%s skipped: %s", counted(len(lost), "clip"), names)
        recorder.text(step, "skipped clips", names)
