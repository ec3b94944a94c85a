"""Layers against loops and formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange, repeat

from vf.nets import layers


def scrambled(params, seed=0, scale=0.3):
    """Random values for every parameter, so that no initialisation by zeros or ones hides an error."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [np.float32(scale * rng.normal(size=leaf.shape)) for leaf in leaves])


def made(module, *args):
    """Apply the module with random parameters; returns the parameters and the output."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    variables = scrambled(shapes)
    return variables["params"], np.asarray(jax.jit(module.apply)(variables, *args))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, groups, p, scale=0.0, shift=0.0):
    """Frame by frame and group by group, in float64."""
    y = np.empty(x.shape)
    for index in np.ndindex(*x.shape[:2]):
        for group in np.split(np.arange(x.shape[-1]), groups):
            part = x[index][..., group].astype(np.float64)
            y[index][..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return (y * p["scale"] + p["bias"]) * (1 + scale) + shift


def conv(x, p):
    """A 3x3 cross-correlation over zero-padded frames."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:-1], p["kernel"].shape[-1])) + p["bias"]
    for i, j, h, w in np.ndindex(3, 3, *x.shape[2:4]):
        y[:, :, h, w] += padded[:, :, h + i, w + j] @ p["kernel"][i, j]
    return y


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attention(q, k, v):
    """Of queries `i c` over keys `j c`, one query at a time."""
    y = np.empty_like(q)
    for i, query in enumerate(q):
        weight = np.exp(k @ query / np.sqrt(q.shape[-1]))
        y[i] = weight @ v / weight.sum()
    return y


@pytest.mark.parametrize("how", [None, "down", "up"])
@pytest.mark.parametrize("c", [4, 6])
def test_res_block_is_adm(how, c):
    x, emb = normal(2, 3, 4, 6, 4), normal(2, 3, 5, seed=2)
    p, y = made(layers.ResBlock(c, how, norm_groups=2), x, emb)

    def resize(x):
        if how == "up":
            return np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)
        if how == "down":
            return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        return x

    h = conv(resize(silu(group_norm(x, 2, p["norm_in"]))), p["conv_in"])
    scale, shift = np.split(dense(silu(emb), p["emb"])[:, :, None, None], 2, axis=-1)
    h = conv(silu(group_norm(h, 2, p["norm_out"], scale, shift)), p["conv_out"])
    assert ("skip" in p) == (c != 4)
    skip = resize(dense(x, p["skip"]) if c != 4 else x)
    np.testing.assert_allclose(y, skip + h, atol=1e-4)


@pytest.mark.parametrize("order", ["new", "legacy"])
@pytest.mark.parametrize("tokens", [None, [[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 0, 0]]])
def test_self_attention_is_a_loop(order, tokens):
    """With no context tokens, with all, and with some masked: for the second clip, every one."""
    x, context = normal(2, 2, 2, 3, 8), normal(2, 3, 5, seed=2)
    inputs = (x,) if tokens is None else (x, context, jnp.asarray(tokens, bool))
    p, y = made(layers.SelfAttention(4, order, norm_groups=2), *inputs)
    expected = x.copy()
    for clip, frame in np.ndindex(2, 2):
        h = group_norm(x, 2, p["norm"])[clip, frame].reshape(6, 8)
        seen = context[clip][np.asarray(tokens, bool)[clip]] if tokens else np.zeros((0, 5))
        out = np.empty((6, 8))
        for head in range(2):
            # First channel of part 0, 1, 2 (q, k, v) of this head within a projection that has so many parts.
            def part(i, parts, head=head):
                start = 8 * i + 4 * head if order == "new" else 4 * (parts * head + i)
                return slice(start, start + 4)

            qkv = dense(h, p["qkv"])
            k, v = qkv[:, part(1, 3)], qkv[:, part(2, 3)]
            if len(seen):
                kv = dense(seen, p["context_kv"])
                k, v = np.concatenate([kv[:, part(0, 2)], k]), np.concatenate([kv[:, part(1, 2)], v])
            out[:, 4 * head : 4 * head + 4] = attention(qkv[:, part(0, 3)], k, v)
        expected[clip, frame] += dense(out, p["out"]).reshape(2, 3, 8)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_attention_orders_differ_by_a_permutation():
    x, context = normal(1, 2, 2, 2, 8), normal(1, 3, 5, seed=2)
    new, legacy = (layers.SelfAttention(2, order, norm_groups=2) for order in ("new", "legacy"))
    p, y = made(new, x, context)
    for name, parts in (("qkv", 3), ("context_kv", 2)):
        p[name] = {key: rearrange(m, "... (p n d) -> ... (n p d)", p=parts, d=2) for key, m in p[name].items()}
    np.testing.assert_allclose(legacy.apply({"params": p}, x, context), y, atol=1e-5)
    assert np.abs(new.apply({"params": p}, x, context) - y).max() > 1e-2


def test_attention_in_half_precision_does_not_overflow():
    q = jnp.full((1, 1, 64), 180.0, jnp.float16)  # q . k = 64 * 180^2 is beyond float16, and a 64th of it too
    assert np.isfinite(layers.attend(q[None], q[None] / 4, q[None])).all()


@pytest.mark.parametrize("f", [1, 2, 5])
def test_temporal_conv_is_a_loop(f):
    x = normal(2, f, 2, 3, 4)
    p, y = made(layers.TemporalConv(norm_groups=2), x)
    h = silu(group_norm(x, 2, p["norm"]))
    expected = x + p["bias"]
    for frame in range(f):
        for tap in range(3):
            if 0 <= (source := frame + tap - 1) < f:
                expected[:, frame] += h[:, source] @ p["kernel"][tap]
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_temporal_attention_is_a_loop():
    x = normal(2, 4, 2, 3, 8)
    p, y = made(layers.TemporalAttention(4, norm_groups=2), x)
    h = dense(group_norm(x, 2, p["norm"]), p["qkv"])
    out = np.empty_like(x)
    for clip, row, column, head in np.ndindex(2, 2, 3, 2):
        qkv = (h[clip, :, row, column, 8 * i + 4 * head :][:, :4] for i in range(3))
        out[clip, :, row, column, 4 * head : 4 * head + 4] = attention(*qkv)
    np.testing.assert_allclose(y, x + dense(out, p["out"]), atol=1e-4)


def test_resize_down_undoes_up():
    x = normal(1, 2, 4, 6, 3)
    np.testing.assert_allclose(layers.resize(layers.resize(x, "up"), "down"), x, atol=1e-6)
    np.testing.assert_array_equal(layers.resize(x, "up"), repeat(x, "b f h w c -> b f (h i) (w j) c", i=2, j=2))
