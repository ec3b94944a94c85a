"""VideoFusion's decomposed diffusion (Luo et al., CVPR 2023, arXiv 2303.08320): the whole method on one page.

x^i is frame i of a clip of N frames, t the noising step, alpha_t^2 = alpha_bar_t and sigma_t^2 = 1 - alpha_bar_t.

The paper
    eps_t^i = sqrt(lambda^i) b_t + sqrt(1 - lambda^i) r_t^i           b common to all frames, r^i each frame's own   (1)
    z_t^i   = alpha_t x^i + sigma_t eps_t^i                                                                         (2)
    base frame c = floor(N / 2), counted from 1, with lambda^c = 1, so that eps^c = b                                (3)
    b_hat   = z_phi^b(z_t^c, t)                                       one pass of the base generator, on one frame   (4)
    z'_t^i  = z_t^i - sqrt(lambda^i) sigma_t [b_hat]_sg               ~ alpha x^i + sigma sqrt(1 - lambda^i) r^i     (5)
    eps_hat^c = b_hat,   eps_hat^i = sqrt(lambda^i) b_hat + sqrt(1 - lambda^i) z_psi^r(z'_t^i, t, i)                 (6)
    L_t^i   = || eps^c - b_hat ||^2                                                                        for i = c
            = || eps^i - sqrt(lambda^i) [b_hat]_sg - sqrt(1 - lambda^i) z_psi^r(z'^i, t, i) ||^2   for i != c        (7)

With the true b for b_hat the second line is (1 - lambda^i) || r^i - r_hat^i ||^2, so that a frame counts as much as its
residual noise does in eps. The paper does not specify how the frames' errors add up: see `losses` for our choice.

[.]_sg stops gradients: the residual frames' errors, large early in training, must not reach a pretrained base
generator. Equation (7) writes the stop-gradient on b_hat alone; that it holds inside z' (5) as well is our reading of
the paper's sentence that no gradient flows to the base generator where i != c.

What ties the base frame to the others. Equation (5) takes away what the noise had in common, and the base generator
sees one frame only, so nothing in (1)-(7) makes the base frame show what the others show. The paper conditions both
generators on the CLIP embedding of the clean base frame (context `embedding` here). Context `base_frame` is ours:

Base first (ours)
    The base frame's trajectory depends on b_T alone, so it can be sampled to its end before the other frames begin.
    Then b_t is known, and (5) with the true b is an ordinary diffusion of frame i with less noise,
        z'_t^i = alpha_t x^i + sigma_t sqrt(1 - lambda^i) r_t^i,                                                     (8)
    sampled given the clean base frame. For exact networks this is exact for any lambda; lambda only shifts the
    residual frames' log-SNR, log(alpha^2 / sigma^2), by -log(1 - lambda).

Every function is pure. Clips are `[... f h w c]`; lambda is `[f]` or `[... f]` (one vector per clip).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vf.diffusion import gaussian
from vf.diffusion.schedule import spread

Lambda = Float[Array | np.ndarray, "*m f"]
"""One vector for all clips, [f], or one for each, [... f]; in [0, 1]."""


def base_index(frames: int) -> int:
    """Array index of the paper's base frame floor(N / 2), which counts from 1: N // 2 - 1. `frames` >= 2."""
    if frames < 2:
        raise ValueError(f"a clip needs at least 2 frames, one of them the base frame; got {frames}")
    return frames // 2 - 1


def make_lambda(value: float | tuple[float, ...], frames: int, base: int) -> np.ndarray:
    """lambda as float32 [f]: `value` (one for all frames, or one per frame) in [0, 1], and 1 at the base frame (3).

    The paper uses 0.5 for every frame but the base frame. Raises ValueError for values outside [0, 1], a vector of
    another length than `frames`, or a base frame outside the clip.
    """
    if frames < 2:
        raise ValueError(f"a clip needs at least 2 frames, one of them the base frame; got {frames}")
    if not 0 <= base < frames:
        raise ValueError(f"the base frame must be one of 0..{frames - 1}, got {base}")
    lam = np.asarray(value, np.float32)
    if lam.ndim > 1 or (lam.ndim == 1 and len(lam) != frames):
        raise ValueError(f"lambda must be one number or {frames} numbers (one per frame), got shape {lam.shape}")
    if not np.all((lam >= 0) & (lam <= 1)):
        raise ValueError(f"lambda must lie in [0, 1], got {np.unique(lam).tolist()}")
    lam = np.array(np.broadcast_to(lam, (frames,)))
    lam[base] = 1
    return lam


