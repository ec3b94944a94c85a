"""The two models: VideoFusion (base + residual generator) and one network over all frames (the baselines).

Both offer `init`, `errors` (training and validation losses) and `sample`; neither knows of configs, meshes or files.
The decomposition itself is in `vf/diffusion/decompose.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vf.diffusion import decompose, gaussian, guidance, priors, solvers
from vf.diffusion.schedule import Schedule, spread
from vf.types import Params

Context = Literal["none", "embedding", "base_frame"]
CONTEXTS: tuple[Context, ...] = ("none", "embedding", "base_frame")
Condition = Mapping[str, Array]
"""What a clip is conditioned on: `label` i32 [b], `embedding` f32 [b d], as far as the model uses them."""


class Network(Protocol):
    """What a model asks of `vf.nets.unet.UNet`; tests hand in closed forms."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Errors(NamedTuple):
    """Of each clip's frames: the training loss, and the share of the noise that was not found.

    `eps` is the mean squared error of eps_hat over the variance of what is unknown of eps: 0 for a network that knows
    all and 1 for one that says nothing, in every model and context. Unknown is all of eps^i, or with context
    `base_frame`, where b is known by then, r^i alone (variance 1 - lambda). One scale, but not one task: less noise
    hides the clip there, and the clean base frame is seen.
    """

    loss: Float[Array, "b f"]
    eps: Float[Array, "b f"]


