"""AdamW for two networks at once, each with its own learning rate and its own clipping, or frozen.

For network n with gradient g (the mean over a batch), update k = 0, 1, ...:

    (1)  g <- g min(1, clip_norm / |g|_2)
    (2)  m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    (3)  p <- p - lr_n(k) (m / (1 - b1^(k+1)) / (sqrt(v / (1 - b2^(k+1))) + eps) + weight_decay p)
    (4)  lr_n(k) = lr_n min(1, (k + 1) / warmup_steps) s(k)
    (5)  s(k) = 1, or (1 + cos(pi (k - warmup_steps) / (total_steps - warmup_steps))) / 2 after the warm-up

The norm in (1) is that of network n alone. The decay in (3) is for kernels and tables, not for biases and scales, nor
the texts that a network carries and no gradient reaches (`vf/nets/unclip.py`). Gradient accumulation lies before all
this, inside one step (`vf/training/step.py`), so that k counts updates whatever the micro-batches.

(4) and (5) are written out below. optax's schedules joined to the same law agree to float32 rounding of the peak, 1e-7,
but interpolate the warm-up down from there: its first rate is off by 8e-6 of itself at 100 steps, by 2e-4 at 10,000.

An optimizer is a pytree. Its numbers that users change between runs are leaves, so that a compiled step takes them as
arguments, and a run with another learning rate, warm-up, length, decay or bound compiles nothing. (optax's own
`inject_hyperparams` would keep them in the state, and so in every checkpoint.)
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vf.training import stacks
from vf.types import Params, UserError

SCHEDULES = ("constant", "cosine")
_FROZEN = "_frozen"


@struct.dataclass
class Optimizer:
    """The optimizer of a params tree whose top-level keys are networks, made by `make`; used as one of optax's.

    Attributes:
        lr: peak learning rate of each network; names that the model has not are ignored.
        warmup_steps, total_steps: in updates.
        weight_decay: decoupled; on arrays of two or more axes (kernels, embedding tables), not on biases and
            scales.
        clip_norm: largest gradient norm, for each network by itself, so that a noisy residual network does not
            throttle the base; None for no clipping.
        schedule: 'constant' or 'cosine' (to 0 at `total_steps`), both after a linear warm-up.
        b1, b2, eps: of (2) and (3).
        frozen: networks that get no update, and for which no moments are held.
    """

    lr: Mapping[str, Any]
    warmup_steps: Any
    total_steps: Any
    weight_decay: Any
    clip_norm: Any
    schedule: str = struct.field(pytree_node=False)
    b1: float = struct.field(pytree_node=False)
    b2: float = struct.field(pytree_node=False)
    eps: float = struct.field(pytree_node=False)
    frozen: tuple[str, ...] = struct.field(pytree_node=False)

    def init(self, params: Params) -> optax.OptState:
        """The state before the first update.

        Raises UserError for a network with neither a learning rate nor a place in `frozen`, or a frozen name that is no
        network.
        """
        return self._networks().init(params)

    def update(
        self, updates: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        """Gradients `updates` -> (what is added to the parameters, the next state)."""
        return self._networks().update(updates, state, params)

    def learning_rates(self, step: Any) -> dict[str, jax.Array]:
        """{network: learning rate, f32 []} of the update that follows `step` finished ones; no frozen network."""
        return {name: peak * self._shape(step) for name, peak in self.lr.items() if name not in self.frozen}

    def _shape(self, step: Any) -> jax.Array:
        """Equations (4) and (5) without the peak."""
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup_steps, 1))
        if self.schedule == "constant":
            return rise
        progress = jnp.clip((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 0, 1)
        return rise * (1 + jnp.cos(jnp.pi * progress)) / 2

    def _networks(self) -> optax.GradientTransformation:
        def network(name: str) -> optax.GradientTransformation:
            return optax.chain(
                optax.clip_by_global_norm(self.clip_norm) if self.clip_norm is not None else optax.identity(),
                optax.adamw(
                    lambda step: self.learning_rates(step)[name],
                    b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=_decayed,
                ),
            )  # fmt: skip

        def labels(params: Params) -> dict[str, str]:
            unknown = sorted(set(self.frozen) - set(params))
            if unknown:
                raise UserError(f"cannot freeze {unknown}: the networks of this model are {sorted(params)}")
            homeless = sorted(set(params) - set(self.lr) - set(self.frozen))
            if homeless:
                raise UserError(f"no learning rate for {homeless}: give lr.{homeless[0]}, or name it in frozen")
            return {name: _FROZEN if name in self.frozen else name for name in params}

        networks = {name: network(name) for name in self.lr if name not in self.frozen}
        return optax.multi_transform({**networks, _FROZEN: optax.set_to_zero()}, labels)


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
) -> Optimizer:
    """The optimizer with these attributes. Raises UserError for values out of range."""
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"clip_norm must be positive, but is {clip_norm}; use None for no clipping")
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be {' or '.join(map(repr, SCHEDULES))}, but is {schedule!r}")
    if warmup_steps < 0:
        raise UserError(f"warmup_steps must be 0 or more, but is {warmup_steps}")
    if schedule == "cosine" and warmup_steps >= total_steps:
        raise UserError(
            f"a cosine schedule needs warmup_steps < total_steps, but these are {warmup_steps}, {total_steps}",
            "warmup_steps",
        )
    for name, peak in lr.items():
        if peak < 0:
            raise UserError(f"lr.{name} must be 0 or more, but is {peak}")
    return Optimizer(
        lr=dict(lr), warmup_steps=warmup_steps, total_steps=total_steps, weight_decay=weight_decay,
        clip_norm=clip_norm, schedule=schedule, b1=b1, b2=b2, eps=eps, frozen=tuple(frozen),
    )  # fmt: skip


def _decayed(params: Params) -> Params:
    """Where weight decay holds, for each array."""

    def decayed(name: str) -> bool:
        parts = name.split("/")  # biases and scales of scanned layers have two axes
        return "texts" not in parts and parts[-1] not in ("bias", "scale")

    return stacks.map_parameters(lambda one: len(one.shape) > 1 and all(map(decayed, one.names)), params)
