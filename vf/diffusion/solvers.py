"""Samplers that walk a time grid. Plain DDIM; a reader of the paper may skip this file.

A denoiser is any callable (z_t, t) -> eps_hat, with t an int32 scalar: tests hand in closed forms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vf.diffusion.schedule import Schedule

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def ddim(
    denoise: Denoiser,
    z_T: Float[Array, "b *s"],
    grid: Int[np.ndarray, "k"],
    schedule: Schedule,
    *,
    scale: float | Array = 1.0,
    eta: float = 0.0,
    noise: Callable[[jax.Array], jax.Array] | None = None,
    clip_x_0: float | None = None,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """DDIM (Song et al. 2021, eq. 12) along `grid`, as one `lax.scan`.

    `grid` holds decreasing times, the last -1 (clean): see `schedule.time_grid`. `scale`, broadcast against z, is the
    noise's amplitude relative to sigma(t): sqrt(1 - lambda) for VideoFusion's residual frames sampled base first,
    1 otherwise. With 0 < `eta` <= 1 (1 is DDPM's variance) `noise(t)` gives the injected noise, shaped like z, which
    must be drawn from the same prior as z_T. `clip_x_0` bounds the estimate of the clean clip to [-clip, clip].
    Returns the clean estimate, shaped like z_T; with `trajectory`, every z along the grid, [k *z_T.shape].
    Raises ValueError for eta outside [0, 1], eta without noise, or a grid that does not decrease.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1] (0 is deterministic DDIM, 1 is DDPM), got {eta}")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 injects noise: give `noise`, drawn from the prior that z_T was drawn from")
    if np.any(np.diff(grid) >= 0):
        raise ValueError("the time grid must decrease strictly")

    def step(z: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        t, s = times
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        eps = denoise(z, t)
        x_0 = (z - scale * sigma * eps) / alpha
        if clip_x_0 is not None:
            x_0 = jnp.clip(x_0, -clip_x_0, clip_x_0)
            # Where the amplitude is 0 there is no noise to re-estimate; any finite number serves.
            amplitude = scale * sigma
            eps = jnp.where(amplitude > 0, (z - alpha * x_0) / jnp.where(amplitude > 0, amplitude, 1), 0)
        injected = eta * sigma_s / sigma * jnp.sqrt(jnp.maximum(1 - (alpha / alpha_s) ** 2, 0))
        kept = jnp.sqrt(jnp.maximum(sigma_s**2 - injected**2, 0))
        z = alpha_s * x_0 + scale * kept * eps
        if eta > 0:
            assert noise is not None
            z = z + scale * injected * noise(t)
        return z, (z if trajectory else None)

    last, path = jax.lax.scan(step, z_T, (jnp.asarray(grid[:-1]), jnp.asarray(grid[1:])))
    return last if path is None else jnp.concatenate([z_T[None], path])
