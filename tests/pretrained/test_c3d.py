"""C3D's public files, written by NumPy and by PyTorch, at a 16th of the width."""

import itertools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.nets.c3d import C3D, MEAN
from vf.pretrained import files, weights
from vf.pretrained.c3d import LAYERS, canonical

WIDTH = 4


def layers(seed: int = 0, width: int = WIDTH, classes: int = 101) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{layer: (W, b)} in Chainer's axes."""
    rng = np.random.default_rng(seed)
    channels = [3, *(width * multiple for multiple in (1, 2, 4, 4, 8, 8, 8, 8))]
    sizes = [(o, i, 3, 3, 3) for i, o in itertools.pairwise(channels)]
    sizes += [(64 * width, 128 * width), (64 * width, 64 * width), (classes, 64 * width)]

    def normal(*size: int) -> np.ndarray:
        return (rng.normal(0, 1, size) / np.sqrt(np.prod(size[1:]))).astype(np.float32)

    return {name: (normal(*size), normal(size[0])) for name, size in zip(LAYERS, sizes, strict=True)}


@pytest.fixture(scope="module")
def mean() -> np.ndarray:
    return np.random.default_rng(9).uniform(60, 140, MEAN)


def chainer(path: Path, drawn: dict, **more: np.ndarray) -> dict[str, np.ndarray]:
    """As chainer.serializers.save_npz writes a Chain."""
    pairs = {f"{name}/{kind}": array for name, both in drawn.items() for kind, array in zip("Wb", both, strict=True)}
    with path.open("wb") as file:
        np.savez(file, **pairs, **more)
    return dict(files.read(path).arrays)


def expected(drawn: dict) -> dict[str, np.ndarray]:
    made = {}
    for name, (kernel, bias) in drawn.items():
        made[f"{name}/kernel"] = kernel.transpose(2, 3, 4, 1, 0) if kernel.ndim == 5 else kernel.T
        made[f"{name}/bias"] = bias
    return made


def same(found: dict, drawn: dict, mean: np.ndarray) -> None:
    wanted = expected(drawn) | {"mean": mean.astype(np.float32)}
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], array)


def scripted(path: Path, drawn: dict, names: list[str], **buffers: np.ndarray):
    """Saves the layers under `names` as a TorchScript that also holds `buffers`; returns the module."""
    torch = pytest.importorskip("torch")

    class Port(torch.nn.Module):
        """What a port looks like from outside: layers, dotted names, buffers."""

        def __init__(self):
            super().__init__()
            for name, array in buffers.items():
                self.register_buffer(name, torch.tensor(np.asarray(array, np.float32)))
            for name, (kernel, bias) in zip(names, drawn.values(), strict=True):
                convolution = kernel.ndim == 5
                make = torch.nn.Conv3d if convolution else torch.nn.Linear
                layer = make(kernel.shape[1], len(kernel), **({"kernel_size": 3, "padding": 1} if convolution else {}))
                layer.load_state_dict({"weight": torch.tensor(kernel), "bias": torch.tensor(bias)})
                *scopes, last = name.split(".")
                place = self
                for scope in scopes:
                    if not hasattr(place, scope):
                        place.add_module(scope, torch.nn.Module())
                    place = getattr(place, scope)
                place.add_module(last, layer)

        def forward(self, x):
            return x

    module = Port().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        torch.jit.save(torch.jit.script(module), str(path))
    return module


NAMED = [name.replace("conv1a", "conv1").replace("conv2a", "conv2") for name in LAYERS]


def test_chainer_file_and_its_mean(tmp_path, mean):
    drawn = layers()
    arrays = chainer(tmp_path / "conv3d_deepnetA_ucf.npz", drawn)
    np.savez(tmp_path / "mean2.npz", mean=mean)
    found, about = canonical(arrays | files.read(tmp_path / "mean2.npz").arrays, width=WIDTH)
    same(found, drawn, mean)
    assert (about["layout"], about["by_order"], about["classes"]) == ("chainer", False, 101)
    assert "window" not in about


def test_what_tganv2_adds_to_a_saved_chain_is_left(tmp_path, mean):
    """Its `pre` turns R G B to B G R, its `mean` is a bias: both follow from the volume."""
    drawn, window = layers(), 128 - mean[:, :, 8:120, 8:120]
    more = {"pre/W": np.ones((3, 3, 1, 1, 1), np.float32), "mean/b": window.astype(np.float32)}
    found, about = canonical(chainer(tmp_path / "saved.npz", drawn, **more) | {"mean": mean}, width=WIDTH)
    same(found, drawn, mean)
    assert about["window"] == "tganv2, styleganv"


@pytest.mark.parametrize("names", [list(LAYERS), NAMED, [f"model.{name}" for name in NAMED]])
def test_torchscript_by_names(tmp_path, mean, names):
    """Also where the file has its layers in another order."""
    drawn = layers(1)
    turned = dict(reversed(drawn.items()))
    scripted(tmp_path / "c3d.pt", turned, names[::-1])
    source = files.read(tmp_path / "c3d.pt")
    assert source.format == "torchscript"
    found, about = canonical(source.arrays | {"mean": mean}, width=WIDTH)
    same(found, drawn, mean)
    assert (about["layout"], about["by_order"]) == ("torch", False)


