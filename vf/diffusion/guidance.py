"""Guidance: steer a prediction away from one that knows less, as classifier-free guidance (Ho & Salimans 2022) does.

A *predictor* is a network as (z, t, *arrays, null) -> prediction, where `null` bool [b] says which rows drop their
condition. `guided` makes of it a function that gives estimates of clean clip and noise, for a denoiser. How the two
predictions are joined is a *rule*: `CFG`, `APG`, `CFGZero` or `CFGPlusPlus`. With w the scale, c the prediction given
the condition and u the one without it, in VideoFusion for each network by itself:

    CFG        u + w (c - u), of any kind of prediction
    APG        x_c + (w - 1) (what of x_c - x_u is orthogonal to x_c, + `parallel` of the rest), with momentum
    CFG-Zero*  s u + w (c - s u), s = <c, u> / |u|^2, of v
    CFG++      x_u + w (x_c - x_u), whose noise at the next level is eps_u
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vf.diffusion import gaussian
from vf.diffusion.gaussian import Estimate

Predictor = Callable[..., jax.Array]
Levels = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""t int [b] -> the amplitudes of clip and noise in z, broadcasting against it."""


class At(NamedTuple):
    """Where predictions are made: the noised clips, their times int [b], the amplitudes of clip and noise in them, and
    what the rule remembers of the evaluation before; None for nothing yet."""

    z: jax.Array
    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    memory: jax.Array | None = None


class Rule(Protocol):
    """How two estimates are joined."""

    def __call__(self, given: Estimate, without: Estimate, scale: float, at: At) -> Estimate: ...


@dataclasses.dataclass(frozen=True)
class CFG:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6); in a scale that is 1 without guidance."""

    def __call__(self, given: Estimate, without: Estimate, scale: float, at: At) -> Estimate:
        x_0, eps = (u + scale * (c - u) for c, u in zip(given[:2], without[:2], strict=True))
        return Estimate(x_0, eps)


@dataclasses.dataclass(frozen=True)
class APG:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1).

    Attributes:
        parallel: share of the part along x_c that is kept, which saturates colours; 0 in the paper. 1 is CFG.
        norm: bound of the Euclidean norm of x_c - x_u over a clip; None for none.
        momentum: share of the evaluation before's x_c - x_u, its own momentum included, that is added; negative in the
            paper, -0.25 to -0.75, so that steps do not push the same way.

    Raises ValueError unless the momentum lies in (-1, 1).
    """

    parallel: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not -1 < self.momentum < 1:
            raise ValueError(f"the momentum of guidance lies between -1 and 1, got {self.momentum}")

    def __call__(self, given: Estimate, without: Estimate, scale: float, at: At) -> Estimate:
        difference = given.x_0 - without.x_0
        if at.memory is not None:
            difference += self.momentum * at.memory
        memory = difference if self.momentum else None
        if self.norm is not None:
            difference *= jnp.minimum(1, self.norm / jnp.maximum(jnp.sqrt(_dot(difference, difference)), 1e-12))
        along = _dot(difference, given.x_0) / jnp.maximum(_dot(given.x_0, given.x_0), 1e-12) * given.x_0
        shift = (scale - 1) * (difference - along + self.parallel * along)
        noisy = at.sigma > 0
        ratio = jnp.where(noisy, at.alpha / jnp.where(noisy, at.sigma, 1), 0)
        return Estimate(given.x_0 + shift, given.eps - ratio * shift, memory=memory)


@dataclasses.dataclass(frozen=True)
class CFGZero:
    """CFG-Zero* (Fan et al. 2025, algorithm 1), which is of flow matching's velocity; here of v, that of z over the
    angle atan(sigma / alpha).

    zero_from: the time from which on, up to the beginning, v is 0 (the paper's zero-init); None for never.
    """

    zero_from: int | None = None

    def __call__(self, given: Estimate, without: Estimate, scale: float, at: At) -> Estimate:
        c, u = (gaussian.target("v", one.x_0, one.eps, at.alpha, at.sigma) for one in (given, without))
        u *= _dot(c, u) / jnp.maximum(_dot(u, u), 1e-12)
        v = u + scale * (c - u)
        if self.zero_from is not None:
            v = jnp.where(_per_row(at.t < self.zero_from, v), v, 0)
        return gaussian.estimate("v", v, at.z, at.alpha, at.sigma)


