"""Rates are counts over time; chips are known by the names that drivers give them."""

import io
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from vf import files
from vf.activity import Activity
from vf.jobs import meter
from vf.run.recorder import Recorder
from vf.training import sharding


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"), ("NVIDIA B200", "B200"), ("cpu", None), ("NVIDIA T4", None),
    ],
)  # fmt: skip
def test_chips_by_the_names_of_their_drivers(kind, name):
    found = meter.chip_of(SimpleNamespace(device_kind=kind))
    assert (found.name if found else None) == name


def test_rates(monkeypatch):
    now = [100.0]
    rates = meter.Meter(sharding.make_mesh(), flops=8e12, clips=16, half=True, clock=lambda: now[0])
    now[0] += 2
    found = rates.read(4)
    assert found["steps_per_s"] == 2
    assert found["clips_per_s_per_device"] == 16 * 2 / 8
    assert found["tflops_per_device"] == pytest.approx(2)
    assert "mfu" not in found  # nobody knows a CPU's peak
    now[0] += 1
    assert rates.read(1)["steps_per_s"] == 1
    rates._peak = 4e12
    now[0] += 1
    assert rates.read(1)["mfu"] == pytest.approx(0.25)
    now[0] += 100  # of sampling, and one of training
    rates.skip(99)
    assert rates.read(1)["steps_per_s"] == pytest.approx(1)


def test_phases_add_up(monkeypatch, caplog):
    now = [10.0]
    monkeypatch.setattr(meter.time, "time", lambda: now[0])
    caplog.set_level("INFO")
    phases = meter.Phases(began=8.0, last={"compile": 38.4, "first batch": 0.2})
    phases.end("import")
    now[0] = 15.0
    for name, seconds in (("compile", 4.0), ("compile", 1.0), ("first batch", 0.5)):
        with phases.phase(name, f"doing {name}"):
            now[0] += seconds
        now[0] += 10
    assert phases.take("the first step") == {
        "startup/import": 2.0, "startup/compile": 5.0, "startup/first batch": 0.5
    }  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "doing compile; the last time took 38.4 s", "doing compile; the last time took 38.4 s", "doing first batch",
        "7.5 s of preparation for the first step: import 2.0 s, compile 5.0 s, first batch 0.5 s",
    ]  # fmt: skip
    program = phases.compiled(jax.jit(lambda x: x + 1), "sampling")
    assert [int(program(k)) for k in (1, 2)] == [2, 3]
    assert list(phases.take("the samples")) == ["startup/lower sampling", "startup/compile sampling"]
    assert phases.take("the samples") == {}


def test_a_long_phase_is_said_again(monkeypatch):
    """With what it took the last time, and not in the metrics."""
    stream = io.StringIO()
    monkeypatch.setattr(meter, "ACTIVITY", Activity(0.01, stream))
    phases = meter.Phases(last={"compile": 31.4})
    with phases.phase("compile", "compiling the training step"):
        while not (lines := stream.getvalue().splitlines()):
            pass
    assert lines[0] == "now compiling the training step (last time 31 s)"
    assert list(phases.take("the first step")) == ["startup/compile"]


def test_phases_of_a_run_know_of_its_last_start(tmp_path, caplog):
    caplog.set_level("INFO")
    with Recorder(tmp_path) as recorder:
        recorder.scalars(0, {"startup/compile": 90.0})
        recorder.scalars(4, {"startup/compile": 30.0, "train/loss": 1.0})
    with meter.Phases.of(tmp_path).phase("compile", "compiling the training step"):
        pass
    assert caplog.messages == ["compiling the training step; the last time took 30.0 s"]


def test_a_trace_is_of_the_steps_after_the_tenth(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(meter.jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(meter.jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    trace = meter.Trace(tmp_path, first=100, steps=3)
    for step in range(101, 120):
        trace.before(step)
        calls.append(step)
        trace.after(step, {})
    begin = calls.index(("start", str(tmp_path)))
    assert calls[begin + 1 : calls.index(("stop",))] == [110, 111, 112]
    none = meter.Trace(tmp_path, first=0, steps=0)
    none.before(10)
    none.close()
    assert calls.count(("stop",)) == 1


def test_a_trace_reaches_an_object_store(bucket, monkeypatch):
    """The profiler writes to disks only."""

    def start(folder):
        (Path(folder) / "plugins").mkdir()
        (Path(folder) / "plugins" / "host.xplane.pb").write_bytes(b"trace")

    monkeypatch.setattr(meter.jax.profiler, "start_trace", start)
    monkeypatch.setattr(meter.jax.profiler, "stop_trace", lambda: None)
    trace = meter.Trace(files.path("gs://bucket/run") / "profile", first=0, steps=1)
    for step in range(1, 12):
        trace.before(step)
        trace.after(step, {})
    assert bucket == {"bucket/run/profile/plugins/host.xplane.pb": b"trace"}
