"""A prior's run at toy size: embeddings in its folder, scored; resumed, sampled again, and of the clips' statistics."""

import json
import re

import numpy as np
import pytest

from configs import demo
from vf import main
from vf.config import build, data
from vf.data.pipeline import embedding_statistics
from vf.run import glossary
from vf.run.metrics_file import read_metrics
from vf.training import sharding
from vf.training.checkpoint import Checkpoints
from vf.types import UserError


def tiny(**changes):
    """The demo's prior at a size that compiles in seconds."""
    config = demo.get_config("prior")
    config.update_from_flattened_dict({
        "prior.net.width": 16, "prior.net.depth": 2, "prior.net.heads": 2, "train.steps": 4, "train.batch_size": 8,
        "train.log_every": 1, "train.checkpoint_every": 2, "train.sample_every": 0, "train.warmup_steps": 2,
        "train.schedule": "constant", "mesh.cpu_devices": 0, "sample.count": 6, "sample.batch_size": 8,
        "sample.steps": 3, "eval.clips": 16, "eval.batch_size": 8, "eval.levels": (500,),
    })  # fmt: skip
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def weights(workdir, which="ema"):
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        restored = checkpoints.restore_params(checkpoints.shapes(None), which)
    return {name: np.asarray(array) for name, array in sharding.named(restored).items()}


def drawn(workdir, step=4):
    (folder,) = (workdir / "embeddings").glob(f"step_{step:08d}_*")
    return dict(np.load(folder / "embeddings.npz")), json.loads((folder / "meta.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, in one go."""
    workdir = tmp_path_factory.mktemp("prior")
    return workdir, main.run(tiny(), workdir, "train")


def test_its_folder_holds_embeddings_and_their_scores(finished):
    workdir, scores = finished
    arrays, facts = drawn(workdir)
    assert arrays["embedding"].shape == (6, 14)
    assert arrays["embedding"].dtype == np.float32
    np.testing.assert_array_equal(arrays["label"], np.arange(6))
    assert facts["class_names"][:2] == ["red square", "green square"]
    assert (facts["steps"], facts["clip_x_0"], facts["eta"]) == (3, 5.0, 1.0)
    assert not (workdir / "samples").exists()
    rows = read_metrics(workdir)
    written = {row["score"]: row for row in rows if "score" in row}
    assert written.keys() == scores.keys() == {f"embedding_{name}" for name in ("fd", "precision", "recall", "class")}
    assert all(glossary.score_facts(name) for name in written)
    assert written["embedding_fd"]["protocol"]["validation_set"]["split"] == "test"
    losses = {key for row in rows for key in row if key.startswith("validation/")}
    assert losses == {"validation/prior/t500", "validation/prior_eps/t500"}
    assert "6 embeddings, which have no pictures" in (workdir / "index.html").read_text()
    assert json.loads((workdir / "best.json").read_text())["score"] == "embedding_fd"


def test_the_statistics_are_the_training_clips_and_are_never_trained(finished):
    mean, std = embedding_statistics(data.source(tiny()), mirrored=False)
    for which in ("ema", "params"):
        found = weights(finished[0], which)
        np.testing.assert_array_equal(found["prior/mean"], mean)
        np.testing.assert_array_equal(found["prior/std"], std)
    np.testing.assert_allclose(mean[:12], [1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3, atol=0.02)  # of one-hot factors
    np.testing.assert_allclose(std[:3], np.sqrt(2) / 3, atol=0.01)


def test_a_resumed_run_equals_an_uninterrupted_one(finished, tmp_path):
    main.run(tiny(train__steps=2), tmp_path, "train")
    assert main.run(tiny(), tmp_path, "train") == finished[1]
    true = weights(finished[0])
    for name, array in weights(tmp_path).items():
        np.testing.assert_array_equal(array, true[name], err_msg=name)


def test_sampling_again_draws_the_same(finished):
    workdir, _ = finished
    main.run(tiny(sample__count=3, sample__first=2), workdir, "sample")
    (folder,) = (workdir / "embeddings").glob("step_00000004_*_n3_*")
    again = np.load(folder / "embeddings.npz")
    np.testing.assert_array_equal(again["index"], [2, 3, 4])
    np.testing.assert_allclose(again["embedding"], drawn_six(workdir)[2:5], atol=1e-5)


def drawn_six(workdir):
    (folder,) = (workdir / "embeddings").glob("step_00000004_*_n6_*")
    return np.load(folder / "embeddings.npz")["embedding"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__context": "none"}, "model.context is none: set --config.model.context=embedding"),
        ({"eval__metrics": "fvd"}, "--config.eval.metrics is of clips"),
        ({"sample__length": 32}, "--config.sample.length is of clips"),
        ({"sample__what": "base"}, "sample.what=base is of generators"),
        ({"train__freeze_base": True}, "train.freeze_base leaves prior nothing to train"),
        ({"prior__net__heads": 3}, re.escape("multiple of heads = 3, got 16 (--config.prior.net.")),
        ({"sample__residual_guidance_scale": 2.0}, "prior has no residual network"),
        ({"model__condition": "none", "sample__guidance_scale": 2.0}, "no condition to be guided to"),
        ({"base__pretrained": "x.safetensors"}, "model.predictor is prior, which has none"),
        ({"sample__prior": "runs/x"}, "model.predictor=prior with model.context=embedding draws embeddings itself"),
        ({"data__source": "none"}, "data.source=none is for --mode=sample"),
    ],
)  # fmt: skip
def test_what_a_prior_cannot_do_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        main.run(tiny(**changes), tmp_path, "train")


def test_clips_of_a_prior_have_no_pixels():
    """Records are read for their embeddings alone."""
    with_video, without = (data.source(config) for config in (demo.get_config(), tiny()))
    clip = without.clip(3, None)
    assert "video" not in clip
    np.testing.assert_array_equal(clip["embedding"], with_video.clip(3, None)["embedding"])
    assert not build.optimizer(tiny()).lr.keys() - {"prior"}
