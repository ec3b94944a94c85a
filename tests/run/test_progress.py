"""The progress line shows step, rate and remaining time, and never makes the run wait."""

import io

import jax.numpy as jnp
import pytest

from vf.run.progress import Progress, _duration


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_every_line_has_the_speed_since_the_first_step_began(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(4000, start=1000, every_seconds=0, stream=stream)
    clock.now += 2
    progress.update(1001, loss=0.5)
    clock.now += 98
    progress.update(1200, loss=jnp.float32(0.03125), lr=1e-4, mode="warm")
    assert stream.getvalue().splitlines() == [
        "step 1001/4000  loss 0.5  0.5 steps/s  ETA 1h39m",
        "step 1200/4000  loss 0.03125  lr 0.0001  mode warm  2 steps/s  ETA 23m20s",
    ]


@pytest.mark.parametrize(("seconds", "every"), [(1.0, 10), (0.3, 50), (5.0, 2), (30.0, 1)])
def test_lines_come_at_regular_steps_and_fetch_nothing_in_vain(monkeypatch, seconds, every):
    """About every ten seconds, whatever a step takes; the first report and the last step always."""
    clock, stream = Clock(monkeypatch), io.StringIO()

    class Loss:
        fetched = 0

        def __float__(self) -> float:
            Loss.fetched += 1
            return 1.0

    progress = Progress(99, every_seconds=10, stream=stream)
    for step in range(1, 100):
        clock.now += seconds
        progress.update(step, loss=Loss())
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in stream.getvalue().splitlines()]
    assert shown == sorted({1, *range(every, 99, every), 99})
    assert Loss.fetched == len(shown)


def test_a_run_that_slows_down_is_not_silent(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(10_000, stream=stream)
    for step in range(1, 11):
        clock.now += 0.01 if step < 5 else 70
        progress.update(step, loss=1.0)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == [
        f"step {k}" for k in (1, 5, 6, 7, 8, 9, 10)
    ]


def test_patient_progress_is_silent_on_what_is_soon_done(monkeypatch):
    """Of other things than steps, here."""
    clock = Clock(monkeypatch)
    shown = ["drawn 2/3  0.25 clips/s  ETA 4s", "drawn 3/3  0.25 clips/s  ETA 0s"]
    for seconds, lines in ((1, []), (4, shown)):
        stream = io.StringIO()
        progress = Progress(3, every_seconds=5, stream=stream, name="drawn", unit="clips", patient=True)
        for step in (1, 2, 3):
            clock.now += seconds
            progress.update(step)
        progress.update(3)  # which changes nothing
        assert stream.getvalue().splitlines() == lines


def test_progress_redraws_on_a_terminal(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(2, every_seconds=0, stream=stream)
    clock.now += 1
    progress.update(1, loss=1.0)
    assert stream.getvalue() == "\rstep 1/2  loss 1  1 steps/s  ETA 1s\x1b[K"
    clock.now += 1
    progress.update(2, loss=1.0)
    assert stream.getvalue().endswith("\rstep 2/2  loss 1  1 steps/s  ETA 0s\x1b[K\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (820, "13m40s"), (3725, "1h02m")]
)
def test_durations(seconds, text):
    assert _duration(seconds) == text
