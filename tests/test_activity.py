"""What goes on is said again after a silence, as long as it goes on, and by nobody else."""

import contextlib
import io
import subprocess
import sys
import threading
import time
from pathlib import Path

from vf.activity import Activity
from vf.run.progress import Progress
from vf.types import UserError

ROOT = Path(__file__).parents[1]


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_long_task_is_said_again_until_it_ends():
    """And so is the next one, by another thread."""
    stream = io.StringIO()
    activity = Activity(0.02, stream)
    for _ in range(2):
        before = len(lines(stream))
        with activity.doing("compiling the training step", last=31.2):
            wait_for(lambda least=before + 2: len(lines(stream)) >= least)
        said = lines(stream)
        assert set(said) == {"now compiling the training step (last time 31 s)"}
        time.sleep(0.1)
        assert lines(stream) == said
        wait_for(lambda: "activity" not in {thread.name for thread in threading.enumerate()})


def test_a_short_task_is_not():
    stream = io.StringIO()
    activity = Activity(stream=stream)
    for _ in range(3):
        with activity.doing("compiling the training step"):
            pass
    assert not stream.getvalue()


def test_short_tasks_that_follow_one_another_are_one_silence():
    """Unless each is announced by a line of its own."""
    for announced in (False, True):
        stream = io.StringIO()
        activity = Activity(0.8, stream)
        for _ in range(16):
            with activity.doing("reading", announced=announced):
                time.sleep(0.06)
        assert bool(lines(stream)) is not announced


def test_the_innermost_task_is_said_then_the_one_around_it():
    stream = io.StringIO()
    activity = Activity(0.02, stream)
    with activity.doing("training") as task:
        task.begin("training step 3 of 9")
        with contextlib.suppress(UserError), activity.doing("drawing"):
            wait_for(lambda: lines(stream))
            raise UserError("of the inner task")
        inner = len(lines(stream))
        wait_for(lambda: len(lines(stream)) > inner)
    said = lines(stream)
    assert set(said[:inner]) == {"now drawing"}
    assert set(said[inner:]) == {"now training step 3 of 9"}


def test_seconds_are_those_of_the_part(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    activity = Activity()
    with activity.doing("training", last=0.4) as task:
        now[0] += 16.4
        assert str(task) == "still training: 16 s"
        task.begin("training step 2 of 9")
        now[0] += 3
        assert str(task) == "still training step 2 of 9: 3 s"
        with activity.doing("drawing"):
            now[0] += 50
        now[0] += 2
        assert str(task) == "still training step 2 of 9: 2 s"  # since the drawing has ended
        task.begin("training step 3 of 9")
        assert str(task) == "now training step 3 of 9"


def test_nothing_is_said_while_a_bar_moves(monkeypatch):
    """And on a terminal a line does not go on behind the bar that is drawn there."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    activity = Activity(1.0, stream)
    monkeypatch.setattr("vf.run.progress.ACTIVITY", activity)
    with activity.doing("drawing"):
        bar = Progress(99, every_seconds=0, stream=stream)
        for step in range(1, 9):
            time.sleep(0.15)
            bar.update(step)
        assert "still" not in stream.getvalue()
        wait_for(lambda: "still" in stream.getvalue())
        bar.update(99)
    assert "\x1b[K\nstill drawing: " in stream.getvalue()
    assert "step 99/99" in stream.getvalue().rpartition("still drawing: ")[2]


def test_other_processes_say_nothing():
    stream = io.StringIO()
    activity = Activity(0.01, stream)
    activity.speaks = False
    with activity.doing("compiling"):
        time.sleep(0.1)
    assert not stream.getvalue()


def test_the_beginning_of_a_program_ends_with_its_first_task():
    stream = io.StringIO()
    activity = Activity(0.02, stream)
    activity.begin("starting")
    wait_for(lambda: lines(stream))
    with activity.doing("opening the data"):
        first = len(lines(stream))
    time.sleep(0.1)
    assert set(lines(stream)[:first]) == {"now starting"}
    assert "starting" not in "".join(lines(stream)[first:])


def test_a_function_may_be_a_task():
    stream = io.StringIO()
    activity = Activity(0.02, stream)

    @activity.doing("writing the page")
    def write(text):
        wait_for(lambda: lines(stream))
        return text

    assert write("page") == "page"
    assert set(lines(stream)) == {"now writing the page"}


SLOW = """
import sys, time
sys.argv = ["-m"]
import vf.activity
vf.activity.ACTIVITY._silence = 0.05
time.sleep(0.3)  # as imports do
"""


def test_commands_say_that_they_are_starting():
    done = subprocess.run([sys.executable, "-c", SLOW], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert set(done.stderr.splitlines()) == {"now starting"}
    done = subprocess.run(
        [sys.executable, "-c", SLOW.replace('["-m"]', '["program"]')], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.stderr


def test_a_reader_that_has_gone_is_left_to_the_main_thread():
    class Gone(io.StringIO):
        tries = 0

        def write(self, text):
            self.tries += 1
            raise BrokenPipeError

    stream = Gone()
    with Activity(0.01, stream).doing("drawing"):
        wait_for(lambda: stream.tries > 1)
