"""ADM's networks: the same function as diffusers' block by block, a bit-exact round trip, and bad files."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.torch_unets import FULL, SMALL, arrays, compare, made, randomised
from tests.pretrained.torch_unets import adm as torch_adm
from vf.pretrained import adm, convert, files, safetensors_file, weights
from vf.types import UserError

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file


@pytest.fixture(scope="module")
def net():
    return randomised(torch_adm(**SMALL))


@pytest.fixture(scope="module")
def public(net):
    return arrays(net)


@pytest.fixture(scope="module")
def ours(public):
    lazy, about = adm.canonical(public, {}, {})
    return made(lazy), about


def same_function(module, params, theirs, size, **options):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 1, size, size, 3)).astype(np.float32)
    t, label = np.array([3, 900]), np.array([1, 7])
    given = {"class_labels": torch.from_numpy(label)}
    errors = compare(module, params, theirs, z, t, {"label": label} | options, given, module)
    wrong = {name: error for name, error in errors.items() if not error < 1e-4}
    assert not wrong, f"first wrong block: {next(iter(wrong.items()))}"
    return errors


def test_every_block_gives_what_diffusers_gives(net, ours):
    params, about = ours
    tree = weights.Weights("adm", params, "", {}).tree()
    errors = same_function(adm.net(about), tree, net, 16)
    assert len(errors) == 4 + 3 + 7 + 1  # down, middle, up, and the whole


@pytest.mark.slow
def test_full_width_gives_what_diffusers_gives():
    theirs = randomised(torch_adm(192, **FULL, classes=1000))
    lazy, about = adm.canonical(arrays(theirs), {}, {})
    tree = weights.Weights("adm", made(lazy), "", {}).tree()
    same_function(adm.net(about), tree, theirs, 64)


@pytest.mark.parametrize("order", ["new", "legacy"])
def test_both_orders_of_heads_are_the_same_function(net, public, order):
    """Heads of `legacy` lie one after the other in guided-diffusion's file, each with its q, k and v."""
    lazy, about = adm.canonical(public, {}, {"attention_order": order})
    params = made(lazy)
    old = made(adm.openai(params, about))
    qkv, parts = (
        old["middle_block.1.qkv.weight"][..., 0],
        [public[f"mid_block.attentions.0.to_{x}.weight"] for x in "qkv"],
    )
    for head in range(2):
        for k, part in enumerate(parts):
            first = (head * 3 + k if order == "legacy" else k * 2 + head) * 64
            np.testing.assert_array_equal(qkv[first : first + 64], part[head * 64 : head * 64 + 64])
    again, facts = adm.canonical(old, {}, {"attention_order": order})
    assert facts["layout"] == "openai"
    assert facts["network"] == about["network"]
    for name, array in made(again).items():
        np.testing.assert_array_equal(array, params[name])
    same_function(adm.net(about), weights.Weights("adm", params, "", {}).tree(), net, 16)


