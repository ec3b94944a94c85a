"""What is read is what was saved, bit for bit, on any mesh; what was not saved to the end is never read."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint.path import atomicity

from vf.training import optim, sharding, state
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

SETTINGS = {
    "lr": {"base": 1e-2, "residual": 3e-2},
    "schedule": "cosine",
    "warmup_steps": 1,
    "total_steps": 10,
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "clip_norm": 0.5,
}
TX = optim.make(**SETTINGS)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params(width: int = 8, **extra):
    """Two networks; the residual one is a single kernel in bfloat16."""
    base = {
        "in": {"kernel": normal(0, 3, width), "bias": np.zeros(width, np.float32)},
        "out": normal(1, width, 2),
    }
    residual = {"kernel": normal(2, 3, 2).astype(jnp.bfloat16)}
    return jax.tree.map(jnp.asarray, {"base": base | extra, "residual": residual})


def create(width: int = 8, tx=TX, **extra) -> state.TrainState:
    return state.create(params(width, **extra), tx)


@jax.jit
def step(now: state.TrainState) -> state.TrainState:
    def loss(params):
        base, residual = params["base"], params["residual"]
        x = jnp.asarray(normal(4, 16, 3)) + now.step  # the batch is a function of the step
        base = jnp.tanh(x @ base["in"]["kernel"] + base["in"]["bias"]) @ base["out"]
        return jnp.mean((base + x @ residual["kernel"] - 1) ** 2)

    return state.update(now, jax.grad(loss)(now.params), TX, 0.9)


def on(mesh, tree):
    """The tree as shapes, every array split as far as the mesh allows."""
    shapes = jax.eval_shape(lambda: tree)
    return sharding.abstract(shapes, sharding.shardings(shapes, mesh, min_size=1, min_features=1))


def equal(a, b) -> None:
    for (name, x), y in zip(sharding.named(a).items(), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


@pytest.fixture(scope="module")
def trained() -> state.TrainState:
    return step(step(create()))


@pytest.fixture
def saved(tmp_path, trained) -> Path:
    """A folder with a checkpoint of step 2."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.save(2, trained, {"seed": 7})
    return tmp_path / "run"


def test_a_resumed_run_equals_an_uninterrupted_one(saved, trained):
    with Checkpoints(saved) as checkpoints:
        now = checkpoints.restore(jax.eval_shape(create))
    equal(now, trained)
    assert int(now.step) == 2
    equal(step(step(now)), step(step(trained)))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 1, 1), (2, 2, 1, 2)])
def test_another_mesh_reads_the_same_bits(tmp_path, trained, shape):
    wide = on(sharding.make_mesh(1, 8), trained)
    spread = jax.device_put(trained, jax.tree.map(lambda a: a.sharding, wide))
    assert len(spread.params["base"]["in"]["bias"].addressable_shards[0].data) == 1
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, spread, {})
        checkpoints.wait()
        want = on(sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)]), trained)
        got = checkpoints.restore(want)
        unsaid = checkpoints.restore(jax.eval_shape(create))
    equal(got, trained)
    assert {a.sharding.device_set == {jax.devices()[0]} for a in jax.tree.leaves(unsaid)} == {True}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.sharding == b.sharding


def test_sampling_reads_one_tree(saved, trained):
    checkpoints = Checkpoints(saved, read_only=True)
    # Nothing else may be needed: neither moments nor the other tree.
    for item in ("optimizer", "params"):
        shutil.rmtree(saved / "2" / item / "d")
        shutil.rmtree(saved / "2" / item / "ocdbt.process_0")
    shapes = jax.eval_shape(lambda: trained.ema)
    equal(checkpoints.restore_params(shapes), trained.ema)
    equal(checkpoints.restore_params({"base": shapes["base"]}), {"base": trained.ema["base"]})
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), shapes)
    equal(checkpoints.restore_params(half), jax.tree.map(lambda a: a.astype(jnp.bfloat16), trained.ema))
    with pytest.raises(UserError, match="damaged or incomplete"):
        checkpoints.restore_params({"residual": jax.eval_shape(params)["residual"]}, "params")


