"""Every grid against the library that it follows, or a transcription of its rule pixel by pixel."""

import math

import jax
import numpy as np
import pytest
from PIL import Image

from vf.nets import resize

SIZES = [
    (64, 224),
    (100, 224),
    (128, 224),
    (256, 224),
    (320, 224),
    (256, 299),
    (64, 299),
    (320, 112),
    (37, 50),
    (51, 7),
]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (height, width, channels)).astype(np.float32)


def resized(grid: str, x: np.ndarray, height: int, width: int) -> np.ndarray:
    return applied(x, (resize.matrix(grid, x.shape[0], height), resize.matrix(grid, x.shape[1], width)))


def applied(x: np.ndarray, matrices: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Resizes in float64; `resize.apply` has a separate test."""
    return np.einsum("Hh,Ww,hwc->HWc", *matrices, x.astype(np.float64), optimize=True)


def by_torch(x: np.ndarray, height: int, width: int, **how) -> np.ndarray:
    torch = pytest.importorskip("torch")
    # In float64, since torch's float32 sample points are themselves 1e-5 of a pixel off.
    y = torch.from_numpy(x.astype(np.float64).transpose(2, 0, 1)[None])
    return torch.nn.functional.interpolate(y, (height, width), **how)[0].numpy().transpose(1, 2, 0)


def close(found: np.ndarray, expected: np.ndarray, atol: float = 1e-9) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)  # of 255


TORCH = {
    "half_pixel": {"mode": "bilinear", "align_corners": False},
    "align_corners": {"mode": "bilinear", "align_corners": True},
    "antialiased": {"mode": "bilinear", "antialias": True},
    "antialiased_bicubic": {"mode": "bicubic", "antialias": True},
    "opencv_cubic": {"mode": "bicubic", "align_corners": False},
}


@pytest.mark.parametrize("grid", TORCH)
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_torch(grid: str, size: int, out: int) -> None:
    x = picture(size, size - 9)
    close(resized(grid, x, out, out + 3), by_torch(x, out, out + 3, **TORCH[grid]))


@pytest.mark.parametrize(("grid", "resample"), [("antialiased", "BILINEAR"), ("antialiased_bicubic", "BICUBIC")])
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_pillow_in_float(grid: str, resample: str, size: int, out: int) -> None:
    x = picture(size, size + 5)
    planes = [Image.fromarray(x[..., c]) for c in range(3)]
    assert planes[0].mode == "F"
    expected = np.stack([p.resize((out - 1, out), Image.Resampling[resample]) for p in planes], -1)
    close(resized(grid, x, out, out - 1), expected, 1e-3)  # Pillow keeps float32 between its two passes


@pytest.mark.parametrize(("grid", "resample"), [("antialiased", "BILINEAR"), ("antialiased_bicubic", "BICUBIC")])
@pytest.mark.parametrize(("size", "out"), [(64, 224), (320, 224)])
def test_pillow_in_bytes(grid: str, resample: str, size: int, out: int) -> None:
    x = picture(size, size + 5).astype(np.uint8)
    rows, columns = resize.matrix(grid, size, out), resize.matrix(grid, size + 5, out)
    made = np.asarray(resize.apply(x.astype(np.float32), rows, columns, quantise=True))
    expected = np.asarray(Image.fromarray(x).resize((out, out), Image.Resampling[resample]))
    np.testing.assert_array_equal(made, expected)


def lerped_by_tf1(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """tf.image.resize_bilinear of TF1 with its defaults: no half pixels, clamped below and to the right."""
    x, made = x.astype(np.float64), np.zeros((height, width, x.shape[2]))
    for i in range(height):
        y = i * x.shape[0] / height
        top = math.floor(y)
        bottom = min(top + 1, x.shape[0] - 1)
        for j in range(width):
            at = j * x.shape[1] / width
            left = math.floor(at)
            right = min(left + 1, x.shape[1] - 1)
            above = x[top, left] + (x[top, right] - x[top, left]) * (at - left)
            below = x[bottom, left] + (x[bottom, right] - x[bottom, left]) * (at - left)
            made[i, j] = above + (below - above) * (y - top)
    return made


def weights_of_opencv(t: float) -> list[float]:
    """OpenCV's interpolateCubic: A = -0.75, the last weight from the others."""
    a = -0.75
    w = [
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
    ]
    return [*w, 1 - sum(w)]


def cubic_by_opencv(x: np.ndarray, out: int) -> np.ndarray:
    """Along the first axis, borders repeated."""
    x, made = x.astype(np.float64), np.zeros((out, *x.shape[1:]))
    for j in range(out):
        at = (j + 0.5) * x.shape[0] / out - 0.5
        left = math.floor(at)
        for k, weight in enumerate(weights_of_opencv(at - left)):
            made[j] += weight * x[min(max(left - 1 + k, 0), x.shape[0] - 1)]
    return made


SMALL = [(8, 28), (13, 28), (16, 28), (32, 28), (40, 28), (7, 23), (23, 7), (5, 1), (1, 5)]  # pixel by pixel is slow


@pytest.mark.parametrize(("size", "out"), [*SMALL, (64, 112)])
def test_tf1(size: int, out: int) -> None:
    x = picture(size, size + 2, 1)
    close(resized("tf1", x, out, out + 1), lerped_by_tf1(x, out, out + 1))


def test_tf1_as_nvidia_emulates_it() -> None:
    torch = pytest.importorskip("torch")
    x = picture(64, 100)
    shifted = torch.eye(2, 3)
    shifted[0, 2] += 1 / 100 - 1 / 299
    shifted[1, 2] += 1 / 64 - 1 / 299
    grid = torch.nn.functional.affine_grid(shifted[None], [1, 3, 299, 299], align_corners=False)
    y = torch.from_numpy(x.transpose(2, 0, 1)[None])
    expected = torch.nn.functional.grid_sample(y, grid, "bilinear", "border", align_corners=False)
    close(
        resized("tf1", x, 299, 299), expected[0].numpy().transpose(1, 2, 0), 2e-2
    )  # the float32 grid is 5e-5 pixels off


@pytest.mark.parametrize(("size", "out"), SMALL)
def test_opencv(size: int, out: int) -> None:
    x = picture(size, size + 2)
    expected = cubic_by_opencv(cubic_by_opencv(x, out).swapaxes(0, 1), out + 1).swapaxes(0, 1)
    close(resized("opencv_cubic", x, out, out + 1), expected)


@pytest.mark.parametrize(("size", "out"), SIZES)
def test_opencv_itself(size: int, out: int) -> None:
    cv2 = pytest.importorskip("cv2")
    x = picture(size, size + 2)
    close(resized("opencv_cubic", x, out, out - 1), cv2.resize(x, (out - 1, out), interpolation=cv2.INTER_CUBIC), 0.05)


@pytest.mark.parametrize("grid", resize.GRIDS)
def test_invariances_of_the_grids(grid: str) -> None:
    for size, out in [*SIZES, *SMALL, (2, 9), (9, 2), (1, 1)]:
        made = resize.matrix(grid, size, out)
        assert made.shape == (out, size)
        assert made.dtype == np.float64
        np.testing.assert_allclose(made.sum(1), 1, atol=1e-12)
        if grid != "tf1" and out > 1:  # TF1's grid leans to the upper left, as do the corners of one pixel
            np.testing.assert_allclose(made, made[::-1, ::-1], atol=1e-12)
    for size in (1, 2, 7, 224):
        np.testing.assert_allclose(resize.matrix(grid, size, size), np.eye(size), atol=1e-12)
    if "cubic" not in grid:
        assert made.min() >= 0


def test_the_grids_differ() -> None:
    """So that no test above passes by taking one for another."""
    for size, out in ((64, 224), (256, 224)):
        made = [resize.matrix(grid, size, out) for grid in resize.GRIDS]
        alike = {
            (resize.GRIDS[i], resize.GRIDS[j])
            for j in range(len(made))
            for i in range(j)
            if abs(made[i] - made[j]).max() < 1e-3
        }
        assert alike == ({("half_pixel", "antialiased")} if size < out else set())  # antialiasing is for reducing


def by_videogpt(x: np.ndarray, size: int) -> np.ndarray:
    height, width = x.shape[:2]
    scale = size / min(height, width)
    target = (size, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), size)
    made = by_torch(x, *target, mode="bilinear", align_corners=False)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return made[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("height", "width"), [(240, 320), (320, 240), (128, 128), (64, 101), (101, 64), (100, 50), (50, 100), (100, 100)]
)
@pytest.mark.parametrize("size", [224, 112])
def test_aspect_policies(height: int, width: int, size: int) -> None:
    x = picture(height, width)
    cropped = applied(x, resize.matrices("half_pixel", "short_side", height, width, size))
    close(cropped, by_videogpt(x, size))
    squashed = applied(x, resize.matrices("half_pixel", "squash", height, width, size))
    close(squashed, by_torch(x, size, size, mode="bilinear", align_corners=False))


