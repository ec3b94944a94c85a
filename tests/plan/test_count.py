"""FLOPs and bytes of traced programs are their closed forms."""

import jax
import jax.numpy as jnp
import pytest

from vf.nets.layers import attend
from vf.plan import count


def test_flops_are_those_of_the_closed_form():
    a, b = jnp.zeros((8, 16)), jnp.zeros((16, 32))

    def loop(a, b):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ b @ b.T)(x), None), a, length=5)[0]

    assert count.flops(jax.make_jaxpr(loop)(a, b).jaxpr) == 5 * 2 * 2 * 8 * 16 * 32
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 3, 10))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    assert count.flops(jax.make_jaxpr(convolve)(x, kernel).jaxpr) == 2 * (2 * 8 * 8 * 10) * 9 * 3
    branches = jax.make_jaxpr(lambda p, a, b: jax.lax.cond(p, lambda: (a @ b).sum(), lambda: 0.0))(True, a, b)
    assert count.flops(branches.jaxpr) == 2 * 8 * 16 * 32


def test_activations_stored_for_the_backward_pass_are_counted_for_each_clip():
    def loss(params, rows):
        x = rows["x"]
        for _ in range(3):
            x = jnp.tanh(x @ params["w"])
        return x.mean()

    shapes = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    found = count.training(loss, lambda n: {"x": jax.ShapeDtypeStruct((n, 64), jnp.float32)}, shapes)
    assert found.forward_flops == 3 * 2 * 64 * 64
    assert found.largest_bytes == 64 * 4
    assert 3 <= found.stored_bytes / (64 * 4) <= 7


def test_a_convolution_multiplies_in_the_padding():
    def loss(params, rows):
        return jax.lax.conv_general_dilated(rows["x"], params["w"], (1,), "SAME").sum()

    shapes = {"w": jax.ShapeDtypeStruct((7, 5, 3), jnp.float32)}
    found = count.training(loss, lambda n: {"x": jax.ShapeDtypeStruct((n, 5, 8), jnp.float32)}, shapes)
    assert found.forward_flops == 2 * 8 * 3 * 5 * 7
    assert found.padding == pytest.approx(8 * 3 / (8 * 3 - 2))


def test_fused_attention_counts_as_the_other_does(monkeypatch):
    """The kernel is traced on any machine once nothing asks for cuDNN's version."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    shape = jax.ShapeDtypeStruct((2, 3, 64, 4, 64), jnp.bfloat16)
    found = [
        count.flops(jax.make_jaxpr(lambda q, k, v, how=how: attend(q, k, v, None, how))(shape, shape, shape).jaxpr)
        for how in ("xla", "cudnn")
    ]
    assert found == [2 * 2 * 6 * 4 * 64 * 64 * 64] * 2
