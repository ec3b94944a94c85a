"""The entry: whole jobs at toy size on the built-in sprites, resumed and repeated; and the errors for bad input."""

import dataclasses
import errno
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import demo
from vf import files, main, video
from vf.activity import ACTIVITY
from vf.config import build, data, models, start, values
from vf.config.flags import parse
from vf.hosts.errors import DiskFull
from vf.jobs import evaluate, evaluator, train
from vf.jobs.results import Results
from vf.pretrained import export
from vf.run import glossary
from vf.run.metrics_file import read_metrics
from vf.training import programs, sharding, state
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

ROOT = Path(__file__).parents[1]


def tiny(**changes) -> ConfigDict:
    """The demo at a size that compiles in seconds."""
    config = demo.get_config()
    for part in (config.base, config.residual):
        part.net.update({"width": 8, "width_mult": (1,), "num_res_blocks": 0, "attention": (), "head_dim": 8,
                         "norm_groups": 4, "patch": 4, "dropout": 0.1})  # fmt: skip
    config.residual.net.temporal = ("conv",)
    config.update(
        {
            "train": {
                "steps": 4,
                "batch_size": 8,
                "log_every": 1,
                "checkpoint_every": 2,
                "sample_every": 0,
                "warmup_steps": 2,
                "schedule": "constant",
            },  # a cosine would end at another step after 2 + 2
            "mesh": {"cpu_devices": 0},
            "sample": {"count": 4, "batch_size": 8, "steps": 2},
            "eval": {"clips": 8, "batch_size": 8, "levels": (500,)},
        }
    )
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def weights(workdir, config, which="ema"):
    model = models.model(config, data.source(config))
    shapes = model.shapes()
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore_params(shapes, which))


def drawn(workdir, step, what="clips", count=4) -> Path:
    """The folder of the only drawing of its kind at one step of a run."""
    name = re.compile(f"step_{step:08d}_{what}_seed0_n{count}_[0-9a-f]{{8}}")
    (folder,) = (path for path in files.children(workdir / "samples") if name.fullmatch(path.name))
    return folder


def evaluations_of(workdir, config: ConfigDict | None = None) -> dict[int, dict[str, float]]:
    """{step: scores} of a run under the protocol of `config`."""
    return Results(workdir, build.evaluate(config or tiny(), workdir, None).run).scores()


@pytest.fixture(scope="module")
def said():
    """What `finished` says of what goes on while nothing else is printed."""
    return io.StringIO()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, said):
    """A run of four steps, in one go."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ACTIVITY, "_silence", 0.01)
        patch.setattr(ACTIVITY, "_stream", said)
        scores = main.run(tiny(), workdir, "train")
    return workdir, scores


def test_a_run_describes_itself_in_its_folder(finished):
    workdir, scores = finished
    assert json.loads((workdir / "config.json").read_text()) == values.to_json(tiny())
    facts = json.loads((workdir / "run.json").read_text())["starts"][0]
    assert facts["seed"] == 0
    assert facts["mesh"] == {"data": 8, "fsdp": 1, "frames": 1, "tensor": 1}
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4]  # means up to each checkpoint
    phases = {key: row[key] for row in rows for key in row if key.startswith("startup/")}
    names = ["import and preparation", "first state", "first batch", "lower", "compile", "count operations"]
    names += [f"{phase} {program}" for program in ("sampling", "validation") for phase in ("lower", "compile")]
    assert list(phases) == [f"startup/{phase}" for phase in names]
    assert all(seconds > 0 for seconds in phases.values())
    losses = {key for row in rows for key in row if key.startswith("validation/")}
    assert losses == {f"validation/{net}{kind}/t500" for net in ("base", "residual") for kind in ("", "_eps")}
    named = {row["score"]: row for row in rows if "score" in row}
    assert set(named) == set(scores)
    assert "fd_random_conv3d" in named
    assert all(row["protocol"]["reference_set"]["split"] == "test" for row in named.values())
    clips = video.load_npz(drawn(workdir, 4) / "clips.npz")["clips"]
    assert clips.shape == (4, 8, 16, 16, 3)
    assert (workdir / "index.html").exists()


def test_a_run_is_silent_in_nothing_that_takes_long(finished, said):
    """Of what takes long in other runs, that is; the rest of the log and the metrics know nothing of it."""
    workdir, _ = finished
    tasks = {re.fullmatch(r"still (.*): \d+ s|now (.*)", line).expand(r"\1\2") for line in said.getvalue().splitlines()}
    tasks = {re.sub(r"\d+", "N", task) for task in tasks}
    assert {"tracing the training step", "compiling the training step", "training step N of N"} <= tasks
    assert {"tracing the program of sampling", "compiling the program of sampling", "drawing N clips"} <= tasks
    assert {
        "drawing the samples, or writing them",
        "compiling the program of validation",
        "scoring the samples",
    } <= tasks
    assert not any("still" in key for row in read_metrics(workdir) for key in row)


def test_a_resumed_run_equals_an_uninterrupted_one(finished, tmp_path):
    """Stopped after 2 steps and started again: the same weights, bit for bit, so the same data and draws too."""
    whole, _ = finished
    main.run(tiny(train__steps=2), tmp_path, "train")
    main.run(tiny(), tmp_path, "train")
    one, two = weights(whole, tiny()), weights(tmp_path, tiny())
    jax.tree.map(np.testing.assert_array_equal, one, two)
    first = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["config"]["train"]["steps"] for start in first] == [2, 4]


def test_reports_come_at_regular_steps(tmp_path):
    """At multiples of log_every and at each checkpoint, whatever the step at which a start begins."""
    for steps in (5, 9):
        main.run(tiny(train__steps=steps, train__log_every=2, train__checkpoint_every=5), tmp_path, "train")
    assert [row["step"] for row in read_metrics(tmp_path) if "train/loss" in row] == [2, 5, 6, 9]


def as_before_validation(folder: Path) -> Path:
    """`folder`, of a run or exported, with the config of versions that knew one set of clips beside those trained on,
    and called a run's base frame its centre and a fingerprint a mark."""
    config = json.loads((folder / "config.json").read_text())
    for group, name in (("data", "validation"), ("eval", "reference")):
        for kind in ("split", "split_file"):
            del config[group][f"{name}_{kind}"]
    del config["data"]["validation_share"]
    config["data"] |= {"eval_split": "", "eval_split_file": ""}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (*folder.glob("*.jsonl"), *folder.glob("best.json"), *folder.glob("samples/*/meta.json")):
        path.write_text(path.read_text().replace("base_frame", "centre").replace('"fingerprint"', '"mark"'))
    return folder


