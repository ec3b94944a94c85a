"""A video whose best networks are known: frames are jointly Gaussian, pixels independent.

With x ~ N(m, S) over frames every conditional mean is linear. Perfect networks are therefore matrices, and the clips
of a sampler that uses them are Gaussian, with a mean and a covariance that follow from a recursion over its steps. All
of it is float64 and uses nothing of `vf.diffusion` but the table of the schedule, so that it can check the rest.

Means are left out: networks are matrices that act on deviations, z - alpha m for a noised frame, and give deviations.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vf.diffusion.schedule import Schedule

BLUR = 0.5
"""Amplitude of the noise through which an embedding shows the base frame."""


def covariance(frames: int, rho: float = 0.9) -> np.ndarray:
    """An AR(1) video: S_ij = rho^|i - j|, float64 [f f]."""
    return rho ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))


def noise_covariance(lam: np.ndarray) -> np.ndarray:
    """Cov(eps^i, eps^j) of the decomposed noise, [f f]."""
    lam = np.asarray(lam, np.float64)
    return np.sqrt(np.outer(lam, lam)) + np.diag(1 - lam)


def amplitudes(schedule: Schedule, t: int) -> tuple[float, float]:
    """alpha and sigma at step t; t = -1 is the clean clip."""
    alpha_bar = 1.0 if t < 0 else schedule.alpha_bar[t]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


class Estimate(NamedTuple):
    """What a perfect network knows: E[x | seen] and E[noise | seen], as matrices [frames seen]."""

    clean: np.ndarray
    noise: np.ndarray


def one_network(S: np.ndarray, K: np.ndarray, alpha: float, sigma: float) -> Estimate:
    """One network that sees all frames, whose noise has covariance K over frames."""
    zeros = np.zeros_like(S)
    x, eps = np.hstack([np.linalg.cholesky(S), zeros]), np.hstack([zeros, np.linalg.cholesky(K)])
    z = alpha * x + sigma * eps
    return Estimate(_mean(x, z), _mean(eps, z))


def two_networks(
    S: np.ndarray, lam: np.ndarray, base: int, alpha: float, sigma: float, context: str
) -> tuple[Estimate, Estimate]:
    """VideoFusion's perfect base and residual generators in a context; the latter answers for the other frames alone.

    The base generator sees z^c; the residual generator the other frames of z' (equation 5 of `vf.diffusion.decompose`),
    whose noise has amplitude sigma sqrt(1 - lambda). What they see beside it comes last: with context `embedding` both
    see x^c + BLUR n, a vector that knows something of the clean base frame; with `base_frame` the residual generator
    sees x^c, and b in (5) is the true one.
    """
    f, lam = len(lam), np.asarray(lam, np.float64)
    others = np.delete(np.arange(f), base)
    # Rows are combinations of independent unit normals: f of the clip, b, f of r, one of the embedding.
    normals = np.eye(2 * f + 2)
    x, b, r = np.linalg.cholesky(S) @ normals[:f], normals[f], normals[f + 1 : -1]
    eps = np.outer(np.sqrt(lam), b) + np.sqrt(1 - lam)[:, None] * r
    z = alpha * x + sigma * eps
    embedding = [x[base] + BLUR * normals[-1]]
    seen = np.stack([z[base], *(embedding if context == "embedding" else [])])
    generator = Estimate(_mean(x[base, None], seen), _mean(b[None], seen))
    known = b if context == "base_frame" else (generator.noise @ seen)[0]
    residual = (eps - np.outer(np.sqrt(lam), known))[others] / np.sqrt(1 - lam[others])[:, None]
    z_prime = z[others] - sigma * np.outer(np.sqrt(lam[others]), known)
    beside = {"none": [], "embedding": embedding, "base_frame": [x[base]]}[context]
    seen = np.vstack([z_prime, *beside])
    return generator, Estimate(_mean(x[others], seen), _mean(residual, seen))


def joint(S: np.ndarray, lam: np.ndarray, base: int, alpha: float, sigma: float, context: str) -> np.ndarray:
    """What both generators amount to (4)-(6): E[x | seen], from all frames of z and the embedding."""
    generator, residual = two_networks(S, lam, base, alpha, sigma, context)
    f, others = len(lam), np.delete(np.arange(len(lam)), base)
    seen = np.eye(f + generator.clean.shape[1] - 1)  # z of every frame, the embedding
    to_base = seen[[base, *range(f, len(seen))]]
    z_prime = seen[others] - sigma * np.outer(np.sqrt(lam[others]), generator.noise @ to_base)
    x = np.zeros((f, len(seen)))
    x[base] = generator.clean @ to_base
    x[others] = residual.clean @ np.vstack([z_prime, seen[f:]])
    return x


def walk(
    clean: Callable[[float, float], np.ndarray],
    mean: np.ndarray,
    covariance: np.ndarray,
    K: np.ndarray,
    schedule: Schedule,
    grid: np.ndarray,
    eta: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at the end of `grid` of what had `mean` and `covariance` at its first time.

    They are of z - alpha m over f frames, and of what is seen beside it, which stays as it is. `clean(alpha, sigma)` is
    the matrix of E[x - m | both], K [f f] the covariance of the injected noise. A step from t to s replaces z_t by a
    draw of a Gaussian around alpha_s x + k (z_t - alpha_t x), whose variance is eta^2 times that of DDPM's
    q(z_s | z_t, x); k is such that z_s has noise of variance sigma_s^2.
    """
    f = len(K)
    for t, s in itertools.pairwise(grid):
        (alpha, sigma), (alpha_s, sigma_s) = amplitudes(schedule, t), amplitudes(schedule, s)
        variance = eta**2 * (sigma_s / sigma) ** 2 * (1 - (alpha / alpha_s) ** 2)
        k = np.sqrt(sigma_s**2 - variance) / sigma
        step = np.eye(len(mean))
        step[:f] = k * step[:f] + (alpha_s - k * alpha) * clean(alpha, sigma)
        mean, covariance = step @ mean, step @ covariance @ step.T
        covariance[:f, :f] += variance * K
    return mean, covariance


