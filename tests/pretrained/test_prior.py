"""Karlo's prior: the same function as diffusers' PriorTransformer, and the same samples; there and back bit for bit."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.torch_unets import arrays, made, randomised, relative
from vf.diffusion import solvers
from vf.diffusion.gaussian import Estimate
from vf.diffusion.schedule import cosine, time_grid
from vf.nets.prior import denormalised, normalised
from vf.pretrained import convert, prior, safetensors_file, weights
from vf.types import UserError

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
SMALL = {
    "num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 3, "embedding_dim": 48, "num_embeddings": 9
}  # fmt: skip
KARLO: dict = {}  # diffusers' defaults are Karlo's configuration
PARAMETERS = 1_022_030_080


def torch_prior(sizes):
    net = randomised(diffusers.PriorTransformer(**sizes))
    with torch.no_grad():
        net.clip_std.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def net():
    return torch_prior(SMALL)


@pytest.fixture(scope="module")
def ours(net):
    lazy, about = prior.canonical(arrays(net), dict(net.config), {})
    return made(lazy), about


def texts_of(about, rows: int, seed: int = 0):
    """Random states, masks and embeddings of so many texts, the last one for the empty prompt."""
    rng, fields = np.random.default_rng(seed), about["network"]
    lengths = rng.integers(2, fields["text_length"] + 1, rows)
    return {
        "states": rng.normal(size=(rows, fields["text_length"], fields["dim"])).astype(np.float32),
        "mask": np.arange(fields["text_length"]) < lengths[:, None],
        "pooled": rng.normal(size=(rows, fields["dim"])).astype(np.float32),
    }


def with_texts(params, texts):
    stored = {f"texts/{name}": np.asarray(value, np.float32) for name, value in texts.items()}
    return weights.Weights("", {**params, **stored}, "", {}).tree()


def inputs(about):
    """Noised embeddings, times, texts of several lengths, and which of them each has."""
    z = np.random.default_rng(1).normal(size=(3, about["network"]["dim"])).astype(np.float32)
    return z, np.array([3, 999, 500]), texts_of(about, 4), np.array([1, 3, 0])


def theirs(net, about):
    z, t, texts, row = inputs(about)
    states, mask, pooled = (torch.from_numpy(texts[name][row]) for name in ("states", "mask", "pooled"))
    with torch.no_grad():
        return net(torch.from_numpy(z), torch.from_numpy(t), pooled, states, mask).predicted_image_embedding.numpy()


def same_function(true, params, about):
    """Texts as rows of the network's own, and given as such."""
    z, t, texts, row = inputs(about)
    module, tree = prior.net(about | {"texts": ["a", "b", "c", ""]}), with_texts(params, texts)

    @jax.jit
    def run(params, z, t, **text):
        return module.apply({"params": params}, z[:, None, None, None], t, **text)[:, 0, 0, 0]

    # Rows whose text is dropped have that of the empty prompt, the last one.
    given = {f"text_{name}": texts[name][row] for name in texts}
    other = given | {"null": np.array([False, True, False])}
    other["text_pooled"] = other["text_pooled"] + np.array([[0], [1], [0]])
    for text in ({"label": row}, given, other):
        assert relative(run(tree, z, t, **text), true) < 1e-4


def test_it_gives_what_diffusers_gives(net, ours):
    same_function(theirs(net, ours[1]), *ours)


@pytest.mark.slow
def test_full_width_gives_what_diffusers_gives():
    """Karlo itself: 1.02 billion parameters, 77 tokens of 768."""
    net = torch_prior(KARLO)
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == PARAMETERS
    lazy, about = prior.canonical(arrays(net), dict(net.config), {})
    true, params = theirs(net, about), made(lazy)
    del net, lazy  # 4 GB
    same_function(true, params, about)


def test_each_block_gives_what_diffusers_gives(net, ours):
    """The first k blocks alone, for each k, as networks of their own."""
    params, about = ours
    for depth in (1, 2):
        fewer = {
            name: array[:depth] if name.startswith("blocks/") else array for name, array in params.items()
        }  # fmt: skip
        cut = diffusers.PriorTransformer(**SMALL | {"num_layers": depth})
        cut.load_state_dict({name: net.state_dict()[name] for name in cut.state_dict()})
        facts = about | {"network": about["network"] | {"depth": depth}}
        same_function(theirs(cut.eval(), facts), fewer, facts)


