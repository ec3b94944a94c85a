"""The entry: whole jobs at toy size on the embedded sprites, resumed and repeated; and what bad input is told."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import demo
from vf import build, main, record, rng, video
from vf.checkpoint import Checkpoints
from vf.judge import read_evaluations
from vf.types import UserError

ROOT = Path(__file__).parents[1]


def tiny(**changes) -> ConfigDict:
    """The demo at a size that compiles in seconds."""
    config = demo.get_config()
    for part in (config.base, config.residual):
        part.net.update({"width": 8, "width_mult": (1,), "num_res_blocks": 1, "attention": (), "head_dim": 8,
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


def weights(workdir, config):
    model = build.model(config, build.source(config))
    shapes = build.shapes(model)
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore_params(shapes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, in one go."""
    workdir = tmp_path_factory.mktemp("run")
    scores = main.run(tiny(), workdir, "train")
    return workdir, scores


def test_a_run_is_a_folder_that_explains_itself(finished):
    workdir, scores = finished
    assert json.loads((workdir / "config.json").read_text()) == build.plain(tiny())
    facts = json.loads((workdir / "run.json").read_text())["starts"][0]
    assert facts["seed"] == 0
    assert facts["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    rows = record.read_metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4]  # means up to each checkpoint
    named = {row["score"]: row for row in rows if "score" in row}
    assert set(named) == set(scores)
    assert "fd_random_conv3d" in named
    assert all(row["protocol"] for row in named.values())
    clips = video.load_npz(workdir / "samples" / "step_00000004" / "clips.npz")["clips"]
    assert clips.shape == (4, 8, 16, 16, 3)
    assert (workdir / "index.html").exists()


def test_two_and_two_steps_are_four(finished, tmp_path):
    """Stopped after 2 steps and started again: the same weights, bit for bit, so the same data and draws too."""
    whole, _ = finished
    main.run(tiny(train__steps=2), tmp_path, "train")
    main.run(tiny(), tmp_path, "train")
    one, two = weights(whole, tiny()), weights(tmp_path, tiny())
    jax.tree.map(np.testing.assert_array_equal, one, two)
    first = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert len(first) == 2


def test_sampling_again_gives_the_same_clips(finished):
    """The sampling job reads the averaged weights and repeats the run's own samples."""
    workdir, _ = finished
    path = workdir / "samples" / "step_00000004" / "clips.npz"
    before = video.load_npz(path)["clips"]
    path.unlink()
    assert main.run(tiny(), workdir, "sample") == {}
    np.testing.assert_array_equal(video.load_npz(path)["clips"], before)


@pytest.mark.slow
def test_evaluating_again_gives_the_same_scores(finished):
    workdir, scores = finished
    again = main.run(tiny(eval__checkpoint="latest"), workdir, "evaluate")
    assert again == pytest.approx(scores, nan_ok=True)


def test_an_evaluation_job_judges_what_was_not(finished):
    """Following a finished run: training judged the last step, the job the one before, once; the best is marked."""
    workdir, scores = finished
    mark = build.evaluation_job(tiny()).mark
    assert read_evaluations(workdir, mark).keys() == {4}
    main.run(tiny(), workdir, "evaluate")
    judged = read_evaluations(workdir, mark)
    assert judged.keys() == {2, 4}
    assert judged[4] == pytest.approx(scores)
    assert (workdir / "tensorboard" / "evaluate").is_dir()
    best = json.loads((workdir / "best.json").read_text())
    values = {step: found["fd_random_conv3d"] for step, found in judged.items()}
    assert values[best["step"]] == best["value"] == min(values.values())
    before = (workdir / "metrics.jsonl").read_text()
    assert main.run(tiny(), workdir, "evaluate") == pytest.approx(scores)
    assert (workdir / "metrics.jsonl").read_text() == before  # nothing was left to do
    torn = (workdir / "evaluations.jsonl").read_text() + '{"mark": torn'
    (workdir / "evaluations.jsonl").write_text(torn)
    assert read_evaluations(workdir, mark) == judged


def test_scores_by_name(finished, tmp_path):
    """A metric that needs no weights, on a chosen checkpoint, with the whole protocol."""
    workdir, _ = finished
    config = tiny(eval__metrics="flicker", eval__checkpoint="4", eval__cache=str(tmp_path))
    scores = main.run(config, workdir, "evaluate")
    assert 0.5 < scores["flicker"] <= 1
    (row,) = [row for row in record.read_metrics(workdir) if row.get("score") == "flicker"]
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
        ({"eval__metrics": "fvd"}, r"no weights of i3d.*--config\.eval\.i3d=i3d\.safetensors"),
        ({"eval__metrics": "fvd", "eval__i3d": "nowhere.safetensors"}, "no weights at nowhere.safetensors"),
        ({"eval__metrics": "flicker, fdv"}, "eval.metrics must be one of fvd, kvd"),
        ({"eval__metrics": "flicker", "eval__lineage": "mine"}, "eval.lineage must be one of google"),
        ({"eval__checkpoint": "newest"}, "eval.checkpoint must be one of follow, latest, a step"),
        ({"eval__best_is": "least"}, "eval.best_is must be one of lowest, highest"),
        ({"eval__selfcheck": True}, "set --config.eval.i3d=FILE"),
    ],
)
def test_what_an_evaluation_needs_is_told(finished, changes, message):
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
        [row["train/loss"] for row in record.read_metrics(folder) if "train/loss" in row]
        for folder in (workdir, tmp_path)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_batch(tmp_path):
    whole, parts = tiny(train__steps=1, model__condition_dropout=0.0), tiny(train__steps=1, train__accumulate=2)
    for config in (whole, parts):
        config.base.net.dropout = config.residual.net.dropout = 0.0
    main.run(whole, tmp_path / "whole", "train")
    main.run(parts, tmp_path / "parts", "train")
    one, two = weights(tmp_path / "whole", whole), weights(tmp_path / "parts", parts)
    # Adam's first update has the size of the learning rate wherever a gradient is not 0: compare where it is clear.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two)


