"""The manifest describes what a prepared data set holds."""

import json

from tests.data.synthetic import CLASSES, LENGTH


def test_the_manifest_describes_the_data_set(prepared):
    out, manifest = prepared
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["classes"] == list(CLASSES)
    counts = {
        split: (facts["clips"], facts["frames"], facts["per_class"]) for split, facts in manifest["splits"].items()
    }
    assert counts == {
        "train": (6, 6 * LENGTH, dict.fromkeys(CLASSES, 2)),
        "test": (3, 3 * LENGTH, dict.fromkeys(CLASSES, 1)),
    }
    index = manifest["splits"]["train"]["index"]
    assert index["label"] == [0, 0, 1, 1, 2, 2]
    assert index["fps"] == [25.0] * 6
    assert all(len(digest) == 64 for digest in index["sha256"])
    assert manifest["rejected"] == {}
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "ucf101_clips"]  # nothing else is left