def test_a_run_of_an_earlier_version_goes_on(finished, tmp_path):
    """Two steps of it and two more are four, bit for bit; it is evaluated anew."""
    whole, scores = finished
    folder = as_before_validation(Path(shutil.copytree(whole, tmp_path / "run")))
    shutil.rmtree(folder / "checkpoints" / "4")
    assert main.run(tiny(), folder, "train") == scores
    jax.tree.map(np.testing.assert_array_equal, weights(folder, tiny()), weights(whole, tiny()))
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [("mark" in line, line["step"]) for line in evaluations] == [(True, 4), (False, 4)]
    assert json.loads((folder / "best.json").read_text())["fingerprint"] == evaluations[-1]["fingerprint"]


def test_real_clips_of_the_classes_of_the_samples_are_shown_beside_them(finished):
    workdir, _ = finished
    meta = json.loads((drawn(workdir, 4) / "meta.json").read_text())
    real = workdir / "samples" / meta["real"]
    beside = json.loads((real / "meta.json").read_text())
    names = data.source(tiny()).class_names
    shown = video.load_npz(real / "clips.npz")
    reference = evaluator.RealClips.read(data.source(tiny(), "reference"), 8, 0).clips
    available = {names[label] for label in reference["label"]}
    assert beside["labels"] == [label for label in meta["labels"] if label in available] != []
    assert beside["absent"] == [label for label in meta["labels"] if label not in available]
    for label, clip in zip(shown["label"], shown["clips"], strict=True):
        assert any(np.array_equal(clip, other) for other in reference["video"][reference["label"] == label])


def test_every_number_of_a_run_is_explained(finished):
    workdir, _ = finished
    rows = read_metrics(workdir)
    numbers = {glossary.group(key) for row in rows for key in row if key.startswith(("train/", "validation/"))}
    assert numbers - glossary.NUMBERS.keys() == set()
    assert all(glossary.score_facts(row["score"]) for row in rows if "score" in row)


def test_sampling_again_gives_the_same_clips(finished, caplog):
    """The sampling job reads the averaged weights, says so, and repeats the run's own samples."""
    workdir, _ = finished
    path = drawn(workdir, 4) / "clips.npz"
    before = video.load_npz(path)["clips"]
    path.unlink()
    with caplog.at_level(logging.INFO):
        assert main.run(tiny(), workdir, "sample") == {}
    assert f"sampling 4 clips, seed 0; weights: ema of step 4 in {workdir}" in caplog.text
    np.testing.assert_array_equal(video.load_npz(path)["clips"], before)


def test_another_drawing_leaves_the_first_as_it_was(finished):
    """The page shows both."""
    workdir, _ = finished
    first = drawn(workdir, 4)
    before = {path: path.read_bytes() for path in first.iterdir()}
    main.run(tiny(sample__count=3), workdir, "sample")
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    second = drawn(workdir, 4, count=3)
    clips = [video.load_npz(folder / "clips.npz")["clips"] for folder in (second, first)]
    np.testing.assert_array_equal(clips[0], clips[1][:3])
    page = (workdir / "index.html").read_text()
    for folder, count in ((first, 4), (second, 3)):
        assert f"samples/{folder.name}/wall.gif" in page
        assert f"Clips drawn at step 4: {count}, seed 0" in page


def test_images_of_the_base_generator_are_the_base_frames(finished):
    """The image model draws what the model puts at its base frame: same keys, same noise, one network for both."""
    workdir, _ = finished
    main.run(tiny(sample__what="base"), workdir, "sample")
    folder = drawn(workdir, 4, "base")
    images = video.load_npz(folder / "clips.npz")["clips"]
    clips = video.load_npz(drawn(workdir, 4) / "clips.npz")["clips"]
    assert images.shape == (4, 1, 16, 16, 3)
    assert clips.shape == (4, 8, 16, 16, 3)
    # Two programs may round differently.
    frames = clips[:, 3].astype(int)
    np.testing.assert_allclose(images[:, 0].astype(int), frames, atol=1)
    # Another sample's base frame would not pass for it.
    assert (np.abs(images[:, 0] - np.roll(frames, 1, axis=0)).max(axis=(1, 2, 3)) > 1).all()
    assert {path.name for path in folder.iterdir()} == {"clips.npz", "wall.png", "meta.json"}
    page = (workdir / "index.html").read_text()
    assert f"samples/{folder.name}/wall.png" in page
    assert page.count('class="step"') == 1  # beside the clips of the same step


