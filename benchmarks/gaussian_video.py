"""A video whose best denoisers are known: frames are jointly Gaussian, pixels independent.

With x ~ N(m, S) over frames, every conditional mean is linear, so samplers can be followed as matrices and the cost of
each approximation read off exactly. The tests prove the code against these closed forms; run as a program,

    python -m benchmarks.gaussian_video

prints how far each sampler's covariance is from the data's: what it costs that the base generator sees one frame only.
"""

import itertools

import numpy as np

from vf.diffusion.schedule import Schedule, cosine, time_grid


def covariance(frames: int, rho: float = 0.9) -> np.ndarray:
    """An AR(1) video: S_ij = rho^|i - j|, float64 [f f]."""
    return rho ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))


def noise_covariance(lam: np.ndarray) -> np.ndarray:
    """Cov(eps^i, eps^j) of the decomposed noise."""
    lam = np.asarray(lam, np.float64)
    return np.sqrt(np.outer(lam, lam)) + np.diag(1 - lam)


def full_predictor(S: np.ndarray, K: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """P with E[eps | all z] = P (z - alpha m), for noise of covariance K."""
    return sigma * K @ np.linalg.inv(alpha**2 * S + sigma**2 * K)


def joint_predictor(S: np.ndarray, lam: np.ndarray, base: int, alpha: float, sigma: float) -> np.ndarray:
    """P with eps_hat = P (z - alpha m) for VideoFusion with perfect networks: equations (4) to (6).

    The base generator is E[b | z^c], the residual generator E[sqrt(1 - lambda) r + ... | z' of the other frames].
    """
    f = len(lam)
    others = [i for i in range(f) if i != base]
    K = noise_covariance(lam)
    # Everything is linear in u = (x, eps), whose covariance is known.
    cov = np.block([[S, np.zeros((f, f))], [np.zeros((f, f)), K]])
    z = np.hstack([alpha * np.eye(f), sigma * np.eye(f)])
    gain = sigma / (alpha**2 * S[base, base] + sigma**2)
    b_hat = gain * z[base]
    root = np.sqrt(np.asarray(lam, np.float64))
    z_prime = z - sigma * np.outer(root, b_hat)
    own = np.hstack([np.zeros((f, f)), np.eye(f)]) - np.outer(root, b_hat)
    regression = own[others] @ cov @ z_prime[others].T @ np.linalg.inv(z_prime[others] @ cov @ z_prime[others].T)
    to_prime = np.eye(f) - sigma * np.outer(root, gain * np.eye(f)[base])  # z -> z'
    P = np.outer(root, gain * np.eye(f)[base])
    P[others] += regression @ to_prime[others]
    return P


def sampled_covariance(predictor, K: np.ndarray, schedule: Schedule, grid: np.ndarray) -> np.ndarray:
    """Covariance of deterministic DDIM's clips when eps_hat = predictor(alpha, sigma) z, by matrix recursion."""
    A = np.eye(len(K))
    for t, s in itertools.pairwise(grid):
        alpha, sigma = _at(schedule, t)
        alpha_s, sigma_s = _at(schedule, s)
        P = predictor(alpha, sigma)
        A = (alpha_s / alpha * (np.eye(len(K)) - sigma * P) + sigma_s * P) @ A
    return A @ K @ A.T


def _at(schedule: Schedule, t: int) -> tuple[float, float]:
    alpha_bar = 1.0 if t < 0 else schedule.alpha_bar[t]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def base_first_covariance(
    S: np.ndarray, lam: np.ndarray, base: int, schedule: Schedule, grid: np.ndarray
) -> np.ndarray:
    """As `sampled_covariance` for base-first sampling with perfect networks."""
    f = len(lam)
    others = [i for i in range(f) if i != base]
    one = sampled_covariance(lambda a, s: np.array([[s / (a * a * S[base, base] + s * s)]]), np.eye(1), schedule, grid)[
        0, 0
    ]
    regression = S[others, base] / S[base, base]
    inner = S[np.ix_(others, others)] - np.outer(regression, S[base, others])
    shrink = np.diag(np.sqrt(1 - np.asarray(lam, np.float64)[others]))
    A = shrink  # x^others = A r_T + regression x^c
    for t, s in itertools.pairwise(grid):
        alpha, sigma = _at(schedule, t)
        alpha_s, sigma_s = _at(schedule, s)
        noise = sigma**2 * shrink @ shrink @ np.linalg.inv(alpha**2 * inner + sigma**2 * shrink @ shrink)
        A = (alpha_s / alpha * (np.eye(f - 1) - noise) + sigma_s / sigma * noise) @ A
    cov = np.zeros((f, f))
    cov[base, base] = one
    cov[np.ix_(others, others)] = A @ A.T + one * np.outer(regression, regression)
    cov[base, others] = cov[others, base] = one * regression
    return cov


def main() -> None:
    """Prints the table of RESULTS.md."""
    from vf.diffusion.decompose import base_index, make_lambda

    frames = 8
    base, schedule, grid = base_index(frames), cosine(), time_grid(1000, 1000)
    S = covariance(frames)
    print("largest |Cov - S| over frame pairs; correlation of the base frame with its neighbour (data: 0.90)")
    print(f"{'lambda':>7}  {'all frames seen':>18}  {'paper, no context':>20}  {'base first':>18}")
    for value in (0.0, 0.25, 0.5, 0.75, 0.9):
        lam = make_lambda(value, frames, base).astype(np.float64)
        K = noise_covariance(lam)
        row = [
            sampled_covariance(lambda a, s, K=K: full_predictor(S, K, a, s), K, schedule, grid),
            sampled_covariance(lambda a, s, lam=lam: joint_predictor(S, lam, base, a, s), K, schedule, grid),
            base_first_covariance(S, lam, base, schedule, grid),
        ]
        cells = [
            f"{np.abs(C - S).max():.3f} ({C[base, base + 1] / np.sqrt(C[base, base] * C[base + 1, base + 1]):+.3f})"
            for C in row
        ]
        print(f"{value:>7}  {cells[0]:>18}  {cells[1]:>20}  {cells[2]:>18}")


if __name__ == "__main__":
    main()
