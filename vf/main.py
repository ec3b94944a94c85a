"""A run's command: `python -m vf.main --config=configs/demo.py --workdir=runs/demo --mode=train|sample|evaluate|...`.

Fields of the config, which `configs/base.py` lists with their meaning and default, are overridden as
`--config.train.batch_size=8`; a variant is named as `configs/ucf101.py:smoke`.

    --mode=train      trains, resumes where a run has stopped, draws samples and scores them at the end
    --mode=sample     draws clips with the weights of the latest checkpoint (fields `sample.*`)
    --mode=evaluate   scores checkpoints, also beside a run that trains (`eval.*`)
    --mode=plan       computes memory and time of a run on another machine (`plan.*`)
    --mode=clip       trains a small CLIP on the data's captions, for texts without public weights (`text.learn.*`)

Bad input ends the program with one sentence and exit status 2, a full disk with 1, a plan that does not fit with 4;
SIGTERM and Ctrl-C save the current training step, status 143 and 130.

On several hosts, or in several processes, every one gets the same command. Clusters that jax supports are detected;
elsewhere each process needs `--coordinator=HOST:PORT --processes=N --process=I` (`docs/hosts.md`).
"""

if __name__ == "__main__" and not __package__:  # `python vf/main.py` finds no package
    import sys

    print("vf: start this as `python -m vf.main`, in the folder of the code", file=sys.stderr)
    raise SystemExit(2)

from vf.hosts.signals import Signals

SIGNALS = Signals()
if __name__ == "__main__":
    SIGNALS.watch()  # before the imports below, which take seconds

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vf import command, files
from vf.activity import ACTIVITY
from vf.config import build
from vf.config.check import check
from vf.config.flags import parse
from vf.config.values import to_json
from vf.data.manifest import MANIFEST
from vf.hosts.errors import DiskFull, HostsError, Stopped, exit_status
from vf.hosts.process import this_process
from vf.hosts.run import Hosts
from vf.jobs import contrast, evaluate, plan, sample, train
from vf.pretrained import export
from vf.run.provenance import fingerprint
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

MODES = ("train", "sample", "evaluate", "plan", "clip")
NAMES = (
    "config", "workdir", "mode", "coordinator", "processes", "process", "startup_timeout", "heartbeat_timeout",
    "compile_cache", "compile_only", "profile",
)  # fmt: skip
UNFIT = 4  # exit status of a plan that does not fit
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The config, as configs/NAME.py or configs/NAME.py:VARIANT.")
flags.DEFINE_string("workdir", None, "The run's folder: everything is written there, and resumed from there.")
flags.DEFINE_enum("mode", "train", MODES, "What to do, as above.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where jax detects no cluster.")
flags.DEFINE_integer("processes", None, "Number of processes; 1 is a single process in any cluster.")
flags.DEFINE_integer("process", None, "Number of this process, from 0.")
flags.DEFINE_string(
    "compile_cache", "~/.cache/vf/xla", "Folder of compiled programs, if possible one that all hosts share; '' = none."
)
flags.DEFINE_bool("compile_only", False, "Compile the training step into the cache, and end.")
flags.DEFINE_integer("profile", 0, "Trace so many steps for xprof, into the run's folder.", lower_bound=0)
flags.DEFINE_float("startup_timeout", 300.0, "Seconds in which all processes must have joined.", lower_bound=1)
flags.DEFINE_float("heartbeat_timeout", 30.0, "Seconds of silence after which a host counts as dead.", lower_bound=10)


