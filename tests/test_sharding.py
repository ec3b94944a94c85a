"""Eight devices are one device, in any mesh shape, and everything lies as its parameter does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from vf import optim, sharding, state
from vf.types import UserError

TX = optim.make(
    lr={"base": 1e-2, "residual": 3e-2},
    schedule="cosine",
    warmup_steps=1,
    total_steps=10,
    weight_decay=0.1,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    clip_norm=0.5,
)
SHAPES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]


def create() -> state.TrainState:
    def network(key):
        a, b = jax.random.split(key)
        return {
            "in": {"kernel": jax.random.normal(a, (6, 16)), "bias": jnp.zeros(16)},
            "out": {"kernel": jax.random.normal(b, (16, 3))},
        }

    base, residual = jax.random.split(jax.random.key(0))
    return state.create({"base": network(base), "residual": network(residual)}, TX)


def step(now: state.TrainState, batch) -> state.TrainState:
    def loss(params):
        base, residual = (
            jnp.tanh(batch["x"] @ p["in"]["kernel"] + p["in"]["bias"]) @ p["out"]["kernel"]
            for p in (params["base"], params["residual"])
        )
        return jnp.mean((base - batch["y"]) ** 2) + jnp.mean((base + 9 * residual - batch["y"]) ** 2)

    return state.update(now, jax.grad(loss)(now.params), TX, 0.9)


def rows() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x": random.normal(size=(16, 6)).astype("f4"), "y": random.normal(size=(16, 3)).astype("f4")}


def place(mesh):
    return sharding.shardings(jax.eval_shape(create), mesh, min_size=1, min_features=1)


def train(mesh):
    where = place(mesh)
    now = jax.jit(create, out_shardings=where)()
    update = jax.jit(step, donate_argnums=0, out_shardings=where)
    for _ in range(3):
        now = update(now, sharding.put_batch(rows(), mesh))
    return now


@pytest.fixture(scope="module")
def on_one_device():
    return jax.device_get(train(sharding.make_mesh(devices=jax.devices()[:1])))


@pytest.mark.parametrize("shape", SHAPES)
def test_any_mesh_gives_the_update_of_one_device(shape, on_one_device):
    now = train(sharding.make_mesh(*shape))
    for (name, got), want in zip(sharding.named(now).items(), jax.tree.leaves(on_one_device), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_average_lie_as_their_parameter(shape):
    mesh = sharding.make_mesh(*shape)
    now = train(mesh)
    lies = {name: a.sharding.spec for name, a in sharding.named(now).items()}
    for name, spec in ((n, s) for n, s in lies.items() if n.startswith("params/")):
        path = name.removeprefix("params/")
        others = [n for n in lies if n.endswith("/" + path)]
        assert len(others) == 4  # parameter, average, two moments
        assert {lies[n] for n in others} == {spec}
        assert ("fsdp" in spec) == (shape[1] > 1)
        assert ("tensor" in spec) == (shape[2] > 1 and path.endswith("in/kernel"))  # 3 outputs do not split
    kernel = now.opt_state.inner_states["base"].inner_state[1][0].mu["base"]["in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // (shape[1] * shape[2])


def specs(shapes, mesh, **settings):
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {name: s.spec for name, s in sharding.named(sharding.shardings(tree, mesh, **settings)).items()}


def test_rules():
    mesh = sharding.make_mesh(1, 4, 2)
    shapes = {
        "a/kernel": (3, 3, 512, 256),  # tensor, and fsdp on the largest axis that is left
        "b/kernel": (512, 254),  # pieces of 127 features are too narrow
        "c/kernel": (510, 511),  # nothing divides
        "d/embedding": (1000, 512),
        "e/embedding": (1001, 512),  # the largest that divides, not the largest
        "f/kernel": (8, 256),  # small
        "g/scale": (2**14,),
        "step": (),
    }
    assert specs(shapes, mesh) == {
        "a/kernel": PartitionSpec(None, None, "fsdp", "tensor"),
        "b/kernel": PartitionSpec("fsdp", None),
        "c/kernel": PartitionSpec(None, None),
        "d/embedding": PartitionSpec("fsdp", None),
        "e/embedding": PartitionSpec(None, "fsdp"),
        "f/kernel": PartitionSpec(None, None),
        "g/scale": PartitionSpec("fsdp"),
        "step": PartitionSpec(),
    }
    small = specs({"f/kernel": (8, 256)}, mesh, min_size=8 * 256)
    assert small == {"f/kernel": PartitionSpec("fsdp", "tensor")}


def test_first_rule_wins_and_no_rule_replicates():
    mesh = sharding.make_mesh(1, 8)
    rules = [("skip", "replicated"), ("kernel", "fsdp")]
    got = specs({"skip/kernel": (64, 64), "go/kernel": (64, 64), "go/bias": (64,)}, mesh, rules=rules, min_size=1)
    assert got == {
        "skip/kernel": PartitionSpec(None, None),
        "go/kernel": PartitionSpec(None, "fsdp"),
        "go/bias": PartitionSpec(None),
    }
    with pytest.raises(UserError, match="'fdsp' does not exist"):
        sharding.shardings({}, mesh, rules=[("", "fdsp")])


def test_mesh_takes_what_is_left():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.make_mesh(1, -1).shape["fsdp"] == 8
    assert sharding.make_mesh(devices=jax.devices()[:2]).shape["data"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "change mesh.data to 8, or to -1"),
        ((2, 8, 1), "change mesh.fsdp to 4, or to -1"),
        ((3, 4, 1), "change mesh.data to 2, or to -1"),
        ((-1, 3, 1), "change mesh.fsdp to a divisor of 8"),
        ((-1, 2, 8), "change mesh.tensor to a divisor of 4"),
        ((3, 3, 1), "must multiply to the device count"),
        ((-1, -1, 1), "give mesh.fsdp a number"),
        ((1, 0, 1), "mesh.fsdp must be positive"),
    ],
)
def test_mesh_says_which_number_to_change(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(*sizes)


def test_batch_is_split_by_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    video = np.arange(8 * 2 * 3, dtype=np.uint8).reshape(8, 2, 3)
    batch = sharding.put_batch({"video": video, "label": np.arange(8, dtype=np.int32)}, mesh)
    np.testing.assert_array_equal(batch["video"], video)
    assert batch["video"].dtype == np.uint8
    for array in batch.values():
        assert array.sharding == sharding.batch_sharding(mesh)
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}


def test_batch_errors():
    mesh = sharding.make_mesh(2, 4)
    with pytest.raises(UserError, match=r"batch_size 12 .* 2 x 4 devices: make it a multiple of 8"):
        sharding.put_batch({"x": np.zeros((12, 1))}, mesh)
    with pytest.raises(UserError, match="equally many rows"):
        sharding.put_batch({"x": np.zeros((8, 1)), "y": np.zeros(16)}, mesh)


def test_replicated_is_everywhere():
    x = jax.device_put(jnp.arange(4), sharding.replicated(sharding.make_mesh(2, 2, 2)))
    assert [shard.data.shape for shard in x.addressable_shards] == [(4,)] * 8


def test_abstract_keeps_shapes_and_says_where():
    mesh = sharding.make_mesh(1, 8)
    shapes, where = jax.eval_shape(create), place(mesh)
    got = sharding.abstract(shapes, where)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert jax.tree.map(lambda a: a.sharding, got) == where
    everywhere = sharding.replicated(mesh)
    assert {a.sharding for a in jax.tree.leaves(sharding.abstract(shapes, everywhere))} == {everywhere}
