"""Collectives and FLOPs read from compiled programs are their closed forms; forms of text that CPU never prints."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vf.plan import count, hlo, messages, usage
from vf.training import sharding

P = PartitionSpec


def on(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def compiled(f, *args, **options) -> str:
    return jax.jit(f, **options).lower(*args).compile().as_text()


def sums(found) -> dict[str, int]:
    kinds = {c.kind for c in found}
    return {kind: sum(c.bytes * c.times for c in found if c.kind == kind) for kind in kinds}


# Collectives of compiled programs


def test_fsdp_gathers_the_kernel():
    mesh = sharding.make_mesh(1, 8)
    text = compiled(
        lambda w, x: x @ w,
        on(mesh, (256, 128), "fsdp"),
        on(mesh, (4096, 256), ("data", "fsdp")),
        out_shardings=NamedSharding(mesh, P("fsdp")),
    )
    (found,) = messages.collectives(text)
    assert (found.kind, found.bytes, found.group, found.times) == ("all-gather", 256 * 128 * 4, 8, 1)
    assert found.wire_bytes == 256 * 128 * 4 * 7 / 8
    assert messages.axes(found.groups, mesh.shape) == ("fsdp",)
    assert "dot_general" in found.op_name


def test_data_parallel_reduces_the_gradient():
    mesh = sharding.make_mesh(8)
    params = {"w": (64, 32), "b": (32,), "v": (32, 16)}
    size = sum(math.prod(shape) for shape in params.values()) * 4

    def loss(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"])

    text = compiled(
        jax.grad(loss),
        {name: on(mesh, shape) for name, shape in params.items()},
        on(mesh, (128, 64), "data"),
        out_shardings=NamedSharding(mesh, P()),
    )
    found = messages.collectives(text)
    assert sums(found) == {"all-reduce": size}
    assert {messages.axes(c.groups, mesh.shape) for c in found} == {("data",)}
    assert sum(c.wire_bytes for c in found) == 2 * size * 7 / 8


def scanned(trips: int, outer: int = 0):
    """A chain of products of kernels split over fsdp, `trips` long, and the whole of it `outer` times."""
    mesh = sharding.make_mesh(2, 4)

    def chain(ws, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    def f(ws, x):
        return jax.lax.fori_loop(0, outer, lambda _, x: chain(ws, x), x) if outer else chain(ws, x)

    rows = NamedSharding(mesh, P(("data", "fsdp")))
    args = on(mesh, (trips, 128, 128), None, "fsdp"), on(mesh, (2048, 128), ("data", "fsdp"))
    return compiled(f, *args, out_shardings=rows), mesh


@pytest.mark.parametrize(("trips", "outer"), [(5, 0), (5, 3)])
def test_loops(trips, outer):
    text, mesh = scanned(trips, outer)
    times = trips * max(outer, 1)
    found = [c for c in messages.collectives(text) if c.kind == "all-gather"]
    assert [(c.bytes, c.times) for c in found] == [(128 * 128 * 4, times)]
    assert {messages.axes(c.groups, mesh.shape) for c in found} == {("fsdp",)}
    assert usage.flops(text) == times * 2 * (2048 // 8) * 128 * 128
    assert sorted(loop.trips for loop in hlo.loops(text)) == sorted([trips] + [outer] * bool(outer))


def test_a_collective_in_a_scan_counts_five_times():
    mesh = sharding.make_mesh(8)

    def f(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, "data") / 8, None), x, None, length=5)[0]

    mapped = jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    (found,) = messages.collectives(compiled(mapped, on(mesh, (64, 32), "data")))
    assert (found.kind, found.bytes, found.times) == ("all-reduce", 8 * 32 * 4, 5)


@pytest.mark.parametrize("outer", [0, 3])
def test_trips_are_read_from_the_condition(outer):
    text, _ = scanned(5, outer)
    bare = re.sub(r',?"known_trip_count":\{"n":"\d+"\}', "", text)
    assert bare != text
    assert hlo.loops(bare) == hlo.loops(text)


def test_unknown_trip_counts():
    text = compiled(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ x, x), jnp.ones((4, 4)))
    assert [loop.trips for loop in hlo.loops(text)] == [None]
    assert usage.flops(text) == 2 * 4**3


def test_all_kinds():
    mesh = sharding.make_mesh(2, 2, 1, 2)
    size = 64 * 256 * 4

    def f(a):
        return (
            jax.lax.all_to_all(a, "fsdp", 0, 1, tiled=True),
            jax.lax.ppermute(a, "data", [(0, 1), (1, 0)]),
            jax.lax.psum_scatter(a, ("data", "tensor"), tiled=True),
            jax.lax.psum(a, ("data", "fsdp", "tensor")),
            jax.lax.all_gather(a, ("tensor", "fsdp"), tiled=True),
        )

    whole = P(("data", "fsdp", "tensor"))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    text = compiled(mapped, on(mesh, (8 * 64, 256), ("data", "fsdp", "tensor")))
    found = {c.kind: c for c in messages.collectives(text)}
    assert len(messages.collectives(text)) == 5
    expected = {
        "all-to-all": (size, 2, ("fsdp",), size / 2),
        "collective-permute": (size, 2, ("data",), size),
        "reduce-scatter": (size, 4, ("data", "tensor"), size * 3 / 4),
        "all-reduce": (size, 8, ("data", "fsdp", "tensor"), 2 * size * 7 / 8),
        "all-gather": (4 * size, 4, ("fsdp", "tensor"), 3 * size),
    }
    assert {
        k: (c.bytes, c.group, messages.axes(c.groups, mesh.shape), c.wire_bytes) for k, c in found.items()
    } == expected


def test_the_branch_that_sends_most_counts():
    mesh = sharding.make_mesh(4, 1, 2)

    def f(a):
        return jax.lax.switch(
            a[0, 0].astype(int),
            [lambda v: v * 2, lambda v: jax.lax.psum(v, "data"), lambda v: jax.lax.psum(v, "tensor")],
            a,
        )

    whole = P(("data", "tensor"))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    (found,) = messages.collectives(compiled(mapped, on(mesh, (64, 32), ("data", "tensor"))))
    assert messages.axes(found.groups, mesh.shape) == ("data",)


# Texts that TPU prints


TPU = """HloModule jit_f, is_scheduled=true, num_partitions=16

