"""VideoMAE-v2 and V-JEPA against independent PyTorch networks, from uint8 clips to features."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vf.nets import vit
from vf.pretrained import videomae, vjepa
from vf.pretrained.weights import Weights

torch = pytest.importorskip("torch")
from tests.nets import torch_vit  # noqa: E402

WIDTH = 128  # two heads of 64


def clips(frames: int, height: int, width: int, n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, frames, height, width, 3), np.uint8)


def channels_first(x: np.ndarray) -> "torch.Tensor":
    return torch.as_tensor(x).permute(0, 4, 1, 2, 3).float()


def relative(found, true) -> float:
    return float(abs(np.asarray(found) - true).max() / abs(true).max())


@functools.cache
def masked():
    """VideoMAE-v2 for 32 x 32 pixels, in PyTorch and in our layout."""
    net = torch_vit.made(torch_vit.VideoMAE(WIDTH, 2, 2, 200, patch=2))
    arrays, about = videomae.canonical(torch_vit.state(net))
    return net, Weights("videomae", arrays, "", {}).tree(), vit.Config(**about["config"])


@functools.cache
def predictive():
    """V-JEPA for 48 x 48 pixels with its probe, in PyTorch and in our layout."""
    net = torch_vit.made(torch_vit.VJEPA(WIDTH, 2, 2, 200, patch=8, size=48))
    probe = torch_vit.made(torch_vit.Probe(WIDTH, 2), 1)
    arrays, about = vjepa.canonical(torch_vit.state(net) | torch_vit.state(probe))
    return net, probe, Weights("vjepa", arrays, "", {}).tree(), vit.Config(**about["config"])


@pytest.mark.parametrize(("frames", "height", "width"), [(16, 32, 32), (2, 24, 40), (14, 20, 20), (24, 64, 50)])
def test_videomae(frames, height, width):
    net, params, config = masked()
    network = vit.videomae(params, "0123456789ab", config=config)
    x = clips(frames, height, width, n=1 if frames > 4 else 2)
    y = channels_first(x) / 255
    with torch.no_grad():
        y = torch.stack([torch.nn.functional.interpolate(clip, (32, 32), mode="bilinear") for clip in y])
        true = net(y).numpy()
    found = jax.jit(network.apply)(network.params, x)
    assert found.shape == (len(x), network.dim)
    assert relative(found, true) < 1e-5


@pytest.mark.parametrize(
    ("frames", "size", "projection"),
    [(16, (48, 48), True), (16, (48, 48), False), (16, (40, 64), True), (4, (48, 48), True), (20, None, True)],
)
def test_vjepa(frames, size, projection):
    net, probe, params, config = predictive()
    network = vit.vjepa(params, "0123456789ab", config=config, size=size, projection=projection)
    x = clips(frames, 56, 32)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    probe.pooler.cross_attention_block.xattn.projection = projection
    with torch.no_grad():
        y = channels_first(x) / 255
        if size is not None:
            y = torch.stack([torch.nn.functional.interpolate(clip, size, mode="bilinear") for clip in y])
        true = probe.pooler(net((y - mean) / std)).numpy()
    found = jax.jit(network.apply)(network.params, x)
    assert found.shape == (2, network.dim)
    assert relative(found, true) < 1e-5
    assert network.protocol["probe_projection"] == projection


def test_every_eps_is_seen():
    """The encoder's is 1e-6 and the probe's 1e-5; another one makes another network."""
    net, probe, params, config = predictive()
    x = np.random.default_rng(0).normal(0, 0.003, (2, 9, WIDTH)).astype(np.float32)
    first = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    with torch.no_grad():
        true = net.blocks[0](torch.as_tensor(x)).numpy()
    for eps, least, most in ((1e-6, 0, 1e-5), (1e-5, 1e-3, np.inf)):
        block = vit.Block(config.heads, config.mlp, eps, config.act, jax.lax.Precision.HIGHEST)
        assert least <= relative(jax.jit(block.apply)({"params": first}, x, None)[0], true) < most
    x = np.random.default_rng(0).normal(0, 0.02, (2, 9, WIDTH)).astype(np.float32)
    with torch.no_grad():
        probe.pooler.cross_attention_block.xattn.projection = True
        true = probe.pooler(torch.as_tensor(x)).numpy()
        for layer in ("norm1", "norm2"):
            getattr(probe.pooler.cross_attention_block, layer).eps = 1e-6
        wrong = probe.pooler(torch.as_tensor(x)).numpy()
        for layer in ("norm1", "norm2"):
            getattr(probe.pooler.cross_attention_block, layer).eps = 1e-5
    module = vit.Probe(config, True, jax.lax.Precision.HIGHEST)
    found = jax.jit(module.apply)({"params": params["pooler"]}, x)
    assert relative(found, true) < 1e-5
    assert relative(found, wrong) > 1e-3


def test_the_scores_networks_exist_at_full_size():
    """Shapes against those that PyTorch's networks of the papers' sizes have, without their memory."""
    with torch.device("meta"):
        masked, predictive, probe = torch_vit.VideoMAE(), torch_vit.VJEPA(), torch_vit.Probe()
    for module, config, nets, table in (
        (vit.VideoMAE(), vit.VIDEOMAE_G, [masked], videomae.table(vit.VIDEOMAE_G)),
        (vit.VJEPA(), vit.VJEPA_H, [predictive, probe], vjepa.table(vit.VJEPA_H)),
    ):
        clip = jax.ShapeDtypeStruct((1, config.frames, config.size, config.size, 3), np.float32)
        found, shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), clip)
        assert found.shape == (1, config.width)
        ours = {name: leaf.shape for name, leaf in flatten_dict(shapes["params"], sep="/").items()}
        theirs = {name: size for net in nets for name, size in torch_vit.sizes(net).items()}
        biases = [name for name in theirs if name.endswith(".q_bias")]
        theirs |= {name.replace("q_bias", "qkv.bias"): (3 * theirs[name][0],) for name in biases}
        unused = ("q_bias", "v_bias", "head.weight", "head.bias", "linear.weight", "linear.bias")
        theirs = {name: size for name, size in theirs.items() if not name.endswith(unused)}
        assert {row.name for row in table.values()} == theirs.keys()
        for name, (source, axes) in table.items():
            size = theirs[source] if axes is None else tuple(theirs[source][k] for k in axes)
            stack, _, rest = name.partition("/")
            mine = ours[f"blocks/{rest.partition('/')[2]}"][1:] if stack == "blocks" else ours[name]
            assert [n for n in mine if n != 1] == [n for n in size if n != 1], name
        assert {n.split("/", 2)[2] for n in table if n.startswith("blocks/")} == {
            n.removeprefix("blocks/") for n in ours if n.startswith("blocks/")
        }
        assert all(ours[name][0] == config.depth for name in ours if name.startswith("blocks/"))
        count, true = (sum(int(np.prod(size)) for size in sizes.values()) for sizes in (ours, theirs))
        assert count == true == {1408: 1_011_667_072, 1280: 653_333_760}[config.width]


@pytest.mark.usefixtures("unchecked")
def test_frames_and_sizes_that_do_not_fit_are_refused():
    _, params, config = masked()
    network = vit.videomae(params, "", config=config)
    for frames in (1, 15):
        with pytest.raises(ValueError, match="multiples of 2"):
            jax.eval_shape(network.apply, network.params, clips(frames, 32, 32))
    with pytest.raises(ValueError, match="expected frames of 32 x 32"):
        jax.eval_shape(vit.VideoMAE(config).apply, {"params": params}, np.zeros((1, 2, 40, 32, 3), np.float32))
    _, _, params, config = predictive()
    network = vit.vjepa(params, "", config=config, size=None)
    with pytest.raises(ValueError, match="sides of 8 pixels"):
        jax.eval_shape(network.apply, network.params, clips(16, 50, 48))
    with pytest.raises(ValueError, match="multiple of 3"):
        vit.Config(128, 2, 3, 200, 8)


def test_positions_and_class_token_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="expected frames of 224 x 224"):
        jax.eval_shape(vit.Embed(vit.CLIP_B32).init, jax.random.key(0), np.zeros((1, 1, 256, 224, 3), np.float32))


def test_protocols_record_what_changes_the_features():
    _, params, config = masked()
    exact, fast = (vit.videomae(params, "0123456789ab", config=config, exact=e).protocol for e in (True, False))
    assert exact["weights"] == "0123456789ab"
    assert "no mean" in exact["resize"]
    assert exact["precision"] == "float32" != fast["precision"]
    _, _, params, config = predictive()
    native, wide = (vit.vjepa(params, "", config=config, size=s).protocol for s in (None, (240, 320)))
    assert "none" in native["resize"]
    assert "240 x 320" in wide["resize"]
