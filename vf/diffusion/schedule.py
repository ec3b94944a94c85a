"""Noise schedules: how much signal is left at step t. Tables are made in float64 and rounded once.

`alpha_bar[t]`, t = 0..T-1, is the variance kept of the clean clip after t + 1 noising steps (the paper writes
\\hat{alpha}_t); step t = -1 is the clean clip itself. The schedule that the paper used is not public: cosine with
T = 1000 (Nichol & Dhariwal 2021, eq. 17) is our default, linear (Ho et al. 2020, section 4) the other choice.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """z_t = alpha(t) x + sigma(t) eps with alpha^2 = alpha_bar[t] and sigma^2 = 1 - alpha_bar[t]."""

    alpha_bar: np.ndarray  # float64 [T], decreasing, inside (0, 1); the last may be 0

    def __post_init__(self) -> None:
        table = np.asarray(self.alpha_bar)
        if table.dtype != np.float64 or table.ndim != 1:
            raise ValueError(f"alpha_bar must be a float64 vector, got {table.dtype} {table.shape}")
        if not (np.all(np.diff(table) < 0) and table[-1] >= 0 and table[0] < 1):
            raise ValueError("alpha_bar must decrease strictly and stay inside (0, 1), or end at 0")

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar)

    @property
    def ends_in_noise(self) -> bool:
        """Whether z_t is noise alone at the last step, where a prediction of eps says nothing of the clip."""
        return bool(self.alpha_bar[-1] == 0)

    def _table(self) -> np.ndarray:
        return np.concatenate([[1.0], self.alpha_bar])  # entry t + 1, so that t = -1 is the clean clip

    def alpha(self, t: Int[Array, "*s"]) -> Float[Array, "*s"]:
        """Signal amplitude sqrt(alpha_bar[t]), float32; 1 at t = -1."""
        return jnp.asarray(np.sqrt(self._table()).astype(np.float32))[t + 1]

    def sigma(self, t: Int[Array, "*s"]) -> Float[Array, "*s"]:
        """Noise amplitude sqrt(1 - alpha_bar[t]), float32; 0 at t = -1."""
        return jnp.asarray(np.sqrt(1 - self._table()).astype(np.float32))[t + 1]


def from_betas(betas: np.ndarray) -> Schedule:
    """Schedule of z_t = sqrt(1 - beta_t) z_{t-1} + sqrt(beta_t) eps; `betas` float64 [T] inside (0, 1)."""
    return Schedule(np.cumprod(1 - np.asarray(betas, np.float64)))


def linear(steps: int = 1000) -> Schedule:
    """beta from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020), scaled by 1000 / T for other T as ADM does.

    Raises ValueError for T of 20 or less, where the last beta would be 1 or more.
    """
    if steps <= 20:
        raise ValueError(
            f"the linear schedule needs more than 20 steps, got {steps}: take more, or the cosine schedule"
        )
    scale = 1000 / steps
    return from_betas(np.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=np.float64))


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2), betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Raises ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    u = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """`schedule` with sqrt(alpha_bar) shifted and scaled so that it ends at 0 and begins as before.

    Lin et al. 2024 ("Common diffusion noise schedules and sample steps are flawed"), algorithm 1.
    """
    root = np.sqrt(schedule.alpha_bar)
    return Schedule(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)


SCHEDULES = {"cosine": cosine, "linear": linear}


def time_grid(steps: int, total: int) -> np.ndarray:
    """Times that a sampler walks: `steps` evenly spaced network steps from total - 1 down to 0, then -1 (clean).

    Returns int32 [steps + 1], strictly decreasing. The network sees the original step numbers, as ADM's respacing
    does. Raises ValueError unless 1 <= steps <= total.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"sampling takes between 1 and {total} steps (the schedule's T), got {steps}")
    times = np.round(np.linspace(total - 1, 0, steps)) if steps > 1 else np.array([total - 1])
    return np.append(times, -1).astype(np.int32)


def _trailing(steps: int, schedule: Schedule) -> np.ndarray:
    return schedule.steps - 1 - schedule.steps / steps * np.arange(steps)


