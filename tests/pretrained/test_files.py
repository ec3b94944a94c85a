"""Containers: each written by the library that owns it, read without it; and everything that is no file of weights."""

import os
import pickle
import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow
import pytest
from flax.core import freeze
from safetensors.numpy import save_file

from vf.pretrained import files, tensorflow_file, torch_file
from vf.types import UserError

torch = pytest.importorskip("torch")
CHECKPOINT = Path(__file__).parent / "data" / "tensorflow_2.21.ckpt"  # written by TF 2.21: 40 arrays and some others


class Net(torch.nn.Module):
    """Parameters, views, buffers and kinds of number as real files have them."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 4)
        self.b = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        self.w = torch.nn.Parameter(torch.randn(4, 2).t())  # a view: strides are not those of a fresh array
        self.register_buffer("short", torch.randn(3).half())
        self.register_buffer("shorter", torch.randn(3).bfloat16())
        self.register_buffer("tail", torch.arange(10)[4:])

    def forward(self, x):
        return self.b(self.a(x))


def same(found, net, prefix=""):
    state = net.state_dict()
    assert set(found) == {prefix + name for name in state}
    for name, tensor in state.items():
        array = found[prefix + name]
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())


def test_torch_zip_and_legacy(tmp_path):
    net = Net()
    torch.save(net.state_dict(), tmp_path / "new.pt")
    same(torch_file.read(tmp_path / "new.pt"), net)
    about = {"model": net.state_dict(), "epoch": 3, "flags": [1, "two", None], "best": {"loss": 0.5}}
    torch.save(about, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same(torch_file.read(tmp_path / "old.pt"), net, "model.")
    assert torch_file.is_legacy(tmp_path / "old.pt")
    assert not torch_file.is_legacy(tmp_path / "new.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    net = Net().eval()
    torch.jit.script(net).save(tmp_path / "scripted.pt")
    torch.jit.trace(net, torch.zeros(2, 3)).save(tmp_path / "traced.pt")
    for name in ("scripted", "traced"):
        found = files.read(tmp_path / f"{name}.pt")
        assert found.format == "torchscript"
        same(found.arrays, net)


def test_two_names_of_one_storage(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    for new in (True, False):
        torch.save(
            {"a": weight, "b": weight[1:], "c": weight.t()}, tmp_path / "x.pt", _use_new_zipfile_serialization=new
        )
        found = torch_file.read(tmp_path / "x.pt")
        np.testing.assert_array_equal(found["b"], weight[1:])
        np.testing.assert_array_equal(found["c"], weight.t())


def test_a_pickle_calls_nothing(tmp_path):
    """Neither as torch's file nor as a plain one; what it asks for is named, and not done."""

    class Foreign:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'done'}",)

    torch.save({"w": torch.zeros(2), "x": Foreign()}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(2), "x": Foreign()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"w": np.zeros(2), "x": Foreign()}))
    for name in ("a.pt", "b.pt", "c.pkl"):
        with pytest.raises(UserError, match=r"its pickle asks for (posix|nt)\.system"):
            files.read(tmp_path / name)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("new", [True, False])
def test_cut_off_files(tmp_path, new):
    torch.save({"w": torch.randn(100, 100)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    whole = (tmp_path / "x.pt").read_bytes()
    for size in (5, 200, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match="cannot be read as weights"):
            files.read(tmp_path / "cut.pt")


def test_tensorflow():
    """By prefix, by either file."""
    for path in (CHECKPOINT, Path(f"{CHECKPOINT}.index"), Path(f"{CHECKPOINT}.data-00000-of-00001")):
        found = files.read(path)
        assert found.format == "TensorFlow checkpoint"
        assert len(found.arrays) == 42  # strings are left out
        for i in range(40):
            true = np.arange(6, dtype=np.float32).reshape(1, 2, 3) + i
            np.testing.assert_array_equal(found.arrays[f"scope_{i // 10}/unit_{i}/w"], true)
        np.testing.assert_array_equal(found.arrays["half"], np.array([1.5, -2], np.float16))
        assert found.arrays["global_step"] == 7


def test_a_compressed_table(monkeypatch):
    """Older writers compress blocks with Snappy: the same table with its one data block compressed."""
    data = Path(f"{CHECKPOINT}.index").read_bytes()
    entries = dict(tensorflow_file._table(data))
    _, at = tensorflow_file._varint(data[-48:], 0)
    _, at = tensorflow_file._varint(data[-48:], at)
    offset, at = tensorflow_file._varint(data[-48:], at)
    size, _ = tensorflow_file._varint(data[-48:], at)
    ((key, handle),) = tensorflow_file._block(data, offset, size)
    start, at = tensorflow_file._varint(handle, 0)
    length, _ = tensorflow_file._varint(handle, at)

    def varint(n):
        return (bytes([n & 127 | 128]) + varint(n >> 7)) if n > 127 else bytes([n])

    block = pyarrow.Codec("snappy").compress(data[start : start + length]).to_pybytes()
    handle = varint(0) + varint(len(block))
    index = varint(0) + varint(len(key)) + varint(len(handle)) + key + handle + struct.pack("<II", 0, 1)
    table = block + b"\1" + bytes(4) + index + b"\0" + bytes(4)
    footer = (varint(0) * 2 + varint(len(block) + 5) + varint(len(index))).ljust(40, b"\0")
    whole = table + footer + data[-8:]
    assert dict(tensorflow_file._table(whole)) == entries
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="compressed by Snappy: pip install pyarrow"):
        dict(tensorflow_file._table(whole))


def test_damaged_checkpoints(tmp_path):
    index, data = (Path(f"{CHECKPOINT}.{end}").read_bytes() for end in ("index", "data-00000-of-00001"))
    (tmp_path / "m.index").write_bytes(index)
    with pytest.raises(UserError, match="no weights at"):
        files.read(tmp_path / "m")
    (tmp_path / "m.data-00000-of-00001").write_bytes(data[:-100])
    with pytest.raises(UserError, match="ends before"):
        files.read(tmp_path / "m")
    (tmp_path / "m.index").write_bytes(index[:-20])
    with pytest.raises(UserError, match="no LevelDB table"):
        files.read(tmp_path / "m")
    (tmp_path / "m.index").write_bytes(b"\xff" * 40 + index[40:])
    with pytest.raises(UserError, match="cannot be read as weights"):
        files.read(tmp_path / "m")


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
def test_what_is_no_file_of_weights(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as weights"):
        files.read(tmp_path / "x")
    with pytest.raises(UserError, match="no weights at"):
        files.read(tmp_path / "nothing")
