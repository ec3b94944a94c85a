"""Denoises long clips whose windows (`vf.diffusion.windows`) are denoised together, a step of the solver at a time.

Of a long clip under decomposed noise one frame alone is the base frame, at its place in the first window, and all
frames share its noise b: the clip is one of VideoFusion's, longer than the model's. The base generator estimates b from
that frame, as ever (4); the residual generator sees windows of z' (5). Whatever a window holds at its base frame's
place is hidden from it, so that it estimates all but that frame, which another window must hold elsewhere.

Base first there is no such clip. The residual generator sees a clean base frame in every window, and frames far from
the first base frame would have to be sampled before the windows that hold them: in turn, that is. With the one base
frame at the base frame's place of each window the clip would return to it every few frames.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vf.diffusion import decompose, gaussian, solvers
from vf.models.model import Condition, Model
from vf.models.sampler import SampleOptions
from vf.models.videofusion import VideoFusion
from vf.types import Params


class Base(NamedTuple):
    """What the base generator makes of a base frame: the clean one, inside its bound, and the noise b."""

    x_0: Float[Array, "b h w c"]
    b: Float[Array, "b h w c"]


def base(
    model: VideoFusion, params: Mapping[str, Params], condition: Condition, z: Float[Array, "b h w c"], t: Array,
    options: SampleOptions,
) -> Base:  # fmt: skip
    """The base generator's estimates (4) of noised base frames."""
    found = model.base_denoiser(params, condition, options.guidance)(z, t)
    assert isinstance(found, gaussian.Estimate)
    return Base(_bounded(found.x_0, options), found.eps)


def window(
    model: Model, params: Mapping[str, Params], condition: Condition, z: Float[Array, "b f h w c"], t: Array,
    b: Float[Array, "b h w c"] | None, options: SampleOptions,
) -> Float[Array, "b f h w c"]:  # fmt: skip
    """Clean estimates of noised windows, inside their bound; 0 at the base frame's place of decomposed noise.

    b: the estimate of the base noise; None where noise is not decomposed.
    """
    if not isinstance(model, VideoFusion):
        denoise = model.denoiser(params, condition, options.guidance)
    else:
        assert b is not None
        z = decompose.residual_input(z, b, model.lam, jnp.full(len(z), model.schedule.sigma(t)))
        denoise = model.residual_denoiser(params, condition, None, options.guidance)
    found = denoise(z, t)
    assert isinstance(found, gaussian.Estimate)
    return _bounded(found.x_0, options)


def begin(options: SampleOptions, z: Float[Array, "b f h w c"]) -> Any:
    """The solver's state before the first step, a tree of arrays [b ...]."""
    return jax.vmap(options.solver.init)(z)


def advance(
    model: Model, options: SampleOptions, z: Float[Array, "b f h w c"], state: Any, x_0: Float[Array, "b f h w c"],
    times: Int[Array, "4"], xi: Float[Array, "b f h w c"] | None, again: Float[Array, "b f h w c"] | None,
) -> tuple[Float[Array, "b f h w c"], Any]:  # fmt: skip
    """Any frames and their state after one of the steps of `solvers.walk`, as `solvers.advance`.

    x_0: the clean estimate, which leaves the noise that goes with it.
    """
    now = solvers.Level(model.schedule.alpha(times[0]), model.schedule.sigma(times[0]))

    def one(z: Array, state: Any, x_0: Array, xi: Array | None, again: Array | None) -> tuple[Array, Any]:
        found = gaussian.Estimate(x_0, solvers.noise_beside(x_0, z, now))
        return solvers.advance(found, z, state, times, model.schedule, options.solver, 1.0, xi, again)

    return jax.vmap(one)(z, state, x_0, xi, again)


def _bounded(x_0: Array, options: SampleOptions) -> Array:
    return x_0 if options.clip_x_0 is None else solvers.bounded(x_0, options.clip_x_0, options.clip_quantile)
