"""A folder of weights holds what the checkpoint held, whole or not at all; damage is reported in one sentence."""

import ast
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from vf.config import values
from vf.pretrained import export, weights
from vf.training import optim, state
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

TX = optim.make(
    lr={"base": 1e-2, "residual": 1e-2}, schedule="constant", warmup_steps=1, total_steps=2, weight_decay=0.0, b1=0.9,
    b2=0.99, eps=1e-8, clip_norm=None,
)  # fmt: skip
META = {"config": "0123456789ab", "seed": 7, "classes": ["one", "two"]}  # names of the run's classes


def params(seed: int):
    """Two small networks."""
    draw = np.random.default_rng(seed).normal
    tree = {
        "base": {"in": {"kernel": draw(size=(3, 4)), "bias": draw(size=4)}},
        "residual": {"deep": {"er": {"scale": draw(size=2)}}},
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with checkpoints of two steps."""
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for step in (1, 2):
            made = state.create(params(step), TX)
            checkpoints.save(step, made, {**META, "step": step})
    (tmp_path / "run" / "config.json").write_text(json.dumps(values.to_json(base.get_config())))
    return tmp_path / "run"


def test_shapes_are_read_without_a_config(run):
    found = Checkpoints(run / "checkpoints", read_only=True).shapes()
    meant = jax.eval_shape(lambda: params(0))
    assert jax.tree.structure(found) == jax.tree.structure(meant)
    assert jax.tree.leaves(found) == jax.tree.leaves(meant)


@pytest.mark.parametrize("step", [None, 1])
def test_round_trip(run, tmp_path, step):
    out = tmp_path / "deep" / "model"
    export.export(run, out, step)
    names = {path.name for path in out.iterdir()}
    assert names == {"base.safetensors", "residual.safetensors", "config.json", "config.py"}
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    about = ast.get_docstring(ast.parse((out / "config.py").read_text()))
    assert f"of the run run at step {step or 2}" in about
    assert f" --config={out / 'config.py'} " in about  # as it is given, from anywhere
    meant = params(step or 2)
    found = {network: weights.load(out / f"{network}.safetensors", "vf") for network in meant}
    assert set(found["base"].arrays) == {"in/kernel", "in/bias"}
    jax.tree.map(np.testing.assert_array_equal, {name: one.tree() for name, one in found.items()}, meant)
    about = found["residual"].about
    assert about["generator"] == "residual"
    assert about["step"] == (step or 2)
    assert about["net"]["temporal"] == ["conv", "attention"]
    assert about["schedule"] == {"name": "cosine", "steps": 1000}
    assert (about["config"], about["seed"], about["class_names"]) == tuple(META.values())

    trained = export.find(out)
    assert trained.classes == ("one", "two")
    assert trained.origin()["fingerprints"]["base"] == found["base"].fingerprint
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), meant)
    made = trained.read({"residual": wanted["residual"]})
    jax.tree.map(np.testing.assert_array_equal, made, {"residual": meant["residual"]})
    assert {a.sharding for a in jax.tree.leaves(made)} == {sharding}
    wanted["base"]["in"]["bias"] = jax.ShapeDtypeStruct((5,), np.float32, sharding=sharding)
    wanted["base"]["gate"] = wanted["residual"]["deep"]["er"]["scale"]
    with pytest.raises(
        UserError, match=r"base\.safetensors is of another network: 1 not in the file \(gate\); 1 of an"
    ):
        trained.read(wanted)


def test_one_network_is_one_file(run, tmp_path):
    config = base.get_config()
    config.model.predictor = "one_network"
    (run / "config.json").write_text(json.dumps(values.to_json(config)))
    shutil.rmtree(run / "checkpoints")
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, state.create({"base": params(1)["base"]}, TX), META)
    export.export(run, tmp_path / "model")
    assert [path.stem for path in (tmp_path / "model").glob("*.safetensors")] == ["base"]


def test_whole_or_not_at_all(run, tmp_path, monkeypatch):
    save = weights.save

    def fail(path, *rest):
        if Path(path).stem == "residual":
            raise OSError("disk full")
        return save(path, *rest)

    monkeypatch.setattr(weights, "save", fail)
    with pytest.raises(UserError, match="disk full"):
        export.export(run, tmp_path / "models" / "model")
    assert list((tmp_path / "models").iterdir()) == []


def test_what_cannot_be_exported(run, tmp_path):
    for out, step, message in (
        (run, None, "exists: remove it"),
        (tmp_path / "model", 9, r"no checkpoint of step 9 .* it has \[1, 2\]"),
        (run / "config.json" / "model", None, "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            export.export(run, out, step)
    with pytest.raises(UserError, match="is not the folder of a training run"):
        export.export(tmp_path, tmp_path / "model")
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        export.export(run, tmp_path / "model")


def test_damage_is_reported(run, tmp_path):
    export.export(run, out := tmp_path / "model")
    whole = (out / "residual.safetensors").read_bytes()
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), params(0))
    (out / "residual.safetensors").write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"residual\.safetensors is no whole file"):
        export.find(out)
    (out / "residual.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="holds other values than were written"):
        export.find(out).read(wanted)
    (out / "residual.safetensors").unlink()
    with pytest.raises(UserError, match=r"residual\.safetensors is missing: export the run again"):
        export.find(out).read(wanted)
    for text in ("[1]", '{"model": ', '{"base": {}}'):
        (out / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json is not the resolved config of a run"):
            export.find(out)


def test_the_config_of_a_run_is_read_by_the_current_configs(tmp_path):
    """Fields that it lacks keep their defaults; unknown fields are refused."""
    path = tmp_path / "config.json"
    recorded = values.to_json(base.get_config()) | {"seed": 3}
    recorded["noise"]["lam"] = [0.25, 0.5]
    del recorded["eval"]["patience"], recorded["init_from"]
    path.write_text(json.dumps(recorded))
    found = base.resolved(path)
    assert found.noise.lam == (0.25, 0.5)
    assert values.to_json(found) == values.to_json(base.get_config()) | {"seed": 3, "noise": recorded["noise"]}
    for part, message in (
        ({"noise": {"lamda": 1}}, "the field noise.lamda, which no config here has"),
        ({"noise": 3}, "the field noise, which no config here has"),
        ({"train": {"steps": "many"}}, "is not the resolved config"),
        ([], "is not the resolved config"),
    ):
        path.write_text(json.dumps(part))
        with pytest.raises(UserError, match=message):
            base.resolved(path)
    with pytest.raises(UserError, match="is not the resolved config"):
        base.resolved(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("earlier", "validation", "reference"),
    [
        ({"eval_split": "", "eval_split_file": ""}, ("", ""), ("", "")),
        ({"eval_split": "test", "eval_split_file": ""}, ("test", ""), ("test", "")),
        ({"eval_split": "train+test", "eval_split_file": ""}, ("", ""), ("train+test", "")),
        ({"eval_split": "", "eval_split_file": "t.txt", "split_file": "l.txt"}, ("", "t.txt"), ("", "t.txt")),
        ({"eval_split": "", "eval_split_file": "t.txt"}, ("", ""), ("", "t.txt")),  # every file was trained on
    ],
)
def test_a_config_with_one_field_for_both_sets_keeps_its_meaning(tmp_path, earlier, validation, reference):
    """All of the training split is trained on; losses are of the clips that scores compared with, unless trained on."""
    config = values.to_json(base.get_config())
    for name in ("validation_split", "validation_split_file", "validation_share"):
        del config["data"][name]
    for name in ("reference_split", "reference_split_file"):
        del config["eval"][name]
    config["data"] |= earlier
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = base.resolved(tmp_path / "config.json")
    assert found.data.validation_share == 0
    assert (found.data.validation_split, found.data.validation_split_file) == validation
    assert (found.eval.reference_split, found.eval.reference_split_file) == reference