def sampled(
    mean: np.ndarray,
    K: np.ndarray,
    clean: Callable[[float, float], np.ndarray],
    schedule: Schedule,
    grid: np.ndarray,
    eta: float = 0.0,
    beside: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a sampler's clips, and, as last entry, of what its networks see beside z, if anything.

    mean: of the video, and of what is seen beside z, whose variance is `beside`. K [f f] is the covariance of the noise
    that sampling starts from and injects. clean: as in `walk`.
    """
    f, cov = len(K), np.zeros((len(mean), len(mean)))
    cov[:f, :f] = K
    if beside is not None:
        cov[-1, -1] = beside
    start = -amplitudes(schedule, grid[0])[0] * mean
    start[f:] = 0
    offset, cov = walk(clean, start, cov, K, schedule, grid, eta)
    return mean + offset, cov


def base_first(
    S: np.ndarray, mean: np.ndarray, lam: np.ndarray, base: int, schedule: Schedule, grid: np.ndarray, eta: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """As `sampled` for VideoFusion sampled base first: the base frame to its end, then the others, which see it."""
    others = np.delete(np.arange(len(lam)), base)

    def clean(network: int) -> Callable[[float, float], np.ndarray]:
        return lambda alpha, sigma: two_networks(S, lam, base, alpha, sigma, "base_frame")[network].clean

    frame, variance = sampled(mean[[base]], np.eye(1), clean(0), schedule, grid, eta)
    K = np.diag(1 - np.asarray(lam, np.float64)[others])
    # What the others see beside them is the sampled base frame, whose mean need not be the video's.
    start = np.append(-amplitudes(schedule, grid[0])[0] * mean[others], frame - mean[base])
    cov = np.zeros((len(lam), len(lam)))
    cov[:-1, :-1], cov[-1, -1] = K, variance[0, 0]
    offset, cov = walk(clean(1), start, cov, K, schedule, grid, eta)
    order = np.argsort([*others, base])
    return mean + offset[order], cov[np.ix_(order, order)]


def pixels(clips: np.ndarray) -> np.ndarray:
    """[b f h w c] -> float64 [b h w c, f]: every pixel is a draw."""
    return np.moveaxis(np.asarray(clips, np.float64), 1, -1).reshape(-1, clips.shape[1])


def assert_distributed(draws: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """Independent Gaussian draws [n f] have this mean and covariance: to 5 standard errors, and 1e-3 for float32."""
    n, variance = len(draws), np.diag(cov)
    error = np.sqrt((np.outer(variance, variance) + cov**2) / n)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * np.sqrt(variance / n) + 1e-3)
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - cov), 5 * error + 1e-3)


def _mean(wanted: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The matrix of E[wanted | seen], both rows of combinations of the same independent unit normals."""
    return wanted @ seen.T @ np.linalg.inv(seen @ seen.T)
