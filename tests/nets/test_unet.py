"""The U-Net: ADM's and Karlo's exact parameters, and the laws of frames, conditions, precision and memory."""

import math
import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vf.nets.embed import Conditioning
from vf.nets.layers import GroupNorm, ResBlock, drop
from vf.nets.unet import Block, UNet, rematerialised

TINY = {
    "width": 4,
    "width_mult": (1, 2),
    "num_res_blocks": 1,
    "attention": (2,),
    "head_dim": 4,
    "norm_groups": 2,
}
SMALL = TINY | {"width_mult": (1,), "num_res_blocks": 0, "attention": ()}
Z = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
T = np.array([3, 900])


def shapes_of(net, *args, **kwargs):
    """Path and shape of every parameter; nothing is computed."""
    return flatten_dict(jax.eval_shape(lambda: net.init(jax.random.key(0), *args, **kwargs))["params"], sep="/")


def count(shapes):
    return sum(math.prod(leaf.shape) for leaf in shapes.values())


def scrambled(net, *args, **kwargs):
    """Random values for every parameter, so that no initialisation by zeros hides an error."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.float32(0.4 * rng.normal(size=leaf.shape))  # noqa: E731
    return {path: draw(leaf) for path, leaf in shapes_of(net, *args, **kwargs).items()}


def initial(net, pattern, *args):
    """The parameters whose paths have the pattern, as they are initialised; compiles no more than those."""

    @jax.jit
    def init(key):
        flat = flatten_dict(net.init(key, *args)["params"], sep="/")
        return {path: leaf for path, leaf in flat.items() if re.search(pattern, path)}

    return init(jax.random.key(0))


def run(net, params, *args, **kwargs):
    """Apply, operation by operation: compiling whole networks would take most of this file's time."""
    return np.asarray(net.apply({"params": unflatten_dict(params, sep="/")}, *args, **kwargs))


def adm64_shapes():
    """ADM at 64 pixels, layer by layer in the order of its blocks, kernels in JAX's layout."""
    shapes = [(192, 768), (768,), (768, 768), (768,), (1000, 768), (3, 3, 3, 192), (192,)]

    def res(c, out):
        shapes.extend([(c,), (c,), (3, 3, c, out), (out,), (768, 2 * out), (2 * out,)])
        shapes.extend([(out,), (out,), (3, 3, out, out), (out,)])
        shapes.extend([(c, out), (out,)] if c != out else [])

    def attend(c):
        shapes.extend([(c,), (c,), (c, 3 * c), (3 * c,), (c, c), (c,)])

    for c, out in [(192, 192), (192, 384), (384, 576), (576, 768)]:
        for i in range(3):
            res(c if i == 0 else out, out)
            if out > 192:
                attend(out)
        if out < 768:
            res(out, out)
    res(768, 768)
    attend(768)
    res(768, 768)
    # What each block on the way up reads: what comes from below, and the skip.
    up = {
        768: [768 + 768, 768 + 768, 768 + 768, 768 + 576],
        576: [768 + 576, 576 + 576, 576 + 576, 576 + 384],
        384: [576 + 384, 384 + 384, 384 + 384, 384 + 192],
        192: [384 + 192, 192 + 192, 192 + 192, 192 + 192],
    }
    for out, inputs in up.items():
        for c in inputs:
            res(c, out)
            if out > 192:
                attend(out)
        if out > 192:
            res(out, out)
    return [*shapes, (192,), (192,), (3, 3, 192, 6), (6,)]


def test_adm64_has_exactly_its_parameters():
    net = UNet(192, (1, 2, 3, 4), 3, (2, 4, 8), num_classes=1000, learned_variance=True)
    shapes = shapes_of(net, jnp.zeros((1, 1, 64, 64, 3)), jnp.zeros(1, int), label=jnp.zeros(1, int))
    assert Counter(leaf.shape for leaf in shapes.values()) == Counter(adm64_shapes())
    assert len(shapes) == 541
    assert count(shapes) == 295_904_454


