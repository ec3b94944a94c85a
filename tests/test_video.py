"""Pixels survive conversions and the disk exactly, and strips, grids and animations show the right frames."""

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vf import video
from vf.types import UserError

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [30, 60, 200], [230, 220, 40]], np.uint8)


def flat_frames(height: int = 10, width: int = 12) -> np.ndarray:
    """Four frames u8 [4 h w 3], frame k all of colour k."""
    return np.broadcast_to(COLOURS[:, None, None], (4, height, width, 3)).copy()


def random_clips(n: int = 5, t: int = 4, h: int = 6, w: int = 8) -> np.ndarray:
    # Different from the colours of gap and base frame, so that tests can distinguish pictures from what surrounds them.
    return np.random.default_rng(0).integers(0, 120, (n, t, h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_crossings_are_the_identity_on_all_256_values(wrap, place):
    values = place(np.arange(256, dtype=np.uint8))
    floats = wrap(video.from_uint8)(values)
    assert floats.dtype == jnp.float32
    assert (float(floats[0]), float(floats[255])) == (-1.0, 1.0)
    back = wrap(video.to_uint8)(floats)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, np.arange(256))


def test_to_uint8_takes_the_nearest_value_and_clips():
    x = np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32)
    exact = (x.astype(np.float64) + 1) * 127.5
    assert np.abs(np.asarray(video.to_uint8(x)) - exact).max() <= 0.5 + 1e-4
    outside = np.array([-np.inf, -1.5, 1.01, 7, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(video.to_uint8(outside), [0, 0, 255, 255, 255, 0])


def test_to_uint8_works_in_float32_on_bfloat16():
    x = jnp.linspace(-1, 1, 999).astype(jnp.bfloat16)
    np.testing.assert_array_equal(video.to_uint8(x), video.to_uint8(x.astype(jnp.float32)))


def test_a_second_crossing_is_refused():
    pixels = np.zeros(3, np.uint8)
    with pytest.raises(TypeError, match="uint8"):
        video.from_uint8(video.from_uint8(pixels))
    with pytest.raises(TypeError, match="floats"):
        video.to_uint8(pixels)


def test_npz_gives_back_every_array_and_leaves_no_other_file(tmp_path):
    clips, label = random_clips(), np.arange(5, dtype=np.int32)
    video.save_npz(tmp_path / "new" / "clips.npz", jnp.asarray(clips), label=label)
    loaded = video.load_npz(tmp_path / "new" / "clips.npz")
    assert loaded.keys() == {"clips", "label"}
    np.testing.assert_array_equal(loaded["clips"], clips)
    np.testing.assert_array_equal(loaded["label"], label)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clips.npz"]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"frames": random_clips()}, "key 'clips'"),
        ({"clips": random_clips().astype(np.float32)}, "float32"),
        ({"clips": random_clips()[0]}, r"\[4, 6, 8, 3\]"),
        ({"clips": random_clips()[..., :1]}, r"\[5, 4, 6, 8, 1\]"),
        ({"clips": random_clips(), "label": np.arange(4)}, "one 'label'"),
    ],
)
def test_npz_with_something_else_is_a_user_error(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=match):
        video.load_npz(tmp_path / "a.npz")


def test_clips_of_other_programs_are_read_whatever_lies_beside_them(tmp_path):
    clips = random_clips()
    np.savez(tmp_path / "a.npz", clips=clips, rate=np.float32(8), names=np.array(["a"], object))
    np.save(tmp_path / "a.npy", clips)
    for name in ("a.npz", "a.npy"):
        np.testing.assert_array_equal(video.load_clips(tmp_path / name), clips)
    for bad, match in (({"x": clips}, "key 'clips' and found \\['x'\\]"), ({"clips": clips[0]}, r"\[4, 6, 8, 3\]")):
        np.savez(tmp_path / "b.npz", **bad)
        with pytest.raises(UserError, match=match):
            video.load_clips(tmp_path / "b.npz")


