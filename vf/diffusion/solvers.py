"""Solvers that walk a time grid from noise to clips. A reader of the paper may skip this file.

A *denoiser* is any callable (z_t, t) -> eps_hat, with t an int32 scalar: tests hand in closed forms. It may also give
an `Estimate` of clip and noise, and must where alpha is 0, since eps says nothing of the clip there. One that remembers
takes the `memory` of its last estimate as a third argument. A *time grid* is a list of decreasing times
(`schedule.time_grid`). A *solver* has two parts: `init`, the state that it carries from step to step, and `step`, from
one level of noise to the next. `solve` joins them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vf.diffusion.gaussian import Estimate
from vf.diffusion.schedule import Schedule

Denoiser = Callable[..., jax.Array | Estimate]


class Level(NamedTuple):
    """A level of noise, z = alpha x + scale sigma eps: f32 scalars, or arrays that broadcast against z."""

    alpha: Array
    sigma: Array


class Solver(Protocol):
    """How z gets from one level of noise to the next."""

    @property
    def injects(self) -> bool:
        """Whether fresh noise enters at each step."""

    def walk(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The times of each evaluation of the denoiser and of the level of noise that it leads to."""

    def init(self, z: Array) -> Any:
        """The state before the first step; a pytree, None for a solver without memory."""

    def step(
        self, state: Any, z: Array, estimate: Estimate, now: Level, then: Level, scale: float | Array, xi: Array | None
    ) -> tuple[Array, Any]:
        """(z at `then`, the next state), given the estimate at `now`.

        scale: the noise's amplitude relative to sigma. xi: fresh noise of the prior, where the solver injects any.
        """