def test_a_stop_while_samples_are_drawn_loses_none(tmp_path, monkeypatch):
    """The step is saved first, and the same command draws and scores it before it goes on."""
    config = tiny(train__steps=4, train__sample_every=2, train__checkpoint_every=4)
    draw = evaluator.Evaluator.sample

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator.Evaluator, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        main.run(config, tmp_path, "train")
    assert not (tmp_path / "samples").exists() or not list((tmp_path / "samples").glob("step_*"))
    monkeypatch.setattr(evaluator.Evaluator, "sample", draw)
    main.run(config, tmp_path, "train")
    steps = [json.loads(line)["step"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    assert drawn(tmp_path, 2, "clips", 4).is_dir()


def copy_of(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_a_run_that_has_ended_is_left_as_it_is(finished, tmp_path, caplog):
    """The same command again tells its scores, and writes nothing but the page; also where fewer steps are asked for.
    Samples that are missing, or of other settings, are made at the step where it has ended."""
    workdir = copy_of(finished, tmp_path)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "index.html"}
    for steps in (4, 2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert main.run(tiny(train__steps=steps), workdir, "train") == pytest.approx(finished[1])
        assert f"the run in {workdir} has ended at step 4" in caplog.text
        assert "drawing" not in caplog.text
        assert caplog.text.count("fd_random_conv3d ") == 1  # a row of the table
        assert f"page: {workdir}/index.html" in caplog.text
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "index.html"}
    assert after == before
    folder = drawn(workdir, 4)
    shutil.rmtree(folder)
    main.run(tiny(), workdir, "train")
    assert (folder / "clips.npz").read_bytes() == before[folder / "clips.npz"]
    main.run(tiny(train__steps=2, sample__count=3), workdir, "train")
    assert drawn(workdir, 4, count=3).is_dir()
    assert not list((workdir / "samples").glob("step_00000002*"))


def test_what_is_scored_is_not_scored_again(finished, tmp_path, caplog):
    """A job that would score what has scores under its protocol tells these; another seed is scored."""
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "2")
    before = (workdir / "metrics.jsonl").read_bytes()
    for checkpoint in ("latest", "4", "follow"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = main.run(tiny(eval__checkpoint=checkpoint), workdir, "evaluate")
        assert found == pytest.approx(finished[1])
        assert "scored before, by the same protocol: steps [4]" in caplog.text
        assert "another --config.sample.seed or --config.sample.count, or other --config.eval.metrics" in caplog.text
        assert caplog.text.count("fd_random_conv3d ") == 1
        assert f"page: {workdir}/index.html" in caplog.text
        assert (workdir / "metrics.jsonl").read_bytes() == before
    other = tiny(eval__checkpoint="latest", sample__seed=1)
    assert main.run(other, workdir, "evaluate")["fd_random_conv3d"] != found["fd_random_conv3d"]
    assert evaluations_of(workdir, other).keys() == {4}


def test_an_evaluation_of_other_weights_or_clips_is_another(finished, exported, tmp_path):
    """At step 0 scores are those of the start that they name; real clips are a part of the protocol."""
    config = tiny(init_from=str(exported))
    main.run(config, tmp_path, "evaluate")
    assert evaluations_of(tmp_path, config).keys() == {0}
    assert evaluations_of(tmp_path, tiny(init_from=str(finished[0]))) == evaluations_of(tmp_path) == {}
    sets = [data.source(config, kind) for kind in ("reference", "validation")]
    assert len({build.evaluation_fingerprint(config, *some) for some in (sets, sets[::-1], sets[:1])}) == 3 - (
        sets[0].describe() == sets[1].describe()
    )


@pytest.mark.parametrize("begun", [False, True])
def test_an_evaluation_that_begins_before_the_run_is_compared_with_it(finished, tmp_path, monkeypatch, begun):
    """As soon as the run has a config: at once, or while the job waits for the first checkpoint."""
    workdir, there = tmp_path / "run", finished[0]
    (workdir / "checkpoints").mkdir(parents=True)
    waited = []

    def arrive(seconds):
        waited.append(seconds)
        assert len(waited) == 1
        shutil.copy(there / "config.json", workdir)
        shutil.copytree(there / "checkpoints" / "4", workdir / "checkpoints" / "4")

    if begun:
        shutil.copy(there / "config.json", workdir)
    monkeypatch.setitem(evaluate.follow.__kwdefaults__, "sleep", arrive)
    with pytest.raises(UserError, match=r"noise\.lam is \(0\.7,\) here and \(0\.5,\) there"):
        main.run(tiny(noise__lam=(0.7,)), workdir, "evaluate")
    assert len(waited) == (not begun)
    assert not (workdir / "samples").exists()


def test_images_are_of_a_base_generator_and_of_the_sampling_job(tmp_path):
    for mode in ("train", "evaluate"):
        with pytest.raises(UserError, match=f"sample.what=base is for --mode=sample, and this is --mode={mode}"):
            main.run(tiny(sample__what="base"), tmp_path, mode)
    with pytest.raises(UserError, match=r"sample\.what must be one of clips, base, got 'bse'"):
        main.run(tiny(sample__what="bse"), tmp_path, "sample")
    with pytest.raises(UserError, match=r"model\.predictor is one_network, which has none"):
        main.run(tiny(sample__what="base", model__predictor="one_network"), tmp_path, "sample")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The finished run as one folder."""
    folder = tmp_path_factory.mktemp("models") / "sprites"
    export.export(finished[0], folder)
    return folder


def loaded(folder) -> ConfigDict:
    """The config that an exported folder brings, as `vf.main` loads it."""
    spec = importlib.util.spec_from_file_location("exported", folder / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_an_exported_model_samples_the_same_clips(finished, exported, tmp_path):
    """Sampled from the exported folder alone, with its own config and without data: the run's clips, bit for bit."""
    workdir, _ = finished
    config = loaded(exported)
    assert export.find(exported).about["fps"] == 8  # at which samples without data then play
    assert values.to_json(config) == values.to_json(tiny(init_from=str(exported)))
    config.data.source = "none"
    main.run(config, tmp_path, "sample")
    made, meant = (video.load_npz(drawn(run, step) / "clips.npz") for run, step in ((tmp_path, 0), (workdir, 4)))
    for name in ("clips", "label"):
        np.testing.assert_array_equal(made[name], meant[name])
    meta = json.loads((drawn(tmp_path, 0) / "meta.json").read_text())
    assert meta["labels"]
    assert meta["start"]["from"] == str(exported)  # and so in the hash: another model's samples lie elsewhere
    assert not list((tmp_path / "samples").glob("real*"))
    (begun,) = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert (begun["start"]["from"], begun["start"]["step"]) == (str(exported), 4)
    assert set(begun["start"]["fingerprints"]) == {"base", "residual"}
    with pytest.raises(UserError, match=r"data\.source=none is for --mode=sample"):
        main.run(config, tmp_path, "evaluate")


def test_a_model_of_an_earlier_version_travels(finished, exported, tmp_path):
    """Its config keeps the meaning it had: training left no clip out."""
    folder = as_before_validation(Path(shutil.copytree(exported, tmp_path / "model")))
    meant = tiny(init_from=str(folder), data__validation_share=0.0)
    assert values.to_json(loaded(folder)) == values.to_json(meant)
    main.run(tiny(init_from=str(folder)), tmp_path / "new", "sample")
    made, same = (
        video.load_npz(drawn(run, step) / "clips.npz")["clips"]
        for run, step in ((tmp_path / "new", 0), (finished[0], 4))
    )
    np.testing.assert_array_equal(made, same)


def test_an_evaluation_job_evaluates_the_start(finished, exported, tmp_path):
    """A workdir without a run: the start is evaluated once, and scores as the last step of the run did."""
    _, scores = finished
    found = main.run(tiny(init_from=str(exported)), tmp_path, "evaluate")
    assert found == pytest.approx(scores)
    phases = [key for row in read_metrics(tmp_path) for key in row if key.startswith("startup/")]
    names = ["import and preparation", "weights", "lower sampling", "compile sampling"]
    assert phases[:4] == [f"startup/{phase}" for phase in names]
    assert evaluations_of(tmp_path, tiny(init_from=str(exported))).keys() == {0}


@pytest.mark.slow
def test_training_starts_from_these_weights(finished, exported, tmp_path):
    """After one update the parameters are a learning rate away, and the average, undone, is what it started from."""
    workdir, _ = finished
    config = tiny(init_from=str(exported), train__steps=1)  # compiled for the finished run
    main.run(config, tmp_path, "train")
    first, ema, params = weights(workdir, tiny()), weights(tmp_path, tiny()), weights(tmp_path, tiny(), "params")
    rate = 1 - float(state.ema_decay(0, config.train.ema_decay))
    before = jax.tree.map(lambda e, p: (e - rate * p) / (1 - rate), ema, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before, first)
    lr = config.train.lr_base / config.train.warmup_steps  # bounds Adam's first update
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1.001 * lr, rtol=0), params, first)
    (begun,) = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert begun["start"]["from"] == str(exported)
    assert begun["start"]["step"] == 4
    main.run(tiny(init_from="gone"), tmp_path, "sample")  # a run that has begun asks for it no more
    assert drawn(tmp_path, 1).is_dir()


