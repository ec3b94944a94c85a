"""The page is well-formed, complete, escaped and true to the numbers, whatever the run has got to."""

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from vf import files, video
from vf.run import media
from vf.run.page import write
from vf.run.recorder import Recorder
from vf.types import UserError

ROOT = Path(__file__).parents[2]
VOID = {"meta", "img", "input", "br", "link", "line", "polyline", "circle"}
EVIL = "<script>alert('&')</script>"


class Page(HTMLParser):
    """Parses strictly: every tag closed in order. Collects links, texts and elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []
        self.links = [x[key] for _, x in self.elements for key in ("src", "href") if key in x]
        for link in self.links:
            assert not re.match(r"[a-z]+:|/", link), f"{link} is not relative"
            assert (path.parent / unquote(link)).is_file(), f"{link} does not exist"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def clips_of(value: int, n: int = 3) -> np.ndarray:
    return np.full((n, 4, 8, 8, 3), value, np.uint8)


def page_of(workdir: Path) -> Page:
    path = write(workdir)
    assert path == workdir / "index.html"
    return Page(path)


def drawing(workdir, step: int):
    return media.drawing_folder(workdir, step, "clips", 3, {"seed": 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with everything: two starts, losses, an evaluation, scores, and samples of two steps."""
    workdir = tmp_path_factory.mktemp("runs") / "my run"  # A space, which links must quote.
    recorder = Recorder(workdir)
    for resumed in (False, True):
        recorder.describe({"data": EVIL, "lr": 1e-3}, seed=0, resumed=resumed, note=EVIL)
    for step in range(1, 61):
        recorder.scalars(step, {"train/loss": 1 / step, "train/loss_base": 0.3, "train/lr": 1e-4})
    recorder.scalars(60, {"validation/base/t500": 0.75, "validation/base/t900": 0.5})
    for step, value in ((30, 80.25), (60, 41.5)):
        recorder.score(step, f"fvd {EVIL}", value, {"note": EVIL, "clips": 256}, reference=12.5, target=40)
    recorder.text(60, "stopped", EVIL)
    media.write_samples(media.real_folder(workdir), clips_of(9), base_frame=2, labels=[EVIL, "b", "c"])
    for step in (30, 60):
        folder = drawing(workdir, step)
        assert media.write_samples(folder, clips_of(step), base_frame=2, meta={"sampler": EVIL}) == folder
    return workdir


def test_noise_levels_share_a_chart(tmp_path):
    """One for each error of each network."""
    with Recorder(tmp_path) as recorder:
        recorder.scalars(
            1, {f"validation/{net}/t{t}": 0.5 for net in ("base", "base_eps", "residual") for t in (5, 50)}
        )
        recorder.scalars(1, {"seen/base/t5": 0.5, "train/lr_base": 1e-3})
    page = write(tmp_path).read_text()
    assert page.count("<svg") == 5
    assert all(f"validation/{net}/t{t}" in page for net in ("base", "base_eps", "residual") for t in (5, 50))


def test_the_page_of_a_run_in_an_object_store(bucket):
    workdir = files.path("gs://bucket/my run")
    with Recorder(workdir) as recorder:
        recorder.describe({"lr": 1e-3})
        recorder.scalars(1, {"train/loss": 0.5})
        recorder.score(2, "fvd", 41.5, {"clips": 256})
    media.write_samples(media.real_folder(workdir), clips_of(9), base_frame=2)
    for step in (30, 60):
        media.write_samples(drawing("gs://bucket/my run", step), clips_of(step), base_frame=2)
    bucket["bucket/my run/samples/step_7"] = b"no folder"
    assert write(workdir) == workdir / "index.html"
    text = bucket["bucket/my run/index.html"].decode()
    for part in ("VideoFusion: my run", "41.5", "Resolved config", 'data-step="60"'):
        assert part in text
    links = {link for link in re.findall(r'(?:href|src)="([^"]+)"', text) if not link.startswith("#")}
    assert {
        f"samples/{name}/wall.mp4" for name in ("real", *(drawing(workdir, step).name for step in (30, 60)))
    } <= links
    assert {f"bucket/my run/{link}" for link in links} <= bucket.keys()
    assert text.count('class="step"') == 2
    np.testing.assert_array_equal(video.load_npz(drawing(workdir, 60) / "clips.npz")["clips"], clips_of(60))
    with pytest.raises(UserError, match="found none at gs://bucket/nowhere"):
        write("gs://bucket/nowhere")


