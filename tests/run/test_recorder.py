"""What a run writes can be read back, by us, by TensorBoard and by any JSON reader, after a crash too."""

import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vf import files
from vf.metrics.protocol import protocol_hash
from vf.run.metrics_file import read_metrics
from vf.run.provenance import PACKAGES
from vf.run.recorder import Recorder
from vf.types import UserError

PROTOCOL = {"features": "i3d", "clips": 2048, "frames": 16}


def lines_of(workdir: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def events_of(workdir: Path) -> list:
    """All events of the run, read from the bytes: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    events = []
    for path in sorted((files.path(workdir) / "tensorboard").iterdir()):
        assert "tfevents" in path.name
        stream = io.BytesIO(path.read_bytes())
        while header := stream.read(8):
            assert struct.unpack("<I", stream.read(4))[0] == masked_crc32c(header)
            data = stream.read(struct.unpack("<Q", header)[0])
            assert struct.unpack("<I", stream.read(4))[0] == masked_crc32c(data)
            events.append(Event.FromString(data))
    return events


def test_scalars_of_every_kind_are_read_back(tmp_path):
    recorder = Recorder(tmp_path / "deep" / "run")
    values = {"a": 0.5, "b": np.float32(0.25), "c": jnp.float32(2), "d": np.array([3.0]).reshape(())}
    recorder.scalars(7, values)
    (line,) = lines_of(recorder.workdir)
    assert line.pop("time") > 1.6e9
    assert line == {"step": 7, "a": 0.5, "b": 0.25, "c": 2.0, "d": 3.0}


def test_each_line_is_on_disk_when_the_call_returns(tmp_path):
    recorder = Recorder(tmp_path)
    for step in range(3):
        recorder.scalars(step, {"a": step})
        assert len(lines_of(tmp_path)) == step + 1


@pytest.mark.parametrize("name", ["step", "time", "score", "text"])
def test_scalars_with_a_name_of_the_format_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        Recorder(tmp_path).scalars(1, {name: 1.0})


def test_what_is_not_finite_is_valid_json_and_reads_as_float(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.scalars(1, {"a": math.nan, "b": math.inf, "c": jnp.float32(-jnp.inf)})
    recorder.score(1, "nan", math.nan, PROTOCOL, reference=math.inf)
    recorder.text(1, "why", "nan")
    assert [lines_of(tmp_path)[0][key] for key in "abc"] == ["nan", "inf", "-inf"]
    scalars, score, text = read_metrics(tmp_path)
    assert math.isnan(scalars["a"])
    assert (scalars["b"], scalars["c"]) == (math.inf, -math.inf)
    assert math.isnan(score["value"])
    assert (score["score"], score["reference"], text["value"]) == ("nan", math.inf, "nan")


def test_a_score_without_protocol_cannot_be_written(tmp_path):
    for writer in (True, False):
        with pytest.raises(ValueError, match="protocol"):
            Recorder(tmp_path, is_writer=writer).score(1, "fvd", 3.0, {})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_score_carries_its_protocol(tmp_path):
    Recorder(tmp_path).score(5, "fvd", np.float64(3.5), PROTOCOL, reference=1.5, target=2)
    (line,) = lines_of(tmp_path)
    del line["time"]
    assert line.pop("protocol_hash") == protocol_hash(PROTOCOL)
    assert line == {
        "step": 5, "score": "fvd", "value": 3.5, "protocol": PROTOCOL, "reference": 1.5, "target": 2.0
    }  # fmt: skip


def test_describe_records_config_versions_devices_and_earlier_starts(tmp_path):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    config = {"lr": 1e-3, "mult": (1, 2), "dtype": jnp.bfloat16, "nested": {"bad": math.inf}}
    Recorder(tmp_path).describe(config, mesh=mesh, seed=3, total_steps=10)
    assert read_json(tmp_path / "config.json") == {
        "lr": 1e-3, "mult": [1, 2], "dtype": "bfloat16", "nested": {"bad": "inf"}
    }  # fmt: skip
    (first,) = read_json(tmp_path / "run.json")["starts"]
    assert first["mesh"] == {"data": 4, "model": 2}
    assert first["devices"] == {"kind": jax.devices()[0].device_kind, "platform": "cpu", "count": 8}
    assert (first["seed"], first["total_steps"], first["processes"]) == (3, 10, 1)
    assert first["versions"]["jax"] == jax.__version__
    assert first["versions"]["numpy"] == np.__version__
    assert set(first["versions"]) == {"python", *PACKAGES}

    Recorder(tmp_path).describe(config, seed=4)
    starts = read_json(tmp_path / "run.json")["starts"]
    assert starts[0] == first
    assert [start["seed"] for start in starts] == [3, 4]


def test_the_config_of_each_start_is_retained(tmp_path):
    for lr in (1, 2, 2):
        Recorder(tmp_path).describe({"lr": lr})
    assert read_json(tmp_path / "config.json") == {"lr": 2}
    assert [start["config"] for start in read_json(tmp_path / "run.json")["starts"]] == [{"lr": lr} for lr in (1, 2, 2)]


def test_the_config_of_an_earlier_version_s_start_is_retained(tmp_path):
    """Its run.json holds no configs, and only the latest can still be known."""
    (tmp_path / "run.json").write_text('{"starts": [{"seed": 1}, {"seed": 2}]}')
    (tmp_path / "config.json").write_text('{"lr": 1}')
    Recorder(tmp_path).describe({"lr": 2})
    configs = [start.get("config") for start in read_json(tmp_path / "run.json")["starts"]]
    assert configs == [None, {"lr": 1}, {"lr": 2}]
    (tmp_path / "config.json").write_text("{torn")  # of a start whose config is known
    Recorder(tmp_path).describe({"lr": 3})
    assert read_json(tmp_path / "config.json") == {"lr": 3}


def test_a_damaged_run_json_is_set_aside(tmp_path):
    (tmp_path / "run.json").write_text("{torn")
    Recorder(tmp_path).describe({})
    assert len(read_json(tmp_path / "run.json")["starts"]) == 1
    assert [path.read_text() for path in tmp_path.glob("run.damaged.*")] == ["{torn"]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    Recorder(tmp_path).scalars(3, {"train/loss": 0.5, "train/lr": 1e-3})
    resumed = Recorder(tmp_path)
    resumed.score(4, "fvd", 7.0, PROTOCOL)
    resumed.scalars(5, {"train/loss": 0.25})
    events = events_of(tmp_path)
    assert [event.file_version for event in events if event.file_version] == ["brain.Event:2"] * 2
    # Where a start begins, TensorBoard forgets what an earlier one drew.
    started = [event.step for event in events if event.session_log.status == event.session_log.START]
    assert started == [3, 4]
    values = [(event.step, v.tag, v.simple_value) for event in events for v in event.summary.value]
    assert values == [
        (3, "train/loss", 0.5),
        (3, "train/lr", pytest.approx(1e-3)),
        (4, "score/fvd", 7.0),
        (5, "train/loss", 0.25),
    ]


def test_tensorboard_shows_clips(tmp_path):
    clips = np.zeros((3, 4, 6, 8, 3), np.uint8)
    clips[:, :, 2] = 255
    clips[:, 1::2, 3] = 99
    Recorder(tmp_path).video(1, "samples", clips, columns=3)
    (value,) = (value for event in events_of(tmp_path) for value in event.summary.value)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
        assert (image.format, image.n_frames) == ("GIF", 4)
        assert image.size == (value.image.width, value.image.height) == (3 * 8 + 2, 6)


def test_only_the_first_host_writes(tmp_path):
    recorder = Recorder(tmp_path / "run", is_writer=False)
    recorder.describe({})
    recorder.scalars(1, {"a": 1})
    recorder.score(1, "fvd", 1, PROTOCOL)
    recorder.text(1, "why", "done")
    recorder.video(1, "samples", np.zeros((1, 1, 4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


REMOTE = "gs://bucket/run"


def a_life(workdir) -> None:
    """Two starts, the second of them from an earlier step, with another config, and a damaged run.json between."""
    with Recorder(workdir) as recorder:
        recorder.describe({"lr": 1})
        for step in range(1, 31):
            recorder.scalars(step, {"train/loss": step, "only_first": 1})
        recorder.score(30, "fvd", 30, PROTOCOL)
    files.write_whole(recorder.workdir / "run.json", "{torn")
    with Recorder(workdir) as recorder:
        recorder.describe({"lr": 2})
        recorder.file("note.txt", "kept")
        recorder.scalars(20, {"train/loss": -20})
        recorder.score(30, "fvd", -30, PROTOCOL)
        recorder.text(30, "why", "done")
        recorder.video(30, "samples", np.zeros((2, 2, 4, 4, 3), np.uint8))


def test_a_run_in_an_object_store_equals_one_on_a_disk(tmp_path, bucket):
    for workdir in (tmp_path, REMOTE):
        a_life(workdir)
    local, remote = ([{**row, "time": 0} for row in read_metrics(workdir)] for workdir in (tmp_path, REMOTE))
    assert remote == local
    assert len(local) == 32

    def named(workdir):
        found = files.children(files.path(workdir))
        return {".".join(word for word in path.name.split(".") if not word.isdecimal()) for path in found}

    assert named(REMOTE) ^ named(tmp_path) == {"metrics.jsonl", "metrics"}
    assert json.loads(bucket["bucket/run/config.json"]) == {"lr": 2}
    assert bucket["bucket/run/note.txt"] == b"kept\n"
    assert [start["config"] for start in json.loads(bucket["bucket/run/run.json"])["starts"]] == [{"lr": 1}, {"lr": 2}]
    (damaged,) = (content for name, content in bucket.items() if "damaged" in name)
    assert damaged == b"{torn"

    def drawn(workdir):
        events = events_of(workdir)
        started = [event.step for event in events if event.session_log.status == event.session_log.START]
        return started, [(event.step, value.tag) for event in events for value in event.summary.value]

    assert drawn(REMOTE) == drawn(tmp_path)


def test_a_killed_job_loses_buffered_lines_and_no_score(bucket):
    """A job killed at any moment leaves what is in the store by then."""
    recorder = Recorder(REMOTE)
    recorder.scalars(1, {"a": 1})
    assert read_metrics(REMOTE) == []
    recorder.score(1, "fvd", 3.0, PROTOCOL)
    assert [row["step"] for row in read_metrics(REMOTE)] == [1, 1]  # and the numbers before it
    recorder.scalars(2, {"a": 2})
    assert len(read_metrics(REMOTE)) == 2
    recorder.text(2, "why", "killed")
    assert [row.get("text") for row in read_metrics(REMOTE)] == [None, None, None, "why"]
    recorder.scalars(3, {"a": 3})
    spool = recorder._spool
    del recorder  # as at the end of a program that does not close it
    assert [row["step"] for row in read_metrics(REMOTE)] == [1, 1, 2, 2, 3]
    assert [event.step for event in events_of(REMOTE) if event.summary.value] == [1, 1, 2, 3]
    assert not spool.exists()


def test_a_large_event_file_is_followed_by_another(bucket, monkeypatch):
    """Else a store would be sent all of it every ten seconds."""
    monkeypatch.setattr("vf.run.recorder.MOST_BYTES", 2000)
    with Recorder(REMOTE) as recorder:
        for step in range(200):
            recorder.scalars(step, {"a": step})
        assert len(list(recorder._spool.iterdir())) <= 1
    events = events_of(REMOTE)
    assert sum(bool(event.file_version) for event in events) > 3
    assert [value.simple_value for event in events for value in event.summary.value] == list(range(200))
    assert sum(event.session_log.status == event.session_log.START for event in events) == 1


def test_an_error_is_not_hidden_by_a_store_that_fails_too(bucket, monkeypatch):
    recorder = Recorder(REMOTE)

    def fail(path, content):
        raise OSError("no network")

    def job(divisor):
        with recorder:
            recorder.scalars(2, {"a": 1 / divisor})

    recorder.scalars(1, {"a": 1})
    with monkeypatch.context() as broken:
        broken.setattr(files, "write_whole", fail)
        with pytest.raises(ZeroDivisionError):
            job(0)
        with pytest.raises(OSError, match="no network"):
            job(1)
    recorder.close()
    assert [row["step"] for row in read_metrics(REMOTE)] == [1, 2]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"run folder.*file.*choose another") as error:
            Recorder(workdir)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_import_touches_no_backend_and_no_other_framework():
    code = (
        "import sys, vf.run.recorder, vf.run.page, jax._src.xla_bridge as bridge\n"
        "assert not {'tensorflow', 'torch'} & sys.modules.keys()\n"
        "from tensorboardX.record_writer import RecordWriter\n"  # imports torch where there is one
        "assert not bridge._backends, 'a backend was started'\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
