"""A converted image model as base generator: the same function under any conditions, with any residual generator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.pretrained.torch_unets import SMALL, arrays, made, randomised, text_proj
from tests.pretrained.torch_unets import adm as torch_adm
from tests.pretrained.torch_unets import karlo as torch_karlo
from vf.diffusion import decompose, gaussian
from vf.diffusion.schedule import cosine
from vf.models.videofusion import VideoFusion
from vf.nets.unet import UNet
from vf.pretrained import adm, base, karlo, weights
from vf.types import UserError

Z = np.random.default_rng(0).normal(size=(2, 1, 8, 8, 3)).astype(np.float32)
T = np.array([40, 700])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "adm.safetensors"
    lazy, about = adm.canonical(arrays(randomised(torch_adm(**SMALL))), {}, {})
    weights.save(path, "adm", lazy, about)
    return path


@pytest.fixture(scope="module")
def opened(file):
    return base.open_base(file)


def started(opened, net, names=(), **given):
    """The parameters of `net` from the file, as a tree."""
    shapes = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), Z, T, **given)["params"], sep="/")
    return weights.Weights("", opened.params(shapes, names), "", {}).tree()


@pytest.fixture(scope="module")
def mean(opened, file):
    """What the file's network gives when every class has the mean of all."""
    arrays = dict(weights.load(file, "adm").arrays)
    table = arrays["embed/label/embedding"]
    arrays["embed/label/embedding"] = np.broadcast_to(table.astype(np.float64).mean(0).astype(np.float32), table.shape)
    tree, net = weights.Weights("", arrays, "", {}).tree(), opened.original_network()
    return jax.jit(lambda z, t: net.apply({"params": tree}, z, t, label=jnp.zeros(len(z), int)))


def test_no_classes_and_new_classes_start_as_the_mean(opened, mean):
    true = mean(Z, T)
    net = opened.network()
    np.testing.assert_allclose(jax.jit(net.apply)({"params": started(opened, net)}, Z, T), true, atol=1e-5)
    names = ("Archery", "Bowling", "Diving")
    net, label = opened.network(class_names=names), np.array([1, 3])  # 3 is "no class"
    tree = started(opened, net, names, label=label)
    assert tree["embed"]["label"]["embedding"].shape == (4, 256)
    np.testing.assert_allclose(jax.jit(net.apply)({"params": tree}, Z, T, label=label), true, atol=1e-5)


def test_an_embedding_starts_without_effect(opened, mean):
    net = opened.network(embedding_dim=5)
    cond = np.ones((2, 5), np.float32)
    tree = started(opened, net, cond=cond)
    np.testing.assert_allclose(jax.jit(net.apply)({"params": tree}, Z, T, cond=cond), mean(Z, T), atol=1e-5)


def test_classes_that_the_file_names_keep_their_rows(opened, file, tmp_path):
    """As of a base that was fine-tuned on some of them: its last row is "no class"."""
    found = weights.load(file, "adm")
    about = {**found.about, "classes": [*(f"c{k}" for k in range(9)), ""]}
    weights.save(tmp_path / "b.safetensors", "adm", found.arrays, about)
    again = base.open_base(tmp_path / "b.safetensors")
    names = ("new", "c7", "c0")
    net = again.network(class_names=names)
    table = started(again, net, names, label=np.zeros(2, int))["embed"]["label"]["embedding"]
    old = found.arrays["embed/label/embedding"]
    for row, true in enumerate((old.astype(np.float64).mean(0).astype(np.float32), old[7], old[0], old[9])):
        np.testing.assert_array_equal(table[row], true)


