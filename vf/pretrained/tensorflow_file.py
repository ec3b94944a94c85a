"""Variables of TensorFlow's checkpoints, without TensorFlow.

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
        ValueError: a damaged or unknown table, data that end too early, or a table compressed by Snappy, as old writers
            have it, where pyarrow is not installed.
        OSError: a file that is not there.
    """
    entries = dict(_table(Path(f"{prefix}.index").read_bytes()))
    try:
        header = dict(_fields(entries.pop(b"")))
        shards = int(header.get(1, 1))
        found = {}
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
            found[name.decode()] = array.reshape(shape)
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{prefix.name}.index is damaged ({error!r})") from error
    return found


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a LevelDB table."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("the .index file is no LevelDB table")
    try:
        footer = data[-48:]
        _, at = _varint(footer, 0)
        _, at = _varint(footer, at)  # the meta index, which is empty
        offset, at = _varint(footer, at)
        size, _ = _varint(footer, at)
        for _, handle in _block(data, offset, size):
            offset, at = _varint(handle, 0)
            size, _ = _varint(handle, at)
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
    end, at, key = len(block) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(message, at)
            yield number, message[at : at + length]
            at += length
        else:
            size = {1: 8, 5: 4}[wire]
            yield number, message[at : at + size]
            at += size


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("the .index file is damaged: a shape is no message")
    return value
