"""The only entry: `python -m vf.main --config=configs/demo.py --workdir=runs/demo --mode=train|sample|evaluate`.

Fields of the config are overridden as `--config.train.batch_size=8`; a variant is named as `configs/ucf101.py:smoke`.
Bad input ends the program with one sentence and exit status 2; SIGTERM saves the step that trains, status 143.

On several hosts, or in several processes, every one gets the same command. Clusters that jax knows are found; elsewhere
each process is told who it is: `--coordinator=HOST:PORT --processes=N --process=I` (see `vf.hosts`).
"""

import contextlib
import difflib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vf import build, evaluate, files, gallery, record, sharding, train
from vf.checkpoint import JUDGING, Checkpoints
from vf.data import pipeline
from vf.hosts.errors import HostsError, Stopped, exit_status
from vf.hosts.process import this_process
from vf.hosts.run import Hosts
from vf.judge import Judge
from vf.model import Model
from vf.plan import job as planning
from vf.plan.chips import parse_target
from vf.pretrained import base as pretrained
from vf.types import Params, UserError

MODES = ("train", "sample", "evaluate", "plan")
NAMES = (
    "config", "workdir", "mode", "coordinator", "processes", "process", "startup_timeout", "heartbeat_timeout",
    "compile_cache", "compile_only", "profile",
)  # fmt: skip
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The config, as configs/NAME.py or configs/NAME.py:VARIANT.")
flags.DEFINE_string("workdir", None, "The run's folder: everything is written there, and resumed from there.")
flags.DEFINE_enum("mode", "train", MODES, "What to do.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for processes that no cluster tells who they are.")
flags.DEFINE_integer("processes", None, "How many processes there are; 1 is alone, whatever the cluster says.")
flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
flags.DEFINE_string(
    "compile_cache", "~/.cache/vf/xla", "Folder of compiled programs, best one that all share; '' = none."
)
flags.DEFINE_bool("compile_only", False, "Compile the training step, so that later starts find it, and end.")
flags.DEFINE_integer("profile", 0, "Trace so many steps for xprof, into the run's folder.", lower_bound=0)
flags.DEFINE_float("startup_timeout", 300.0, "Seconds in which all processes must have come.", lower_bound=1)
flags.DEFINE_float("heartbeat_timeout", 30.0, "Seconds of silence after which a host counts as dead.", lower_bound=10)


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean ...?" with the known word nearest to `word`, or the list of all where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def parse(argv: list[str]) -> list[str]:
    """absl's parsing, with typing errors answered by the nearest known name. Raises UserError."""
    for word in argv:
        path = word.removeprefix("--config=").split(":")[0]
        if word.startswith("--config=") and not Path(path).is_file():
            found = [str(p) for p in Path("configs").glob("*.py") if p.stem != "__init__"]
            raise UserError(f"no config at {path}: {nearest(path, found)}")
    try:
        rest = FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UserError(str(error).split("\n")[0]) from error
    except AttributeError as error:
        raise UserError(_unknown_field(argv) or str(error)) from error
    if rest[1:]:
        word = rest[1].split("=")[0].lstrip("-")
        raise UserError(f"unknown argument {rest[1]}: {nearest(word, NAMES)}")
    for name in ("config", "workdir"):
        if getattr(FLAGS, name) is None:
            raise UserError(f"--{name} is missing; try --config=configs/demo.py --workdir=runs/demo")
    return rest


def _unknown_field(argv: list[str]) -> str | None:
    """Which --config.FIELD is unknown, and what it may have meant."""
    name = next((word.split("=", 1)[1] for word in argv if word.startswith("--config=")), None)
    if name is None:
        return None
    config = config_flags.config_flags._ConfigFileParser("config").parse(name)
    known = set(_fields(config))
    for word in argv:
        field = word.removeprefix("--config.").split("=")[0]
        if word.startswith("--config.") and field not in known:
            return f"unknown field --config.{field}: {nearest(field, known)}"
    return None


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in config.items()
        for name in (_fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"])
    ]


def run(
    config: ConfigDict, workdir: files.AnyPath, mode: str, hosts: Hosts | None = None, **training: Any
) -> dict[str, float]:
    """One job. Returns the last scores (none for mode sample). Raises UserError, and Stopped as `train.run` does.

    hosts: this process among those of the run, which have come together; default alone.
    training: `profile` and `compile_only` of `train.run`."""
    with contextlib.ExitStack() as closing:
        return _run(config, workdir, mode, closing, hosts or Hosts(), training)


