"""C3D against PyTorch and NumPy: layers on random weights, and each public code's preparation of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vf.nets import c3d

WIDTH, CLASSES = 2, 11


def drawn(seed: int = 0, width: int = WIDTH, classes: int = CLASSES) -> dict:
    """Weights that keep activations of about one size, and a mean volume that is nowhere constant."""
    rng = np.random.default_rng(seed)
    x = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32)
    shapes = jax.eval_shape(c3d.C3D(width, classes).init, jax.random.key(0), x)["params"]

    def draw(path, leaf):
        if leaf.ndim == 1:
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) / (60 if path[0].key == "conv1a" else 1)
        return (scale * rng.normal(0, 1, leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return params | {"mean": rng.uniform(60, 140, c3d.MEAN).astype(np.float32)}


def clips(*shape: int, seed: int = 1) -> np.ndarray:
    """Pictures with coarse and fine structure: noise, blurred differently per clip."""
    noise = np.random.default_rng(seed).uniform(0, 255, (*shape, 3))
    return ((noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)) / 3).astype(np.uint8)


@pytest.fixture(scope="module")
def params() -> dict:
    return drawn()


def torch_c3d(params: dict, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, probabilities and fc7 of x [b 3 16 112 112], with Caffe's pools: a part of a window counts."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def layer(name):
        kernel = np.asarray(params[name]["kernel"])
        axes = (4, 3, 0, 1, 2) if kernel.ndim == 5 else (1, 0)
        return torch.tensor(kernel.transpose(axes)), torch.tensor(np.asarray(params[name]["bias"]))

    h = torch.tensor(np.ascontiguousarray(x))
    for group in (("conv1a",), ("conv2a",), ("conv3a", "conv3b"), ("conv4a", "conv4b"), ("conv5a", "conv5b")):
        for name in group:
            h = torch.relu(functional.conv3d(h, *layer(name), padding=1))
        h = functional.max_pool3d(h, (1, 2, 2) if group == ("conv1a",) else 2, ceil_mode=True)
    h = h.flatten(1)
    for name in ("fc6", "fc7"):
        h = torch.relu(functional.linear(h, *layer(name)))
    logits = functional.linear(h, *layer("fc8"))
    return logits.numpy(), logits.softmax(1).numpy(), h.numpy()


def cubic(picture: np.ndarray, size: int) -> np.ndarray:
    """cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC) of floats [h w c] by OpenCV's four weights."""

    def one(x: np.ndarray) -> np.ndarray:
        made, a = np.zeros((size, *x.shape[1:])), -0.75
        for j in range(size):
            at = (j + 0.5) * len(x) / size - 0.5
            first = int(np.floor(at))
            t = at - first
            weights = [
                ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
                ((a + 2) * t - (a + 3)) * t * t + 1,
                ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ]
            weights.append(1 - sum(weights))
            for tap, weight in zip(range(first - 1, first + 3), weights, strict=True):
                made[j] += weight * x[min(max(tap, 0), len(x) - 1)]
        return made

    return one(one(picture).swapaxes(0, 1)).swapaxes(0, 1)


