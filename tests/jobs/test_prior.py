"""Samples whose embeddings a prior draws: those that its own run draws, of the samples' classes; what does not fit."""

import jax
import numpy as np
import pytest

from configs import demo
from tests import small_texts
from tests.jobs.test_embeddings import drawn, tiny, weights
from vf import main
from vf.config import build
from vf.config.specs import RunSpec
from vf.jobs.evaluator import Evaluator
from vf.jobs.results import Results
from vf.nets.prior import Prior
from vf.pretrained import export
from vf.pretrained import prior as pretrained
from vf.pretrained import weights as files
from vf.run.recorder import Recorder
from vf.types import UserError


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prior")
    main.run(tiny(train__steps=2, sample__steps=25), workdir, "train")
    return workdir


def generators(prior="", **changes):
    """The demo's generators with the context that is an embedding."""
    config = demo.get_config()
    given = {"model__context": "embedding", "sample__prior": str(prior), "sample__count": 4, "mesh__cpu_devices": 0}
    given = given | {"sample__batch_size": 8} | changes
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in given.items()})
    return config


def spec_of(config, workdir) -> RunSpec:
    return build.sample(config, workdir, None)


def embeddings_of(config, workdir):
    spec = spec_of(config, workdir)
    with Recorder(workdir, is_writer=True) as recorder:
        return Evaluator.open(workdir, recorder, spec).conditions


def test_a_sample_has_the_embedding_that_the_prior_s_own_run_draws(prior_run, tmp_path):
    """Of its number, and of its class by name; from the run, or from what was exported of it."""
    true = drawn(prior_run, 2)[0]["embedding"]
    rows = embeddings_of(generators(prior_run), tmp_path)
    np.testing.assert_array_equal(rows["label"], range(4))
    np.testing.assert_allclose(rows["embedding"], true[:4], atol=1e-5)
    later = embeddings_of(generators(prior_run, sample__first=3, sample__count=2), tmp_path)
    np.testing.assert_allclose(later["embedding"], true[3:5], atol=1e-5)
    export.export(prior_run, tmp_path / "exported")
    np.testing.assert_allclose(
        embeddings_of(generators(tmp_path / "exported"), tmp_path)["embedding"], true[:4], atol=1e-5
    )
    one = embeddings_of(generators(prior_run, sample__label=2), tmp_path)["embedding"]
    np.testing.assert_allclose(one[2], true[2], atol=1e-5)
    assert np.abs(one[0] - true[0]).max() > 1e-3


def test_the_protocol_says_which_prior(prior_run, tmp_path):
    config = generators(prior_run)
    spec = spec_of(config, tmp_path)
    sampling = Results(tmp_path, spec).sampling
    facts = sampling["prior"]
    assert (facts["from"], facts["step"], facts["guidance_scale"]) == (str(prior_run), 2, 1.0)
    assert (len(facts["times"]), facts["clip_x_0"], facts["classes"]) == (26, 5.0, True)
    assert "embeddings_of" not in sampling
    assert "prior" not in Results(tmp_path, spec_of(generators(), tmp_path)).sampling
    others = [generators(), generators(prior_run, sample__prior_steps=9), config]
    prints = [build.evaluate(one, tmp_path, None).run.evaluation.fingerprint for one in others]
    assert len(set(prints)) == 3
    guided = spec_of(generators(prior_run, sample__prior_guidance_scale=3.0), tmp_path).prior
    assert guided.options.guidance.scale == 3.0


def test_sampling_reads_no_validation_clips(prior_run, tmp_path):
    assert spec_of(generators(prior_run), tmp_path).evaluation.validation is None
    assert spec_of(generators(), tmp_path).evaluation.validation is not None


def karlo(path, classes=(), dim=14, texts=True):
    """A converted file of Karlo's kind, at toy size, with random weights and texts."""
    fields = {"dim": dim, "width": 16, "depth": 1, "heads": 2, "text_length": 5}
    about = {
        "network": fields, "schedule": {"name": "cosine", "steps": 1000}, "prediction": "x_0", "clip_x_0": 5.0,
        "texts": [*classes, ""] if texts else [], "classes": list(classes), "source": "x",
    }  # fmt: skip
    net = Prior(**fields, texts=len(about["texts"]))
    z = np.zeros((1, 1, 1, 1, dim), np.float32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), z, np.zeros(1, np.int32)))["params"]
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    names = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(drawn)}
    files.save(path, pretrained.FAMILY, names, about)
    return path


def test_karlo_s_prior_knows_classes_by_their_texts(tmp_path):
    """In its own order; without classes it draws for the empty prompt."""
    names = build.clips.source(generators()).class_names
    file = karlo(tmp_path / "karlo.safetensors", classes=names[::-1])
    spec = spec_of(generators(file), tmp_path)
    assert spec.prior.labels == tuple(range(17, -1, -1))
    assert spec.prior.options.guidance.scale == 4.0
    assert spec.prior.protocol()["fingerprint"] == files.peek(file, (pretrained.FAMILY,)).fingerprint
    rows = embeddings_of(generators(file), tmp_path)
    assert rows["embedding"].shape == (4, 14)
    assert np.abs(rows["embedding"][0] - rows["embedding"][1]).max() > 0.1
    empty = karlo(tmp_path / "empty.safetensors")
    spec = spec_of(generators(empty, model__condition="none"), tmp_path)
    assert (spec.prior.labels, spec.prior.options.guidance.scale) == ((), 1.0)