def run(
    config: ConfigDict,
    workdir: files.AnyPath,
    mode: str,
    hosts: Hosts | None = None,
    *,
    profile: int = 0,
    compile_only: bool = False,
) -> dict[str, float]:
    """Runs one job. Returns the last scores; {} for the mode sample, and for plan {"fits": 1 or 0}.

    hosts: the processes of the run, which have joined; default a single process.
    profile, compile_only: as in `jobs.train.run`.

    Raises UserError, and Stopped as `jobs.train.run` does."""
    check(config, mode)
    if (workdir / MANIFEST).exists() and not (workdir / "run.json").exists():
        raise UserError(f"{workdir} is a prepared data set: name another folder for the run, as --workdir=runs/NAME")
    if mode == "plan":
        planned = plan.run(build.plan(config), workdir)
        return {"fits": float(planned["best"]["fits"] and planned.get("sampling", planned["best"])["fits"])}
    hosts = hosts or Hosts()
    if mode == "clip":
        return contrast.run(build.contrast(config), workdir, hosts)
    here = export.of_run(workdir)
    facts = hosts.share(here and (here.config, here.step, here.about))  # what process 0 reads, so that all agree
    trained = export.Trained(workdir, *facts) if facts else None
    if mode == "train":
        spec = build.train(config, workdir, trained)
        return train.run(spec, workdir, hosts, profile=profile, compile_only=compile_only)
    if mode == "sample":
        return sample.run(build.sample(config, workdir, trained), workdir, hosts)
    return evaluate.run(build.evaluate(config, workdir, trained), workdir, hosts)


def main(argv: list[str]) -> None:
    """Called by absl with the parsed flags."""
    del argv
    logging.set_verbosity(logging.INFO)
    command.hide_messages_of_libraries()
    command.leave_out_absent_tpu()
    planning = FLAGS.mode == "plan"
    build.cpu_devices(FLAGS.config, plan=planning)
    workdir = files.folder(FLAGS.workdir)
    cache_programs(FLAGS.compile_cache)  # before anything is compiled
    process = None if planning else this_process(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    facts = {"mode": FLAGS.mode, "workdir": FLAGS.workdir}
    hosts = Hosts(
        process, fingerprint(to_json(FLAGS.config), facts) if process else {}, workdir,
        startup_timeout=FLAGS.startup_timeout, heartbeat_timeout=FLAGS.heartbeat_timeout, trains=FLAGS.mode == "train",
        signals=SIGNALS,
    )  # fmt: skip
    ACTIVITY.speaks = process is None or process.index == 0
    with hosts, telling_of_a_full_disk(workdir, FLAGS.mode):
        done = run(FLAGS.config, workdir, FLAGS.mode, hosts, profile=FLAGS.profile, compile_only=FLAGS.compile_only)
    if planning and not done["fits"]:
        sys.exit(UNFIT)


@contextmanager
def telling_of_a_full_disk(workdir: files.AnyPath, mode: str) -> Iterator[None]:
    """Raises DiskFull for any error of a full disk; of a training run it names the checkpoint that it goes on from."""
    try:
        yield
    except (UserError, HostsError, Stopped):
        raise
    except Exception as error:
        if not command.is_full(error):
            raise
        then = ""
        if mode == "train":
            with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
                step = checkpoints.latest()
            then = ", which begins again, as there is no checkpoint yet"
            if step is not None:
                then = f", which goes on from checkpoint {step}"
        raise DiskFull(
            f"the disk is full, and there was no room for what the run in {workdir} writes: make room, then give the "
            f"same command again{then}"
        ) from error


def cache_programs(folder: str) -> None:
    """Caches compiled programs in `folder`, for this and all later jobs; "" disables it.

    XLA keeps the kernels that it has chosen by timing on a GPU there, too, for whatever program needs them next, unless
    the folder is in an object store, where it cannot write. JAX_COMPILATION_CACHE_DIR takes precedence. All processes
    read the folder and the first writes: on several hosts it should be a folder that they share, under one name, which
    is part of what a program is found by.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", folder)
    remote = "://" in folder
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder if remote else str(files.expand(folder)))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small programs add up
        kept = "none" if remote else "xla_gpu_per_fusion_autotune_cache_dir"
        jax.config.update("jax_persistent_cache_enable_xla_caches", kept)


def cli() -> None:
    """Runs `main`; prints an error that is foreseen as one line, and exits with its status."""
    try:
        with command.until_ended():
            app.run(main, flags_parser=functools.partial(parse, names=NAMES))
    except (UserError, HostsError, Stopped, DiskFull) as error:
        status, text = exit_status(error)
        print(text, file=sys.stderr, flush=True)
        if isinstance(error, Stopped):
            os._exit(status)  # at once, whatever threads of libraries still do
        sys.exit(status)
    finally:
        SIGNALS.close()


if __name__ == "__main__":
    cli()
