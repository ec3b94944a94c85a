"""AdamW for two networks at once, each with its own learning rate and its own clipping, or frozen.

For network n with gradient g (the mean over a batch), update k = 0, 1, ...:

    (1)  g <- g min(1, clip_norm / |g|_2)
    (2)  m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    (3)  p <- p - lr_n(k) (m / (1 - b1^(k+1)) / (sqrt(v / (1 - b2^(k+1))) + eps) + weight_decay p)
    (4)  lr_n(k) = lr_n min(1, (k + 1) / warmup_steps) s(k)
    (5)  s(k) = 1, or (1 + cos(pi (k - warmup_steps) / (total_steps - warmup_steps))) / 2 after the warm-up

The norm in (1) is that of network n alone. The decay in (3) is for arrays of two or more axes, but not for the
texts that a network carries and no gradient reaches (`vf/nets/unclip.py`). Gradient accumulation lies before all this,
inside one step (`vf/training/step.py`), so that k counts updates whatever the micro-batches.

(4) and (5) are written out below. optax's schedules joined to the same law agree to float32 rounding of the peak, 1e-7,
but interpolate the warm-up down from there: its first rate is off by 8e-6 of itself at 100 steps, by 2e-4 at 10,000.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vf.training import stacks
from vf.types import Params, UserError

_FROZEN = "_frozen"


def make(
    *,
    lr: Mapping[str, float],
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float | None,
    frozen: Collection[str] = (),
) -> optax.GradientTransformation:
    """The optimizer of a params tree whose top-level keys are networks.

    lr: peak learning rate of each network; names that the model has not are ignored.
    schedule: 'constant' or 'cosine' (to 0 at `total_steps`), both after a linear warm-up.
    warmup_steps, total_steps: in updates.
    weight_decay: decoupled; on arrays of two or more axes (kernels, embedding tables), not on biases and
        scales.
    clip_norm: largest gradient norm, for each network by itself, so that a noisy residual network does not
        throttle the base; None for no clipping.
    frozen: networks that get no update, and for which no moments are held.

    Raises UserError for values out of range here, and in `init` for a network with neither a learning rate
    nor a place in `frozen`, or a frozen name that is no network.
    """
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"clip_norm must be positive, but is {clip_norm}; use None for no clipping")

    def network(rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
            optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed),
        )

    def labels(params: Params) -> dict[str, str]:
        unknown = sorted(set(frozen) - set(params))
        if unknown:
            raise UserError(f"cannot freeze {unknown}: the networks of this model are {sorted(params)}")
        homeless = sorted(set(params) - set(lr) - set(frozen))
        if homeless:
            raise UserError(f"no learning rate for {homeless}: give lr.{homeless[0]}, or name it in frozen")
        return {name: _FROZEN if name in frozen else name for name in params}

    rates = _schedules(lr, schedule, warmup_steps, total_steps)
    networks = {name: network(rate) for name, rate in rates.items() if name not in frozen}
    return optax.multi_transform({**networks, _FROZEN: optax.set_to_zero()}, labels)


def learning_rates(
    *,
    lr: Mapping[str, float],
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    frozen: Collection[str] = (),
) -> Callable[[jax.Array | int], dict[str, jax.Array]]:
    """For the log: number of finished updates -> {network: learning rate of the next update, f32 []}.

    The arguments are those of `make`; a frozen network is left out.
    """
    rates = _schedules(lr, schedule, warmup_steps, total_steps)
    return lambda step: {name: rate(step) for name, rate in rates.items() if name not in frozen}


def _schedules(
    lr: Mapping[str, float], schedule: str, warmup_steps: int, total_steps: int
) -> dict[str, Callable[[Any], jax.Array]]:
    """Equations (4) and (5) for each network."""
    if schedule not in ("constant", "cosine"):
        raise UserError(f"schedule must be 'constant' or 'cosine', but is {schedule!r}")
    if warmup_steps < 0:
        raise UserError(f"warmup_steps must be 0 or more, but is {warmup_steps}")
    if schedule == "cosine" and warmup_steps >= total_steps:
        raise UserError(
            f"a cosine schedule needs warmup_steps < total_steps, but these are {warmup_steps}, {total_steps}"
        )
    for name, peak in lr.items():
        if peak < 0:
            raise UserError(f"lr.{name} must be 0 or more, but is {peak}")

    def shape(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        if schedule == "constant":
            return rise
        progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
        return rise * (1 + jnp.cos(jnp.pi * progress)) / 2

    def scaled(peak: float) -> Callable[[Any], jax.Array]:
        return lambda step: peak * shape(step)

    return {name: scaled(peak) for name, peak in lr.items()}


def _decayed(params: Params) -> Params:
    """Where weight decay holds, for each array."""
    return stacks.map_parameters(
        lambda one: len(one.shape) > 1 and not any("texts" in name.split("/") for name in one.names), params
    )