def test_raw_parameters_differ_from_the_average(saved, trained):
    raw = Checkpoints(saved, read_only=True).restore_params(jax.eval_shape(params), "params")
    equal(raw, trained.params)
    assert np.any(np.asarray(raw["base"]["out"]) != np.asarray(trained.ema["base"]["out"]))


def test_meta_and_choice_of_step(saved, trained):
    later = step(trained)
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(3, later, {"seed": 8, "nested": {"names": ["a"]}})
        checkpoints.wait()
        assert checkpoints.latest() == 3
        assert checkpoints.meta() == {"seed": 8, "nested": {"names": ["a"]}}
        assert checkpoints.meta(2) == {"seed": 7}
        equal(checkpoints.restore(jax.eval_shape(create), 2), trained)
        equal(checkpoints.restore(jax.eval_shape(create)), later)
        with pytest.raises(UserError, match=r"no checkpoint of step 9 .* it has \[2, 3\]"):
            checkpoints.restore(jax.eval_shape(create), 9)
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(4, trained, {"x": {1, 2}})


def test_keep(tmp_path, trained):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for k in range(1, 8):
            checkpoints.save(k, trained, {})
    assert Checkpoints(tmp_path, read_only=True).steps() == [4, 6, 7]


def test_the_best_checkpoint_is_retained(tmp_path, trained):
    """The step that another job records as best is retained; a damaged record costs no checkpoint."""
    best = tmp_path / "best.json"
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for k in range(1, 7):
            checkpoints.save(k, trained, {})
            checkpoints.wait()
            if k == 2:
                best.write_text('{"step": 2, "value": 0.5}')
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [2, 5, 6]
    (tmp_path / "judging.json").write_text('{"step": 5}')
    best.write_text("torn")
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(7, trained, {})
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [5, 6, 7]


def test_a_run_without_averages_is_reported(saved):
    (step,) = Checkpoints(saved, read_only=True).steps()
    shutil.rmtree(saved / str(step) / "ema")
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.without_ema() == [step]
        with pytest.raises(UserError, match=rf"\[{step}\] have no averaged weights, `ema`"):
            checkpoints.restore_params(jax.eval_shape(params))


def test_a_saved_step_is_not_overwritten_and_a_later_one_is_removed(saved, trained):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(3, trained, {"seed": 8})
        assert not checkpoints.save(3, trained, {"seed": 9})
        with pytest.raises(UserError, match=r"holds later checkpoints \[2, 3\]"):
            checkpoints.save(1, trained, {})
        assert checkpoints.save(2, trained, {"seed": 10}, force=True)
    assert Checkpoints(saved, read_only=True).steps() == [2]
    assert Checkpoints(saved, read_only=True).meta() == {"seed": 10}


