"""Noise priors: how the noises of a clip's frames are correlated. Every frame's own marginal is N(0, I).

    independent     eps^i = r^i                                         plain video diffusion
    decomposed      eps^i = sqrt(lambda^i) b + sqrt(1 - lambda^i) r^i   VideoFusion, `decompose` equation (1)
    mixed           eps^i = (a s + r^i) / sqrt(1 + a^2)                 PYoCo (Ge et al., ICCV 2023), section 4
    progressive     eps^0 = r^0,  eps^i = (a eps^{i-1} + r^i) / sqrt(1 + a^2)     PYoCo

Mixed noise is decomposed noise with lambda = a^2 / (1 + a^2) and no base frame.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vf import rng
from vf.diffusion import decompose

Shape = tuple[int, int, int, int]  # f h w c


class Prior(Protocol):
    """Draws one clip's noise; vmap over keys for a batch, so that no draw depends on the batch it is in."""

    def draw(self, key: jax.Array, shape: Shape) -> Float[Array, "f h w c"]:
        """Noise of one clip of `shape`, float32."""
        ...

    def covariance(self, frames: int) -> np.ndarray:
        """Covariance of eps^i and eps^j per pixel, float64 [f f], ones on the diagonal."""
        ...


@dataclasses.dataclass(frozen=True)
class Independent:
    """One noise per frame."""

    def draw(self, key: jax.Array, shape: Shape) -> Float[Array, "f h w c"]:
        return rng.normal(key, shape)

    def covariance(self, frames: int) -> np.ndarray:
        return np.eye(frames)


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposed:
    """VideoFusion's noise; `lam` float32 [f] with 1 at the base frame."""

    lam: np.ndarray

    def parts(self, key: jax.Array, shape: Shape) -> tuple[Float[Array, "h w c"], Float[Array, "f h w c"]]:
        """Base noise b and residual noises r^i, from separate keys: one may be fixed while the other is redrawn."""
        base_key, residual_key = jax.random.split(key)
        return rng.normal(base_key, shape[1:]), rng.normal(residual_key, shape)

    def draw(self, key: jax.Array, shape: Shape) -> Float[Array, "f h w c"]:
        return decompose.combine(*self.parts(key, shape), self.lam)

    def covariance(self, frames: int) -> np.ndarray:
        lam = np.asarray(self.lam, np.float64)
        return np.sqrt(np.outer(lam, lam)) + np.diag(1 - lam)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """PYoCo's mixed noise; `a` >= 0, 1 in the paper by our reading."""

    a: float = 1.0

    def draw(self, key: jax.Array, shape: Shape) -> Float[Array, "f h w c"]:
        shared_key, independent_key = jax.random.split(key)
        shared = rng.normal(shared_key, shape[1:])
        return (self.a * shared + rng.normal(independent_key, shape)) / np.sqrt(1 + self.a**2)

    def covariance(self, frames: int) -> np.ndarray:
        shared = self.a**2 / (1 + self.a**2)
        return shared + (1 - shared) * np.eye(frames)


@dataclasses.dataclass(frozen=True)
class Progressive:
    """PYoCo's progressive noise, an AR(1) process over frames; `a` >= 0, 2 in the paper by our reading."""

    a: float = 2.0

    def draw(self, key: jax.Array, shape: Shape) -> Float[Array, "f h w c"]:
        independent = rng.normal(key, shape)
        rho = self.a / np.sqrt(1 + self.a**2)

        def following(eps: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
            eps = rho * eps + np.sqrt(1 - rho**2) * r
            return eps, eps

        return jnp.concatenate([independent[:1], jax.lax.scan(following, independent[0], independent[1:])[1]])

    def covariance(self, frames: int) -> np.ndarray:
        rho = self.a / np.sqrt(1 + self.a**2)
        return rho ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
