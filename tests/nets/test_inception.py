"""Against FID's network as PyTorch's functions compute it, under pytorch-fid's names, with random weights."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vf.nets import inception

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Reference:
    """FID's Inception-v3 in PyTorch. Units draw their weights when they are first met, with moments near those of what
    they meet then, so that features differ between pictures as a trained network's do."""

    def __init__(self, seed: int, width: int = 1) -> None:
        self.rng, self.width, self.state = np.random.default_rng(seed), width, {}

    def unit(self, x, name: str, features: int, kernel=(1, 1), stride: int = 1, padding=0):
        features //= self.width
        if name not in self.state:
            weight = torch.from_numpy(self.rng.standard_normal((features, x.shape[1], *kernel), np.float32)).to(x.dtype)
            x = F.conv2d(x, weight, stride=stride, padding=padding)
            gamma, beta, shift, power = torch.from_numpy(self.rng.uniform(-1, 1, (4, features))).to(x.dtype)
            std = 10 ** (power - 1)  # var is 1e-4 to 1: around the eps, so that a wrong one shows
            scale = std / x.std((0, 2, 3))
            mean = x.mean((0, 2, 3)) * scale + 0.2 * shift * std
            self.state[name] = [weight * scale[:, None, None, None], 1 + 0.5 * gamma, 0.2 * beta, mean, std**2]
            x = x * scale[:, None, None]
        else:
            x = F.conv2d(x, self.state[name][0], stride=stride, padding=padding)
        _, gamma, beta, mean, var = self.state[name]
        return F.relu(F.batch_norm(x, mean, var, gamma, beta, eps=0.001))

    def a(self, x, n: str, pooled: int):
        five = self.unit(self.unit(x, f"{n}.branch5x5_1", 48), f"{n}.branch5x5_2", 64, (5, 5), padding=2)
        three = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 64), f"{n}.branch3x3dbl_2", 96, (3, 3), padding=1)
        three = self.unit(three, f"{n}.branch3x3dbl_3", 96, (3, 3), padding=1)
        mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        one = self.unit(x, f"{n}.branch1x1", 64)
        return torch.cat([one, five, three, self.unit(mean, f"{n}.branch_pool", pooled)], 1)

    def b(self, x, n: str):
        three = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 64), f"{n}.branch3x3dbl_2", 96, (3, 3), padding=1)
        three = self.unit(three, f"{n}.branch3x3dbl_3", 96, (3, 3), 2)
        return torch.cat([self.unit(x, f"{n}.branch3x3", 384, (3, 3), 2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(self, x, n: str, inner: int):
        seven = self.unit(x, f"{n}.branch7x7_1", inner)
        seven = self.unit(seven, f"{n}.branch7x7_2", inner, (1, 7), padding=(0, 3))
        seven = self.unit(seven, f"{n}.branch7x7_3", 192, (7, 1), padding=(3, 0))
        twice = self.unit(x, f"{n}.branch7x7dbl_1", inner)
        twice = self.unit(twice, f"{n}.branch7x7dbl_2", inner, (7, 1), padding=(3, 0))
        twice = self.unit(twice, f"{n}.branch7x7dbl_3", inner, (1, 7), padding=(0, 3))
        twice = self.unit(twice, f"{n}.branch7x7dbl_4", inner, (7, 1), padding=(3, 0))
        twice = self.unit(twice, f"{n}.branch7x7dbl_5", 192, (1, 7), padding=(0, 3))
        mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        one = self.unit(x, f"{n}.branch1x1", 192)
        return torch.cat([one, seven, twice, self.unit(mean, f"{n}.branch_pool", 192)], 1)

    def d(self, x, n: str):
        three = self.unit(self.unit(x, f"{n}.branch3x3_1", 192), f"{n}.branch3x3_2", 320, (3, 3), 2)
        seven = self.unit(x, f"{n}.branch7x7x3_1", 192)
        seven = self.unit(seven, f"{n}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self.unit(seven, f"{n}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self.unit(seven, f"{n}.branch7x7x3_4", 192, (3, 3), 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(self, x, n: str, pooled):
        three = self.unit(x, f"{n}.branch3x3_1", 384)
        twice = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 448), f"{n}.branch3x3dbl_2", 384, (3, 3), padding=1)
        parts = [
            self.unit(x, f"{n}.branch1x1", 320),
            self.unit(three, f"{n}.branch3x3_2a", 384, (1, 3), padding=(0, 1)),
            self.unit(three, f"{n}.branch3x3_2b", 384, (3, 1), padding=(1, 0)),
            self.unit(twice, f"{n}.branch3x3dbl_3a", 384, (1, 3), padding=(0, 1)),
            self.unit(twice, f"{n}.branch3x3dbl_3b", 384, (3, 1), padding=(1, 0)),
            self.unit(pooled, f"{n}.branch_pool", 192),
        ]
        return torch.cat(parts, 1)

    def __call__(self, x):
        """[n 3 h w] in [-1, 1] -> [n 2048 / width]."""
        x = self.unit(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
        x = self.unit(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = self.unit(x, "Conv2d_2b_3x3", 64, (3, 3), padding=1)
        x = self.unit(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1", 80)
        x = self.unit(x, "Conv2d_4a_3x3", 192, (3, 3))
        x = F.max_pool2d(x, 3, 2)
        x = self.a(self.a(self.a(x, "Mixed_5b", 32), "Mixed_5c", 64), "Mixed_5d", 64)
        x = self.c(self.c(self.b(x, "Mixed_6a"), "Mixed_6b", 128), "Mixed_6c", 160)
        x = self.d(self.c(self.c(x, "Mixed_6d", 160), "Mixed_6e", 192), "Mixed_7a")
        x = self.e(x, "Mixed_7b", F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        x = self.e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
        return x.mean((2, 3))

    def params(self) -> dict:
        tree: dict = {}
        for name, (weight, *rest) in self.state.items():
            place = tree
            for part in name.split("."):
                place = place.setdefault(part, {})
            place["kernel"] = weight.permute(2, 3, 1, 0)
            place |= dict(zip(("gamma", "beta", "mean", "var"), rest, strict=True))
        return jax.tree.map(lambda array: np.asarray(array, np.float32), tree)


def to_torch(x) -> "torch.Tensor":
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x, np.float32).transpose(0, 3, 1, 2)))


def relative(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Two clips of one frame: a rough and a smooth one."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (1, 1, 48, 64, 3))
    smooth = np.linspace(0, 255, 64)[:, None] * np.linspace(0.2, 1, 48)[:, None, None] * rng.uniform(0.5, 1, 3)
    return np.concatenate([rough, np.broadcast_to(smooth, rough.shape)]).astype(np.uint8)


def by_public_code(frames: np.ndarray, mode: str) -> np.ndarray:
    """What clean-fid and pytorch-fid show the network, by the libraries that they use."""
    if mode == "legacy_pytorch":
        x = to_torch(frames).double() / 255  # in float32 its sample points are 1e-5 of a pixel off
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return (2 * x - 1).numpy().transpose(0, 2, 3, 1)
    if mode == "clean":
        made = [[Image.fromarray(x[..., c].astype(np.float32)) for c in range(3)] for x in frames]
        made = [[np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)) for p in planes] for planes in made]
        return (np.stack(made).clip(0, 255).transpose(0, 2, 3, 1) - 128) / 128
    x, (n, height, width, _) = to_torch(frames), frames.shape
    shifted = torch.eye(2, 3)  # TF1's grid, as NVIDIA's TorchScript has it
    shifted[0, 2] += 1 / width - 1 / 299
    shifted[1, 2] += 1 / height - 1 / 299
    grid = F.affine_grid(shifted[None].repeat(n, 1, 1), [n, 3, 299, 299], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return ((x - 128) / 128).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("mode", inception.MODES)
def test_preprocessing_is_that_of_public_code(clips: np.ndarray, mode) -> None:
    large = np.random.default_rng(3).integers(0, 256, (1, 320, 311, 3), np.uint8)
    for frames in (clips[:, 0], large):
        made = np.asarray(jax.jit(lambda x: inception.preprocess(x, mode))(frames))
        assert made.shape == (len(frames), 299, 299, 3)
        assert made.dtype == np.float32
        assert abs(made).max() <= 1 + 1e-6
        # NVIDIA's float32 sample points are 5e-5 of a pixel off.
        np.testing.assert_allclose(made, by_public_code(frames, mode), atol=2e-4 if "tensor" in mode else 1e-5)


@pytest.mark.parametrize("mode", inception.MODES)
def test_frames_of_the_right_size_are_only_scaled(mode) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    centre, unit = (127.5, 127.5) if mode == "legacy_pytorch" else (128, 128)
    made = inception.preprocess(jnp.asarray(frames), mode)
    np.testing.assert_allclose(made, (frames.astype(float) - centre) / unit, atol=1e-6)


def test_preprocessing_is_cleanfids(clips: np.ndarray) -> None:
    cleanfid = pytest.importorskip("cleanfid.resize")
    for mode in ("clean", "legacy_pytorch"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names Pillow's mode, which is deprecated
            shown = cleanfid.build_resizer(mode)(clips[0, 0])
        expected = 2 * shown / 255 - 1 if mode == "legacy_pytorch" else (shown - 128) / 128
        np.testing.assert_allclose(inception.preprocess(clips[0, 0], mode), expected, atol=1e-5)


def test_features_are_pytorchs(clips: np.ndarray) -> None:
    reference = Reference(1)
    with torch.no_grad():
        expected = reference(to_torch(by_public_code(clips[:, 0], "clean"))).numpy()
    assert 0.1 < expected.std() < 10  # neither dead nor exploded
    assert relative(expected[0], expected[1]) > 0.1
    network = inception.network(reference.params(), "abc")
    made = jax.jit(network.apply)(network.params, clips)
    assert made.dtype == np.float32
    assert made.shape == (2, 2048)
    for row, wanted in zip(made, expected, strict=True):
        assert relative(row, wanted) < 1e-4


@pytest.mark.usefixtures("unchecked")
def test_the_edges_of_every_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that leave odd and even maps, in a network of a sixteenth of the width."""

    def narrow(step):
        if isinstance(step, inception.Conv):
            return step._replace(features=step.features // 16)
        return tuple(narrow(part) for part in step) if isinstance(step, tuple) else step

    monkeypatch.setattr(inception, "STEM", narrow(inception.STEM))
    monkeypatch.setattr(inception, "MIXED", {name: narrow(branches) for name, branches in inception.MIXED.items()})
    reference = Reference(2, 16)
    x = np.random.default_rng(2).uniform(-1, 1, (8, 107, 148, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(to_torch(x).double())  # whose float32 is itself 3e-5 off in a network so narrow
    assert relative(jax.jit(inception.Inception().apply)({"params": reference.params()}, x), expected) < 1e-4
    with pytest.raises(ValueError, match="75 pixels or more"):
        inception.Inception().apply({"params": reference.params()}, np.zeros((1, 74, 299, 3), np.float32))


class Pixels:
    """In the network's place: a few pixels of each picture."""

    seen: list[int]

    def __init__(self, precision) -> None:
        self.precision = precision

    def apply(self, variables, x: jax.Array) -> jax.Array:
        self.seen.append(x.shape[0])
        return x[:, ::100, ::100].reshape(-1, inception.FEATURES)


@pytest.mark.parametrize(("frames_per_pass", "b", "f"), [(64, 1, 1), (64, 1, 70), (6, 2, 5), (4, 7, 3), (1, 2, 2)])
@pytest.mark.usefixtures("unchecked")
def test_rows_are_frames_clip_by_clip(monkeypatch: pytest.MonkeyPatch, frames_per_pass: int, b: int, f: int) -> None:
    """However many go at once, and without holding much more than that."""
    monkeypatch.setattr(inception, "Inception", Pixels)
    monkeypatch.setattr(inception, "FEATURES", 27)
    monkeypatch.setattr(inception, "FRAMES_PER_PASS", frames_per_pass)
    Pixels.seen = []
    clips = np.random.default_rng(4).integers(0, 256, (b, f, 5, 4, 3), np.uint8)
    made = inception.network({}, "abc", mode="legacy_pytorch").apply({}, clips)
    expected = by_public_code(clips.reshape(-1, 5, 4, 3), "legacy_pytorch")[:, ::100, ::100].reshape(b * f, 27)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert max(Pixels.seen) <= max(b, frames_per_pass)


def test_parameters_are_those_of_the_public_file() -> None:
    shape = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    params = jax.eval_shape(inception.Inception().init, jax.random.key(0), shape)["params"]
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert len(kernels) == 94
    # torchvision counts 27,161,264 with its auxiliary classifier: 3,326,696, and 1000 classes: 2,049,000.
    learnt = sum(leaf.size for leaf in jax.tree.leaves(params)) - 2 * sum(leaf.shape[-1] for leaf in kernels)
    assert learnt == 27_161_264 - 3_326_696 - 2_049_000


def test_the_protocol_distinguishes_modes() -> None:
    networks = [inception.network({}, "abc", mode=mode, exact=exact) for mode in inception.MODES for exact in (0, 1)]
    protocols = [json.dumps(dict(network.protocol), sort_keys=True) for network in networks]
    assert len(set(protocols)) == 6
    for network in networks:
        assert (network.name, network.dim) == ("inception", 2048)
        assert network.protocol["rows"] == "frames"
        assert network.protocol["weights"] == "abc"
    assert networks[1].protocol["resize"] == (
        "antialiased_bicubic to 299 x 299, squash, clipped to 0 ... 255, then (x - 128) / 128"
    )
    assert {field.name for field in dataclasses.fields(networks[0])} >= {"name", "dim", "params", "apply", "protocol"}


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 2, 64, 64, 1), (0, 2, 64, 64, 3), (1, 0, 64, 64, 3)])
@pytest.mark.usefixtures("unchecked")
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    network = inception.network({}, "abc")
    with pytest.raises(ValueError, match="expected clips"):
        network.apply({}, jnp.zeros(shape, jnp.uint8))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_mode() -> None:
    for call in (lambda: inception.network({}, "abc", mode="pil"), lambda: inception.preprocess(jnp.zeros(3), "pil")):
        with pytest.raises(ValueError, match="expected a mode of clean, legacy_tensorflow, legacy_pytorch, got pil"):
            call()
