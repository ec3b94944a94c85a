"""The page is well-formed, complete, escaped and true to the numbers, whatever the run has got to."""

import json
import re
import tomllib
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from vf import files, video
from vf.run import glossary, media
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
        self.links += re.findall(r"url\((.*?)\)", " ".join(x.get("style", "") for _, x in self.elements))
        names = {x["id"] for _, x in self.elements if "id" in x}
        assert {link[1:] for link in self.links if link.startswith("#")} <= names
        self.links = [link for link in self.links if not link.startswith("#")]
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
    """One for each error of each network, which says what it is."""
    names = [f"validation/{net}" for net in ("base", "base_eps", "residual")]
    with Recorder(tmp_path) as recorder:
        for step in (1, 2):
            recorder.scalars(step, {f"{name}/t{t}": 0.5 for name in names for t in (5, 50)})
            recorder.scalars(step, {"seen/base/t5": 0.5, "train/lr_base": 1e-3, "train/lr_residual": 1e-4})
    page = page_of(tmp_path)
    assert page.count("svg") == 5
    for name in names:
        assert f"{name}: t5, t50" in page.html
        assert escape(glossary.NUMBERS[name]) in page.html
    assert "train/lr: base, residual" in page.html
    (training,) = re.findall(r"<h2>Losses</h2>(.*?)</section>", page.html, re.DOTALL)
    shown, folded = training.split("<details>")
    assert (shown.count("<svg"), folded.count("<svg")) == (4, 1)  # learning rates are for later


