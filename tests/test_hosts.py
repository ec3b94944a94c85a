"""Several processes as one run: who is missing or differs is named, the end of one is the end of all, SIGTERM saves."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vf.hosts import desk, ends, run
from vf.hosts.card import unlike
from vf.hosts.ends import HostsError
from vf.hosts.place import Place, place
from vf.hosts.run import Hosts
from vf.run.metrics_file import read_metrics
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

ROOT = Path(__file__).parents[1]
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
        "train": {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "sample_every": 0,
                  "warmup_steps": 2, "schedule": "constant"},
        "mesh": {"cpu_devices": 0},
        "sample": {"count": 4, "batch_size": 4, "steps": 1},
        "eval": {"clips": 4, "batch_size": 4, "levels": (500,)},
    })
    return config
"""
ENDLESS = ("--config.train.steps=1000000", "--config.train.checkpoint_every=1000000")


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts process I of N of a run in tmp_path/run, with flags of its own; all are ended afterwards."""
    (tmp_path / "small.py").write_text(SMALL)
    port, started = free_port(), []

    def one(process, processes, *flags, workdir="run", port=port):
        who = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={process}"]
        given = [f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / workdir}", *(who if processes else ())]
        log = tmp_path / f"{len(started)}.log"
        with log.open("w") as file:
            made = subprocess.Popen(
                [sys.executable, "-m", "vf.main", *given, *flags],
                cwd=ROOT, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"}, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        made.log = log
        started.append(made)
        return made

    yield one
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def ended(process, seconds) -> tuple[int, str]:
    """Exit status and log. Fails where the process is still there after `seconds`."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {seconds} s:\n{process.log.read_text()}")
    return process.returncode, process.log.read_text()


def wait_for_steps(workdir, process, seconds=240):
    end = time.monotonic() + seconds
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and "train/loss" in metrics.read_text()):  # of a step that all processes came to
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"no step:\n{process.log.read_text()}")
        time.sleep(0.2)
    time.sleep(1)


def losses(workdir) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row}


def told(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("vf: ")]


# Who is this process?