class SampleOptions(NamedTuple):
    """How to sample. `grid` int32 [k + 1] from `schedule.time_grid`; `clip_x_0` bounds the clean estimate, None not."""

    grid: np.ndarray
    eta: float = 0.0
    guidance_scale: float = 1.0
    clip_x_0: float | None = 1.0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Model:
    """What both models share."""

    schedule: Schedule
    shape: tuple[int, int, int, int]  # f h w c of a clip
    base_frame: int  # array index of the base (centre) frame
    null_label: int | None = None  # the label that means "no class"; None for a model without labels
    embedding_dim: int = 0
    condition_dropout: float = 0.0  # share of training examples that lose their condition
    loss_weight: float = 20.0  # bound of the factor between a prediction's own error and its loss

    def _draw_t(self, keys: Key[Array, " b"]) -> Int[Array, " b"]:
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, self.schedule.steps))(keys)

    def _drop(self, keys: Key[Array, " b"]) -> Array:
        return jax.vmap(lambda k: jax.random.bernoulli(k, self.condition_dropout))(keys)

    def condition(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The fields of `batch` that this model conditions on. Raises ValueError where one is missing."""
        wanted = {"label": self.null_label is not None, "embedding": self.embedding_dim > 0}
        missing = [name for name, used in wanted.items() if used and name not in batch]
        if missing:
            raise ValueError(f"the model is conditioned on {missing[0]!r}, which the records do not have")
        return {name: batch[name] for name, used in wanted.items() if used}

    def _call(
        self,
        net: Network,
        params: Params,
        z: Array,
        t: Array,
        condition: Condition,
        null: Array,
        **kwargs: Any,
    ) -> Array:
        """One pass of `net`, with the condition of rows where `null` holds replaced by none."""
        if self.null_label is not None:
            kwargs["label"] = jnp.where(null, self.null_label, condition["label"])
        if "embedding" in condition:
            kwargs |= {"cond": condition["embedding"], "null": null}
        # A network with learned variance returns it after the prediction; DDIM has no use for it.
        return net.apply({"params": params}, z, t, **kwargs)[..., : self.shape[-1]]

    def _guided(self, net: Network, params: Params, condition: Condition, scale: float) -> Any:
        """(z, t scalar, *channels beside z) -> the network's prediction under classifier-free guidance."""
        names = list(condition)

        def predict(z: Array, t: Array, beside: Array, *values_null: Array) -> Array:
            *values, null = values_null
            given = dict(zip(names, values, strict=True))
            return self._call(net, params, jnp.concatenate([z, beside], -1), t, given, null)

        guided = guidance.guided(predict, scale if names else 1.0)

        def call(z: Array, t: Array, beside: Array | None = None) -> Array:
            beside = z[..., :0] if beside is None else beside
            return guided(z, jnp.full(len(z), t), beside, *condition.values())

        return call

    def _init(self, net: Network, key: Key[Array, ""], channels: int, frames: int) -> Any:
        _, h, w, _ = self.shape
        kwargs: dict[str, Any] = {}
        if self.null_label is not None:
            kwargs["label"] = jnp.zeros(1, jnp.int32)
        if self.embedding_dim:
            kwargs["cond"] = jnp.zeros((1, self.embedding_dim))
        return net.init(key, jnp.zeros((1, frames, h, w, channels)), jnp.zeros(1, jnp.int32), **kwargs)["params"]


def _draws(keys: Key[Array, " b"], number: int) -> list[Key[Array, " b"]]:
    """`number` independent sets of per-example keys."""
    return [jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(keys) for n in range(number)]


class _Images(NamedTuple):
    """Images of each clip, with noise and time of their own."""

    x: Float[Array, "b n h w c"]
    noise: Float[Array, "b n h w c"]
    t: Int[Array, "b n"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VideoFusion(_Model):
    """Base generator on the base frame, residual generator on the others (`decompose`).

    Attributes beside `_Model`'s:
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
            generator forgives a generated base frame its flaws; in units of the pixel range [-1, 1].
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
    networks: ClassVar = ("base", "residual")

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")
        if self.base_images < 1:
            raise ValueError(f"base_images counts the base frame, so it is at least 1, got {self.base_images}")
        others = np.delete(self.lam, self.base_frame, axis=-1)
        if self.context == "base_frame" and np.any(others >= 1):
            raise ValueError(
                "base-first sampling needs lambda < 1 off the base frame: lambda = 1 leaves no noise there"
            )

    def init(self, key: Key[Array, ""]) -> dict[str, Params]:
        """Parameters {base, residual}; pure, so that jax.eval_shape gives their shapes for free."""
        f, _, _, c = self.shape
        base_key, residual_key = jax.random.split(key)
        beside = c if self.context == "base_frame" else 0
        return {
            "base": self._init(self.base, base_key, c, 1),
            "residual": self._init(self.residual, residual_key, c + beside, f),
        }

    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Errors:
        """Errors (7) of clips `x` in [-1, 1] at times `t` (drawn where None); every draw comes from `keys`."""
        c = self.base_frame
        t_keys, noise_keys, drop_keys, context_keys, image_keys, *dropout_keys = _draws(keys, 7)
        t = self._draw_t(t_keys) if t is None else t
        null = self._drop(drop_keys) if train else jnp.zeros(len(x), bool)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        b, r = jax.vmap(lambda k: priors.Decomposed(self.lam).parts(k, self.shape))(noise_keys)
        eps = decompose.combine(b, r, self.lam)  # (1)
        z = gaussian.corrupt(x, eps, spread(alpha, x), spread(sigma, x))  # (2)

        base_dropout, residual_dropout = dropout_keys if train else (None, None)
        images = _Images(x[:, c : c + 1], b[:, None], t[:, None])
        if train and self.base_images > 1:
            images = jax.tree.map(lambda *v: jnp.concatenate(v, 1), images, self._more_images(x, image_keys))
        base_loss, b_hat = self._base_errors(params["base"], images, condition, null, base_dropout)  # (4)

        if self.context == "base_frame":
            # Base first: by the time the residual frames are sampled the base frame is clean, so b is known exactly.
            context = self._noised_context(x[:, c], context_keys) if train else x[:, c]
            known, beside = b, context
        else:
            known, beside = b_hat, None
        z_prime = decompose.residual_input(z, known, self.lam, sigma)  # (5)
        inputs = self._residual_inputs(z_prime, alpha, beside)
        value = self._call(self.residual, params["residual"], inputs, t, condition, null, dropout_keys=residual_dropout)
        kind = self.residual_prediction
        residual_loss = decompose.residual_error(kind, value, x, eps, known, self.lam, alpha, sigma)  # (7)
        own = decompose.residual_sigma(self.lam, sigma)[..., 0, 0, 0]
        residual_loss *= gaussian.loss_weight(kind, self.residual_loss, alpha[:, None], own, self.loss_weight)
        eps_hat = decompose.eps_hat(kind, value, z_prime, known, self.lam, alpha, sigma)  # (6)
        unknown = 1 - np.where(np.arange(self.shape[0]) == c, 0, self.lam) if self.context == "base_frame" else 1
        share = _mse(eps_hat - eps) / unknown
        return Errors(residual_loss.at[:, c].set(base_loss), share.at[:, c].set(_mse(b_hat - b)))

    def _more_images(self, x: Float[Array, "b f h w c"], keys: Key[Array, " b"]) -> "_Images":
        """base_images - 1 frames of each clip, drawn at random, each with its own noise and time."""

        def draw(clip: Array, key: Key[Array, ""]) -> _Images:
            frame_key, noise_key, t_key = jax.random.split(key, 3)
            n = self.base_images - 1
            frames = clip[jax.random.randint(frame_key, (n,), 0, len(clip))]
            t = jax.random.randint(t_key, (n,), 0, self.schedule.steps)
            return _Images(frames, jax.random.normal(noise_key, frames.shape), t)

        return jax.vmap(draw)(x, keys)

    def _base_errors(
        self, params: Params, images: "_Images", condition: Condition, null: Array, keys: Key[Array, " b"] | None
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
        value = self._call(self.base, params, z[:, None], t, condition, jnp.repeat(null, n), dropout_keys=keys)[:, 0]
        kind = self.base_prediction
        loss = _mse(value - gaussian.target(kind, x, noise, *scales))
        loss *= gaussian.loss_weight(kind, self.base_loss, alpha, sigma, self.loss_weight)
        eps_hat = gaussian.to_eps(kind, value, z, *scales)
        return loss.reshape(-1, n).mean(1), eps_hat.reshape(-1, n, *x.shape[1:])[:, 0]

    def _noised_context(self, frame: Array, keys: Key[Array, " b"]) -> Array:
        def one(frame: Array, key: Array) -> Array:
            amplitude = self.context_noise * jax.random.uniform(jax.random.fold_in(key, 0))
            return frame + amplitude * jax.random.normal(jax.random.fold_in(key, 1), frame.shape)

        return jax.vmap(one)(frame, keys)

    def _residual_inputs(self, z_prime: Array, alpha: Array, context: Array | None) -> Array:
        """z' with its base slot filled, and the context frame beside every frame's channels.

        The residual generator answers for the other frames only. Its base slot holds nothing, lest temporal mixing
        bring in what the bare equations do not have; or, base first, what equation (8) says for lambda = 1: alpha x^c.
        """
        c = self.base_frame
        if context is None:
            return z_prime.at[:, c].set(0)
        z_prime = z_prime.at[:, c].set(spread(alpha, context) * context)
        return jnp.concatenate([z_prime, jnp.broadcast_to(context[:, None], z_prime.shape)], axis=-1)

    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance_scale: float = 1.0
    ) -> solvers.Denoiser:
        """The joint predictor (4)-(6): z_t [b f h w c], t -> eps_hat. One base pass, on one frame."""
        base = self._guided(self.base, params["base"], condition, guidance_scale)
        residual = self._guided(self.residual, params["residual"], condition, guidance_scale)
        c = self.base_frame

        def eps_hat(z: Array, t: Array) -> Array:
            alpha, sigma = (jnp.full(len(z), s) for s in (self.schedule.alpha(t), self.schedule.sigma(t)))
            z_c = z[:, c]
            value = base(z_c[:, None], t)[:, 0]
            b_hat = gaussian.to_eps(self.base_prediction, value, z_c, spread(alpha, z_c), spread(sigma, z_c))
            z_prime = decompose.residual_input(z, b_hat, self.lam, sigma)
            value = residual(self._residual_inputs(z_prime, alpha, None), t)
            return decompose.eps_hat(self.residual_prediction, value, z_prime, b_hat, self.lam, alpha, sigma)

        return eps_hat

    def sample(
        self,
        params: Mapping[str, Params],
        keys: Key[Array, " b"],
        condition: Condition,
        options: SampleOptions,
    ) -> Float[Array, "b f h w c"]:
        """Clips in about [-1, 1], one per key; each depends on its own key and condition alone."""
        prior = priors.Decomposed(self.lam)
        start_keys, inject_keys = _draws(keys, 2)
        b, r = jax.vmap(lambda k: prior.parts(k, self.shape))(start_keys)

        def injected(t: Array) -> tuple[Array, Array]:
            return jax.vmap(lambda k: prior.parts(jax.random.fold_in(k, t), self.shape))(inject_keys)

        kwargs: dict[str, Any] = {"eta": options.eta, "clip_x_0": options.clip_x_0}
        if self.context != "base_frame":
            denoise = self.denoiser(params, condition, options.guidance_scale)
            z_T = decompose.combine(b, r, self.lam)
            noise = lambda t: decompose.combine(*injected(t), self.lam)  # noqa: E731
            return solvers.ddim(denoise, z_T, options.grid, self.schedule, noise=noise, **kwargs)

        frame = self._sample_base(params, b, condition, options, lambda t: injected(t)[0])
        scale = jnp.sqrt(1 - decompose.per_pixel(self.lam))
        residual = self._guided(self.residual, params["residual"], condition, options.guidance_scale)

        def r_hat(z_prime: Array, t: Array) -> Array:
            alpha, sigma = (jnp.full(len(z_prime), s) for s in (self.schedule.alpha(t), self.schedule.sigma(t)))
            inputs = self._residual_inputs(z_prime, alpha, frame)
            value = residual(inputs[..., : z_prime.shape[-1]], t, inputs[..., z_prime.shape[-1] :])
            own = decompose.residual_sigma(self.lam, sigma)
            noise = gaussian.to_noise(self.residual_prediction, value, z_prime, spread(alpha, z_prime), own)
            return jnp.where(own > 0, noise / jnp.where(own > 0, own, 1), 0)

        noise = lambda t: injected(t)[1]  # noqa: E731
        x = solvers.ddim(r_hat, scale * r, options.grid, self.schedule, scale=scale, noise=noise, **kwargs)
        return x.at[:, self.base_frame].set(frame)

    def _sample_base(
        self, params: Mapping[str, Params], b: Array, condition: Condition, options: SampleOptions, noise: Any
    ) -> Float[Array, "b h w c"]:
        """The base frame alone, from its noise b_T: an image model, sampled."""
        base = self._guided(self.base, params["base"], condition, options.guidance_scale)

        def b_hat(z: Array, t: Array) -> Array:
            value = base(z[:, None], t)[:, 0]
            return gaussian.to_eps(self.base_prediction, value, z, self.schedule.alpha(t), self.schedule.sigma(t))

        kwargs: dict[str, Any] = {"eta": options.eta, "clip_x_0": options.clip_x_0}
        return solvers.ddim(b_hat, b, options.grid, self.schedule, noise=noise, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OneNetwork(_Model):
    """One network over all frames, under any noise prior: VDM (independent noise), PYoCo (mixed, progressive)."""

    net: Network
    prior: priors.Prior
    prediction: gaussian.Prediction = "eps"
    loss: gaussian.Prediction = "eps"
    networks: ClassVar = ("base",)

    def init(self, key: Key[Array, ""]) -> dict[str, Params]:
        """Parameters {base}: it takes the base network's place, inflated over frames."""
        f, _, _, c = self.shape
        return {"base": self._init(self.net, key, c, f)}

    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Errors:
        """As `VideoFusion.errors`."""
        t_keys, noise_keys, drop_keys, dropout_keys = _draws(keys, 4)
        t = self._draw_t(t_keys) if t is None else t
        null = self._drop(drop_keys) if train else jnp.zeros(len(x), bool)
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        eps = jax.vmap(lambda k: self.prior.draw(k, self.shape))(noise_keys)
        z = gaussian.corrupt(x, eps, alpha, sigma)
        kept = dropout_keys if train else None
        value = self._call(self.net, params["base"], z, t, condition, null, dropout_keys=kept)
        eps_hat = gaussian.to_eps(self.prediction, value, z, alpha, sigma)
        loss = _mse(value - gaussian.target(self.prediction, x, eps, alpha, sigma))
        loss *= gaussian.loss_weight(self.prediction, self.loss, alpha, sigma, self.loss_weight)[..., 0, 0, 0]
        return Errors(loss, _mse(eps_hat - eps))

    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance_scale: float = 1.0
    ) -> solvers.Denoiser:
        """z_t [b f h w c], t -> eps_hat."""
        net = self._guided(self.net, params["base"], condition, guidance_scale)

        def eps_hat(z: Array, t: Array) -> Array:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            return gaussian.to_eps(self.prediction, net(z, t), z, alpha, sigma)

        return eps_hat

    def sample(
        self,
        params: Mapping[str, Params],
        keys: Key[Array, " b"],
        condition: Condition,
        options: SampleOptions,
    ) -> Float[Array, "b f h w c"]:
        """As `VideoFusion.sample`."""
        start_keys, inject_keys = _draws(keys, 2)
        z_T = jax.vmap(lambda k: self.prior.draw(k, self.shape))(start_keys)

        def injected(t: Array) -> Array:
            return jax.vmap(lambda k: self.prior.draw(jax.random.fold_in(k, t), self.shape))(inject_keys)

        denoise = self.denoiser(params, condition, options.guidance_scale)
        return solvers.ddim(
            denoise,
            z_T,
            options.grid,
            self.schedule,
            eta=options.eta,
            noise=injected,
            clip_x_0=options.clip_x_0,
        )


Model = VideoFusion | OneNetwork


def _mse(difference: Array) -> Array:
    """Mean square over height, width and channels."""
    return jnp.mean(difference**2, axis=(-3, -2, -1))
