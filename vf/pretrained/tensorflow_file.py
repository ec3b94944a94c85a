"""Reads the variables of TensorFlow's checkpoints without TensorFlow.

`PREFIX.index` is a LevelDB table (blocks of prefix-compressed keys; tensorflow/core/lib/io/table_format.txt) from names
to BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto), and `PREFIX.data-00000-of-0000N` are raw bytes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

_MAGIC = 0xDB4775248B80FB57
_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 14: ml_dtypes.bfloat16, 19: np.float16}


def read(prefix: Path) -> dict[str, np.ndarray]:
    """{name: array} of every numeric variable of the checkpoint `PREFIX.index`, `PREFIX.data-*`.

    Raises:
        ValueError: the table is damaged or of an unknown kind, data end too early, or the table is compressed by
            Snappy, as by old writers, and pyarrow is not installed.
        OSError: a file is missing.
    """
    entries = dict(_table(Path(f"{prefix}.index").read_bytes()))
    try:
        header = dict(_fields(entries.pop(b"")))
        shards = int(header.get(1, 1))
        arrays = {}
        for name, value in entries.items():
            fields: dict[int, int | bytes] = dict(_fields(value))
            dtype = _DTYPES.get(int(fields.get(1, 0)))
            if dtype is None:
                continue  # strings: the object graph of newer checkpoints
            dims = [_bytes(dim) for key, dim in _fields(_bytes(fields.get(2, b""))) if key == 2]
            shape = [int(dict(_fields(dim)).get(1, 0)) for dim in dims]
            shard, offset = int(fields.get(3, 0)), int(fields.get(4, 0))
            file = Path(f"{prefix}.data-{shard:05}-of-{shards:05}")
            count = int(np.prod(shape, dtype=np.int64))
            if offset + count * np.dtype(dtype).itemsize > file.stat().st_size:
                raise ValueError(f"{file.name} ends before {name.decode()}")
            array = np.memmap(file, dtype, "r", offset, (count,)) if count else np.zeros(0, dtype)
            arrays[name.decode()] = array.reshape(shape)
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{prefix.name}.index is damaged ({error!r})") from error
    return arrays


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (key, value) of a LevelDB table."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("the .index file is no LevelDB table")
    try:
        footer = data[-48:]
        _, position = _varint(footer, 0)
        _, position = _varint(footer, position)  # the meta index, which is empty
        offset, position = _varint(footer, position)
        size, _ = _varint(footer, position)
        for _, handle in _block(data, offset, size):
            offset, position = _varint(handle, 0)
            size, _ = _varint(handle, position)
            yield from _block(data, offset, size)
    except (IndexError, struct.error) as error:
        raise ValueError(f"the .index file is damaged ({error})") from error


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, kind = data[offset : offset + size], data[offset + size]
    if kind == 1:
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError("the .index file is compressed by Snappy: pip install pyarrow") from error
        length, _ = _varint(block, 0)
        block = pyarrow.Codec("snappy").decompress(block, length).to_pybytes()
    elif kind != 0:
        raise ValueError(f"the .index file is compressed in an unknown way ({kind})")
    (restarts,) = struct.unpack("<I", block[-4:])
    end, position, key = len(block) - 4 - 4 * restarts, 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + rest]
        yield key, block[position + rest : position + rest + length]
        position += rest + length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """(a base-128 number, the position after it)."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (field number, value) of a protocol buffer."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
        elif wire == 2:
            length, position = _varint(message, position)
            yield number, message[position : position + length]
            position += length
        else:
            size = {1: 8, 5: 4}[wire]
            yield number, message[position : position + size]
            position += size


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("the .index file is damaged: a shape is no message")
    return value