def test_videogpts_rounding_of_squares_is_reproduced() -> None:
    rows, columns = resize.matrices("half_pixel", "short_side", 100, 100, 224)
    np.testing.assert_array_equal(rows, resize.matrix("half_pixel", 100, 225)[:224])
    np.testing.assert_array_equal(columns, resize.matrix("half_pixel", 100, 224))


def test_apply_takes_clips() -> None:
    clips = np.random.default_rng(1).uniform(-1, 1, (2, 3, 11, 17, 4)).astype(np.float32)
    rows, columns = resize.matrices("tf1", "squash", 11, 17, 14)
    made = jax.jit(lambda x: resize.apply(x, rows, columns))(clips)
    assert made.shape == (2, 3, 14, 14, 4)
    assert made.dtype == np.float32
    expected = np.einsum("Hh,Ww,bfhwc->bfHWc", rows, columns, clips, optimize=True)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    flat = np.full((1, 11, 17, 1), 200, np.float32)
    np.testing.assert_allclose(resize.apply(flat, rows, columns), 200, rtol=1e-6)


@pytest.mark.parametrize(
    ("grid", "size", "out"), [("lanczos", 4, 4), ("tf1", 0, 4), ("tf1", 4, 0), ("half_pixel", -1, 4)]
)
def test_bad_arguments(grid: str, size: int, out: int) -> None:
    with pytest.raises(ValueError, match="expected a grid"):
        resize.matrix(grid, size, out)
    with pytest.raises(ValueError, match="expected a grid"):
        resize.matrices(grid, "short_side", size, size, out)


def test_an_unknown_aspect_policy() -> None:
    with pytest.raises(ValueError, match="expected an aspect policy of squash, short_side, got pad"):
        resize.matrices("tf1", "pad", 4, 4, 4)