def test_the_page_of_a_whole_run(run):
    page = page_of(run)
    for part in ("Clips", "Training", "Scores", "Remarks", "Run", "Resolved config", "Start 2 of 2"):
        assert part in page.text
    for name in ("real", *(drawing(run, step).name for step in (30, 60))):
        for file in ("clips.npz", "wall.gif", "wall.mp4", "strip.png"):
            assert f"samples/{name}/{file}" in page.links
    assert "http" not in page.html  # No resource from elsewhere.
    for name in ("page.css", "page.js"):
        assert (ROOT / "vf" / "run" / name).read_text() in page.html


def test_the_package_holds_the_files_of_the_page():
    """An installed copy holds no other files than those that are listed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["vf.run"]
    folder = ROOT / "vf" / "run"
    assert set(listed) == {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}


def test_samples_of_earlier_versions_are_shown_in_current_terms(tmp_path):
    folder = media.write_samples(drawing(tmp_path, 1), clips_of(1), base_frame=2)
    today = page_of(tmp_path).html
    assert "base_frame 2" in today
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace("base_frame", "centre"))
    assert page_of(tmp_path).html == today


def test_without_script_the_last_step_alone_is_shown(run):
    page = page_of(run)
    steps = [(x["data-step"], "hidden" in x) for _, x in page.elements if x.get("class") == "step"]
    assert steps == [("30", True), ("60", False)]
    (slider,) = (x for tag, x in page.elements if tag == "input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "1", "1")
    assert any(x.get("class") == "slider" and "hidden" in x for _, x in page.elements)


def test_steps_are_in_the_order_of_numbers(tmp_path):
    for step in (9, 123_456_789, 99_999_999):
        media.write_samples(drawing(tmp_path, step), clips_of(1), base_frame=0)
    (tmp_path / "samples" / "step_draft").mkdir()
    (tmp_path / "samples" / "step_7").write_text("no folder")
    page = page_of(tmp_path)
    steps = [x["data-step"] for _, x in page.elements if x.get("class") == "step"]
    assert steps == ["9", "99,999,999", "123,456,789"]


def test_everything_is_escaped(run):
    page = page_of(run)
    assert page.count("script") == 1  # The page has one script.
    assert page.html.count("<script") == 1
    assert page.text.count(EVIL) >= 8


def test_scores_show_value_reference_target_and_protocol(run):
    page = page_of(run)
    assert "41.5" in page.text
    assert "12.5" in page.text
    (body,) = re.findall(r"<tbody>(<tr><td>.*?)</tbody>", page.html, re.DOTALL)
    assert body.count("<tr>") == 1  # The latest value only; the earlier one is in the curve.
    assert ">41.5<" in body
    assert ">12.5<" in body
    assert ">40<" in body
    assert "&quot;clips&quot;: 256" in body


def test_two_protocols_have_separate_entries(tmp_path):
    """Cards name the protocol where there are several; doubts, intervals and the best checkpoint are shown."""
    recorder = Recorder(tmp_path)
    recorder.score(1, "fvd", 100.0, {"n": 16}, details={"low": 90.0, "high": 110.0, "warnings": ["few clips & so on"]})
    recorder.score(2, "fvd", 50.0, {"n": 2048}, details={"std": 1.5})
    recorder.score(2, "kvd", 0.5, {"n": 2048})
    recorder.file("best.json", json.dumps({"step": 2, "score": "fvd", "value": 50.0}))
    page = page_of(tmp_path)
    cards = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.html)
    names = [name for name, _ in cards]
    assert sum(name.startswith("fvd (") for name in names) == 2
    assert "kvd" in names
    assert ("best checkpoint", "step 2: fvd 50") in cards
    assert "95 %: 90 ... 110" in page.text
    assert "± 1.5" in page.text
    assert "few clips &amp; so on" in page.html


@pytest.mark.parametrize("present", ["nothing", "metrics", "samples", "empty_samples", "damaged"])
def test_the_page_of_an_incomplete_run(tmp_path, present):
    if present == "metrics":
        Recorder(tmp_path).scalars(1, {"train/loss": 0.5, "other": 1})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "train/lo')
    elif present == "samples":
        media.write_samples(drawing(tmp_path, 1), clips_of(1), base_frame=0)
    elif present == "empty_samples":
        drawing(tmp_path, 1).mkdir(parents=True)
        media.real_folder(tmp_path).mkdir()
    elif present == "damaged":
        (tmp_path / "config.json").write_text("{")
        (tmp_path / "run.json").write_text('{"starts": [3, {"devices": null}]}')
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "score": "fvd"}\n{"step": 2, "train/loss": "?"}\n')
    page = page_of(tmp_path)
    sections = {
        "nothing": [],
        "metrics": ["Training", "Run"],
        "samples": ["Clips"],
        "empty_samples": ["Clips"],
        "damaged": ["Scores", "Run"],
    }[present]
    assert re.findall(r"<h2>(.*?)</h2>", page.html) == sections


def test_a_missing_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a run"):
        write(tmp_path / "nowhere")