def test_numbers_of_one_step_are_no_charts(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.scalars(7, {"validation/base/t5": 0.25, "validation/base/t50": 0.125, "train/loss": 0.5})
    page = page_of(tmp_path)
    assert page.count("svg") == 0
    (row,) = re.findall(r"<tr><td>validation/base</td>(.*?)</tr>", page.html)
    note = escape(glossary.NUMBERS["validation/base"])
    assert row == f"<td>7</td><td>t5 <b>0.25</b> · t50 <b>0.125</b></td><td>{note}</td>"
    assert "<tr><td>train/loss</td><td>7</td><td>loss <b>0.5</b></td>" in page.html


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
    # What run it is, pictures, numbers.
    places = [page.html.index(part) for part in ('class="about"', 'wall.gif"', "<table>", "<svg", "Resolved config")]
    assert places == sorted(places)
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
    (body,) = re.findall(r"<tbody>(<tr><td><b>fvd.*?)</tbody>", page.html, re.DOTALL)
    assert body.count("<tr>") == 1  # The latest value only; the earlier one is in the curve.
    assert "<b>41.5</b>" in body
    assert ">12.5<" in body
    assert ">40<" in body
    assert "&quot;clips&quot;: 256" in page.html


def rows(page: Page) -> list[list[str]]:
    """The cells of every row of every table, without their tags."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page.html, re.DOTALL)
    return [[re.sub(r"<.*?>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_a_score_says_what_it_is_which_values_are_better_and_what_its_reference_is(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.score(1, "fd_random_conv3d", 9.5, {"n": 1}, reference=0.4319)
        recorder.score(1, "fvd", 95, {"n": 1}, reference=7, details={"reference_n": 64})
        recorder.score(1, "sprites/valid", 0.5, {"n": 1}, reference=1.0)
        recorder.score(1, "base_frame_gap", 1.5, {"n": 1}, reference=1.0)
    named = {row[0][0]: [" ".join(cell) for cell in row] for row in rows(page_of(tmp_path))}
    assert named["fd_random_conv3d"][0].startswith("fd_random_conv3d Not FVD: ")
    assert "no published number" in named["fd_random_conv3d"][0]
    assert "Centre gap" in named["base_frame_gap"][0]
    assert [row[3] for row in named.values()] == ["lower", "lower", "higher", "near 1"]
    assert [row[4] for row in named.values()] == [
        "0.4319 from real to other real clips", "7 from real to other real clips, 64 each",
        "1 of the real clips themselves", "1 of the real clips themselves",
    ]  # fmt: skip


def test_of_a_family_of_scores_one_is_shown_and_the_others_are_folded(tmp_path):
    with Recorder(tmp_path) as recorder:
        for name in ("fvd", "fid", "sprites/found", "sprites/valid", "sprites/smooth"):
            recorder.score(1, name, 0.5, {"n": 1})
        for segment in range(3):
            recorder.score(1, f"fvd_segments_{segment:02}", 0.5, {"n": 1})
    page = page_of(tmp_path)
    shown, *folded = page.html.split("<h2>Scores</h2>")[1].split("<details>")
    assert re.findall(r"<td><b>([^<0-9.][^<]*)</b>", shown) == ["fvd", "fid", "sprites/valid", "fvd_segments_00"]
    assert [part.split("</summary>")[0] for part in folded[:2]] == [
        "<summary>2 more of sprites", "<summary>2 more of fvd_segments",
    ]  # fmt: skip
    assert len(rows(page)) == 8
    assert page.html.count("<pre>") == 1  # all are of one protocol


COMMAND = "python -m vf.main --config=configs/ucf101.py:smoke --workdir=runs/smoke"


@pytest.mark.parametrize(
    ("start", "trained", "texts"),
    [
        ({"command": COMMAND}, 30, ["Training: 30 of 120 steps", "Recipe ucf101.py:smoke"]),
        ({"command": COMMAND.replace(":smoke", "")}, 0, ["Training: 0 of 120 steps", "Recipe ucf101.py"]),
        (
            {
                "command": f"{COMMAND} --mode sample",
                "start": {"from": "/exported", "run": "mine", "step": 40},
                "data": {"source": "none"},
            },
            0,
            ["Sampling only: no step is trained", "come from /exported, exported of the run mine at step 40."],
        ),
        (
            {"command": f"{COMMAND} --mode=evaluate", "start": {"from": "/runs/a", "step": 7}},
            0,
            ["Evaluation only", "The weights come from /runs/a at step 7."],
        ),
        (
            {"command": COMMAND, "start": {"from": "adm.safetensors", "family": "adm"}, "data": {"source": "sprites"}},
            2,
            ["The first weights come from adm.safetensors (adm, the base generator alone)", "Data: sprites."],
        ),
        ({"data": {"source": "folder", "root": "/a/UCF-101/", "videos": 1234}}, 120, ["folder UCF-101, 1,234 videos"]),
        ({"command": "python '", "start": 3, "data": [1]}, 1, ["Training: 1 of 120 steps"]),
    ],
)  # fmt: skip
def test_the_first_line_says_what_run_it_is(tmp_path, start, trained, texts):
    (tmp_path / "run.json").write_text(json.dumps({"starts": [start]}))
    (tmp_path / "config.json").write_text('{"train": {"steps": 120}, "note": "Noise is <expected>."}')
    for step in range(1, trained + 1):
        Recorder(tmp_path).scalars(step, {"train/loss": 1.0})
    (line,) = re.findall(r'<p class="about">(.*?)</p>', page_of(tmp_path).html)
    line = re.sub(r"<.*?>", "", line)
    for text in texts:
        assert text in line
    assert "Noise is &lt;expected&gt;." in line
    (tmp_path / "config.json").write_text('{"note": ""}')
    assert "Noise" not in page_of(tmp_path).text


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ({"from": "/models/a", "run": "mine", "step": 40}, "with the weights of step 40 of the run mine: 3, seed 0"),
        ({"from": "/runs/a", "step": 7}, "with the weights of step 7 of /runs/a: 3, seed 0"),
        ({"from": "adm.safetensors", "family": "adm"}, "with the weights of adm.safetensors: 3, seed 0"),
    ],
)
def test_samples_of_other_weights_than_the_run_s_say_whose_they_are(tmp_path, start, text):
    media.write_samples(drawing(tmp_path, 0), clips_of(1), base_frame=1, meta={"start": start})
    with Recorder(tmp_path) as recorder:
        recorder.score(0, "fvd", 0.5, {"n": 1})
    page = page_of(tmp_path)
    assert f"Clips drawn {text}" in page.text
    assert [row[1] for row in rows(page)] == [["the", "start"]]


def test_film_strips_are_explained_where_there_are_some(tmp_path):
    folder = media.drawing_folder(tmp_path, 7, "base", 3, {"seed": 0})
    media.write_samples(folder, clips_of(1)[:, :1], base_frame=0)
    assert "film strip" not in page_of(tmp_path).text
    media.write_samples(drawing(tmp_path, 7), clips_of(1), base_frame=0)
    assert "In a film strip" in page_of(tmp_path).text


def test_facts_that_say_nothing_are_left_out(tmp_path):
    facts = {"source": "folder", "split": None, "videos": 3}
    for rejected in (0, 2):
        (tmp_path / "run.json").write_text(json.dumps({"starts": [{"data": {**facts, "rejected": rejected}}]}))
        more = " · rejected 2" if rejected else ""
        assert f"<td>source folder · videos 3{more}</td>" in page_of(tmp_path).html


def test_classes_of_which_no_real_clip_was_read_are_named(tmp_path):
    media.write_samples(
        media.real_folder(tmp_path), clips_of(1), base_frame=1, labels=["a", "b", "c"], meta={"absent": [EVIL, "d"]}
    )
    assert f"None of the real clips that were read is of the class {EVIL}, d." in page_of(tmp_path).text


def test_classes_are_named_under_clips_and_real_clips_of_the_same_stand_beside(tmp_path):
    names, labels = ("an ape", EVIL, "a cat"), [2, 0, 2, 2, 1, 2, 2, 2, 2, 0]
    clips = np.arange(10, dtype=np.uint8)[:, None, None, None, None] + np.zeros((10, 4, 8, 6, 3), np.uint8)
    real = media.real_folder(tmp_path, labels)
    for folder, meta in ((drawing(tmp_path, 3), {"real": real.name}), (real, {"different": 4, "again": 0})):
        media.write_samples(folder, clips, base_frame=1, labels=labels, class_names=names, meta=meta)
    page = page_of(tmp_path)
    walls = re.findall(r'<div class="cells".*?</div>', page.html, re.DOTALL)
    captions = [re.findall(r"<figcaption>(.*?)</figcaption>", wall) for wall in walls]
    expected = [escape(names[label]) for label in labels]
    assert captions == [expected, expected[: media.STRIP_ROWS]] * 2  # wall and film strip, real and drawn
    assert "Repeated: 4 are different" in page.text
    # Each cell shows its own clip: its part of a picture of two rows of eight, with a pixel between them.
    for k, style in enumerate(re.findall(r'style="(background.*?)"', walls[0])):
        width, height, x, y = map(float, re.findall(r"([\d.]+)%", style))
        assert (width, height) == (pytest.approx(100 * (8 * 7 - 1) / 6, rel=1e-4), pytest.approx(100 * (2 * 9 - 1) / 8))
        assert x / 100 * (width / 100 - 1) * 6 == pytest.approx(k % 8 * 7, rel=1e-4)
        assert y / 100 * (height / 100 - 1) * 8 == pytest.approx(k // 8 * 9, rel=1e-4)


def test_a_drawing_of_other_classes_has_other_real_clips_beside_it(tmp_path):
    for step, labels in ((1, [0, 1]), (2, [1, 1])):
        real = media.real_folder(tmp_path, labels)
        for folder, meta in ((drawing(tmp_path, step), {"real": real.name}), (real, {"again": step - 1})):
            media.write_samples(folder, clips_of(1, 2), base_frame=1, labels=labels, meta=meta)
    page = page_of(tmp_path)
    blocks = page.html.split('<div class="step"')[1:]
    names = [re.findall(r"<figcaption>(.*?)</figcaption>", block) for block in blocks]
    assert names == [["0", "1"] * 4, ["1", "1"] * 4]
    assert ["other windows of the same: 1 of 2" in block for block in blocks] == [False, True]


def test_a_wall_of_some_of_the_clips_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "PICTURED", 4)
    for count in (4, 6):
        media.write_samples(drawing(tmp_path, count), clips_of(1, count), base_frame=1)
    first, second = page_of(tmp_path).html.split('<div class="step"')[1:]
    assert "pictures of the first" not in first
    assert "pictures of the first 4 of 6" in second


def test_drawings_of_one_step_are_told_apart(tmp_path):
    for steps in (20, 50):
        media.write_samples(
            media.drawing_folder(tmp_path, 7, "clips", 3, {"seed": 0, "steps": steps}), clips_of(1), base_frame=1,
            meta={"sampler": "ddim", "steps": steps, "eta": 0.0, "guidance_scale": 2.0, "weights": "ema"},
        )  # fmt: skip
    text = page_of(tmp_path).text
    for steps in (20, 50):
        assert f"ddim · steps {steps} · eta 0.0 · guidance 2.0 · weights ema" in text


def test_a_drawing_that_was_killed_is_not_shown_yet(tmp_path):
    media.write_samples(media.drawing_folder(tmp_path, 7, "clips", 3, {"seed": 0}), clips_of(1), base_frame=1)
    (media.drawing_folder(tmp_path, 7, "clips", 5, {"seed": 0}) / "parts").mkdir(parents=True)
    assert "Clips drawn at step 7: 3, seed 0" in page_of(tmp_path).text
    assert ": 5, seed 0" not in page_of(tmp_path).text


ALONE = "One of them again, alone"


def test_a_drawing_says_how_one_of_its_clips_is_drawn_again(tmp_path):
    """A flag that is overridden is there once; clips of a grid go by cells, row by row."""
    command = "python -m vf.main --mode evaluate --x=1 --config.sample.count=3"
    for seed, more in enumerate(({"first": 40}, {"control": {"grid": [1, 3]}})):
        folder = media.drawing_folder(tmp_path, 7, "clips", 3, {"seed": seed, **more})
        media.write_samples(folder, clips_of(1), base_frame=1, meta={"command": command, **more})
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    page = page_of(tmp_path)
    assert page.text.count(ALONE) == 2
    assert "by the numbers up to 42 the others, while step 7 is the latest: " in page.text
    assert "python -m vf.main --mode=sample --x=1 --config.sample.count=1 --config.sample.first=40 " in page.text
    assert "by the numbers up to 2, row by row, the others, while step 7 is the latest: " in page.text
    assert "python -m vf.main --mode=sample --x=1 --config.sample.count=3 --config.sample.cell=0 " in page.text


def test_a_drawing_of_an_earlier_step_has_no_command_that_draws_it_again(tmp_path):
    """The command would draw with other weights; nor has one that another program has drawn."""
    for step, command in ((7, "python -m vf.main"), (9, "python -m pytest")):
        media.write_samples(drawing(tmp_path, step), clips_of(1), base_frame=1, meta={"command": command})
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    page = page_of(tmp_path)
    assert page.text.count(ALONE) == 1
    assert "draws with the run's latest weights, of step 9, and these clips have those of step 7" in page.text
    assert "--mode=sample" not in page.text


def test_two_protocols_have_separate_entries(tmp_path):
    """Doubts, intervals and the best checkpoint are shown."""
    recorder = Recorder(tmp_path)
    recorder.score(1, "fvd", 100.0, {"n": 16}, details={"low": 90.0, "high": 110.0, "warnings": ["few clips & so on"]})
    recorder.score(2, "fvd", 50.0, {"n": 2048}, details={"std": 1.5})
    recorder.score(2, "kvd", 0.5, {"n": 2048})
    recorder.file("best.json", json.dumps({"step": 2, "score": "fvd", "value": 50.0}))
    page = page_of(tmp_path)
    assert [row[0][0] for row in rows(page)] == ["fvd", "fvd", "kvd"]
    first, second, _ = (row[-1] for row in rows(page))
    assert first != second
    assert "Best checkpoint: step 2, by fvd 50." in page.text
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