def test_both_kinds_of_folder_give_the_same_arrays(finished, exported):
    """On the shardings asked for; `base.init_from` gives the base network alone."""
    config = tiny(mesh__data=2, mesh__fsdp=4)
    model = models.model(config, data.source(config))
    shapes = model.shapes()
    where = sharding.shardings(shapes, build.mesh(config), min_size=1)
    abstract = sharding.abstract(shapes, where)
    meant = weights(finished[0], tiny())
    for folder in (finished[0], exported):
        made = start.start(tiny(init_from=str(folder)), model.networks).read(abstract)
        jax.tree.map(np.testing.assert_array_equal, made, meant)
        assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, made, where))
        base = start.start(tiny(base__init_from=str(folder)), model.networks)
        assert base.networks == ("base",)
        jax.tree.map(np.testing.assert_array_equal, base.read(abstract), {"base": meant["base"]})
    assert not jax.tree.all(jax.tree.map(lambda s: s.is_fully_replicated, where))


def test_network_settings_are_compared_before_weights_are_read(exported, monkeypatch, tmp_path):
    """Every difference is reported as a flag, and with these flags the networks fit."""
    changes = {"base__net__width": 16, "residual__net__temporal": (), "residual__prediction": "eps"}
    config = tiny(init_from=str(exported), noise__schedule="linear", **changes)
    with pytest.raises(UserError) as raised:
        main.run(config, tmp_path, "sample")
    message = str(raised.value)
    assert "base.net.width is 16 here and 8 there" in message
    assert f"take --config={exported / 'config.py'}" in message
    given = [word for word in shlex.split(re.sub(r", or take.*", "", message)) if word.startswith("--config.")]
    assert '--config.residual.net.temporal=("conv",)' in given
    monkeypatch.setattr(sys, "argv", ["main", *given])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
    assert start.start(config, ("base", "residual")) is not None
    # The base network alone: what the other one has learned does not count, nor does dropout.
    free = tiny(base__init_from=str(exported), base__net__dropout=0.5, model__context="none", **changes)
    free.base.net.width = 8
    assert start.start(free, ("base", "residual")).networks == ("base",)
    with pytest.raises(
        UserError, match=r"model.context is none here and base_frame there; set --config.model.context="
    ):
        start.start(tiny(init_from=str(exported), model__context="none"), ("base", "residual"))


def test_noise_and_classes_are_compared_too(exported):
    """Samples come from the noise that was trained on; training may go on under another."""
    other = tiny(init_from=str(exported), noise__lam=(0.25,))
    both = ("base", "residual")
    with pytest.raises(UserError, match=r"noise\.lam is \(0\.25,\) here and \(0\.5,\) there"):
        start.start(other, both)
    assert start.start(other, both, trains=True) is not None
    classes = data.source(other).class_names
    assert start.start(tiny(init_from=str(exported)), both, classes) is not None
    turned = (classes[1], classes[0], *classes[2:])
    with pytest.raises(UserError, match=f"class 0 is {classes[0]} there and {classes[1]} here"):
        start.start(tiny(init_from=str(exported)), both, turned)
    with pytest.raises(UserError, match=r"have learned 18 classes, and these clips have 17 \(the first are equal\)"):
        start.start(tiny(init_from=str(exported)), both, classes[:-1])


def test_many_differences_are_abridged(exported):
    config = tiny(init_from=str(exported))
    config.base.net.update({"width": 16, "num_res_blocks": 2, "patch": 2, "head_dim": 4, "norm_groups": 2})
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        start.start(config, ("base",))


def test_bad_starts_are_refused(finished, exported, tmp_path):
    workdir, _ = finished
    both = tiny(init_from=str(exported), base__init_from=str(workdir))
    with pytest.raises(UserError, match=r"init_from and base\.init_from both"):
        main.run(both, tmp_path / "run", "train")
    with pytest.raises(UserError, match="nowhere is no folder"):
        main.run(tiny(init_from="nowhere"), tmp_path / "run", "train")
    with pytest.raises(UserError, match=r"holds neither checkpoints/ nor base\.safetensors"):
        main.run(tiny(init_from=str(tmp_path)), tmp_path / "run", "evaluate")
    with pytest.raises(UserError, match="train first"):  # the residual network is missing
        main.run(tiny(base__init_from=str(exported)), tmp_path / "run", "sample")


@pytest.mark.slow
def test_evaluating_again_gives_the_same_scores(finished, tmp_path):
    workdir, scores = copy_of(finished, tmp_path), finished[1]
    (workdir / "evaluations.jsonl").unlink()
    again = main.run(tiny(eval__checkpoint="latest"), workdir, "evaluate")
    assert again == pytest.approx(scores, nan_ok=True)


