"""A public file from end to end: converted, sampled, fine-tuned, exported, and loaded again in its original library."""

import json

import jax
import numpy as np
import pytest

from tests.pretrained.torch_unets import adm as torch_adm
from tests.pretrained.torch_unets import arrays, channels_first, outputs, randomised
from tests.test_main import drawn, tiny, weights
from vf import main, video
from vf.config import build, check, data, models, networks, start
from vf.data.pipeline import NoClips
from vf.diffusion import gaussian, solvers
from vf.pretrained import convert, export
from vf.pretrained.base import header_text, open_base
from vf.types import UserError

torch = pytest.importorskip("torch")
SMALL = {"width": 32, "mult": (1, 2), "blocks": 1, "attends": (False, False), "classes": 5}


@pytest.fixture(scope="module")
def net():
    return randomised(torch_adm(**SMALL))


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    net.save_pretrained(folder / "unet")
    convert.convert_base("adm", folder / "unet", folder / "adm.safetensors")
    return folder / "adm.safetensors"


def config(file, **changes):
    """The demo's config on this base: no conditions, eps under a cosine schedule."""
    fixed = {
        "base__pretrained": str(file), "base__prediction": "eps", "base__loss": "", "model__condition": "none",
        "base__net__dropout": 0.0,
    }  # fmt: skip
    return tiny(**fixed | changes)


def test_images_of_the_file_itself(net, file, tmp_path):
    """Before any training, without data: diffusers' network, with its variance, under the same sampler, by class."""
    made = config(
        file,
        sample__what="base",
        sample__count=3,
        sample__label=2,
        data__source="nowhere",
        sample__clip_x_0=0.0,
        sample__times=(600, 300, 0),
        sample__solver="ddim",
        sample__eta=1.0,
        model__context="embedding",
    )
    assert main.run(made, tmp_path, "sample") == {}
    found = video.load_npz(drawn(tmp_path, 0, "base", 3) / "clips.npz")["clips"]
    model, source = models.file_model(made)
    assert source.class_names == tuple("01234")
    job = build.sample_spec(made, source)
    keys = _keys(made, 3)
    draw = jax.vmap(lambda k: model.prior.draw(k, model.shape))
    start, injected = ([jax.random.fold_in(k, n) for k in keys] for n in (0, 1))

    def estimate(z, t):
        label = torch.full((3,), 2)
        out, _ = outputs(net, (), channels_first(z[:, 0]), torch.full((3,), int(t)), class_labels=label)
        eps, alpha, sigma = out[:, None, ..., :3], model.schedule.alpha(t), model.schedule.sigma(t)
        return gaussian.Estimate((z - sigma * eps) / alpha, eps, variance=(out[:, None, ..., 3:] + 1) / 2)

    with jax.disable_jit():
        z = solvers.solve(
            estimate, draw(jax.numpy.stack(start)), job.options.grid, model.schedule, solver=solvers.DDIM(1.0),
            noise=lambda t: draw(jax.numpy.stack([jax.random.fold_in(k, t) for k in injected])),
        )  # fmt: skip
    true = np.asarray(video.to_uint8(z)).astype(int)
    assert np.abs(found.astype(int) - true).max() <= 1
    with pytest.raises(UserError, match=r"sample\.label must be a class, 0 to 4"):
        main.run(config(file, sample__what="base", sample__label=5, data__source="nowhere"), tmp_path / "b", "sample")
    with pytest.raises(UserError, match='trained without "no class"'):
        main.run(config(file, sample__what="base", sample__guidance_scale=2.0), tmp_path / "c", "sample")


def _keys(made, count):
    from vf import rng

    return rng.example_keys(made.sample.seed, rng.Purpose.SAMPLE, np.arange(count, dtype=np.uint32))


def test_the_config_follows_the_file(file, tmp_path):
    made = config(file)
    resolved = networks.resolved(made, tmp_path)
    assert (made.base.net.width, resolved.base.net.width) == (8, 32)
    assert resolved.base.net.width_mult == (1, 2)
    assert resolved.base.net.learned_variance
    with pytest.raises(UserError, match="no weights at"):
        networks.resolved(config(tmp_path / "none.safetensors"), tmp_path)
    (tmp_path / "base.json").write_text(header_text(open_base(file)).replace(open_base(file).fingerprint, "another"))
    with pytest.raises(UserError, match=r"is not what the run in .* began with"):
        networks.resolved(made, tmp_path, fresh=False)
    gone = networks.resolved(config(tmp_path / "none.safetensors"), tmp_path, fresh=False)
    assert gone.base.net == resolved.base.net
    with pytest.raises(UserError, match="both say where the base network starts from"):
        check.check(config(file, base__init_from="runs/x", init_from="runs/y"), "train")


def test_a_run_starts_from_the_arrays_of_the_file(file, tmp_path):
    made = networks.resolved(config(file), tmp_path)
    model = models.model(made, NoClips())
    shapes = model.shapes()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    begins = start.start(made, model.networks)
    assert begins.networks == ("base",)
    assert begins.origin["fingerprint"] == open_base(file).fingerprint
    found = begins.read(abstract)
    assert found.keys() == {"base"}
    true = open_base(file).params(export.named(shapes["base"]))
    for path, array in export.named(found["base"]).items():
        np.testing.assert_array_equal(array, true[path])


@pytest.mark.slow
def test_conversion_training_export_and_reloading(net, file, tmp_path, monkeypatch):
    """Trained, exported, loaded in diffusers with equal outputs; resumed where the file has gone."""
    made = config(file, train__steps=2)
    main.run(made, tmp_path / "run", "train")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]["start"]["family"] == "adm"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["base"]["net"]["width"] == 32
    export.export(tmp_path / "run", tmp_path / "model")
    convert.convert_back("adm", "diffusers", tmp_path / "model", tmp_path / "unet")
    loaded = type(net).from_pretrained(tmp_path / "unet").eval()
    assert loaded.config.num_class_embeds is None
    z = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    t = np.array([3, 900])
    true, _ = outputs(loaded, (), channels_first(z[:, 0]), torch.from_numpy(t))
    resolved = networks.resolved(made, tmp_path)
    model = models.model(resolved, data.source(resolved))
    params = weights(tmp_path / "run", resolved)
    found = jax.jit(model.base.apply)({"params": params["base"]}, z, t)[:, 0]
    np.testing.assert_allclose(found, true, atol=1e-4 * np.abs(true).max())
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(_moved(net), _moved(loaded), strict=True))  # it has trained

    # The file goes: the run still resumes, and what was exported samples.
    file.rename(tmp_path / "moved.safetensors")
    try:
        main.run(config(file, train__steps=3), tmp_path / "run", "train")
        samples = tmp_path / "samples"
        fields = {
            "init_from": str(tmp_path / "model"),
            "base__pretrained": str(tmp_path / "model" / "base.safetensors"),
        }
        main.run(config(file, **fields), samples, "sample")
        clips = video.load_npz(drawn(samples, 0) / "clips.npz")["clips"]
        assert clips.shape == (4, 8, 16, 16, 3)
    finally:
        (tmp_path / "moved.safetensors").rename(file)


def _moved(net):
    return [array for name, array in sorted(arrays(net).items()) if name.startswith("down_blocks")]
