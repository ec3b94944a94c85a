"""Names shared by every layer: the shapes of a batch and the error that users see."""

from collections.abc import Mapping
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
    """Bad input, in one sentence: what was expected, what came, what to do. `vf.main` prints it and exits with 2."""


def __getattr__(name: str) -> Any:
    """`Array` when it is asked for: processes that prepare or read data need no jax, which takes most of a second."""
    if name == "Array":
        import jax
        import numpy as np

        return jax.Array | np.ndarray
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
