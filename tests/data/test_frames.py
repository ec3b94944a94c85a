"""Which images of a folder are the frames of its video, in which order, and what their pixels are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.data.synthetic import colour, number, parameters
from vf.data.clips import Windows
from vf.data.folder import VideoFolder
from vf.data.frames import Animation, FrameFolder, series
from vf.data.listing import Item, clips
from vf.data.notes import is_loss
from vf.data.pixels import Pixels
from vf.data.staging import read_staged, stage

SERIES = {
    "a size": ([f"{k:04d}_64x48.png" for k in range(12)], []),
    "a size that varies": ([f"{k}_{60 + 7 * k % 5}x{50 - k % 3}.png" for k in range(12)], []),
    "a view": ([f"{k:04d}_cam0.jpg" for k in range(12)], []),
    "a clip and a person": ([f"p7_run3_{k}.png" for k in range(5, 17)], []),
    "times": ([f"1305031102.{t}.png" for t in (175304, 211214, 243211, 275326)], []),
    "times of several seconds": ([f"{t}.png" for t in ("9.95", "10.1", "10.13", "10.5", "11.25", "12.0")], []),
    "times with fewer digits": ([f"{t}.png" for t in ("5.05", "5.1", "5.13", "5.2", "5.375")], []),
    "a number after times": ([f"{1e9 + 0.04 * k * k:.4f}_{k}.png" for k in range(12)], []),
    "a number before times": ([f"{k}_{1e9 + 0.04 * k * k:.4f}.png" for k in range(12)], []),
    "dates": ([f"2024-01-01_12-{t}.png" for t in ("00-57", "00-59", "01-02", "01-03", "01-07")], []),
    "a number before others": ([f"{k}_{37 * k * k % 101}.png" for k in range(12)], []),
    "a number after others": ([f"{37 * k * k % 101}_{k}.png" for k in range(12)], []),
    "steps of ten": ([f"f{10 * k}.png" for k in range(12)], []),
    "strays": ([f"{k:04d}.png" for k in range(4)], ["cover.jpg", "Thumbs.png", "0000_mask.png"]),
    "two of four strays": (["0.png", "1.png"], ["cover.png", "back.png"]),
    "the same in two formats": ([f"{k:04d}.png" for k in range(4)], [f"{k:04d}.jpg" for k in range(4)]),
    "one format is whole": ([f"{k:04d}.JPG" for k in range(4)], [f"{k:04d}.png" for k in range(3)]),
    "one series in two formats": ([f"{k}.{'png' if k % 2 else 'jpg'}" for k in range(6)], []),
    "hashes before numbers": (["f3a_0.png", "9bc_1.png", "0dd_2.png", "zz_3.png"], []),
    "no numbers": (["a.png", "b.png", "c.png"], []),
    "one": (["0001.png"], []),
}


@pytest.mark.parametrize("kind", SERIES)
def test_the_number_that_counts_up_orders_the_frames(kind):
    frames, strays = SERIES[kind]
    found = series([*reversed(frames), *strays])
    assert found.names == frames
    assert set(found.strays) == set(strays)
    assert all(reason.startswith("is no frame") for reason in found.strays.values())
    assert bool(found.note) == (kind.startswith(("times", "dates")))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"{k}_64x64.png" for k in (0, 1, 2, 4, 5)], "has no frame between 2_64x64.png and 4_64x64.png"),
        ([f"{k}_cam{c}.png" for k in range(6) for c in range(2)], "two frames of one number, as 0_cam0.png and 0_c"),
        ([f"{side}_{k}.png" for k in range(6) for side in ("left", "right")], "two series, as left_0.png and right_0"),
        ([f"{k}.png" for k in range(4)] + [f"{k:03d}.png" for k in range(4)], "two frames of one number, as 0.png"),
    ],
)  # fmt: skip
def test_folders_of_no_one_series_are_refused(names, reason):
    with pytest.raises(ValueError, match=reason.replace("(", "[(]")):
        series(names)


def save(path: Path, image: Image.Image, **kwargs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **kwargs)


def staged(path: Path) -> tuple[list[str], np.ndarray]:
    """(notes, frames u8 [n 16 16 3]) of a prepared clip."""
    facts = stage(Item(path.name, path), parameters(path.parent), path.parent / "x.staged")
    assert "rejected" not in facts, facts
    frames = [np.frombuffer(frame, np.uint8).reshape(16, 16, 3) for frame in read_staged(path.parent / "x.staged")[1]]
    return facts["notes"], np.stack(frames)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette of alphas", "RGB"])
@pytest.mark.parametrize("is_opaque", [False, True])
def test_what_is_transparent_is_laid_on_black(tmp_path, caplog, mode, is_opaque):
    """A green (or white) square, and around it another colour under transparency."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 255 * is_opaque
    inner = (255, 255, 255, 255) if mode == "LA" else (10, 200, 10, 255)
    pixels[8:24, 8:24] = inner
    image, options = Image.fromarray(pixels), {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode != "RGBA":
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        if mode == "P":
            image = image.quantize(4, dither=Image.Dither.NONE)
            around = image.getpixel((0, 0))
            options = {} if is_opaque else {"transparency": around}
        elif mode == "palette of alphas":
            image = image.quantize(4, dither=Image.Dither.NONE)
            alphas = [255 if is_opaque or k == image.getpixel((16, 16)) else 0 for k in range(4)]
            options = {"transparency": bytes(alphas)}
        else:
            options = {} if is_opaque else {"transparency": (255, 0, 0)}
    for k in range(3):
        save(tmp_path / "clip" / f"{k}.png", image, **options)
    notes, frames = staged(tmp_path / "clip")
    assert notes == ([] if is_opaque else ["lost: its transparency, laid on black"])
    source = VideoFolder(tmp_path, windows=Windows(3), size=16)
    np.testing.assert_array_equal(source.clip(0, None)["video"], frames)
    source.clip(0, None)
    assert caplog.text.count("clip, the first of this kind: lost: its transparency, laid on black") == (not is_opaque)
    if not is_opaque:
        assert frames[:, 0].max() == 0
    assert np.abs(frames[:, 8, 8].astype(int) - inner[:3]).max() < 3


@pytest.mark.parametrize("suffix", ["png", "tif", "TIFF"])
def test_16_bits_of_grey_are_scaled(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    for k in range(3):
        save(tmp_path / "clip" / f"{k}.{suffix}", Image.fromarray(ramp))
    notes, frames = staged(tmp_path / "clip")
    assert notes == ["lost: its 16 bits, scaled to 8"]
    np.testing.assert_allclose(frames[0, 0, :, 0], np.linspace(0, 255, 16), atol=1.01)
    save(tmp_path / "deep" / "0.tif", Image.fromarray(ramp.astype(np.int32)))
    save(tmp_path / "deep" / "1.tif", Image.fromarray(ramp.astype(np.float32)))
    facts = stage(Item("deep", tmp_path / "deep"), parameters(tmp_path), tmp_path / "x.staged")
    assert "its frame 0.tif cannot be read: its values have 32 bits" in facts["rejected"]


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((32, 32, 3), colour(k), np.uint8)) for k in range(count)]


