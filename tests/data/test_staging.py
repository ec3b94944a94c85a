"""One clip is staged or rejected with a reason, whatever its file holds."""

import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import MPEG4, colour, parameters, write
from vf.data.listing import Item
from vf.data.staging import stage
from vf.types import UserError


def test_a_source_that_disappears_stops_the_preparation(tmp_path):
    write(tmp_path / "a.avi", times=range(5))
    item = Item("a.avi", tmp_path / "a.avi")
    (tmp_path / "a.avi").unlink()
    with pytest.raises(UserError, match=r"a.avi cannot be read any more: .*No such file"):
        stage(item, parameters(tmp_path), tmp_path / "x.clip")
    (tmp_path / "a.avi").symlink_to("nowhere")
    assert "No such file" in stage(item, parameters(tmp_path), tmp_path / "x.clip")["rejected"]


@pytest.mark.parametrize("numbers", [[10**25, 10**25 + 1, 10**25 + 2], [0, 3 * 10**13], [5, 5, 6], [3, 2, 1]])
def test_numbers_of_frames_of_any_size(tmp_path, numbers):
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, name in enumerate(numbers):
        Image.fromarray(np.full((16, 16, 3), colour(k), np.uint8)).save(folder / f"{'abc'[k]}_{name}.png")
    facts = stage(Item("frames", folder), parameters(tmp_path), tmp_path / "x.clip")
    assert facts.get("frames") == len(numbers) or "has no frame between" in facts["rejected"]


def test_damaged_files_never_raise(tmp_path):
    """A fuzz over containers: whatever the damage, a clip is staged or rejected with a reason."""
    rng = np.random.default_rng(0)
    codecs = {
        "a.avi": ("mpeg4", MPEG4),
        "b.mp4": ("libx264", {}),
        "c.mkv": ("libx264", {}),
        "d.webm": ("libvpx-vp9", {}),
    }
    rejected = 0
    for name, (codec, options) in codecs.items():
        write(tmp_path / name, codec, options, times=range(12))
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for case in range(25):
            data = whole[: rng.integers(1, len(whole))].copy() if case % 2 else whole.copy()
            places = rng.integers(0, len(data), rng.integers(1, 40))
            data[places] = rng.integers(0, 256, len(places))
            broken = tmp_path / f"{case}_{name}"
            broken.write_bytes(data.tobytes())
            facts = stage(Item(broken.name, broken), parameters(tmp_path), tmp_path / "x.clip")
            assert facts.get("rejected") or facts["frames"] >= 2, (name, case)
            rejected += "rejected" in facts
    assert 20 < rejected < 100