def test_files_that_are_no_npz_are_user_errors(tmp_path):
    video.save_npz(tmp_path / "good.npz", random_clips())
    whole = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no clips")
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + bytes(b ^ 255 for b in whole[200:400]) + whole[400:])
    for name in ("missing.npz", "array.npy", "empty.npz", "text.npz", "cut.npz", "flipped.npz", "."):
        with pytest.raises(UserError):
            video.load_npz(tmp_path / name)


def test_save_npz_refuses_floats(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        video.save_npz(tmp_path / "a.npz", random_clips() / 255)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with video.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("height", "scale", "size"), [(10, 3, (30, 36)), (5, 3, (16, 36))])
def test_mp4_decodes_to_the_same_colours(tmp_path, height, scale, size):
    video.write_mp4(tmp_path / "a.mp4", flat_frames(height), fps=8, scale=scale)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 8
    assert [frame.shape for frame in frames] == [(*size, 3)] * 4
    error = np.abs(np.stack(frames).astype(int) - COLOURS[:, None, None].astype(int))
    assert error.max() <= 8


def read_gif(path) -> tuple[np.ndarray, dict]:
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames), dict(image.info)


def test_gif_of_few_colours_is_exact_and_endless(tmp_path):
    frames = flat_frames()
    frames[:, 2:5, 3:7] = COLOURS[[1, 2, 3, 0], None, None]
    video.write_gif(tmp_path / "a.gif", frames, fps=10, scale=4)
    decoded, info = read_gif(tmp_path / "a.gif")
    np.testing.assert_array_equal(decoded, video.enlarge(frames, 4))
    assert info["loop"] == 0
    assert info["duration"] == 100


def test_gif_of_many_colours_is_near(tmp_path):
    y, x = np.mgrid[0:32, 0:32].astype(np.uint8)
    frames = np.stack([np.stack([x * 8, y * 8, np.full_like(x, 60 * t)], -1) for t in range(4)])
    video.write_gif(tmp_path / "a.gif", frames)
    decoded, _ = read_gif(tmp_path / "a.gif")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 12


def test_grid_puts_clip_k_in_row_and_column_k():
    clips = random_clips()
    wall = video.grid(clips, columns=3, pad=2)
    assert wall.shape == (4, 2 * 6 + 2, 3 * 8 + 2 * 2, 3)
    covered = np.zeros(wall.shape, bool)
    for k, clip in enumerate(clips):
        place = np.s_[:, k // 3 * 8 : k // 3 * 8 + 6, k % 3 * 10 : k % 3 * 10 + 8]
        np.testing.assert_array_equal(wall[place], clip)
        covered[place] = True
    assert (wall[~covered] == video.GAP).all()
    np.testing.assert_array_equal(video.grid(clips[:1], columns=8), clips[0])


@pytest.mark.parametrize("base_frame", [0, 2, 3])
def test_film_strip_marks_the_base_frame_column_only(base_frame):
    clips, pad, scale = random_clips(), 2, 3
    strip = video.film_strip(clips, base_frame, pad=pad, scale=scale)
    high, wide = 6 * scale + 2 * pad, 8 * scale + 2 * pad
    assert strip.shape == (5 * high, 4 * wide, 3)
    for n in range(5):
        for t in range(4):
            cell = strip[n * high : (n + 1) * high, t * wide : (t + 1) * wide]
            np.testing.assert_array_equal(cell[pad:-pad, pad:-pad], video.enlarge(clips[n, t], scale))
    marked = (strip == video.BASE_FRAME_COLOUR).all(-1)
    columns = np.flatnonzero(marked.any(0))
    assert (columns[0], columns[-1]) == (base_frame * wide, (base_frame + 1) * wide - 1)
    assert marked[:, base_frame * wide].all()
    assert marked[:, (base_frame + 1) * wide - 1].all()
    assert marked[0, columns].all()
    assert marked[-1, columns].all()


@pytest.mark.parametrize(("base_frame", "pad"), [(4, 2), (-1, 2), (0, 0)])
def test_film_strip_refuses_a_base_frame_that_is_no_frame(base_frame, pad):
    with pytest.raises(ValueError, match="base_frame"):
        video.film_strip(random_clips(), base_frame, pad=pad)


def test_png_is_exact(tmp_path):
    image = random_clips()[0, 0]
    video.write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image)