@pytest.mark.parametrize("fc", [("fc6", "fc7", "fc8"), ("head.0", "head.3", "head.6")])
def test_torchscript_of_unknown_names_is_read_by_order(tmp_path, mean, fc):
    drawn = layers(2)
    scripted(tmp_path / "c3d.pt", drawn, [f"body.{k}" for k in range(8)] + list(fc), bgr=np.ones((3, 3)))
    found, about = canonical(files.read(tmp_path / "c3d.pt").arrays | {"mean": mean}, width=WIDTH)
    same(found, drawn, mean)
    assert about["by_order"]


@pytest.mark.parametrize(("column", "sign", "code"), [(8, -1, "tganv2, styleganv"), (29, 1, "tgan"), (20, 1, "none")])
def test_a_window_in_the_file_identifies_its_code(tmp_path, mean, column, sign, code):
    drawn = layers()
    window = sign * mean[None, :, :, 8:120, column : column + 112]
    scripted(tmp_path / "c3d.pt", drawn, list(LAYERS), mean_bgr=window)
    found, about = canonical(files.read(tmp_path / "c3d.pt").arrays | {"mean": mean}, width=WIDTH)
    same(found, drawn, mean)
    assert about["window"] == code


def test_a_buffer_of_the_volumes_shape_is_the_mean(tmp_path, mean):
    drawn = layers()
    scripted(tmp_path / "c3d.pt", drawn, list(LAYERS), offset=mean[None])
    found, _ = canonical(files.read(tmp_path / "c3d.pt").arrays, width=WIDTH)
    same(found, drawn, mean)


def test_converted_weights_give_the_features_of_the_port(tmp_path, mean):
    torch = pytest.importorskip("torch")
    drawn = layers(3)
    module = scripted(tmp_path / "c3d.pt", drawn, list(LAYERS))
    arrays, about = canonical(files.read(tmp_path / "c3d.pt").arrays | {"mean": mean}, width=WIDTH)
    weights.save(tmp_path / "c3d.safetensors", "c3d", arrays, about)
    params = weights.load(tmp_path / "c3d.safetensors", "c3d").tree()
    assert params.pop("mean").shape == MEAN
    x = np.random.default_rng(4).normal(0, 60, (1, 16, 112, 112, 3)).astype(np.float32)
    with torch.no_grad():
        h = torch.tensor(x).permute(0, 4, 1, 2, 3)
        for name in LAYERS[:8]:
            h = torch.relu(getattr(module, name)(h))
            if name in ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b"):
                h = torch.nn.functional.max_pool3d(h, (1 + (name != "conv1a"), 2, 2), ceil_mode=True)
        h = torch.relu(module.fc7(torch.relu(module.fc6(h.flatten(1)))))
        logits = module.fc8(h).numpy()
    found = np.asarray(jax.jit(C3D(WIDTH).apply)({"params": params}, jnp.asarray(x)))
    assert np.abs(found - logits).max() / logits.std() < 1e-4


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda a: a.pop("mean"), r"`mean` in mean2\.npz .* give that file also"),
        (
            lambda a: a.update(mean=a["mean"][:, :, 8:120, 8:120]),
            r"its `mean` is \[3, 16, 112, 112\].* give that file also",
        ),
        (lambda a: a.update(mean=a["mean"] * np.nan), "no pixels"),
        (lambda a: a.update(mean=a["mean"] - 128), "no pixels"),
        (lambda a: a.pop("conv3b/W"), "1 missing: conv3b/W"),
        (lambda a: a.update({"bn1a/gamma": np.ones(64)}), "1 not of this network: bn1a/gamma"),
        (lambda a: a.update({"fc8/b": np.zeros(487)}), "knows 487 classes"),
        (lambda a: a.update({"fc6/W": a["fc6/W"][:, :72]}), "fc6/W is"),
        (lambda a: a.update({"conv1a/b": a["conv1a/b"] * np.inf}), "NaN or infinities: conv1a/b"),
    ],
)
def test_files_that_are_not_c3d_are_refused(tmp_path, mean, change, what):
    arrays = chainer(tmp_path / "c3d.npz", layers()) | {"mean": mean}
    change(arrays)
    with pytest.raises(ValueError, match=what):
        canonical(arrays, width=WIDTH)


def test_another_torch_network_is_refused(tmp_path, mean):
    drawn = layers()
    names = dict(zip(LAYERS, LAYERS, strict=True))
    del drawn["conv4b"], names["conv4b"]
    scripted(tmp_path / "named.pt", drawn, list(names))
    with pytest.raises(ValueError, match="missing: conv4b/W"):
        canonical(files.read(tmp_path / "named.pt").arrays | {"mean": mean}, width=WIDTH)
    scripted(tmp_path / "unnamed.pt", drawn, [f"l{k}" for k in range(10)])
    with pytest.raises(
        ValueError, match="7 convolutions 3 x 3 x 3, 3 matrices and 10 biases, where C3D has 8, 3 and 11"
    ):
        canonical(files.read(tmp_path / "unnamed.pt").arrays | {"mean": mean}, width=WIDTH)
    with pytest.raises(ValueError, match="of another shape"):
        canonical(chainer(tmp_path / "c3d.npz", layers()) | {"mean": mean})  # the published width is another
