"""One network over all frames: the baselines, and images as clips of one frame."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vf import rng
from vf.diffusion import gaussian, noise, solvers
from vf.diffusion.guidance import UNGUIDED, Guidance
from vf.diffusion.schedule import spread
from vf.models.model import Condition, Errors, Model, Network, check_prediction, mse
from vf.types import Params


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OneNetwork(Model):
    """One network over all frames, under any noise prior: VDM (independent noise), PYoCo (mixed, progressive)."""

    net: Network
    prior: noise.Prior
    prediction: gaussian.Prediction = "eps"
    loss: gaussian.Prediction = "eps"
    networks: ClassVar[tuple[str, ...]] = ("base",)

    def __post_init__(self) -> None:
        check_prediction(self.schedule, f"{self.networks[0]}.prediction", self.prediction)

    def draw_noise(self, key: Key[Array, ""]) -> Float[Array, "f h w c"]:
        """As `Model.draw_noise`."""
        return self.prior.draw(key, self.shape)

    def parts(self) -> dict[str, tuple[Network, int, int]]:
        """As `Model.parts`: it takes the base network's place, inflated over frames."""
        f, _, _, c = self.shape
        return {self.networks[0]: (self.net, c, f)}

    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Errors:
        """As `Model.errors`; the loss of every frame counts alike."""
        t_keys, noise_keys, drop_keys, dropout_keys = rng.streams(keys, 4)
        t = self._draw_t(t_keys) if t is None else t
        null = self._drop(drop_keys) if train else jnp.zeros(len(x), bool)
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        eps = jax.vmap(self.draw_noise)(noise_keys)
        z = gaussian.corrupt(x, eps, alpha, sigma)
        active_keys = dropout_keys if train else None
        name = self.networks[0]
        value = self._call(name, params[name], z, t, condition, null, dropout_keys=active_keys)
        eps_hat = gaussian.to_eps(self.prediction, value, z, alpha, sigma)
        loss = mse(value - gaussian.target(self.prediction, x, eps, alpha, sigma))
        loss *= gaussian.loss_weight(self.prediction, self.loss, alpha, sigma, self.loss_weight)[..., 0, 0, 0]
        return Errors(loss, mse(eps_hat - eps))

    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance = UNGUIDED
    ) -> solvers.Denoiser:
        """As `Model.denoiser`."""
        return self._guided(params, self.networks[0], self.prediction, self._levels, condition, guidance)
