"""The training job, told in the order in which it happens.

Restore, then step by step: fetch a batch, update, look at the numbers of the steps before (one behind, so that the
host never waits for the device), now and then save, sample and evaluate. The order within a step has reasons: numbers
are checked before a checkpoint is written, so that a checkpoint always holds finite losses; samples come after the
checkpoint, so that a failure there loses nothing.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from vf import gallery, meter, record, rng, sharding
from vf import state as states
from vf.build import Loading
from vf.checkpoint import Checkpoints
from vf.data import pipeline
from vf.files import AnyPath
from vf.hosts.errors import Stopped
from vf.hosts.run import Hosts
from vf.judge import Judge
from vf.model import Model
from vf.plan import count
from vf.step import batch_loss, train_step
from vf.types import Batch, Params, UserError


def place_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, seed: int, param_dtype: Any = jnp.float32
) -> tuple[Callable[[], states.TrainState], Any]:
    """A function that makes the initial state where it belongs, and the state's shapes with shardings."""

    def create() -> states.TrainState:
        return states.create(model.init(rng.key(seed, rng.Purpose.PARAMETERS)), tx, param_dtype)

    shapes = jax.eval_shape(create)
    where = sharding.shardings(shapes, mesh)
    return jax.jit(create, out_shardings=where), sharding.abstract(shapes, where)


def useful_flops(model: Model, seed: int, params: Params, batch: Batch) -> float:
    """Of a training step over all devices: three times the forward pass's, whatever is computed again."""
    loss = functools.partial(batch_loss, model=model, seed=seed)
    return 3.0 * count.flops(jax.make_jaxpr(loss)(params, batch).jaxpr)


def update_function(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, abstract: Any, *, seed: int, ema_decay: float,
    accumulate: int,
) -> Any:  # fmt: skip
    """The jitted step, (state, batch) -> (state, numbers); the state given is used up."""
    step_fn = functools.partial(
        train_step, model=model, tx=tx, seed=seed, ema_decay=ema_decay, accumulate=accumulate,
        spread=sharding.averaging(mesh),
    )  # fmt: skip
    where = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))


