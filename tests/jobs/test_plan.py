"""A plan's numbers are those of the run, what is compiled is told from what is counted, and bad targets are told."""

import functools
import importlib.util
import json
import math

import jax
import pytest

from configs import demo, paper
from vf import main
from vf.config import build
from vf.config.specs import PlanSettings
from vf.jobs import plan as planning
from vf.plan import compile as compiling
from vf.plan import lower
from vf.plan.chips import CHIPS
from vf.plan.targets import parse_target
from vf.training import programs, sharding
from vf.types import UserError


def tiny(**changes):
    """The demo at a size that compiles in seconds."""
    config = demo.get_config()
    for part in (config.base, config.residual):
        part.net.update({"width": 16, "width_mult": (1, 2), "head_dim": 8, "norm_groups": 4})
    config.train.batch_size = config.sample.batch_size = config.eval.batch_size = 8
    config.mesh.cpu_devices = 0
    config.sample.steps = 2
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def plan(config, target, tmp_path):
    config.plan.target = target
    config.plan.cache = str(tmp_path / "cache")
    main.run(config, tmp_path, "plan")
    return json.loads((tmp_path / "plan.json").read_text())


def test_counts_of_the_demo_are_the_real_ones(tmp_path, capsys):
    """Parameters, and bytes of each part of the state on each device, of arrays that are there."""
    config = tiny(plan__compile="none", plan__mesh="config", mesh__data=2, mesh__fsdp=4)
    made = plan(config, "cpu:8", tmp_path)
    mesh = build.mesh(config)
    subject = build.plan_subject(config, mesh, None)
    state = programs.first_state(subject.model, subject.tx, mesh, 0)[0]()
    assert made["parameters"] == {
        name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in state.params.items()
    }
    first = jax.devices()[0]
    for part, tree in (("parameters", state.params), ("average", state.ema), ("optimizer", state.opt_state)):
        held = [s.data.nbytes for a in jax.tree.leaves(tree) for s in a.addressable_shards if s.device == first]
        assert made["best"]["state_bytes"][part] == sum(held), part
    assert made["best"]["mesh"] == {"data": 2, "fsdp": 4, "frames": 1, "tensor": 1}
    best, here = made["best"], made["chip"]
    assert set(here["sources"].values()) == {"measured"}
    seconds = best["useful_flops"] / here["flops_f32"]
    assert best["seconds"]["compute"] == pytest.approx(seconds)
    assert seconds <= best["seconds"]["least"] <= best["seconds"]["serial"]
    assert best["mfu"]["least"] == pytest.approx(seconds / best["seconds"]["least"])
    said = capsys.readouterr().out
    assert "counted, not compiled" in said
    assert "Each cpu, measured here" in said
    assert "fits: " in best["verdict"]


@pytest.mark.slow
def test_a_compiled_plan_has_the_compiler_s_memory(tmp_path, capsys):
    """On CPU devices, in the process apart; a second time nothing is compiled."""
    config = tiny(plan__compile="train", plan__mesh="config", mesh__fsdp=8, mesh__data=1)
    made = plan(config, "cpu:8", tmp_path)["best"]
    lowered = lower.lower_training(functools.partial(build.plan_subject, config), (1, 8, 1, 1), None, jax.devices())
    memory = lowered.compile().memory_analysis()
    rows = 8 * math.prod((8, 16, 16, 3)) + 8 * 4 * 2  # the batch: clips, labels, numbers
    assert made["argument_bytes"] == memory.argument_size_in_bytes - rows // 8
    assert made["temporary_bytes"] == memory.temp_size_in_bytes
    assert {each["axes"] for each in made["collectives"]} == {"fsdp"}
    assert "compiled in" in capsys.readouterr().out
    assert made["fits"]
    assert made["seconds"]["network"] > 0
    assert 0.9 <= made["useful_flops"] / made["flops"] <= 1.1
    assert made["mfu"]["least"] <= 1.1
    again = plan(config, "cpu:8", tmp_path)["best"]
    timed = "seconds", "network_by_axes", "mfu", "bound"  # with what the machine can do, measured anew
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in made.items() if k not in timed}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_was_compiled_is_found_again_unless_the_compiler_s_flags_differ(tmp_path, monkeypatch):
    """The compiler is not asked here: it refuses each program at once."""
    asked = []

    def refuse(*args):
        asked.append(args)
        return compiling.Compiled("", 0.0, failure="no")

    monkeypatch.setattr(compiling, "compile_in_process", refuse)
    target, mesh = parse_target("cpu:8"), sharding.make_mesh(8)
    settings = PlanSettings(None, "train", 1, 0, False, 1.0, 1.0, tmp_path)
    for flags in ("", "", "--xla_other", "--xla_other", ""):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        made = planning.compiled(None, "train", mesh, target, CHIPS["H100"], settings, "fingerprint", None)
        assert made == {"failure": "no", "compile_seconds": 0.0}
    assert len(asked) == 2