def _run(
    config: ConfigDict,
    workdir: files.AnyPath,
    mode: str,
    closing: contextlib.ExitStack,
    hosts: Hosts,
    training: Mapping[str, Any],
) -> dict[str, float]:
    build.check(config)
    if mode == "plan":
        settings = planning.Settings(**build.plan_settings(config))
        target = parse_target(config.plan.target)
        planning.run(functools.partial(build.planned, config), target, settings, build.plan_mark(config), workdir)
        return {}
    images = config.sample.what == "base"
    if images and mode != "sample":
        raise UserError(f"sample.what=base is for --mode=sample, and this is --mode={mode}: leave it at clips")
    if config.data.source == "none" and mode != "sample":
        raise UserError(f"data.source=none is for --mode=sample, and this is --mode={mode}: name the data")
    folder = workdir / "checkpoints"
    with Checkpoints(str(folder), read_only=True) as checkpoints:
        fresh = hosts.share(checkpoints.latest() is None)
    config = build.resolved(config, workdir, fresh)
    model: Model
    source: pipeline.Source
    elsewhere = config.init_from or config.base.init_from
    mesh = build.mesh(config, "" if mode == "evaluate" and config.eval.selfcheck else mode)
    own = images and fresh and bool(config.base.pretrained) and not elsewhere
    if own:  # the file's network as it is, with its own classes, to see that it was read right
        model, source = build.file_model(config, mesh)
    else:
        source = build.source(config)
        model = build.image_model(config, source, mesh) if images else build.model(config, source, mesh)
    if mode == "evaluate" and config.eval.selfcheck:
        return build.selfcheck(config)
    start = None
    if fresh:
        start = build.start(config, model.networks, source.class_names, own=own, trains=mode == "train")
    # An evaluation job may run beside training: it draws its own curves.
    events = "tensorboard/evaluate" if mode == "evaluate" else "tensorboard"
    recorder = closing.enter_context(record.Recorder(workdir, is_writer=jax.process_index() == 0, events=events))
    origin = {"start": start.origin} if start else {}
    judged = source if own else build.source(config, evaluation=True)
    # Samples alone can do without clips, and images of the base without reading them.
    needed = mode != "sample" or (len(judged) and (not images or model.embedding_dim))
    held = pipeline.fixed_clips(judged, config.eval.clips, seed=config.seed) if needed else {}
    job, evaluation = build.sample_job(config), build.evaluation_job(config)
    judge = Judge(
        workdir=workdir,
        recorder=recorder,
        model=model,
        mesh=mesh,
        job=job,
        evaluators={} if mode == "sample" else build.evaluators(config),
        held=held,
        levels=build.levels(config),
        batch_size=config.eval.batch_size,
        class_names=source.class_names,
        data=judged.describe(),
        seed=config.seed,
        mark=evaluation.mark,
        best=evaluation.best,
        lowest=evaluation.lowest,
    )
    tx, learning_rates = build.optimizer(config)
    if mode == "train":
        recorder.describe(build.plain(config), mesh=mesh, seed=config.seed, data=source.describe(), **origin)
        if file := build.pretrained_base(config):
            recorder.file(pretrained.HEADER, pretrained.remembered(file))
        table = overview(model)
        recorder.file("parameters.txt", table)
        logging.info("parameters: %s (table in parameters.txt)", table.splitlines()[-1])
        return train.run(
            workdir=workdir,
            model=model,
            tx=tx,
            learning_rates=learning_rates,
            source=source,
            mesh=mesh,
            judge=judge,
            recorder=recorder,
            seed=config.seed,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            accumulate=config.train.accumulate,
            ema_decay=config.train.ema_decay,
            param_dtype=build.param_dtype(config),
            half=config.model.dtype == "bfloat16",
            loading=build.loading(config),
            log_every=config.train.log_every,
            checkpoint_every=config.train.checkpoint_every,
            keep=config.train.keep,
            sample_every=config.train.sample_every,
            start=start.read if start else None,
            meta={"config": build.fingerprint(config), "seed": config.seed, "classes": list(source.class_names)},
            hosts=hosts,
            **training,
        )

    whole = start is not None and set(start.networks) == set(model.networks)
    if not whole and not folder.is_dir():
        raise UserError(
            f"no checkpoint in {folder}: train first, or give the run's folder as --workdir, or as --config.init_from"
        )
    shapes = build.shapes(model)
    abstract = sharding.abstract(shapes, sharding.shardings(shapes, mesh))
    scores: dict[str, float] = {}

    def show(step: int, params: Params) -> None:
        """Samples, and scores where they are asked for."""
        made = judge.sample(step, params)
        judge.show_real()
        if mode == "evaluate":
            scores.update(judge.evaluate(step, params, made))
            for name, value in scores.items():
                logging.info("step %d, %s: %.4g", step, name, value)
            if recorder.is_writer:
                (workdir / JUDGING).unlink(missing_ok=True)
        if recorder.is_writer:
            recorder.flush()
            logging.info("gallery: %s", gallery.write(workdir))

    with Checkpoints(str(folder), read_only=True) as checkpoints:

        def look(step: int | None) -> None:
            """One checkpoint."""
            at = hosts.share(checkpoints.latest()) if step is None else step
            if mode == "evaluate" and at is not None:  # while it is judged, training keeps it
                recorder.file(JUDGING, json.dumps({"step": at}))
                if step is not None and not hosts.share(step in checkpoints.steps()):
                    raise FileNotFoundError(f"checkpoint {step}")
            try:
                params = checkpoints.restore_params(abstract, which=job.weights, step=at)
            except UserError as error:
                if step is not None and step not in checkpoints.steps():
                    raise FileNotFoundError(f"checkpoint {step}") from error
                raise
            show(at or 0, params)

        follow = mode == "evaluate" and evaluation.checkpoint == "follow"
        # A folder without checkpoints is that of a training job that has just begun: it is worth waiting for.
        waiting = follow and folder.is_dir()
        untrained = hosts.share(not checkpoints.steps() and not checkpoints.without_ema())
        if start and whole and untrained and not waiting and not isinstance(evaluation.checkpoint, int):
            if not folder.is_dir():  # else a training job has described it
                recorder.describe(build.plain(config), mesh=mesh, seed=config.seed, data=source.describe(), **origin)
            show(0, start.read(abstract))
            return scores
        if follow:
            if hosts.share(not checkpoints.steps() and bool(checkpoints.without_ema())):
                look(None)  # says what is wrong, where waiting would not help
            # Hosts see a folder and a clock a little differently: what process 0 sees decides which step is next.
            evaluate.follow(
                lambda: hosts.share(checkpoints.steps()), look, lambda: set(hosts.share(list(judge.judged()))),
                last=config.train.steps, patience=evaluation.patience, clock=lambda: hosts.share(time.monotonic()),
            )  # fmt: skip
            judged_steps = judge.judged()
            return scores or judged_steps.get(max(judged_steps, default=-1), {})
        if isinstance(evaluation.checkpoint, int) and evaluation.checkpoint not in checkpoints.steps():
            raise UserError(f"no checkpoint of step {evaluation.checkpoint}: there are {checkpoints.steps()}")
        look(evaluation.checkpoint if isinstance(evaluation.checkpoint, int) else None)
    return scores


