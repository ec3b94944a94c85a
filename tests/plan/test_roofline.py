"""Estimates are their closed forms; groups lie on tori by their coordinates; the present machine is measured."""

import dataclasses
import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vf.plan import messages, roofline
from vf.plan.chips import CHIPS
from vf.plan.roofline import Span, Step, Traffic
from vf.plan.targets import parse_target
from vf.training import sharding

V5E, V4, H100 = CHIPS["v5e"], CHIPS["v4"], CHIPS["H100"]
V = 2.0**30  # bytes of an array


def seconds(kind, span, chip):
    """Estimated time in seconds of a collective of an array of V bytes."""
    return roofline.traffic_seconds(Traffic(("x",), span, messages.wire_bytes(kind, int(V), span.group), kind), chip)


# Times


def test_estimate():
    traffic = [Traffic(("fsdp",), Span(16, 16, ((16, 2.0),)), 9e9), Traffic(("data",), Span(4, 4, ((4, 1.0),)), 9e8)]
    got = roofline.estimate(Step(flops=197e12, hbm_bytes=8.19e10, traffic=traffic), V5E)
    assert got.compute_s == pytest.approx(1)
    assert got.memory_s == pytest.approx(0.1)
    assert got.network_by_axes == {("fsdp",): pytest.approx(0.1), ("data",): pytest.approx(0.02)}
    assert got.network_s == pytest.approx(0.12)
    assert (got.step_s, got.serial_s) == (pytest.approx(1), pytest.approx(1.22))
    assert (got.mfu, got.serial_mfu) == (pytest.approx(1), pytest.approx(1 / 1.22))
    assert got.bound == "compute"


@pytest.mark.parametrize(
    ("step", "bound", "mfu"),
    [
        (Step(1e12, 1e12), "memory", (1e12 / 275e12) / (1e12 / 1.2e12)),
        (Step(1e12, 0, [Traffic(("x",), Span(4, 4, ((4, 2.0),)), 9e10)]), "network", 1e12 / 275e12),
        (Step(4e14, 0, useful_flops=3e14), "compute", 0.75),
        (Step(4e14, 0, dtype="float32"), "compute", 1),
    ],
)
def test_bounds(step, bound, mfu):
    got = roofline.estimate(step, V4)
    assert got.bound == bound
    assert got.mfu == pytest.approx(mfu)


def test_float32_is_slower_on_gpus():
    slow, fast = (roofline.estimate(Step(1e15, 0, dtype=dtype), H100) for dtype in ("float32", "bfloat16"))
    assert slow.compute_s == pytest.approx(fast.compute_s * 989 / 494)


def test_an_empty_step():
    with pytest.raises(ValueError, match="expected a step with FLOPs, bytes or messages"):
        roofline.estimate(Step(0, 0), V4)


def test_torus_formulas():
    # How to Scale Your Model, part 3: V / W on a ring with W both ways, over all axes at once, and (g-1)/g V one
    # way on a line.
    ring, plane, line = Span(4, 4, ((4, 2.0),)), Span(16, 16, ((4, 2.0), (4, 2.0))), Span(4, 4, ((4, 1.0),))
    assert seconds("all-gather", ring, V4) == pytest.approx(V * 3 / 4 / 9e10)
    assert seconds("reduce-scatter", ring, V4) == seconds("all-gather", ring, V4)
    assert seconds("all-reduce", ring, V4) == 2 * seconds("all-gather", ring, V4)
    assert seconds("all-gather", plane, V4) == pytest.approx(V * 15 / 16 / (2 * 9e10))
    assert seconds("all-gather", line, V5E) == pytest.approx(3 * (V / 4) / 4.5e10)
    assert seconds("all-gather", Span(1, 1), V4) == 0


