"""A plan's numbers are those of the run, compiled and counted figures are labelled, and bad targets are refused."""

import functools
import importlib.util
import json
import math
import re

import jax
import pytest

from configs import demo, paper
from vf import main
from vf.config import build
from vf.config.specs import PlanSettings
from vf.jobs import plan as planning
from vf.plan import advice, lower
from vf.plan import compile as compiling
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
    result = plan(config, "cpu:8", tmp_path)
    mesh = build.mesh(config)
    subject = build.plan_subject(config, mesh, None)
    state = programs.first_state(subject.model, subject.tx, mesh, 0)[0]()
    assert result["parameters"] == {
        name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in state.params.items()
    }
    first = jax.devices()[0]
    for part, tree in (("parameters", state.params), ("average", state.ema), ("optimizer", state.opt_state)):
        shard_bytes = [s.data.nbytes for a in jax.tree.leaves(tree) for s in a.addressable_shards if s.device == first]
        assert result["best"]["state_bytes"][part] == sum(shard_bytes), part
    assert result["best"]["mesh"] == {"data": 2, "fsdp": 4, "frames": 1, "tensor": 1}
    best, chip = result["best"], result["chip"]
    assert set(chip["sources"].values()) == {"measured"}
    seconds = best["useful_flops"] / chip["flops_f32"]
    assert best["seconds"]["compute"] == pytest.approx(seconds)
    assert seconds <= best["seconds"]["least"] <= best["seconds"]["serial"]
    assert best["mfu"]["least"] == pytest.approx(seconds / best["seconds"]["least"])
    output = capsys.readouterr().out
    assert "counted, not compiled" in output
    assert "Each cpu, measured here" in output
    assert "fits: " in best["verdict"]


@pytest.mark.slow
def test_a_compiled_plan_has_the_compiler_s_memory(tmp_path, capsys):
    """On CPU devices, in the process apart; a second time nothing is compiled."""
    config = tiny(plan__compile="train", plan__mesh="config", mesh__fsdp=8, mesh__data=1)
    result = plan(config, "cpu:8", tmp_path)["best"]
    lowered = lower.lower_training(functools.partial(build.plan_subject, config), (1, 8, 1, 1), None, jax.devices())
    memory = lowered.compile().memory_analysis()
    rows = 8 * math.prod((8, 16, 16, 3)) + 8 * 4 * 2  # the batch: clips, labels, numbers
    subject = build.plan_subject(config, None, None)
    settings = 4 * len(jax.tree.leaves(programs.settings(subject.tx, 0, 0.9)))
    assert result["argument_bytes"] == memory.argument_size_in_bytes - rows // 8 - settings
    assert result["temporary_bytes"] == memory.temp_size_in_bytes
    assert {each["axes"] for each in result["collectives"]} == {"fsdp"}
    assert "compiled in" in capsys.readouterr().out
    assert result["fits"]
    assert result["seconds"]["network"] > 0
    assert 0.9 <= result["useful_flops"] / result["flops"] <= 1
    assert result["mfu"]["serial"] <= result["mfu"]["least"] <= 1
    again = plan(config, "cpu:8", tmp_path)["best"]
    timed = "seconds", "network_by_axes", "mfu", "bound"  # with what the machine can do, measured anew
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in result.items() if k not in timed}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_program_of_fewer_operations_than_counted_is_no_more_than_fully_used(tmp_path, monkeypatch, capsys):
    """First layers need no gradient of their input, which counts for much in a small network."""
    read = {"compile_seconds": 1.0, "finished": True, "flops": 3e6, "hbm_bytes": 2e3, "temporary_bytes": 5 * 2**10}
    monkeypatch.setattr(planning, "compiled", lambda *args: {**read, "optimal_seconds": None, "collectives": [],
                                                             "traffic": []})  # fmt: skip
    result = plan(tiny(plan__compile="train", plan__mesh="config", mesh__data=8), "cpu:8", tmp_path)["best"]
    assert result["mfu"]["least"] == pytest.approx(1)
    assert result["useful_flops"] == result["flops"]
    output = capsys.readouterr().out
    assert re.search(r"\d MFLOP, 2\.00 kB of memory traffic a device", output)
    assert "5.00 KiB a device" in output
    assert not re.search(r"HBM| 0\.0+ (G|T|s)", output)


def test_a_compiled_program_is_reused_unless_the_compiler_s_flags_differ(tmp_path, monkeypatch):
    """The compiler is not asked here: it refuses each program at once."""
    limits = []

    def refuse(*args):
        limits.append(args)
        return compiling.Compiled("", 0.0, failure="no")

    monkeypatch.setattr(compiling, "compile_in_process", refuse)
    target, mesh = parse_target("cpu:8"), sharding.make_mesh(8)
    settings = PlanSettings(None, "train", 1, 0, False, 1.0, 1.0, tmp_path)
    for flags in ("", "", "--xla_other", "--xla_other", ""):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        result = planning.compiled(None, "train", mesh, target, CHIPS["H100"], settings, "fingerprint", None)
        assert result == {"failure": "no", "compile_seconds": 0.0}
    assert len(limits) == 2


