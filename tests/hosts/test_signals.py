"""SIGTERM and Ctrl-C at whatever moment: one sentence, and the process ends; in training steps the job heeds them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vf.hosts.run import Hosts
from vf.hosts.signals import NAMES, Signals

ROOT = Path(__file__).parents[2]


def sentences(text: str) -> list[str]:
    """The lines of a log that the program itself has written."""
    return [line for line in text.splitlines() if line.startswith("vf: ")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_between_steps_and_ends_a_pause(number, capsys):
    statuses = []
    signals = Signals(leave=statuses.append)
    with Hosts(signals=signals, trains=True) as alone:
        finished = []
        alone.before_end(lambda: finished.append(list(statuses)))
        assert not alone.stopping()
        signals.take(number)
        assert alone.stopping() == number
        assert not statuses
        alone.pause(for_good=False)
    assert statuses == [128 + number]
    assert finished == [[]]  # before the end
    assert sentences(capsys.readouterr().err) == [
        f"vf: ended by {NAMES[number]}; the same command goes on from the last checkpoint, or begins again"
    ]


PROGRAM = """
import gc, os, sys, threading, time
from vf.hosts.signals import Signals

signals = Signals()
signals.watch()
how = sys.argv[1]
signals.deferred = how == "deferred"
signals.before = {
    "waits": lambda: (time.sleep(1), print("finished", flush=True)), "hangs": lambda: time.sleep(600)
}.get(how.removesuffix(", over"), signals.before)
if how == "over":  # the program, and the interpreter goes down, where it calls no handler any more
    class Last:
        def __del__(self, write=os.write, sleep=time.sleep):
            write(1, b"ready\\n")
            sleep(1)
    last = Last()
    signals.close()
    sys.exit(0)
print("ready", flush=True)
if how == "native":  # the main thread is in a library that never comes back
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
while how == "dropped":  # by what Python calls where no exception can go
    class Loud:
        def __del__(self):
            for _ in range(1000): pass
    Loud()
while not signals.received or how in ("waits", "hangs"):
    time.sleep(0.01)
time.sleep(0.1)
signals.close()
if how == "deferred":
    print("heeds", signals.received, flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("how", "numbers", "status", "says"),
    [
        ("native", [signal.SIGTERM], 143, "ended by SIGTERM"),
        ("native", [signal.SIGINT], 130, "ended by Ctrl-C"),
        ("dropped", [signal.SIGTERM], 143, "ended by SIGTERM"),
        ("waits", [signal.SIGINT], 130, "finished\nvf: ended by Ctrl-C"),
        ("waits, over", [signal.SIGTERM], 143, "finished\nvf: ended by SIGTERM"),
        ("hangs", [signal.SIGINT, signal.SIGTERM], 143, "ended at once by a second signal, SIGTERM"),
        ("hangs, over", [signal.SIGTERM, signal.SIGINT], 130, "ended at once by a second signal, Ctrl-C"),
        ("over", [signal.SIGTERM, signal.SIGINT], 0, ""),
        ("deferred", [signal.SIGTERM], 7, "heeds 15"),
    ],
)
def test_a_signal_ends_a_process_whatever_it_does(tmp_path, how, numbers, status, says):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), how], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        text = process.stdout.read()
    assert process.wait(20) == status
    assert says in text
    assert "Traceback" not in text
    assert len(sentences(text)) == (how not in ("deferred", "over"))


def test_a_signal_while_importing_gets_its_sentence(tmp_path):
    """Ever later after the start, until the program has got to say that something is missing: no flag is given."""
    seen = set()
    for seconds in (0.1, 0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "vf.main"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(seconds)
        process.terminate()
        text, _ = process.communicate(timeout=60)
        seen.add(process.returncode)
        assert process.returncode in (143, -signal.SIGTERM), text  # Python itself had not begun
        assert "Traceback" not in text
        assert len(sentences(text)) == (process.returncode == 143)
    assert 143 in seen
