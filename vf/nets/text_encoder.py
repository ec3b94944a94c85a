"""CLIP as generators read it: captions -> the states of their tokens and one embedding; pictures -> embeddings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vf.nets.clip import Image, Text, TextConfig, preprocess
from vf.nets.tokenizer import Tokenizer
from vf.nets.vit import Config


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder, which is never trained with the generators, and its tokenizer.

    Attributes:
        params: of `vf.nets.clip.CLIP`, the encoders of texts and pictures.
        vision, language: their sizes.
        tokenizer: captions -> tokens.
        fingerprint: hash of the weights, for the protocol.
    """

    params: Any
    vision: Config
    language: TextConfig
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens of a text, channels of their states, and of the embedding of the whole."""
        return self.language.context, self.language.width, self.language.dim

    def tokens(self, caption: str) -> Int[np.ndarray, " t"]:
        """The tokens of one caption, cut where it is too long."""
        return self.tokenizer.encode([caption], context=self.language.context)[0][0]

    def words(self, tokens: Int[np.ndarray, "n t"]) -> list[str]:
        """The captions that tokens stand for, in lower case."""
        return [self.tokenizer.decode(row) for row in tokens]

    def lost(self, captions: Sequence[str]) -> dict[str, str]:
        """{caption that is too long: its words that are cut}."""
        cut = {caption: self.tokenizer.beyond(caption, self.language.context) for caption in captions}
        return {caption: words for caption, words in cut.items() if words}

    def encode(
        self, params: Any, tokens: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b t e"], Bool[Array, "b t"], Float[Array, "b d"]]:
        """(states after the last norm, which tokens are up to the end, the projected state of the end)."""
        read: Any = Text(self.language, states=True).apply({"params": params["text"]}, tokens)
        states, pooled = read
        ends = tokens.argmax(1)[:, None]
        return states, jnp.arange(tokens.shape[1]) <= ends, pooled

    def embed(self, params: Any, pictures: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """CLIP's embeddings of pictures, not divided by their length."""
        pixels = preprocess(pictures, self.vision.size)
        image = Image(self.vision, self.language.dim, jax.lax.Precision.HIGHEST)
        found: Any = image.apply({"params": params["image"]}, pixels)
        return found
