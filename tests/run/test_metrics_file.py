"""Every whole line is read back once, after crashes and resumes too."""

from vf.run.metrics_file import read_metrics
from vf.run.recorder import Recorder

PROTOCOL = {"features": "i3d", "clips": 2048, "frames": 16}
REMOTE = "gs://bucket/run"


def test_a_torn_line_loses_no_other_line(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.scalars(1, {"a": 1})
    recorder.scalars(2, {"a": 2})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    Recorder(tmp_path).scalars(3, {"a": 3})  # On a separate line, not appended to the torn one.
    assert [(line["step"], line["a"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (3, 3.0)]


def test_lines_that_are_not_reports_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n"step"\n{"a": 1}\n\xff\xfe\n{"step": 4, "a": 1}\n\n')
    assert read_metrics(tmp_path) == [{"step": 4, "a": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_after_a_resume_the_later_value_wins_by_step_and_name(tmp_path):
    recorder = Recorder(tmp_path)
    for step in (10, 20, 30):
        recorder.scalars(step, {"loss": step, "only_first": 1})
        recorder.score(step, "fvd", step, PROTOCOL)
    resumed = Recorder(tmp_path)
    resumed.scalars(20, {"loss": -20})
    resumed.score(20, "fvd", -20, PROTOCOL)
    resumed.score(20, "fvd", -21, {**PROTOCOL, "clips": 16})
    lines = read_metrics(tmp_path)
    assert [(x["step"], x["loss"], x["only_first"]) for x in lines if "loss" in x] == [
        (10, 10, 1),
        (20, -20, 1),
        (30, 30, 1),
    ]
    scores = [(x["step"], x["value"]) for x in lines if "score" in x]
    assert scores == [(10, 10), (20, -20), (20, -21), (30, 30)]


def test_lines_of_jobs_beside_each_other_are_read_by_time(bucket, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    with Recorder(REMOTE) as one, Recorder(REMOTE, events="tensorboard/evaluate") as two:
        for value, recorder in enumerate((two, one, two, one, two)):
            clock[0] += 1
            recorder.score(1, "fvd", value, PROTOCOL)
    assert [row["value"] for row in read_metrics(REMOTE)] == [4]