def test_no_save_asks_jax_whether_to_stop(tmp_path, trained, monkeypatch):
    """jax takes the number that it was asked about for the step that this process has reached."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    with Checkpoints(tmp_path) as checkpoints:
        for number in (2, 4):
            assert checkpoints.save(number, trained, {})
        checkpoints.wait()
    assert checkpoints.steps() == [2, 4]
    assert asked == []


def test_an_interrupted_save_is_not_the_latest(saved, trained):
    # As Orbax names a folder that it is still writing ...
    writing = saved / f"11{atomicity.TMP_DIR_SUFFIX}"
    shutil.copytree(saved / "2", writing)
    # ... one that lacks the marker of a finished save ...
    shutil.copytree(saved / "2", saved / "8")
    (saved / "8" / "commit_success.txt").unlink()
    # ... and a copy that was cut short.
    shutil.copytree(saved / "2", saved / "7")
    shutil.rmtree(saved / "7" / "params")
    reader = Checkpoints(saved, read_only=True)
    assert reader.latest() == 2
    assert writing.exists()  # to a reader, it may be another job's save in progress
    with pytest.raises(UserError, match=r"incomplete, and ignored: \[7, 8\]"):
        reader.meta(8)
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest() == 2
        equal(checkpoints.restore(jax.eval_shape(create)), trained)
        # Nor do their numbers stand in the way of the run that goes on.
        assert all(checkpoints.save(k, trained, {}) for k in (7, 8, 9))
    assert reader.steps() == [7, 8, 9]
    assert not writing.exists()


@pytest.mark.parametrize("how", ["wait", "close", "save", "save again", "check"])
def test_a_failed_save_is_reported_and_leaves_the_previous_checkpoint(saved, trained, monkeypatch, how):
    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", fail)
    checkpoints = Checkpoints(saved)
    assert checkpoints.save(3, trained, {})

    def repeat(call) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            call()
            time.sleep(0.02)

    calls = {
        "wait": checkpoints.wait,
        "close": checkpoints.close,
        "save": lambda: checkpoints.save(4, trained, {}),
        "save again": lambda: repeat(lambda: checkpoints.save(3, trained, {})),
        "check": lambda: repeat(checkpoints.check),
    }
    with pytest.raises(OSError, match="disk full"):
        calls[how]()
    monkeypatch.undo()
    assert checkpoints.latest() == 2
    with Checkpoints(saved) as checkpoints:
        equal(checkpoints.restore(jax.eval_shape(create)), trained)
        assert checkpoints.save(3, trained, {})


def test_damage_is_reported(saved, trained):
    for file in (saved / "2" / "ema").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    # One array only: where several are read at once and one fails, tensorstore calls back for the others when
    # Orbax has closed its event loop, and the interpreter reports that from a thread, at any later time.
    one = jax.eval_shape(lambda: {"residual": trained.ema["residual"]})
    with pytest.raises(UserError, match=r"2 cannot be read, so its files are damaged"):
        Checkpoints(saved, read_only=True).restore_params(one)


def test_another_network_is_named(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(jax.eval_shape(lambda: create(16, gate=jnp.zeros(3))))
    message = str(caught.value)
    assert "1 not in the checkpoint (base/gate)" in message
    assert "3 of another shape (base/in/bias is [8] there and [16] here" in message
    assert "use the model settings of the run that wrote it" in message

    fewer = params()
    del fewer["base"]["out"]
    with pytest.raises(UserError, match=r"1 only in the checkpoint \(base/out\)"):
        checkpoints.restore_params(jax.eval_shape(lambda: fewer))
    same_shape = jax.tree.map(lambda a: a.astype(jnp.float32), params())
    with pytest.raises(UserError, match=r"residual/kernel is bfloat16 there and float32 here"):
        checkpoints.restore(jax.eval_shape(lambda: state.create(same_shape, TX)))


def test_another_optimizer_is_not_called_another_network(saved):
    frozen = optim.make(**SETTINGS, frozen=("base",))
    with pytest.raises(UserError, match="fits these networks, but not this optimizer") as caught:
        Checkpoints(saved, read_only=True).restore(jax.eval_shape(lambda: create(tx=frozen)))
    assert "only in the checkpoint (opt_state/inner_states/base/" in str(caught.value)


def test_no_checkpoint(tmp_path, trained):
    reader = Checkpoints(tmp_path / "none", read_only=True)
    assert reader.latest() is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"no checkpoint in .*none"):
        reader.restore(jax.eval_shape(create))
    with pytest.raises(RuntimeError, match="read_only"):
        reader.save(1, trained, {})


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*choose another workdir"):
        Checkpoints(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="keep and keep_every"):
        Checkpoints(tmp_path, keep=0)


def test_import_is_light(tmp_path):
    # A fake TensorFlow that fails when it is imported.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    check = (
        "import vf.training.checkpoint, vf.training.optim, vf.training.state\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized(), 'a backend was started'\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", check],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