def test_the_full_size_has_exactly_the_published_names_and_shapes():
    with torch.device("meta"):
        theirs = diffusers.PriorTransformer().state_dict()
    shapes = {name: np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), tensor.shape, (0,) * tensor.ndim)
              for name, tensor in theirs.items()}  # fmt: skip
    found, about = prior.canonical(shapes, {}, {})
    assert about["network"] == {"dim": 768, "width": 2048, "heads": 32, "depth": 20, "text_length": 77}
    assert sum(int(np.prod(lazy.shape)) for lazy in found.values()) == PARAMETERS
    back = prior.diffusers(dict.fromkeys(found), about)["prior"][0]
    assert {name: lazy.shape for name, lazy in back.items()} == {n: tuple(x.shape) for n, x in theirs.items()}


def run(source, out, *flags):
    convert.main(["karlo-prior", f"--source={source}", f"--out={out}", *flags])


@pytest.fixture(scope="module")
def pipeline(net, tmp_path_factory):
    """A pipeline's folder, of half precision."""
    folder = tmp_path_factory.mktemp("pipeline")
    net.save_pretrained(folder / "prior")
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    )
    scheduler.save_pretrained(folder / "prior_scheduler")
    return folder


def test_round_trip_is_the_identity(net, pipeline, tmp_path, capsys):
    run(pipeline, tmp_path / "a.safetensors")
    assert "neither classes nor the empty prompt" in capsys.readouterr().out
    converted = weights.load(tmp_path / "a.safetensors", "karlo-prior")
    assert (converted.about["clip_x_0"], converted.about["prediction"]) == (5.0, "x_0")
    run(tmp_path / "a.safetensors", tmp_path / "folder", "--to=diffusers")
    loaded = diffusers.PriorTransformer.from_pretrained(tmp_path / "folder", subfolder="prior")
    assert dict(loaded.config)["num_layers"] == 3
    back = arrays(loaded)
    assert back.keys() == arrays(net).keys()
    for name, array in arrays(net).items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    scheduler = diffusers.UnCLIPScheduler.from_pretrained(tmp_path / "folder", subfolder="prior_scheduler")
    assert (scheduler.config.prediction_type, scheduler.config.clip_sample_range) == ("sample", 5.0)
    run(tmp_path / "folder" / "prior", tmp_path / "b.safetensors")
    again = weights.load(tmp_path / "b.safetensors", "karlo-prior")
    assert again.fingerprint == converted.fingerprint
    half = type(net)(**SMALL).half()
    half.load_state_dict({name: tensor.half() for name, tensor in net.state_dict().items()})
    half.save_pretrained(tmp_path / "half" / "prior")
    run(tmp_path / "half", tmp_path / "h.safetensors")
    run(tmp_path / "h.safetensors", tmp_path / "again", "--to=diffusers")
    tensors, _ = safetensors_file.read(tmp_path / "again" / "prior" / "diffusion_pytorch_model.safetensors")
    for name, tensor in half.state_dict().items():
        assert tensors[name].dtype == np.float16
        np.testing.assert_array_equal(tensors[name], tensor.numpy())


