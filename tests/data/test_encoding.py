"""Which encodings keep every pixel."""

import numpy as np

from tests.data.synthetic import parameters, write
from vf.data.clips import Windows
from vf.data.preparation import prepare
from vf.data.prepared import Prepared


def test_encodings(ucf, tmp_path, prepared):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3)) for _ in range(20)]
    write(tmp_path / "videos" / "noise.avi", times=range(20), paint=lambda k: noise[k])
    found = {}
    for encoding, quality in (("raw", 0), ("png", 0), ("jpeg", 95)):
        out = tmp_path / encoding
        prepare(parameters(tmp_path / "videos", encoding=encoding, quality=quality), out, workers=1)
        found[encoding] = Prepared(out, windows=Windows(20)).clip(0, None)["video"].astype(int)
    np.testing.assert_array_equal(found["png"], found["raw"])
    assert 0 < np.abs(found["jpeg"] - found["raw"]).mean() < 8
