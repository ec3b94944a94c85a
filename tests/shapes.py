"""A type checker for annotations that name shapes. The others are mypy's, and tests hand in stand-ins for them."""

import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import beartype
import numpy as np
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """For `jaxtyping.install_import_hook`: beartype, which sees hints of shapes alone."""
    function.__annotations__ = {
        name: with_numpy(hint) for name, hint in function.__annotations__.items() if names_a_shape(hint)
    }
    return beartype.beartype(function)


def is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def names_a_shape(hint: Any) -> bool:
    return is_array(hint) or any(map(names_a_shape, get_args(hint)))


def with_numpy(hint: Any) -> Any:
    """The hint with NumPy's arrays wherever arrays are asked for: jax takes them."""
    if is_array(hint):
        return hint.dtype[hint.array_type | np.ndarray, hint.dim_str]
    parts = tuple(map(with_numpy, get_args(hint)))
    if not parts:
        return hint
    origin = get_origin(hint)
    return Union[parts] if origin in (Union, types.UnionType) else origin[parts]  # noqa: UP007