def test_an_ended_compilation_is_repeated_with_other_limits_only(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(compiling, "compile_in_process", lambda *args: limits.append(args[2:4]))
    target, mesh = parse_target("cpu:8"), sharding.make_mesh(8)
    for minutes in (1.0, 1.0, 2.0, 2.0, 1.0):
        settings = PlanSettings(None, "train", 1, 0, False, minutes, 1.0, tmp_path)
        assert planning.compiled(None, "train", mesh, target, CHIPS["H100"], settings, "fingerprint", None) is None
    assert limits == [(1.0, 1.0), (2.0, 1.0)]


@pytest.mark.slow
def test_the_paper_s_networks_on_a_slice_without_a_compiler(tmp_path, capsys, monkeypatch):
    config = paper.get_config()
    config.plan.compile = "none"
    result = plan(config, "v5e:8x8", tmp_path)
    assert 2.05e9 < result["parameters"]["base"] < 2.15e9
    assert 0.45e9 < result["parameters"]["residual"] < 0.52e9
    assert all(math.prod(each["mesh"].values()) == 64 for each in result["meshes"])
    assert result["best"]["fits"]
    state = 16 * sum(result["parameters"].values()) / 64  # float32: parameter, average, two moments
    assert state < result["best"]["memory"]["state"] < 1.05 * state
    order = [each["seconds"]["serial"] for each in result["meshes"] if each["fits"]]
    assert order == sorted(order)
    output = capsys.readouterr().out
    assert re.search(r"2,097\.\d\d M parameters", output)
    assert "--config.mesh.fsdp=" in output

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.plan.compile = "train"
    config.train.batch_size = 64
    with pytest.raises(UserError, match=r"libtpu, which is not installed: pip install 'jax\[tpu\]'"):
        plan(config, "v5e:8x8", tmp_path)


def test_what_a_plan_advises_is_the_smallest_change_by_which_it_fits(tmp_path, capsys):
    """Taken, the plan fits, and with half of it not for sure. What does not fit has an exit status of its own."""
    config = tiny(
        plan__compile="none", plan__mesh="config", mesh__data=4, train__batch_size=2**20, train__accumulate=4,
        sample__batch_size=64, eval__batch_size=64,
    )  # fmt: skip
    for part in (config.base, config.residual):
        part.net.update({"width_mult": (1,), "num_res_blocks": 1, "attention": (), "temporal": ()})
    best = plan(config, "v5e:2x2", tmp_path)["best"]
    assert not best["fits"]
    assert best["least_bytes"] > CHIPS["v5e"].hbm_bytes
    assert best["verdict"].startswith("does not fit: ")
    told = re.search(r"--config\.train\.accumulate=(\d+) makes it ([\d.]+) GiB$", best["verdict"])
    assert told, best["verdict"]
    parts, size = int(told[1]), float(told[2])
    config.train.accumulate = parts
    found = plan(config, "v5e:2x2", tmp_path)["best"]
    assert found["verdict"].startswith("fits: ")
    assert found["most_bytes"] / 2**30 == pytest.approx(size, abs=0.01)
    config.train.accumulate = parts // 2
    verdict = plan(config, "v5e:2x2", tmp_path)["best"]["verdict"]
    assert not verdict.startswith("fits")
    assert f"--config.train.accumulate={parts} makes it" in verdict
    config.train.accumulate = 2**18  # a clip on each device at a time
    config.data.update({"size": 512, "frames": 64})
    assert "--config.model.remat=blocks makes it" in plan(config, "v5e:2x2", tmp_path)["best"]["verdict"]
    config.data.size = 4096
    assert main.run(config, tmp_path, "plan") == {"fits": 0.0}
    assert "it takes more devices" in json.loads((tmp_path / "plan.json").read_text())["best"]["verdict"]
    capsys.readouterr()


def test_a_batch_of_samples_that_fits_is_the_largest():
    chip = CHIPS["v5e"]
    result = {"argument_bytes": chip.hbm_bytes // 2, "most_bytes": 4 * chip.hbm_bytes}
    assert advice.sampling_change(32, 2, chip, result) == "--config.sample.batch_size=4 fits"  # 4.57 of 32
    assert "more devices" in advice.sampling_change(32, 8, chip, result)


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
def test_bad_plans_are_refused(changes, target, message, tmp_path):
    config = tiny(**{"plan__compile": "none"} | changes)
    with pytest.raises(UserError, match=message):
        plan(config, target, tmp_path)
