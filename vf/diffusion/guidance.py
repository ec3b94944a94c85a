"""Classifier-free guidance (Ho & Salimans 2022): steer a prediction away from the unconditional one.

A *predictor* is a network as (z, t, *arrays, null) -> prediction, where `null` bool [b] says which rows drop their
condition. `guided` makes of it a function that gives estimates of clean clip and noise, for a denoiser.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vf.diffusion import gaussian
from vf.diffusion.gaussian import Estimate

Predictor = Callable[..., jax.Array]
Levels = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""t int [b] -> the amplitudes of clip and noise in z, broadcasting against it."""


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How far predictions are steered: without + scale (given - without).

    Attributes:
        scale: 1 is the conditional prediction, 0 the unconditional one.
        residual_scale: that of the residual generator; None for the same.
        interval: first and last time (lowest and highest t) at which predictions are steered, elsewhere they are the
            conditional ones (Kynkaanniemi et al. 2024, who give the interval in sigma); None for all.
        rescale: share in [0, 1] by which a steered prediction gets the conditional one's standard deviation back,
            clip by clip (Lin et al. 2024, eq. 15 and 16).

    Raises ValueError for values out of range.
    """

    scale: float = 1.0
    residual_scale: float | None = None
    interval: tuple[int, int] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescaling of guidance is a share in [0, 1], got {self.rescale}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"the interval of guidance must be two times, 0 <= first <= last, got {self.interval}")

    @property
    def of_residual(self) -> "Guidance":
        """The guidance of the residual generator."""
        return self if self.residual_scale is None else dataclasses.replace(self, scale=self.residual_scale)


UNGUIDED = Guidance()


def guided(
    predict: Predictor, kind: gaussian.Prediction, levels: Levels, guidance: Guidance = UNGUIDED
) -> Callable[..., Estimate]:
    """(z, t, *arrays) -> the guided estimate of `predict`, whose predictions are of `kind`.

    Both predictions are made in one pass over a doubled batch, unless the scale is 1. Every array has a leading batch
    axis; t is int [b].
    """

    def estimate(*arrays: jax.Array) -> Estimate:
        z, t, *_ = arrays
        level = levels(t)
        if guidance.scale == 1:
            return gaussian.estimate(kind, predict(*arrays, jnp.zeros(len(z), bool)), z, *level)
        rows = len(z)
        doubled = [jnp.concatenate([a, a]) for a in arrays]
        values = jnp.split(predict(*doubled, jnp.arange(2 * rows) >= rows), 2)
        given, without = (gaussian.estimate(kind, value, z, *level) for value in values)
        steered = cfg(given, without, guidance)
        if guidance.rescale:
            goal = gaussian.target(kind, *given, *level)
            value = rescaled(gaussian.target(kind, *steered, *level), goal, guidance.rescale)
            steered = gaussian.estimate(kind, value, z, *level)
        if guidance.interval is None:
            return steered
        first, last = guidance.interval
        inside = ((t >= first) & (t <= last)).reshape(-1, *[1] * (z.ndim - 1))
        return Estimate(*(jnp.where(inside, one, other) for one, other in zip(steered, given, strict=True)))

    return estimate


def cfg(given: Estimate, without: Estimate, guidance: Guidance) -> Estimate:
    """without + scale (given - without), the same for predictions of any kind."""
    return Estimate(*(u + guidance.scale * (c - u) for c, u in zip(given, without, strict=True)))


def rescaled(steered: Float[Array, "b *s"], given: Float[Array, "b *s"], share: float) -> Float[Array, "b *s"]:
    """`steered` with a share of its standard deviation, over everything but the rows, made that of `given`."""
    if not share:
        return steered
    axes = tuple(range(1, given.ndim))
    ratio = given.std(axes, keepdims=True) / jnp.maximum(steered.std(axes, keepdims=True), 1e-12)
    return steered * (share * ratio + 1 - share)