%start (p.0: bf16[1,64,8]) -> (bf16[1,64,8], bf16[1,64,32]) {
  %p.0 = bf16[1,64,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=15, replica_groups=[4,4]<=[8,2]T(1,0), dimensions={2}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(f)/dot" stack_frame_id=1}
  ROOT %custom-call.2 = (bf16[1,64,8]{2,1,0}, bf16[1,64,32]{2,1,0:T(8,128)(2,1)S(1)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.3 (p.1: bf16[1,64,8], p.2: bf16[16,64], p.3: bf16[64,32]) -> (bf16[16,32], bf16[1,64,32]) {
  %p.1 = bf16[1,64,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.2 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(1)
  %p.3 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(2)
  %convolution.4 = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} convolution(%p.2, %p.3), dim_labels=bf_io->bf
  %all-gather.2 = bf16[1,64,32]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=15, replica_groups=[4,4]<=[8,2]T(1,0), dimensions={2}, frontend_attributes={chain_id="0"}
  ROOT %tuple.5 = (bf16[16,32]{1,0}, bf16[1,64,32]{2,1,0}) tuple(%convolution.4, %all-gather.2)
}

%add.1 (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %add.2 = bf16[]{:T(256)} add(%x, %y)
}

%all-reduce-scatter (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = bf16[64,8]{1,0:T(8,128)} all-reduce(%input), channel_id=5, replica_groups={{0,2,4,6},{8,10,12,14},{1,3,5,7},{9,11,13,15}}, use_global_device_ids=true, to_apply=%add.1
  %constant.1 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = bf16[16,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.5, %constant.1, %constant.1), dynamic_slice_sizes={16,8}
}

%wrapped (p.4: f32[8,8]) -> f32[2,8] {
  %p.4 = f32[8,8]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.9 = f32[2,8]{1,0:T(8,128)} reduce-scatter(%p.4), channel_id=1, replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b'}, dimensions={0}, to_apply=%add.1
}

%body (s.1: (s32[], bf16[64,8], s32[])) -> (s32[], bf16[64,8], s32[]) {
  %s.1 = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %v.1 = bf16[64,8]{1,0} get-tuple-element(%s.1), index=1
  %n.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i.1, %two)
  %fusion.24 = bf16[16,8]{1,0:T(8,128)} fusion(%v.1), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="jit(f)/grad"}, backend_config={"emitter":"SingleInputAllReduceScatterFusion","debug":"\\nStrategyRing{colors:1} (x"}
  ROOT %t.1 = (s32[]{:T(128)}, bf16[64,8]{1,0}, /*index=2*/s32[]{:T(128)}) tuple(%next, %v.1, %n.1)
}

%condition (s.2: (s32[], bf16[64,8], s32[])) -> pred[] {
  %s.2 = (s32[]{:T(128)}, bf16[64,8]{1,0}, s32[]{:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%s.2), index=0
  %n.2 = s32[]{:T(128)} get-tuple-element(%s.2), index=2
  ROOT %gt = pred[]{:T(512)} compare(%n.2, %i.2), direction=GT
}

ENTRY %main (a: bf16[1,64,8], b: bf16[16,64], c: bf16[64,32], d: f32[8,8], e: bf16[64,8]) -> bf16[16,32] {
  %a = bf16[1,64,8]{2,1,0} parameter(0)
  %b = bf16[16,64]{1,0} parameter(1)
  %c = bf16[64,32]{1,0} parameter(2)
  %d = f32[8,8]{1,0} parameter(3)
  %e = bf16[64,8]{1,0} parameter(4)
  %async-collective-start = (bf16[1,64,8]{2,1,0}, bf16[1,64,32]{2,1,0}) fusion(%a), kind=kCustom, calls=%start
  %fusion.3 = (bf16[16,32]{1,0}, bf16[1,64,32]{2,1,0}) fusion(%a, %b, %c), kind=kOutput, calls=%async_collective_fusion.3
  %async-start = ((f32[8,8]{1,0}), f32[2,8]{1,0}, u32[]{:S(2)}) async-start(%d), calls=%wrapped
  %async-done = f32[2,8]{1,0} async-done(%async-start), calls=%wrapped
  %collective-permute-start = (bf16[64,8]{1,0}, bf16[64,8]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%e), channel_id=1, source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}, metadata={op_name="p"}
  %collective-permute-done = bf16[64,8]{1,0:S(1)} collective-permute-done(%collective-permute-start)
  %all-gather-start = ((bf16[64,8]{1,0}, f32[8,8]{1,0}), (bf16[128,8]{1,0}, f32[16,8]{1,0})) all-gather-start(%e, %d), channel_id=2, replica_groups=[8,2]<=[16], dimensions={0}
  %all-gather-done = (bf16[128,8]{1,0}, f32[16,8]{1,0}) all-gather-done(%all-gather-start)
  %one = s32[]{:T(128)} constant(1)
  %copy.1 = s32[]{:T(128)} copy(%one)
  %ten = s32[]{:T(128)} constant(10)
  %init = (s32[]{:T(128)}, bf16[64,8]{1,0}, /*index=2*/s32[]{:T(128)}) tuple(%copy.1, %e, %ten)
  %while = (s32[]{:T(128)}, bf16[64,8]{1,0}, s32[]{:T(128)}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[16,32]{1,0} get-tuple-element(%fusion.3), index=0
}
"""  # noqa: E501


def test_tpu_text():
    mesh = {"a": 2, "b": 4, "c": 2}
    found = [
        (c.kind, c.bytes, c.group, c.times, messages.axes(c.groups, mesh), c.op_name) for c in messages.collectives(TPU)
    ]
    assert found == [
        ("all-gather", 64 * 32 * 2, 4, 1, ("b",), "jit(f)/dot"),  # in two fusions, but once
        ("reduce-scatter", 8 * 8 * 4, 4, 1, ("b",), ""),  # in an asynchronous wrapper
        ("collective-permute", 64 * 8 * 2, 4, 1, ("b",), "p"),
        ("all-gather", 2 * (64 * 8 * 2 + 8 * 8 * 4), 2, 1, ("c",), ""),
        ("reduce-scatter", 64 * 8 * 2, 4, 5, ("b",), "jit(f)/grad"),  # an all-reduce of which a slice is kept
    ]
    assert hlo.loops(TPU) == [hlo.Loop("while", 5, "")]  # from 1 to below 10 by 2
    assert usage.flops(TPU) == 2 * 16 * 64 * 32


SLICES = """HloModule jit_f, num_partitions=4

ENTRY %main (a: f32[64,256]) -> f32[64,256] {
  %a = f32[64,256]{1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all()
  %all-reduce.1 = f32[64,256]{1,0:T(8,128)} all-reduce(%a), channel_id=1, replica_groups={{0,1},{2,3}}
  %send.1 = (f32[64,256]{1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="x",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[64,256]{1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %recv-done.1 = (f32[64,256]{1,0:T(8,128)}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
  %send.2 = (f32[64,256]{1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target={{100000,200000},{100001,200001},{100002,200002},{100003,200003}},_xla_megascale_transfer_type="ALL_GATHER"}
  %send.3 = (f32[64,256]{1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target={{100000->200001},{200001->100000}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  ROOT %out = f32[64,256]{1,0:T(8,128)} get-tuple-element(%recv-done.1), index=0
}
"""  # noqa: E501


def test_several_slices():
    mesh, size = {"data": 2, "fsdp": 2, "tensor": 2}, 64 * 256 * 4
    ids = [100000, 100001, 100002, 100003, 200000, 200001, 200002, 200003]
    found = messages.collectives(SLICES, ids)
    assert [(c.kind, c.bytes, c.group, messages.axes(c.groups, mesh)) for c in found] == [
        ("all-reduce", size, 2, ("tensor",)),
        ("all-reduce", size, 2, ("data",)),
        ("all-gather", 2 * size, 2, ("data",)),
        ("collective-permute", size, 2, ("data", "tensor")),
    ]
    assert found[0].groups == ((0, 1), (2, 3), (4, 5), (6, 7))  # in either slice
    # The slices along the last axis: whose devices are every second of the mesh.
    across = {"data": 2, "fsdp": 2, "slices": 2}
    found = messages.collectives(SLICES, np.reshape(ids, (2, 4)).T.ravel().tolist())
    assert [messages.axes(c.groups, across) for c in found[:2]] == [("fsdp",), ("slices",)]
    with pytest.raises(ValueError, match="expected the ids of the devices"):
        messages.collectives(SLICES)


# Groups and axes


def rows(ids) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, np.asarray(ids).tolist()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3}}, dimensions={0}", ((0, 1), (2, 3))),
        ("{{0,4,1,5},{2,6,3,7}}", ((0, 4, 1, 5), (2, 6, 3, 7))),
        ("{}, x", rows([range(8)])),
        ("[4,2]<=[8], x", rows(np.arange(8).reshape(4, 2))),
        ("[1,8]<=[8]", rows([range(8)])),
        ("[2,4]<=[4,2]T(1,0), x", rows(np.arange(8).reshape(4, 2).T.reshape(2, 4))),
        ("[4,2]<=[2,2,2]T(2,1,0)", rows(np.arange(8).reshape(2, 2, 2).transpose(2, 1, 0).reshape(4, 2))),
        ("[6,4]<=[2,3,4]T(1,0,2)", rows(np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2).reshape(6, 4))),
        ("mesh['x'=2,'y'=4] {'y'}, x", rows(np.arange(8).reshape(2, 4))),
        ("mesh['x'=2,'y'=4] {'x'}", rows(np.arange(8).reshape(2, 4).T)),
        ("mesh['x'=2,'y'=1,'z'=4] {'x','z'}", rows([range(8)])),
        (
            "mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'x'}, dimensions={0}",
            rows(np.arange(8).reshape(2, 4).T.reshape(4, 1, 2).transpose(1, 2, 0).reshape(2, 4)),
        ),
        ("mesh['x'=2,'y'=2], device_ids=(3,1,2,0) {'y'}", ((3, 1), (2, 0))),
        ("mesh['x'=8] {'x':(1)2}", rows(np.arange(8).reshape(2, 4).T)),
        ("mesh['x'=8] {'x':(2)2}", rows(np.arange(8).reshape(2, 2, 2).transpose(0, 2, 1).reshape(4, 2))),
        ("mesh['x'=8] {'x':(1)2,'x':(4)2}", rows(np.arange(8).reshape(2, 2, 2).transpose(1, 0, 2).reshape(2, 4))),
    ],
)
def test_replica_groups(text, expected):
    assert messages.replica_groups(text, 8) == expected


def test_replica_groups_of_another_form():
    with pytest.raises(ValueError, match="replica groups of a form that is known, got '<weird>'"):
        messages.replica_groups("<weird>", 8)


@pytest.mark.parametrize("names", [("data",), ("fsdp",), ("tensor",), ("data", "tensor"), ("fsdp", "tensor")])
def test_axes(names):
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    inside = [list(mesh).index(name) for name in names]
    outside = [axis for axis in range(3) if axis not in inside]
    count = math.prod(mesh[name] for name in names)
    ids = np.arange(16).reshape(2, 4, 2).transpose(outside + inside).reshape(-1, count)
    assert messages.axes(rows(ids), mesh) == names


def test_axes_outside_the_mesh():
    assert messages.axes(((0,), (1,)), {"data": 2}) == ()
    with pytest.raises(ValueError, match="devices of a mesh of 4, got 5"):
        messages.axes(((0, 5),), {"data": 2, "fsdp": 2})


# FLOPs


def test_matmul_flops():
    text = compiled(lambda a, b: a @ b, jnp.ones((24, 32)), jnp.ones((32, 40)))
    assert usage.flops(text) == 2 * 24 * 32 * 40
    text = compiled(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), jnp.ones((2, 3, 16, 8)), jnp.ones((2, 3, 24, 8)))
    assert usage.flops(text) == 2 * 2 * 3 * 16 * 24 * 8


CONVOLUTIONS = [
    {"window_strides": (1, 1), "padding": "VALID"},
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": "SAME"},
    {"window_strides": (2, 1), "padding": ((0, 1), (3, 0))},
    {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
    {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 3)},
    {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)},
]


def convolution(options):
    groups = options.get("feature_group_count", 1)
    x, k = jnp.ones((4, 12, 10, 8)), jnp.ones((3, 5, 8 // groups, 16))

    def f(k, x):
        return jax.lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    # Products of ones where the kernel meets the input, and zeros elsewhere: their sum counts the multiplications.
    return f, k, x, 2 * int(f(k, x).sum())


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_flops(options):
    f, k, x, expected = convolution(options)
    assert usage.flops(compiled(f, k, x)) == expected
    traced = jax.make_jaxpr(f)(k, x).jaxpr
    assert count.flops(traced, padding=False) == expected
    assert count.flops(traced) == 2 * f(k, x).size * 3 * 5 * k.shape[2]
    if options["padding"] == "VALID":
        assert expected == 2 * f(k, x).size * 3 * 5 * 8  # 2 * out * kernel elements * input channels


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_gradient_flops(options):
    f, k, x, expected = convolution(options)
    # To the kernel and to the input: every product of the forward pass once more in each.
    gradients = compiled(lambda k, x, g: jax.vjp(f, k, x)[1](g), k, x, jnp.ones_like(f(k, x)))
    assert usage.flops(gradients) == 2 * expected


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_flops_are_xlas(options):
    f, k, x, _ = convolution(options)
    program = jax.jit(f).lower(k, x).compile()
    assert usage.flops(program.as_text()) == program.cost_analysis()["flops"]


def test_flops_are_xlas_for_products():
    program = jax.jit(lambda a, b: (a @ b) @ b).lower(jnp.ones((16, 16)), jnp.ones((16, 16))).compile()
    assert usage.flops(program.as_text()) == program.cost_analysis()["flops"]


def test_recomputation_counts():
    def gradient(layer):
        return jax.grad(lambda ws, x: jnp.sum(jax.lax.scan(layer, x, ws)[0]))

    def layer(x, w):
        return jnp.tanh(x @ w), None

    ws, x = jnp.ones((5, 32, 32)), jnp.ones((64, 32))
    layers = 5 * 2 * 64 * 32 * 32
    assert usage.flops(compiled(gradient(layer), ws, x)) == 3 * layers
    assert usage.flops(compiled(gradient(jax.checkpoint(layer)), ws, x)) == 4 * layers


# Errors


def test_other_text():
    for text in ("", "module @jit_f {\n}", "HloModule jit_f\n"):
        with pytest.raises(ValueError, match="expected the text of a compiled program"):
            messages.collectives(text)
        with pytest.raises(ValueError, match="expected the text of a compiled program"):
            usage.flops(text)
