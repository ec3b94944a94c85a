"""Against an independent PyTorch network, at every length whose padding differs, and at several sizes."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vf.nets import i3d, resize
from vf.pretrained.i3d import canonical
from vf.pretrained.weights import Weights

torch = pytest.importorskip("torch")
from tests.nets import torch_i3d  # noqa: E402


@functools.cache
def pair(eps: float = 1e-3):
    """PyTorch's network, and the same weights in our layout."""
    net = torch_i3d.made(eps=eps)
    arrays, _ = canonical({name: array.numpy() for name, array in net.state_dict().items()})
    return net, Weights("i3d", arrays, "", {}).tree()


def clips(frames: int, height: int = 224, width: int = 224, n: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, frames, height, width, 3)).astype(np.float32)


def relative(found, true) -> float:
    return float(abs(np.asarray(found) - true).max() / abs(true).max())


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (9, 224, 224),
        (15, 201, 224),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((16, 224, 224), (17, 224, 193), (30, 224, 224))),
    ],
)
def test_it_is_the_same_network(frames, height, width):
    net, params = pair()
    x = clips(frames, height, width)
    ours = jax.jit(i3d.I3D().apply)({"params": params}, x)
    assert relative(ours, torch_i3d.logits(net, x)) < 1e-5  # 1e-4 is required; the eps below changes it by more


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_eps_is_seen(eps):
    """1e-5 is the VideoGPT lineage's; with variances as small as these it makes another network."""
    _, params = pair()
    reference = torch_i3d.made(eps=eps).mixed_5c
    x = abs(np.random.default_rng(0).normal(size=(1, 2, 7, 7, 832))).astype(np.float32)  # as after a ReLU
    ours = i3d.Mixed(i3d.MIXED["Mixed_5c"], eps, jax.lax.Precision.HIGHEST).apply({"params": params["Mixed_5c"]}, x)
    y = torch.as_tensor(x).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        branches = [reference[f"branch_{k}"](z) for k, z in enumerate((y, y, y, torch_i3d.pool(y, [3] * 3, [1] * 3)))]
    true = torch.cat(branches, 1).permute(0, 2, 3, 4, 1).numpy()
    assert relative(ours, true) < 1e-5
    other = i3d.Mixed(i3d.MIXED["Mixed_5c"], 1e-4, jax.lax.Precision.HIGHEST).apply({"params": params["Mixed_5c"]}, x)
    assert relative(other, true) > 1e-3


def test_parameters_are_those_of_the_public_checkpoints():
    """230 variables, 12,704,544 numbers."""
    shapes = jax.eval_shape(i3d.I3D().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 224, 224, 3), float))
    leaves = flatten_dict(shapes["params"], sep="/")
    assert len(leaves) == 57 * 4 + 2
    assert sum(leaf.size for leaf in leaves.values()) == 12_704_544


@pytest.mark.parametrize("shape", [(8, 224, 224), (16, 192, 224), (16, 224, 225)])
def test_clips_of_unsupported_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="I3D needs 9 frames or more"):
        jax.eval_shape(i3d.I3D().init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape, 3), float))


@pytest.mark.parametrize(
    ("frames", "side", "kernel", "stride"), [(9, 7, 3, 1), (9, 8, 7, 2), (16, 9, 7, 2), (15, 8, 3, 2)]
)
def test_convolutions_by_frames_are_convolutions(frames, side, kernel, stride):
    """What CPU computes is what other platforms do."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, side, side + 1, 3)).astype(np.float32)
    w = rng.normal(size=(kernel, kernel, kernel, 3, 5)).astype(np.float32)
    found = i3d.convolution(x, w, stride, jax.lax.Precision.HIGHEST)
    true = jax.lax.conv_general_dilated(
        x, w, (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    np.testing.assert_allclose(found, true, atol=2e-4)


@pytest.mark.parametrize(
    ("grid", "aspect"), [("half_pixel", "squash"), ("half_pixel", "short_side"), ("tf1", "squash")]
)
def test_pixels_are_resized_and_scaled(grid, aspect):
    """uint8 of any size, resized and scaled inside the program."""
    raw = np.random.default_rng(1).integers(0, 256, (2, 3, 40, 52, 3), np.uint8)
    rows, columns = resize.matrices(grid, aspect, 40, 52, 224)
    true = 2 * np.einsum("Hh,bthwc,Ww->btHWc", rows, raw.astype(np.float64), columns, optimize=True) / 255 - 1
    np.testing.assert_allclose(i3d.pixels(raw, grid, aspect), true, atol=2e-6)


def test_i3d_from_pixels_to_features():
    net, params = pair()
    raw = np.random.default_rng(1).integers(0, 256, (1, 9, 40, 52, 3), np.uint8)
    made = i3d.network(params, "abc", grid="tf1")
    found = jax.jit(made.apply)(params, raw)
    assert relative(found, torch_i3d.logits(net, np.array(i3d.pixels(raw, "tf1", "squash")))) < 1e-5
    assert found.shape == (1, made.dim)
    assert made.protocol["weights"] == "abc"