@pytest.mark.parametrize(("lam", "context"), [(0.5, "none"), (1.0, "none"), (0.5, "base_frame")])
def test_the_base_frame_is_the_image_models(opened, mean, lam, context):
    """For any residual parameters the base frame's eps_hat is the image model's; with lambda = 1 every frame's is."""
    residual = UNet(4, (1,), 0, (), head_dim=4, norm_groups=2, frame_embed=True, temporal=("conv",))
    model = VideoFusion(
        schedule=cosine(), shape=(3, 8, 8, 3), base_frame=1, base=opened.network(), residual=residual,
        lam=decompose.make_lambda(lam, 3, 1), context=context,
    )  # fmt: skip
    shapes = model.shapes()
    rng = np.random.default_rng(1)
    params = {
        "base": started(opened, model.base),
        "residual": jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["residual"]),
    }
    z = rng.normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
    image = np.asarray(mean(z[:, 1:2], np.full(2, 300)))[:, 0, ..., :3]
    if context == "none":
        eps_hat = np.asarray(jax.jit(lambda z: model.denoiser(params, {})(z, jnp.asarray(300)).eps)(z))
        np.testing.assert_allclose(eps_hat[:, 1], image, atol=1e-5)
        if lam == 1:
            np.testing.assert_allclose(eps_hat, np.broadcast_to(image[:, None], z.shape), atol=1e-5)
        else:
            assert np.abs(eps_hat[:, [0, 2]] - image[:, None]).max() > 0.1
        return
    # Base first: the error that trains the base frame is that of the image model's prediction.
    x, keys = np.tanh(z), jax.random.split(jax.random.key(3), 2)
    t = jnp.array([300, 500])
    errors = jax.jit(lambda x: model.errors(params, x, {}, keys, t=t))(x)
    noise_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    b = jax.vmap(lambda k: model_noise(k, model))(noise_keys)
    alpha, sigma = (np.asarray(a)[:, None, None, None] for a in (model.schedule.alpha(t), model.schedule.sigma(t)))
    b_hat = mean(gaussian.corrupt(x[:, 1], b, alpha, sigma)[:, None], t)[:, 0, ..., :3]
    np.testing.assert_allclose(errors.eps[:, 1], ((b_hat - b) ** 2).mean((1, 2, 3)), rtol=1e-4)


def model_noise(key, model):
    from vf.diffusion import noise

    return noise.Decomposed(model.lam).parts(key, model.shape)[0]


def test_schedules_are_compared(opened):
    opened.check("cosine", 1000, "eps")
    for given, message in (
        (("linear", 1000, "eps"), "trained with schedule cosine, and this run has linear"),
        (("cosine", 500, "eps"), "trained with steps 1000, and this run has 500"),
        (("cosine", 1000, "v"), "trained with prediction eps, and this run has v"),
    ):
        with pytest.raises(UserError, match=message):
            opened.check(*given)


def test_the_recorded_header_suffices_where_the_weights_have_gone(opened, tmp_path):
    (tmp_path / "base.json").write_text(base.header_text(opened))
    again = base.open_base(tmp_path / "base.json")
    assert again == dataclasses.replace(opened, path=tmp_path / "base.json")
    assert again.network() == opened.network()
    with pytest.raises(UserError, match="no weights at"):
        base.open_base(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="starts from weights that are no longer there"):
        again.params({})


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A small decoder like Karlo's: without texts, and with those of two classes and the empty prompt."""
    nets = randomised(torch_karlo(**SMALL, context=96)), randomised(text_proj(64, 96, 128), 1)
    lazy, about = karlo.canonical(arrays(nets[0]) | arrays(nets[1], "text_proj/"), {}, {})
    rng = np.random.default_rng(2)
    texts = {
        "texts/states": rng.normal(size=(3, 8, 128)), "texts/mask": np.ones((3, 8)),
        "texts/pooled": rng.normal(size=(3, 128)),
    }  # fmt: skip
    texts = {name: array.astype(np.float32) for name, array in texts.items()}
    conditioned = {"texts": ["archery", "tai chi", ""], "classes": ["Archery", "TaiChi"], "text_length": 8}
    folder = tmp_path_factory.mktemp("karlo")
    weights.save(folder / "bare.safetensors", "karlo-decoder", lazy, about)
    weights.save(folder / "conditioned.safetensors", "karlo-decoder", made(lazy) | texts, about | conditioned)
    return base.open_base(folder / "bare.safetensors"), base.open_base(folder / "conditioned.safetensors"), texts


