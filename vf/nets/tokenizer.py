"""CLIP's tokenizer: captions -> numbers of byte pairs, by the files that are published with CLIP's weights.

The rules are those of Hugging Face's CLIP, by its library `tokenizers`: Unicode is normalised (NFC), white space
becomes single spaces, letters become lower case, and the last piece of a word ends in `</w>`. OpenAI's tokenizer also
repairs HTML entities and broken encodings (with ftfy) beforehand; captions without these get the same tokens.
"""

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vf import files
from vf.types import UserError

CONTEXT = 77
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 49152 - 256 - 2  # number of merges in the vocabulary; OpenAI's file has more
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Converts captions to tokens.

    Attributes:
        vocabulary: number of different tokens; the last two are the start and the end of a caption.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads OpenAI's bpe_simple_vocab_16e6.txt.gz, a tokenizer.json, or a folder with it or vocab.json, merges.txt.

        Raises UserError where the file or the package `tokenizers` is missing, or the file is no tokenizer of CLIP.
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
                tokenizer = _assemble(tokenizers, vocabulary, merges)
            elif path.suffix == ".json":
                tokenizer = tokenizers.Tokenizer.from_file(str(path))
            else:
                tokenizer = _assemble(tokenizers, *_openai(path))
        except Exception as error:  # the library raises no more specific errors
            raise UserError(f"{path} is no whole tokenizer of CLIP ({error})") from error
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        self.vocabulary = tokenizer.get_vocab_size()
        if start is None or end != self.vocabulary - 1:
            raise UserError(f"{path} is no tokenizer of CLIP: {END} should be the last of its {self.vocabulary} tokens")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._pieces, self._start, self._end = tokenizer, start, end
        self._bytes = tokenizers.decoders.ByteLevel()

    def encode(
        self, captions: list[str], *, prefix: str = "", context: int = CONTEXT
    ) -> tuple[Int[np.ndarray, "n context"], int]:
        """(tokens i32, padded by the token of the end; number of captions that were longer than `context`).

        A caption that is too long is truncated before the token of the end, as in `transformers`. `prefix` is put
        before captions unchanged; it is part of a score's protocol.
        """
        tokens = np.full((len(captions), context), self._end, np.int32)
        truncated = 0
        encodings = self._pieces.encode_batch([prefix + caption for caption in captions], add_special_tokens=False)
        for row, pieces in zip(tokens, encodings, strict=True):
            ids = [self._start, *pieces.ids[: context - 2]]
            row[: len(ids)] = ids
            truncated += len(pieces.ids) > context - 2
        return tokens, truncated

    def beyond(self, caption: str, context: int = CONTEXT) -> str:
        """The words of a caption that `encode` cuts, from the one of the first piece that is cut; "" for none."""
        pieces = self._pieces.encode(caption, add_special_tokens=False)
        if len(pieces.ids) <= context - 2:
            return ""
        start = pieces.offsets[context - 2][0]
        words = caption[:start].rsplit(None, 1)
        inside = start and not caption[start - 1].isspace() and not caption[start].isspace()
        return caption[start - len(words[-1]) if inside and words else start :].strip()

    def decode(self, tokens: Int[np.ndarray, " t"]) -> str:
        """The caption that tokens stand for, in lower case, up to its end."""
        ids = tokens.tolist()
        pieces = [self._pieces.id_to_token(k) for k in (ids[1 : ids.index(self._end)] if self._end in ids else ids[1:])]
        return " ".join(self._bytes.decode([word]) for word in "".join(pieces).split("</w>") if word)


def learn(captions: Iterable[str], path: Path, vocabulary: int = 1024) -> None:
    """Learns at most `vocabulary` byte pairs from captions, by the library, and writes them as a tokenizer.json.

    Raises UserError where the file cannot be written.
    """
    import tokenizers

    empty = _assemble(tokenizers, {}, [])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - 2, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    pieces.normalizer, pieces.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    pieces.train_from_iterator(captions, trainer)
    learned = json.loads(pieces.to_str())["model"]
    # As in OpenAI's vocabulary, every byte may also end a word, and the start and the end come last.
    words = list(learned["vocab"])
    words += [word for byte in tokenizers.pre_tokenizers.ByteLevel.alphabet() if (word := f"{byte}</w>") not in words]
    merges = [tuple(pair) for pair in learned["merges"]]
    made = _assemble(tokenizers, {word: k for k, word in enumerate([*words, START, END])}, merges)
    try:
        files.write_whole(path, made.to_str())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): name another file") from error


def _openai(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a file of merges: bytes, bytes at the end of a word, merged pieces, start and end."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + _MERGES]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines if line)]
    if not merges or any(not second or " " in second for _, second in merges):
        raise ValueError("its lines are no pairs")
    # Every byte has a printable character: first the bytes that are printable, then the others, from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [*map(chr, printable), *(chr(256 + k) for k in range(256 - len(printable)))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(a + b for a, b in merges), START, END]
    return {word: k for k, word in enumerate(words)}, merges


def _assemble(tokenizers: Any, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    model = tokenizers.models.BPE(
        vocab=vocabulary, merges=merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.NFC(), tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        tokenizers.normalizers.Lowercase(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.add_special_tokens([START, END])
    return tokenizer
