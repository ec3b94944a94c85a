"""V-JEPA's encoder and probe, in files as Meta's training code writes, give one set of arrays; a lone one none."""

import numpy as np
import pytest

from vf.nets import vit
from vf.pretrained import files, vjepa

torch = pytest.importorskip("torch")
from tests.nets import torch_vit  # noqa: E402

WIDTH, DEPTH, HIDDEN, PATCH, SIZE = 128, 2, 200, 8, 32


@pytest.fixture(scope="module")
def nets():
    return torch_vit.made(torch_vit.VJEPA(WIDTH, DEPTH, 2, HIDDEN, PATCH, SIZE)), torch_vit.made(
        torch_vit.Probe(WIDTH, 2)
    )


@pytest.fixture(scope="module")
def true(nets):
    return vjepa.canonical(torch_vit.state(nets[0]) | torch_vit.state(nets[1]))[0]


def wrapped(net, prefix):
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


def equal(found, true):
    assert found.keys() == true.keys()
    for name, array in true.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", ""])
def test_both_files(nets, true, prefix, tmp_path):
    """The encoder of training is another network than its average, the target encoder."""
    net, probe = nets
    other = torch_vit.made(torch_vit.VJEPA(WIDTH, DEPTH, 2, HIDDEN, PATCH, SIZE), seed=5)
    optimizer = torch.optim.AdamW(net.parameters()).state_dict()
    encoder = {"encoder": wrapped(other, prefix), "predictor": {"module.backbone.mask_token": torch.zeros(3)},
               "opt": optimizer, "scaler": None, "target_encoder": wrapped(net, prefix), "epoch": 300,
               "loss": 0.3, "batch_size": 24, "world_size": 128, "lr": 1e-3}  # fmt: skip
    torch.save(encoder, tmp_path / "vith16.pth.tar")
    torch.save({"classifier": wrapped(probe, "module."), "opt": optimizer, "epoch": 20}, tmp_path / "probe.pth.tar")
    arrays = files.read(tmp_path / "vith16.pth.tar").arrays | files.read(tmp_path / "probe.pth.tar").arrays
    found, about = vjepa.canonical(arrays)
    equal(found, true)
    assert about["branch"] == "target_encoder"
    assert about["classes"] == 174
    assert vit.Config(**about["config"]) == vit.Config(WIDTH, DEPTH, 2, HIDDEN, PATCH, size=SIZE)


def test_an_encoder_alone_is_accepted_with_a_warning(nets, true):
    state = {f"encoder.module.backbone.{name}": array for name, array in torch_vit.state(nets[0]).items()}
    found, about = vjepa.canonical(state | torch_vit.state(nets[1]))
    equal(found, true)
    assert about["branch"] == "encoder"


def test_the_projection_is_preserved(nets, true):
    proj = torch_vit.state(nets[1])["pooler.cross_attention_block.xattn.proj.weight"]
    np.testing.assert_array_equal(true["pooler/proj/kernel"], proj.T)


def test_other_files_are_refused(nets):
    net, probe = (torch_vit.state(net) for net in nets)
    image = {"linear.weight": np.ones((1000, WIDTH)), "linear.bias": np.ones(1000)}
    deeper = {"pooler.blocks.0.norm1.weight": np.ones(WIDTH)}
    narrow = torch_vit.state(torch_vit.made(torch_vit.Probe(64, 1)))
    cross = "pooler.cross_attention_block.norm2"
    for bad, message in (
        (net, r"attentive probe is missing.* give its file also"),
        (probe, r"no patch_embed\.proj\.weight of a target_encoder"),
        (net | probe | image, "1000 classes"),
        (net | probe | deeper, r"not of this network: pooler\.blocks"),
        (net | narrow, r"of another shape.*pooler\."),
        (net | {n: a for n, a in probe.items() if not n.startswith(cross)}, r"2 missing: pooler.*norm2"),
        ({n: a for n, a in net.items() if n != "pos_embed"} | probe, "1 missing: pos_embed"),
        (net | probe | {"pos_embed": np.zeros((1, 100, WIDTH))}, r"pos_embed is"),
    ):
        with pytest.raises(ValueError, match=message):
            vjepa.canonical(bad)