@dataclasses.dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, eq. 12); `eta` in [0, 1]: 0 is deterministic, 1 has DDPM's variance.

    At eta = 1 the variance is the learned one where the estimate has one.

    Raises ValueError for eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1] (0 is deterministic DDIM, 1 is DDPM), got {self.eta}")

    @property
    def injects(self) -> bool:
        return self.eta > 0

    def walk(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.walk`."""
        return grid[:-1], grid[1:]

    def init(self, z: Array) -> None:
        """Nothing is carried."""

    def step(
        self, state: None, z: Array, estimate: Estimate, now: Level, then: Level, scale: float | Array, xi: Array | None
    ) -> tuple[Array, None]:
        """As `Solver.step`."""
        forward = jnp.sqrt(jnp.maximum(1 - (now.alpha / then.alpha) ** 2, 0))  # amplitude of q(z_t | z_s)
        injected = self.eta * then.sigma / now.sigma * forward
        ratio = now.alpha / then.alpha * then.sigma / now.sigma
        # Not as a difference of squares, which in float32 has no digits left where alpha is near 0.
        remaining = then.sigma * jnp.sqrt(1 - self.eta**2 + (self.eta * ratio) ** 2)
        z = _renoised(estimate, then.alpha, remaining, scale)
        if xi is None:
            return z, None
        if self.eta == 1 and estimate.variance is not None:
            learned = forward**estimate.variance * injected ** (1 - estimate.variance)
            injected = jnp.where(injected > 0, learned, 0)
        return z + scale * injected * xi, None


@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and for eta > 0 its stochastic form, of second order in x_0.

    With h the step in log alpha / sigma, and x_0 and h' those of the step before,

        z <- alpha' x_0 + sigma' e^(-eta h) eps + alpha' (1 - e^(-(1 + eta) h)) h / (2 h') (x_0 - x_0')
             + sigma' sqrt(1 - e^(-2 eta h)) xi

    eta = 1 is SDE-DPM-Solver++(2M) (there, appendix A). Without the third term, which is left out at the first step and
    where h is infinite (at the step to clean, and from alpha = 0), eta = 0 is DDIM and eta = 1 DDPM.

    Raises ValueError for a negative eta.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise ValueError(f"eta must be 0 (deterministic) or more, got {self.eta}")

    @property
    def injects(self) -> bool:
        return self.eta > 0

    def walk(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.walk`."""
        return grid[:-1], grid[1:]

    def init(self, z: Array) -> tuple[Array, Array]:
        """The last estimate of the clean clip, and the last step in log alpha / sigma, 0 before the first one."""
        return jnp.zeros_like(z), jnp.zeros(())

    def step(
        self, state: tuple[Array, Array], z: Array, estimate: Estimate, now: Level, then: Level, scale: float | Array,
        xi: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:  # fmt: skip
        """As `Solver.step`."""
        x_before, h_before = state
        ratio = now.alpha / then.alpha * then.sigma / now.sigma  # e^(-h), 0 where h is infinite
        injected = then.sigma * jnp.sqrt(jnp.maximum(1 - ratio ** (2 * self.eta), 0))
        h = -jnp.log(jnp.where(ratio > 0, ratio, 1))
        slope = jnp.where(h_before > 0, h / (2 * jnp.where(h_before > 0, h_before, 1)), 0)  # h is set to 0 there
        correction = then.alpha * (1 - ratio ** (1 + self.eta)) * slope * (estimate.x_0 - x_before)
        z = _renoised(estimate, then.alpha, then.sigma * ratio**self.eta, scale) + correction
        return z if xi is None else z + scale * injected * xi, (estimate.x_0, h)


class _Before(NamedTuple):
    """What UniPC remembers of the last step: where it began, the clean estimate there, (x_0 - x_0') / r, h and r."""

    z: Array
    level: Level
    x_0: Array
    change: Array
    h: Array
    r: Array


@dataclasses.dataclass(frozen=True)
class UniPC:
    """UniPC-2 (Zhao et al. 2023, algorithms 5 and 6, B_2(h) = e^h - 1, for x_0), of third order in one pass a step.

    Its predictor is DPM-Solver++(2M). With the next evaluation, and h and r of the step before, it corrects where that
    step has led,

        z <- sigma / sigma' z' + alpha (1 - e^(-h)) (x_0' + rho_1 (x_0' - x_0'') / r + rho_2 (x_0 - x_0'))

    with primes for what is before, and rho_2 = 1/2 alone in the first step.
    """

    @property
    def injects(self) -> bool:
        return False

    def walk(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.walk`."""
        return grid[:-1], grid[1:]

    def init(self, z: Array) -> _Before:
        """As before the first step, with h = 0."""
        zero, nothing = jnp.zeros(()), jnp.zeros_like(z)
        return _Before(nothing, Level(zero, jnp.ones(())), nothing, nothing, zero, zero)

    def step(
        self, state: _Before, z: Array, estimate: Estimate, now: Level, then: Level, scale: float | Array,
        xi: Array | None,
    ) -> tuple[Array, _Before]:  # fmt: skip
        """As `Solver.step`."""
        x_0, before = estimate.x_0, state
        gone = jnp.exp(-before.h)
        h = jnp.where(before.h > 0, before.h, 1)
        b_1 = 1 / -jnp.expm1(-h) - 1 / h  # the moments that rho must match
        b_2 = 1 / -jnp.expm1(-h) - 2 / h * b_1
        rho_1 = jnp.where(before.r > 0, (b_1 - b_2) / (1 + before.r), 0)
        rho_2 = jnp.where(before.r > 0, b_1 - rho_1, 0.5)
        corrected = now.sigma / before.level.sigma * before.z + now.alpha * (1 - gone) * (
            before.x_0 + rho_1 * before.change + rho_2 * (x_0 - before.x_0)
        )
        z = jnp.where(before.h > 0, corrected, z)

        ratio = now.alpha / then.alpha * then.sigma / now.sigma  # e^(-h), 0 where h is infinite
        h = -jnp.log(jnp.where(ratio > 0, ratio, 1))
        r = jnp.where(h > 0, before.h / jnp.where(h > 0, h, 1), 0)
        change = jnp.where(r > 0, (x_0 - before.x_0) / jnp.where(r > 0, r, 1), 0)
        predicted = then.sigma / now.sigma * z + then.alpha * (1 - ratio) * (x_0 + change / 2)
        return predicted, _Before(z, now, x_0, change, h, r)


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method on the flow of z / alpha over sigma / alpha (EDM, Karras et al. 2022, algorithm 1 without churn).

    Each step evaluates the denoiser twice, at its beginning and, after DDIM's step, at its end; the last one, to clean,
    once.
    """

    @property
    def injects(self) -> bool:
        return False

    def walk(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Solver.walk`: each level but the first and the last is visited twice, to correct and to go on."""
        now, then = np.repeat(grid[:-1], 2)[1:], np.repeat(grid[1:], 2)[:-1]
        return now, then

    def init(self, z: Array) -> tuple[Array, Array, Array]:
        """Whether the next evaluation corrects; the noise at the beginning of the step, and its part in the result."""
        return jnp.zeros((), bool), jnp.zeros_like(z), jnp.zeros(())

    def step(
        self, state: tuple[Array, Array, Array], z: Array, estimate: Estimate, now: Level, then: Level,
        scale: float | Array, xi: Array | None,
    ) -> tuple[Array, tuple[Array, Array, Array]]:  # fmt: skip
        """As `Solver.step`."""
        corrects, eps_before, part_before = state
        corrected = z + scale * part_before * (estimate.eps - eps_before) / 2
        predicted = _renoised(estimate, then.alpha, then.sigma, scale)
        # From alpha = 0, where sigma / alpha is infinite, there is no slope to correct: the step is DDIM's.
        drift = jnp.where(now.alpha > 0, then.alpha / jnp.where(now.alpha > 0, now.alpha, 1), 0)
        part = jnp.where(now.alpha > 0, then.sigma - now.sigma * drift, 0)
        return jnp.where(corrects, corrected, predicted), (~corrects, estimate.eps, part)


@dataclasses.dataclass(frozen=True)
class Restart:
    """Restart sampling (Xu et al. 2023, algorithm 1): from `low` noise is added again up to `high`, `count` times.

    Fresh noise makes up for errors of the way before, at the price of walking this part of the grid again each time.

    Attributes:
        low, high: times; the nearest ones of the grid between them are taken.
        count: how often.

    Raises ValueError unless 0 <= low < high, and count is at least 1.
    """

    low: int
    high: int
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high or self.count < 1:
            raise ValueError(
                "a restart is from a lower to a higher time, 0 <= low < high, once or more often; got "
                f"{self.low}, {self.high}, {self.count}"
            )

    def parts(self, grid: np.ndarray) -> list[np.ndarray]:
        """The falling parts of a walk along `grid` with these restarts, each of which begins where noise was added.

        Raises ValueError where fewer than two of the grid's times are from `low` to `high`.
        """
        within = np.flatnonzero((grid >= self.low) & (grid <= self.high))
        if len(within) < 2:
            raise ValueError(
                f"of the grid's times fewer than two are from {self.low} to {self.high}, to restart between"
            )
        first, last = within[0], within[-1]
        return [grid[: last + 1], *[grid[first : last + 1]] * (self.count - 1), grid[first:]]


def _renoised(estimate: Estimate, alpha: Array, remaining: Array, scale: float | Array) -> Array:
    """The clean estimate with its own noise, of the amplitude that remains of it."""
    noise = estimate.eps if estimate.renoise is None else estimate.renoise
    return alpha * estimate.x_0 + scale * remaining * noise


def solve(
    denoise: Denoiser,
    z_T: Float[Array, "b *s"],
    grid: Int[np.ndarray, "k"],
    schedule: Schedule,
    *,
    solver: Solver | None = None,
    scale: float | Array = 1.0,
    noise: Callable[[jax.Array], jax.Array] | None = None,
    clip_x_0: float | None = None,
    clip_quantile: float | None = None,
    restart: Restart | None = None,
    remembers: bool = False,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Walks `grid` with `solver` (default: deterministic DDIM), as one `lax.scan`.

    Args:
        denoise: the denoiser.
        z_T: noise, drawn from the prior.
        grid: decreasing times, the last -1 (clean).
        schedule: alpha and sigma at each time.
        scale: broadcast against z, the noise's amplitude relative to sigma(t): sqrt(1 - lambda) for VideoFusion's
            residual frames sampled base first, 1 otherwise.
        noise: the fresh noise of a solver that injects it, and of restarts, by time, plus T for each restart before;
            shaped like z and drawn from z_T's prior.
        clip_x_0: bounds the estimate of the clean clip to [-clip_x_0, clip_x_0]; None does not.
        clip_quantile: dynamic thresholding, as in `bounded`; None cuts at the bound.
        restart: where to restart, if anywhere; a solver's memory begins anew, and Heun's step before it is DDIM's.
        remembers: whether the denoiser takes the memory of its last estimate; before the first it is 0.
        trajectory: return z before the first and after every evaluation, [k *z_T.shape].

    Returns the clean estimate, shaped like z_T. Raises ValueError where noise is injected and none is given, for a grid
    that does not decrease, and as `Restart.parts`.
    """
    solver = solver or DDIM()
    if (solver.injects or restart) and noise is None:
        raise ValueError(
            "eta > 0 and restarts inject noise: give `noise`, drawn from the prior that z_T was drawn from"
        )
    if np.any(np.diff(grid) >= 0):
        raise ValueError("the time grid must decrease strictly")

    def step(carry: tuple[Array, Any, Any], times: Array) -> tuple[tuple[Array, Any, Any], Array | None]:
        (z, state, memory), (t, s, _, before) = carry, times
        now = Level(schedule.alpha(t), schedule.sigma(t))
        found = estimate(denoise(z, t, *memory), z, now, scale)
        memory = (found.memory,) if remembers else ()
        if clip_x_0 is not None:
            x_0 = bounded(found.x_0, clip_x_0, clip_quantile)
            found = found._replace(x_0=x_0, eps=noise_beside(x_0, z, now, scale))
        xi = noise(t + before) if solver.injects and noise is not None else None
        again = noise(s + before) if restart and noise is not None else None
        z, state = advance(found, z, state, times, schedule, solver, scale, xi, again)
        return (z, state, memory), (z if trajectory else None)

    times = jnp.asarray(walk(grid, schedule, solver, restart))
    memory: tuple[Any, ...] = ()
    if remembers:
        first = jax.eval_shape(denoise, z_T, times[0, 0]).memory
        memory = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first),)
    (last, *_), path = jax.lax.scan(step, (z_T, solver.init(z_T), memory), times)
    return last if path is None else jnp.concatenate([z_T[None], path])


def walk(
    grid: Int[np.ndarray, "k"], schedule: Schedule, solver: Solver, restart: Restart | None = None
) -> Int[np.ndarray, "n 4"]:
    """What happens at each evaluation of the denoiser: its time, the time that the solver goes on to, that up to which
    noise is then added (the same where none is), and what is added to a time in the name of its noise: T for each
    restart before."""
    parts = restart.parts(np.asarray(grid)) if restart else [np.asarray(grid)]
    walks = []
    for k, part in enumerate(parts):
        now_times, then_times = solver.walk(part)
        after = np.append(then_times[:-1], parts[k + 1][0] if k + 1 < len(parts) else then_times[-1])
        walks.append(np.stack([now_times, then_times, after, np.full(len(after), k * schedule.steps)], axis=1))
    return np.concatenate(walks)


def advance(
    found: Estimate, z: Array, state: Any, times: Array, schedule: Schedule, solver: Solver, scale: float | Array,
    xi: Array | None, again: Array | None,
) -> tuple[Array, Any]:  # fmt: skip
    """(z, the solver's state) after one of the steps that `walk` lists, `times` [4], given the estimate before it.

    xi: the solver's fresh noise. again: that of restarts; None for a walk without any.
    """
    t, s, r, _ = times
    now, then = (Level(schedule.alpha(time), schedule.sigma(time)) for time in (t, s))
    z, state = solver.step(state, z, found, now, then, scale, xi)
    if again is not None:
        kept = schedule.alpha(r) / then.alpha
        added = jnp.sqrt(jnp.maximum(schedule.sigma(r) ** 2 - (kept * then.sigma) ** 2, 0))
        restarted = kept * z + scale * added * again
        z, state = (
            jax.tree.map(lambda new, old: jnp.where(r > s, new, old), *both)
            for both in ((restarted, z), (solver.init(z), state))
        )
    return z, state


def bounded(x_0: Float[Array, "b *s"], bound: float, quantile: float | None = None) -> Float[Array, "b *s"]:
    """`x_0` inside [-bound, bound].

    quantile: of each clip's |x_0|, at which it is cut where that is above `bound`, and then scaled down to `bound`:
        dynamic thresholding (Imagen, Saharia et al. 2022, section 2.3), which keeps pixels from saturating. None cuts
        at `bound`.
    """
    if quantile is None:
        return jnp.clip(x_0, -bound, bound)
    axes = tuple(range(1, x_0.ndim))
    largest = jnp.maximum(jnp.quantile(jnp.abs(x_0), quantile, axis=axes, keepdims=True), bound)
    return jnp.clip(x_0, -largest, largest) * (bound / largest)


def estimate(found: Array | Estimate, z: Array, now: Level, scale: float | Array = 1.0) -> Estimate:
    """Both estimates of a denoiser that may have given eps alone."""
    return found if isinstance(found, Estimate) else Estimate((z - scale * now.sigma * found) / now.alpha, found)


def noise_beside(x_0: Array, z: Array, now: Level, scale: float | Array = 1.0) -> Array:
    """The noise that z leaves for a clean clip; 0 where its amplitude is 0."""
    amplitude = scale * now.sigma
    return jnp.where(amplitude > 0, (z - now.alpha * x_0) / jnp.where(amplitude > 0, amplitude, 1), 0)
