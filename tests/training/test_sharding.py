"""Eight devices compute what one does, in any mesh shape, and moments and averages are sharded as their parameter."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from configs import demo
from vf import rng
from vf.config import models
from vf.data.sprites import Sprites
from vf.plan import messages
from vf.training import optim, sharding, state
from vf.training import step as steps
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
SHAPES = [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 1, 2)]


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
        assert ("fsdp" in str(spec)) == (shape[1] > 1)
        assert ("tensor" in str(spec)) == (shape[3] > 1 and path.endswith("in/kernel"))  # 3 outputs do not split
    kernel = now.opt_state.inner_states["base"].inner_state[1][0].mu["base"]["in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // (shape[1] * shape[3])


def both_networks(mesh):
    """A small model with every kind of mixing, that computes on `mesh`, and clips of it."""
    config = demo.get_config()
    config.data.size = 16
    for part in (config.base, config.residual):
        part.net.update({"width": 16, "width_mult": (1, 2), "num_res_blocks": 0, "attention": (2,), "head_dim": 16,
                         "norm_groups": 8, "patch": 2, "temporal_attention_at": (), "dropout": 0.1})  # fmt: skip
    config.base.net.update({"width_mult": (1,), "attention": ()})  # of one level: half of the time goes into compiling
    config.base.images = 1
    source = Sprites(frames=8, size=16, base_frame=3, split="train")
    return models.model(config, source, mesh)


def losses_and_gradients(mesh, rows):
    """Of `rows` clips, with parameters spread as training spreads them; and the compiled program's text."""
    model = both_networks(mesh)

    shapes = model.shapes()
    random = np.random.default_rng(0)
    # Nothing is zero, as much is at initialisation: that would hide what comes before.
    params = jax.tree.map(lambda p: 0.15 * random.normal(size=p.shape).astype(np.float32), shapes)
    batch = {
        "video": random.integers(0, 256, (rows, 8, 16, 16, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
        "index": np.arange(rows, dtype=np.uint32),
    }

    def loss(params, batch):
        keys = rng.example_keys(0, rng.Purpose.TRAIN, batch["index"])
        errors = model.errors(params, batch["video"] / 127.5 - 1, model.condition(batch), keys, train=True)
        return steps.loss(model, errors)[0]

    where = sharding.shardings(shapes, mesh, min_size=1, min_features=1)
    params = jax.device_put(params, where)
    update = jax.jit(jax.value_and_grad(loss), out_shardings=(None, where))
    compiled = update.lower(params, sharding.put_batch(batch, mesh)).compile()
    return jax.device_get(compiled(params, sharding.put_batch(batch, mesh))), compiled.as_text()


@functools.cache
def reference(rows):
    return losses_and_gradients(sharding.make_mesh(devices=jax.devices()[:1]), rows)[0]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        pytest.param((8, 1, 1, 1), 8, marks=pytest.mark.slow),
        pytest.param((2, 4, 1, 1), 8, marks=pytest.mark.slow),
        ((2, 2, 1, 2), 4),
        ((2, 2, 2, 1), 4),
        pytest.param((1, 2, 4, 1), 2, marks=pytest.mark.slow),
    ],
    ids=["data", "data-fsdp", "tensor", "frames", "more-frames"],
)
def test_any_mesh_gives_the_losses_and_gradients_of_one_device(shape, rows):
    (loss, grads), text = losses_and_gradients(sharding.make_mesh(*shape), rows)
    want_loss, want = reference(rows)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    for (name, got), expected in zip(sharding.named(grads).items(), jax.tree.leaves(want), strict=True):
        off = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-6)
        assert off < 1e-5 or np.abs(expected).max() < 1e-6, (name, off)
    if shape[2] > 1:  # frames are really split: no device computes on all eight of a clip, but attention's own keys
        convolved = {int(n) for n in re.findall(r"f32\[(\d+),8,8,16\]\S* convolution\(", text)}
        assert convolved
        assert max(convolved) <= 8 // shape[2]


def test_clips_lie_in_parts_of_one_clip_or_more():
    place = sharding.placing(sharding.make_mesh(1, 2, 4))

    def spec(*shape):
        lies = []
        jax.jit(lambda x: jax.debug.inspect_array_sharding(place(x), callback=lies.append)).lower(
            jax.ShapeDtypeStruct(shape, jnp.float32)
        ).compile()
        return lies[0].shard_shape(shape)

    assert spec(2, 8, 4, 4, 3) == (1, 2, 4, 4, 3)  # a clip for two devices: frames
    assert spec(16, 8, 4, 4, 3) == (2, 8, 4, 4, 3)  # clips for all
    assert spec(4, 8, 4, 4, 3) == (2, 8, 4, 4, 3)  # rows over data x fsdp alone
    assert spec(2, 3, 4, 4, 3) == (1, 3, 4, 4, 3)  # three frames do not split over four
    alone = sharding.placing(sharding.make_mesh(devices=jax.devices()[:1]))
    x = jnp.zeros((2, 8, 4, 4, 3))
    assert alone(x) is x


