"""The loss of CLIP's encoders in closed form, and the job that trains them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.test_main import tiny
from vf import main
from vf.config import build
from vf.hosts.run import Hosts
from vf.jobs import contrast
from vf.nets.clip import TextConfig, unit
from vf.nets.tokenizer import Tokenizer
from vf.pretrained import weights
from vf.types import UserError

RANDOM = np.random.default_rng(0)
U, V = RANDOM.normal(size=(2, 5, 4))
SCALE = np.log(np.full(1, 7.0))


def cross_entropy(logits):
    return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))


def test_of_distinct_captions_it_is_clip_s_loss():
    tokens = np.arange(5)[:, None]
    logits = 7 * np.asarray(unit(U) @ unit(V).T)
    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert float(contrast.loss(U, V, tokens, SCALE)) == pytest.approx(expected, rel=1e-5)
    assert float(contrast.loss(9 * U, V / 3, tokens, SCALE)) == pytest.approx(
        expected, rel=1e-5
    )  # lengths do not count


def test_equal_captions_are_right_for_each_other():
    """Two pairs of equal captions, perfectly told apart: what is left is that each has two right answers."""
    tokens = np.array([[0, 1], [0, 1], [0, 2], [0, 2]])
    apart = jnp.repeat(jnp.eye(2), 2, 0)
    assert float(contrast.loss(apart, apart, tokens, np.log(np.full(1, 100.0)))) == pytest.approx(np.log(2), abs=1e-5)
    assert float(contrast.loss(apart, apart, tokens, np.full(1, 99.0))) == pytest.approx(np.log(2), abs=1e-5)  # bounded


def small(**changes) -> ConfigDict:
    learn = {"width": 8, "depth": 1, "heads": 2, "patch": 8, "captions": 40, "steps": 3, "batch_size": 16}
    return tiny(**{f"text__learn__{name}": value for name, value in learn.items()} | changes)


def test_the_job_writes_an_encoder_and_its_tokenizer_and_leaves_them(tmp_path, caplog):
    """As the commands read them."""
    scores = main.run(small(), tmp_path, "clip")
    assert 0 <= scores["nearest_caption_of_class"] <= 1
    converted, words = weights.load(tmp_path / contrast.ENCODER, "clip"), Tokenizer(tmp_path / contrast.TOKENIZER)
    assert TextConfig(**converted.about["language"]).vocabulary == words.vocabulary
    tokens, cut = words.encode(["a red square moves left over white"], context=16)
    assert words.decode(tokens[0]) == "a red square moves left over white"
    assert (cut, int(tokens.max())) == (0, words.vocabulary - 1)
    paths = {"text__encoder": str(tmp_path / contrast.ENCODER), "text__tokenizer": str(tmp_path / contrast.TOKENIZER)}
    run = build.sample(small(**paths, model__condition="text", data__source="sprites"), tmp_path / "run", None)
    assert run.text.fingerprint == converted.fingerprint
    before = (tmp_path / contrast.ENCODER).stat().st_mtime_ns
    assert main.run(small(), tmp_path, "clip") == {}
    assert (tmp_path / contrast.ENCODER).stat().st_mtime_ns == before


def test_data_without_captions_is_refused(tmp_path):
    spec = build.contrast(small())

    class Silent:
        def __init__(self, tokenize):
            self.tokenize = tokenize

        def __len__(self):
            return 3

        def clip(self, record, rng):
            return {"video": np.zeros((8, 16, 16, 3), np.uint8), "tokens": self.tokenize("")}

    spec = dataclasses.replace(spec, source=lambda part, tokenize: Silent(tokenize))
    with pytest.raises(UserError, match="none of the clips has a caption"):
        contrast.run(spec, tmp_path, Hosts())
    assert not list(tmp_path.iterdir())
