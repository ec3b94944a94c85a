"""Several processes as one run: who is missing or differs is named, the end of one is the end of all, SIGTERM saves."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vf import files
from vf.hosts import run
from vf.hosts.run import HostInfo, Hosts, difference
from vf.run.metrics_file import METRICS, read_metrics
from vf.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
SMALL = """
from configs import demo

def get_config():
    config = demo.get_config()
    for part in (config.base, config.residual):
        part.net.update({"width": 8, "width_mult": (1,), "num_res_blocks": 0, "attention": (), "head_dim": 8,
                         "norm_groups": 4, "patch": 4, "dropout": 0.1})
    config.residual.net.temporal = ()
    config.update({
        "data": {"size": 8, "frames": 4},
        "noise": {"base_frame": 1},
        "train": {"steps": 1_000_000, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "keep": 1000,
                  "sample_every": 0, "warmup_steps": 2, "schedule": "constant"},
        "mesh": {"cpu_devices": 0},
        "sample": {"count": 4, "batch_size": 4, "steps": 1},
        "eval": {"clips": 4, "batch_size": 4, "levels": (500,)},
    })
    return config
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts a command of Python, with one CPU device; what is left of it is killed afterwards."""
    started = []

    def one(*command, **environment):
        log = tmp_path / f"{len(started)}.log"
        with log.open("w") as file:
            made = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip
        made.log = log
        started.append(made)
        return made

    yield one
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


@pytest.fixture
def together(start, tmp_path):
    """Starts some of `count` processes that do a job without a model: {index: process}."""

    def some(job, count, *facts, indices=None, folders=None, devices=None, **environment):
        port = free_port()

        def made(index):
            line = (index, count, port, (folders or {}).get(index, tmp_path), job, *facts)
            words = [str(word).format(index=index) for word in line]
            number = str((devices or {}).get(index, 1))
            return start("tests/hosts/one_process.py", *words, JAX_NUM_CPU_DEVICES=number, **environment)

        return {index: made(index) for index in (range(count) if indices is None else indices)}

    return some


@pytest.fixture
def main(start, tmp_path):
    """Starts `count` processes of vf.main, which train in a folder."""
    (tmp_path / "small.py").write_text(SMALL)

    def all_of(count, workdir, *flags):
        given = ["-m", "vf.main", f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / workdir}", *flags]
        if count > 1:
            given += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}", "--process={index}"]
        return [start(*(word.format(index=index) for word in given)) for index in range(count)]

    return all_of


def ended(process, seconds=60) -> tuple[int, str]:
    """Exit status and log. Fails where the process is still there after `seconds`."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {seconds} s:\n{process.log.read_text()}")
    return process.returncode, process.log.read_text()


