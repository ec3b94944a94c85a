"""CLIP's tokenizer: captions -> numbers of byte pairs, from the files that CLIP's weights come with.

The rules are those of Hugging Face's CLIP, and its library `tokenizers` does the work: Unicode is normalised (NFC),
white space becomes single spaces, letters become small, a word's last piece ends in `</w>`. OpenAI's own tokenizer also
repairs HTML entities and broken encodings (with ftfy) beforehand; clean captions become the same numbers.
"""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vf.types import UserError

CONTEXT = 77
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 49152 - 256 - 2  # of OpenAI's file, which holds more than the vocabulary has
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Captions -> tokens.

    Attributes:
        vocabulary: different tokens; the last two are the start and the end of a caption.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads OpenAI's bpe_simple_vocab_16e6.txt.gz, a tokenizer.json, or a folder with it or vocab.json, merges.txt.

        Raises UserError where the file or the package `tokenizers` is missing, or the file is something else.
        """
        path = Path(path)
        if path.is_dir():
            path = next((file for name in ("tokenizer.json", "vocab.json") if (file := path / name).is_file()), path)
        if not path.is_file():
            raise UserError(
                f"no tokenizer at {path}: name OpenAI's bpe_simple_vocab_16e6.txt.gz, or a Hugging Face folder of CLIP"
            )
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("captions need the package `tokenizers`: pip install tokenizers") from error
        try:
            if path.name == "vocab.json":
                vocabulary, merges = tokenizers.models.BPE.read_file(str(path), str(path.with_name("merges.txt")))
                made = _assembled(tokenizers, vocabulary, merges)
            elif path.suffix == ".json":
                made = tokenizers.Tokenizer.from_file(str(path))
            else:
                made = _assembled(tokenizers, *_openai(path))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{path} is no whole tokenizer of CLIP ({error})") from error
        start, end = made.token_to_id(START), made.token_to_id(END)
        self.vocabulary = made.get_vocab_size()
        if start is None or end != self.vocabulary - 1:
            raise UserError(f"{path} is no tokenizer of CLIP: {END} should be the last of its {self.vocabulary} tokens")
        made.no_padding()
        made.no_truncation()
        self._pieces, self._start, self._end = made, start, end

    def encode(
        self, captions: list[str], *, prefix: str = "", context: int = CONTEXT
    ) -> tuple[Int[np.ndarray, "n context"], int]:
        """Tokens i32, padded by the end's, and how many captions were too long and lost what lies beyond `context`.

        A long caption keeps its beginning, and the end's token is its last, as in `transformers`. `prefix` is put
        before captions as it is; it is part of a score's protocol.
        """
        tokens = np.full((len(captions), context), self._end, np.int32)
        truncated = 0
        found = self._pieces.encode_batch([prefix + caption for caption in captions], add_special_tokens=False)
        for row, pieces in zip(tokens, found, strict=True):
            ids = [self._start, *pieces.ids[: context - 2]]
            row[: len(ids)] = ids
            truncated += len(pieces.ids) > context - 2
        return tokens, truncated


def _openai(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a list of merges: bytes, bytes that end a word, what merges make, start and end."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + _MERGES]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines if line)]
    if not merges or any(not second or " " in second for _, second in merges):
        raise ValueError("its lines are no pairs")
    # Bytes by a printable character each: those that are printable as they are first, the others from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [*map(chr, printable), *(chr(256 + k) for k in range(256 - len(printable)))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(a + b for a, b in merges), START, END]
    return {word: k for k, word in enumerate(words)}, merges


def _assembled(tokenizers: Any, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    model = tokenizers.models.BPE(
        vocab=vocabulary, merges=merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.NFC(), tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        tokenizers.normalizers.Lowercase(),
    ])  # fmt: skip
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    made.add_special_tokens([START, END])
    return made
