"""The order of examples is fixed; read-ahead, hosts, restarts and broken records do not change it."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vf.data.pipeline import BadRecord, batches, fixed_clips
from vf.types import UserError


class Numbers:
    """Pixels show the record; the embedding holds the record and the random draw (-1: the middle window)."""

    num_classes = 7
    class_names = tuple("abcdefg")

    def __init__(self, records: int, bad: tuple[int, ...] = (), delay: float = 0.0):
        self.records, self.bad, self.delay = records, bad, delay
        self.reads = 0

    def describe(self):
        return {"source": "numbers"}

    def __len__(self):
        return self.records

    def clip(self, record, rng):
        self.reads += 1
        time.sleep(self.delay)
        if record in self.bad:
            raise BadRecord(f"clip{record}.avi: torn")
        return {
            "video": np.full((2, 4, 4, 3), record % 256, np.uint8),
            "label": np.array(record % 7, np.int32),
            "embedding": (vector := np.array([record, -1 if rng is None else rng.random()], np.float32)),
            "mirrored_embedding": -vector,
        }


def take(n, source, **kwargs):
    """The first n batches, joined along the rows of each."""
    with batches(source, **{"seed": 3, "batch_size": 8, **kwargs}) as iterator:
        return list(islice(iterator, n))


def records_of(found):
    return np.concatenate([batch["embedding"][:, 0] for batch in found]).astype(int).tolist()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def join(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_batch_has_the_promised_types():
    (batch,) = take(1, Numbers(20))
    assert batch["video"].shape == (8, 2, 4, 4, 3)
    assert {name: value.dtype.name for name, value in batch.items()} == {
        "video": "uint8",
        "label": "int32",
        "embedding": "float32",
        "index": "uint32",
    }


@pytest.mark.parametrize("shares", [[range(4), range(4, 8)], [(0, 1), (2, 3), (4, 5), (6, 7)]])
def test_processes_share_the_rows_of_one_batch(shares):
    whole = take(5, Numbers(20))
    parts = [take(5, Numbers(20), rows=rows, threads=3) for rows in shares]
    for batch, *found in zip(whole, *parts, strict=True):
        assert_same(batch, join(found))


def test_rows_need_not_be_neighbours():
    for batch, part in zip(take(5, Numbers(20)), take(5, Numbers(20), rows=[1, 2, 6], threads=2), strict=True):
        assert_same({name: value[[1, 2, 6]] for name, value in batch.items()}, part)


@pytest.mark.parametrize("start", [1, 4, 11])
def test_a_restart_continues(start):
    for resumed, batch in zip(take(3, Numbers(20), start=start), take(14, Numbers(20))[start:], strict=False):
        assert_same(resumed, batch)


def test_a_late_start_reads_nothing_before_it():
    source = Numbers(1000)
    (batch,) = take(1, source, start=10**8, threads=0)
    assert source.reads == 8
    np.testing.assert_array_equal(batch["index"], 8 * 10**8 + np.arange(8))


def test_rows_do_not_depend_on_the_rest_of_their_batch():
    small, large = take(12, Numbers(20), batch_size=4), take(2, Numbers(20), batch_size=24)
    assert_same(join(small), join(large))
    np.testing.assert_array_equal(join(small)["index"], np.arange(48))


@pytest.mark.parametrize("threads", [0, 1, 5, 16])
def test_threads_change_nothing(threads):
    for one, other in zip(take(4, Numbers(20), threads=threads), take(4, Numbers(20)), strict=True):
        assert_same(one, other)


def test_every_epoch_shows_every_record_once_in_an_order_of_its_own():
    order = records_of(take(15, Numbers(20)))
    epochs = [order[i : i + 20] for i in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_without_shuffling_the_order_is_the_sources():
    assert records_of(take(5, Numbers(20), shuffle=False)) == 2 * list(range(20))


def test_seeds_give_other_orders_and_other_draws():
    one, other = take(3, Numbers(20), seed=0), take(3, Numbers(20), seed=1)
    assert records_of(one) != records_of(other)
    draws = join(one + other)["embedding"][:, 1]
    assert len(set(draws.tolist())) == 48


def test_a_bad_record_is_replaced_by_its_successor(caplog):
    bad = (17, 18)
    with batches(Numbers(200, bad), seed=3, batch_size=8) as iterator:
        found = list(islice(iterator, 50))
    sound = join(take(50, Numbers(200)))
    expected = sound["embedding"].copy()
    expected[np.isin(expected[:, 0], bad), 0] = 19
    np.testing.assert_array_equal(join(found)["embedding"], expected)
    assert iterator.bad == {17: "clip17.avi: torn", 18: "clip18.avi: torn"}
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 2  # although two epochs met each of them, and 18 also in the place of 17
    assert any("clip17.avi: torn" in line for line in named)
    assert any("clip18.avi: torn" in line for line in named)


def test_bad_records_are_known_no_sooner_than_their_batch():
    with batches(Numbers(200, (17,)), seed=3, batch_size=8, shuffle=False, read_ahead=4) as iterator:
        for n, expected in enumerate([{}, {}, {17: "clip17.avi: torn"}]):
            next(iterator)
            assert iterator.bad == expected, n


def test_the_last_record_is_replaced_by_the_first():
    assert records_of(take(1, Numbers(8, (7,)), shuffle=False)) == [0, 1, 2, 3, 4, 5, 6, 0]


def test_one_bad_record_in_a_hundred_is_tolerated_and_two_are_not():
    take(13, Numbers(100, (4,)))
    with pytest.raises(UserError, match=r"2 of 100 records.*clip4\.avi: torn"):
        take(13, Numbers(100, (4, 5)))
    with pytest.raises(UserError, match=r"2 of 100 records.*clip40\.avi: torn"):
        take(13, Numbers(100, (4, 40)))


def test_small_sources_may_lose_all_but_one():
    assert set(records_of(take(3, Numbers(5, (0, 1, 2, 4))))) == {3}
    with pytest.raises(UserError, match="5 of 5 records"):
        take(1, Numbers(5, (0, 1, 2, 3, 4)))


def test_other_errors_of_a_source_are_raised():
    class Broken(Numbers):
        def clip(self, record, rng):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take(1, Broken(20))


@pytest.mark.parametrize(("batch_size", "rows"), [(6, [6]), (6, [-1, 0]), (6, []), (0, None), (-4, None)])
def test_rows_outside_the_batch_are_refused(batch_size, rows):
    with pytest.raises(UserError, match=rf"batch_size - 1 = {batch_size - 1}, but these are"):
        batches(Numbers(20), seed=0, batch_size=batch_size, rows=rows)


def test_an_empty_source_is_refused():
    with pytest.raises(UserError, match="no records"):
        batches(Numbers(0), seed=0, batch_size=1)
    with pytest.raises(UserError, match="no records"):
        fixed_clips(Numbers(0), 1)


def test_reading_ahead_is_bounded():
    source = Numbers(1000)
    with batches(source, seed=0, batch_size=8, threads=4, read_ahead=3) as iterator:
        for _ in range(5):
            next(iterator)
        wanted, patience = 8 * (5 + 3), time.monotonic() + 20
        while source.reads < wanted and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1)
        assert source.reads == wanted


def test_the_rows_of_one_batch_are_read_at_once():
    class Together(Numbers):
        meeting = threading.Barrier(4)

        def clip(self, record, rng):
            self.meeting.wait(timeout=20)  # breaks unless four threads are here
            return super().clip(record, rng)

    with batches(Together(20), seed=0, batch_size=4, threads=4, read_ahead=1) as iterator:
        assert len(next(iterator)["video"]) == 4
        Together.meeting.abort()  # lets go whoever reads ahead


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    iterator = batches(Numbers(1000, delay=0.01), seed=0, batch_size=8, threads=4)
    next(iterator)
    ours = set(threading.enumerate()) - before
    assert ours
    iterator.close()
    for thread in ours:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in ours)


def test_an_iterator_left_open_does_not_hold_up_the_exit():
    program = (
        "import vf.data.folder\n"
        "from tests.data.test_pipeline import Numbers, batches, sys\n"
        "iterator = batches(Numbers(1000, delay=0.01), seed=0, batch_size=8)\n"
        "next(iterator)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]", "the data path must need neither TensorFlow nor PyTorch"


def test_fixed_clips_are_middle_windows_of_distinct_records():
    one, again = fixed_clips(Numbers(20), 12), fixed_clips(Numbers(20), 12, threads=1)
    assert_same(one, again)
    assert len(set(one["embedding"][:, 0])) == 12
    assert (one["embedding"][:, 1] == -1).all()
    np.testing.assert_array_equal(one["index"], np.arange(12))
    assert one["index"].dtype == np.uint32
    assert_same({name: value[:5] for name, value in one.items()}, fixed_clips(Numbers(20), 5))
    assert (one["embedding"] != fixed_clips(Numbers(20), 12, seed=1)["embedding"]).any()


def test_fixed_clips_beyond_the_source_are_random_windows():
    clips = fixed_clips(Numbers(20), 50)["embedding"]
    assert sorted(clips[:20, 0]) == sorted(clips[20:40, 0]) == list(range(20))
    assert (clips[:20, 1] == -1).all()
    assert len(set(clips[20:, 1])) == 30
    assert_same({"e": clips}, {"e": fixed_clips(Numbers(20), 50)["embedding"]})


def test_fixed_clips_replace_and_refuse_as_batches_do(caplog):
    assert sorted(fixed_clips(Numbers(5, (2,)), 5)["embedding"][:, 0]) == [0, 1, 3, 3, 4]
    assert [record.getMessage() for record in caplog.records if "clip2.avi: torn" in record.getMessage()]
    with pytest.raises(UserError, match="records cannot be read"):
        fixed_clips(Numbers(300, tuple(range(10))), 300)


def test_processes_that_read_change_nothing():
    serial = take(7, Numbers(200, (17,)), flip=True)
    late = take(4, Numbers(200, (17,)), workers=2, start=3, flip=True)
    for one, other in zip(late, serial[3:], strict=True):
        assert_same(one, other)
    halves = [take(2, Numbers(200, (17,)), workers=1, flip=True, rows=range(p, p + 4), start=3) for p in (0, 4)]
    for batch, *parts in zip(serial[3:5], *halves, strict=True):
        assert_same(batch, join(parts))


class Ramp(Numbers):
    """Columns differ, so that a mirrored clip can be recognised."""

    def clip(self, record, rng):
        return {**super().clip(record, rng), "video": np.tile(np.arange(4, dtype=np.uint8)[:, None], (2, 4, 1, 3))}


def test_half_of_the_clips_are_mirrored_by_their_number_alone():
    original = join(take(60, Ramp(20)))["video"]
    batch = join(take(60, Ramp(20), flip=True))
    mirrored = batch["video"]
    which = (mirrored[:, 0, 0, 0, 0] == 3).nonzero()[0]
    np.testing.assert_array_equal((batch["embedding"][:, 1] < 0).nonzero()[0], which)
    np.testing.assert_array_equal(mirrored[which], original[which][:, :, :, ::-1])
    others = np.setdiff1d(np.arange(480), which)
    np.testing.assert_array_equal(mirrored[others], original[others])
    assert abs(len(which) - 240) < 5 * np.sqrt(120)
    np.testing.assert_array_equal(join(take(20, Ramp(20), flip=True, batch_size=24))["video"], mirrored)
    assert (fixed_clips(Ramp(20), 20)["video"] == original[0]).all()


def test_waiting_is_measured():
    with batches(Numbers(100, delay=0.02), seed=0, batch_size=8, threads=0) as iterator:
        next(iterator)
        next(iterator)
        assert 0.3 < iterator.waited < 5


def shared_memory(process: str) -> set[Path]:
    """Blocks that a process has mapped."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/" in line}