def test_karlo_decoder_has_exactly_its_parameters():
    net = UNet(
        width=320,
        width_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention=(2, 4, 8),
        attention_order="legacy",
        cond_dim=1280,
        cond_projection=False,
        context_dim=1536,
        learned_variance=True,
    )
    cond, context = jnp.zeros((1, 1280)), jnp.zeros((1, 81, 1536))
    shapes = shapes_of(net, jnp.zeros((1, 1, 64, 64, 3)), jnp.zeros(1, int), cond=cond, context=context)
    assert count(shapes) == 885_439_686
    assert sum("context_kv/kernel" in name for name in shapes) == 3 * 3 + 1 + 3 * 4


def test_skips_join_where_and_in_the_order_that_adm_has_them():
    """The walk through two levels, written out: what comes from below precedes the last skip not yet read."""
    net = UNet(**TINY)
    params = scrambled(net, Z, T)
    tree = unflatten_dict(params, sep="/")
    emb = Conditioning(4).apply({"params": tree["embed"]}, T, None, None, np.arange(3))

    def block(name, features, attention, *x):
        made = Block(features, attention, (), 4, "new", 0.0, 2, jnp.float32)
        return made.apply({"params": tree[name]}, np.concatenate(x, axis=-1), emb, None, None)

    def resample(name, x, how):
        return ResBlock(x.shape[-1], how, norm_groups=2).apply({"params": tree[name]}, x, emb)

    x0 = nn.Conv(4, (3, 3)).apply({"params": tree["conv_in"]}, Z)
    x1 = block("down_0_0", 4, False, x0)
    x2 = resample("down_0_resample", x1, "down")
    x3 = block("down_1_0", 8, True, x2)
    x = block("middle_1", 8, False, block("middle_0", 8, True, x3))
    x = block("up_1_1", 8, True, block("up_1_0", 8, True, x, x3), x2)
    x = resample("up_1_resample", x, "up")
    x = block("up_0_1", 4, False, block("up_0_0", 4, False, x, x1), x0)
    x = nn.silu(GroupNorm(2).apply({"params": tree["norm_out"]}, x))
    x = nn.Conv(3, (3, 3)).apply({"params": tree["conv_out"]}, x)
    np.testing.assert_allclose(run(net, params, Z, T), x, atol=1e-4)


def test_output_is_zero_at_initialisation_whatever_lies_below():
    net = UNet(**TINY, patch=2, learned_variance=True, temporal=("conv", "attention"), frame_embed=True)
    z = np.random.default_rng(3).normal(size=(2, 3, 8, 8, 2)).astype(np.float32)
    params = scrambled(net, z, T)
    assert (run(net, params, z, T) != 0).all()
    y = run(net, params | initial(net, "^conv_out", z, T), z, T)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.zeros((2, 3, 8, 8, 6)))


@pytest.mark.parametrize("kind", ["conv", "attention"])
def test_temporal_mixing_starts_as_the_identity_and_then_mixes(kind):
    image, clip = UNet(**TINY), UNet(**TINY, temporal=(kind,))
    params, trained = scrambled(image, Z, T), scrambled(clip, Z, T)
    fresh = params | initial(clip, "temporal", Z, T)
    assert set(params) < set(fresh) == set(trained)
    y = run(image, params, Z, T)
    np.testing.assert_allclose(run(clip, fresh, Z, T), y, atol=1e-5)

    other = Z.copy()
    other[:, 1] += np.random.default_rng(4).normal(size=Z[:, 1].shape)
    moved = np.abs(run(image, params, other, T) - y).max((2, 3, 4))
    assert (moved[:, 1] > 1e-2).all()
    np.testing.assert_array_equal(moved[:, [0, 2]], 0)
    moved = np.abs(run(clip, trained, other, T) - run(clip, trained, Z, T)).max((2, 3, 4))
    assert (moved > 1e-3).all()


def test_a_clip_without_mixing_is_so_many_images():
    """Images give the same wherever they stand in a batch of clips."""
    net = UNet(**TINY)
    params, t = scrambled(net, Z, T), T[[0, 0]]
    shuffle = np.array([4, 2, 5, 0, 3, 1])
    shuffled, y = (run(net, params, z, t).reshape(6, -1) for z in (Z.reshape(6, 4, 4, 3)[shuffle].reshape(Z.shape), Z))
    np.testing.assert_allclose(shuffled, y[shuffle], atol=1e-5)