def test_an_evaluation_job_evaluates_the_remaining_checkpoints(finished, caplog):
    """Following a finished run: training evaluated the last step, the job the one before; the best is recorded."""
    workdir, scores = finished
    assert evaluations_of(workdir).keys() == {4}
    main.run(tiny(), workdir, "evaluate")
    evaluations = evaluations_of(workdir)
    assert evaluations.keys() == {2, 4}
    assert evaluations[4] == pytest.approx(scores)
    assert (workdir / "tensorboard" / "evaluate").is_dir()
    best = json.loads((workdir / "best.json").read_text())
    values = {step: found["fd_random_conv3d"] for step, found in evaluations.items()}
    assert values[best["step"]] == best["value"] == min(values.values())
    before = (workdir / "metrics.jsonl").read_text()
    with caplog.at_level(logging.INFO):  # the run ends where its own config says
        assert main.run(tiny(train__steps=100, eval__patience=0.0), workdir, "evaluate") == pytest.approx(scores)
    assert "new checkpoint" not in caplog.text
    scored = [line.split() for line in caplog.text.partition("at step 4:\n")[2].splitlines()]
    assert {row[0] for row in scored[2:]} >= scores.keys()
    (line,) = (line for line in read_metrics(workdir) if line["step"] == 4 and line.get("score") == "fd_random_conv3d")
    (row,) = (row for row in scored if row[0] == "fd_random_conv3d")
    assert (row[1], row[2], row[-1]) == (f"{line['value']:.4f}", "lower", line["protocol_hash"])
    assert row[4:-1] == ["real", "to", "real"]
    assert (workdir / "metrics.jsonl").read_text() == before  # everything had been evaluated
    torn = (workdir / "evaluations.jsonl").read_text() + '{"fingerprint": torn'
    (workdir / "evaluations.jsonl").write_text(torn)
    assert evaluations_of(workdir) == evaluations


def test_a_run_in_an_object_store(finished, tmp_path, bucket, monkeypatch):
    """Training and an evaluation job give the same as on a disk. Only checkpoints are on a disk here: Orbax writes them
    by a library that cannot use the fake store."""

    def on_disk(directory, **options):
        return Checkpoints(directory.replace("gs://bucket", str(tmp_path)), **options)

    for module in (export, train, evaluate):
        monkeypatch.setattr(module, "Checkpoints", on_disk)
    workdir = files.folder("gs://bucket/run")
    assert main.run(tiny(), workdir, "train") == pytest.approx(finished[1])
    bucket["bucket/run/checkpoints/4/commit_success.txt"] = b""  # of which Orbax would have left many
    main.run(tiny(), workdir, "evaluate")
    evaluations = evaluations_of(workdir)
    assert evaluations.keys() == {2, 4}
    best = json.loads(bucket["bucket/run/best.json"])
    assert best["value"] == min(found["fd_random_conv3d"] for found in evaluations.values())
    assert not {name for name in bucket if "judging" in name or "writable" in name}
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4]
    assert {row["step"] for row in rows if "score" in row} == {2, 4}
    clips = [video.load_npz(drawn(run, 4) / "clips.npz")["clips"] for run in (workdir, finished[0])]
    np.testing.assert_array_equal(*clips)
    assert b"drawn at step 2" in bucket["bucket/run/index.html"]
    places = {name.split("/")[2] for name in bucket}
    assert places == {"config.json", "run.json", "parameters.txt", "metrics", "evaluations", "best.json", "tensorboard",
                      "samples", "checkpoints", "index.html"}  # fmt: skip


def test_scores_by_name(finished, tmp_path):
    """A metric that needs no weights, on a chosen checkpoint, with the whole protocol."""
    workdir, _ = finished
    config = tiny(eval__metrics="flicker", eval__checkpoint="4", eval__cache=str(tmp_path))
    scores = main.run(config, workdir, "evaluate")
    assert 0.5 < scores["flicker"] <= 1
    (row,) = [row for row in read_metrics(workdir) if row.get("score") == "flicker"]
    assert row["step"] == 4
    assert row["protocol"]["clips"]["n_generated"] == 4
    assert row["protocol"]["clips"]["n_real"] == row["protocol"]["n_real"] == 8
    assert row["protocol"]["sampling"]["weights"] == "ema"
    assert len(list(tmp_path.glob("flicker-*.safetensors"))) == 1  # the real clips'; generated ones are not kept
    with pytest.raises(UserError, match=r"no checkpoint of step 3: there are \[2, 4\]"):
        main.run(tiny(eval__checkpoint="3"), workdir, "evaluate")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval__metrics": "fvd"}, r"no weights of i3d.* \(--config\.eval\.i3d\)"),
        ({"eval__metrics": "fvd", "eval__i3d": "nowhere.safetensors"}, "no weights at nowhere.safetensors"),
        ({"eval__metrics": "flicker, fdv"}, "eval.metrics must be one of fvd, kvd"),
        ({"eval__metrics": "flicker", "eval__lineage": "mine"}, "eval.lineage must be one of google"),
        ({"eval__checkpoint": "newest"}, "eval.checkpoint must be one of follow, latest, a step"),
        ({"eval__best_is": "least"}, "eval.best_is must be one of lowest, highest"),
        ({"eval__selfcheck": True}, "set --config.eval.i3d=FILE"),
    ],
)
def test_what_an_evaluation_needs_is_named(finished, changes, message):
    workdir, _ = finished
    with pytest.raises(UserError, match=message):
        main.run(tiny(**changes), workdir, "evaluate")


@pytest.mark.slow
def test_one_and_eight_devices_train_alike(finished, tmp_path):
    """8 devices give what 1 gives, to rounding."""
    workdir, _ = finished
    code = (
        "import sys; from pathlib import Path; from tests.test_main import tiny; from vf import main;"
        "main.run(tiny(), Path(sys.argv[1]), 'train')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, capture_output=True,
                   env={"PATH": "", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"})  # fmt: skip
    mine, theirs = (
        [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row] for folder in (workdir, tmp_path)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_batch(tmp_path):
    whole = tiny(train__steps=1, train__batch_size=16)
    parts = tiny(train__steps=1, train__batch_size=16, train__accumulate=2)
    assert whole.base.net.dropout > 0 < whole.residual.net.dropout
    main.run(whole, tmp_path / "whole", "train")
    main.run(parts, tmp_path / "parts", "train")
    one, two = weights(tmp_path / "whole", whole), weights(tmp_path / "parts", parts)
    # Adam's first update has the size of the learning rate wherever a gradient is not 0: compare where it is clear.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two)


@pytest.mark.slow
def test_a_frozen_base_stays(tmp_path):
    config = tiny(train__freeze_base=True, train__lr_residual=1e-2, train__steps=2)
    main.run(config, tmp_path, "train")
    model = models.model(config, data.source(config))
    start = programs.first_state(model, optax.identity(), build.mesh(config), config.seed)[0]().params
    end = weights(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, end["base"], jax.tree.map(np.asarray, start["base"]))
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), end["residual"], start["residual"]))
    assert max(moved) > 1e-4