def test_all_to_all_goes_through_other_chips():
    # Of V per chip on a ring of g, V / g go to each other chip, g / 4 hops on average, over 2 g links.
    g = 16
    hops = sum(min(n, g - n) for n in range(g))
    expected = g * (V / g) * hops / (2 * g) / 4.5e10
    got = seconds("all-to-all", Span(g, g, ((g, 2.0),)), V5E)
    assert got == pytest.approx(expected)
    assert seconds("all-to-all", Span(256, 256, ((16, 2.0), (16, 2.0))), V5E) == pytest.approx(expected)
    assert seconds("all-to-all", Span(2, 2, ((2, 1.0),)), V5E) == pytest.approx(V / 2 / 4.5e10)
    # A line's middle link, one way: all that either half has for the other.
    assert seconds("all-to-all", Span(8, 8, ((8, 1.0),)), V5E) == pytest.approx(4 * (V / 2) / 4.5e10)


def test_between_slices_and_nodes():
    alone, two_levels = Span(2, 1), Span(64, 8)
    assert seconds("all-reduce", alone, H100) == pytest.approx(V / 50e9)
    # Part 12: the node's network is shared by its GPUs, each of which reduces an eighth.
    assert seconds("all-reduce", two_levels, H100) == pytest.approx(2 * V * 7 / 8 / (8 * 50e9))
    assert seconds("all-gather", two_levels, H100) == pytest.approx(V * 7 / 8 / (8 * 50e9))
    assert seconds("all-to-all", two_levels, H100) == pytest.approx(V * 56 / 64 / 50e9)
    assert seconds("collective-permute", two_levels, H100) == pytest.approx(V / 50e9)
    assert seconds("all-reduce", Span(8, 8), H100) == pytest.approx(2 * V * 7 / 8 / 450e9)
    slices = Span(512, 256, ((16, 2.0), (16, 2.0)))
    assert seconds("all-reduce", slices, V5E) == pytest.approx(
        max(2 * V * 511 / 512 / (4 * 4.5e10), 2 * V / 2 / (256 * 3.125e9))
    )


# Places


def torus(text, mesh):
    """Chip, extents, and positions of a mesh whose devices are in row-major order of slices and coordinates."""
    target = parse_target(text)
    extents = (target.slices, *target.shape)
    places = np.stack(np.unravel_index(np.arange(target.devices), extents), -1)
    assert math.prod(mesh) == target.devices
    return target.chip, target.shape, places


def groups_along(mesh, axis):
    ids = np.arange(math.prod(mesh)).reshape(mesh)
    return tuple(map(tuple, np.moveaxis(ids, axis, -1).reshape(-1, mesh[axis]).tolist()))


@pytest.mark.parametrize(
    ("text", "mesh", "axis", "expected"),
    [
        ("v5e:16x16", (16, 16), 0, Span(16, 16, ((16, 2),))),
        ("v5e:16x16", (256,), 0, Span(256, 256, ((16, 2), (16, 2)))),
        ("v5e:8x16", (8, 16), 0, Span(8, 8, ((8, 1),))),
        ("v5e:8x16", (8, 16), 1, Span(16, 16, ((16, 2),))),
        ("v5e:16x16", (4, 4, 16), 1, Span(4, 4, ((4, 1),))),  # neighbours, on a part of the ring
        ("v5e:16x16", (4, 4, 16), 0, Span(4, 4, ((4, 0.5),))),  # every fourth chip: four groups on a ring
        ("v5e:4x4", (2, 2, 4), 0, Span(2, 2, ((2, 0.5),))),
        ("v4:4x4x4", (4, 16), 1, Span(16, 16, ((4, 2), (4, 2)))),
        ("v4:2x2x4", (4, 4), 1, Span(4, 4, ((4, 1),))),
        ("v5e:4x4*2", (2, 16), 0, Span(2, 1)),
        ("v5e:4x4*2", (2, 16), 1, Span(16, 16, ((4, 1), (4, 1)))),
        ("v5e:4x4*2", (8, 4), 0, Span(8, 4, ((4, 1),))),
    ],
)
def test_span(text, mesh, axis, expected):
    chip, shape, places = torus(text, mesh)
    got = roofline.span(groups_along(mesh, axis), chip, shape, places)
    assert got == expected
    assert got.crosses == (expected.inside < expected.group)


def test_the_worst_placed_group_counts():
    chip, shape, places = torus("v5e:4x4", (16,))
    assert roofline.span(((0, 1), (4, 12)), chip, shape, places) == Span(2, 2, ((2, 0.5),))