def wait_until(process, condition, seconds=300):
    """Returns when the condition holds. Fails where the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(process.log.read_text())
        time.sleep(0.1)


def sentences(text: str) -> list[str]:
    """The lines of a log that the program itself has written."""
    return [line for line in text.splitlines() if line.startswith("vf: ")]


# Alone


def test_a_single_process_waits_for_no_other():
    with Hosts() as alone:
        assert alone.share(3) == 3
        assert not alone.stopping()


def test_present_processes_are_read_from_any_folder(bucket, tmp_path):
    for folder in (tmp_path, files.path("gs://b/run")):
        assert run.present(folder, 60) == set()
        for number, age in ((0, 0), (12, 50), (3, 70)):  # the last one's start is over
            files.write_whole(folder / f".host-{number}-{int(time.time()) - age}", "")
        assert run.present(folder, 60) == {0, 12}
        for note in folder.glob(".host-12-*"):
            note.unlink(missing_ok=True)
        assert run.present(folder, 60) == {0}


# Together


def test_values_are_shared_even_where_a_proxy_is_set(together):
    """Values of process 0, of any length; and process 0 ends with the last one."""
    nowhere = "http://127.0.0.1:9"
    for process in together("share", 2, "steps=4", http_proxy=nowhere, https_proxy=nowhere).values():
        status, text = ended(process)
        assert status == 0, text
        assert "shared [0, 'x'] {'größer': [0, None]}" in text


def test_a_missing_process_is_named_to_all(together, tmp_path):
    for process in together("share", 4, indices=(0, 2), STARTUP_TIMEOUT="4").values():
        status, text = ended(process)
        assert status == 3, text
        (sentence,) = sentences(text)
        assert "2 of 4 processes came within 4 s, and process [1, 3] did not" in sentence
        assert "Traceback" not in text
    assert not list(tmp_path.glob(".host*"))


def test_a_missing_process_0_is_named(together):
    (process,) = together("share", 2, indices=(1,), STARTUP_TIMEOUT="2").values()
    status, text = ended(process)
    assert status == 3, text
    assert "1 of 2 processes came within 2 s, and process [0] did not" in sentences(text)[0]


def test_a_process_that_differs_is_named_to_all(together, tmp_path):
    for process in together("share", 2, "steps={index}").values():
        status, text = ended(process)
        assert status == 3, text
        (sentence,) = sentences(text)
        assert "(process 1) differs from host" in sentence
        assert "(process 0): steps is 1 here and 0 there: start all with the same" in sentence
    assert not list(tmp_path.glob(".host*"))


def test_another_folder_of_the_same_name_is_noticed(together, tmp_path):
    for process in together("share", 2, folders={1: tmp_path / "elsewhere"}).values():
        status, text = ended(process)
        assert status == 3, text
        assert "(process 0): process 0's file in workdir is not seen here and seen there" in sentences(text)[0]


def test_unequal_devices_are_told_before_anything_is_gathered(together):
    for process in together("share", 2, devices={1: 2}).values():
        status, text = ended(process)
        assert status == 3, text
        assert sentences(text) == ["vf: process 1 has 2 devices, not 1 as process 0: give as many"]


def test_all_stop_at_one_step(together):
    """Which is none that one has passed, also where SIGTERM comes before the first one."""
    lines = set()
    for process in together("stop_at_one_step", 3).values():
        status, text = ended(process)
        assert status == 143, text
        lines.update(sentences(text))
    assert len(lines) == 1


def test_bad_input_ends_all_with_its_sentence(together):
    for process in together("bad_input", 2).values():
        status, text = ended(process)
        assert status == 2, text
        assert sentences(text) == ["vf: the batch cannot be split"]


@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_host_ends_the_others(together, who):
    """Whatever they do; by jax, which names the dead process where its service has survived."""
    processes = together("sleep", 2, HEARTBEAT_TIMEOUT="6")
    wait_until(processes[1 - who], lambda: all("sleeps" in one.log.read_text() for one in processes.values()))
    processes[who].kill()
    status, text = ended(processes[1 - who], 30)
    assert status == -signal.SIGABRT, text
    if who == 1:
        assert "The following tasks are unhealthy (stopped sending heartbeats):\n1\n" in text


def test_a_defect_of_one_ends_the_others(together):
    processes = together("defect", 2, HEARTBEAT_TIMEOUT="4")
    status, text = ended(processes[1])
    assert status == 1
    assert "ZeroDivisionError" in text
    assert ended(processes[0], 30)[0] == -signal.SIGABRT


def test_differences_are_named():
    one = {"mode": "train", "config.train.steps": "4", "jax": "0.10"}
    two = {"mode": "train", "config.train.steps": "6", "jax": "0.9", "libtpu": "1"}
    assert difference([HostInfo("a", one), HostInfo("b", dict(one))]) is None
    sentence = difference([HostInfo("a", one), HostInfo("b", one), HostInfo("c", two)])
    assert "host c (process 2) differs from host a (process 0): config.train.steps is 6 here and 4 there" in sentence
    assert "libtpu is 1 here and None there: start all" in sentence
    many = HostInfo("b", dict.fromkeys("abcde", "other"))
    assert "(and 2 more)" in difference([HostInfo("a", dict.fromkeys("abcde", "")), many])


# Training


def losses(workdir) -> dict[int, float]:
    """{step: loss}, each the mean since the checkpoint before; of the last time where a step was made twice."""
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row}


def stopped(processes, workdir):
    """SIGTERM to the last one has ended all with 143, after one step that all report and have saved."""
    processes[-1].terminate()
    lines = set()
    for process in processes:
        status, text = ended(process)
        assert status == 143, text
        lines.add(sentences(text)[-1])
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert lines == {f"vf: stopped by a signal; step {step} is saved, and the same command goes on from there"}


def test_two_processes_train_like_one_and_sigterm_saves(main, tmp_path):
    """To rounding; neither their number nor a restart on another number of them matters."""
    two, one = tmp_path / "two", tmp_path / "one"
    processes = main(2, "two")
    wait_until(processes[0], lambda: 4 in losses(two))
    stopped(processes, two)
    assert "still " not in processes[1].log.read_text()  # the first says what goes on, while they compile
    together = losses(two)
    (process,) = main(1, "one")
    wait_until(process, lambda: 4 in losses(one))
    stopped([process], one)
    for checkpoint in (two / "checkpoints").iterdir():
        if checkpoint.name != "2":
            shutil.rmtree(checkpoint)
    (two / METRICS).unlink()
    (process,) = main(1, "two")
    wait_until(process, lambda: 4 in losses(two))
    assert "restored step 2" in process.log.read_text()
    assert [start["processes"] for start in json.loads((two / "run.json").read_text())["starts"]] == [2, 1]
    alone, after = losses(one), losses(two)
    np.testing.assert_allclose([together[2], together[4], after[4]], [alone[2], alone[4], alone[4]], rtol=1e-5)


def test_another_config_ends_all_with_status_3(main):
    for process in main(2, "run", "--config.seed={index}"):
        status, text = ended(process)
        assert status == 3, text
        assert "config.seed is 1 here and 0 there" in sentences(text)[0]


@pytest.mark.slow
def test_four_processes_train_and_two_resume(main, tmp_path):
    """Parameters split over all devices too, and an evaluation by both."""
    split = "--config.mesh.fsdp=-1", "--config.mesh.data=1"
    evaluation = "--config.train.steps=4", "--mode=evaluate", "--config.sample.seed=1"  # other samples than training's
    for count, *flags in ((4, "--config.train.steps=2"), (2, "--config.train.steps=4"), (2, *evaluation)):
        for process in main(count, "run", *split, *flags):
            status, text = ended(process, 400)
            assert status == 0, text
    evaluated = [json.loads(line)["step"] for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert evaluated == [2, 4, 4, 2]  # at the end of each training, then all, the newest first
    (process,) = main(1, "one", "--config.train.steps=4")
    status, text = ended(process, 300)
    assert status == 0, text
    one, other = losses(tmp_path / "one"), losses(tmp_path / "run")
    np.testing.assert_allclose([other[2], other[4]], [one[2], one[4]], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "numbers"), [(1, (signal.SIGTERM, signal.SIGINT)), (2, (signal.SIGTERM,))])
def test_a_signal_at_any_moment_loses_nothing(main, tmp_path, count, numbers):
    """From the start of a run to its end: a sentence and its status, or the whole run; every step that was logged."""
    flags = ["--config.train.steps=60", "--config.train.sample_every=20", "--compile_cache="]
    began = time.monotonic()
    for process in main(count, "whole", *flags):
        assert ended(process, 200)[0] == 0
    longest = time.monotonic() - began
    instants = np.random.default_rng(count).uniform(0.5, longest, int(os.environ.get("INSTANTS", "10")))
    for k, seconds in enumerate(instants):
        workdir, number = tmp_path / f"run{k}", numbers[k % len(numbers)]
        processes = main(count, f"run{k}", *flags)
        time.sleep(seconds)
        for process in processes:
            process.send_signal(number)
        results = [ended(process, 100) for process in processes]
        told = f"{number.name} after {seconds:.2f} of {longest:.2f} s: {results}"
        for status, text in results:
            assert status in (0, 128 + number), told
            assert "Traceback" not in text, told
            assert status == 0 or len(sentences(text)) == 1, told
        with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
            assert (checkpoints.latest() or 0) == max(losses(workdir), default=0), told
        print(f"{number.name} after {seconds:.2f} of {longest:.2f} s", *(status for status, _ in results))
