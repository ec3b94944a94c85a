"""The progress line shows step, rate and remaining time, and never makes the run wait."""

import io

import jax.numpy as jnp
import pytest

from vf.run.progress import Progress, _duration


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_progress_measures_after_the_first_step(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(4000, start=1000, every_seconds=0, stream=stream)
    clock.now += 60  # Compilation.
    progress.update(1001, loss=0.5)
    clock.now += 100
    progress.update(1201, loss=jnp.float32(0.03125), lr=1e-4, mode="warm")
    assert stream.getvalue().splitlines() == [
        "step 1001/4000  loss 0.5",
        "step 1201/4000  loss 0.03125  lr 0.0001  mode warm  2 steps/s  ETA 23m20s",
    ]


def test_progress_counts_other_things(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(8, every_seconds=0, stream=stream, name="drawn", unit="clips")
    progress.update(4)
    clock.now += 2
    progress.update(8)
    assert stream.getvalue().splitlines() == ["drawn 4/8", "drawn 8/8  2 clips/s  ETA 0s"]


def test_patient_progress_is_silent_on_what_is_soon_done(monkeypatch):
    clock = Clock(monkeypatch)
    for seconds, lines in ((1, []), (4, ["step 2/3  0.25 steps/s  ETA 4s", "step 3/3  0.25 steps/s  ETA 0s"])):
        stream = io.StringIO()
        progress = Progress(3, every_seconds=5, stream=stream, patient=True)
        for step in (1, 2, 3):
            clock.now += seconds
            progress.update(step)
        assert stream.getvalue().splitlines() == lines


def test_progress_is_rate_limited_and_never_fetches_in_vain(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()

    class Loss:
        fetched = 0

        def __float__(self) -> float:
            Loss.fetched += 1
            return 1.0

    progress = Progress(100, every_seconds=10, stream=stream)
    for step in range(1, 101):
        clock.now += 1
        progress.update(step, loss=Loss())
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in stream.getvalue().splitlines()]
    assert shown == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]  # The last step always.
    assert Loss.fetched == len(shown)


def test_progress_redraws_on_a_terminal(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(2, every_seconds=0, stream=stream)
    progress.update(1, loss=1.0)
    assert stream.getvalue() == "\rstep 1/2  loss 1\x1b[K"
    clock.now += 1
    progress.update(2, loss=1.0)
    assert stream.getvalue().endswith("\rstep 2/2  loss 1  1 steps/s  ETA 0s\x1b[K\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (820, "13m40s"), (3725, "1h02m")]
)
def test_durations(seconds, text):
    assert _duration(seconds) == text
