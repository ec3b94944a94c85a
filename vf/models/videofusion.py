"""VideoFusion: a base generator on the base frame, a residual generator on the others.

The decomposition itself is in `vf/diffusion/decompose.py`, whose equations are cited here by their numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vf import rng
from vf.diffusion import decompose, gaussian, noise, solvers
from vf.diffusion.guidance import UNGUIDED, Guidance
from vf.diffusion.known import Mask
from vf.diffusion.schedule import spread
from vf.models.model import Condition, Errors, Model, Network, check_prediction, mse
from vf.types import Params

Context = Literal["none", "embedding", "base_frame"]
CONTEXTS: tuple[Context, ...] = ("none", "embedding", "base_frame")


class Clean(NamedTuple):
    """Clips of which the residual generator sees some frames clean, never the base frame."""

    clips: Float[Array, "b f h w c"]
    mask: Mask


class _Images(NamedTuple):
    """Images of each clip, with noise and time of their own."""

    x: Float[Array, "b n h w c"]
    noise: Float[Array, "b n h w c"]
    t: Int[Array, "b n"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VideoFusion(Model):
    """Base generator on the base frame, residual generator on the others (`decompose`).

    Attributes beside `Model`'s:
        base, residual: the networks; `residual` sees 2c channels in context `base_frame`, else c.
        lam: float32 [f], 1 at `base_frame`.
        base_prediction, residual_prediction: what each network predicts; the paper's is eps.
        base_loss, residual_loss: what its error is measured in; the paper's is eps.
        context: what ties the base frame to the others: `none` (the bare equations), `embedding` (the paper: both
            networks see a vector of the clean base frame), `base_frame` (ours: the residual generator sees the clean
            base frame, and sampling is base first).
        base_images: images of each clip that train the base generator at each step: the base frame (the paper: 1) and
            frames drawn at random, each with a time and a noise of its own (ours: a base that is not pretrained needs
            many images, and a clip holds f of them).
        context_noise: in training the context frame gets noise of amplitude U(0, context_noise), so that the residual
            generator forgives a generated base frame its flaws; in units of the pixel range [-1, 1]. Known frames too.
        motion: field of the training clips whose value names their motion: those of one value in a batch share their
            residual noise (the paper's training guidance, by our reading of a summary of it); "" for none.
        known_share: share of the training clips of which the residual generator sees some other frames clean, each with
            a probability that is itself drawn: they are at time 0, whatever the clip's, and have no loss (each frame
            with its own noise level, as in Diffusion Forcing, Chen et al. 2024, here of two levels).
    """

    base: Network
    residual: Network
    lam: np.ndarray
    base_prediction: gaussian.Prediction = "eps"
    residual_prediction: gaussian.Prediction = "eps"
    base_loss: gaussian.Prediction = "eps"
    residual_loss: gaussian.Prediction = "eps"
    context: Context = "none"
    base_images: int = 1
    context_noise: float = 0.0
    motion: str = ""
    known_share: float = 0.0
    networks: ClassVar[tuple[str, ...]] = ("base", "residual")

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")
        if self.base_images < 1:
            raise ValueError(f"base_images counts the base frame, so it is at least 1, got {self.base_images}")
        check_prediction(self.schedule, "base.prediction", self.base_prediction)
        check_prediction(self.schedule, "residual.prediction", self.residual_prediction)
        others = np.delete(self.lam, self.base_frame, axis=-1)
        if self.schedule.ends_in_noise and np.any(others >= 1):
            raise ValueError(
                "a schedule that ends in noise (zero terminal SNR) needs lambda < 1 off the base frame: lambda = 1 "
                "leaves nothing to the residual generator there"
            )
        if self.base_first and np.any(others >= 1):
            raise ValueError(
                "base-first sampling needs lambda < 1 off the base frame: lambda = 1 leaves no noise there"
            )

    def draw_noise(self, key: Key[Array, ""]) -> Float[Array, "f h w c"]:
        """As `Model.draw_noise`."""
        return self.prior.draw(key, self.shape)

    def parts(self) -> dict[str, tuple[Network, int, int]]:
        """As `Model.parts`: the base generator reads the base frame alone."""
        f, _, _, c = self.shape
        return {"base": (self.base, c, 1), "residual": (self.residual, 2 * c if self.base_first else c, f)}

    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
        motion_keys: Key[Array, " b"] | None = None,
    ) -> Errors:
        """Errors (7) of clips `x` in [-1, 1] at times `t` (drawn where None); every draw comes from `keys`.

        motion_keys: from which the residual noise is drawn instead; equal ones share it.
        """
        c = self.base_frame
        t_keys, noise_keys, drop_keys, context_keys, image_keys, *dropout_keys, known_keys = rng.streams(keys, 8)
        t = self._draw_t(t_keys) if t is None else t
        null = self._drop(drop_keys) if train else jnp.zeros(len(x), bool)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        b, r = jax.vmap(lambda k: self.prior.parts(k, self.shape))(noise_keys)
        if motion_keys is not None:
            r = jax.vmap(lambda k: self.prior.parts(k, self.shape)[1])(motion_keys)
        eps = decompose.combine(b, r, self.lam)  # (1)
        z = gaussian.corrupt(x, eps, spread(alpha, x), spread(sigma, x))  # (2)

        base_dropout, residual_dropout = dropout_keys if train else (None, None)
        images = _Images(x[:, c : c + 1], b[:, None], t[:, None])
        if train and self.base_images > 1:
            images = jax.tree.map(lambda *v: jnp.concatenate(v, 1), images, self._more_images(x, image_keys))
        base_loss, b_hat = self._base_errors(params["base"], images, condition, null, base_dropout)  # (4)

        if self.base_first:
            # Base first: by the time the residual frames are sampled the base frame is clean, so b is known exactly.
            context = self._noised_context(x[:, c], context_keys) if train else x[:, c]
            known, beside = b, context
        else:
            known, beside = b_hat, None
        z_prime = decompose.residual_input(z, known, self.lam, sigma)  # (5)
        times: Array = t
        clean = None
        if train and self.known_share:
            clean, frames = self._clean_frames(x, known_keys)
            z_prime = jnp.where(clean[..., None, None, None], self.schedule.alpha(jnp.int32(0)) * frames, z_prime)
            times = jnp.where(clean, 0, t[:, None])
        inputs = self._residual_inputs(z_prime, alpha, beside)
        value = self._call(
            "residual", params["residual"], inputs, times, condition, null, dropout_keys=residual_dropout
        )
        kind = self.residual_prediction
        residual_loss = decompose.residual_error(kind, value, x, eps, known, self.lam, alpha, sigma)  # (7)
        residual_sigma = decompose.residual_sigma(self.lam, sigma)[..., 0, 0, 0]
        residual_loss *= gaussian.loss_weight(
            kind, self.residual_loss, alpha[:, None], residual_sigma, self.loss_weight
        )
        if clean is not None:
            residual_loss = jnp.where(clean, 0, residual_loss)
        eps_hat = decompose.eps_hat(kind, value, z_prime, known, self.lam, alpha, sigma)  # (6)
        unknown = 1 - np.where(np.arange(self.shape[0]) == c, 0, self.lam) if self.base_first else 1
        share = mse(eps_hat - eps) / unknown
        return Errors(residual_loss.at[:, c].set(base_loss), share.at[:, c].set(mse(b_hat - b)))

    def _more_images(self, x: Float[Array, "b f h w c"], keys: Key[Array, " b"]) -> _Images:
        """base_images - 1 frames of each clip, drawn at random, each with its own noise and time."""

        def draw(clip: Array, key: Key[Array, ""]) -> _Images:
            frame_key, noise_key, t_key = jax.random.split(key, 3)
            n = self.base_images - 1
            frames = clip[jax.random.randint(frame_key, (n,), 0, len(clip))]
            t = jax.random.randint(t_key, (n,), 0, self.schedule.steps)
            return _Images(frames, rng.normal(noise_key, frames.shape), t)

        return jax.vmap(draw)(x, keys)

    def _base_errors(
        self, params: Params, images: _Images, condition: Condition, null: Array, keys: Key[Array, " b"] | None
    ) -> tuple[Float[Array, " b"], Float[Array, "b h w c"]]:
        """Mean loss over each clip's images, and b_hat (4) of the first, from one pass over all of them.

        keys: for dropout.
        """
        n = images.t.shape[1]
        x, noise, t = (v.reshape(-1, *v.shape[2:]) for v in images)  # every image is an example
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        scales = (spread(alpha, x), spread(sigma, x))
        z = gaussian.corrupt(x, noise, *scales)
        condition = {name: jnp.repeat(given, n, axis=0) for name, given in condition.items()}
        keys = None if keys is None else jax.vmap(lambda key: jax.random.split(key, n))(keys).reshape(-1)
        value = self._call("base", params, z[:, None], t, condition, jnp.repeat(null, n), dropout_keys=keys)[:, 0]
        kind = self.base_prediction
        loss = mse(value - gaussian.target(kind, x, noise, *scales))
        loss *= gaussian.loss_weight(kind, self.base_loss, alpha, sigma, self.loss_weight)
        eps_hat = gaussian.to_eps(kind, value, z, *scales)
        return loss.reshape(-1, n).mean(1), eps_hat.reshape(-1, n, *x.shape[1:])[:, 0]

    def _clean_frames(
        self, x: Float[Array, "b f h w c"], keys: Key[Array, " b"]
    ) -> tuple[Bool[Array, "b f"], Float[Array, "b f h w c"]]:
        """Which frames of each clip the residual generator sees clean, never the base frame; and these, noised a little
        as the context frame is."""

        def draw(clip: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
            some_key, share_key, frames_key, amplitude_key, noise_key = jax.random.split(key, 5)
            share = jax.random.uniform(share_key) * jax.random.bernoulli(some_key, self.known_share)
            clean = jax.random.bernoulli(frames_key, share, (len(clip),)).at[self.base_frame].set(False)
            amplitude = self.context_noise * jax.random.uniform(amplitude_key)
            return clean, clip + amplitude * rng.normal(noise_key, clip.shape)

        return jax.vmap(draw)(x, keys)

    def _noised_context(self, frame: Array, keys: Key[Array, " b"]) -> Array:
        def one(frame: Array, key: Array) -> Array:
            amplitude = self.context_noise * jax.random.uniform(jax.random.fold_in(key, 0))
            return frame + amplitude * rng.normal(jax.random.fold_in(key, 1), frame.shape)

        return jax.vmap(one)(frame, keys)

    def _residual_inputs(self, z_prime: Array, alpha: Array, context: Array | None) -> Array:
        """z' with its base slot filled, and the context frame beside every frame's channels.

        The residual generator predicts the other frames only. Its base slot is zero, since temporal mixing would
        otherwise add information that equations (1) to (7) do not have; or, base first, alpha x^c, which is (8) at
        lambda = 1.
        """
        c = self.base_frame
        if context is None:
            return z_prime.at[:, c].set(0)
        z_prime = z_prime.at[:, c].set(spread(alpha, context) * context)
        return jnp.concatenate([z_prime, jnp.broadcast_to(context[:, None], z_prime.shape)], axis=-1)

    @property
    def prior(self) -> noise.Decomposed:
        """The decomposed noise (1)."""
        return noise.Decomposed(self.lam)

    @property
    def base_first(self) -> bool:
        """Whether the base frame is sampled to its end before the others begin."""
        return self.context == "base_frame"

    def base_denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance = UNGUIDED
    ) -> Callable[..., gaussian.Estimate]:
        """The base generator (4) as an image model: z_t^c [b h w c], t -> estimate of x^c and b."""
        base = self._guided(params, "base", self.base_prediction, self._levels, condition, guidance)

        def estimate(z: Array, t: Array, memory: Any = None) -> gaussian.Estimate:
            clips, memory = jax.tree.map(lambda frame: frame[:, None], (z, memory))
            return jax.tree.map(lambda frames: frames[:, 0], base(clips, t, memory))

        return estimate

    def residual_denoiser(
        self,
        params: Mapping[str, Params],
        condition: Condition,
        frame: Float[Array, "b h w c"] | None,
        guidance: Guidance = UNGUIDED,
        clean: Clean | None = None,
    ) -> solvers.Denoiser:
        """The residual generator given the clean base frame (8): z'_t [b f h w c], t -> estimate of x and r.

        At the base frame they are `frame`, or 0 where it sees none, and 0. clean: further frames that it sees clean.
        """
        residual = self._residual(params, condition, guidance, clean)

        def estimate(z_prime: Array, t: Array, memory: Any = None) -> gaussian.Estimate:
            found = residual(z_prime, t, memory, frame)
            return found._replace(x_0=found.x_0.at[:, self.base_frame].set(0 if frame is None else frame))

        return estimate

    def denoiser(
        self,
        params: Mapping[str, Params],
        condition: Condition,
        guidance: Guidance = UNGUIDED,
        base_frame: Float[Array, "b h w c"] | None = None,
        clean: Clean | None = None,
    ) -> solvers.Denoiser:
        """The joint predictor (4)-(6): z_t [b f h w c], t -> estimate. One base pass, on one frame.

        base_frame: the clean base frame where it is known. Then so is b, which is read off z^c, and the base generator
            is not run.
        clean: frames that the residual generator sees clean.
        """
        base = self.base_denoiser(params, condition, guidance)
        residual = self._residual(params, condition, guidance, clean)

        def estimate(z: Array, t: Array, memory: Any = None) -> gaussian.Estimate:
            c, (alpha, sigma) = self.base_frame, (self.schedule.alpha(t), self.schedule.sigma(t))
            if base_frame is None:
                frame = base(z[:, c], t, memory)
            else:
                b = solvers.noise_beside(base_frame, z[:, c], solvers.Level(alpha, sigma))
                frame = gaussian.Estimate(base_frame, b, b)
            # Reconstruction guidance asks for gradients of the clip's own noise, which nothing has to protect.
            z_prime = decompose.residual_input(z, frame.eps, self.lam, jnp.full(len(z), sigma), protect=False)
            others = residual(z_prime, t, memory)
            x_0, eps = others.x_0.at[:, c].set(frame.x_0), decompose.combine(frame.eps, others.eps, self.lam)
            kept = {**(frame.memory or {}), **(others.memory or {})} or None
            if frame.renoise is None or others.renoise is None:
                return gaussian.Estimate(x_0, eps, memory=kept)
            return gaussian.Estimate(x_0, eps, decompose.combine(frame.renoise, others.renoise, self.lam), memory=kept)

        return estimate

    def _residual(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance, clean: Clean | None = None
    ) -> Callable[..., gaussian.Estimate]:
        """(z'_t, t, memory, the context frame) -> estimate of x and r, the latter 0 where lambda = 1."""

        def levels(t: Array) -> tuple[Array, Array]:
            alpha, sigma = self._levels(t)
            return alpha, decompose.residual_sigma(self.lam, sigma[..., 0, 0, 0, 0])

        net = self._guided(
            params, "residual", self.residual_prediction, levels, condition, guidance.of_residual,
            None if clean is None else clean.mask,
        )  # fmt: skip

        def estimate(z_prime: Array, t: Array, memory: Any = None, frame: Array | None = None) -> gaussian.Estimate:
            if clean is not None:
                seen = self.schedule.alpha(jnp.int32(0)) * clean.clips
                z_prime = jnp.where(clean.mask[:, None, None, None], seen, z_prime)
            inputs = self._residual_inputs(z_prime, jnp.full(len(z_prime), self.schedule.alpha(t)), frame)
            channels = z_prime.shape[-1]
            return net(inputs[..., :channels], t, memory, inputs[..., channels:])

        return estimate