def status(process: str) -> tuple[str, str, str] | None:
    """(number, parent's number, state) of a process; None where it has gone."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return process, parent, state


def descendants(process: int) -> set[str]:
    """Numbers of the processes below it."""
    pairs = [(stat[0], stat[1]) for path in Path("/proc").glob("[0-9]*") if (stat := status(path.name))]
    found = {str(process)}
    while more := {pid for pid, parent in pairs if parent in found} - found:
        found |= more
    return found - {str(process)}


def gone(processes: set[str], patience: float = 20) -> bool:
    """Have all of them ended (or become zombies that wait for us)?"""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if not [pid for pid in processes if (stat := status(pid)) and stat[2] not in "ZX"]:
            return True
        time.sleep(0.05)
    return False


PROGRAM = """
import sys, time
from absl import app
from tests.data.test_pipeline import Numbers, batches
from vf.hosts.signals import Signals

def main(argv):
    Signals().watch()
    with batches(Numbers(1000), seed=0, batch_size=64, workers=2, read_ahead=4) as iterator:
        held = [next(iterator) for _ in range(3)]
        print("reading", flush=True)
        if "wait" not in argv:
            input()  # until we have been looked at
        if "raise" in argv:
            raise ZeroDivisionError
        if "wait" in argv:
            while True:
                next(iterator)
                time.sleep(0.01)

if __name__ == "__main__":
    app.run(main)
"""


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("end", None, 0),
        ("raise", None, 1),
        ("wait", signal.SIGTERM, 143),
        ("wait", signal.SIGINT, 130),
        ("wait", signal.SIGKILL, -9),
    ],
)
def test_no_process_and_no_shared_memory_remains(tmp_path, how, number, code):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout, process.stdin:
        assert process.stdout.readline() == "reading\n"
        workers = descendants(process.pid)
        assert len(workers) >= 2
        blocks = shared_memory(str(process.pid))
        assert blocks
        if number is not None:
            process.send_signal(number)
        else:
            process.stdin.write("go on\n")
            process.stdin.flush()
        assert process.wait(timeout=60) == code
    assert gone(workers)
    until = time.monotonic() + 20  # where nobody was left to tidy up, the system's own tracker does
    while [block for block in blocks if block.exists()] and time.monotonic() < until:
        time.sleep(0.05)
    assert not [block for block in blocks if block.exists()]
