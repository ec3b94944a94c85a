"""TensorFlow's checkpoints, written by TensorFlow, read without it."""

import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from vf.pretrained import files, tensorflow_file
from vf.types import UserError

CHECKPOINT = Path(__file__).parent / "data" / "tensorflow_2.21.ckpt"  # written by TF 2.21: 40 arrays and some others


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