def test_flags_say_who_a_process_is():
    assert place("10.0.0.1:8476", 4, 3, 1) == Place("10.0.0.1:8476", 4, 3, True)
    assert place("[::1]:8476", 2, 0, 1).address == ("::1", 8476)
    assert place("10.0.0.1:8476", 1, 0, 1) is None
    assert place(None, 1, None, 1) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, 0), "--processes is missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("a:1", 2, 2), "--process must be 0 to 1 for --processes=2, got 2"),
        (("a", 2, 1), "--coordinator must be HOST:PORT"),
        (("a:b", 2, 1), "--coordinator must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        place(*flags, 1)


@pytest.fixture
def elsewhere(monkeypatch):
    """No cluster around the tests."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_a_single_process_is_alone_anywhere(elsewhere):
    assert place(None, None, None, 1) is None
    task = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in task.items():
        elsewhere.setenv(name, value)
    elsewhere.setenv("SLURM_STEP_ID", "0")
    elsewhere.setenv("SLURM_NTASKS", "1")
    assert place(None, None, None, 1) is None
    elsewhere.setenv("SLURM_NTASKS", "2")
    elsewhere.delenv("SLURM_STEP_ID")  # the batch script itself: not under srun
    assert place(None, None, None, 1) is None
    elsewhere.setenv("SLURM_STEP_ID", "0")
    elsewhere.setenv("SLURM_PROCID", "1")
    assert place(None, None, None, 1) == Place(f"n3:{7 + 2**16 - 2**12}", 2, 1, False)
    with Hosts() as alone:
        assert alone.share(3) == 3
        assert not alone.stopping(1)


def test_a_tpu_slice_is_found(elsewhere):
    from jax._src.clusters import cloud_tpu_cluster

    elsewhere.setenv("JAX_PLATFORMS", "tpu")
    elsewhere.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    elsewhere.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,127.0.0.2")
    elsewhere.setenv("TPU_WORKER_ID", "1")
    elsewhere.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    for name, value in (("MEGASCALE_NUM_SLICES", "1"), ("MEGASCALE_SLICE_ID", "0")):
        elsewhere.setenv(name, value)
    elsewhere.setattr(cloud_tpu_cluster, "get_tpu_env_value", lambda name: os.environ.get(name))
    assert place(None, None, None, 5) == Place("127.0.0.1:8482", 2, 1, False)
    elsewhere.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    elsewhere.setenv("TPU_WORKER_ID", "0")
    assert place(None, None, None, 5) is None
    elsewhere.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,nowhere.invalid")
    elsewhere.setattr(cloud_tpu_cluster.GkeTpuCluster, "get_process_count", lambda: 1 / 0)
    with pytest.raises(HostsError, match=r"gketpu.*cannot be found.*--processes=1 for this one alone"):
        place(None, None, None, 1)


# Do they fit together?


def test_what_differs_is_named():
    names = {0: "a", 1: "b", 2: "c"}
    one = {"mode": "train", "config": "123", "config.train.steps": "4", "code": "f00 (revision 1)", "jax": "0.10"}
    same = {**one, "code": "f00"}  # elsewhere the revision is not known
    assert unlike({0: one, 1: same, 2: one}, names) is None
    other = {**one, "config": "456", "config.train.steps": "6", "jax": "0.9"}
    told = unlike({0: one, 1: same, 2: other}, names)
    assert "host c (process 2) differs from host a (process 0): config.train.steps is 6 here and 4 there; jax" in told
    told = unlike({0: one, 1: {**one, "code": "bad (revision 2)"}, 2: other}, names)
    assert "host b (process 1)" in told
    assert "code is bad (revision 2) here and f00 (revision 1) there; process 2 too: start all" in told


def together(cards, tmp_path, monkeypatch, folders=None, timeout=5.0):
    """All joined as threads of this process, without jax: what each raised, or None."""
    monkeypatch.setattr(run.jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(run.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(ends, "GRACE", 0.2)
    port, raised = free_port(), {}

    def join(process):
        folder = tmp_path / (folders or {}).get(process, "run")
        one = Hosts(Place(f"127.0.0.1:{port}", len(cards), process, True), cards[process], folder, timeout=timeout)
        raised[process] = None
        try:
            one.__enter__()
            raised[process] = one
        except (HostsError, UserError) as error:
            raised[process] = error

    threads = [threading.Thread(target=join, args=(process,)) for process, card in enumerate(cards) if card is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_four_come_together_share_and_agree_on_a_step(tmp_path, monkeypatch):
    four = together([{"mode": "train"}] * 4, tmp_path, monkeypatch)
    assert all(isinstance(one, Hosts) for one in four.values())
    assert list((tmp_path / "run").iterdir()) == []  # the token is gone
    shared = {}
    threads = [threading.Thread(target=lambda i=i: shared.update({i: four[i].share([i, "x"])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert shared == {key: [0, "x"] for key in range(4)}
    stopped = {}

    def steps(process):
        for step in range(1, 10**6):
            time.sleep(0.01 * (process + 1))  # none keeps pace with another
            if step == 20 and process == 2:
                four[process].terminate(signal.SIGTERM, None)
            if four[process].stopping(step):
                stopped[process] = step
                return

    threads = [threading.Thread(target=steps, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stopped) == 4
    assert len(set(stopped.values())) == 1
    monkeypatch.setattr(run, "TWICE", 0)
    with pytest.raises(SystemExit):
        four[2].terminate(signal.SIGTERM, None)  # the second time


def test_who_does_not_come_is_named_to_all(tmp_path, monkeypatch):
    raised = together([{"a": "1"}, None, {"a": "1"}, None], tmp_path, monkeypatch, timeout=2)
    for process in (0, 2):
        assert isinstance(raised[process], HostsError)
        assert "process 1, 3 of 4 did not come within 2 s, and process 0 (host " in str(raised[process])


def test_process_0_cannot_be_reached(tmp_path, monkeypatch):
    raised = together([None, {"a": "1"}], tmp_path, monkeypatch, timeout=2)
    assert "cannot reach process 0 at 127.0.0.1:" in str(raised[1])
    assert "within 2 s (Connection refused)" in str(raised[1])


def test_another_folder_of_the_same_name_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "READ_SECONDS", 1.0)
    raised = together([{"a": "1"}] * 3, tmp_path, monkeypatch, folders={1: "elsewhere"})
    for error in raised.values():
        assert isinstance(error, HostsError)
        assert "--workdir is not the same folder on all hosts" in str(error)
        assert "(process 1)" in str(error)
        assert "(process 2)" not in str(error)


def test_a_folder_that_cannot_be_written_is_told_to_all(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("a file")
    raised = together([{"a": "1"}] * 2, tmp_path, monkeypatch)
    for error in raised.values():
        assert isinstance(error, UserError)
        assert "expected a run folder that can be written" in str(error)


def test_strangers_at_the_port_do_no_harm(tmp_path, monkeypatch):
    real = desk._listening
    port = []

    def listening(number):
        port.append(number)
        return real(number)

    monkeypatch.setattr(desk, "_listening", listening)

    def knock():
        for text in (b"GET / HTTP/1.0\r\n\r\n", b'["bye", {"status": 1}]\n', b'["card", 3]\n', b""):
            while not port:
                time.sleep(0.01)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port[0]), 2) as connection:
                connection.sendall(text)

    thread = threading.Thread(target=knock)
    thread.start()
    raised = together([{"a": "1"}] * 2, tmp_path, monkeypatch)
    thread.join(10)
    assert all(isinstance(one, Hosts) for one in raised.values())


# Whole processes


def test_a_missing_host_ends_all_with_status_3(start):
    for process in [start(i, 3, "--startup_timeout=8") for i in (0, 2)]:
        status, text = ended(process, 60)
        assert status == 3, text
        assert len(told(text)) == 1
        assert "process 1 of 3 did not come within 8 s" in told(text)[0]
        assert "Traceback" not in text


def test_another_config_ends_all_with_status_3(start):
    for process in [start(0, 2), start(1, 2, "--config.train.steps=6")]:
        status, text = ended(process, 60)
        assert status == 3, text
        assert len(told(text)) == 1
        assert "(process 1) differs from host" in told(text)[0]
        assert "config.train.steps is 6 here and 4 there: start all hosts" in told(text)[0]


def test_bad_input_ends_all_with_status_2(start):
    for process in [start(i, 2, "--config.train.batch_size=3") for i in range(2)]:
        status, text = ended(process, 100)
        assert status == 2, text
        assert "cannot be split over" in told(text)[0]


def test_two_train_and_one_goes_on(start, tmp_path):
    """As one process does, to rounding: neither their number nor a restart on another number of them matters."""
    two = [start(i, 2, "--config.train.steps=2", workdir="two") for i in range(2)]
    for process in two:
        status, text = ended(process, 300)
        assert status == 0, text
    status, text = ended(start(0, 0, workdir="two"), 300)
    assert status == 0, text
    assert "restored step 2" in text
    starts = json.loads((tmp_path / "two" / "run.json").read_text())["starts"]
    assert [one["processes"] for one in starts] == [2, 1]
    status, text = ended(start(0, 0, workdir="one"), 300)
    assert status == 0, text
    one, other = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == other.keys() == {2, 4}
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-5)


def test_a_killed_host_ends_the_others(start, tmp_path):
    processes = [start(i, 2, *ENDLESS) for i in range(2)]
    wait_for_steps(tmp_path / "run", processes[0])
    processes[1].kill()
    status, text = ended(processes[0], 60)
    assert status == 1, text
    assert "(process 1) has gone" in told(text)[-1]
    assert "goes on from the last checkpoint" in told(text)[-1]


@pytest.mark.slow
def test_the_first_host_killed_ends_the_others(start, tmp_path):
    """jax's own service goes with it, so that its abort may come first: after our line."""
    processes = [start(i, 2, *ENDLESS) for i in range(2)]
    wait_for_steps(tmp_path / "run", processes[0])
    processes[0].kill()
    for process in processes[1:]:
        status, text = ended(process, 60)
        assert status in (1, -signal.SIGABRT), text
        assert "(process 0) has gone" in told(text)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)])
