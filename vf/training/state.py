"""What a run carries from step to step.

Randomness is not in it: every draw is a function of seed, step and example.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from vf.training.optim import Optimizer
from vf.types import Params

Decay = float | Callable[[jax.Array], jax.Array]
Transformation: TypeAlias = optax.GradientTransformation | Optimizer


@struct.dataclass
class TrainState:
    """The state of a run.

    step: i32 [], the number of finished optimizer updates.
    params: {'base': ..., 'residual': ...}, or {'base': ...} for a baseline of one network; float32, or bfloat16.
    ema: the tree of `params` in float32, averaged over updates.
    opt_state: what `vf.training.optim.make` keeps.
    """

    step: Any  # as a pytree it also holds shapes or shardings
    params: Params
    ema: Params
    opt_state: Any


def create(params: Params, tx: Transformation, dtype: Any = None) -> TrainState:
    """The state before the first update: `params` kept in `dtype` (None: as they are), `ema` a copy of them."""
    # A true copy: an average that shared its buffers with the parameters could not be donated beside them.
    ema = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    kept = params if dtype is None else jax.tree.map(lambda p: p.astype(dtype), params)
    masters = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # the optimizer computes in float32
    return TrainState(step=jnp.zeros((), jnp.int32), params=kept, ema=ema, opt_state=tx.init(masters))


def shapes(params: Params, tx: Transformation, dtype: Any = None) -> Any:
    """Shapes of what `create` makes of parameters of these shapes."""
    return jax.eval_shape(functools.partial(create, tx=tx, dtype=dtype), params)


def ema_decay(step: jax.Array | int, decay: Any) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)) for `step` finished updates: a young average forgets its random
    start.

    decay: in [0, 1]. Returns f32 []. Hand it to `update` as `functools.partial(ema_decay, decay=0.9999)`.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update(
    state: TrainState,
    grads: Params,
    tx: Transformation,
    ema_decay: Decay,
    key: Key[Array, ""] | None = None,
) -> TrainState:
    """One optimizer update, in float32; pure.

    grads: the tree of `params`, gradients of a mean loss.
    ema_decay: a number in [0, 1], or a function of the number of finished updates.
    key: rounds parameters that are kept in bfloat16 at random; None: to the nearest.
    """
    params, grads = (jax.tree.map(lambda p: p.astype(jnp.float32), tree) for tree in (state.params, grads))
    changes, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, changes)
    rate = 1 - (ema_decay(state.step) if callable(ema_decay) else ema_decay)
    # Written as a correction, not as a mixture, so that an average that has arrived stays put to the last bit.
    ema = jax.tree.map(lambda e, p: e + rate * (p - e), state.ema, params)
    numbers = iter(range(2**31))

    def kept(p: Array, old: Array) -> Array:
        if key is None or old.dtype != jnp.bfloat16:
            return p.astype(old.dtype)
        return round_at_random(p, jax.random.fold_in(key, next(numbers)))

    params = jax.tree.map(kept, params, state.params)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)  # type: ignore[attr-defined]


def round_at_random(x: Float[Array, "*n"], key: Key[Array, ""]) -> Array:
    """float32 -> bfloat16, up or down with the probabilities that make the mean exact.

    To the nearest, an update of less than 1/512 of a parameter would always be lost: bfloat16 has 8 bits.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, (x.size,), jnp.uint16).reshape(x.shape)
    upper = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), upper, x).astype(jnp.bfloat16)