def _quadratic(steps: int, schedule: Schedule) -> np.ndarray:
    return np.linspace(np.sqrt(schedule.steps - 1), 0, steps) ** 2


def _log_snr(steps: int, schedule: Schedule) -> np.ndarray:
    if schedule.ends_in_noise:
        return _after_noise(_log_snr, steps, schedule)
    half_log_snr = np.log(schedule.alpha_bar / (1 - schedule.alpha_bar)) / 2  # falls with t
    return _times_of(np.linspace(half_log_snr[-1], half_log_snr[0], steps), half_log_snr)


def _karras(steps: int, schedule: Schedule, rho: float = 7.0) -> np.ndarray:
    if schedule.ends_in_noise:
        return _after_noise(_karras, steps, schedule)
    sigma = np.sqrt(1 / schedule.alpha_bar - 1)  # of z / alpha
    sigmas = np.linspace(sigma[-1] ** (1 / rho), sigma[0] ** (1 / rho), steps) ** rho
    return _times_of(-np.log(sigmas), -np.log(sigma))


def _after_noise(spacing: Callable[[int, Schedule], np.ndarray], steps: int, schedule: Schedule) -> np.ndarray:
    """The last step, where the log-SNR is infinite, and `spacing` of those before it."""
    return np.append(schedule.steps - 1, spacing(steps - 1, Schedule(schedule.alpha_bar[:-1])))


def _times_of(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Times, in fractions, at which a falling table has these values."""
    return np.interp(values, table[::-1], np.arange(len(table))[::-1])


SPACINGS = {
    "uniform": lambda steps, schedule: np.linspace(schedule.steps - 1, 0, steps),
    "trailing": _trailing,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
    "karras": _karras,
}
"""{name: (steps, schedule) -> falling times, in fractions}.

`uniform` is `time_grid`; `trailing` has equal steps down to clean, and so ends earlier (Lin et al. 2024, table 2);
`quadratic` is DDIM's (Song et al. 2021, D.2), finer near clean; `log_snr` is uniform in log alpha / sigma (DPM-Solver,
Lu et al. 2022), and `karras` in (sigma / alpha)^(1/7) (EDM, Karras et al. 2022, eq. 5).
Of a schedule that ends in noise the latter two space the steps below the last.
"""


def spaced_times(spacing: str, steps: int, schedule: Schedule) -> np.ndarray:
    """A time grid of `steps` network steps, spaced by `SPACINGS`, and -1 (clean); int32 [steps + 1].

    Times are rounded to the schedule's steps; where that would give one of them twice, the earlier ones are moved up by
    one. Raises ValueError for an unknown spacing, and unless 1 <= steps <= T.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"the spacing of times must be one of {', '.join(SPACINGS)}, got {spacing!r}")
    uniform = time_grid(steps, schedule.steps)
    if spacing == "uniform" or steps == 1:
        return uniform
    rounded = np.round(SPACINGS[spacing](steps, schedule))
    rising = rounded[::-1] - np.arange(steps)
    falling = (np.maximum.accumulate(rising) + np.arange(steps))[::-1]
    times = np.minimum(falling, schedule.steps - 1 - np.arange(steps))  # none beyond the first
    return np.append(times, -1).astype(np.int32)


def given_times(times: Sequence[int], schedule: Schedule) -> np.ndarray:
    """The time grid of these network steps, and -1 (clean); int32.

    Raises ValueError unless they fall strictly, within the schedule's steps.
    """
    grid = np.append(np.asarray(times), -1)
    if grid.dtype.kind not in "iu" or len(grid) < 2 or grid[0] >= schedule.steps or np.any(np.diff(grid) >= 0):
        raise ValueError(
            f"times must be whole numbers that fall strictly, from at most {schedule.steps - 1} to 0 or more, got "
            f"{list(times)}"
        )
    return grid.astype(np.int32)


def spread(values: Float[Array, "*s"], like: jax.Array) -> jax.Array:
    """`values` with trailing axes of size 1, so that it scales `like` along its leading axes."""
    return jnp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))
