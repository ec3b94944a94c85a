"""The error that follows from VideoFusion's base generator seeing one frame only, in closed form.

    python -m benchmarks.gaussian_video

prints how far the covariance of each sampler's clips is from that of a Gaussian video, when all networks are perfect.
"""

import numpy as np

from tests import gaussian_video as closed
from vf.diffusion.decompose import base_index, make_lambda
from vf.diffusion.schedule import cosine, time_grid


def main() -> None:
    """Prints the table of RESULTS.md."""
    frames = 8
    base, schedule, grid = base_index(frames), cosine(), time_grid(1000, 1000)
    S, mean = closed.covariance(frames), np.zeros(frames)
    print("largest |Cov - S| over frame pairs; correlation of the base frame with its neighbour (data: 0.90)")
    print(f"{'lambda':>7}  {'all frames seen':>18}  {'paper, no context':>20}  {'base first':>18}")
    for value in (0.0, 0.25, 0.5, 0.75, 0.9):
        lam = make_lambda(value, frames, base).astype(np.float64)
        K = closed.noise_covariance(lam)
        row = [
            closed.sampled(mean, K, lambda a, s, K=K: closed.one_network(S, K, a, s).clean, schedule, grid),
            closed.sampled(mean, K, lambda a, s, lam=lam: closed.joint(S, lam, base, a, s, "none"), schedule, grid),
            closed.base_first(S, mean, lam, base, schedule, grid),
        ]
        cells = [
            f"{np.abs(C - S).max():.3f} ({C[base, base + 1] / np.sqrt(C[base, base] * C[base + 1, base + 1]):+.3f})"
            for _, C in row
        ]
        print(f"{value:>7}  {cells[0]:>18}  {cells[1]:>20}  {cells[2]:>18}")


if __name__ == "__main__":
    main()