def test_attention_and_mixing_are_at_the_requested_levels():
    def blocks(net, part):
        return {path.split("/")[0] for path in shapes_of(net, Z, T) if f"/{part}/" in path}

    middle, coarse, fine = {"middle_0"}, {"down_1_0", "up_1_0", "up_1_1"}, {"down_0_0", "up_0_0", "up_0_1"}
    net = UNet(**TINY, temporal=("conv", "attention"))
    assert blocks(net, "attention") == blocks(net, "temporal_attention") == middle | coarse
    assert blocks(net, "temporal_conv") == middle | coarse | fine | {"middle_1"}
    net = UNet(**TINY, temporal=("attention",), temporal_attention_at=(1,))
    assert blocks(net, "attention") == middle | coarse
    assert blocks(net, "temporal_attention") == middle | fine
    assert blocks(net, "temporal_conv") == set()
    net = UNet(**TINY | {"attention": (), "middle_attention": False}, temporal=("attention",))
    assert blocks(net, "attention") == set()
    assert blocks(net, "temporal_attention") == middle


def test_frame_index_counts_from_zero_and_distinguishes_frames():
    net = UNet(**TINY, frame_embed=True)
    z = np.repeat(Z[:, :1], 3, axis=1)
    params = scrambled(net, z, T)
    y = run(net, params, z, T)
    assert np.abs(y[:, 0] - y[:, 1]).max() > 1e-2
    np.testing.assert_allclose(run(net, params, z, T, frame=np.arange(3)), y, atol=1e-6)
    each = run(net, params, z, T, frame=np.array([[0, 1, 2], [2, 1, 0]]))
    np.testing.assert_allclose(each, np.stack([y[0], y[1, ::-1]]), atol=1e-5)


def test_every_condition_reaches_the_output():
    net = UNet(**TINY, num_classes=2, null_class=True, cond_dim=5, context_dim=6)
    rng = np.random.default_rng(2)
    inputs = {
        "label": np.array([0, 2]),  # 2 is the null class
        "cond": rng.normal(size=(2, 5)).astype(np.float32),
        "context": rng.normal(size=(2, 3, 6)).astype(np.float32),
        "context_mask": np.array([[1, 1, 0], [1, 1, 0]], bool),
    }
    changed = {
        "label": inputs["label"][::-1],
        "cond": -inputs["cond"],
        "context": -inputs["context"],
        "context_mask": ~inputs["context_mask"],
    }
    params = scrambled(net, Z, T, **inputs)
    y = run(net, params, Z, T, **inputs)

    def moved(t=T, **other):
        return np.abs(run(net, params, Z, t, **inputs | other) - y).max((1, 2, 3, 4))

    assert (moved(T[::-1]) > 1e-3).all()
    for name, value in changed.items():
        assert (moved(**{name: value}) > 1e-3).all(), name
    hidden = inputs["context"] + 9 * ~inputs["context_mask"][..., None]
    np.testing.assert_array_equal(moved(context=hidden), 0)
    assert np.isnan(moved(label=np.array([0, 3]))).tolist() == [False, True]


def test_patch_only_moves_pixels():
    """A network on 2x2 patches is the network without patches on 4 times the channels."""
    patched, reference = UNet(**TINY, patch=2), UNet(**TINY, out_channels=12)
    z = np.random.default_rng(3).normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
    params = scrambled(patched, z, T)
    corners = [(i, j) for i in range(2) for j in range(2)]
    folded = np.concatenate([z[:, :, i::2, j::2] for i, j in corners], axis=-1)
    y = np.empty_like(z)
    for (i, j), part in zip(corners, np.split(run(reference, params, folded, T), 4, axis=-1), strict=True):
        y[:, :, i::2, j::2] = part
    np.testing.assert_allclose(run(patched, params, z, T), y, atol=1e-5)


