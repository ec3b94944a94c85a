"""Tokens against a transcription in Python and Hugging Face's tokenizer, from every kind of file."""

import builtins
import gzip
import itertools
import json
import re

import pytest

from vf.nets.tokenizer import Tokenizer
from vf.types import UserError

transformers = pytest.importorskip("transformers")


MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("i", "n"),
          ("in", "g</w>"), ("r", "u"), ("ru", "n"), ("run", "n"), ("Ã", "©</w>"), ("a", "f")]  # fmt: skip


def symbols() -> dict[int, str]:
    """The character that stands for each byte, in the order of the vocabulary."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + k) for k, b in enumerate(others)}


def vocabulary() -> dict[str, int]:
    table = list(symbols().values())
    words = table + [s + "</w>" for s in table] + ["".join(pair) for pair in MERGES]
    return {word: k for k, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def by_hand(caption: str, context: int = 77) -> list[int]:
    """Byte pairs merged one by one, the earliest merge of the list first."""
    table, ids = symbols(), []
    rank = {pair: k for k, pair in enumerate(MERGES)}
    for word in re.findall(r"'s|'t|[^\W\d_]+|\d|(?:[^\w\s]|_)+", caption.lower()):
        pieces = [table[b] for b in word.encode()]
        pieces[-1] += "</w>"
        while best := min(((rank[p], k) for k, p in enumerate(itertools.pairwise(pieces)) if p in rank), default=()):
            pieces[best[1] : best[1] + 2] = ["".join(pieces[best[1] : best[1] + 2])]
        ids += [vocabulary()[piece] for piece in pieces]
    ids = [len(vocabulary()) - 2, *ids[: context - 2]]
    return ids + [len(vocabulary()) - 1] * (context - len(ids))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same vocabulary as OpenAI's file, as vocab.json + merges.txt, and as Hugging Face saves it."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [" ".join(pair) for pair in MERGES]
    with gzip.open(folder / "bpe.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *lines, ""]))
    old = folder / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]), encoding="utf-8")
    hugging_face = transformers.CLIPTokenizer(vocab=vocabulary(), merges=MERGES)
    hugging_face.save_pretrained(folder / "new")
    return {
        "openai": folder / "bpe.txt.gz",
        "old": old,
        "new": folder / "new",
        "json": folder / "new/tokenizer.json",
    }, hugging_face


CAPTIONS = [
    "The cat",
    "the dog's  running\n in 2024!",
    "",
    "Café, naïve: 日本 _x_ <b>",
    "cat " * 100,
    "cat " * 75,
    "cat " * 76,
]


@pytest.mark.parametrize("kind", ["openai", "old", "new", "json"])
def test_every_file_gives_the_same_tokens(sources, kind):
    files, hugging_face = sources
    tokens, truncated = Tokenizer(files[kind]).encode(CAPTIONS)
    assert tokens.tolist() == [by_hand(caption) for caption in CAPTIONS]
    assert truncated == 2  # 75 pieces fit between start and end
    assert (tokens[:, -1] == len(vocabulary()) - 1).all()
    expected = hugging_face(CAPTIONS, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert tokens.tolist() == expected
    assert Tokenizer(files[kind]).vocabulary == len(vocabulary())


def test_a_prefix_and_a_shorter_context(sources):
    tokenizer = Tokenizer(sources[0]["openai"])
    tokens, truncated = tokenizer.encode(["cat", "dog dog dog"], prefix="the ", context=5)
    assert tokens.tolist() == [by_hand("the cat", 5), by_hand("the dog dog", 5)]
    assert truncated == 1


def test_a_missing_tokenizer_is_answered_in_one_sentence(sources, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no tokenizer at .*bpe_simple_vocab"):
        Tokenizer(tmp_path / "none.gz")
    with pytest.raises(UserError, match=r"no tokenizer at"):
        Tokenizer(tmp_path)
    for name, text in (("a.json", "{}"), ("a.txt", "header\nthree words here\n"), ("a.txt.gz", "not zipped")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="no whole tokenizer"):
            Tokenizer(tmp_path / name)
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install tokenizers"):
        Tokenizer(sources[0]["openai"])


def test_a_tokenizer_of_another_network_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no tokenizer of CLIP"):
        Tokenizer(tmp_path)