def test_the_full_size_has_exactly_the_published_names_and_shapes():
    """541 tensors of 64x64_diffusion.pt, and diffusers' 629, without memory for either."""
    with torch.device("meta"):
        theirs = torch_adm(192, **FULL, classes=1000).state_dict()
    found, about = adm.canonical({name: _Shape(tensor.shape) for name, tensor in theirs.items()}, {}, {})
    assert len(found) == 541
    assert sum(int(np.prod(lazy.shape)) for lazy in found.values()) == 295_904_454
    assert about["network"] == {
        "width": 192, "width_mult": (1, 2, 3, 4), "num_res_blocks": 3, "attention": (2, 4, 8), "head_dim": 64,
        "attention_order": "new", "learned_variance": True, "num_classes": 1000, "norm_groups": 32, "patch": 1,
    }  # fmt: skip
    assert about["schedule"] == {"name": "cosine", "steps": 1000}
    published = adm.openai(dict.fromkeys(found), about)
    listed = "\n".join(f"{name} {list(lazy.shape)}" for name, lazy in sorted(published.items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == MANIFEST
    again, facts = adm.canonical({name: _Shape(lazy.shape) for name, lazy in published.items()}, {}, {})
    assert facts["network"] == about["network"]
    assert {n: lazy.shape for n, lazy in again.items()} == {n: lazy.shape for n, lazy in found.items()}
    back, _ = adm.diffusers(dict.fromkeys(found), about)[""]
    assert {n: lazy.shape for n, lazy in back.items()} == {n: tuple(tensor.shape) for n, tensor in theirs.items()}


MANIFEST = "cdbf32c1675c84fb"  # of "name [shape]" lines, sorted, of OpenAI's published file


class _Shape:
    """An array of which only the shape is asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape):
        self.shape = tuple(shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip_is_the_identity(net, dtype, tmp_path):
    """.pt -> ours -> folder -> ours -> original names, every tensor bit for bit in its dtype; one fingerprint."""
    kind = getattr(torch, dtype)
    lazy, about = adm.canonical(arrays(net), {}, {})
    first = {name: torch.from_numpy(a).to(kind) for name, a in made(adm.openai(made(lazy), about)).items()}
    norm = arrays(net)["conv_norm_out.weight"]
    first["out.0.weight"] = torch.from_numpy(norm)  # one that the others' dtype would not hold
    torch.save(first, tmp_path / "a.pt")
    run("adm", tmp_path / "a.pt", tmp_path / "a.safetensors")
    run("adm", tmp_path / "a.safetensors", tmp_path / "folder", "--to=diffusers")
    run("adm", tmp_path / "folder", tmp_path / "b.safetensors")
    run("adm", tmp_path / "a.safetensors", tmp_path / "openai.safetensors", "--to=adm")
    last = load_file(tmp_path / "openai.safetensors")
    assert last.keys() == first.keys()
    for name, tensor in first.items():
        assert last[name].dtype == tensor.dtype
        assert torch.equal(last[name], tensor), name
    a, b = (weights.load(tmp_path / f"{x}.safetensors", "adm") for x in "ab")
    assert a.fingerprint == b.fingerprint
    assert a.about["dtype"] == dtype
    assert all(array.dtype == np.float32 for array in a.arrays.values())
    stored, _ = safetensors_file.read(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    for name, array in arrays(net).items():
        true = torch.from_numpy(array)
        true = true.to(kind) if name != "conv_norm_out.weight" else true.to(torch.float32)
        np.testing.assert_array_equal(stored[name].astype(np.float32), true.float().numpy())
        assert str(stored[name].dtype) == str(true.dtype).removeprefix("torch.")
    loaded = type(net).from_pretrained(tmp_path / "folder", torch_dtype=kind)
    assert loaded.config.num_class_embeds == 10
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["beta_schedule"] == "squaredcos_cap_v2"


def run(family, source, out, *flags):
    convert.main([family, f"--source={source}", f"--out={out}", *flags])


def test_a_sharded_folder_and_its_scheduler(net, tmp_path):
    net.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    (tmp_path / "scheduler").mkdir()
    scheduler_config = {"beta_schedule": "linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_config))
    run("adm", tmp_path, tmp_path / "a.safetensors")
    found = weights.load(tmp_path / "a.safetensors", "adm")
    assert found.about["schedule"] == {"name": "linear", "steps": 1000}
    assert found.about["prediction"] == "v"
    assert found.fingerprint == weights.fingerprint(made(adm.canonical(arrays(net), {}, {})[0]))


def test_a_checkpoint_of_training_code(net, public, tmp_path, capsys):
    """With an average beside the weights, which is taken and told; and settings, paths and numbers."""
    raw = {f"module._orig_mod.{name}": torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    saved = {"model": raw, "ema": net.state_dict(), "step": np.int64(5), "losses": np.arange(3.0), "dir": tmp_path}
    torch.save(saved, tmp_path / "both.pt")
    net.save_pretrained(tmp_path / "both")
    half = tmp_path / "both" / "diffusion_pytorch_model.non_ema.safetensors"
    save_file({name: np.zeros_like(array) for name, array in public.items()}, half)
    same = weights.fingerprint(made(adm.canonical(public, {}, {})[0]))
    for source, taken, other in (("both.pt", "ema", "model"), ("both", "", "non_ema")):
        run("adm", tmp_path / source, tmp_path / "a.safetensors")
        told = capsys.readouterr().out
        found = weights.load(tmp_path / "a.safetensors", "adm")
        assert found.fingerprint == same
        assert found.about["copy"] == taken
        assert other in " ".join(found.about["other_copies"])
        assert f"and left {found.about['other_copies'][0]}: --weights=NAME takes another" in told
        (tmp_path / "a.safetensors").unlink()
        run("adm", tmp_path / source, tmp_path / "a.safetensors", f"--weights={other}")
        assert not any(array.any() for array in weights.load(tmp_path / "a.safetensors", "adm").arrays.values())
        (tmp_path / "a.safetensors").unlink()
        with pytest.raises(SystemExit, match="2"):
            run("adm", tmp_path / source, tmp_path / "a.safetensors", "--weights=other")
        assert capsys.readouterr().err.rstrip().endswith("(--weights)")
    torch.save({"model": net.state_dict(), "ema": list(net.state_dict().values())}, tmp_path / "list.pt")
    run("adm", tmp_path / "list.pt", tmp_path / "a.safetensors")
    assert "the arrays of ema have no names, so that the weights of model are taken" in capsys.readouterr().out


def bad(tmp_path, tensors, message, family="adm"):
    """The command prints the error in one line, exits with 2, and leaves no file."""
    save_file(tensors, tmp_path / "bad.safetensors")
    fails(tmp_path, tmp_path / "bad.safetensors", message, family)


def fails(tmp_path, source, message, family="adm"):
    before = set(tmp_path.iterdir())
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=message):
        convert.convert_base(family, source, out)
    assert set(tmp_path.iterdir()) == before


def test_files_that_are_not_adm(public, ours, tmp_path, capsys):
    params, about = ours
    old = {name: np.ascontiguousarray(array) for name, array in made(adm.openai(params, about)).items()}
    for whole in (public, old):
        some = "down_blocks.1.attentions.0.to_k.bias" if whole is public else "input_blocks.3.1.qkv.bias"
        bad(tmp_path, {n: a for n, a in whole.items() if n != some}, rf"1 missing: {some}")
        bad(tmp_path, {**whole, "extra.weight": whole[some]}, r"1 not of this network: extra\.weight")
        matrix = "time_embedding.linear_1.weight" if whole is public else "time_embed.0.weight"
        turned = {**whole, matrix: np.ascontiguousarray(whole[matrix].T)}
        bad(tmp_path, turned, rf"1 of another shape: {matrix} is \[64, 256\] and should be \[256, 64\]")
        broken = whole[some].copy()
        broken[3] = np.nan
        bad(tmp_path, {**whole, some: broken}, rf"{some}.* has NaN or infinities")
        bad(tmp_path, {**whole, some: whole[some].astype(np.float64)}, rf"{some} is float64")
    bad(tmp_path, {"a.weight": np.zeros(3, np.float32)}, "its names are neither")
    bad(tmp_path, {n: a for n, a in old.items() if n != "time_embed.2.bias"}, r"1 missing: time_embed\.2\.bias")
    upsampler = {**old, "input_blocks.0.0.weight": np.zeros((64, 6, 3, 3), np.float32)}
    bad(tmp_path, upsampler, "its input has 6 channels.*upsampler")
    bad(tmp_path, old, "convert it as adm", family="karlo-decoder")
    convolutional = {**old, "input_blocks.2.0.op.weight": np.zeros((64, 64, 3, 3), np.float32)}
    bad(tmp_path, convolutional, "resamples by convolutions")


def test_damaged_files_and_outputs_that_exist(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    fails(tmp_path, tmp_path / "cut.pt", "cannot be read as weights")
    torch.save({"w": torch.zeros(2), "x": files.UserError}, tmp_path / "foreign.pt")
    fails(tmp_path, tmp_path / "foreign.pt", "its names are neither")
    fails(tmp_path, tmp_path / "none.pt", "no weights at")
    (tmp_path / "out.safetensors").write_text("mine")
    fails(tmp_path, tmp_path / "a.pt", "exists: remove it")
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    (tmp_path / "config").mkdir()
    net.save_pretrained(tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "out.safetensors").unlink()
    for change, message in (
        ({"act_fn": "gelu"}, "act_fn = 'gelu', where 'silu' was expected"),
        ({"_class_name": "UNet2DConditionModel"}, "is of a UNet2DConditionModel"),
        ({"resnet_time_scale_shift": "default"}, "resnet_time_scale_shift"),
        ({"attention_head_dim": None}, "head_dim should be a positive number, and is None"),
    ):
        (tmp_path / "config" / "config.json").write_text(json.dumps(config | change))
        fails(tmp_path, tmp_path / "config", message)


def test_damaged_folders(net, tmp_path):
    folder = tmp_path / "unet"
    net.save_pretrained(folder, max_shard_size="1MB")
    config = (folder / "config.json").read_text()
    for text, message in (("[1]", "config.json holds no fields"), ("{", r"config\.json is no whole JSON file")):
        (folder / "config.json").write_text(text)
        fails(tmp_path, folder, message)
    (folder / "config.json").write_text(config)
    first = sorted(folder.glob("*.safetensors"))[0]
    first.rename(tmp_path / "aside")
    fails(tmp_path, folder, rf"index\.json names {first.name}, which is not there")
    (tmp_path / "aside").rename(first)
    (folder / "scheduler").mkdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    for settings, message in (
        ({"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}, "betas from 0.00085 to 0.012"),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule = 'scaled_linear'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ):
        scheduler.write_text(json.dumps(settings))
        fails(tmp_path, folder, message)


def test_exports_that_lose_information_are_refused(net, public, ours, tmp_path, capsys):
    """Exports that another layout cannot hold are refused; 256 pixels are `legacy` and linear; 128 are refused."""
    params, about = ours
    weights.save(tmp_path / "a.safetensors", "adm", params, about)
    for family, target, message in (
        ("adm", "karlo", "adm is written as diffusers or adm"),
        ("adm", "adm", r"written to a file \*.safetensors, not to .*/out"),
        ("karlo-decoder", "diffusers", "holds weights of adm"),
    ):
        with pytest.raises(UserError, match=message):
            convert.convert_back(family, target, tmp_path / "a.safetensors", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        run("i3d", tmp_path / "a.safetensors", tmp_path / "out", "--to=diffusers")
    assert stop.value.code == 2
    assert "--to has no use for i3d" in capsys.readouterr().err
    for flag, message in (
        ("colour=red", "'colour' is none of attention_order"),
        ("schedule=foo", "schedule should be one of cosine, linear, and is 'foo'"),
        ("head_dim=0", "head_dim should be a positive number, and is '0'"),
    ):
        with pytest.raises(SystemExit):
            run("adm", tmp_path / "a.safetensors", tmp_path / "out", f"--assume={flag}")
        assert message in capsys.readouterr().err
    wide = about | {"network": {**about["network"], "norm_groups": 16}}
    weights.save(tmp_path / "wide.safetensors", "adm", params, wide)
    with pytest.raises(UserError, match="32 groups in every norm"):
        convert.convert_back("adm", "adm", tmp_path / "wide.safetensors", tmp_path / "out.safetensors")
    more = {**params, "embed/cond/bias": params["embed/time/out/bias"]}
    weights.save(tmp_path / "more.safetensors", "adm", more, about)
    with pytest.raises(UserError, match="1 without a place there: embed/cond/bias"):
        convert.convert_back("adm", "diffusers", tmp_path / "more.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fields = dict(about["network"]) | {"width_mult": (1, 1, 2, 2, 4, 4)}
    facts = adm.facts(fields, {}, {})
    assert (facts["network"]["attention_order"], facts["schedule"]["name"]) == ("legacy", "linear")
    with pytest.raises(ValueError, match="4 heads at every width"):
        adm.facts(dict(fields) | {"width_mult": (1, 1, 2, 3, 4)}, {}, {})
