"""How parameters begin: what a layer declares, and the draw of the values on the host.

`net.init` of Flax would do, but as a program it is as long as the network, and a compiler needs longer for it than
anybody wants to wait. Here each parameter is drawn by NumPy, from the seed and its own name: the same values on any
number of devices and hosts, in whichever order they are asked for, and nothing to compile.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Key

WIDEST = 2.0  # in standard deviations of the normal numbers before they are cut
CUT = 0.87962566103423978  # standard deviation of normal numbers that are cut there


@dataclasses.dataclass(frozen=True)
class Initializer:
    """`mean` + `scale` times standard normal numbers: an initializer of Flax, and of `draw`.

    Attributes:
        by_inputs: LeCun's: the variance is scale^2 over the number of inputs that an output sums, all axes but the
            last; and normal numbers beyond two standard deviations are drawn again.
        stacked: whether `draw` gets the shape of an array that stacks the parameters of equal layers on its first axis,
            as `nn.scan` makes it, which is no axis of inputs. Flax asks for the parameters of one layer.
    """

    mean: float = 0.0
    scale: float = 0.0
    by_inputs: bool = False
    stacked: bool = False

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """As Flax asks: for networks by themselves, and for shapes. The values are not those of `draw`."""
        if not self.scale:
            return jnp.full(shape, self.mean, dtype)
        if self.by_inputs:
            return self.mean + self._scale(shape) * jax.random.truncated_normal(key, -WIDEST, WIDEST, shape, dtype)
        return self.mean + self._scale(shape) * jax.random.normal(key, shape, dtype)

    def draw(self, seed: int, name: str, shape: Sequence[int]) -> Float[np.ndarray, "*shape"]:
        """The first values of the parameter `name` of a run, float32; constants take no memory."""
        if not self.scale:
            return np.broadcast_to(np.float32(self.mean), shape)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        x = rng.standard_normal(tuple(shape), np.float32)
        if self.by_inputs:
            flat = x.reshape(-1)
            beyond = np.flatnonzero(np.abs(flat) > WIDEST)
            while beyond.size:
                flat[beyond] = rng.standard_normal(beyond.size, np.float32)
                beyond = beyond[np.abs(flat[beyond]) > WIDEST]
        x *= np.float32(self._scale(shape[self.stacked :]))
        x += np.float32(self.mean)
        return x

    def _scale(self, shape: Sequence[int]) -> float:
        return self.scale / math.sqrt(math.prod(shape[:-1])) / CUT if self.by_inputs else self.scale


@dataclasses.dataclass(frozen=True)
class Values(Initializer):
    """These values, in the order of the parameter's elements."""

    values: tuple[float, ...] = ()

    def __call__(self, key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """As `Initializer`."""
        return jnp.asarray(self.values, dtype).reshape(shape)

    def draw(self, seed: int, name: str, shape: Sequence[int]) -> Float[np.ndarray, "*shape"]:
        """As `Initializer`."""
        return np.asarray(self.values, np.float32).reshape(shape)


ZEROS, ONES = Initializer(), Initializer(mean=1.0)
NORMAL = Initializer(scale=1.0)
LECUN = Initializer(scale=1.0, by_inputs=True)
STACKED_LECUN = Initializer(scale=1.0, by_inputs=True, stacked=True)

# Flax's layers with initializers that `of` can find.
Dense = functools.partial(nn.Dense, kernel_init=LECUN, bias_init=ZEROS)
Conv = functools.partial(nn.Conv, kernel_init=LECUN, bias_init=ZEROS)
Embed = functools.partial(nn.Embed, embedding_init=NORMAL)
LayerNorm = functools.partial(nn.LayerNorm, scale_init=ONES, bias_init=ZEROS)


def of(init: Callable[..., Any]) -> tuple[Any, Mapping[str, Initializer]]:
    """Shapes of what `init`, a function of nothing, makes of Flax modules; and {'/'-joined path: its initializer}.

    A module says what its parameter `p` begins as in an attribute `p_init`, as Flax's own layers do.
    """
    found: dict[str, Initializer] = {}

    def note(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        for field in dataclasses.fields(module):
            value = getattr(module, field.name, None)
            if isinstance(value, Initializer):
                found["/".join((*module.path, field.name.removesuffix("_init")))] = value
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(init)
    made = flatten_dict(shapes, sep="/")  # a module may do without one of its parameters
    return shapes, {path: begins for path, begins in found.items() if path in made}
