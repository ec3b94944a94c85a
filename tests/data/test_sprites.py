import dataclasses

import numpy as np
import pytest

from vf.data import sprites
from vf.data.share import Share
from vf.data.sprites import BACKGROUNDS, COLOURS, CONTENTS, MARGIN, RADIUS, SHAPES, SPEED, Sprites

FRAMES, SIZE, BASE = 8, 16, 3


@pytest.fixture(scope="module")
def source() -> Sprites:
    return Sprites(frames=FRAMES, size=SIZE, base_frame=BASE)


def test_a_clip_is_a_function_of_split_and_record(source: Sprites) -> None:
    again = Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, length=5)  # whatever the clip's length
    for record in (4, 0, 3):  # in any order
        for name, value in source.clip(record).items():
            np.testing.assert_array_equal(value, again.clip(record, np.random.default_rng(9))[name])
    videos = {source.clip(record)["video"].tobytes() for record in range(50)}
    assert len(videos) == 50
    test = Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, split="test")
    assert not videos & {test.clip(record)["video"].tobytes() for record in range(50)}


def test_only_known_splits() -> None:
    with pytest.raises(KeyError):
        Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, split="dev")


def test_colours_are_those_of_the_palette(source: Sprites) -> None:
    for record in range(60):
        factors, video = source.factors(record), source.clip(record)["video"]
        assert video.shape == (FRAMES, SIZE, SIZE, 3)
        assert video.dtype == np.uint8
        mask = sprites.alpha_mask(factors.shape, factors.path, SIZE)
        colour = list(COLOURS.values())[factors.colour]
        background = list(BACKGROUNDS.values())[factors.background]
        assert (video[mask == 1] == colour).all()
        assert (video[mask == 0] == background).all()
        low, high = np.minimum(colour, background), np.maximum(colour, background)
        assert ((video >= low) & (video <= high)).all()  # mixtures at the edge, nothing else


def test_colours_cannot_be_confused() -> None:
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], float)
    apart = np.linalg.norm(palette[:, None] - palette, axis=-1)
    assert apart[~np.eye(len(palette), dtype=bool)].min() > 100


@pytest.mark.parametrize(
    ("shape", "area"),  # in units of radius^2, from the polygons' corners
    [("square", (2 * 0.85) ** 2), ("triangle", 1.8 * 1.8 / 2), ("cross", 2 * 2 * 0.72 - 0.72**2)],
)
def test_masks_have_the_area_and_the_middle_of_their_polygons(shape: str, area: float) -> None:
    size = 64
    centre = np.random.default_rng(0).uniform(MARGIN, 1 - MARGIN, (20, 2)) * size
    mask = sprites.alpha_mask(SHAPES.index(shape), centre, size)
    assert mask.min() == 0
    assert mask.max() == 1
    radius = RADIUS * size
    np.testing.assert_allclose(mask.sum((1, 2)), area * radius**2, rtol=0.02)
    grid = np.arange(size) + 0.5
    middle = np.stack([(mask.sum(2) @ grid), (mask.sum(1) @ grid)], -1) / mask.sum((1, 2))[:, None]
    drop = {"triangle": -1 + 1.8 * 2 / 3}.get(shape, 0) * radius  # a triangle's middle is a third above its foot
    np.testing.assert_allclose(middle, centre + np.array([drop, 0]), atol=0.1)


def test_a_whole_step_moves_the_mask_by_a_pixel() -> None:
    for shape in range(len(SHAPES)):
        still, moved = sprites.alpha_mask(shape, np.array([[7.3, 7.9], [8.3, 6.9]]), SIZE)
        np.testing.assert_allclose(np.roll(still, (1, -1), (0, 1)), moved, atol=1e-12)


def test_bounce_reflects_at_the_walls() -> None:
    low, high = MARGIN * SIZE, (1 - MARGIN) * SIZE
    inside = np.linspace(low, high, 41)
    np.testing.assert_allclose(sprites.bounce(inside, SIZE), inside)
    np.testing.assert_allclose(sprites.bounce(2 * high - inside, SIZE), inside)  # mirrored at either wall
    np.testing.assert_allclose(sprites.bounce(2 * low - inside, SIZE), inside)
    np.testing.assert_allclose(sprites.bounce(inside + 6 * (high - low), SIZE), inside)  # to and fro
    far = sprites.bounce(np.linspace(-500, 500, 999), SIZE)
    assert far.min() >= low - 1e-9
    assert far.max() <= high + 1e-9