@pytest.mark.parametrize(
    ("mesh", "axis", "expected"),
    [((8, 8), 1, Span(8, 8)), ((8, 8), 0, Span(8, 1)), ((4, 16), 1, Span(16, 8)), ((64,), 0, Span(64, 8))],
)
def test_nodes(mesh, axis, expected):
    places = np.arange(64)[:, None] // 8
    assert roofline.span(groups_along(mesh, axis), H100, (8, 8), places) == expected


def test_device_positions():
    class Device:
        def __init__(self, id, coords=None, slice_index=None):
            self.id, self.coords, self.slice_index = id, coords, slice_index

    assert roofline.places_of([Device(0, (1, 2, 0)), Device(1, (0, 3, 0), 1)], V5E).tolist() == [[0, 1, 2], [1, 0, 3]]
    assert roofline.places_of([Device(0, (1, 2, 3))], V4).tolist() == [[0, 1, 2, 3]]
    assert roofline.places_of([Device(7), Device(8)], H100).tolist() == [[0], [1]]


# From a program to an estimate


def test_traffic_of_a_program():
    mesh = sharding.make_mesh(2, 4)

    def f(a):
        def layer(x, _):
            return jax.lax.psum_scatter(jax.lax.all_gather(x, "fsdp", tiled=True), "fsdp", tiled=True), None

        return jax.lax.psum(jax.lax.scan(layer, a, None, length=5)[0], "data")

    mapped = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("fsdp"), out_specs=PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    found = messages.collectives(jax.jit(mapped).lower(x).compile().as_text())
    places = roofline.places_of(mesh.devices.flat, H100)
    got = roofline.traffic_of(found, mesh.shape, H100, (1, 8), places)
    size = 64 * 32 * 4
    assert {(t.axes, t.kind): t.wire_bytes for t in got} == {
        (("fsdp",), "all-gather"): 5 * size * 3 / 4,
        (("fsdp",), "reduce-scatter"): 5 * size * 3 / 4,
        (("data",), "all-reduce"): size / 4,
    }
    assert [t.wire_bytes for t in got] == sorted((t.wire_bytes for t in got), reverse=True)
    assert {t.span for t in got} == {Span(4, 4), Span(2, 2)}
    times = roofline.estimate(Step(0, 0, got), H100)
    assert times.network_s == pytest.approx((10 * size * 3 / 4 + size / 4) / 450e9)
    assert times.bound == "network"
    stored = json.loads(json.dumps([dataclasses.asdict(part) for part in got]))
    assert [roofline.traffic_from_json(part) for part in stored] == got
    twice = [roofline.traffic_from_json(part, 2.0) for part in stored]
    assert roofline.estimate(Step(0, 0, twice), H100).network_s == pytest.approx(2 * times.network_s)


def test_measured_chip():
    chip = roofline.measured_chip("here", size=64, copy_bytes=2**16, seconds=0.01)
    assert (chip.name, chip.kind, chip.dims) == ("here", "cpu", 0)
    for figure in chip.sources:
        assert 0 < getattr(chip, figure) < math.inf
    assert roofline.estimate(Step(1e9, 1e6, dtype="float32"), chip).step_s > 0
    assert chip.host == 8


def test_a_cpu_is_divided_among_its_devices(monkeypatch):
    """Each has its part of the memory, and its turn on the cores."""
    clock = itertools.count()
    ticking = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))  # every call takes a second
    monkeypatch.setattr(roofline, "time", ticking)
    monkeypatch.setattr(roofline.os, "cpu_count", lambda: 2)
    one, two, many = (roofline.measured_chip(devices=n, size=64, copy_bytes=2**16, seconds=3.0) for n in (1, 2, 64))
    for figure in ("flops_bf16", "flops_f32", "hbm_bandwidth"):
        assert getattr(one, figure) == getattr(two, figure) == 32 * getattr(many, figure), figure
    assert one.hbm_bytes == 2 * two.hbm_bytes == 64 * many.hbm_bytes
    assert one.flops_f32 == 2 * 64**3