def overview(model: Any) -> str:
    """Table of parameters, one row per block."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(build.shapes(model), include_stats=False)


def main(argv: list[str]) -> None:
    """Called by absl with the parsed flags."""
    del argv
    logging.set_verbosity(logging.INFO)
    plan = FLAGS.mode == "plan"
    build.cpu_devices(FLAGS.config, plan=plan)
    workdir = files.folder(FLAGS.workdir)
    keep_programs(FLAGS.compile_cache)
    process = None if plan else this_process(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    facts = {"mode": FLAGS.mode, "workdir": FLAGS.workdir}
    hosts = Hosts(
        process, record.fingerprint(build.plain(FLAGS.config), facts) if process else {}, workdir,
        startup_timeout=FLAGS.startup_timeout, heartbeat_timeout=FLAGS.heartbeat_timeout, trains=FLAGS.mode == "train",
    )  # fmt: skip
    # SIGTERM unwinds the stack, or saves first: processes and shared memory are given back.
    signal.signal(signal.SIGTERM, hosts.terminate)
    with hosts:
        run(FLAGS.config, workdir, FLAGS.mode, hosts, profile=FLAGS.profile, compile_only=FLAGS.compile_only)


def keep_programs(folder: str) -> None:
    """Keeps what is compiled in `folder`, for this and all later jobs; "" does not. The environment's word counts more.

    All processes read there and the first writes: on several hosts it should be a folder that they share.
    """
    if folder and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", folder if "://" in folder else str(Path(folder).expanduser()))


def cli() -> None:
    """Runs `main`; prints an error that is foreseen as one line, and exits with its status."""
    try:
        app.run(main, flags_parser=parse)
    except (UserError, HostsError, Stopped) as error:
        status, text = exit_status(error)
        print(text, file=sys.stderr)
        sys.exit(status)


if __name__ == "__main__":
    cli()
