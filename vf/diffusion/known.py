"""Known frames: functions from a denoiser to a denoiser, behind prediction, interpolation and image-to-video.

Some frames of a clip are given. A denoiser's estimate of their noise is replaced by the noise that they have,

    eps^i = (z_t^i - alpha_t x^i) / (scale sigma_t),

so that any solver takes z^i to x^i, with noise at every level on the way that belongs to the process, and the other
frames are denoised beside them. This is the *replacement* of Ho et al. 2022 ("Video diffusion models", section 3.1),
stated for the estimate in place of z: it holds for stochastic solvers too. Given the noised known frames, and not the
clean ones, the other frames need not agree with them; *reconstruction guidance* (there, equation 7) pulls them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vf.diffusion.gaussian import Estimate
from vf.diffusion.schedule import Schedule
from vf.diffusion.solvers import Denoiser, Level, estimate, noise_beside

Mask = Bool[np.ndarray, "f"]


def frame_mask(known: tuple[int, ...], frames: int) -> Mask:
    """Which of `frames` frames are known, bool [f]. Raises ValueError for none, for all, or for frames outside."""
    if outside := [i for i in known if not 0 <= i < frames]:
        raise ValueError(f"known frames are array indices, 0 to {frames - 1}, got {outside[0]}")
    mask = np.isin(np.arange(frames), known)
    if mask.all() or not mask.any():
        raise ValueError(
            f"known frames are some of a clip's {frames}, got {'all' if mask.all() else 'none'}: one must be left to "
            "sample, and one be given"
        )
    return mask


def noised(
    clip: Float[Array, "b f h w c"], z_T: Float[Array, "b f h w c"], mask: Mask, alpha: Array, sigma: Array
) -> Float[Array, "b f h w c"]:
    """Where sampling starts: `z_T`, with alpha x + sigma z_T for the known frames x of `clip`."""
    return jnp.where(_per_pixel(mask), alpha * clip + sigma * z_T, z_T)


def known_frames(
    denoise: Denoiser, clip: Float[Array, "b f h w c"], mask: Mask, schedule: Schedule, scale: float | Array = 1.0
) -> Denoiser:
    """`denoise`, with the known frames of `clip`, and their noise, in place of its estimates."""

    def both(z: Array, t: Array, *memory: Any) -> Estimate:
        now = Level(schedule.alpha(t), schedule.sigma(t))
        found = estimate(denoise(z, t, *memory), z, now, scale)
        kept, found = found.memory, found._replace(memory=None)
        eps = noise_beside(clip, z, now, scale)
        true = found._replace(x_0=clip, eps=eps, renoise=None if found.renoise is None else eps)
        known = jax.tree.map(lambda one, other: jnp.where(_per_pixel(mask), one, other), true, found)
        return known._replace(memory=kept)

    return both


def reconstruction_guided(
    denoise: Denoiser, clip: Float[Array, "b f h w c"], mask: Mask, schedule: Schedule, weight: float,
    scale: float | Array = 1.0,
) -> Denoiser:  # fmt: skip
    """`denoise`, whose clean estimate of the other frames is pulled to where that of the known ones is right.

    The clean estimate of the other frames loses weight alpha / 2 times the gradient, by their z, of the squared error
    of the known frames' estimate (Ho et al. 2022, equation 7). Costs a backward pass of the networks.
    """
    known = _per_pixel(mask)

    def both(z: Array, t: Array, *memory: Any) -> Estimate:
        now = Level(schedule.alpha(t), schedule.sigma(t))

        def error(z: Array) -> tuple[Array, Estimate]:
            found = estimate(denoise(z, t, *memory), z, now, scale)
            return jnp.sum(jnp.where(known, found.x_0 - clip, 0) ** 2), found

        gradient, found = jax.grad(error, has_aux=True)(z)
        x_0 = found.x_0 - jnp.where(known, 0, weight * now.alpha / 2 * gradient)
        return found._replace(x_0=x_0, eps=noise_beside(x_0, z, now, scale))

    return both


def history_guided(given: Denoiser, without: Denoiser, weight: float) -> Denoiser:
    """without + weight (given - without), of one denoiser that sees the known frames clean and one that does not.

    History guidance (Song et al. 2025, "History-guided video diffusion", section 4) of one history; `without` sees it
    as noisy as the frames to find, so that it is not wholly hidden.
    """

    def both(z: Array, t: Array, memory: tuple[Any, Any] | None = None) -> Array | Estimate:
        before = [()] * 2 if memory is None else [(part,) for part in memory]
        one, other = (denoise(z, t, *part) for denoise, part in zip((given, without), before, strict=True))
        kept = None
        if isinstance(one, Estimate) and isinstance(other, Estimate):
            kept = None if one.memory is None else (one.memory, other.memory)
            one, other = one._replace(memory=None), other._replace(memory=None)
        found: Array | Estimate = jax.tree.map(lambda c, u: u + weight * (c - u), one, other)
        return found if kept is None or not isinstance(found, Estimate) else found._replace(memory=kept)

    return both


def _per_pixel(mask: Mask) -> Bool[np.ndarray, "f 1 1 1"]:
    return mask[:, None, None, None]
