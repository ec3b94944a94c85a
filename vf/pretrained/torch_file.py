"""Reads the tensors of PyTorch's files without PyTorch, and without running what a pickle names.

There are three containers, each with a pickle and raw storages:

    zip            torch.save since 1.6: NAME/data.pkl, NAME/data/<key>
    TorchScript    the same, with objects of scripted classes: their attributes become dotted names
    legacy         torch.save before 1.6: five pickles, then each storage as its length (i64) and its bytes

`pickles` reads the pickles, so that nothing that they name is run; what lies beside the tensors is left out. Arrays are
views on the file where its layout allows, so that reading takes no memory.
"""

import dataclasses
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vf.pretrained import pickles
from vf.pretrained.pickles import Inert

_DTYPES: dict[str, Any] = {  # by the names of storages
    "Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16, "Long": np.int64,
    "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
}  # fmt: skip
_BYTES = {("torch.storage", "UntypedStorage"), ("torch", "UntypedStorage")}  # whose tensors name their dtype
_BY_NAME: dict[str, Any] = {  # dtypes by the names of tensors
    **{np.dtype(dtype).name: dtype for dtype in _DTYPES.values()}, "half": np.float16, "float": np.float32,
    **{name: getattr(np, name) for name in ("uint16", "uint32", "uint64")},
    **{name: getattr(ml_dtypes, name) for name in ("float8_e4m3fn", "float8_e5m2")},
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


def _rebuild(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_v3(
    storage: _Storage, offset: int, size: tuple, stride: tuple, _: Any, __: Any, dtype: Any, *___: Any
) -> Any:
    if not isinstance(dtype, np.dtype):
        return Inert()  # of a dtype that NumPy has not
    return _rebuild(dataclasses.replace(storage, dtype=dtype), offset, size, stride)


def _rebuild_subclass(function: Any, kind: Any, args: tuple, *_: Any) -> Any:
    return function(*args)  # which is one of the functions here, or inert


def _first(value: Any, *_: Any) -> Any:
    return value


_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
    ("torch._tensor", "_rebuild_from_type"): _rebuild_subclass,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
    ("torch", "Size"): tuple,
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
}


class _Unpickler(pickles.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.dtypes: dict[str, Any] = {}  # of every storage, by its key

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if (module, name) in _BYTES:
            return np.uint8
        if module == "torch" and name.removesuffix("Storage") in _DTYPES:
            return _DTYPES[name.removesuffix("Storage")]
        if module == "torch" and name in _BY_NAME:
            return np.dtype(_BY_NAME[name])
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind == "module":
            return dtype  # a class, of whose source there is a copy behind it
        if kind != "storage":
            raise pickle.UnpicklingError(f"its pickle refers to a {kind}, where only storages may be")
        self.dtypes[str(key)] = None if isinstance(dtype, type) and issubclass(dtype, Inert) else np.dtype(dtype)
        return _Storage(str(key), self.dtypes[str(key)])


def read(path: Path) -> dict[str, np.ndarray]:
    """{dotted name: array} of every tensor in the file, in the file's dtypes and order.

    Raises:
        ValueError: the format is another one, the pickle names more than tensors, or the file is damaged.
    """
    try:
        content, storage = _zip(path) if zipfile.is_zipfile(path) else _legacy(path)
        return {
            name: tensor if isinstance(tensor, np.ndarray) else _array(tensor, storage(tensor.storage))
            for name, tensor in _flat(content)
        }
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error, IndexError, AttributeError, KeyError,
            TypeError, MemoryError, UnicodeDecodeError, RecursionError) as error:  # fmt: skip
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
        content = (unpickler := _Unpickler(file)).load()
        keys = [str(key) for key in _Unpickler(file).load()]
        first = file.tell()
    dtypes = unpickler.dtypes
    data = np.memmap(path, np.uint8, "r")
    storages = {}
    for key in keys:
        if dtypes.get(key) is None:
            raise ValueError("a storage is of a kind that is not read here, so that its size is not known")
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
    # Not as_strided, which knows NumPy's own dtypes alone.
    buffer, offset = storage.view(np.uint8), tensor.offset * storage.itemsize
    return np.ndarray(tensor.size, storage.dtype, buffer, offset, strides)


def _flat(value: Any, name: str = "", above: tuple[Any, ...] = ()) -> list[tuple[str, _Tensor | np.ndarray]]:
    """[(dotted name, tensor)] of all tensors within `value`; numbers, texts and the like are left out.

    The layers of a module that was saved whole have the names of its `state_dict`. `above`: what holds `value`, since
    objects may hold each other.
    """
    if isinstance(value, _Tensor) and value.storage.dtype is not None:
        return [(name, value)]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [(name, value)]
    if any(value is one for one in above):
        return []
    if isinstance(value, Inert):
        content = dict(value.content())
        parts = [content.get(part) for part in ("_parameters", "_buffers", "_modules")]
        layers = [item for part in parts if isinstance(part, dict) for item in part.items()]
        items: Any = layers or content.items()
    elif isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, list | tuple) else ()
    return [
        entry for key, item in items for entry in _flat(item, f"{name}.{key}" if name else str(key), (*above, value))
    ]
