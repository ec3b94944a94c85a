"""One Gaussian corruption z = alpha x + sigma eps, and what a network may predict of it.

Three parametrisations, any of which gives the other two once z is known:

    eps                                                             (1)
    x_0 = (z - sigma eps) / alpha                                   (2)
    v   = (alpha eps - sigma x_0) / norm,  norm^2 = alpha^2 + sigma^2   (3)

v is that of Salimans & Ho 2022 (eq. 11 there) when alpha^2 + sigma^2 = 1. We divide by the norm so that it is also
defined for the residual frames, whose noise has amplitude sigma sqrt(1 - lambda); its variance stays of order one.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Prediction = Literal["eps", "x_0", "v"]
PREDICTIONS: tuple[Prediction, ...] = ("eps", "x_0", "v")


def corrupt(x: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """z = alpha x + sigma eps; all arrays broadcast."""
    return alpha * x + sigma * eps


def target(kind: Prediction, x: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """What a network that predicts `kind` should say, given the clean `x` and the noise `eps`."""
    if kind == "eps":
        return eps
    if kind == "x_0":
        return x
    if kind == "v":
        return (alpha * eps - sigma * x) / jnp.sqrt(alpha**2 + sigma**2)
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {kind!r}")


def to_x_0(kind: Prediction, value: Array, z: Array, alpha: Array, sigma: Array) -> Float[Array, "..."]:
    """The clean clip that `value`, a prediction of `kind` at z, implies. alpha > 0."""
    if kind == "eps":
        return (z - sigma * value) / alpha
    if kind == "x_0":
        return value
    if kind == "v":
        # z / norm and v are (x_0, eps) turned by the angle atan(sigma / alpha): turn back.
        norm = jnp.sqrt(alpha**2 + sigma**2)
        return (alpha * z / norm - sigma * value) / norm
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {kind!r}")


def to_noise(kind: Prediction, value: Array, z: Array, alpha: Array, sigma: Array) -> Float[Array, "..."]:
    """sigma * eps, the whole noise in z, as `value` implies it: defined for sigma = 0 too (then 0 for eps and v)."""
    if kind == "eps":
        return sigma * value
    return z - alpha * to_x_0(kind, value, z, alpha, sigma)


def to_eps(kind: Prediction, value: Array, z: Array, alpha: Array, sigma: Array) -> Float[Array, "..."]:
    """The noise eps that `value` implies. sigma > 0 unless `kind` is eps or v."""
    if kind == "eps":
        return value
    if kind == "x_0":
        return (z - alpha * value) / sigma
    if kind == "v":
        norm = jnp.sqrt(alpha**2 + sigma**2)
        return (sigma * z / norm + alpha * value) / norm
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {kind!r}")


def to_v(kind: Prediction, value: Array, z: Array, alpha: Array, sigma: Array) -> Float[Array, "..."]:
    """The v of equation (3) that `value` implies."""
    if kind == "v":
        return value
    x, eps = to_x_0(kind, value, z, alpha, sigma), to_eps(kind, value, z, alpha, sigma)
    return target("v", x, eps, alpha, sigma)


class Estimate(NamedTuple):
    """What is known of z = alpha x_0 + sigma eps: estimates of the clean clip and of the noise.

    `renoise` is the noise that a solver gives the clean clip for its next level, where that is another than eps.
    `variance` in [0, 1] is where a network has learned that the logarithm of a step's variance lies, from that of
    q(z_s | z_t, x_0) to that of q(z_t | z_s) (Nichol & Dhariwal 2021, eq. 15).
    `memory` is what guidance remembers of the evaluations so far, by network, and is given back to the next one.
    """

    x_0: jax.Array
    eps: jax.Array
    renoise: jax.Array | None = None
    variance: jax.Array | None = None
    memory: Any = None


def estimate(kind: Prediction, value: Array, z: Array, alpha: Array, sigma: Array) -> Estimate:
    """Both that `value`, a prediction of `kind` at z, implies.

    alpha > 0 for a prediction of eps. Where sigma is 0, z shows the clean clip: x_0 is z / alpha, and eps is 0.
    """
    noisy = sigma > 0
    alpha_of_clean, sigma = jnp.where(noisy, 1, alpha), jnp.where(noisy, sigma, 1)
    x_0, eps = (convert(kind, value, z, alpha, sigma) for convert in (to_x_0, to_eps))
    return Estimate(jnp.where(noisy, x_0, z / alpha_of_clean), jnp.where(noisy, eps, 0))


def loss_weight(predicted: Prediction, loss_kind: Prediction, alpha: Array, sigma: Array, largest: float) -> Array:
    """Factor that turns a squared error of a `predicted` kind into that of the `loss_kind` kind, at most `largest`.

    All three kinds are linear in one another once z is known, so errors differ by a factor of the noise level alone:
    e_eps = e_x alpha / sigma and e_v = e_x norm / sigma. Predicting x_0 with the loss of v (Li & He 2025, "Back to
    basics") learns clean content fast and fine detail too; without a bound the weight is infinite at sigma = 0.
    """
    if predicted == loss_kind:
        return jnp.ones_like(alpha)
    norm = jnp.sqrt(alpha**2 + sigma**2)
    # e_kind = scale[kind] / sigma * e_x; the two factors' ratio needs no division by sigma, which may be 0.
    up, down = ({"x_0": sigma, "eps": alpha, "v": norm}[kind] for kind in (loss_kind, predicted))
    return jnp.minimum((up / jnp.maximum(down, 1e-6)) ** 2, largest)


CONVERT = {"eps": to_eps, "x_0": to_x_0, "v": to_v}
