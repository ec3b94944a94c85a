"""The prior without an oracle: what stands for no condition, what padding changes, how it begins; wrong inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vf.nets import initial
from vf.nets.initial import Initializer
from vf.nets.prior import Prior, denormalised, normalised

SIZES = {"dim": 6, "width": 16, "depth": 2, "heads": 2}
CLASSES = Prior(**SIZES, num_classes=3)
CAPTIONS = Prior(**SIZES, text_length=5)
ROWS = Prior(**SIZES, text_length=5, texts=3)


@functools.cache
def params(net: Prior):
    """Random parameters of which none is neutral."""
    z = jnp.zeros((1, 1, 1, 1, 6))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    made = jax.tree.unflatten(tree, drawn)
    if "texts" in made:
        made["texts"]["mask"] = jnp.asarray(np.arange(5) < np.array([[3], [5], [2]]), jnp.float32)
    return made


@functools.partial(jax.jit, static_argnums=0)
def call(net, params, z, t, **inputs):
    return net.apply({"params": params}, z, t, **inputs)


rng = np.random.default_rng(1)
Z, T = rng.normal(size=(3, 1, 1, 1, 6)).astype(np.float32), np.array([0, 40, 999], np.int32)
TEXT = {
    "text_states": rng.normal(size=(3, 5, 6)).astype(np.float32), "text_mask": np.arange(5) < np.array([[3], [5], [2]]),
    "text_pooled": rng.normal(size=(3, 6)).astype(np.float32),
}  # fmt: skip


def test_no_class_is_the_class_after_the_last():
    found = call(CLASSES, params(CLASSES), Z, T)
    np.testing.assert_array_equal(found, call(CLASSES, params(CLASSES), Z, T, label=np.full(3, 3)))
    others = call(CLASSES, params(CLASSES), Z, T, label=np.arange(3))
    assert np.abs(np.asarray(found - others)).max((1, 2, 3, 4)).min() > 1e-3
    unconditional = Prior(**SIZES)
    assert call(unconditional, params(unconditional), Z, T).shape == Z.shape


@pytest.mark.parametrize("net", [CAPTIONS, ROWS])
def test_a_dropped_text_is_that_of_no_text(net):
    """The learned one, or the empty prompt; whatever the text was."""
    absent = call(net, params(net), Z, T)
    given = call(net, params(net), Z, T, **TEXT)
    dropped = call(net, params(net), Z, T, **TEXT, null=np.array([True, False, True]))
    np.testing.assert_allclose(np.asarray(dropped)[[0, 2]], np.asarray(absent)[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(dropped[1], given[1], atol=1e-6)
    assert np.abs(np.asarray(given - absent)).max((1, 2, 3, 4)).min() > 1e-3


def test_a_row_is_the_text_that_it_holds():
    texts = params(ROWS)["texts"]
    row = np.array([1, 0, 2])
    given = {f"text_{name}": texts[name][row] for name in ("states", "pooled")} | {"text_mask": texts["mask"][row] > 0}
    found = call(ROWS, params(ROWS), Z, T, label=row)
    np.testing.assert_allclose(found, call(ROWS, params(ROWS), Z, T, **given), atol=1e-6)
    np.testing.assert_allclose(found[2], call(ROWS, params(ROWS), Z, T)[2], atol=1e-6)


def test_padding_changes_nothing_and_all_else_does():
    net, weights = CAPTIONS, params(CAPTIONS)
    plain = call(net, weights, Z, T, **TEXT)
    states = TEXT["text_states"].copy()
    states[~TEXT["text_mask"]] = 9
    np.testing.assert_allclose(call(net, weights, Z, T, **TEXT | {"text_states": states}), plain, atol=1e-6)
    states = TEXT["text_states"].copy()
    states[:, 1] += 1
    for changed in (
        {"text_states": states},
        {"text_pooled": TEXT["text_pooled"] + 1},
        {"text_mask": np.ones((3, 5), bool)},
    ):
        found = call(net, weights, Z, T, **TEXT | changed)
        assert np.abs(np.asarray(found - plain)).max((1, 2, 3, 4))[[0, 2]].min() > 1e-4
    assert np.isfinite(call(net, weights, Z, T, **TEXT | {"text_mask": np.zeros((3, 5), bool)})).all()
    for z, t in ((Z + 1, T), (Z, T + 100)):
        assert np.abs(np.asarray(call(net, weights, z, t, **TEXT) - plain)).max((1, 2, 3, 4)).min() > 1e-4


def test_statistics_are_parameters_without_a_gradient():
    weights = params(CLASSES)
    e = rng.normal(size=(3, 6)).astype(np.float32)
    z = normalised(weights, e)
    np.testing.assert_allclose(z[:, 0, 0, 0], (e - weights["mean"]) / weights["std"], rtol=1e-5)
    np.testing.assert_allclose(denormalised(weights, z), e, atol=1e-5)
    grads = jax.grad(lambda p: (CLASSES.apply({"params": p}, normalised(p, e), T) ** 2).mean())(weights)
    assert not np.abs(grads["mean"]).any()
    assert not np.abs(grads["std"]).any()
    for name in ("query", "positions"):
        assert np.abs(grads[name]).max() > 0


def test_it_computes_in_half_precision_and_again():
    true = call(CLASSES, params(CLASSES), Z, T)
    half = Prior(**SIZES, num_classes=3, dtype=jnp.bfloat16)
    found = call(half, params(CLASSES), Z, T)
    assert found.dtype == jnp.float32
    assert 1e-6 < np.abs(np.asarray(found - true)).max() < 0.1 * np.abs(np.asarray(true)).max()

    def gradient(net):
        return jax.jit(jax.grad(lambda p: (net.apply({"params": p}, Z, T) ** 2).mean()))(params(CLASSES))

    plain, again = (gradient(Prior(**SIZES, num_classes=3, remat=remat)) for remat in ("none", "blocks"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), plain, again)


def test_layers_that_are_stacked_begin_as_single_ones():
    """The variance of a block's kernel is one over its inputs, and not over those of all blocks."""
    net = Prior(dim=8, width=64, depth=6, heads=2, num_classes=3, mean_init=Initializer(mean=2.0))
    z = jnp.zeros((1, 1, 1, 1, 8))
    shapes, begins = initial.of(lambda: net.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32))["params"])
    names = {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    assert names.keys() <= begins.keys()
    kernel = begins["blocks/qkv/kernel"].draw(0, "x", names["blocks/qkv/kernel"].shape)
    assert kernel.shape == (6, 64, 192)
    np.testing.assert_allclose(kernel.var((1, 2)), 1 / 64, rtol=0.05)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    np.testing.assert_array_equal(begins["mean"].draw(0, "x", (8,)), np.full(8, 2, np.float32))


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs_are_refused():
    def refused(message, net, z=Z, **inputs):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(net.init, jax.random.key(0)), z, T, **inputs)

    refused("dim = 6 numbers, got 5", CLASSES, Z[..., :5])
    refused("multiple of heads = 3", Prior(dim=6, width=16, depth=1, heads=3))
    refused("text_states was given", CLASSES, **TEXT)
    refused("go together", CAPTIONS, text_states=TEXT["text_states"])
    refused("label was given to a network without fixed texts", CAPTIONS, label=np.zeros(3, np.int32))
    refused("label was given", ROWS, label=np.zeros(3, np.int32), **TEXT)
    refused("a text must have 5 states", CAPTIONS, **TEXT | {"text_states": TEXT["text_states"][:, :4]})
