import dataclasses
import re

import numpy as np
import pytest

from vf.data.sprites import BACKGROUNDS, COLOURS, SHAPES, Factors, Sprites, alpha_mask, render
from vf.scores import sprites
from vf.scores.sprites import SpriteAnalysis, SpriteScores, analyse, followed, nearest_path, scores

N, FRAMES, SIZE, BASE = 48, 8, 16, 3
SHARES = (
    "found", "colour_constant", "background_constant", "shape_constant", "content_constant", "smooth", "moving",
    "valid",
)  # fmt: skip


def draw(n: int, frames: int = FRAMES, size: int = SIZE, start: int = 0) -> tuple[np.ndarray, list[Factors]]:
    source = Sprites(frames=frames, size=size, base_frame=frames // 2 - 1, split="test")
    factors = [source.factors(record) for record in range(start, start + n)]
    return np.stack([render(f, size) for f in factors]), factors


def palette(factors: list[Factors]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks [n f h w 1], sprite colours and backgrounds [n 1 1 1 3] of the clips."""
    masks = np.stack([alpha_mask(f.shape, f.path, SIZE) for f in factors])[..., None]
    colours = np.array(list(COLOURS.values()))[[f.colour for f in factors]]
    backgrounds = np.array(list(BACKGROUNDS.values()))[[f.background for f in factors]]
    return masks, colours[:, None, None, None], backgrounds[:, None, None, None]


def pixels(x: np.ndarray) -> np.ndarray:
    return np.round(x).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, list[Factors]]:
    return draw(N)


@pytest.fixture(scope="module")
def seen(real: tuple[np.ndarray, list[Factors]]) -> SpriteAnalysis:
    return analyse(real[0], BASE)


def test_every_factor_of_a_real_clip_is_read_off(real, seen: SpriteAnalysis) -> None:
    clips, factors = real
    masks, colours, backgrounds = palette(factors)
    for name, field in (("shape", "shape"), ("colour", "colour_index"), ("background", "background_index")):
        truth = np.array([getattr(f, name) for f in factors])
        np.testing.assert_array_equal(getattr(seen, field), np.broadcast_to(truth[:, None], (N, FRAMES)))
    np.testing.assert_allclose(seen.position, np.stack([f.path for f in factors]), atol=0.02)
    np.testing.assert_allclose(seen.colour, np.broadcast_to(colours[:, 0, 0], seen.colour.shape), atol=0.5)
    np.testing.assert_array_equal(seen.background, np.broadcast_to(backgrounds[:, 0, 0], seen.background.shape))
    np.testing.assert_allclose(seen.area, masks.sum((2, 3, 4)), rtol=0.01)
    grid = np.arange(SIZE) + 0.5
    rows, columns = masks.sum((3, 4)) @ grid, masks.sum((2, 4)) @ grid
    middle = np.stack([rows, columns], -1) / masks.sum((2, 3))
    np.testing.assert_allclose(seen.centroid, middle, atol=0.02)
    assert seen.residual.max() < 0.3
    assert clips.dtype == np.uint8


@pytest.mark.parametrize(("frames", "size"), [(8, 16), (16, 32), (8, 24)])
def test_real_clips_are_right_in_everything(frames: int, size: int) -> None:
    clips, _ = draw(24, frames, size, start=100)
    result = scores(clips, frames // 2 - 1)
    assert {name: result[name] for name in SHARES} == dict.fromkeys(SHARES, 1.0)
    assert result["base_frame_gap"] == pytest.approx(1, abs=0.1)
    assert result["base_frame_colour"] < 0.2
    assert result["base_frame_background"] == 0


def test_real_clips_show_everything(real) -> None:
    result = scores(real[0], BASE)
    seen = [result[f"{name}_seen"] for name in ("shapes", "colours", "backgrounds")]
    assert seen == [len(SHAPES), len(COLOURS), len(BACKGROUNDS)]
    one = scores(real[0][:1], BASE)
    assert [one[f"{name}_seen"] for name in ("shapes", "colours", "backgrounds")] == [1, 1, 1]
    none = scores(np.zeros_like(real[0][:2]), BASE)
    assert [none[f"{name}_seen"] for name in ("shapes", "colours", "backgrounds")] == [0, 0, 0]


def test_a_little_noise_is_forgiven(real) -> None:
    noisy = pixels(real[0] + np.random.default_rng(0).normal(0, 4, real[0].shape))
    result = scores(noisy, BASE)
    assert {name: result[name] for name in SHARES} == dict.fromkeys(SHARES, 1.0)


def test_clips_without_a_sprite_are_not_detected(real) -> None:
    clips, factors = real
    rng = np.random.default_rng(1)
    masks, colours, backgrounds = palette(factors)
    elsewhere = np.stack([alpha_mask(f.shape, SIZE - f.path, SIZE) for f in factors])[..., None]
    apart = np.linalg.norm([2 * f.path - SIZE for f in factors], axis=-1) > 4
    two = np.maximum(masks, elsewhere)
    mean = np.mean([clips[rng.permutation(N)] for _ in range(6)], axis=0)
    grid = np.arange(SIZE) + 0.5
    y, x = (np.stack([f.path[:, axis] for f in factors])[..., None, None] for axis in range(2))
    disc = np.clip(0.24 * SIZE + 0.5 - np.hypot(grid[:, None] - y, grid - x), 0, 1)[..., None]  # of a sprite's area
    half = {
        name: masks * (side[..., None])
        for name, side in {
            "upper": np.stack([np.arange(SIZE)[:, None] + 0.5 < f.path[:, 0, None, None] for f in factors]),
            "left": np.stack([np.arange(SIZE)[None] + 0.5 < f.path[:, 1, None, None] for f in factors]),
        }.items()
    }
    bad = {
        "noise": rng.integers(0, 256, clips.shape, np.uint8),
        "background": pixels(backgrounds + 0 * masks),
        "noisy background": pixels(backgrounds + rng.normal(0, 4, clips.shape)),
        "mean of six": pixels(mean),
        "disc": pixels(disc * colours + (1 - disc) * backgrounds),
        "ghost": pixels(0.5 * masks * colours + (1 - 0.5 * masks) * backgrounds),
        "inverted": 255 - clips,
    } | {name: pixels(part * colours + (1 - part) * backgrounds) for name, part in half.items()}
    for name, shown in bad.items():
        result = analyse(shown, BASE)
        assert not result.found.any(), name
        assert not (result.content_constant | result.smooth | result.valid).any(), name
    assert not analyse(pixels(two * colours + (1 - two) * backgrounds), BASE).found[apart].any()


def shares(clips: np.ndarray) -> dict[str, float]:
    result = scores(clips, BASE)
    return {name: result[name] for name in ("colour_constant", "background_constant", "shape_constant", "smooth")}


def test_each_kind_of_change_is_distinguished(real) -> None:
    _, factors = real
    half = FRAMES // 2
    right = {"colour_constant": 1.0, "background_constant": 1.0, "shape_constant": 1.0, "smooth": 1.0}
    for name, kinds, share in (
        ("colour", COLOURS, "colour_constant"),
        ("background", BACKGROUNDS, "background_constant"),
        ("shape", SHAPES, "shape_constant"),
    ):
        changed = []
        for f in factors:
            after = dataclasses.replace(f, **{name: (getattr(f, name) + 1) % len(kinds)})
            changed.append(np.concatenate([render(f, SIZE)[:half], render(after, SIZE)[half:]]))
        result = shares(np.stack(changed))
        assert result == right | {share: 0.0}
    result = scores(np.stack(changed), BASE)
    assert result["found"] == 1
    assert result["content_constant"] == result["valid"] == 0


def test_a_slow_drift_of_colour_is_detected_within_one_palette_entry(real) -> None:
    masks, colours, backgrounds = palette(real[1])
    drift = np.linspace(0, 1, FRAMES)[None, :, None, None, None] * np.sign(128 - colours)
    for size, share in ((8, 1.0), (24, 0.0)):  # below and above COLOUR_DRIFT; both near the palette colour
        result = analyse(pixels(masks * (colours + size * drift) + (1 - masks) * backgrounds), BASE)
        assert (result.colour_index == result.colour_index[:, :1]).all()
        assert result.colour_constant.mean() == share
    drift = np.linspace(0, 1, FRAMES)[None, :, None, None, None] * np.sign(128 - backgrounds)
    for size, share in ((4, 1.0), (12, 0.0)):
        result = analyse(pixels(masks * colours + (1 - masks) * (backgrounds + size * drift)), BASE)
        assert result.background_constant.mean() == share


def test_irregular_motion_is_not_smooth(real) -> None:
    clips, factors = real
    rng = np.random.default_rng(2)
    shuffled = np.stack([clip[rng.permutation(FRAMES)] for clip in clips])
    jittered = [dataclasses.replace(f, path=f.path + rng.normal(0, 1, f.path.shape)) for f in factors]
    for bad in (shuffled, np.stack([render(f, SIZE) for f in jittered])):
        assert analyse(bad, BASE).smooth.mean() < 0.05
    still = analyse(np.repeat(clips[:, :1], FRAMES, 1), BASE)
    assert still.smooth.all()
    assert not (still.moving | still.valid).any()
    assert analyse(clips[:, ::-1], BASE).smooth.all()  # the law knows no direction of time


def test_nearest_path_measures_in_pixels() -> None:
    _, factors = draw(200)
    paths = np.stack([f.path for f in factors])
    error, velocity = nearest_path(paths, SIZE)
    speed = np.linalg.norm(velocity, axis=1)
    assert error.max() < 0.1
    step = np.linalg.norm(abs(np.diff(paths, axis=1)).max(1), axis=-1)  # a bounce only shortens steps
    np.testing.assert_allclose(speed, step, atol=0.05)
    jitter = np.random.default_rng(3).normal(0, 0.5, paths.shape)
    error, _ = nearest_path(paths + jitter, SIZE)
    # Two of eight numbers a coordinate are fitted: sqrt(2 coordinates * 6 / 8) * 0.5, a little less for the bounces.
    assert np.sqrt(np.square(error).mean()) == pytest.approx(0.61, abs=0.05)


def test_a_base_frame_of_other_content_opens_the_gap(real) -> None:
    clips = real[0].copy()
    clips[:, BASE] = np.roll(clips[:, BASE], 1, axis=0)
    result = scores(clips, BASE)
    assert result["found"] == 1
    assert result["content_constant"] < 0.1
    assert result["base_frame_gap"] > 3
    assert result["base_frame_colour"] > 30
    assert result["base_frame_background"] > 30


def test_the_evaluator_compares_with_real_clips(real) -> None:
    clips = real[0]
    found = {score.name: score for score in SpriteScores(BASE)(clips[:30], clips[30:, ::-1])}
    assert found["sprites/valid"].value == found["sprites/valid"].reference == 1
    assert found["sprites/valid"].protocol["unexplained_below"] == sprites.MAX_UNEXPLAINED
    assert set(found) == {f"sprites/{key}" for key in scores(clips, BASE)}


@pytest.mark.parametrize(
    "clips",
    [
        np.zeros((2, 8, 16, 16, 3), np.float32),
        np.zeros((2, 8, 16, 12, 3), np.uint8),
        np.zeros((8, 16, 16, 3), np.uint8),
        np.zeros((0, 8, 16, 16, 3), np.uint8),
        np.zeros((2, 2, 16, 16, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(clips: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        analyse(clips, 1)


def test_real_clips_follow_their_captions_and_no_others():
    """Off by the table's steps, at the quarters' edges, a way may be its neighbour's."""
    source = Sprites(frames=8, size=SIZE, base_frame=3)
    factors = [source.factors(record) for record in range(60)]
    clips = np.stack([source.clip(record)["video"] for record in range(60)])
    found = followed(clips, 3, [one.caption for one in factors])
    assert all(found[name].all() for name in ("shape", "colour", "background", "content"))
    assert found["way"].mean() >= 0.95
    np.testing.assert_array_equal(found["all"], found["way"])
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    turned = [re.sub("left|right|up|down", lambda way: opposite[way[0]], one.caption) for one in factors]
    assert not followed(clips, 3, turned)["way"].any()
    for name, other in (("shape", "disc"), ("colour", "pink"), ("background", "beige")):
        position = {"shape": 2, "colour": 1, "background": 6}[name]
        captions = [
            " ".join(other if k == position else word for k, word in enumerate(one.caption.split())) for one in factors
        ]
        wrong = followed(clips, 3, captions)
        assert not wrong[name].any()
        assert not wrong["all"].any()
    with pytest.raises(ValueError, match="expected captions such as"):
        followed(clips[:1], 3, ["a dog"])