@dataclasses.dataclass(frozen=True)
class CFGPlusPlus:
    """CFG++ (Chung et al. 2024, algorithm 2), whose scale is in [0, 1]; it guides at a scale of 1, too."""

    def __call__(self, given: Estimate, without: Estimate, scale: float, at: At) -> Estimate:
        return CFG()(given, without, scale, at)._replace(renoise=without.eps)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How far predictions are steered.

    Attributes:
        scale: 1 is the conditional prediction, 0 the unconditional one.
        residual_scale: that of the residual generator; None for the same.
        interval: first and last time (lowest and highest t) at which predictions are steered, elsewhere they are the
            conditional ones (Kynkaanniemi et al. 2024, who give the interval in sigma); None for all.
        rescale: share in [0, 1] by which a steered prediction gets the conditional one's standard deviation back,
            clip by clip (Lin et al. 2024, eq. 15 and 16).
        rule: how the two are joined.

    Raises ValueError for values out of range.
    """

    scale: float = 1.0
    residual_scale: float | None = None
    interval: tuple[int, int] | None = None
    rescale: float = 0.0
    rule: Rule = CFG()

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescaling of guidance is a share in [0, 1], got {self.rescale}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"the interval of guidance must be two times, 0 <= first <= last, got {self.interval}")

    @property
    def steers(self) -> bool:
        """Whether there is anything but the conditional prediction."""
        return self.scale != 1 or isinstance(self.rule, CFGPlusPlus)

    @property
    def remembers(self) -> bool:
        """Whether an evaluation depends on those before it, by the memory of their estimates."""
        return isinstance(self.rule, APG) and self.rule.momentum != 0

    @property
    def of_residual(self) -> "Guidance":
        """The guidance of the residual generator."""
        return self if self.residual_scale is None else dataclasses.replace(self, scale=self.residual_scale)


UNGUIDED = Guidance()


def guided(
    predict: Predictor, kind: gaussian.Prediction, levels: Levels, guidance: Guidance = UNGUIDED,
    weaker: Predictor | None = None,
) -> Callable[..., Estimate]:  # fmt: skip
    """(z, t, *arrays, memory=None) -> the guided estimate of `predict`, whose predictions are of `kind`.

    Both predictions are made in one pass over a doubled batch, unless the guidance does not steer. Every array has a
    leading batch axis; t is int [b].

    weaker: a worse predictor of the same kind, which is given the condition, in place of the prediction without it
        (autoguidance, Karras et al. 2024, "Guiding a diffusion model with a bad version of itself").
    """

    def estimate(*arrays: jax.Array, memory: jax.Array | None = None) -> Estimate:
        z, t, *_ = arrays
        level = levels(t)
        rows = len(z)
        if not guidance.steers:
            return _read(kind, predict(*arrays, jnp.zeros(rows, bool)), z, level)
        if weaker is not None:
            values = [each(*arrays, jnp.zeros(rows, bool)) for each in (predict, weaker)]
        else:
            doubled = [jnp.concatenate([a, a]) for a in arrays]
            values = jnp.split(predict(*doubled, jnp.arange(2 * rows) >= rows), 2)
        given, without = (_read(kind, value, z, level) for value in values)
        steered = guidance.rule(given, without, guidance.scale, At(z, t, *level, memory))
        if guidance.rescale:
            value, goal = (gaussian.target(kind, one.x_0, one.eps, *level) for one in (steered, given))
            same_std = gaussian.estimate(kind, rescaled(value, goal, guidance.rescale), z, *level)
            steered = same_std._replace(renoise=steered.renoise, memory=steered.memory)
        steered = steered._replace(variance=given.variance)
        if guidance.interval is None:
            return steered
        first, last = guidance.interval
        given = given._replace(renoise=None if steered.renoise is None else given.eps)
        if steered.memory is not None:  # outside, it stays what it was
            given = given._replace(memory=jnp.zeros_like(z) if memory is None else memory)
        inside = _per_row((t >= first) & (t <= last), z)
        return jax.tree.map(lambda one, other: jnp.where(inside, one, other), steered, given)

    return estimate


def _read(kind: gaussian.Prediction, value: Array, z: Array, level: tuple[Array, Array]) -> Estimate:
    """The estimate of a network's value, whose channels beyond those of z are of its variance, from -1 to 1."""
    channels = z.shape[-1]
    found = gaussian.estimate(kind, value[..., :channels], z, *level)
    return found._replace(variance=(value[..., channels:] + 1) / 2) if value.shape[-1] > channels else found


def rescaled(steered: Float[Array, "b *s"], given: Float[Array, "b *s"], share: float) -> Float[Array, "b *s"]:
    """`steered` with a share of its standard deviation, over everything but the rows, made that of `given`."""
    if not share:
        return steered
    axes = tuple(range(1, given.ndim))
    ratio = given.std(axes, keepdims=True) / jnp.maximum(steered.std(axes, keepdims=True), 1e-12)
    return steered * (share * ratio + 1 - share)


def _dot(a: Float[Array, "b *s"], b: Float[Array, "b *s"]) -> Float[Array, "b *ones"]:
    """Inner product of each row's clips."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _per_row(values: Shaped[Array, " b"], like: Array) -> Shaped[Array, "b *ones"]:
    return values.reshape(-1, *[1] * (like.ndim - 1))
