"""VideoMAE-v2's checkpoint in every wrapping, written by PyTorch, gives the same arrays; others are refused."""

import numpy as np
import pytest

from vf.nets import vit
from vf.pretrained import files, videomae, weights

torch = pytest.importorskip("torch")
from tests.nets import torch_vit  # noqa: E402

DEPTH, HIDDEN = 3, 200


@pytest.fixture(scope="module")
def net():
    return torch_vit.made(torch_vit.VideoMAE(128, DEPTH, 2, HIDDEN, patch=2))


@pytest.fixture(scope="module")
def true(net):
    return videomae.canonical(torch_vit.state(net))[0]


@pytest.mark.parametrize(("wrapper", "legacy"), [("module", False), ("model", True), ("", False)])
def test_every_wrapping(net, true, wrapper, legacy, tmp_path):
    state = net.state_dict()
    saved = {wrapper: state, "epoch": 7, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}} if wrapper else state
    torch.save(saved, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    arrays, about = videomae.canonical(files.read(tmp_path / "net.pth").arrays)
    assert arrays.keys() == true.keys()
    for name, array in true.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert about["classes"] == 174
    assert not about["official"]
    assert vit.Config(**about["config"]) == vit.Config(128, DEPTH, 2, HIDDEN, 2, size=32, positions="sinusoids")


def test_blocks_are_stacked_and_keys_have_no_bias(net, true, tmp_path):
    assert true["blocks/qkv/kernel"].shape == (DEPTH, 128, 384)
    np.testing.assert_array_equal(true["blocks/qkv/kernel"][2], torch_vit.state(net.blocks[2].attn.qkv)["weight"].T)
    q, k, v = np.split(true["blocks/qkv/bias"], 3, 1)
    assert (k == 0).all()
    np.testing.assert_array_equal(q[1], torch_vit.state(net)["blocks.1.attn.q_bias"])
    np.testing.assert_array_equal(v[2], torch_vit.state(net)["blocks.2.attn.v_bias"])
    fingerprint = weights.save(tmp_path / "out.safetensors", "videomae", true, {})
    assert weights.load(tmp_path / "out.safetensors", "videomae").fingerprint == fingerprint


def without(state, *names):
    return {name: array for name, array in state.items() if name not in names}


def test_other_files_are_refused(net):
    state = torch_vit.state(net)
    for bad, message in (
        ({}, r"no patch_embed\.proj\.weight"),
        ({"encoder." + name: array for name, array in state.items()}, r"no patch_embed\.proj\.weight"),  # pretraining's
        (without(state, "blocks.1.attn.v_bias"), r"missing: blocks\.1\.attn\.v_bias"),
        (without(state, "blocks.0.mlp.fc1.weight"), r"missing: blocks\.0\.mlp\.fc1\.weight"),
        (without(state, "blocks.1.norm2.weight", "blocks.1.norm2.bias"), r"2 missing: blocks\.1\.norm2"),
        (without(state, *(n for n in state if n.startswith("blocks.1."))), r"missing: blocks\.1\."),
        (state | {"norm.weight": np.ones(128)}, r"1 not of this network: norm\.weight"),
        (state | {"head.weight": np.ones((710, 128)), "head.bias": np.ones(710)}, "710 classes"),
        (state | {"blocks.2.mlp.fc2.weight": np.ones((128, 7))}, r"blocks\.2\.mlp\.fc2\.weight is \[7, 128\]"),
        (state | {"patch_embed.proj.weight": np.ones((128, 3, 2, 2))}, "4 axes, where 5"),
        (state | {"fc_norm.bias": np.full(128, np.nan)}, r"NaN or infinities: fc_norm\.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            videomae.canonical(bad)
    arrays, about = videomae.canonical(without(state, "head.weight", "head.bias"))
    assert about["classes"] is None
    assert "norm/scale" in arrays