def test_between_cpu_processes_gradients_are_one_array():
    """The means of all rows, in one message of all numbers; other meshes leave it to the compiler."""

    def means(params, batch):
        def loss(p):
            hidden = jnp.tanh(batch["x"] @ p["in"]["kernel"] + p["in"]["bias"])
            return jnp.mean((hidden @ p["out"]["kernel"] - batch["y"]) ** 2)

        return jax.value_and_grad(loss)(params)

    params, mesh = create().params["base"], sharding.make_mesh(8)
    given = (params, sharding.put_batch(rows(), mesh))
    compiled = jax.jit(sharding.averaging(mesh)(means)).lower(*given).compile()
    for got, want in zip(jax.tree.leaves(compiled(*given)), jax.tree.leaves(means(params, rows())), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    (message,) = messages.collectives(compiled.as_text())
    assert message.kind == "all-reduce"
    assert re.search(rf"f32\[{message.bytes // 4}\]\S* all-reduce\(", compiled.as_text())
    assert message.bytes == 4 * (1 + sum(p.size for p in jax.tree.leaves(params)))
    assert sharding.averaging(sharding.make_mesh(2, 4))(means) is means


def test_frames_are_split_for_less_than_a_clip_a_device():
    mesh = sharding.make_mesh(1, 2, 4)
    sharding.check_rows(mesh, "train.batch_size", 2, clips=True)
    sharding.check_rows(mesh, "train.batch_size", 4, 2, clips=True)
    with pytest.raises(UserError, match=r"12 in 4 micro-batches cannot be split .* make it a multiple of 8"):
        sharding.check_rows(mesh, "train.batch_size", 12, 4)
    with pytest.raises(UserError, match=r"gives 4 clips .* set mesh\.frames to 1, or train\.batch_size to 2"):
        sharding.check_rows(mesh, "train.batch_size", 8, clips=True)
    with pytest.raises(UserError, match=r"batch_size 12 .* data x fsdp x frames = 1 x 2 x 4 devices: .* of 8"):
        sharding.check_rows(mesh, "sample.batch_size", 12, over=sharding.EVERY)


class Chip(SimpleNamespace):
    """A device of a slice, as `mesh_utils` looks at it."""

    def __hash__(self):
        return self.id


def test_data_alone_spans_slices(monkeypatch):
    chips = [Chip(id=i, process_index=i // 4, platform="cpu", device_kind="cpu", slice_index=i // 8) for i in range(16)]
    monkeypatch.setattr(sharding, "Mesh", lambda devices, axes, axis_types: devices)
    placed = sharding.make_mesh(2, 4, 1, 2, devices=chips)
    assert placed.shape == (2, 4, 1, 2)
    assert [{chip.slice_index for chip in part.flat} for part in placed] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh\.data=1 .* make it a multiple of 2"):
        sharding.make_mesh(1, 16, devices=chips)


def test_one_process_holds_all_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    np.testing.assert_array_equal(sharding.my_rows(mesh, 8), np.arange(8))  # one process holds all


def specs(shapes, mesh, **settings):
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {name: s.spec for name, s in sharding.named(sharding.shardings(tree, mesh, **settings)).items()}


def test_rules():
    mesh = sharding.make_mesh(1, 4, 1, 2)
    shapes = {
        "a/kernel": (3, 3, 512, 256),  # tensor, and fsdp on the same axis
        "b/kernel": (512, 254),  # pieces of 127 features are too narrow
        "c/kernel": (510, 511),  # nothing divides
        "d/embedding": (1000, 512),
        "e/embedding": (1001, 512),  # the largest that divides, not the largest
        "f/kernel": (8, 256),  # small
        "g/scale": (2**14,),
        "step": (),
    }
    assert specs(shapes, mesh) == {
        "a/kernel": PartitionSpec(None, None, None, ("tensor", "fsdp")),
        "b/kernel": PartitionSpec("fsdp", None),
        "c/kernel": PartitionSpec(None, None),
        "d/embedding": PartitionSpec("fsdp", None),
        "e/embedding": PartitionSpec(None, "fsdp"),
        "f/kernel": PartitionSpec(None, None),
        "g/scale": PartitionSpec("fsdp"),
        "step": PartitionSpec(),
    }
    small = specs({"f/kernel": (8, 256)}, mesh, min_size=8 * 256)
    assert small == {"f/kernel": PartitionSpec(None, ("tensor", "fsdp"))}


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


def test_mesh_takes_the_remaining_devices():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "frames": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.make_mesh(1, -1).shape["fsdp"] == 8
    assert sharding.make_mesh(devices=jax.devices()[:2]).shape["data"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1, 1), "change mesh.data to 8, or to -1"),
        ((2, 8, 1, 1), "change mesh.fsdp to 4, or to -1"),
        ((3, 4, 1, 1), "change mesh.data to 2, or to -1"),
        ((-1, 3, 1, 1), "change mesh.fsdp to a divisor of 8"),
        ((-1, 2, 1, 8), "change mesh.tensor to a divisor of 4"),
        ((3, 3, 1, 1), "must multiply to the device count"),
        ((-1, -1, 1, 1), "give mesh.fsdp a number"),
        ((1, 0, 1, 1), "mesh.fsdp must be positive"),
    ],
)
def test_mesh_names_the_number_to_change(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(*sizes)


def test_batch_is_split_by_rows():
    mesh = sharding.make_mesh(2, 2, 1, 2)
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
    x = jax.device_put(jnp.arange(4), sharding.replicated(sharding.make_mesh(2, 2, 1, 2)))
    assert [shard.data.shape for shard in x.addressable_shards] == [(4,)] * 8


def test_abstract_has_shapes_and_shardings():
    mesh = sharding.make_mesh(1, 8)
    shapes, where = jax.eval_shape(create), place(mesh)
    got = sharding.abstract(shapes, where)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert jax.tree.map(lambda a: a.sharding, got) == where
    everywhere = sharding.replicated(mesh)
    assert {a.sharding for a in jax.tree.leaves(sharding.abstract(shapes, everywhere))} == {everywhere}
