"""Folders as the Hub has them: variants, shards with and without a list, both formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vf.pretrained import files
from vf.types import UserError

torch = pytest.importorskip("torch")

ARRAYS = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), np.float32), "c": np.zeros(1, np.float32)}


def store(path: Path, value: float = 0.0, names: str = "abc") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: ARRAYS[name] + np.float32(value) for name in names}
    if path.suffix == ".bin":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        save_file(arrays, path)


def check(folder: Path, value: float, *, variant: str = "", variants: tuple[str, ...] = ("",), ask: str = "") -> None:
    found = files.read(folder, ask)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[name], array + np.float32(value))
    assert (found.variant, found.variants) == (variant, variants)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "pytorch_model", "open_clip_model"])
def test_one_file(tmp_path, stem, kind):
    store(tmp_path / f"{stem}.{kind}", 1)
    check(tmp_path, 1)
    for word in ("fp16", "non_ema", "bf16"):
        store(tmp_path / word / f"{stem}.{word}.{kind}", 2)
        check(tmp_path / word, 2, variant=word, variants=(word,))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["model-0000{}-of-00002", "model.fp16-0000{}-of-00002", "model-0000{}-of-00002.fp16"])
def test_shards_need_no_list(tmp_path, name, kind):
    for k, names in enumerate(("ab", "c"), 1):
        store(tmp_path / f"{name.format(k)}.{kind}", 3, names)
    word = "fp16" if "fp16" in name else ""
    check(tmp_path, 3, variant=word, variants=(word,))
    shards = sorted(file.name for file in tmp_path.iterdir())
    index = f"model.{kind}.index{'.fp16' * bool(word)}.json"
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[0], "c": shards[1]}}))
    check(tmp_path, 3, variant=word, variants=(word,))
    (tmp_path / shards[0]).unlink()
    with pytest.raises(UserError, match=f"{index} names {shards[0]}, which is not there"):
        files.read(tmp_path)
    (tmp_path / index).unlink()
    with pytest.raises(UserError, match=f"{shards[1]} is one of 2 shards, and number 1 is not there"):
        files.read(tmp_path)


def test_which_variant_is_read(tmp_path):
    """The whole average before halves, these before the last step's weights; another by its word."""
    values = {"non_ema": 1, "q8": 2, "bf16": 3, "": 4}
    order: tuple[str, ...] = ()
    for word, value in values.items():
        store(tmp_path / f"diffusion_pytorch_model{'.' * bool(word)}{word}.safetensors", value)
        order = tuple(sorted((word, *order), key=("", "bf16", "q8", "non_ema").index))
        check(tmp_path, values[order[0]], variant=order[0], variants=order)
        for ask in order:
            check(tmp_path, values[ask or order[0]], variant=ask or order[0], variants=order, ask=ask)
    with pytest.raises(UserError, match="are those without a word, bf16, q8, non_ema, and ema is none of them"):
        files.read(tmp_path, "ema")
    check(tmp_path, 2, variant="q8", variants=order, ask="q8")


def test_safetensors_before_bin_and_models_before_what_lies_beside(tmp_path):
    store(tmp_path / "pytorch_model.bin", 1)
    for name in ("optimizer.bin", "training_args.bin", "adapter.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
    check(tmp_path, 1)
    store(tmp_path / "model.safetensors", 2)
    check(tmp_path, 2)
    (tmp_path / "pytorch_model.fp16.bin").write_bytes(b"")
    check(tmp_path, 2, variants=("", "fp16"))
    with pytest.raises(UserError, match=r"pytorch_model\.fp16\.bin: its format is none of"):
        files.read(tmp_path, "fp16")
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"holds several models \(adapter, optimizer, training_args\): name a file"):
        files.read(tmp_path)


def test_the_config_of_the_folder_is_that_of_its_files(tmp_path):
    for folder, name in (("a", "config.json"), ("b", "open_clip_config.json")):
        store(tmp_path / folder / "model.safetensors")
        (tmp_path / folder / name).write_text('{"hidden_act": "gelu"}')
        for place in (tmp_path / folder, tmp_path / folder / "model.safetensors"):
            assert files.read(place).config == {"hidden_act": "gelu"}
    shutil.copy(tmp_path / "a" / "model.safetensors", tmp_path / "a" / "mine.safetensors")
    assert files.read(tmp_path / "a" / "mine.safetensors").config == {}
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no whole JSON file"):
        files.read(tmp_path / "a")
