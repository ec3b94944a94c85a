"""From a model's denoisers to clips: the joint sampling of all frames, and base first, two samplings in a row.

Base noise controls content and residual noise motion, so each may be drawn from keys of its own, interpolated, or given
(`Control`); `invert` finds both in a clip.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vf import rng
from vf.diffusion import decompose, inversion, solvers
from vf.diffusion import known as known_frames
from vf.diffusion.guidance import UNGUIDED, Guidance
from vf.diffusion.schedule import spread
from vf.models.model import Condition, Model
from vf.models.superres import SuperResolution
from vf.models.videofusion import Clean, VideoFusion
from vf.types import Params


class SampleOptions(NamedTuple):
    """How to sample.

    Attributes:
        grid: times, int32 [k + 1], as `schedule.spaced_times` makes them.
        solver: walks them.
        guidance: of the networks' predictions.
        clip_x_0, clip_quantile: bound of the clean estimate, as in `solvers.bounded`; None for none.
        restart: where sampling restarts; None for nowhere.
        known: array indices of frames that `Control.known` gives; () for none.
        reconstruction: weight of reconstruction guidance towards the known frames; 0 for none.
        history: of a residual generator that was trained to see known frames clean: 1 shows them so, and more is
            history guidance, with a second pass; 0 shows them as noisy as the others (replacement).
        low_noise: amplitude of the noise on the clips that are taken up to a higher resolution; 0 for none.
    """

    grid: np.ndarray
    solver: solvers.Solver = solvers.DDIM()
    guidance: Guidance = UNGUIDED
    clip_x_0: float | None = 1.0
    clip_quantile: float | None = None
    restart: solvers.Restart | None = None
    known: tuple[int, ...] = ()
    reconstruction: float = 0.0
    history: float = 0.0
    low_noise: float = 0.0


class Towards(NamedTuple):
    """Where a part of the noise turns to: cos(angle) of its own and sin(angle) of that of other keys.

    The sum is standard normal for any angle, 0 to pi / 2 (spherical interpolation of noises that are independent).
    """

    keys: Key[Array, " b"]
    angle: Float[Array, " b"]


class Control(NamedTuple):
    """What is fixed of the clips to be sampled. A field that is None leaves its part to the clips' keys.

    Attributes:
        motion: keys of the residual noise, in place of the clips' own, from which the base noise is drawn: clips of the
            same key share their content, and clips of the same key here their motion.
        content_towards, motion_towards: to interpolate base and residual noise.
        base_noise, residual_noise: the noise that sampling starts from, as `invert` finds it; for solvers that inject
            none.
        known: clips whose frames `SampleOptions.known` are given, in [-1, 1].
        order: for each frame, the frame whose residual noise it has, or noise where that has no parts.
    """

    motion: Key[Array, " b"] | None = None
    content_towards: Towards | None = None
    motion_towards: Towards | None = None
    base_noise: Float[Array, "b h w c"] | None = None
    residual_noise: Float[Array, "b f h w c"] | None = None
    known: Float[Array, "b f h w c"] | None = None
    order: Int[Array, "b f"] | None = None


FREE = Control()


class Noise(NamedTuple):
    """The two parts of a clip's noise, as `Control` takes them."""

    base: Float[Array, "b h w c"]
    residual: Float[Array, "b f h w c"]


def sample(
    model: Model,
    params: Mapping[str, Params],
    keys: Key[Array, " b"],
    condition: Condition,
    options: SampleOptions,
    control: Control = FREE,
) -> Float[Array, "b f h w c"]:
    """Clips in about [-1, 1], one per key; each depends on its own key, condition and control alone.

    The noise that a stochastic solver injects is drawn from the model's own prior, at each time anew; of the same
    content or motion it is the same.

    Known frames are returned as they are given. The base frame among them is what all others are predicted from: base
    first it takes the place of a sampled one, and jointly its noise b is known, in place of the base generator's
    estimate. Jointly it may also be one of the frames to find: then the known ones reach it through reconstruction
    guidance alone, for the base generator sees nothing of them. Base first that is refused.

    Raises ValueError for control of content or motion where noise is not decomposed, for given noise where sampling
    injects more, for known frames of a wrong number, and base first for known frames without the base frame.
    """
    _check(model, options, control)
    if isinstance(model, SuperResolution):
        condition = model.noised(condition, rng.streams(keys, 3)[2], jnp.full(len(keys), options.low_noise))
    if not isinstance(model, VideoFusion):
        denoise = model.denoiser(params, condition, options.guidance)
        return _solve(model, options, control, denoise, functools.partial(undivided_noise, model, keys, control))
    frame = None
    if control.known is not None and model.base_frame in options.known:
        frame = control.known[:, model.base_frame]
    draw = functools.partial(noise_parts, model, keys, control)
    if not model.base_first:
        denoise = _with_history(
            model, options, control, functools.partial(model.denoiser, params, condition, options.guidance, frame)
        )
        return _solve(model, options, control, denoise, lambda t: decompose.combine(*draw(t), model.lam))
    # Base first: the base frame is sampled from b alone; then, given it, the others from their own noise (8).
    if frame is None:
        base = model.base_denoiser(params, condition, options.guidance)
        frame = _solve(model, options, FREE, base, lambda t: draw(t).base)
    scale = jnp.sqrt(1 - decompose.per_pixel(model.lam))
    residual = _with_history(
        model, options, control, functools.partial(model.residual_denoiser, params, condition, frame, options.guidance)
    )
    clip = _solve(model, options, control, residual, lambda t: draw(t).residual, scale)
    return clip.at[:, model.base_frame].set(frame)


