"""Reads and writes safetensors in little memory: arrays read are views on the file, arrays written are made in turn.

The library checks the header of a file. Its reader and writer are not used, since they copy: a conversion would need
several times the memory of its file. The format is the length of the header (u64), a header in JSON, and the bytes of
the arrays without gaps.
"""

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


class Lazy(NamedTuple):
    """An array that is made when it is written, and freed afterwards."""

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """{name: view on the file} in the file's order, and the metadata.

    Raises:
        ValueError: it is no safetensors file, a damaged one, or has a dtype that NumPy has not.
    """
    header, first = _header(path)
    about = header.pop("__metadata__", {})
    data = np.memmap(path, np.uint8, "r", offset=first) if header else np.zeros(0, np.uint8)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = data[begin:end].view(_dtype(path, name, entry)).reshape(entry["shape"])
    return arrays, about


def release(array: Any) -> None:
    """Frees the memory of a view on a file; pages that are needed again are read again."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a file. Raises ValueError as `read`."""
    return _header(path)[0].get("__metadata__", {})


def write(path: Path, arrays: Iterable[tuple[str, np.ndarray | Lazy]], about: Mapping[str, str]) -> None:
    """Writes the arrays in order, making lazy ones in turn; `about` is the metadata.

    Raises ValueError where a lazy array has another shape or dtype than announced.
    """
    entries = dict(arrays)
    header, first = _encode_header(entries, about)
    with path.open("wb") as file:
        file.write(header)
        for name, entry in entries.items():
            array = entry.make() if isinstance(entry, Lazy) else entry
            if array.shape != tuple(entry.shape) or array.dtype != entry.dtype:
                raise ValueError(f"{name} was made {array.dtype} {list(array.shape)}, not as announced")
            np.ascontiguousarray(array).tofile(file)
        assert file.tell() == first


def rewrite_metadata(path: Path, about: Mapping[str, str]) -> None:
    """Replaces the metadata of a file by others of the same length. Raises ValueError for another length."""
    header, first = _header(path)
    text = _encode({"__metadata__": dict(about), **{k: v for k, v in header.items() if k != "__metadata__"}})
    if len(text) != first:
        raise ValueError("the new metadata have another length")
    with path.open("rb+") as file:
        file.write(text)


def _encode_header(entries: Mapping[str, np.ndarray | Lazy], about: Mapping[str, str]) -> tuple[bytes, int]:
    """(the encoded header, the size that the file will have)."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + int(np.prod(entry.shape, dtype=np.int64)) * np.dtype(entry.dtype).itemsize
        code = _CODES[np.dtype(entry.dtype)]
        header[name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = _encode(header)
    return text, len(text) + end


def _encode(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at multiples of 8
    return struct.pack("<Q", len(text)) + text


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """(header, offset at which arrays begin), checked by the library. Raises ValueError where they are damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(str(error)) from error
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size)), 8 + size


def _dtype(path: Path, name: str, entry: Mapping[str, Any]) -> Any:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of dtype {entry['dtype']}, which is not read here")
    return DTYPES[entry["dtype"]]
