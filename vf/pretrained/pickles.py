"""Reads pickles without running what they name.

A pickle is a program that names functions and classes, and training code puts anything beside its weights: paths,
settings, scalars, whole objects of its own classes. Here a name stands for an `Inert` class, which keeps what is put
into it and does nothing, unless it is one of the few that make dicts and arrays. So no code of the file's choice is
imported or called. A pickle that names what only attacks have a use for (`os.system`, `eval`) is refused all the same.
"""

import collections
import pickle
from collections.abc import Iterable, Iterator
from typing import Any, Self

import ml_dtypes
import numpy as np

_RUNS = {"asyncio", "code", "commands", "ctypes", "importlib", "multiprocessing", "nt", "os", "posix", "pty", "runpy",
         "shutil", "socket", "subprocess", "sys", "webbrowser"}  # fmt: skip
_BUILTINS = ("builtins", "__builtin__")
_RUN = {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"}


class Inert(dict):
    """An instance of a class, or the result of a function, that is not loaded: it has its content alone.

    Attributes:
        state: what the pickle says of its attributes, mostly a dict.
        elements: those of a list or a set.
    """

    def __init__(self, *args: Any, **_: Any) -> None:
        super().__init__()
        self.state: Any = None
        self.elements: list[Any] = []
        for content in args:
            if isinstance(content, dict):
                self.update(content)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """An instance, which `__init__` may never be called on."""
        made = super().__new__(cls)
        Inert.__init__(made)
        return made

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key

    def __eq__(self, other: object) -> bool:
        return self is other

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, element: Any) -> None:
        """Adds an element, as to a list."""
        self.elements.append(element)

    add = append

    def extend(self, elements: Iterable[Any]) -> None:
        """Adds elements, as to a list."""
        self.elements.extend(elements)

    def __call__(self, *args: Any, **_: Any) -> "Inert":
        """What a function that another one returned would give."""
        return Inert(*args)

    def content(self) -> Iterator[tuple[Any, Any]]:
        """Yields (name, value) of all that it holds: items, elements and attributes."""
        yield from self.items()
        yield from enumerate(self.elements)
        for state in self.state if isinstance(self.state, tuple) else (self.state,):
            if isinstance(state, dict):
                yield from state.items()


class Unpickler(pickle.Unpickler):
    """Gives dicts, lists and NumPy arrays, and `Inert` objects for all else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises UnpicklingError for one that is there to run something."""
        if module.split(".")[0] in _RUNS or (module in _BUILTINS and name in _RUN):
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which weights have no need of")
        if module == "ml_dtypes" and isinstance(getattr(ml_dtypes, name, None), type):
            return getattr(ml_dtypes, name)
        module = module.replace("numpy._core", "numpy.core")  # NumPy 2's name
        return _KNOWN.get((module, name)) or type(name.rpartition(".")[2], (Inert,), {})


def _empty(kind: Any, shape: Any, dtype: Any) -> Any:
    """The array that the pickle fills; an array of another class is inert."""
    return np.ndarray(shape, dtype) if kind is np.ndarray else Inert()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return np.frombuffer(content, dtype)[0] if isinstance(content, bytes) and content else Inert()


def _from_bytes(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of an array as old pickles write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"its pickle has bytes as text in {encoding}, where latin1 is in use")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_bytes,
    ("_codecs", "encode"): _encode,
}
