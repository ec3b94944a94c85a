import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.data.sprites import Sprites
from vf.metrics.frechet import Moments, frechet_distance
from vf.metrics.protocol import Score
from vf.scores import random_conv3d
from vf.scores.random_conv3d import PROTOCOL, RandomConv3dDistance, features

N, FRAMES, SIZE = 96, 8, 16


def clips_from(start: int) -> np.ndarray:
    source = Sprites(frames=FRAMES, size=SIZE, base_frame=3)
    return np.stack([source.clip(record)["video"] for record in range(start, start + N)])


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return clips_from(192)


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return clips_from(192 + N)


@pytest.fixture(scope="module")
def moments(real: np.ndarray) -> Moments:
    return Moments.of(features(real))


def distance(moments: Moments, clips: np.ndarray) -> float:
    return frechet_distance(moments, Moments.of(features(clips)))


def test_features_do_not_depend_on_the_batch_and_are_of_order_one(real: np.ndarray) -> None:
    whole = features(real)
    assert whole.shape == (N, PROTOCOL["dim"])
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(features(real[:35]), whole[:35])  # a full batch and one of 3
    assert np.isfinite(features(real[:2, :4, :8, :8], batch_size=2)).all()  # the smallest clip
    np.testing.assert_allclose(features(real[:13], batch_size=7), whole[:13], atol=1e-5)
    streams = whole.reshape(N, 3, -1)
    size = np.sqrt(np.square(streams).mean((0, 2)))
    assert size.min() > 0.1
    assert size.max() < 2
    assert (streams.std(0) > 1e-3).all()  # no dead feature


def test_a_product_of_patches_is_a_convolution() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 8, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)], mode="edge")
    expected = jax.lax.conv_general_dilated(
        padded, kernel, (2, 2, 1), "VALID", dimension_numbers=("NTHWC", "THWIO", "NTHWC"), precision="highest"
    )
    patches = random_conv3d._patches(jnp.asarray(x), (2, 2, 1))
    np.testing.assert_allclose(patches @ kernel.reshape(-1, 4), expected, atol=1e-4)


def test_streams_ignore_what_they_should_not_see() -> None:
    rng = np.random.default_rng(1)
    still = np.repeat(rng.integers(0, 256, (1, 1, SIZE, SIZE, 3), np.uint8), FRAMES, axis=1)
    flat = np.broadcast_to(rng.integers(0, 256, (1, FRAMES, 1, 1, 3), np.uint8), (1, FRAMES, SIZE, SIZE, 3))
    colour, _, motion = features(still).reshape(3, -1)
    assert abs(motion).max() < 1e-3 < abs(colour).max()
    colour, edge, motion = features(flat).reshape(3, -1)
    assert abs(edge).max() < 1e-3 < min(abs(colour).max(), abs(motion).max())


def noise(clips: np.ndarray, strength: float) -> np.ndarray:
    noisy = clips + np.random.default_rng(2).normal(0, strength, clips.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def blur(clips: np.ndarray, strength: float) -> np.ndarray:
    """A share `strength` of the light of each pixel goes to its neighbours along each axis of the frame."""
    x = clips.astype(float)
    for axis in (2, 3):
        x = (1 - strength) * x + strength / 2 * (np.roll(x, 1, axis) + np.roll(x, -1, axis))
    return x.round().astype(np.uint8)


def shuffle(clips: np.ndarray, strength: float) -> np.ndarray:
    """A share `strength` of the clips loses its order of frames."""
    rng = np.random.default_rng(3)
    return np.stack([clip[rng.permutation(FRAMES)] if k < strength * N else clip for k, clip in enumerate(clips)])


def change(clips: np.ndarray, strength: float) -> np.ndarray:
    """A share `strength` of the clips goes on as another clip from the middle on."""
    changed = clips.copy()
    count = round(strength * N)
    changed[:count, FRAMES // 2 :] = np.roll(clips, 1, 0)[:count, FRAMES // 2 :]
    return changed


@pytest.mark.parametrize(
    ("corrupt", "strengths"),
    [(noise, (10, 20, 40)), (blur, (0.25, 0.5)), (shuffle, (0.5, 1)), (change, (0.1, 0.3, 1))],
)
def test_corruption_raises_the_distance_monotonically(
    moments: Moments, other: np.ndarray, corrupt, strengths: tuple[float, ...]
) -> None:
    floor = distance(moments, other)
    distances = [distance(moments, corrupt(other, strength)) for strength in strengths]
    assert distances[0] > 1.5 * floor  # even at its weakest
    assert (np.diff(distances) > 0).all()
    assert distances[-1] > 5 * floor


def test_the_evaluator_reports_a_floor_at_the_same_n(real: np.ndarray, other: np.ndarray) -> None:
    both = np.concatenate([real, other])
    [score] = RandomConv3dDistance()(both, blur(other, 0.5)[:40])
    assert isinstance(score, Score)
    assert score.protocol["n"] == 40
    assert score.protocol["ddof"] == 1
    assert score.reference is not None
    assert score.value > 1.5 * score.reference
    [same] = RandomConv3dDistance()(real, other)
    assert same.reference is not None
    assert 1 / 3 < same.value / same.reference < 3
    with pytest.raises(ValueError, match="at least 2"):
        RandomConv3dDistance()(real[:3], other)
    with pytest.raises(ValueError, match="one shape"):
        RandomConv3dDistance()(real, other[:, 1:])


def test_a_score_needs_its_protocol() -> None:
    with pytest.raises(ValueError, match="protocol"):
        Score("fd", 1.0, None, {})


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3, 8, 8, 3), np.uint8), ((2, 4, 7, 8, 3), np.uint8), ((2, 4, 8, 8, 3), np.float32), ((4, 8, 8, 3), np.uint8)],
)
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match="expected"):
        features(np.zeros(shape, dtype))
