"""Karlo's super-resolution networks: the same function as diffusers' block by block, a bit-exact round trip."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.pretrained.torch_unets import arrays, channels_first, channels_last, compare, made, randomised, superres
from vf.diffusion import noise, schedule, solvers
from vf.models.superres import TwoNetworks
from vf.nets import initial
from vf.pretrained import adm, base, convert, karlo_superres, safetensors_file, weights
from vf.types import UserError

torch = pytest.importorskip("torch")
UnCLIPScheduler = pytest.importorskip("diffusers").UnCLIPScheduler
SMALL, FULL = {"width": 32, "mult": (1, 2), "blocks": 1}, {"width": 320, "mult": (1, 2, 3, 4), "blocks": 3}


@pytest.fixture(scope="module")
def nets():
    """The networks of the first steps and of the last."""
    pair = randomised(superres(**SMALL)), randomised(superres(**SMALL), 1)
    with torch.no_grad():
        for net in pair:  # predictions about as large as noise is, so that steps do not blow rounding up
            net.conv_out.weight *= 0.1
    return pair


def same_function(theirs, size):
    lazy, about = karlo_superres.canonical(arrays(theirs), dict(theirs.config), {})
    module, tree = adm.net(about), weights.Weights("", made(lazy), "", {}).tree()
    z = np.random.default_rng(0).normal(size=(2, 1, size, size, 6)).astype(np.float32)
    errors = compare(module, tree, theirs, z, np.array([3, 900]), {}, {}, module)
    wrong = {name: error for name, error in errors.items() if not error < 1e-4}
    assert not wrong, f"first wrong block: {next(iter(wrong.items()))}"
    return errors


def test_every_block_gives_what_diffusers_gives(nets):
    assert len(same_function(nets[0], 16)) == 3 + 2 + 5 + 1  # down, middle, up, and the whole


@pytest.mark.slow
def test_full_width_gives_what_diffusers_gives():
    same_function(randomised(superres(**FULL)), 64)


class _Shape:
    dtype = np.dtype(np.float32)

    def __init__(self, shape):
        self.shape = tuple(shape)


def test_the_full_size_has_exactly_the_published_names_and_shapes():
    with torch.device("meta"):
        theirs = superres(**FULL).state_dict()
    found, about = karlo_superres.canonical({name: _Shape(tensor.shape) for name, tensor in theirs.items()}, {}, {})
    assert sum(int(np.prod(lazy.shape)) for lazy in found.values()) == 691_579_523
    network = about["network"]
    assert (network["middle_attention"], network["scale_shift"], network["attention"]) == (False, False, ())
    assert (about["image_size"], about["schedule"]) == (256, {"name": "cosine", "steps": 1000})
    back, _ = karlo_superres.diffusers(dict.fromkeys(found), about)[""]
    assert {n: lazy.shape for n, lazy in back.items()} == {n: tuple(tensor.shape) for n, tensor in theirs.items()}
    shapes = {name: lazy.shape for name, lazy in karlo_superres.original(dict.fromkeys(found), about).items()}
    # As Karlo's code and diffusers' converter of its file have them.
    assert shapes["input_blocks.0.0.weight"] == (320, 6, 3, 3)
    assert shapes["middle_block.1.in_layers.2.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.3.1.emb_layers.1.weight"] == (1280, 1280)
    assert not any(name.startswith("middle_block.2") for name in shapes)
    again, facts = karlo_superres.canonical({name: _Shape(shape) for name, shape in shapes.items()}, {}, {})
    assert facts["network"] == network
    assert again.keys() == found.keys()


def test_seven_steps_of_both_networks_give_what_diffusers_gives(nets):
    """The last stage of its unCLIP pipeline on two pictures, with the same noises; the last step is of `last`."""
    random = np.random.default_rng(2)
    low = np.clip(random.normal(size=(2, 1, 8, 8, 3)), -1, 1).astype(np.float32)
    noises = random.normal(size=(7, 2, 1, 16, 16, 3)).astype(np.float32)

    trees, module = [], None
    for net in nets:
        lazy, about = karlo_superres.canonical(arrays(net), {}, {})
        module = adm.net(about)
        trees.append(weights.Weights("", made(lazy), "", {}).tree())
    model = TwoNetworks(
        schedule=schedule.cosine(), shape=(1, 16, 16, 3), base_frame=0, net=module, last=module,
        prior=noise.Independent(), low_size=8,
    )  # fmt: skip
    grid = schedule.time_grid(7, 1000)

    @jax.jit
    def ours(params):
        number = jnp.asarray(np.append(noises[1:], noises[:1], 0))  # of step k, the last of which injects none
        sampled = solvers.solve(
            model.denoiser(params, {"low": jnp.asarray(low)}), jnp.asarray(noises[0]), grid, model.schedule,
            solver=solvers.DDIM(1.0), noise=lambda t: number[jnp.argmax(jnp.asarray(grid) == t)], clip_x_0=1.0,
        )  # fmt: skip
        return model.enlarged(jnp.asarray(low)), sampled

    enlarged, found = ours(dict(zip(("base", "last"), trees, strict=True)))
    beside = torch.nn.functional.interpolate(
        channels_first(low[:, 0]), size=[16, 16], mode="bicubic", align_corners=False, antialias=True
    )
    np.testing.assert_allclose(enlarged[:, 0], channels_last(beside), atol=1e-5)

    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", clip_sample=True, clip_sample_range=1.0)
    # In float32 1 - alphas_cumprod[0] is off by 5e-4 of itself, and so is its last step.
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.tolist() == grid[:-1].tolist()
    z = channels_first(noises[0, :, 0])
    drawn = iter(noises[1:])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        home = sys.modules[UnCLIPScheduler.__module__]
        patch.setattr(home, "randn_tensor", lambda *_, **__: channels_first(next(drawn)[:, 0]))
        for k, t in enumerate(scheduler.timesteps):
            value = nets[k == 6](torch.cat([z, beside], 1), t).sample
            before = None if k == 6 else scheduler.timesteps[k + 1]
            z = scheduler.step(value, t, z, prev_timestep=before).prev_sample
    np.testing.assert_allclose(found[:, 0], channels_last(z), atol=1e-3)


def test_training_starts_from_the_image_model_with_layers_that_can_be_learned(nets, tmp_path):
    """Frame by frame the same function; layers over frames and embeddings have gradients, though they do nothing."""
    lazy, about = karlo_superres.canonical(arrays(nets[0]), {}, {"head_dim": 32})
    weights.save(tmp_path / "sr.safetensors", base.SUPERRES, lazy, about)
    with pytest.raises(UserError, match="holds weights of karlo-superres, where those of adm or karlo-decoder"):
        base.open_base(tmp_path / "sr.safetensors")
    file = base.open_base(tmp_path / "sr.safetensors", (base.SUPERRES,))
    net = file.network(temporal=("conv", "attention"), frame_embed=True, amplitude_embed=True)
    z = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 6))
    t, amplitude = jnp.array([3, 900]), jnp.array([0.1, 0.4])
    shapes, begins = initial.of(lambda: net.init(jax.random.key(0), z, t, amplitude=amplitude)["params"])
    shapes = flatten_dict(shapes, sep="/")
    drawn = {path: one.draw(0, path, shapes[path].shape) for path, one in begins.items()}
    params = unflatten_dict(file.params(shapes, drawn=drawn), sep="/")
    image = weights.load(file.path, base.SUPERRES).tree()

    @jax.jit
    def both(params, image):
        made, back = jax.vjp(lambda p: net.apply({"params": p}, z, t, amplitude=amplitude), params)
        frames = z.reshape(6, 1, 8, 8, 6)
        true = adm.net(about).apply({"params": image}, frames, jnp.repeat(t, 3)).reshape(made.shape)
        return made, true, back(made)[0]

    made_clips, true, gradient = both(params, image)
    np.testing.assert_allclose(made_clips, true, atol=1e-5)
    gradient = flatten_dict(gradient, sep="/")
    for path in ("embed/frame/out/kernel", "embed/amplitude/out/kernel", "down_0_0/temporal_conv/kernel",
                 "middle_0/temporal_attention/out/kernel"):  # fmt: skip
        assert np.abs(gradient[path]).max() > 1e-6, path


def run(source, out, *flags):
    convert.main(["karlo-superres", f"--source={source}", f"--out={out}", *flags])


def test_round_trip_is_the_identity(nets, tmp_path):
    """Folders -> ours -> Karlo's names -> its file of both -> ours -> a folder; the scheduler is the pipeline's."""
    for name, net in zip(("first", "last"), nets, strict=True):
        net.save_pretrained(tmp_path / f"super_res_{name}")
        run(tmp_path / f"super_res_{name}", tmp_path / f"{name}.safetensors")
        run(tmp_path / f"{name}.safetensors", tmp_path / f"karlo_{name}.safetensors", "--to=karlo")
    (tmp_path / "super_res_scheduler").mkdir()
    settings = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}
    (tmp_path / "super_res_scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    both = {}
    for name, prefix in (("first", "model_first_steps"), ("last", "model_last_step")):
        found, _ = safetensors_file.read(tmp_path / f"karlo_{name}.safetensors")
        both |= {f"{prefix}.{key}": torch.from_numpy(np.array(array)) for key, array in found.items()}
    torch.save({"state_dict": both}, tmp_path / "sr.ckpt")
    with pytest.raises(UserError, match=r"several copies of the network, .*model_first_steps, .*model_last_step"):
        convert.convert_base("karlo-superres", tmp_path / "sr.ckpt", tmp_path / "none")
    run(tmp_path / "sr.ckpt", tmp_path / "again.safetensors", "--weights=model_last_step")
    last, again = (weights.load(tmp_path / f"{name}.safetensors", "karlo-superres") for name in ("last", "again"))
    assert again.fingerprint == last.fingerprint
    run(tmp_path / "again.safetensors", tmp_path / "folder", "--to=diffusers")
    loaded = type(nets[1]).from_pretrained(tmp_path / "folder")
    assert loaded.config.add_attention is False
    for key, array in arrays(nets[1]).items():
        np.testing.assert_array_equal(arrays(loaded)[key], array)
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "UnCLIPScheduler"
    assert scheduler["variance_type"] == "fixed_small_log"
    run(tmp_path / "super_res_first", tmp_path / "with_scheduler.safetensors")
    assert weights.load(tmp_path / "with_scheduler.safetensors", "karlo-superres").about["prediction"] == "x_0"


def test_files_that_are_no_super_resolution(nets, tmp_path):
    of = arrays(nets[0])
    for change, message in (
        ({"conv_in.weight": np.zeros((32, 3, 3, 3), np.float32)}, "has 3 channels, where an upsampler sees 6"),
        ({"conv_out.bias": np.zeros(6, np.float32)}, "a learned variance, which Karlo's"),
        ({"class_embedding.weight": np.zeros((10, 128), np.float32)}, "it has classes or"),
    ):
        with pytest.raises(ValueError, match=message):
            karlo_superres.canonical({**of, **change}, {}, {})
    with pytest.raises(ValueError, match="its names are neither"):
        karlo_superres.canonical({"a": np.zeros(3, np.float32)}, {}, {})
    with pytest.raises(ValueError, match=r"is of a UNet2DConditionModel, where a UNet2DModel"):
        karlo_superres.canonical(of, {"_class_name": "UNet2DConditionModel"}, {})


@pytest.mark.slow
def test_full_size_converts_within_its_memory(tmp_path):
    """2.77 GB of random weights, there and back by the command; peak memory at most 1.3 times the file."""
    with torch.device("meta"):
        theirs = superres(**FULL).state_dict()
    block = np.random.default_rng(0).normal(size=1 << 24).astype(np.float32)
    (tmp_path / "net").mkdir()
    state = {name: np.resize(block, tuple(tensor.shape)) for name, tensor in theirs.items()}
    source = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    safetensors_file.write(source, sorted(state.items()), {"format": "pt"})
    size = source.stat().st_size
    for given, out, flags in (("net", "a.safetensors", ()), ("a.safetensors", "back", ("--to=diffusers",))):
        assert _peak(tmp_path / given, tmp_path / out, *flags) < 1.3 * size
    last, _ = safetensors_file.read(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert last.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(last[name], array)


def _peak(source, out, *flags):
    """Bytes of memory that a conversion by the command holds at most; `ru_maxrss` would be its parent's, if larger."""
    code = (
        "import re, sys\nfrom vf.pretrained import convert\nconvert.main(sys.argv[1:])\n"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, "karlo-superres", f"--source={source}", f"--out={out}", *flags]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(found.stdout.split("peak ")[1])
