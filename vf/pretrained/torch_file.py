"""Reads the tensors of PyTorch's files without PyTorch, and without running what a pickle names.

There are three containers, each with a pickle and raw storages:

    zip            torch.save since 1.6: NAME/data.pkl, NAME/data/<key>
    TorchScript    the same, with objects of scripted classes: their attributes become dotted names
    legacy         torch.save before 1.6: five pickles, then each storage as its length (i64) and its bytes

A pickle is a program. This reader runs it with no functions to call but those that rebuild tensors; any other name is
refused. Arrays are views on the file where its layout allows, so that reading takes no memory.
"""

import collections
import dataclasses
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES: dict[str, Any] = {
    "Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16, "Long": np.int64,
    "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
}  # fmt: skip
_MAGIC = 0x1950A86A20F9469CFC6C  # at the beginning of the legacy container


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: Any


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor whose storage is not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Object:
    """An instance of a class that is not loaded; it has the attributes alone."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("a scripted class is not callable here")


def _rebuild(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _ignored(*_: Any, **__: Any) -> None:
    return None


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): tuple,
    ("torch", "device"): _ignored,
    ("argparse", "Namespace"): type("Namespace", (_Object,), {}),  # training flags, which are not read
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch" and name.removesuffix("Storage") in _DTYPES:
            return _DTYPES[name.removesuffix("Storage")]
        if module.startswith("__torch__"):
            return type(name, (_Object,), {})
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which weights have no need of")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"its pickle refers to a {kind}, where only storages may be")
        return _Storage(str(key), np.dtype(dtype))


def read(path: Path) -> dict[str, np.ndarray]:
    """{dotted name: array} of every tensor in the file, in the file's dtypes and order.

    Raises:
        ValueError: the format is another one, the pickle names more than tensors, or the file is damaged.
    """
    try:
        content, storage = _zip(path) if zipfile.is_zipfile(path) else _legacy(path)
        return {name: _array(tensor, storage(tensor.storage)) for name, tensor in _flat(content)}
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error, IndexError, AttributeError, KeyError,
            TypeError, MemoryError, UnicodeDecodeError) as error:  # fmt: skip
        raise ValueError(f"no whole PyTorch file: {error}") from error


def is_legacy(path: Path) -> bool:
    """Whether the file begins with the pickled magic number of torch.save before 1.6."""
    with path.open("rb") as file:
        return struct.pack("<QH", _MAGIC & (2**64 - 1), _MAGIC >> 64) in file.read(32)


def _zip(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise ValueError("no PyTorch file: the archive holds no data.pkl")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("tensors are in big-endian order, which is not read here")
        with archive.open(entries["data.pkl"]) as file:
            content = _Unpickler(file).load()
    data = np.memmap(path, np.uint8, "r")

    def storage(storage_ref: _Storage) -> np.ndarray:
        info = entries[f"data/{storage_ref.key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("tensors are compressed, as PyTorch never writes them")
        # A local header has 30 bytes, with the lengths of the name and the extra fields after it at 26 and 28.
        name, extra = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30].tobytes())
        first = info.header_offset + 30 + name + extra
        return data[first : first + info.file_size].view(storage_ref.dtype)

    return content, storage


def _legacy(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    with path.open("rb") as file:
        if _Unpickler(file).load() != _MAGIC:
            raise ValueError("no PyTorch file: the magic number is missing")
        for _ in range(2):  # version of the container; sizes of C's integers
            _Unpickler(file).load()
        content = _Unpickler(file).load()
        keys = [str(key) for key in _Unpickler(file).load()]
        first = file.tell()
    dtypes = {tensor.storage.key: tensor.storage.dtype for _, tensor in _flat(content)}
    data = np.memmap(path, np.uint8, "r")
    storages = {}
    for key in keys:
        if key not in dtypes:
            raise ValueError("a storage belongs to no tensor, so that its size is not known")
        (count,) = struct.unpack("<q", data[first : first + 8].tobytes())
        size = count * dtypes[key].itemsize
        storages[key] = data[first + 8 : first + 8 + size]
        first += 8 + size
    if first > len(data):
        raise ValueError(f"the file ends {first - len(data)} bytes too early")
    return content, lambda storage_ref: storages[storage_ref.key].view(
        storage_ref.dtype
    )  # may be unaligned, which NumPy can read


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """A tensor as a view of its storage. Raises ValueError where it would exceed the storage."""
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if 0 in tensor.size:
        return np.zeros(tensor.size, storage.dtype)
    if min(tensor.stride, default=0) < 0 or tensor.offset < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its storage, so the file is damaged")
    strides = [step * storage.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.size, strides, writeable=False)


def _flat(value: Any, name: str = "") -> list[tuple[str, _Tensor]]:
    """[(dotted name, tensor)] of all tensors within `value`; numbers, texts and the like are left out."""
    if isinstance(value, _Tensor):
        return [(name, value)]
    if isinstance(value, _Object):
        value = getattr(value, "state", None)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return []
    return [entry for key, item in value.items() for entry in _flat(item, f"{name}.{key}" if name else str(key))]
