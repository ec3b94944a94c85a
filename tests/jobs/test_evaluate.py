"""Following a run: which checkpoints are evaluated, in which order, and when it ends."""

import logging

import pytest

from vf.jobs.evaluate import follow, last_step
from vf.types import UserError


class Run:
    """A run that writes checkpoints at given seconds and keeps the last `keep`; the clock is simulated."""

    def __init__(self, written: dict[int, float], *, keep: int = 99, cost: float = 1.0, records: bool = True) -> None:
        self.now, self.written, self.keep, self.cost, self.records = 0.0, written, keep, cost, records
        self.evaluated: set[int] = set()
        self.looked = 0

    def steps(self) -> list[int]:
        return sorted(step for step, when in self.written.items() if when <= self.now)[-self.keep :]

    def evaluate(self, step: int) -> None:
        self.now += self.cost
        if step not in self.steps():
            raise FileNotFoundError(step)
        if self.records:
            self.evaluated.add(step)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.looked += 1
        assert self.looked < 1000, "it never ends"

    def follow(self, last, patience: float = 100.0) -> list[int]:
        final = last if callable(last) else lambda: last
        return follow(self.steps, self.evaluate, lambda: set(self.evaluated), last=final, patience=patience, every=10,
                      clock=lambda: self.now, sleep=self.sleep)  # fmt: skip


def test_following_evaluates_each_new_checkpoint():
    assert Run({10: 0, 20: 50, 30: 120}).follow(last=30) == [10, 20, 30]


def test_the_newest_checkpoint_is_evaluated_first():
    """An evaluation that takes longer than the run takes to the next checkpoint catches up afterwards."""
    assert Run({10: 0, 20: 5, 30: 10, 40: 15}, cost=30).follow(last=40) == [10, 40, 30, 20]


def test_checkpoints_that_the_run_removed_are_no_error():
    assert Run({10: 0, 20: 5, 30: 10, 40: 15}, cost=30, keep=2).follow(last=40) == [40, 30]


def test_it_ends_when_the_run_has_died(caplog):
    run = Run({10: 0, 20: 20})
    with caplog.at_level(logging.WARNING):
        assert run.follow(last=99, patience=100) == [10, 20]
    assert 100 < run.now < 150
    assert caplog.text.count("waiting for a new checkpoint, up to step 99") == 2  # once before each wait
    assert caplog.text.count("every checkpoint so far is scored") == 2
    assert "--config.eval.checkpoint=latest" in caplog.text
    assert "no new checkpoint for 100 s" in caplog.text


def test_evaluated_checkpoints_are_not_evaluated_again():
    run = Run({10: 0, 20: 0, 30: 0})
    run.evaluated = {20, 30}
    assert run.follow(last=30) == [10]
    assert run.follow(last=30) == []


def test_evaluations_that_are_not_seen_are_not_repeated():
    """Where the record lies on a disk that lags behind, or cannot be read."""
    assert Run({10: 0, 20: 30}, records=False).follow(last=20) == [10, 20]


def test_a_run_that_is_started_again_for_longer_is_followed_to_its_new_end():
    run = Run({10: 0, 20: 50, 30: 120})
    assert run.follow(last=lambda: 20 if run.now < 40 else 30) == [10, 20, 30]


def test_the_last_step_is_that_of_the_run_s_own_config(tmp_path):
    assert last_step(tmp_path, 120) == 120  # a run that has just begun
    (tmp_path / "config.json").write_text('{"train": {"steps": 30}}')
    assert last_step(tmp_path, 120) == 30


def test_other_errors_end_it():
    run = Run({10: 0})

    def evaluate(step):
        raise UserError("no real clips")

    with pytest.raises(UserError, match="no real clips"):
        follow(run.steps, evaluate, set, last=lambda: 10, patience=10, clock=lambda: run.now, sleep=run.sleep)
