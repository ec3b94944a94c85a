"""Super-resolution: one network that sees a clip of low resolution, enlarged, beside the channels of the noised one.

Each frame may be taken up by itself, by an image model, and then the noise decides whether frames agree: with one noise
for all of them (decomposed noise, lambda = 1) equal frames stay equal. Layers over frames let the network see to it.

In training the low clip is the clip itself, reduced, with noise of a drawn amplitude added, which the network is told:
what it takes up when sampling is made by another model, whose mistakes it is not to believe (noise-conditioning
augmentation; Ho et al., "Cascaded diffusion models for high fidelity image generation", 2021, section 4).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from vf import rng, video
from vf.diffusion import gaussian, solvers
from vf.diffusion import tiles as tiling
from vf.diffusion.guidance import UNGUIDED, Guidance
from vf.diffusion.schedule import spread
from vf.models.model import Condition, Errors, Network
from vf.models.one_network import OneNetwork
from vf.nets import resize
from vf.types import Params

GRID: resize.Grid = "antialiased_bicubic"
"""By which clips are reduced and enlarged: Karlo's, and about FFmpeg's, with which data is prepared."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SuperResolution(OneNetwork):
    """One network that takes clips of `low_size` x `low_size` up to `shape`.

    One that predicts x_0 gives the difference of the clip from the enlarged low clip, so that it begins as that.

    Attributes:
        low_size: height and width of the low clips, which divides those of `shape`.
        low_noise: the largest amplitude of the noise on them in training, drawn uniformly; 0 for none. Unless it is 0
            the network is told the amplitude, as its input `amplitude`.
        tiles: in which samples are made; None for whole clips. Training is of whole clips, of whatever `shape`.

    Raises ValueError where the sizes do not divide, an amplitude is negative, or tiles overlap by all of their size.
    """

    low_size: int
    low_noise: float = 0.0
    tiles: tiling.Tiles | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.shape[1:3]
        if self.low_size < 1 or any(side % self.low_size or side == self.low_size for side in sides):
            raise ValueError(
                f"clips of {self.low_size} x {self.low_size} cannot be taken up to {sides[0]} x {sides[1]}: the low "
                "size must be a whole part of the high one, such as a half"
            )
        if self.low_noise < 0:
            raise ValueError(f"the amplitude of noise on low clips must be 0 or more, got {self.low_noise}")
        if self.tiles is not None:
            tiling.places(self.shape, self.tiles)  # raises

    def parts(self) -> dict[str, tuple[Network, int, int]]:
        """As `Model.parts`."""
        f, _, _, c = self.shape
        return {"base": (self.net, 2 * c, f)}

    def condition(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """As `Model.condition`, and the low clips: those of `batch`, `low` f32 [b f h w c], or else its clips `video`
        u8 [b f H W c], reduced.

        Raises ValueError where `low` has another shape than the model takes.
        """
        low = batch["low"] if "low" in batch else self.reduced(video.from_uint8(batch["video"]))
        f, _, _, c = self.shape
        if low.shape[1:] != (f, self.low_size, self.low_size, c):
            raise ValueError(
                f"clips of {f} frames of {self.low_size} x {self.low_size} are taken up, and these have the shape "
                f"{list(low.shape[1:])}"
            )
        return {**super().condition(batch), "low": low}

    def reduced(self, x: Float[Array, "b f H W c"]) -> Float[Array, "b f h w c"]:
        """Clips of the high resolution at the low one."""
        _, height, width, _ = self.shape
        return resize.apply(x, resize.matrix(GRID, height, self.low_size), resize.matrix(GRID, width, self.low_size))

    def enlarged(self, low: Float[Array, "b f h w c"]) -> Float[Array, "b f H W c"]:
        """Clips of the low resolution at the high one, as the network sees them."""
        _, height, width, _ = self.shape
        return resize.apply(low, resize.matrix(GRID, self.low_size, height), resize.matrix(GRID, self.low_size, width))

    def interpolated(self, clips: UInt8[np.ndarray, "b f H W c"], grid: resize.Grid) -> UInt8[np.ndarray, "b f H W c"]:
        """Clips, reduced and enlarged by `grid`: what there is without a network."""
        _, height, width, _ = self.shape
        rows, columns = (resize.matrix(grid, self.low_size, side) for side in (height, width))
        low = self.reduced(video.from_uint8(clips))
        return np.asarray(video.to_uint8(resize.apply(low, rows, columns)))

    def noised(self, condition: Condition, keys: Key[Array, " b"], amplitude: Float[Array, " b"]) -> Condition:
        """The condition with noise of the amplitude `amplitude` on its low clips, of which the network will be told."""
        low = condition["low"]
        noise = jax.vmap(lambda key: rng.normal(key, low.shape[1:]))(keys)
        return {**condition, "low": low + spread(amplitude, low) * noise, "amplitude": amplitude}

    def errors(
        self,
        params: Mapping[str, Params],
        x: Float[Array, "b f h w c"],
        condition: Condition,
        keys: Key[Array, " b"],
        t: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Errors:
        """As `OneNetwork.errors`; in training low clips are noised."""
        if train and self.low_noise:
            noise_keys, amplitude_keys = rng.streams(keys, 6)[4:]
            amplitude = self.low_noise * jax.vmap(jax.random.uniform)(amplitude_keys)
            condition = self.noised(condition, noise_keys, amplitude)
        return super().errors(params, x, self._seen(condition), keys, t, train)

    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance = UNGUIDED
    ) -> solvers.Denoiser:
        """As `Model.denoiser`, tile by tile where there are any."""
        return self._in_tiles(super().denoiser, params, self._seen(condition), guidance)

    def _in_tiles(
        self, make: Callable[..., solvers.Denoiser], params: Mapping[str, Params], seen: Condition, guidance: Guidance
    ) -> solvers.Denoiser:
        """The denoiser that `make` makes for what a tile shows; `seen` is the condition of whole clips."""
        if (tiles := self.tiles) is None:
            return make(params, seen, guidance)

        def estimate(z: Array, t: Array) -> gaussian.Estimate:
            def tile(cut: Callable[[Array], Array]) -> Array:
                found = make(params, {**seen, "low": cut(seen["low"])}, guidance)(cut(z), t)
                assert isinstance(found, gaussian.Estimate)
                return found.x_0

            x_0 = tiling.mean(tile, z, tiles)
            now = solvers.Level(self.schedule.alpha(t), self.schedule.sigma(t))
            return gaussian.Estimate(x_0, solvers.noise_beside(x_0, z, now))

        return estimate

    def _seen(self, condition: Condition) -> Condition:
        """The condition as `_call` takes it: with the low clips enlarged, and always an amplitude."""
        amplitude = condition.get("amplitude", jnp.zeros(len(condition["low"])))
        return {**condition, "low": self.enlarged(condition["low"]), "amplitude": amplitude}

    def _call(
        self,
        name: str,
        params: Params,
        z: Array,
        t: Array,
        condition: Condition,
        null: Array,
        with_variance: bool = False,
        **kwargs: Any,
    ) -> Array:
        """As `Model._call`."""
        z = jnp.concatenate([z, condition["low"]], -1)
        if self.low_noise:
            kwargs["amplitude"] = condition["amplitude"]
        value = super()._call(name, params, z, t, condition, null, with_variance, **kwargs)
        if self.prediction == "x_0":
            value = value.at[..., : self.shape[-1]].add(condition["low"])
        return value

    def _further_inputs(self) -> dict[str, Array]:
        return {"amplitude": jnp.zeros(1)} if self.low_noise else {}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TwoNetworks(SuperResolution):
    """Karlo's super-resolution, which has another network, `last`, at time 0; it is not trained here."""

    last: Network
    networks: ClassVar[tuple[str, ...]] = ("base", "last")

    def parts(self) -> dict[str, tuple[Network, int, int]]:
        """As `Model.parts`."""
        parts = super().parts()
        return {**parts, "last": (self.last, *parts["base"][1:])}

    def denoiser(
        self, params: Mapping[str, Params], condition: Condition, guidance: Guidance = UNGUIDED
    ) -> solvers.Denoiser:
        """As `SuperResolution.denoiser`."""

        def make(params: Mapping[str, Params], seen: Condition, guidance: Guidance) -> solvers.Denoiser:
            first, last = (
                self._guided(params, name, self.prediction, self._levels, seen, guidance) for name in self.networks
            )
            return lambda z, t: jax.lax.cond(t > 0, first, last, z, t)

        return self._in_tiles(make, params, self._seen(condition), guidance)
