"""What generators read of a text: the states up to its end, and which words are cut."""

import numpy as np
import pytest

from tests import small_texts
from vf.nets.clip import TextConfig
from vf.nets.text_encoder import TextEncoder
from vf.nets.tokenizer import Tokenizer
from vf.nets.vit import Config
from vf.pretrained import weights

RED, BLUE = "a red square moves left over white", "a blue cross moves up over black"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    file, vocabulary = small_texts.write(tmp_path_factory.mktemp("texts"))
    converted = weights.load(file, "clip")
    vision, language = Config(**converted.about["vision"]), TextConfig(**converted.about["language"])
    return TextEncoder(converted.tree(), vision, language, Tokenizer(vocabulary), converted.fingerprint)


def test_the_mask_ends_with_the_text(encoder):
    """Whatever stands after the end changes nothing that is read; seven words have a start and an end besides."""
    tokens = np.stack([encoder.tokens(RED), encoder.tokens("a red square")])
    states, mask, pooled = encoder.encode(encoder.params, tokens)
    assert encoder.shape == (states.shape[1], states.shape[2], pooled.shape[1])
    np.testing.assert_array_equal(mask.sum(1), [9, 5])
    other = np.where(np.cumsum(tokens == tokens.max(), 1) > 1, 0, tokens)
    again, same, vector = encoder.encode(encoder.params, other)
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_allclose(np.where(mask[..., None], again, 0), np.where(mask[..., None], states, 0), atol=1e-6)
    np.testing.assert_allclose(vector, pooled, atol=1e-6)
    np.testing.assert_allclose(states[1, :4], states[0, :4], atol=1e-6)  # causal: the same beginning
    assert np.abs(np.asarray(pooled[0] - pooled[1])).max() > 1e-3


def test_words_are_those_of_the_caption(encoder):
    assert encoder.words(np.stack([encoder.tokens(RED.upper()), encoder.tokens(BLUE)])) == [RED, BLUE]


def test_lost_words_are_named(encoder):
    long = f"{RED}, then  up again"
    assert encoder.lost([RED, long]) == {long: "then  up again"}  # eight pieces fit between start and end
    assert encoder.words(encoder.tokens(long)[None]) == [f"{RED} ,"]
