"""One process of several, without a model: `python one_process.py INDEX COUNT PORT WORKDIR JOB [NAME=VALUE ...]`.

The rest of the line is its fingerprint. Prints the job's output; ends as `vf.main` does."""

import os
import signal
import sys
import time
from pathlib import Path

from vf.hosts import run
from vf.hosts.errors import Stopped, exit_status
from vf.hosts.process import Process
from vf.hosts.signals import Signals
from vf.types import UserError


def share(hosts: run.Hosts, index: int) -> None:
    """Values of process 0, of any length; one ends later than the other."""
    assert hosts.share(None) is None
    print("shared", hosts.share([index, "x" * (1 + 2000 * index)]), hosts.share({"größer": [index, None]}))
    time.sleep(2 * index)


def sleep(hosts: run.Hosts, index: int) -> None:
    """As in a collective operation that never returns."""
    print("sleeps")
    time.sleep(600)


def stop_at_one_step(hosts: run.Hosts, index: int) -> None:
    """Steps of different speed, until all stop. SIGTERM comes to two before the first, as it may while they compile."""
    if index < 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
    for step in range(1, 100_000):
        time.sleep(0.02 * (index + 1))
        if hosts.stopping():
            raise Stopped(f"step {step}")


def bad_input(hosts: run.Hosts, index: int) -> None:
    """All come to the same error, one later."""
    time.sleep(2 * index)
    raise UserError("the batch cannot be split")


def defect(hosts: run.Hosts, index: int) -> None:
    """One comes to an error, and the others wait for it."""
    if index == 1:
        raise ZeroDivisionError
    time.sleep(600)


JOBS = {job.__name__: job for job in (share, sleep, stop_at_one_step, bad_input, defect)}


def main(index: int, count: int, port: int, workdir: Path, job: str, *facts: str) -> None:
    """Joins the others, and does the job."""
    run.READ_SECONDS = 1.0
    timeouts = {name: float(os.environ.get(name.upper(), "60")) for name in ("startup_timeout", "heartbeat_timeout")}
    fingerprint = dict(fact.split("=") for fact in facts)
    process = Process(index, count, f"127.0.0.1:{port}")
    signals = Signals()
    signals.watch()
    hosts = run.Hosts(process, fingerprint, workdir, **timeouts, trains=True, signals=signals)
    with hosts:
        JOBS[job](hosts, index)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
    except Exception as error:
        status, text = exit_status(error)
        print(text, file=sys.stderr)
        sys.exit(status)
