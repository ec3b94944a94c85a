"""From a model's denoisers to clips: the joint sampling of all frames, and base first, two samplings in a row."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vf import rng
from vf.diffusion import decompose, solvers
from vf.diffusion.guidance import UNGUIDED, Guidance
from vf.models.model import Condition, Model
from vf.models.videofusion import VideoFusion
from vf.types import Params


class SampleOptions(NamedTuple):
    """How to sample: `grid` int32 [k + 1] as `schedule.spaced_times` makes it; the clean estimate is bounded by
    `clip_x_0` and `clip_quantile` as in `solvers.bounded`."""

    grid: np.ndarray
    solver: solvers.Solver = solvers.DDIM()
    guidance: Guidance = UNGUIDED
    clip_x_0: float | None = 1.0
    clip_quantile: float | None = None
    restart: solvers.Restart | None = None


def sample(
    model: Model,
    params: Mapping[str, Params],
    keys: Key[Array, " b"],
    condition: Condition,
    options: SampleOptions,
) -> Float[Array, "b f h w c"]:
    """Clips in about [-1, 1], one per key; each depends on its own key and condition alone.

    The noise that a stochastic solver injects is drawn from the model's own prior, at each time anew.
    """
    if isinstance(model, VideoFusion) and model.base_first:
        return _base_first(model, params, keys, condition, options)
    start, injected = rng.streams(keys, 2)
    draw = jax.vmap(model.draw_noise)
    denoise = model.denoiser(params, condition, options.guidance)
    return _solve(model, options)(denoise, draw(start), noise=lambda t: draw(_at(injected, t)))


def _base_first(
    model: VideoFusion,
    params: Mapping[str, Params],
    keys: Key[Array, " b"],
    condition: Condition,
    options: SampleOptions,
) -> Float[Array, "b f h w c"]:
    """The base frame is sampled from b alone; then, given it, the other frames from their own noise (8)."""
    start, injected = rng.streams(keys, 2)
    parts = jax.vmap(lambda key: model.prior.parts(key, model.shape))
    b, r = parts(start)
    solve = _solve(model, options)

    base = model.base_denoiser(params, condition, options.guidance)
    frame = solve(base, b, noise=lambda t: parts(_at(injected, t))[0])

    scale = jnp.sqrt(1 - decompose.per_pixel(model.lam))
    residual = model.residual_denoiser(params, condition, frame, options.guidance)
    clip = solve(residual, scale * r, scale=scale, noise=lambda t: parts(_at(injected, t))[1])
    return clip.at[:, model.base_frame].set(frame)


def _solve(model: Model, options: SampleOptions) -> functools.partial[Float[Array, "..."]]:
    """`solvers.solve` with all that both samplings share."""
    return functools.partial(
        solvers.solve,
        grid=options.grid,
        schedule=model.schedule,
        solver=options.solver,
        clip_x_0=options.clip_x_0,
        clip_quantile=options.clip_quantile,
        restart=options.restart,
    )


def _at(keys: Key[Array, " b"], t: Array) -> Key[Array, " b"]:
    """Each clip's key for the noise that is injected at time t."""
    return jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