@pytest.mark.parametrize("stride", [1, 2])
def test_paths_keep_their_speed_away_from_the_walls(stride: int) -> None:
    low, high = MARGIN * SIZE, (1 - MARGIN) * SIZE
    for seed in range(100):
        path = sprites.draw_factors(np.random.default_rng(seed), 16, SIZE, stride).path
        assert low - 1e-9 <= path.min() <= path.max() <= high + 1e-9
        step = abs(np.diff(path, axis=0))  # f-1 2: a bounce can only shorten a step of its coordinate
        speed = np.linalg.norm(step.max(0))
        assert SPEED[0] * SIZE * stride - 1e-9 <= speed <= SPEED[1] * SIZE * stride + 1e-9
        # A step that ends farther from either wall than it is long met none: it has the full length.
        free = np.minimum(path[1:] - low, high - path[1:]) > step.max(0)
        assert free.any()
        np.testing.assert_allclose(step[free], np.broadcast_to(step.max(0), step.shape)[free], atol=1e-9)


def test_the_embedding_determines_the_base_frame(source: Sprites) -> None:
    for record in range(30):
        factors, clip = source.factors(record), source.clip(record)
        shape, colour, background, where = np.split(clip["embedding"], np.cumsum([3, 6, 3]))
        assert clip["embedding"].shape == (source.embedding_dim,)
        for one_hot, index in ((shape, factors.shape), (colour, factors.colour), (background, factors.background)):
            np.testing.assert_array_equal(one_hot, np.eye(len(one_hot))[index])
        name = f"{list(COLOURS)[factors.colour]} {SHAPES[factors.shape]}"
        assert source.class_names[clip["label"]] == name
        position = (where + 1) / 2 * SIZE
        np.testing.assert_allclose(position, factors.path[BASE], atol=1e-5)
        alone = dataclasses.replace(factors, path=position[None].astype(float))  # enough to draw the base frame
        difference = sprites.render(alone, SIZE)[0].astype(int) - clip["video"][BASE]
        assert abs(difference).max() <= 1


def test_the_mirrored_embedding_determines_the_mirrored_base_frame(source: Sprites) -> None:
    for record in range(30):
        factors, clip = source.factors(record), source.clip(record)
        mirrored = dataclasses.replace(factors, path=factors.path * (1, -1) + (0, SIZE))
        assert abs(sprites.render(mirrored, SIZE).astype(int) - clip["video"][:, :, ::-1]).max() <= 1
        assert clip["mirrored_embedding"].dtype == np.float32
        np.testing.assert_array_equal(clip["mirrored_embedding"][:12], clip["embedding"][:12])
        np.testing.assert_allclose((clip["mirrored_embedding"][12:] + 1) / 2 * SIZE, mirrored.path[BASE], atol=1e-5)


def test_captions_say_what_is_shown(source: Sprites) -> None:
    """The way is that of the step about the base frame, where no wall is near."""
    checked = 0
    for record in range(200):
        factors = source.factors(record)
        _, colour, shape, _, way, _, background = factors.caption.split()
        assert (colour, shape, background) == (
            list(COLOURS)[factors.colour], SHAPES[factors.shape], list(BACKGROUNDS)[factors.background]
        )  # fmt: skip
        steps = np.diff(factors.path[BASE - 1 : BASE + 2], axis=0)
        if np.allclose(*steps):  # no bounce
            (y, x), checked = steps[0], checked + 1
            assert way == (("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("up", "down")[int(y > 0)])
    assert checked > 50


def test_contents_that_are_held_out_are_never_shown() -> None:
    kept = Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, share=Share(0.2, False))
    other = Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, share=Share(0.2, True))
    shown, held = ({s.factors(record).content for record in range(400)} for s in (kept, other))
    assert not shown & held
    assert len(shown | held) >= len(CONTENTS) - 2  # nearly all are drawn
    assert 4 <= len(held) <= 20
    assert kept.describe()["part"] == "training"


def test_tokens_are_those_of_the_caption() -> None:
    tokenize = lambda caption: np.array([len(caption)], np.int32)  # noqa: E731
    source = Sprites(frames=FRAMES, size=SIZE, base_frame=BASE, tokenize=tokenize)
    assert source.clip(3)["tokens"] == len(source.factors(3).caption)


def test_every_factor_occurs_about_equally_often(source: Sprites) -> None:
    drawn = [source.factors(record) for record in range(900)]
    for name, kinds in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        count = np.bincount([getattr(factors, name) for factors in drawn], minlength=len(kinds))
        expected = 900 / len(kinds)
        assert len(count) == len(kinds)
        assert abs(count - expected).max() < 5 * np.sqrt(expected)