@pytest.mark.slow
def test_the_base_may_start_from_another_run(finished, tmp_path):
    workdir, _ = finished
    config = tiny(train__steps=1, train__freeze_base=True, base__init_from=str(workdir))
    main.run(config, tmp_path, "train")
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path, config)["base"], weights(workdir, tiny())["base"])


@pytest.mark.slow
def test_a_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    main.run(tiny(train__steps=2), tmp_path, "train")
    broken = tiny(
        train__steps=6, train__lr_base=1e30, train__lr_residual=1e30, train__clip_norm=0.0, train__warmup_steps=0
    )
    with pytest.raises(UserError, match=r"at step [3456]: the run stops"):
        main.run(broken, tmp_path, "train")
    with Checkpoints(str(tmp_path / "checkpoints"), read_only=True) as checkpoints:
        step = checkpoints.latest()
    assert step >= 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights(tmp_path, tiny())))


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("noise.lam", (0.7,), "'(0.5,)'"),
        ("base.prediction", "eps", "x_0"),
        ("residual.prediction", "v", "x_0"),
        ("noise.schedule", "linear", "cosine"),
        ("noise.zero_terminal_snr", True, "False"),
        ("data.frames", 4, "8"),
        ("data.size", 32, "16"),
        ("base.net.width", 16, "8"),
    ],
)
def test_a_run_goes_on_with_what_its_weights_have_learned(finished, mode, field, value, flag):
    """Every job refuses another meaning before it writes anything, and names the flag that restores the run's."""
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    with pytest.raises(UserError, match=re.escape(f"set --config.{field}={flag}, its whole config is")):
        main.run(tiny(**{field.replace(".", "__"): value}), workdir, mode)
    assert {path: path.read_bytes() for path in workdir.glob("*.json*")} == before


def test_another_noise_prior_is_for_another_run(finished):
    """Which training may begin from these weights; what it cannot begin either is not offered."""
    workdir, _ = finished
    other = f"or --config.init_from={workdir} with another --workdir trains on from its weights"
    with pytest.raises(UserError, match=other):
        main.run(tiny(noise__lam=(0.7,)), workdir, "train")
    for changes, mode in (
        ({"noise__lam": (0.7,), "base__prediction": "eps"}, "train"),
        ({"noise__lam": (0.7,)}, "sample"),
    ):
        with pytest.raises(UserError) as raised:
            main.run(tiny(**changes), workdir, mode)
        assert "init_from" not in str(raised.value)


def test_other_changes_of_a_run_are_listed(finished, caplog):
    """In one line; of fields that the job reads."""
    workdir, _ = finished
    config = tiny(train__log_every=2, train__lr_base=0.5, sample__count=5, plan__minutes=1.0, eval__checkpoint="latest")
    trained = export.of_run(workdir)
    for make, listed in (
        (build.train, "train.lr_base is 0.5 (was 0.003), train.log_every is 2 (was 1), sample.count is 5 (was 4)"),
        (build.sample, "sample.count is 5 (was 4)"),
    ):
        with caplog.at_level(logging.INFO):
            make(config, workdir, trained)
        (message,) = (record.getMessage() for record in caplog.records)
        assert sorted(message.removeprefix("the config differs from that of step 4: ").split(", ")) == sorted(
            listed.split(", ")
        )
        caplog.clear()
        make(tiny(), workdir, trained)
        assert not caplog.records


def test_all_processes_judge_by_what_the_first_one_reads(finished, tmp_path):
    """A process whose disk shows nothing yet refuses what process 0 refuses."""
    there = export.of_run(finished[0])

    class Second(main.Hosts):
        def share(self, value):
            assert value is None
            return [there.config, there.step, there.about]

    with pytest.raises(UserError, match=r"noise\.lam is \(0\.7,\) here and \(0\.5,\) there"):
        main.run(tiny(noise__lam=(0.7,)), tmp_path, "train", Second())


def test_without_the_run_s_config_the_job_says_that_nothing_is_compared(finished, tmp_path, caplog):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    trained = export.of_run(tmp_path)
    build.sample(tiny(), tmp_path, trained)
    assert "has no config.json: whether its networks have learned what this config says is not checked" in caplog.text


@pytest.mark.parametrize(
    ("mode", "part", "field"),
    [
        ("train", "update", "training: .* lower train.batch_size"),
        ("sample", "sampling", "sampling: .* lower sample.batch_size"),
        ("evaluate", "validation", "evaluation: .* lower eval.batch_size"),
    ],
)
def test_too_little_memory_is_answered_in_one_sentence(finished, monkeypatch, mode, part, field):
    """In every job. No memory has room for so many bytes; the error is this platform's own."""

    def too_large(*_, **__):
        return jax.block_until_ready(jax.numpy.zeros((2**45,)))

    monkeypatch.setattr(programs, part, lambda *_, **__: jax.jit(too_large))
    if mode == "train":
        monkeypatch.setattr(programs, part, too_large)
    with pytest.raises(UserError, match=f"^out of memory in {field}"):
        main.run(tiny(eval__checkpoint="latest", sample__seed=9), finished[0], mode)  # not made before


