"""What samples are conditioned on: through the entry up to the training loop, and by classes in turn."""

import dataclasses
import types

import numpy as np
import pytest

from tests import small_texts
from tests.test_main import tiny
from vf import main
from vf.config.specs import ControlSpec, SampleSpec
from vf.data.sprites import COLOURS, SHAPES, Sprites
from vf.jobs import evaluator, train
from vf.jobs.evaluator import Evaluator
from vf.models.sampler import SampleOptions
from vf.types import UserError


def conditions(monkeypatch, workdir, **changes):
    """(conditions, evaluator) of the samples of a job that begins to train."""
    begun = []
    monkeypatch.setattr(train, "_train", lambda *job: begun.extend(job) or {})
    defaults = {"model__context": "embedding", "sample__count": 72, "eval__clips": 128}
    main.run(tiny(**defaults | changes), workdir, "train")
    opened = next(part for part in begun if isinstance(part, Evaluator))
    return opened.conditions, opened


def classes(embedding: np.ndarray) -> np.ndarray:
    """The classes that sprites' embeddings [n d] name: the one-hot shape and colour."""
    shape = embedding[:, : len(SHAPES)].argmax(1)
    return shape * len(COLOURS) + embedding[:, len(SHAPES) : len(SHAPES) + len(COLOURS)].argmax(1)


def test_label_and_embedding_of_a_sample_are_of_one_validation_clip(monkeypatch, tmp_path):
    """All 72 samples of the demo: four of each class, each with the embedding of another clip of its class."""
    made, opened = conditions(monkeypatch, tmp_path)
    clips = opened.validation.clips
    np.testing.assert_array_equal(made["label"], np.arange(72) % Sprites.num_classes)
    np.testing.assert_array_equal(classes(made["embedding"]), made["label"])
    pairs = {(int(label), *row) for label, row in zip(clips["label"], clips["embedding"], strict=True)}
    assert {(int(label), *row) for label, row in zip(made["label"], made["embedding"], strict=True)} <= pairs
    assert len(np.unique(made["embedding"], axis=0)) > 64  # another clip for each, as far as there are
    donors = opened.results.sampling["embeddings_of"]  # a score says whose they are
    assert (donors["set"], donors["split"]) == ("validation", "test")


def test_the_requested_class_is_the_donor_s(monkeypatch, tmp_path):
    made, _ = conditions(monkeypatch, tmp_path, sample__label=7)
    assert set(made["label"]) == set(classes(made["embedding"])) == {7}
    made, _ = conditions(monkeypatch, tmp_path, sample__label=7, model__condition="none")
    assert set(classes(made["embedding"])) == {7}