def run(
    *,
    workdir: AnyPath,
    model: Model,
    tx: optax.GradientTransformation,
    learning_rates: Callable[[Any], Mapping[str, Any]],
    source: pipeline.Source,
    mesh: Mesh,
    judge: Judge,
    recorder: record.Recorder,
    seed: int,
    steps: int,
    batch_size: int,
    accumulate: int,
    ema_decay: float,
    param_dtype: Any,
    loading: Loading,
    log_every: int,
    checkpoint_every: int,
    keep: int,
    sample_every: int,
    start: Callable[[Params], Params] | None,
    meta: Mapping[str, Any],
    hosts: Hosts,
    half: bool = False,
    profile: int = 0,
    compile_only: bool = False,
) -> dict[str, float]:
    """Trains to `steps` updates from the latest checkpoint in `workdir`, or from the start; returns the last scores.

    `start` gives networks their first parameters: {network: tree of ShapeDtypeStruct with shardings} -> {network: tree
    of arrays}, of all networks or some; the others, or all where it is None, are drawn.

    half: the networks compute in bfloat16, to whose peak MFU is related. profile: so many steps are traced into
    `workdir`/profile, for xprof. compile_only: nothing is trained.

    Raises UserError for a non-finite loss (the last good checkpoint stays), unreadable data, or a checkpoint of another
    architecture; Stopped when SIGTERM has ended it, after a checkpoint of the step at which all hosts stop.
    """
    phases = meter.Phases()
    phases.end("import and preparation")
    create, abstract = place_state(model, tx, mesh, seed, param_dtype)
    update = update_function(model, tx, mesh, abstract, seed=seed, ema_decay=ema_decay, accumulate=accumulate)

    with Checkpoints(str(workdir / "checkpoints"), keep=keep) as checkpoints:
        first = hosts.share(checkpoints.latest() or 0)
        if first:
            state = checkpoints.restore(abstract, first)
            logging.info("restored step %d", first)
        else:
            state = create()
            if start is not None:
                state = _started(state, start(abstract.ema))
        phases.end("restore" if first else "first state")
        judge.show_real()

        progress = record.Progress(steps, first)
        trace = meter.Trace(workdir / "profile", first, profile if recorder.is_writer else 0)
        pending: list[tuple[int, Mapping[str, jax.Array]]] = []  # numbers still on their way from the device
        with pipeline.batches(
            source,
            seed=seed,
            batch_size=batch_size,
            start=first,
            rows=sharding.my_rows(mesh, batch_size).tolist(),
            flip=loading.flip,
            threads=loading.threads,
            workers=loading.workers,
            read_ahead=loading.read_ahead,
        ) as batches:
            rates, waited, told, since = None, 0.0, first, time.perf_counter()
            if first < steps:
                batch = sharding.put_batch(next(batches), mesh, batch_size)
                phases.end("first batch")
                update = update.lower(state, batch).compile()
                phases.end("compile")
                logging.info("%s", phases)
                recorder.text(first, "start-up", str(phases))
                rates = meter.Meter(mesh, useful_flops(model, seed, abstract.params, batch), batch_size, half)
                waited, since = batches.waited, time.perf_counter()
            if compile_only:
                return {}
            for step in range(first + 1, steps + 1):
                trace.before(step)
                state, numbers = update(state, batch)
                pending.append((step, numbers))
                trace.after(step, numbers)
                if step < steps:  # while the device works
                    batch = sharding.put_batch(next(batches), mesh, batch_size)
                checkpoints.check()
                last = step == steps
                stop = hosts.stopping()
                save = step % checkpoint_every == 0 or last or stop
                if len(pending) > log_every or save:
                    # The newest step is still running: leave it out, unless a checkpoint must know that it is good.
                    ready, pending = (pending, []) if save else (pending[:-1], pending[-1:])
                    means = _fetch(ready)
                    means |= {f"lr_{name}": float(rate) for name, rate in learning_rates(ready[-1][0]).items()}
                    now = time.perf_counter()
                    means["data_wait"] = (batches.waited - waited) / (now - since)  # share of the time
                    means |= rates.read(ready[-1][0] - told) if rates else {}
                    since, waited, told = now, batches.waited, ready[-1][0]
                    recorder.scalars(ready[-1][0], {f"train/{name}": value for name, value in means.items()})
                    progress.update(ready[-1][0], means["loss"], **{"data wait": f"{100 * means['data_wait']:.1f} %"})
                if save:
                    checkpoints.save(step, state, {**meta, "step": step})
                if stop:
                    raise Stopped(f"told to stop; step {step} is saved, and the same command goes on from there")
                if sample_every and step % sample_every == 0 and not last:
                    began = time.perf_counter()
                    hosts.pause(for_good=False)
                    judge.evaluate(step, state.ema, judge.sample(step, state.ema))
                    if recorder.is_writer:
                        recorder.flush()  # the page shows what is in the folder
                        gallery.write(workdir)
                    paused = time.perf_counter() - began
                    since += paused  # no training: it counts in no rate
                    if rates:
                        rates.skip(paused)
            trace.close()
            hosts.pause(for_good=True)
            _report_bad(source, batches.bad, recorder, steps)
        scores = judge.evaluate(steps, state.ema, judge.sample(steps, state.ema))
    if recorder.is_writer:
        recorder.flush()
        logging.info("gallery: %s", gallery.write(workdir))
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


def _started(state: states.TrainState, made: Params) -> states.TrainState:
    """`state` with the networks `made`, as parameters and as averages."""
    old = {name: state.params[name] for name in made}
    # A copy: parameters and average are donated apart.
    new = jax.tree.map(lambda a, p: jnp.array(a, p.dtype, copy=True), made, old)
    return state.replace(params={**state.params, **new}, ema={**state.ema, **made})  # type: ignore[attr-defined]


def _report_bad(source: pipeline.Source, bad: Mapping[int, str], recorder: record.Recorder, step: int) -> None:
    """Names, at the end, every clip that was left out."""
    lost = {**getattr(source, "rejected", {}), **{f"record {number}": why for number, why in bad.items()}}
    if lost:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(lost.items()))
        logging.warning("%d clips were skipped: %s", len(lost), told)
        recorder.text(step, "skipped clips", told)