def test_a_prepared_data_set_is_no_run_s_folder(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is a prepared data set: name another folder"):
        main.run(tiny(), tmp_path, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_sampling_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="train first"):
        main.run(tiny(), tmp_path, "sample")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data__frames", 1, "data.frames"),
        ("noise__lam", (1.5,), r"\[0, 1\]"),
        ("noise__lam", (0.5, 0.5), "8 numbers"),
        ("noise__base_frame", 9, r"0\.\.7"),
        ("noise__prior", "mixed", "one_network"),
        ("noise__prior", "mixd", "mixed"),
        ("noise__schedule", "cos", "cosine"),
        ("noise__steps", 0, "noise.steps must be at least 1"),
        ("model__context", "embeding", "embedding"),
        ("base__prediction", "x0", "x_0"),
        ("data__size", 15, "divide"),
        ("train__accumulate", 3, "train.accumulate"),
        ("train__steps", 0, "train.steps"),
        ("sample__steps", 2000, "1000"),
        ("sample__eta", 2.0, "sample.eta"),
        ("sample__solver", "euler", r"sample\.solver must be one of ddim, dpm, unipc, heun"),
        ("sample__solver", "heun", "heun is deterministic: set sample.eta to 0"),
        ("sample__solver", "unipc", "unipc is deterministic: set sample.eta to 0"),
        ("sample__spacing", "even", r"sample\.spacing must be one of uniform, trailing"),
        ("sample__times", (5, 9), "fall strictly"),
        ("sample__restart", (5, 9), "three numbers, low, high and count"),
        ("sample__restart", (9, 5, 1), "0 <= low < high"),
        ("sample__restart", (5, 9, 1), "fewer than two are from 5 to 9"),
        ("sample__guidance", "cfg++", r"sample\.guidance must be one of cfg, apg, cfg_zero, cfg_pp"),
        ("sample__guidance", "cfg_pp", "the base network was never trained without its condition"),
        ("sample__apg_norm", 2.0, r"which is of sample\.guidance=apg, not cfg"),
        ("sample__apg_momentum", -0.5, r"which is of sample\.guidance=apg, not cfg"),
        ("sample__zero_steps", 1, r"which is of sample\.guidance=cfg_zero, not cfg"),
        ("sample__guidance_rescale", 1.5, r"share in \[0, 1\]"),
        ("sample__guidance_interval", (9, 5), "first <= last"),
        ("sample__guidance_interval", (9,), "two times, first and last"),
        ("sample__guidance_scale", 2.0, r"the base network was never trained without its condition"),
        ("sample__residual_guidance_scale", 2.0, r"the residual network was never trained without its condition"),
        ("sample__clip_quantile", 1.0, r"sample\.clip_quantile must lie in \[0, 1\)"),
        ("eval__levels", (1000,), "0..999"),
        ("data__source", "nowhere", "nowhere"),
    ],
)
def test_bad_values_are_answered_in_one_sentence(tmp_path, field, value, message):
    with pytest.raises(UserError, match=message):
        main.run(tiny(**{field: value}), tmp_path / "run", "train")


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_guidance_is_refused_where_there_is_none(finished, tmp_path, mode):
    """The run never dropped its conditions: whatever the job's config says now, but for training on."""
    workdir = finished[0]
    before = sorted(workdir.rglob("*"))
    guided = {"sample__guidance_scale": 2.0, "train__steps": 6}
    if mode != "train":
        with pytest.raises(
            UserError, match=r"set --config\.sample\.guidance_scale=1, or train with --config\.model\.cond"
        ):
            main.run(tiny(**guided, model__condition_dropout=0.1), workdir, mode)
    with pytest.raises(UserError, match=r"residual network was never trained .*residual_guidance_scale=1"):
        main.run(tiny(sample__residual_guidance_scale=2.0), workdir, mode)
    assert sorted(workdir.rglob("*")) == before
    none = {"model__condition": "none", "sample__guidance_scale": 2.0}
    with pytest.raises(UserError, match=r"no condition to be guided to \(model\.condition is none\)"):
        main.run(tiny(**none, init_from=""), tmp_path / "fresh", "train")
    one = {"model__predictor": "one_network", "model__context": "none", "sample__residual_guidance_scale": 2.0}
    with pytest.raises(UserError, match="one_network has no residual network"):
        main.run(tiny(**one), tmp_path / "fresh", "train")
    assert not (tmp_path / "fresh").exists()


def test_who_knows_the_absence_of_a_condition(finished, exported, tmp_path):
    """A network whose training dropped it, of the run or of the weights that it starts from."""
    names = ("base", "residual")
    guided = tiny(sample__guidance_scale=2.0)
    never = export.of_run(finished[0])
    dropped = dataclasses.replace(
        never, config=never.config | {"model": never.config["model"] | {"condition_dropout": 0.1}}
    )
    for trained in (dropped, dataclasses.replace(never, config={})):
        start.check_guidance(guided, names, trained, trains=False)
    training = tiny(sample__guidance_scale=2.0, model__condition_dropout=0.1)
    start.check_guidance(training, names, never, trains=True)
    for field in ("init_from", "base__init_from"):
        with pytest.raises(UserError, match="the base network was never"):
            start.check_guidance(tiny(sample__guidance_scale=2.0, **{field: str(exported)}), names, None, trains=True)
    header = {"family": "adm", "fingerprint": "?", "about": {"classes": ["a", ""]}}  # trained with "no class"
    (tmp_path / "base.json").write_text(json.dumps(header))
    guided.base.pretrained = str(tmp_path / "base.json")
    start.check_guidance(guided, ("base",), never, trains=False)
    with pytest.raises(UserError, match="the residual network was never"):
        start.check_guidance(guided, names, never, trains=False)


def test_a_linear_schedule_of_few_steps_is_answered_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="more than 20 steps, got 20"):
        main.run(tiny(noise__schedule="linear", noise__steps=20, eval__levels=(10,)), tmp_path / "run", "train")


