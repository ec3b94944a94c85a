"""Names shared by every room: the shapes of a batch, the error that users see, and its words for numbers and slips."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array: TypeAlias = jax.Array | np.ndarray
Params = Mapping[str, Any]
Batch = Mapping[str, Any]
"""One batch: `video` u8 [b f h w 3], `label` i32 [b], `index` u32 [b]; `embedding` f32 [b d] where the data has one.

`index` is the example's number in the whole run (step * batch_size + row): every random draw that concerns
the example is keyed by it, so that no draw depends on the number of devices or hosts."""


class UserError(Exception):
    """Bad input, in one sentence: what was expected, what was found, what to do. `vf.main` prints it and exits with 2.

    Args:
        message: the sentence. It uses the names of parameters, since code that commands share knows no flags.
        parameter: the parameter to be changed, for `naming_flags`; "" where there is no single one.
    """

    def __init__(self, message: str, parameter: str = "") -> None:
        super().__init__(message)
        self.parameter = parameter


@contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Ends a UserError from within with the flag by which a command sets the parameter to be changed.

    flags: {parameter: flag}, such as {"split": "--config.data.split"}; an error about any other parameter passes.
    """
    try:
        yield
    except UserError as error:
        if error.parameter not in flags:
            raise
        raise UserError(f"{error} ({flags[error.parameter]})") from error


def counted(number: int, noun: str) -> str:
    """Number and noun as `1 clip`, `2,000 clips` or `3 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean ...?" with the known word nearest to `word`, or the list of all known words where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def __getattr__(name: str) -> Any:
    """Imports jax for `Array` only on demand: processes that prepare or read data do not need it (most of a second)."""
    if name == "Array":
        import jax
        import numpy as np

        return jax.Array | np.ndarray
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