@pytest.mark.parametrize("suffix", ["webp", "png", "apng", "tif", "PNG"])
def test_an_animated_picture_is_a_clip(tmp_path, suffix):
    form = {"apng": "png", "tif": "tiff"}.get(suffix.lower(), suffix.lower())
    first, *others = pictures(6)
    options = {} if form == "tiff" else {"duration": 100}
    options |= {"lossless": True} if form == "webp" else {}
    for place in ("cats/0", "cats/1", "dogs/0"):
        save(tmp_path / f"{place}.{suffix}", first, format=form, save_all=True, append_images=others, **options)
    for k in range(3):
        save(tmp_path / "dogs" / "frames" / f"{k}.png", pictures(4)[k])
    save(tmp_path / "dogs" / "still.jpg", first)
    found = clips(tmp_path)
    assert [item.name for item in found.items] == [
        f"cats/0.{suffix}", f"cats/1.{suffix}", f"dogs/0.{suffix}", "dogs/frames"
    ]  # fmt: skip
    assert list(found.unlisted) == ["dogs/still.jpg"]
    source = VideoFolder(tmp_path, windows=Windows(6), size=16)
    assert source.class_names == ("cats", "dogs")
    assert source.rejected == {"dogs/frames": "has 3 frames, fewer than 6"}
    assert source.fps == (0 if form == "tiff" else 10)
    for record in range(3):
        assert [number(frame) for frame in source.clip(record, None)["video"]] == list(range(6))
    notes, frames = staged(tmp_path / "cats" / f"0.{suffix}")
    assert notes == []
    assert [number(frame) for frame in frames] == list(range(6))


def test_the_picture_for_programs_without_animation_is_no_frame(tmp_path):
    first, *others = pictures(6)
    save(tmp_path / "a.png", first, save_all=True, append_images=others, duration=100, default_image=True)
    animation = Animation(tmp_path / "a.png")
    frames = animation.clip(np.arange(len(animation)), Pixels(16))
    assert [number(frame) for frame in frames] == [1, 2, 3, 4, 5]


def test_an_animation_among_frames_is_told(tmp_path):
    first, *others = pictures(6)
    for k in range(4):
        save(tmp_path / "clip" / f"{k}.png", pictures(4)[k])
    save(tmp_path / "clip" / "preview.png", first, save_all=True, append_images=others, duration=100)
    assert [item.name for item in clips(tmp_path).items] == ["clip", "clip/preview.png"]
    save(tmp_path / "clip" / "2.png", first, save_all=True, append_images=others, duration=100)
    with pytest.raises(ValueError, match=r"its frame 2\.png cannot be read: is animated: 6 pictures"):
        list(FrameFolder(tmp_path / "clip").pictures())


def test_a_tiff_with_a_preview_is_one_picture(tmp_path):
    for k in range(3):
        preview = Image.new("RGB", (8, 8))
        save(tmp_path / "clip" / f"{k}.tif", pictures(3)[k], save_all=True, append_images=[preview])
    assert [item.name for item in clips(tmp_path).items] == ["clip"]
    notes, frames = staged(tmp_path / "clip")
    assert [number(frame) for frame in frames] == [0, 1, 2]
    assert not any(map(is_loss, notes))


def test_a_png_of_16_bit_colours_is_noted(tmp_path):
    """Pillow cannot write one: a file of 16-bit grey is made one of RGB by its header and its bytes."""
    import struct
    import zlib

    rows = b"".join(b"\0" + struct.pack(">48H", *([65535, 257 * 128, 0] * 16)) for _ in range(16))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = PngImagePlugin._MAGIC + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (tmp_path / "clip").mkdir()
    for k in range(2):
        (tmp_path / "clip" / f"{k}.png").write_bytes(content)
    notes, frames = staged(tmp_path / "clip")
    assert notes == ["lost: its 16 bits, scaled to 8"]
    np.testing.assert_array_equal(frames[0, 0, 0], [255, 128, 0])