def combine(
    base: Float[Array, "*n h w c"], residual: Float[Array, "*n f h w c"], lam: Lambda
) -> Float[Array, "*n f h w c"]:
    """Equation (1), and (6) when given estimates: sqrt(lambda^i) base + sqrt(1 - lambda^i) residual^i."""
    lam = per_pixel(lam)
    return jnp.sqrt(lam) * base[..., None, :, :, :] + jnp.sqrt(1 - lam) * residual


def residual_input(
    z: Float[Array, "*n f h w c"],
    b_hat: Float[Array, "*n h w c"],
    lam: Lambda,
    sigma: Float[Array, "*n"],
    protect: bool = True,
) -> Float[Array, "*n f h w c"]:
    """z' of equation (5). `protect`: no gradient passes to `b_hat`, as in training."""
    b_hat = (jax.lax.stop_gradient(b_hat) if protect else b_hat)[..., None, :, :, :]
    return z - jnp.sqrt(per_pixel(lam)) * spread(sigma, z) * b_hat


def residual_sigma(lam: Lambda, sigma: Float[Array, "*n"]) -> Float[Array, "*n f 1 1 1"]:
    """Noise amplitude of z' (5, 8): sigma sqrt(1 - lambda^i)."""
    return sigma[..., None, None, None, None] * jnp.sqrt(1 - per_pixel(lam))


def eps_hat(
    prediction: gaussian.Prediction,
    value: Float[Array, "*n f h w c"],
    z_prime: Float[Array, "*n f h w c"],
    b_hat: Float[Array, "*n h w c"],
    lam: Lambda,
    alpha: Float[Array, "*n"],
    sigma: Float[Array, "*n"],
) -> Float[Array, "*n f h w c"]:
    """Equation (6). `value` is the residual generator's output: r_hat in the paper, or x_0 or v of z' (ours).

    Where lambda = 1 (the base frame) eps_hat is b_hat, whatever the residual generator predicts.
    """
    noise = gaussian.to_noise(prediction, value, z_prime, spread(alpha, z_prime), residual_sigma(lam, sigma))
    residual_eps = jnp.where(per_pixel(lam) < 1, noise / spread(sigma, z_prime), 0)  # sqrt(1 - lambda) r_hat
    return jnp.sqrt(per_pixel(lam)) * b_hat[..., None, :, :, :] + residual_eps


def residual_error(
    prediction: gaussian.Prediction,
    value: Float[Array, "*n f h w c"],
    x: Float[Array, "*n f h w c"],
    eps: Float[Array, "*n f h w c"],
    b_hat: Float[Array, "*n h w c"],
    lam: Lambda,
    alpha: Float[Array, "*n"],
    sigma: Float[Array, "*n"],
) -> Float[Array, "*n f"]:
    """Each frame's error in equation (7), second line, as a mean over pixels. No gradient passes to `b_hat`.

    With a value of kind eps it is the paper's loss. z' is alpha x + sigma r', r' = eps - sqrt(lambda) [b_hat]_sg,
    exactly and for any b_hat, so a generator of kind x_0 or v has a well-defined target too. The squared errors of all
    three kinds carry the (1 - lambda) with which (7) weights r: where lambda = 1 the value is unused and costs nothing.
    """
    lam = per_pixel(lam)
    residual_eps = eps - jnp.sqrt(lam) * jax.lax.stop_gradient(b_hat)[..., None, :, :, :]
    if prediction == "eps":
        error = residual_eps - jnp.sqrt(1 - lam) * value
    elif prediction == "x_0":
        error = jnp.sqrt(1 - lam) * (x - value)
    else:
        alpha, sigma = spread(alpha, x), spread(sigma, x)
        norm = jnp.sqrt(alpha**2 + (1 - lam) * sigma**2)
        error = (alpha * residual_eps - (1 - lam) * sigma * x) / norm - jnp.sqrt(1 - lam) * value
    return jnp.mean(error**2, axis=(-3, -2, -1))


def losses(errors: Float[Array, "b f"], base_frame: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What the two generators are trained on, given each frame's error (7): their losses, base first.

    Joint training minimises the sum. The base generator's loss is the mean over clips of the base frame's error, the
    residual generator's is the mean over clips and all other frames. Neither sends a gradient to the other's network,
    so the weight between the two only matters where an optimizer mixes them. The choice is ours.
    """
    others = jnp.delete(errors, base_frame, axis=1, assume_unique_indices=True)
    return errors[:, base_frame].mean(), others.mean()


def per_pixel(lam: Lambda) -> Float[Array, "*m f 1 1 1"]:
    """lambda with axes for height, width and channels."""
    return jnp.asarray(lam)[..., None, None, None]
