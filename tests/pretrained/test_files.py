"""Containers: each written by the library that owns it, read without it; and everything that is no file of weights."""

import pickle

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import freeze
from safetensors.numpy import save_file

from vf.pretrained import files
from vf.types import UserError


def test_pickles_of_arrays(tmp_path):
    tree = {"params": {"a": {"kernel": np.arange(6.0).reshape(2, 3)}}, "n": np.float32(2)}
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(tree))
    (tmp_path / "j.pkl").write_bytes(pickle.dumps(freeze({"params": {"a": jnp.ones((2, 3))}})))
    found = files.read(tmp_path / "n.pkl")
    assert found.format == "pickle"
    assert set(found.arrays) == {"params/a/kernel", "n"}
    np.testing.assert_array_equal(files.read(tmp_path / "j.pkl").arrays["params/a"], np.ones((2, 3)))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([np.ones(2)]))
    with pytest.raises(UserError, match="holds a list, where a dict of arrays should be"):
        files.read(tmp_path / "list.pkl")


def test_safetensors_npz_and_folders(tmp_path):
    arrays = {"a": np.arange(4.0), "b": np.ones((2, 2), ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "x.safetensors")
    assert files.read(tmp_path / "x.safetensors").format == "safetensors"
    np.savez(tmp_path / "x.npz", a=arrays["a"])
    np.testing.assert_array_equal(files.read(tmp_path / "x.npz").arrays["a"], arrays["a"])
    folder = tmp_path / "hf"
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds no \*\.index"):
        files.read(folder)
    save_file({"a": arrays["a"]}, folder / "model-1.safetensors")
    save_file({"b": arrays["b"]}, folder / "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    found = files.read(folder)
    assert set(found.arrays) == {"a", "b"}
    assert files.sha256(found) != files.sha256(files.read(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x04garbage", b"PK\3\4not a zip", b"\0" * 100])
def test_files_that_are_not_weights(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as weights"):
        files.read(tmp_path / "x")
    with pytest.raises(UserError, match="no weights at"):
        files.read(tmp_path / "nothing")
