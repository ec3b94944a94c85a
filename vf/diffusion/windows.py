"""Long clips in windows of a model's length: which frames they have, what noise, and how their estimates are joined.

Window k of f frames holds the frames k s to k s + f - 1 of the clip; the stride s is f less the overlap.

In turn, all windows but the first know their first frames, as the last of the one before. Together, all are denoised
at once: at each step of the solver the clean estimates of the windows that hold a frame are averaged,

    x^i = sum_k w^(i - k s) x_k^(i - k s) / sum_k w^(i - k s)                                                        (1)

which is the least-squares agreement of the windows (MultiDiffusion, Bar-Tal et al. 2023, equation 5; for videos
Gen-L-Video, Wang et al. 2023). The noise that z leaves beside this estimate is the same average of the windows' own.

Shuffled noise (FreeNoise, Qiu et al. 2024, section 3.2): the new frames of a window have the noises of those that it
leaves behind, in another order. So the noises of each window are those of the first, and what independent noises decide
of a window stays, while their order still changes. Ours is one order for all clips and times, that needs no state.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Extension(NamedTuple):
    """How a long clip is cut into windows.

    Attributes:
        length: frames of a clip.
        frames: frames of a window.
        overlap: frames that a window shares with the one before.
    """

    length: int
    frames: int
    overlap: int

    @property
    def stride(self) -> int:
        """Frames from the beginning of a window to that of the next."""
        return self.frames - self.overlap

    @property
    def further(self) -> int:
        """Number of windows beside the first."""
        return -(-(self.length - self.frames) // self.stride)

    @property
    def covered(self) -> int:
        """Frames that the windows hold together; those beyond `length` are cut in the end."""
        return self.frames + self.further * self.stride


def shuffled(extension: Extension) -> Int[np.ndarray, "covered"]:
    """For each of the `covered` frames, the frame of the first window whose noise it has."""
    frames, stride = extension.frames, extension.stride
    order = np.arange(extension.covered)
    for k in range(extension.further):
        left = order[k * stride : (k + 1) * stride]
        order[frames + k * stride : frames + (k + 1) * stride] = np.random.default_rng(k).permutation(left)
    return order


def weights(frames: int, without: int | None = None) -> Float[np.ndarray, "f"]:
    """w of equation (1): largest in the middle of a window, where its estimates know frames on both sides.

    without: a frame of the window that it does not estimate.
    """
    found = np.minimum(np.arange(frames) + 1.0, frames - np.arange(frames)).astype(np.float32)
    if without is not None:
        found[without] = 0
    return found


def cut(clips: Float[np.ndarray, "n covered *s"], extension: Extension) -> Float[np.ndarray, "n k f *s"]:
    """All windows of the clips, as a view."""
    windows = np.lib.stride_tricks.sliding_window_view(clips, extension.frames, axis=1)
    return np.moveaxis(windows[:, :: extension.stride], -1, 2)


class Mean:
    """The average (1) over windows that are added one by one.

    Args:
        shape: of the clips, [n covered ...].
        extension: their windows.
        weight: of each frame of a window, [f].
    """

    def __init__(self, shape: tuple[int, ...], extension: Extension, weight: Float[np.ndarray, "f"]) -> None:
        self._sum, self._extension = np.zeros(shape, np.float32), extension
        self._weight = weight.reshape(-1, *[1] * (len(shape) - 2))

    def add(self, clip: int, number: int, window: Float[np.ndarray, "f *s"]) -> None:
        """Adds window `number` of a clip."""
        first = number * self._extension.stride
        self._sum[clip, first : first + self._extension.frames] += self._weight * window

    def value(self) -> Float[np.ndarray, "n covered *s"]:
        """The average, 0 for frames that no window estimates."""
        total = np.zeros((self._sum.shape[1], *self._weight.shape[1:]), np.float32)
        for number in range(self._extension.further + 1):
            first = number * self._extension.stride
            total[first : first + self._extension.frames] += self._weight
        return self._sum / np.where(total > 0, total, 1)