def test_dropout_acts_in_training_only():
    net = UNet(**SMALL, dropout=0.5)
    params = scrambled(net, Z, T)
    noisy = [run(net, params, Z, T, dropout_keys=jax.random.split(jax.random.key(i), len(Z))) for i in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-2
    y = run(net, params, Z, T)
    keys = jax.random.split(jax.random.key(0), len(Z))
    np.testing.assert_array_equal(run(UNet(**SMALL), params, Z, T, dropout_keys=keys), y)
    assert np.abs(noisy[0] - y).max() > 1e-2


def test_dropout_of_a_clip_does_not_depend_on_its_batch():
    net = UNet(**SMALL, dropout=0.5)
    params, keys = scrambled(net, Z, T), jax.random.split(jax.random.key(0), len(Z))
    both = run(net, params, Z, T, dropout_keys=keys)
    alone = [run(net, params, Z[i : i + 1], T[i : i + 1], dropout_keys=keys[i : i + 1]) for i in range(len(Z))]
    np.testing.assert_allclose(both, np.concatenate(alone), atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((4, 10_000))
    y = np.asarray(drop(x, 0.3, jax.random.split(jax.random.key(0), 4)))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    spread = 4 * np.sqrt(0.3 * 0.7 / 10_000)  # four standard deviations
    np.testing.assert_allclose((y == 0).mean(1), 0.3, atol=spread)
    np.testing.assert_allclose(((y[0] == 0) & (y[1] == 0)).mean(), 0.09, atol=spread)  # clips are independent
    assert (drop(x, 0.3, None) == x).all()
    assert drop(x.astype(jnp.bfloat16), 0.3, jax.random.split(jax.random.key(0), 4)).dtype == jnp.bfloat16


def test_remat_changes_neither_values_nor_gradients():
    x, emb, keys = Z[:, :, :2, :2, :2], np.ones((2, 1, 5), np.float32), jax.random.split(jax.random.key(0))
    results, products = {}, {}
    for remat in ("none", "dots", "blocks"):
        make = rematerialised(Block, remat)
        block = make(4, True, ("conv",), 4, "new", dropout=0.2, norm_groups=2, dtype=jnp.float32)
        params = scrambled(block, x, emb, None, None)

        def loss(params, block=block):
            variables = {"params": unflatten_dict(params, sep="/")}
            return jnp.sum(jnp.sin(block.apply(variables, x, emb, None, None, keys)))

        step = jax.jit(jax.value_and_grad(loss)).trace(params)
        products[remat] = str(step.jaxpr).count("dot_general[")
        # Compiling takes all of the time here: let the compiler not try hard.
        results[remat] = step.lower().compile({"xla_backend_optimization_level": 0})(params)
    assert products["none"] < products["dots"] < products["blocks"]
    value, slopes = results["none"]
    for other, others in (results["dots"], results["blocks"]):
        np.testing.assert_allclose(other, value, atol=1e-5)
        for path, slope in slopes.items():
            np.testing.assert_allclose(others[path], slope, atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "blocks"])
def test_remat_wraps_every_block(remat):
    reference, net = UNet(**TINY), UNet(**TINY, remat=remat)
    params = scrambled(net, Z, T)
    assert shapes_of(reference, Z, T) == shapes_of(net, Z, T)
    text = str(jax.make_jaxpr(lambda z: net.apply({"params": unflatten_dict(params, sep="/")}, z, T))(Z))
    assert text.count("policy=") == 2 + 2 + 4 + 2  # down, middle, up, and one resampling block each way


def test_bfloat16_computes_in_half_and_keeps_float32_parameters():
    half, full = UNet(**SMALL, dtype=jnp.bfloat16), UNet(**SMALL)
    assert {leaf.dtype for leaf in shapes_of(half, Z, T).values()} == {jnp.dtype("float32")}
    params = scrambled(full, Z, T)
    y, exact = run(half, params, Z, T), run(full, params, Z, T)
    assert y.dtype == np.float32
    error = np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 5e-2
    text = str(jax.make_jaxpr(lambda z: half.apply({"params": unflatten_dict(params, sep="/")}, z, T))(Z))
    convs = [line for line in text.splitlines() if "= conv_general_dilated[" in line]
    assert [":bf16[" in line for line in convs] == [True] * (len(convs) - 1) + [False]  # all but the output's


@pytest.mark.parametrize(
    ("change", "inputs", "message"),
    [
        ({"norm_groups": 3}, {}, "4 channels do not divide into norm_groups = 3"),
        ({"head_dim": 3}, {}, "8 channels do not divide into heads of head_dim = 3"),
        ({"patch": 4}, {}, "the size of pictures must divide by .* = 8, got 4 x 4"),
        ({"width": 3, "norm_groups": 1}, {}, "even width"),
        ({"temporal": ("convolution",)}, {}, "temporal knows 'conv', 'attention'; got 'convolution'"),
        ({"remat": "full"}, {}, "remat knows 'none', 'blocks', 'dots'; got 'full'"),
        ({"attention_order": "old"}, {}, "attention_order knows 'new', 'legacy'; got 'old'"),
        ({"attention": (2, 4)}, {}, "attention knows 1, 2; got 4"),
        ({"temporal_attention_at": (8,)}, {}, "temporal_attention_at knows 1, 2; got 8"),
        ({"null_class": True}, {}, "null_class needs num_classes"),
        ({"num_classes": 2}, {}, "label is missing"),
        ({}, {"label": T}, "label was given"),
        ({"cond_dim": 2}, {}, "cond is missing"),
        ({"cond_dim": 2}, {"cond": np.zeros((2, 3))}, "cond_dim = 2 channels, got 3"),
        ({"cond_dim": 2, "cond_projection": False}, {"cond": np.zeros((2, 2))}, "must be 4 \\* width = 16"),
        ({}, {"cond": np.zeros((2, 3))}, "cond was given"),
        ({"context_dim": 2}, {}, "context is missing"),
        ({"context_dim": 2}, {"context": np.zeros((2, 4, 3))}, "context_dim = 2 channels, got 3"),
        ({}, {"context_mask": np.ones((2, 4), bool)}, "context_mask was given without context"),
        ({}, {"t": T[:1]}, "one step per clip"),
        ({}, {"z": Z[0]}, "z must be b f h w c"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_refused_by_name(change, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(UNet(**{**TINY, **change}), **{"z": Z, "t": T, **inputs})


@pytest.mark.parametrize(
    ("levels", "remat"),
    [
        (1, "blocks"),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((1, "none"), (2, "none"), (2, "blocks"))),
    ],
)
def test_a_loop_over_equal_blocks_is_the_blocks_one_by_one(levels, remat):
    """Values and gradients, from the same parameters and draws; and the program is shorter."""
    options = {"width": 16, "width_mult": (1, 2)[:levels], "num_res_blocks": 3, "attention": (levels,), "head_dim": 16,
               "norm_groups": 8, "temporal": ("conv", "attention"), "remat": remat, "dropout": 0.3}  # fmt: skip
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 8, 8, 3)), jnp.array([3, 500])
    keys = jax.random.split(jax.random.key(2))
    reference, looped = UNet(**options), UNet(**options, scan=True)
    params = scrambled(reference, x, t)
    shapes = jax.eval_shape(looped.init, jax.random.key(0), x, t)["params"]
    assert set(flatten_dict(shapes, sep="/")) == set(params)

    def total(net):
        def sines(p):
            return jnp.sum(jnp.sin(net.apply({"params": unflatten_dict(p, sep="/")}, x, t, dropout_keys=keys)))

        return jax.jit(jax.value_and_grad(sines))

    (one, grads), (other, looped_grads) = total(reference)(params), total(looped)(params)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(looped_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(np.abs(a).max(), 1))
    assert len(total(looped).lower(params).as_text()) < len(total(reference).lower(params).as_text())


def test_every_block_s_clips_are_placed():
    """The function is asked where clips lie, of every shape that they have on the way."""
    seen = set()

    def place(x):
        seen.add(x.shape[2:4])
        return x

    net = UNet(width=8, width_mult=(1, 2), num_res_blocks=1, attention=(), head_dim=8, norm_groups=4, place=place)
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3)), jnp.zeros(1))
    assert seen == {(8, 8), (4, 4)}