@pytest.mark.slow
def test_a_frozen_base_stays(tmp_path):
    config = tiny(train__freeze_base=True, train__lr_residual=1e-2, train__steps=2)
    main.run(config, tmp_path, "train")
    model = build.model(config, build.source(config))
    start = model.init(rng.key(0, rng.Purpose.PARAMETERS))
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


def test_a_checkpoint_of_another_architecture_is_refused(finished):
    workdir, _ = finished
    config = tiny()
    config.base.net.width = 16
    with pytest.raises(UserError, match="base/"):
        main.run(config, workdir, "sample")


def test_nothing_to_sample_from(tmp_path):
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
        ("model__context", "embeding", "embedding"),
        ("base__prediction", "x0", "x_0"),
        ("data__size", 15, "divide"),
        ("train__accumulate", 3, "train.accumulate"),
        ("train__steps", 0, "train.steps"),
        ("sample__steps", 2000, "1000"),
        ("sample__eta", 2.0, "sample.eta"),
        ("eval__levels", (1000,), "0..999"),
        ("data__source", "nowhere", "nowhere"),
    ],
)
def test_bad_values_are_told_in_a_sentence(tmp_path, field, value, message):
    with pytest.raises(UserError, match=message):
        main.run(tiny(**{field: value}), tmp_path / "run", "train")


def test_embedding_needs_records_that_have_one(real_clips, tmp_path):
    config = tiny(model__context="embedding", data__source=str(real_clips / "UCF-101"))
    with pytest.raises(UserError, match="base_frame"):
        main.run(config, tmp_path, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/demo.py", "--config.train.batchsize=8"], "did you mean train.batch_size?"),
        (["--config=configs/ucf101.py:smke"], "did you mean smoke?"),
        (["--config=configs/dmo.py"], "did you mean configs/demo.py?"),
        (["--config=configs/demo.py", "--workdr=x"], "did you mean workdir?"),
        (["--config=configs/demo.py", "--mode=trian"], "train"),
        (["--config=configs/demo.py", "--config.train.steps=abc"], "abc"),
        (["--config=configs/demo.py"], "--workdir is missing"),
    ],
)
def test_the_command_line_suggests_the_nearest_name(arguments, message):
    """A mistyped flag, field or variant: one line on stderr that names the nearest known one, exit status 2."""
    code = f"import sys; sys.argv[1:] = {arguments!r}; from vf.main import cli; cli()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("vf: ")


def test_imports_touch_no_backend_and_bring_no_other_framework():
    code = (
        "import sys, vf.main, vf.train, vf.gallery, jax;"
        "assert not jax._src.xla_bridge.backends_are_initialized(), 'a backend was started';"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'another framework was imported'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