def test_without_classes_donors_are_taken_in_order(monkeypatch, tmp_path):
    made, opened = conditions(monkeypatch, tmp_path, model__condition="none", eval__clips=50)
    np.testing.assert_array_equal(made["embedding"], opened.validation.clips["embedding"][np.arange(72) % 50])
    np.testing.assert_array_equal(made["label"], classes(made["embedding"]))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Fields of a model that reads texts."""
    encoder, vocabulary = small_texts.write(tmp_path_factory.mktemp("texts"))
    return {"model__condition": "text", "text__encoder": str(encoder), "text__tokenizer": str(vocabulary)}


def test_captions_are_those_of_validation_clips(monkeypatch, tmp_path, texts):
    made, opened = conditions(monkeypatch, tmp_path, **texts, model__context="none", sample__count=6)
    clips = opened.validation.clips
    np.testing.assert_array_equal(made["tokens"], clips["tokens"][:6])
    words = opened.spec.text.words(made["tokens"])
    names = [opened.spec.class_names[label] for label in clips["label"][:6]]
    assert all(caption.startswith(f"a {name} moves ") for caption, name in zip(words, names, strict=True))
    assert opened.results.sampling["captions_of"]["split"] == "test"


def test_prompts_are_drawn_in_turn_each_the_same_alone(tmp_path, texts, caplog):
    """And what is cut, or left out of a file, is said."""
    file, two = tmp_path / "prompts.txt", [small_texts.CAPTIONS[0], f"{small_texts.CAPTIONS[100]} today and tomorrow"]
    file.write_text(f"{two[0]}\n\n{two[1]}\n", encoding="utf-16")
    fields = {**texts, "model__context": "base_frame", "sample__eta": 1.0}
    main.run(tiny(**fields, train__steps=2, sample__count=2), tmp_path / "run", "train")
    caplog.clear()
    drawn = {}
    for count, changes in ((4, {"sample__prompts": str(file), "sample__each": 2}), (1, {"sample__prompts": two[1]})):
        first = {"sample__first": 3} if count == 1 else {}
        main.run(tiny(**fields | changes | first), tmp_path / "run", "sample")
        (folder,) = (tmp_path / "run/samples").glob(f"*_n{count}_*")
        drawn[count] = folder
    said = caplog.text
    other, _ = small_texts.write(tmp_path, seed=1)
    with pytest.raises(UserError, match="have learned the texts of another encoder"):
        main.run(tiny(**fields | {"text__encoder": str(other)}), tmp_path / "run", "sample")
    assert "left out as empty: line 2" in said
    assert "cut at the words 'today and tomorrow'" in said
    with np.load(drawn[1] / "clips.npz") as one, np.load(drawn[4] / "clips.npz") as all_:
        np.testing.assert_array_equal(one["clips"][0], all_["clips"][3])
        np.testing.assert_array_equal(all_["label"], [0, 1, 0, 1])
        assert (all_["clips"][0] != all_["clips"][2]).any()  # another noise


def test_a_class_without_a_donor_is_refused_before_training(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"samples of class \d+ need the embedding of a validation clip of that class"):
        conditions(monkeypatch, tmp_path, eval__clips=8)
    with pytest.raises(UserError, match=r"sample\.label must be a class, 0 to 17, or -1"):
        conditions(monkeypatch, tmp_path, sample__label=18)


def test_donors_of_a_class_take_turns():
    """The next clip of the class; the first again after the last."""
    job = SampleSpec(SampleOptions(np.arange(2)), count=8, batch_size=8, seed=0, weights="ema", label=-1, fps=8)
    model = types.SimpleNamespace(null_label=2, embedding_dim=1)
    records = {"label": np.array([1, 0, 1, 1], np.int32), "embedding": np.arange(4.0, dtype=np.float32)[:, None]}
    made = evaluator.conditions(model, job, records, classes=2)
    assert made["label"].tolist() == [0, 1] * 4
    assert made["embedding"][:, 0].tolist() == [1, 0, 1, 2, 1, 3, 1, 0]


@pytest.mark.parametrize("label", [-1, 1])
def test_a_sample_that_is_drawn_alone_has_the_donor_that_it_has_among_others(label):
    """And the clips of a grid's row have one donor, which is a part of their content."""
    job = SampleSpec(SampleOptions(np.arange(2)), count=8, batch_size=8, seed=0, weights="ema", label=label, fps=8)
    model = types.SimpleNamespace(null_label=2, embedding_dim=1)
    records = {"label": np.array([1, 0, 1, 1], np.int32), "embedding": np.arange(4.0, dtype=np.float32)[:, None]}
    all_of_them = evaluator.conditions(model, job, records, classes=2)["embedding"]
    for k in range(8):
        alone = evaluator.conditions(model, dataclasses.replace(job, count=1, first=k), records, classes=2)
        np.testing.assert_array_equal(alone["embedding"], all_of_them[[k]])
    grid = dataclasses.replace(job, control=ControlSpec(0, 0, grid=(4, 2)))
    made = evaluator.conditions(model, grid, records, classes=2)["embedding"]
    np.testing.assert_array_equal(made[::2], all_of_them[:4])
    np.testing.assert_array_equal(made[1::2], all_of_them[:4])
