"""The error that follows from VideoFusion's base generator seeing one frame only, in closed form.

    python -m benchmarks.gaussian_video

prints how far the covariance of each sampler's clips is from that of a Gaussian video, when all networks are perfect.
With the word `solvers` behind it, it prints how fast each solver converges, in the joint and in base-first sampling.
"""

import sys

import numpy as np

from tests import gaussian_video as closed
from tests.diffusion.test_solvers import ORDERS, flow_error
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


def solvers() -> None:
    """Prints the tables of RESULTS.md on solvers, and the slope of each row's last two errors."""
    counts = (10, 20, 40, 80, 160)
    for spacing in ("log_snr", "uniform"):
        for how, base_first in (("joint", False), ("base first", True)):
            print(f"times {spacing}, {how}\n| steps | {' | '.join(map(str, counts))} | slope |")
            for name, (solver, _) in ORDERS.items():
                errors = [flow_error(solver, spacing, steps, base_first) for steps in counts]
                cells = [f"{error:.3g}" for error in errors] + [f"{np.log2(errors[-2] / errors[-1]):.2f}"]
                print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    solvers() if sys.argv[1:] == ["solvers"] else main()