def test_what_was_ended_is_tried_again_with_other_limits_only(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compiling, "compile_in_process", lambda *args: asked.append(args[2:4]))
    target, mesh = parse_target("cpu:8"), sharding.make_mesh(8)
    for minutes in (1.0, 1.0, 2.0, 2.0, 1.0):
        settings = PlanSettings(None, "train", 1, 0, False, minutes, 1.0, tmp_path)
        assert planning.compiled(None, "train", mesh, target, CHIPS["H100"], settings, "fingerprint", None) is None
    assert asked == [(1.0, 1.0), (2.0, 1.0)]


def test_the_paper_s_networks_on_a_slice_without_a_compiler(tmp_path, capsys, monkeypatch):
    config = paper.get_config()
    config.plan.compile = "none"
    made = plan(config, "v5e:8x8", tmp_path)
    assert 2.05e9 < made["parameters"]["base"] < 2.15e9
    assert 0.45e9 < made["parameters"]["residual"] < 0.52e9
    assert all(math.prod(each["mesh"].values()) == 64 for each in made["meshes"])
    assert made["best"]["fits"]
    state = 16 * sum(made["parameters"].values()) / 64  # float32: parameter, average, two moments
    assert state < made["best"]["memory"]["state"] < 1.05 * state
    order = [each["seconds"]["serial"] for each in made["meshes"] if each["fits"]]
    assert order == sorted(order)
    said = capsys.readouterr().out
    assert "2,097.6 M parameters" in said
    assert "--config.mesh.fsdp=" in said

    config = tiny(plan__compile="none", train__batch_size=2**24, sample__batch_size=64, eval__batch_size=64)
    made = plan(config, "v5e:8x8", tmp_path)
    assert not made["best"]["fits"]
    assert "does not fit" in made["best"]["verdict"]
    assert "try --config.model.remat=blocks" in made["best"]["verdict"]
    assert "or --config.train.accumulate=2, which halves" in made["best"]["verdict"]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.plan.compile = "train"
    config.train.batch_size = 64
    with pytest.raises(UserError, match=r"libtpu, which is not installed: pip install 'jax\[tpu\]'"):
        plan(config, "v5e:8x8", tmp_path)


@pytest.mark.parametrize(
    ("changes", "target", "message"),
    [
        ({}, "", r"needs a machine: set --config\.plan\.target="),
        ({}, "v5d:4x4", "did you mean"),
        ({}, "v5e:5x7", "v5e:5x7"),
        ({"plan__compile": "all"}, "cpu:8", r"plan\.compile must be one of"),
        ({"plan__minutes": 0.0}, "cpu:8", r"plan\.minutes must be positive"),
        ({"plan__mesh": "config", "mesh__data": 3}, "cpu:8", r"change mesh\.data to 8"),
        (
            {"plan__mesh": "config", "mesh__fsdp": 2, "mesh__frames": 4},
            "cpu:8",
            r"mesh\.frames to 1, or train\.batch_size",
        ),
        ({"train__batch_size": 9}, "cpu:8", "make the batch a multiple of 8"),
        ({"sample__batch_size": 9}, "cpu:8", r"sample\.batch_size 9 cannot be split"),
        (
            {"data__source": "nowhere", "model__condition": "label"},
            "cpu:8",
            r"data is not here: set --config\.plan\.classes=N",
        ),
        (
            {"data__source": "nowhere", "model__context": "embedding", "model__condition": "none"},
            "cpu:8",
            r"set --config\.plan\.embedding_dim=N",
        ),
    ],
)
def test_bad_plans_are_told(changes, target, message, tmp_path):
    config = tiny(**{"plan__compile": "none"} | changes)
    with pytest.raises(UserError, match=message):
        plan(config, target, tmp_path)