def test_sigterm_saves_one_step_on_all(start, tmp_path, who):
    processes = [start(i, 2, *ENDLESS) for i in range(2)]
    wait_for_steps(tmp_path / "run", processes[0])
    for i in who:
        processes[i].terminate()
    lines = set()
    for process in processes:
        status, text = ended(process, 60)
        assert status == 143, text
        lines.add(told(text)[-1])
    (line,) = lines
    with Checkpoints(str(tmp_path / "run" / "checkpoints"), read_only=True) as checkpoints:
        assert (
            line == f"vf: told to stop; step {checkpoints.latest()} is saved, and the same command goes on from there"
        )


def test_sigterm_saves_in_one_process(start, tmp_path):
    process = start(0, 0, *ENDLESS)
    wait_for_steps(tmp_path / "run", process)
    process.terminate()
    status, text = ended(process, 60)
    assert status == 143, text
    with Checkpoints(str(tmp_path / "run" / "checkpoints"), read_only=True) as checkpoints:
        assert f"told to stop; step {checkpoints.latest()} is saved" in told(text)[-1]


@pytest.mark.slow
def test_four_train_and_two_go_on(start, tmp_path):
    """Parameters split over all devices too, and an evaluation by both."""
    split = "--config.mesh.fsdp=-1", "--config.mesh.data=1"
    jobs = ((4, "--config.train.steps=2"), (2, "--config.train.steps=4"), (2, "--mode=evaluate"))
    for count, flag in jobs:
        port = free_port()
        for process in [start(i, count, *split, flag, port=port) for i in range(count)]:
            status, text = ended(process, 400)
            assert status == 0, text
    status, text = ended(start(0, 0, workdir="one"), 300)
    one, other = losses(tmp_path / "one"), losses(tmp_path / "run")
    np.testing.assert_allclose([other[2], other[4]], [one[2], one[4]], rtol=1e-5)