def test_a_worse_checkpoint_guides_samples(finished, tmp_path, caplog):
    """The networks themselves guide nowhere; those of an earlier step do, and the samples say so."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    guided = {"sample__guidance_scale": 3.0}
    folders = {}
    for guide in ("2", "4", str(finished[0])):
        before = set(files.children(workdir / "samples"))
        main.run(tiny(sample__guide=guide, **guided), workdir, "sample")
        (folders[guide],) = (
            path for path in set(files.children(workdir / "samples")) - before if not path.name.startswith("real")
        )
    clips = {guide: video.load_npz(folder / "clips.npz")["clips"] for guide, folder in folders.items()}
    unguided = video.load_npz(drawn(finished[0], 4) / "clips.npz")["clips"]
    for itself in ("4", str(finished[0])):
        assert np.abs(clips[itself].astype(int) - unguided).max() <= 1
    assert np.abs(clips["2"].astype(int) - unguided).max() > 5
    meta = json.loads((folders["2"] / "meta.json").read_text())
    assert (meta["guide"]["step"], meta["guidance_scale"]) == (2, 3.0)
    for changes, message in (
        ({"sample__guide": "2"}, "nothing is guided at a scale of 1"),
        ({"sample__guide": "3", **guided}, "no checkpoint of step 3"),
        ({"sample__guide": str(tmp_path / "nowhere"), **guided}, "is no folder"),
        ({"sample__guide": "2", "noise__lam": (0.7,), **guided}, "have learned something else"),
    ):
        with pytest.raises(UserError, match=message):
            main.run(tiny(**changes), workdir, "sample")
    with pytest.raises(UserError, match=r"sample\.guide is for --mode=sample and evaluate"):
        main.run(tiny(sample__guide="2", **guided), workdir, "train")


def test_a_schedule_that_ends_in_noise_is_for_predictions_of_the_clip(tmp_path):
    """It is part of what networks have learned."""
    with pytest.raises(UserError, match=r"base\.prediction is eps, but the last step of this schedule is noise alone"):
        main.run(tiny(noise__zero_terminal_snr=True, base__prediction="eps"), tmp_path / "run", "train")
    made = models.model(tiny(noise__zero_terminal_snr=True), data.source(tiny()))
    assert made.schedule.ends_in_noise
    assert not (tmp_path / "run").exists()


def test_embedding_needs_records_that_have_one(real_clips, tmp_path):
    config = tiny(model__context="embedding", data__source=str(real_clips / "UCF-101"))
    with pytest.raises(UserError, match="base_frame"):
        main.run(config, tmp_path, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/demo.py", "--config.train.batchsize=8"], "did you mean train.batch_size?"),
        (
            ["--config=configs/demo.py", "--config.data.eval_split=test"],
            "replaced by data.validation_split (for losses",
        ),
        (["--config=configs/ucf101.py:smke"], "did you mean smoke?"),
        (["--config=configs/demo_text.py:smoke"], "unknown variant 'smoke': this config has none"),
        (["--config=Makefile"], "must be a Python file with get_config(), as in configs/"),
        (["--config=configs/demo.py", "--workdir=x", "--mode=plan"], "set --config.plan.target=v5e:16x16"),
        (["--config=configs/dmo.py"], "did you mean configs/demo.py?"),
        (["--config=configs/demo.py", "--workdr=x"], "did you mean workdir?"),
        (
            ["--config=configs/demo.py", "--workdir=x", "--train.batch_size=4"],
            "did you mean --config.train.batch_size?",
        ),
        (["--config=configs/demo.py", "--workdir=x", "--lam=0.7"], "did you mean --config.noise.lam?"),
        (["--config=configs/demo.py", "--mode=trian"], "train"),
        (
            ["--config=configs/demo.py", "--config.train.steps=1.5"],
            "--config.train.steps must be a whole number, got '1.5'",
        ),
        (["--config=configs/demo.py", "--config.train.ema_decay=a: b"], "ema_decay must be a number, got 'a: b'"),
        (["--config=configs/demo.py", "--compile_only=si"], "--compile_only must be True or False, got 'si'"),
        (["--config=configs/demo.py", "--workdir=x", "config.train.steps=3"], "did you mean --config.train.steps?"),
        (["--config=configs/demo.py"], "--workdir is missing"),
    ],
)
def test_the_command_line_suggests_the_nearest_name(arguments, message):
    """A mistyped or old flag, field or variant: one line on stderr that names the right one, exit status 2."""
    code = f"import sys; sys.argv[1:] = {arguments!r}; from vf.main import cli; cli()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("vf: ")


def test_a_command_in_another_folder_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no config at configs/demo\.py: start this in the folder of the code"):
        parse(["vf", "--config=configs/demo.py"], ())


def test_a_typo_in_a_config_file_is_an_error(tmp_path):
    text = "from configs import demo\n\ndef get_config():\n    config = demo.get_config()\n"
    (tmp_path / "mine.py").write_text(f"{text}    config.train.batchsize = 12\n    return config\n")
    code = f"import sys; sys.argv[1:] = ['--config={tmp_path}/mine.py', '--workdir=x']; from vf.main import cli; cli()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("vf: ")
    assert done.stderr.endswith("mine.py sets batchsize, which no config has: did you mean batch_size?\n")


def test_imports_touch_no_backend_and_bring_no_other_framework():
    code = (
        "import sys, vf.main, vf.jobs.train, vf.run.page, jax;"
        "assert not jax._src.xla_bridge.backends_are_initialized(), 'a backend was started';"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'another framework was imported'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


def test_programs_are_kept_and_on_gpus_the_kernels_chosen(monkeypatch):
    """In the folder given or the environment's; in an object store programs alone, as XLA writes to disks."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, f"jax_{name}") for name in names}
    kernels = "xla_gpu_per_fusion_autotune_cache_dir"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    try:
        for folder, found, kept in (("~/xla", str(Path.home() / "xla"), kernels), ("gs://b/xla", "gs://b/xla", "none")):
            main.cache_programs(folder)
            assert [getattr(jax.config, f"jax_{name}") for name in names] == [found, 0, kept]
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
        main.cache_programs("~/xla")
        assert jax.config.jax_compilation_cache_dir == "/elsewhere"
        assert jax.config.jax_persistent_cache_enable_xla_caches == kernels
    finally:
        for name, value in before.items():
            jax.config.update(f"jax_{name}", value)


@pytest.mark.parametrize("kind", ["line", "checkpoint", "quota", "behind another"])
def test_a_full_disk_is_told_with_the_checkpoint_from_which_it_goes_on(tmp_path, kind):
    """Whether the system says so or, in words alone, a library."""

    def write() -> None:
        if kind == "line":
            files.append_line(Path("/dev/full"), "no room")
        if kind == "quota":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        try:
            raise ValueError(f"RESOURCE_EXHAUSTED: Error writing: {os.strerror(errno.ENOSPC)} [os_error_code='28']")
        except ValueError as error:
            if kind == "checkpoint":
                raise
            raise RuntimeError("cleaning up") from error

    for step in (None, 50):
        then = f"goes on from checkpoint {step}$" if step else "begins again, as there is no checkpoint yet$"
        with pytest.raises(DiskFull, match=then), main.telling_of_a_full_disk(tmp_path, "train"):
            write()
        with pytest.raises(DiskFull, match=r"the same command again$"), main.telling_of_a_full_disk(tmp_path, "sample"):
            write()
        for item in ("", "params", "ema", "optimizer", "meta"):
            (done := tmp_path / "checkpoints" / "50" / item / "commit_success.txt").parent.mkdir(
                parents=True, exist_ok=True
            )
            done.touch()


def test_other_errors_are_not_of_a_full_disk(tmp_path):
    for error in (
        OSError(errno.EACCES, "no access"),
        ZeroDivisionError("by three"),
        UserError("No space left on device"),
    ):
        with pytest.raises(type(error)) as raised, main.telling_of_a_full_disk(tmp_path, "train"):
            raise error
        assert raised.value is error
