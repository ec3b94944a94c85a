"""Stacks are the same parameters: names, values, updates, shardings and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo, ucf101
from tests.small_models import fusion
from vf.config import build, models
from vf.data.sprites import Sprites
from vf.training import checkpoint, optim, programs, sharding, stacks, state
from vf.training import step as steps
from vf.types import UserError

SETTINGS = {
    "lr": {"base": 1e-2, "residual": 3e-2}, "schedule": "cosine", "warmup_steps": 1, "total_steps": 10,
    "weight_decay": 0.1, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "clip_norm": None,
}  # fmt: skip
CONFIGS = {"demo": demo.get_config, "ucf101": ucf101.get_config, "ucf101, smoke": lambda: ucf101.get_config("smoke")}


def stacked(params):
    return {name: stacks.stack(net) for name, net in params.items()}


def values(shapes, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(random.normal(size=a.shape), np.float32), shapes)


def small(shapes):
    """Shapes of as many axes, of at most three numbers along each."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct([1 + n % 3 for n in a.shape], a.dtype), shapes)


def equal(a, b, **tolerance):
    for (name, x), y in zip(sharding.named(a).items(), sharding.named(b).values(), strict=True):
        np.testing.assert_allclose(x, y, err_msg=name, **tolerance)


@pytest.mark.parametrize(
    ("name", "clip_norm"),
    [
        pytest.param("demo", 0.5, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("ucf101, smoke", None), ("ucf101", None), ("ucf101", 0.5))
        ),
    ],
)
def test_an_update_of_stacks_is_that_of_each_parameter(name, clip_norm):
    """To the rounding of one operation, and of a sum in another order where gradients are clipped by their norm."""
    config = CONFIGS[name]()
    if name != "demo":
        config.data.source = ""  # not there
    subject = build.plan_subject(config, None, None)
    params, grads = (values(small(subject.model.shapes()), seed) for seed in (0, 1))
    tx = optim.make(**SETTINGS | {"clip_norm": clip_norm})
    now = [state.create(made, tx) for made in (params, stacked(params))]
    with jax.disable_jit():
        now = [state.update(one, given, tx, 0.9) for one, given in zip(now, (grads, stacked(grads)), strict=True)]
    assert len(jax.tree.leaves(now[1])) < len(jax.tree.leaves(now[0])) / 2
    equal(now[0], stacks.unstack(now[1]), rtol=3e-7 if clip_norm is None else 1e-5, atol=1e-8)


def test_texts_are_not_decayed_in_stacks_either():
    shapes = {"base": {"texts": {"states": jnp.ones((2, 3))}, "a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}}
    tx = optim.make(**SETTINGS)
    grads = jax.tree.map(jnp.zeros_like, shapes)
    after = stacks.unstack(state.update(state.create(stacked(shapes), tx), stacked(grads), tx, 0.9).params)["base"]
    assert (after["texts"]["states"] == 1).all()
    assert (after["a"]["bias"] == 1).all()
    assert (after["a"]["kernel"] < 1).all()


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_step_is_the_same(accumulate):
    """Gradients of each parameter, added to its own."""
    model = fusion(context="base_frame", residual=fusion().residual)
    tx = optim.make(**SETTINGS)
    params = values(model.shapes(), 0)
    rows = {
        "video": np.random.default_rng(0).integers(0, 256, (2, *model.shape), np.uint8),
        "index": np.arange(2, dtype=np.uint32),
    }
    step = functools.partial(steps.train_step, model=model, tx=tx, seed=0, ema_decay=0.9, accumulate=accumulate)
    (one, numbers), (other, same) = (jax.jit(step)(state.create(p, tx), rows) for p in (params, stacked(params)))
    equal(one, stacks.unstack(other), rtol=2e-4, atol=2e-5)
    equal(numbers, same, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 1, 2)])
def test_the_first_state_is_the_same_in_stacks_and_on_any_mesh(sizes):
    """Each parameter's values by its name, where its shard belongs; and `given` networks as they are given."""
    config = demo.get_config()
    model = models.model(config, Sprites(frames=8, size=16, base_frame=3))
    tx = optim.make(**SETTINGS)
    alone = programs.first_state(model, tx, sharding.make_mesh(devices=jax.devices()[:1]), 0, stacked=False)[0]()
    create, abstract = programs.first_state(model, tx, sharding.make_mesh(*sizes), 0, stacked=True)
    made = create()
    equal(alone, stacks.unstack(made), rtol=0)
    for array, like in zip(jax.tree.leaves(made), jax.tree.leaves(abstract), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (like.shape, like.dtype, like.sharding)
    each = sharding.shardings(alone, sharding.make_mesh(*sizes))
    for one, wanted in zip(jax.tree.leaves(stacks.unstack(abstract)), jax.tree.leaves(each), strict=True):
        assert one.sharding.is_equivalent_to(wanted, one.ndim)
    where = jax.tree.map(lambda a: a.sharding, stacks.unstack(abstract.ema["residual"]))
    given = jax.device_put(jax.tree.map(lambda p: np.asarray(p) + 1, alone.params["residual"]), where)
    other = stacks.unstack(create({"residual": given}))
    equal(other.params, {"base": alone.params["base"], "residual": given}, rtol=0)
    equal(other.ema, other.params, rtol=0)


def test_checkpoints_know_no_stacks(tmp_path):
    """Written of stacks and read without, and the other way round, on another mesh."""
    tx, params = (
        optim.make(**SETTINGS),
        values({"base": {"a": {"kernel": jnp.ones((4, 8))}, "b": {"kernel": jnp.ones((4, 8))}}}, 0),
    )

    def on(mesh, made):
        return sharding.abstract(made, sharding.shardings(made, mesh, min_size=1, min_features=1))

    wide, narrow = sharding.make_mesh(2, 4), sharding.make_mesh(8)
    plain, in_stacks = (state.create(p, tx) for p in (params, stacked(params)))
    plain, in_stacks = (jax.device_put(s, sharding.shardings(s, wide, min_size=1)) for s in (plain, in_stacks))
    for name, written, read in (("a", plain, in_stacks), ("b", in_stacks, plain)):
        with checkpoint.Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, written, {})
            checkpoints.wait()
            found = checkpoints.restore(on(narrow, read))
            some = checkpoints.restore_params(on(narrow, read.ema))
        assert jax.tree.structure(found) == jax.tree.structure(read)
        equal(found, read, rtol=0)
        equal(some, read.ema, rtol=0)


def test_a_rule_must_not_tell_a_stack_apart():
    tree = stacked({"base": {"a": {"kernel": jnp.ones((4, 8))}, "b": {"kernel": jnp.ones((4, 8))}}})
    with pytest.raises(UserError, match=r"base/[ab]/kernel"):
        sharding.shardings(tree, sharding.make_mesh(8), ((r"a/kernel", "replicated"), (r"", "fsdp")))