def invert(
    model: VideoFusion,
    params: Mapping[str, Params],
    clips: Float[Array, "b f h w c"],
    condition: Condition,
    options: SampleOptions,
    iterations: int = inversion.ITERATIONS,
) -> Noise:
    """The noises from which deterministic DDIM samples `clips` (in [-1, 1]): their content and their motion.

    The base noise depends on the base frame alone. A residual noise of lambda = 1 changes nothing, and is 0. Sampling
    must have the same grid and guidance, DDIM with eta 0, and `clip_x_0` None.
    """
    frame = clips[:, model.base_frame]
    back = functools.partial(inversion.invert, grid=options.grid, schedule=model.schedule, iterations=iterations)
    b = back(model.base_denoiser(params, condition, options.guidance), frame)
    scale = jnp.sqrt(1 - decompose.per_pixel(model.lam))
    if model.base_first:
        z = back(model.residual_denoiser(params, condition, frame, options.guidance), clips, scale=scale)
    else:
        z = back(model.denoiser(params, condition, options.guidance), clips)
        z -= jnp.sqrt(decompose.per_pixel(model.lam)) * b[:, None]
    return Noise(b, jnp.where(scale > 0, z / jnp.where(scale > 0, scale, 1), 0))


def _at(keys: Key[Array, " b"], t: Array | None) -> Key[Array, " b"]:
    """Each clip's key for the noise that is injected at time t; None for the noise that sampling starts from."""
    start, injected = rng.streams(keys, 2)
    return start if t is None else jax.vmap(lambda key: jax.random.fold_in(key, t))(injected)


def undivided_noise(model: Model, keys: Key[Array, " b"], control: Control, t: Array | None) -> Array:
    """The noise of each clip [b f h w c], which has no parts, that is injected at a time; None for the start."""
    return _ordered(jax.vmap(model.draw_noise)(_at(keys, t)), control)


def noise_parts(model: VideoFusion, keys: Key[Array, " b"], control: Control, t: Array | None) -> Noise:
    """Base and residual noise of each clip at a time, as `undivided_noise`."""

    def drawn(part: int, own: Key[Array, " b"], towards: Towards | None) -> Array:
        draw = jax.vmap(lambda key: model.prior.parts(key, model.shape)[part])
        mine = draw(_at(own, t))
        if towards is None:
            return mine
        angle = spread(towards.angle, mine)
        return jnp.cos(angle) * mine + jnp.sin(angle) * draw(_at(towards.keys, t))

    base, residual = (control.base_noise, control.residual_noise) if t is None else (None, None)
    if base is None:
        base = drawn(0, keys, control.content_towards)
    if residual is None:
        residual = drawn(1, keys if control.motion is None else control.motion, control.motion_towards)
    return Noise(base, _ordered(residual, control))


def _ordered(noise: Array, control: Control) -> Array:
    return noise if control.order is None else jax.vmap(lambda one, order: one[order])(noise, control.order)


def _solve(
    model: Model,
    options: SampleOptions,
    control: Control,
    denoise: solvers.Denoiser,
    draw: Callable[[Array | None], Array],
    scale: float | Array = 1.0,
) -> Float[Array, "..."]:
    """`solvers.solve` with all that both samplings share; with the known frames, where `control` has any.

    draw: the noise, by time, None for the start. scale: its amplitude relative to sigma.
    """
    z_T, clips = scale * draw(None), control.known
    if options.known and clips is not None:
        mask = known_frames.frame_mask(options.known, clips.shape[1])
        given = (clips, mask, model.schedule)
        if options.reconstruction:
            denoise = known_frames.reconstruction_guided(denoise, *given, options.reconstruction, scale)
        denoise = known_frames.known_frames(denoise, *given, scale)
        first = jnp.asarray(options.grid[0])
        z_T = known_frames.noised(clips, z_T, mask, model.schedule.alpha(first), model.schedule.sigma(first))
    sampled = solvers.solve(
        denoise, z_T, options.grid, model.schedule, solver=options.solver, scale=scale,
        noise=draw, clip_x_0=options.clip_x_0, clip_quantile=options.clip_quantile,
        restart=options.restart, remembers=options.guidance.remembers,
    )  # fmt: skip
    if options.known and clips is not None:
        return sampled.at[:, list(options.known)].set(clips[:, list(options.known)])
    return sampled


def _with_history(
    model: VideoFusion, options: SampleOptions, control: Control, make: Callable[..., solvers.Denoiser]
) -> solvers.Denoiser:
    """What `make` makes, of a residual generator that sees the known frames as `options.history` says."""
    if not options.known or control.known is None or not options.history:
        return make()
    mask = known_frames.frame_mask(options.known, model.shape[0]) & (np.arange(model.shape[0]) != model.base_frame)
    given = make(clean=Clean(control.known, mask))
    return given if options.history == 1 else known_frames.history_guided(given, make(), options.history)


def _check(model: Model, options: SampleOptions, control: Control) -> None:
    """Raises ValueError as `sample` says."""
    given = control._replace(known=None, order=None)
    if not isinstance(model, VideoFusion) and any(part is not None for part in given):
        raise ValueError("content and motion are controlled by decomposed noise, which this model does not predict")
    injects = options.solver.injects or options.restart is not None
    if injects and not (control.base_noise is None and control.residual_noise is None):
        raise ValueError("given noise determines a clip only where no other is injected: set eta to 0, and no restart")
    if bool(options.known) != (control.known is not None):
        raise ValueError("known frames need both the clips and the indices of the frames that are given")
    if not options.known:
        return
    known_frames.frame_mask(options.known, model.shape[0])
    if isinstance(model, VideoFusion) and model.base_first and model.base_frame not in options.known:
        raise ValueError(
            f"base first, the base frame, {model.base_frame}, is sampled before the others, without knowing any: it "
            f"must be among the known frames, which are {', '.join(map(str, options.known))}"
        )