def test_files_that_are_no_prior(net, pipeline, tmp_path):
    def refused(message, source, **changes):
        with pytest.raises(UserError, match=message):
            convert.convert_base("karlo-prior", source, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()

    def variant(**changes):
        folder = tmp_path / "-".join(changes)
        diffusers.PriorTransformer(**SMALL | changes).save_pretrained(folder)
        return folder

    (tmp_path / "empty").mkdir()
    refused("no weights|holds no", tmp_path / "empty")
    refused("its config.json has norm_in_type = 'layer'", variant(norm_in_type="layer"))
    refused("its config.json has added_emb_type = None", variant(added_emb_type=None))
    unnamed = tmp_path / "x.safetensors"
    state = arrays(net)
    safetensors_file.write(unnamed, [("a", state["proj_in.bias"])], {"format": "pt"})
    refused("it is no PriorTransformer of diffusers: name Karlo's folder `prior`", unnamed)
    broken = {name: array for name, array in state.items() if "1.attn1.to_k.bias" not in name}
    with pytest.raises(ValueError, match=r"1 missing: transformer_blocks\.1\.attn1\.to_k\.bias"):
        prior.canonical(broken, {}, {})
    with pytest.raises(ValueError, match="predicts eps, where a prior predicts x_0"):
        prior.canonical(state, {"prediction_type": "epsilon"}, {})
    with pytest.raises(UserError, match="karlo-prior is written as diffusers, not as karlo"):
        convert.convert_back("karlo-prior", "karlo", tmp_path / "x.safetensors", tmp_path / "out")


# ---- its sampler


@pytest.mark.parametrize("steps", [2, 7, 25, 50])
def test_the_house_s_grid_is_the_scheduler_s(steps):
    scheduler = diffusers.UnCLIPScheduler()
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(time_grid(steps, 1000), [*scheduler.timesteps.tolist(), -1])


def test_samples_are_the_scheduler_s(net, ours, monkeypatch):
    """25 steps guided by 4.0, as the pipeline does them, with the same noise: DDIM of eta 1, bounded to 5."""
    params, about = ours
    steps, scale, rows, dim = 25, 4.0, 2, about["network"]["dim"]
    texts = texts_of(about, 3)  # two texts, and the empty one
    rng = np.random.default_rng(2)
    start = rng.normal(size=(rows, dim)).astype(np.float32)
    noises = rng.normal(size=(steps, rows, dim)).astype(np.float32)

    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=about["clip_x_0"]
    )
    # In float32 its 1 - alpha_bar[0], 4e-5, is off by 5e-4 of itself, and so is the last sample; the maths is compared.
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(steps)
    module = sys.modules[type(scheduler).__module__]
    order = iter(noises)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(next(order)))
    both = [torch.from_numpy(np.concatenate([texts[name][[2, 2]], texts[name][:2]])) for name in texts]
    latents = torch.from_numpy(start)
    times = scheduler.timesteps
    for k, t in enumerate(times):
        with torch.no_grad():
            doubled = net(torch.cat([latents] * 2), t, both[2], both[0], both[1]).predicted_image_embedding
        without, given = doubled.chunk(2)
        guided = without + scale * (given - without)
        before = None if k + 1 == len(times) else times[k + 1]
        latents = scheduler.step(guided, timestep=t, sample=latents, prev_timestep=before).prev_sample
    with torch.no_grad():
        true = net.post_process_latents(latents).numpy()

    ours_net, schedule = prior.net(about | {"texts": ["a", "b", ""]}), cosine(1000)
    tree = with_texts(params, texts)
    grid = time_grid(steps, 1000)
    tables = jnp.zeros((1001, rows, dim)).at[grid[:-1]].set(noises)

    def denoise(z, t):
        value = ours_net.apply(
            {"params": tree}, jnp.concatenate([z, z]), jnp.full(2 * rows, t), label=jnp.array([0, 1, 2, 2])
        )
        given, without = jnp.split(value, 2)
        x_0 = without + scale * (given - without)
        return Estimate(x_0, (z - schedule.alpha(t) * x_0) / schedule.sigma(t))

    z = jax.jit(
        lambda z: solvers.solve(
            denoise, z, grid, schedule, solver=solvers.DDIM(eta=1.0), clip_x_0=about["clip_x_0"],
            noise=lambda t: tables[t][:, None, None, None],
        )
    )(start[:, None, None, None])  # fmt: skip
    assert relative(denormalised(tree, z), true) < 1e-4
    np.testing.assert_allclose(normalised(tree, denormalised(tree, z)), z, atol=1e-4)


@pytest.mark.slow
def test_full_size_converts_within_its_memory_and_two_minutes(tmp_path):
    """4.1 GB of random weights, a round trip by the command; peak memory at most 1.3 times the file."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in diffusers.PriorTransformer().state_dict().items()}
    block = np.random.default_rng(0).normal(size=1 << 24).astype(np.float32)
    folder = tmp_path / "karlo" / "prior"
    folder.mkdir(parents=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    safetensors_file.write(file, [(name, np.resize(block, shape)) for name, shape in shapes.items()], {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"_class_name": "PriorTransformer"}))
    size = file.stat().st_size
    assert size > 4 * 1_022_000_000
    for source, out, flags in (("karlo", "k.safetensors", ()), ("k.safetensors", "back", ("--to=diffusers",))):
        began = time.monotonic()
        assert _peak(tmp_path / source, tmp_path / out, *flags) < 1.3 * size
        assert time.monotonic() - began < 120
    last, _ = safetensors_file.read(tmp_path / "back" / "prior" / "diffusion_pytorch_model.safetensors")
    assert last.keys() == shapes.keys()
    for name, shape in shapes.items():
        np.testing.assert_array_equal(last[name], np.resize(block, shape))


def _peak(source, out, *flags):
    """Bytes of memory that a conversion by the command holds at most."""
    code = (
        "import re, sys\nfrom vf.pretrained import convert\nconvert.main(sys.argv[1:])\n"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, "karlo-prior", f"--source={source}", f"--out={out}", *flags]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(found.stdout.split("peak ")[1])