def test_what_does_not_fit_is_one_sentence(prior_run, tmp_path):
    def refused(message, config):
        with pytest.raises(UserError, match=message):
            main.run(config, tmp_path / "out", "sample")

    refused("is no folder: name the folder of a run, .*--config.sample.prior", generators(tmp_path / "none"))
    refused("no weights at .*convert karlo-prior", generators(tmp_path / "none.safetensors"))
    (tmp_path / "empty").mkdir()
    refused("holds neither checkpoints/ nor base.safetensors", generators(tmp_path / "empty"))
    dim = karlo(tmp_path / "dim.safetensors", dim=9)
    refused("draws embeddings of 9 numbers, and those that the generators see have 14", generators(dim))
    other = karlo(tmp_path / "other.safetensors", classes=("YoYo", "TaiChi"))
    refused("knows 2 classes.*red square.*--config.sample.prior", generators(other))
    refused("knows none: name one that was trained on the same classes", generators(karlo(tmp_path / "no.safetensors")))
    bare = karlo(tmp_path / "bare.safetensors", texts=False)
    refused("neither texts of classes nor the empty prompt", generators(bare, model__condition="none"))
    refused("model.context=base_frame sees none", generators(prior_run, model__context="base_frame"))
    refused("sample.known gives frames of clips", generators(prior_run, sample__known=(0,)))


def test_generators_are_no_prior(tmp_path, prior_run):
    (tmp_path / "config.json").write_text((prior_run / "config.json").read_text().replace('"prior"', '"decomposed"'))
    (tmp_path / "checkpoints").symlink_to(prior_run / "checkpoints")
    with pytest.raises(UserError, match="holds no prior but networks"):
        pretrained.open_prior(tmp_path)


# ---- texts


def reading(folder, **changes):
    """A prior of captions and of the embeddings of base frames, both by the small CLIP in `folder`."""
    encoder, vocabulary = folder / "clip.safetensors", folder / "tokenizer.json"
    texts = {"model__condition": "text", "text__encoder": str(encoder), "text__tokenizer": str(vocabulary)}
    return texts | {"text__embed": True} | changes


@pytest.fixture(scope="module")
def text_prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    small_texts.write(folder)
    prompts = "a red square moves left over white\na blue cross moves right over black"
    changes = {"train__steps": 1, "train__checkpoint_every": 1, "sample__steps": 25, "sample__prompts": prompts}
    main.run(tiny(**reading(folder, **changes)), folder / "prior", "train")
    return folder


def test_a_prior_reads_prompts(text_prior, tmp_path):
    """Embedding n is of prompt n, for the prior's own run and for generators that read the same texts."""
    arrays, facts = drawn(text_prior / "prior", 1)
    assert arrays["embedding"].shape == (2, 8)
    assert facts["prompts"][0].startswith("a red square")
    config = tiny(**reading(text_prior))
    source = build.clips.source(config)
    encoder = build.texts.encoder(config)
    frames = np.stack([source.clip(k, None)["video"][3] for k in range(0, len(source), len(source) // 300)])
    true = np.asarray(jax.jit(encoder.embed)(encoder.params, frames))
    params = weights(text_prior / "prior")
    np.testing.assert_allclose(params["prior/mean"], true.mean(0), atol=0.3 * true.std(0).max())
    np.testing.assert_allclose(params["prior/std"], true.std(0), rtol=0.3)
    swapped = "a blue cross moves right over black\na red square moves left over white"
    rows = embeddings_of(
        generators(text_prior / "prior", **reading(text_prior, sample__prompts="\n".join(facts["prompts"]))), tmp_path
    )
    np.testing.assert_allclose(rows["embedding"], arrays["embedding"], atol=1e-5)
    other = embeddings_of(generators(text_prior / "prior", **reading(text_prior, sample__prompts=swapped)), tmp_path)
    assert np.abs(other["embedding"] - arrays["embedding"]).max() > 1e-3


def test_texts_that_do_not_fit_are_one_sentence(text_prior, prior_run, tmp_path):
    def refused(message, config):
        with pytest.raises(UserError, match=message):
            build.sample(config, tmp_path / "out", None)

    reads = reading(text_prior)
    deaf = generators(text_prior / "prior", **reads | {"model__condition": "none"})
    refused("reads texts, and the generators do not", deaf)
    own = generators(
        prior_run, **reads | {"text__embed": False, "sample__prompts": "a red square moves left over white"}
    )
    refused("the generators read texts, and the prior in .* does not", own)
    (tmp_path / "other").mkdir()
    small_texts.write(tmp_path / "other", seed=1)
    other = reading(tmp_path / "other", sample__prompts="a red square moves left over white")
    refused("has learned the texts of another encoder", generators(text_prior / "prior", **other))
    refused("a prompt does not give: name a prior", generators("", **reads | {"sample__prompts": "a red square"}))
    wide = karlo(tmp_path / "wide.safetensors", dim=8)
    refused("reads texts of 5 tokens of 8 numbers", generators(wide, **reads | {"sample__prompts": "a red square"}))
