"""From a config to the text encoder that generators read, and to the prompts of samples."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from vf.activity import ACTIVITY
from vf.config.values import choose
from vf.data import text
from vf.nets.clip import TextConfig
from vf.nets.text_encoder import TextEncoder
from vf.nets.tokenizer import Tokenizer
from vf.nets.vit import CLIP_B32, Config
from vf.pretrained import weights
from vf.types import UserError, counted, naming_flags

CONDITIONS = {name: name for name in ("none", "label", "text")}


def reads(config: ConfigDict) -> bool:
    """Whether the model is conditioned on texts."""
    return choose("model.condition", config.model.condition, CONDITIONS) == "text"


def readers(config: ConfigDict) -> tuple[str, ...]:
    """Names of the networks that read the texts."""
    if not reads(config):
        return ()
    if config.model.predictor == "prior":
        return ("prior",)
    residual = config.model.predictor != "one_network" and config.residual.text
    return ("base", "residual") if residual else ("base",)


def embedding_dim(config: ConfigDict) -> int:
    """Channels of the embeddings that CLIP makes of base frames; 0 where the data's are used. UserError as `shape`."""
    if not config.text.embed:
        return 0
    if not reads(config) and not config.text.encoder:
        raise UserError("text.embed is CLIP's: set --config.text.encoder, or --config.text.embed=False")
    return TextConfig(**_header(config).about["language"]).dim


def shape(config: ConfigDict) -> tuple[int, int, int]:
    """Tokens of a text, channels of their states, and of the embedding of the whole; zeros for a model without texts.

    Raises UserError where no encoder is named, or there is none.
    """
    if not reads(config):
        return (0, 0, 0)
    language = TextConfig(**_header(config).about["language"])
    if language.width != language.dim:
        raise UserError(
            f"{config.text.encoder} has states of {language.width} numbers and embeddings of {language.dim}, and "
            "generators read those of one size: take ViT-L/14, B/32 or H/14"
        )
    return language.context, language.width, language.dim


def encoder(config: ConfigDict) -> TextEncoder | None:
    """The CLIP that `text.encoder` and `text.tokenizer` name; None for a model without texts and its embeddings.

    Raises UserError where one is missing, damaged, or not the other's.
    """
    if not reads(config) and not embedding_dim(config):
        return None
    _header(config)
    if not config.text.tokenizer:
        raise UserError(
            "the model reads texts, and no tokenizer is named: set --config.text.tokenizer to OpenAI's "
            "bpe_simple_vocab_16e6.txt.gz, or to the folder of a CLIP by transformers"
        )
    return _opened(config.text.encoder, config.text.tokenizer)


def embed(config: ConfigDict, frame: int) -> Callable[[UInt8[np.ndarray, "f h w 3"]], Float[np.ndarray, " d"]]:
    """A clip -> CLIP's embedding of one of its frames. Raises UserError as `encoder`."""
    found = encoder(config)
    assert found is not None
    program = jax.jit(found.embed)
    return lambda clip: np.asarray(program(found.params, clip[frame : frame + 1])[0])


def tokenize(config: ConfigDict) -> Callable[[str], Int[np.ndarray, " t"]] | None:
    """Caption -> tokens; None for a model without texts. Raises UserError as `encoder`."""
    found = encoder(config) if reads(config) else None
    return None if found is None else found.tokens


def _header(config: ConfigDict) -> weights.Weights:
    if not config.text.encoder:
        raise UserError(
            "model.condition is text, and no text encoder is named: make one of CLIP's weights with python -m "
            "vf.pretrained.convert clip --source=FILE --out=weights/clip.safetensors, and set --config.text.encoder"
        )
    with naming_flags({"weights": "--config.text.encoder"}):
        header = weights.peek(config.text.encoder, ("clip",))
    # Files that were made of one encoder's folder lack the sizes of the other.
    lacks = {
        "text": set(header.about["language"]) == {"dim"},
        "image": config.text.embed and not header.about["vision"],
    }
    for kind, lacking in lacks.items():
        if lacking:
            raise UserError(
                f"{config.text.encoder} lacks CLIP's {kind} encoder: convert the whole CLIP (--config.text.encoder)"
            )
    return header


@functools.lru_cache(1)
def _opened(file: str, vocabulary: str) -> TextEncoder:
    with ACTIVITY.doing("reading the text encoder"):
        converted = weights.load(file, "clip")
    language, tokenizer = TextConfig(**converted.about["language"]), Tokenizer(vocabulary)
    if tokenizer.vocabulary != language.vocabulary:
        raise UserError(
            f"{vocabulary} has {counted(tokenizer.vocabulary, 'token')}, and {file} was trained with "
            f"{language.vocabulary:,}: name its own tokenizer by --config.text.tokenizer"
        )
    vision = Config(**converted.about["vision"] or dataclasses.asdict(CLIP_B32))  # unused where there is none
    return TextEncoder(converted.tree(), vision, language, tokenizer, converted.fingerprint)


def prompts(config: ConfigDict) -> tuple[str, ...]:
    """The prompts that `sample.prompts` gives, itself or in a file, one on each line; () for none.

    What is left out or cut is said. Raises UserError where there is no such file, or no prompt in it, and for prompts
    to a model that reads none.
    """
    given = config.sample.prompts
    if not given:
        return ()
    found = encoder(config) if reads(config) else None
    if found is None:
        raise UserError(
            f"--config.sample.prompts is given, and the model reads no texts (model.condition is "
            f"{config.model.condition}): leave it empty, or train with --config.model.condition=text"
        )
    lines = _lines(given)
    told = [line.strip() for line in lines]
    if blank := [number for number, line in enumerate(told, 1) if not line and number < len(told)]:
        logging.warning("%s: left out as empty: line %s", given, ", ".join(map(str, blank)))
    if not (kept := tuple(line for line in told if line)):
        raise UserError("--config.sample.prompts has no prompt: give a text, or a file with one on each line")
    for prompt, words in found.lost(kept).items():
        logging.warning(
            "a prompt is longer than %d tokens, and is cut at the words %r: %r",
            found.language.context,
            words,
            prompt,
        )
    return kept


def _lines(given: str) -> list[str]:
    """Lines of the text, or of the file that it names."""
    path = Path(given)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a long text is no name of a file
        is_file = False
    if not is_file:
        if path.suffix in (".txt", ".csv", ".json", ".tsv") and " " not in given:
            raise UserError(f"--config.sample.prompts: {given} does not exist")
        return given.split("\n")
    raw = path.read_bytes()
    # A line ends at a line feed alone: letters at which Unicode lets a line end are parts of prompts.
    lines = raw.decode(text.encoding(raw[:8]), "surrogateescape").replace("\r\n", "\n").split("\n")
    if odd := [number for number, line in enumerate(lines, 1) if not text.is_utf8(line)]:
        logging.warning("%s is not UTF-8, first in line %d: read as Windows-1252", given, odd[0])
    return [text.readable(line) for line in lines]
