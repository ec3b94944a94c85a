"""Fréchet and kernel video distance as they are published, with every difference between lineages explicit.

All of them compare logits of I3D with the same weights. What differs is how frames are resized to 224 x 224, the eps of
the batch norms, and how the distance is computed; numbers of two lineages do not compare. Those that compute in float32
carry its rounding of the features' variance: between linear algebra libraries they differ by thousandths of a distance
at best, and by as much as the distance itself where it is small (`benchmarks/float32_fvd.py`).

    FVD = |mu_r - mu_g|^2 + Tr(S_r + S_g - 2 (S_r S_g)^(1/2))       Unterthiner et al. 2018
    KVD = unbiased MMD^2 under (x.y / 400 + 1)^3, whole sets        DIGAN's, TATS's and LVDM's code; not clipped at 0
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.kernel import polynomial_mmd
from vf.nets import i3d, resize
from vf.nets.feature_network import Network

OFFICIAL_EPS = 1e-3  # eps of the batch norms in DeepMind's graph


@dataclasses.dataclass(frozen=True)
class Lineage:
    """How one family of public code computes the distance.

    Attributes:
        grid, aspect: how frames are resized to 224 x 224 (`vf.nets.resize`).
        eps: eps of the batch norms.
        ddof: covariances divide by n - ddof.
        dtype: dtype of means, covariances and the root.
        root: `sqrtm`, the root of S_r S_g, here by eigenvalues, which agree with scipy's sqrtm to rounding and do not
            fail where n < 400; or `svd`, TF-GAN's two roots by singular values, which takes no root of those below
            1e-10.
        code: repositories of the family.
    """

    grid: resize.Grid
    aspect: resize.Aspect
    eps: float
    ddof: int
    dtype: Literal["float64", "float32"]
    root: Literal["sqrtm", "svd"]
    code: str

    def facts(self) -> dict[str, Any]:
        """Everything that changes the number, for its protocol."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "code"}


LINEAGES: dict[str, Lineage] = {
    "google": Lineage("tf1", "squash", 1e-3, 1, "float64", "svd", "google-research/frechet_video_distance with TF-GAN"),
    # The resize inside its TorchScript is not public: half_pixel and the eps (hassony2's) are assumed.
    "styleganv": Lineage("half_pixel", "squash", 1e-3, 0, "float64", "sqrtm", "universome/stylegan-v"),
    "tats": Lineage("half_pixel", "squash", 1e-5, 1, "float32", "svd", "songweige/TATS, LVDM"),
    "videogpt": Lineage("half_pixel", "short_side", 1e-5, 1, "float32", "svd", "wilson1yan/VideoGPT, DIGAN, PVDM"),
    "cdfvd-i3d": Lineage("half_pixel", "squash", 1e-5, 0, "float64", "sqrtm", "songweige/content-debiased-fvd"),
    "junyaohu-styleganv": Lineage(
        "half_pixel", "short_side", 1e-3, 1, "float64", "sqrtm", "JunyaoHu/common_metrics_on_video_quality, styleganv"
    ),
    "junyaohu-videogpt": Lineage(
        "half_pixel", "short_side", 1e-5, 1, "float32", "svd", "JunyaoHu/common_metrics_on_video_quality, videogpt"
    ),
}  # fmt: skip


def network(params: Any, fingerprint: str, lineage: Lineage, *, exact: bool = True) -> Network:
    """I3D with the resize and eps of `lineage`; see `vf.nets.i3d.network`."""
    return i3d.network(
        params, fingerprint, eps=lineage.eps, grid=lineage.grid, aspect=lineage.aspect, exact=exact
    )  # fmt: skip


def fvd(real: np.ndarray, generated: np.ndarray, lineage: Lineage) -> float:
    """FVD of features [n 400] and [m 400]. Raises ValueError as `frechet_distance`."""
    return frechet_distance(
        Moments.of(real), Moments.of(generated), lineage.ddof, dtype=lineage.dtype, root=lineage.root
    )


def kvd(real: np.ndarray, generated: np.ndarray) -> float:
    """KVD of features [n 400] and [m 400], unbiased, so it may be negative. Raises ValueError as `polynomial_mmd`."""
    return polynomial_mmd(real, generated, degree=3, coef0=1.0, unbiased=True)


# FVD of black against white clips by the number of frames. Constant clips have no covariance, so that FVD is
# |f(black) - f(white)|^2, independent of resize, crop and counts. The figures are from the README of
# JunyaoHu/common_metrics_on_video_quality, with the true weights. Ports agree at even lengths; at odd ones they may
# differ by 2 % (Google's example says "around 131" at 15 frames).
BLACK_WHITE: Mapping[int, float] = {
    10: 569.2296293622766, 11: 486.3584254441098, 12: 551.9610501807822, 13: 146.36638178542628,
    14: 172.85453222258292, 15: 133.70311962583372, 16: 152.91750309134142, 17: 357.7402855012116,
    18: 382.4668646785276, 19: 306.73840379649727, 20: 338.4151811780684, 21: 78.17255931098194,
    22: 82.33446642508818, 23: 64.5885972265882, 24: 66.06281151704604, 25: 314.4803706985065,
    26: 316.6870909853734, 27: 288.97196946254184, 28: 287.7805184515251, 29: 152.1524775765185,
    30: 151.2564750365302,
}  # fmt: skip
TOLERANCE = 0.005  # of the value at 16 frames


def black_white(network: Network, frames: int = 16) -> float:
    """|f(black) - f(white)|^2 of constant clips of 64 x 64 pixels, float64."""
    import jax

    clips = np.zeros((2, frames, 64, 64, 3), np.uint8)
    clips[1] = 255
    black, white = np.asarray(jax.jit(network.apply)(network.params, clips), np.float64)
    return float(np.square(black - white).sum())


def weights_problem(value: float, eps: float = OFFICIAL_EPS) -> str:
    """What is probably wrong with I3D's weights, in one sentence; "" where `value` is that of FVD's weights.

    Args:
        value: `black_white` at 16 frames.
        eps: eps of the batch norms with which it was computed.
    """
    true = BLACK_WHITE[16]
    if abs(value / true - 1) <= TOLERANCE:
        return ""
    finding = f"black against white clips give {value:.4f} at 16 frames, where FVD's weights give {true:.4f}"
    if not np.isfinite(value):
        return f"{finding}: the weights hold numbers that overflow, so the file is damaged"
    if eps != OFFICIAL_EPS:
        return f"{finding} with eps {OFFICIAL_EPS:g}: the eps is {eps:g}, that of the VideoGPT lineage"
    return (
        f"{finding}: these are other weights (rgb_imagenet, of another data set, random), or weights for pixels in "
        "another range, so that distances are not FVD"
    )