def tgan_input(u8: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """calc_inception.py: cubic to 128, B G R, less columns 21 ... 148 of the mean, the centre of 112 -> [b c f h w]."""
    x = np.stack([[cubic(frame.astype(float), 128) for frame in clip] for clip in u8])
    x = x.transpose(4, 0, 1, 2, 3)[::-1] - mean.reshape(3, 1, 16, 128, 171)[..., 21:149]
    return x[:, :, :, 8:120, 8:120].transpose(1, 0, 2, 3, 4).astype(np.float32)


def tganv2_input(u8: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """c3d_ucf101.py: 128 x, resized with corners on corners, B G R, plus 128 less columns 8 ... 119 of the mean."""
    torch = pytest.importorskip("torch")
    x = torch.tensor((u8.astype(np.float64) - 128) / 128)[..., [2, 1, 0]].permute(0, 1, 4, 2, 3) * 128
    b, f = x.shape[:2]
    x = torch.nn.functional.interpolate(x.flatten(0, 1), size=(112, 112), mode="bilinear", align_corners=True)
    x = x.reshape(b, f, 3, 112, 112).transpose(1, 2).numpy() + (128 - mean[:, :, 8:120, 8:120])
    return x.astype(np.float32)


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """Error relative to the spread of what is expected."""
    return float(np.abs(np.asarray(found) - expected).max() / expected.std())


def test_full_size_has_the_published_number_of_parameters():
    x = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32)
    params = jax.eval_shape(c3d.C3D().init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in flatten_dict(params, sep="/").values()) == 78_409_573
    assert params["fc6"]["kernel"].shape == (512 * 4 * 4, 4096)
    made = c3d.network(params | {"mean": jax.ShapeDtypeStruct(c3d.MEAN, jnp.float32)}, "f")
    clip = jax.ShapeDtypeStruct((2, 16, 240, 320, 3), jnp.uint8)
    assert jax.eval_shape(made.apply, made.params, clip).shape == (2, 101) == (2, made.dim)


def test_layers_are_those_of_pytorch(params):
    x = np.random.default_rng(2).normal(0, 60, (1, 3, 16, 112, 112)).astype(np.float32)
    logits, _, fc7 = torch_c3d(params, x)
    module, ours = c3d.C3D(WIDTH, CLASSES), jnp.asarray(x.transpose(0, 2, 3, 4, 1))
    variables = {"params": {name: leaf for name, leaf in params.items() if name != "mean"}}
    found = jax.jit(lambda v, x: [module.apply(v, x, output) for output in ("logits", "fc7")])(variables, ours)
    assert far(found[0], logits) < 1e-4
    assert far(found[1], fc7) < 1e-4
    assert fc7.min() == 0  # features are taken after the ReLU


@pytest.mark.parametrize(("h", "w"), [(64, 64), (100, 150), (128, 128), (240, 136)])
@pytest.mark.parametrize("variant", ["tgan", "tganv2", "styleganv"])
def test_frames_are_prepared_as_in_the_public_codes(params, variant, h, w):
    u8 = clips(2, 16, h, w)
    expected = (tgan_input if variant == "tgan" else tganv2_input)(u8, params["mean"])
    found = np.asarray(c3d.prepare(u8, params["mean"], variant))
    assert far(found.transpose(0, 4, 1, 2, 3), expected) < 1e-5


def test_network_is_preparation_and_layers(params):
    u8 = clips(2, 16, 60, 80)
    u8[1] //= 3  # another clip altogether
    _, probabilities, fc7 = torch_c3d(params, tgan_input(u8, params["mean"]))
    for output, expected in (("probabilities", probabilities), ("fc7", fc7)):
        made = c3d.network(params, "f", variant="tgan", output=output)
        found = np.asarray(jax.jit(made.apply)(params, u8))
        assert found.shape == (2, made.dim)
        assert far(found, expected) < 1e-4
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-2  # so that the comparison is not trivial


def test_stylegan_v_takes_the_first_frames_as_tganv2_does(params):
    u8 = clips(1, 20, 48, 48)
    first = np.asarray(c3d.prepare(u8[:, :16], params["mean"], "tganv2"))
    assert np.array_equal(c3d.prepare(u8, params["mean"], "styleganv"), first)
    assert far(np.asarray(c3d.prepare(u8[:, :16], params["mean"], "tgan")), first) > 0.1


@pytest.mark.parametrize("variant", ["tgan", "tganv2", "styleganv"])
def test_a_clip_equal_to_the_mean_gives_zero(variant):
    """Constant per channel: R G B of the clip against B G R of the volume, and resampling that keeps constants."""
    mean = np.broadcast_to(np.float32([20, 90, 160]).reshape(3, 1, 1, 1), c3d.MEAN)
    u8 = np.broadcast_to(np.uint8([160, 90, 20]), (1, 16, 50, 70, 3))
    assert np.abs(c3d.prepare(u8, mean, variant)).max() < 1e-3
    assert np.abs(c3d.prepare(u8[..., ::-1], mean, variant)).max() == pytest.approx(140, abs=1e-3)


def test_the_protocol_records_what_changes_the_features(params):
    protocols = [
        c3d.network(params, fingerprint, variant=variant, output=output, exact=exact).protocol
        for fingerprint in ("f", "g")
        for variant in c3d.PREPARATIONS
        for output in ("probabilities", "fc7")
        for exact in (True, False)
    ]
    assert len({str(sorted(one.items())) for one in protocols}) == len(protocols)


@pytest.mark.parametrize(
    ("variant", "shape", "what"),
    [
        ("tgan", (1, 15, 20, 20, 3), "16 frames, got 15"),
        ("tganv2", (1, 17, 20, 20, 3), "16 frames, got 17"),
        ("styleganv", (1, 15, 20, 20, 3), "16 frames or more, got 15"),
    ],
)
def test_clips_of_other_lengths_are_refused(params, variant, shape, what):
    made = c3d.network(params, "f", variant=variant)
    with pytest.raises(ValueError, match=what):
        jax.eval_shape(made.apply, params, jax.ShapeDtypeStruct(shape, jnp.uint8))


@pytest.mark.usefixtures("unchecked")
def test_unknown_variants_and_other_shapes_are_refused(params):
    with pytest.raises(ValueError, match="tgan, tganv2, styleganv"):
        c3d.network(params, "f", variant="c3d")
    with pytest.raises(ValueError, match="probabilities, fc7"):
        c3d.network(params, "f", output="logits")
    made = c3d.network(params, "f")
    with pytest.raises(ValueError, match="mean volume"):
        made.apply(params | {"mean": np.zeros((3, 16, 112, 112), np.float32)}, clips(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"\[b 16 112 112 3\]"):
        c3d.C3D(WIDTH).init(jax.random.key(0), jnp.zeros((1, 16, 128, 128, 3)))


@pytest.mark.slow
def test_full_size_is_that_of_pytorch():
    params, u8 = drawn(3, c3d.WIDTH, c3d.CLASSES), clips(1, 16, 64, 64)
    _, probabilities, fc7 = torch_c3d(params, tganv2_input(u8, params["mean"]))
    for output, expected in (("probabilities", probabilities), ("fc7", fc7)):
        made = c3d.network(params, "f", variant="tganv2", output=output)
        assert far(np.asarray(jax.jit(made.apply)(params, u8)), expected) < 1e-4
