"""From a clip to the noise that deterministic DDIM turns into it: the solver's step, solved for where it came from."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vf.diffusion.schedule import Schedule
from vf.diffusion.solvers import Denoiser, Level, estimate

ITERATIONS = 4


def invert(
    denoise: Denoiser,
    x: Float[Array, "b *s"],
    grid: Int[np.ndarray, "k"],
    schedule: Schedule,
    *,
    scale: float | Array = 1.0,
    iterations: int = ITERATIONS,
) -> Float[Array, "b *s"]:
    """The z_T from which `solvers.solve` with DDIM (eta 0, no bound of the clean estimate) walks `grid` to `x`.

    A step of DDIM (Song et al. 2021, equation 12) from t to s is z_s = alpha_s x_hat + sigma_s eps(z_t, t), so

        z_t = alpha_t / alpha_s (z_s - sigma_s eps(z_t, t)) + sigma_t eps(z_t, t),

    solved for z_t by fixed-point iteration, which begins at z_t = z_s (ReNoise, Garibi et al. 2024, section 3). One
    iteration is the usual inversion of DDIM, which takes the noise for the same at both ends of a step.

    Args:
        denoise: the denoiser.
        x: the clean clips.
        grid: the falling times of the sampling, the last -1 (clean).
        schedule: alpha and sigma at each time.
        scale: the noise's amplitude relative to sigma, as in `solvers.solve`.
        iterations: evaluations of the denoiser at each step, 1 or more.
    """
    if iterations < 1:
        raise ValueError(f"inversion takes at least one iteration a step, got {iterations}")

    def back(z: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
        then, now = (Level(schedule.alpha(time), schedule.sigma(time)) for time in times)

        def closer(_: int, guess: Array) -> Array:
            eps = estimate(denoise(guess, times[1]), guess, now, scale).eps
            return now.alpha / then.alpha * (z - scale * then.sigma * eps) + scale * now.sigma * eps

        return jax.lax.fori_loop(0, iterations, closer, z), None

    rising = np.asarray(grid)[::-1]
    return jax.lax.scan(back, x, (jnp.asarray(rising[:-1]), jnp.asarray(rising[1:])))[0]