def test_karlo_is_conditioned_on_classes_by_their_texts(decoder):
    bare, conditioned, texts = decoder
    net = conditioned.network(class_names=("TaiChi",))
    tree = started(conditioned, net, ("TaiChi",), label=np.zeros(2, int))
    for name in ("states", "mask", "pooled"):
        np.testing.assert_array_equal(tree["texts"][name], texts[f"texts/{name}"][[1, 2]])
    with pytest.raises(UserError, match="no text of class Bowling"):
        conditioned.network(class_names=("Archery", "Bowling"))
    with pytest.raises(UserError, match="no texts, and the run's condition is label: convert it with a text encoder"):
        bare.network(class_names=("Archery",))
    with pytest.raises(UserError, match=r"the records' embedding has 64 numbers, and .* takes CLIP's of 128"):
        bare.network(embedding_dim=64)
    assert (bare.classes, conditioned.classes) == (0, 2)


def test_karlo_without_conditions_is_the_learned_null(decoder):
    """The run's network without conditions is the file's network with the learned vector and the empty prompt."""
    _, conditioned, _ = decoder
    net = conditioned.network()
    out = jax.jit(net.apply)({"params": started(conditioned, net)}, Z, T)
    original = conditioned.original_network()
    shapes = flatten_dict(jax.eval_shape(original.init, jax.random.key(0), Z, T)["params"], sep="/")
    tree = weights.Weights("", conditioned.params(shapes, original=True), "", {}).tree()
    true = jax.jit(original.apply)({"params": tree}, Z, T, label=np.array([2, 2]))
    np.testing.assert_allclose(out, true, atol=1e-5)


def test_a_learned_embedding_is_preserved_or_replaced_by_zeros(file, opened, tmp_path):
    """A base fine-tuned with embeddings: with them, the same; without, the same as with an embedding of zeros."""
    found = weights.load(file, "adm")
    rng = np.random.default_rng(3)
    beside = {"embed/cond/kernel": rng.normal(size=(5, 256)), "embed/cond/bias": rng.normal(size=256)}
    arrays = {**found.arrays, **{name: array.astype(np.float32) for name, array in beside.items()}}
    assert base.family_of(arrays) == "adm"
    weights.save(tmp_path / "b.safetensors", "adm", arrays, found.about)
    again = base.open_base(tmp_path / "b.safetensors")
    conditioned, bare = again.network(embedding_dim=5), again.network()
    zeros = np.zeros((2, 5), np.float32)
    true = jax.jit(conditioned.apply)({"params": started(again, conditioned, cond=zeros)}, Z, T, cond=zeros)
    np.testing.assert_allclose(jax.jit(bare.apply)({"params": started(again, bare)}, Z, T), true, atol=1e-5)


def test_the_description_of_an_export(opened, file):
    """The classes of the run with "no class" last, its schedule; the licence and the origin of the file."""
    shapes = dict(weights.load(file, "adm").arrays)
    shapes["embed/label/embedding"] = np.zeros((3, 256))
    net = opened.fields
    family, about = base.described(
        shapes, net, schedule={"name": "cosine", "steps": 1000}, prediction="eps", image_size=8,
        classes=["Archery", "Bowling"], header=opened,
    )  # fmt: skip
    assert family == "adm"
    again = base.Base(file, family, "", about)
    assert (again.classes, again.class_names, again.can_be_guided) == (2, ("Archery", "Bowling"), True)
    assert again.fields == net
    assert (about["licence"], about["started_from"]) == ("MIT (OpenAI)", opened.fingerprint)
    assert (opened.classes, opened.can_be_guided) == (10, False)
    assert base.described({"a": 0}, net, schedule={}, prediction="", image_size=8, classes=[], header=None) == ("", {})


def test_which_networks_can_be_public_files():
    assert base.family_of(["unet/conv_in/kernel", "null_embedding"]) == "karlo-decoder"
    assert base.family_of(["conv_in/kernel", "embed/time/out/bias"]) == "adm"
    assert base.family_of(["conv_in/kernel", "embed/frame/out/bias"]) == ""
