"""Lower bounds on the time of a step: its FLOPs, memory traffic and messages divided by the chips' rates.

    compute = FLOPs / peak        memory = bytes / HBM bandwidth        network = sum of each collective's time

Each is a lower bound. If all three overlap perfectly, the step takes their maximum, and if nothing overlaps, their sum;
a good program lies between. A collective takes the bytes that a device sends (`messages.wire_bytes`, by the ring
algorithms) divided by the bandwidth that its group has, without latency. Two collectives never overlap here.

The bandwidth of a group (after How to Scale Your Model, jax-ml.github.io/scaling-book/sharding and .../gpus)
    TPU, within a slice. Each dimension of the torus along which the group extends gives a device 2 links (in both
    directions) if it is a ring and the group fills it, and 1 otherwise (all data of one half of a line crosses its
    middle, in one direction). A group that skips chips shares its links with the groups between, so that the links are
    divided by their number. The links of several dimensions add up. The book has the same: V / (2 link) for an
    all-gather of V on a ring, (g-1)/g V / link on a line, and the sum of the bandwidths of several axes.
    GPU, within a node. All NVLinks of a GPU, for any group: the switch has no topology.
    Between s slices or nodes. Collectives have two levels, as in XLA and NCCL: in a group with m members in each slice
    or node, every member exchanges its 1/m of the array with its counterparts, and sends (s-1)/s of that (twice in an
    all-reduce). The slower level counts. Levels save nothing in all-to-all and permute: each chip sends everything that
    is for other slices or nodes itself.
    All-to-all on a torus passes through other chips: on a ring or a line of g chips, V from each chip takes as long as
    g/4 V over the bandwidth above. All dimensions work simultaneously, and the slowest counts.

How mesh axes lie on the torus follows from the coordinates of the devices in the mesh (`span`).
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vf.plan import messages
from vf.plan.chips import Chip, wraps

Bound = Literal["compute", "memory", "network"]


@dataclasses.dataclass(frozen=True)
class Span:
    """How a group of devices is placed on the machine."""

    group: int
    """Number of devices."""
    inside: int
    """Number of its devices in one slice (TPU) or node (GPU)."""
    along: tuple[tuple[int, float], ...] = ()
    """TPU: for each dimension of the torus along which the group extends, its number of devices there and the links of
    each: 2 on a ring or 1 on a line, divided by the number of groups that share them."""

    @property
    def crosses(self) -> bool:
        """Whether it spans slices or nodes."""
        return self.inside < self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of a step that have one kind and the same mesh axes."""

    axes: tuple[str, ...]
    span: Span
    wire_bytes: float
    """Bytes that each device sends in all executions."""
    kind: messages.Kind = "all-reduce"


@dataclasses.dataclass(frozen=True)
class Step:
    """What one training or sampling step needs of each device."""

    flops: float
    hbm_bytes: float
    """Bytes read and written, e.g. `cost_analysis()['bytes accessed']` where there are no loops."""
    traffic: Sequence[Traffic] = ()
    useful_flops: float | None = None
    """FLOPs without recomputation, which MFU counts; default `flops`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the factors of matrix products."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Times in seconds. MFU is the useful FLOPs relative to what the chip could compute in the time."""

    compute_s: float
    memory_s: float
    network_s: float
    network_by_axes: Mapping[tuple[str, ...], float]
    step_s: float
    """The largest of the three: the time if all overlap."""
    serial_s: float
    """Their sum: the time if nothing overlaps."""
    mfu: float
    """MFU at `step_s`, the highest that is possible."""
    serial_mfu: float
    bound: Bound
    """Which of the three is the largest."""


def estimate(step: Step, chip: Chip) -> Estimate:
    """Bounds on the time of a step on `chip`. Raises ValueError for a step without FLOPs, bytes and messages."""
    peak = chip.flops_bf16 if step.dtype == "bfloat16" else chip.flops_f32
    by_axes: dict[tuple[str, ...], float] = {}
    for part in step.traffic:
        by_axes[part.axes] = by_axes.get(part.axes, 0.0) + traffic_seconds(part, chip)
    times: dict[Bound, float] = {
        "compute": step.flops / peak,
        "memory": step.hbm_bytes / chip.hbm_bandwidth,
        "network": sum(by_axes.values()),
    }
    longest, total = max(times.values()), sum(times.values())
    if longest <= 0:
        raise ValueError("expected a step with FLOPs, bytes or messages, got none")
    useful = (step.flops if step.useful_flops is None else step.useful_flops) / peak
    return Estimate(
        times["compute"],
        times["memory"],
        times["network"],
        by_axes,
        longest,
        total,
        useful / longest,
        useful / total,
        max(times, key=lambda name: times[name]),
    )


def traffic_seconds(traffic: Traffic, chip: Chip) -> float:
    """Seconds that these collectives take one after the other, by the model in the module's docstring."""
    span = traffic.span
    if span.group < 2 or not traffic.wire_bytes:
        return 0.0
    seconds = 0.0
    if span.inside > 1 and traffic.kind == "all-to-all" and chip.dims:
        size = traffic.wire_bytes * span.inside / (span.group - 1)  # including what each chip keeps
        seconds = max(size * count / 4 / (links * chip.ici_bandwidth) for count, links in span.along)
    elif span.inside > 1:
        seconds = traffic.wire_bytes / inner_bandwidth(span, chip)
    if span.crosses:
        outside = (span.group - span.inside) / (span.group - 1)  # share of the bytes, if all other devices get as many
        if traffic.kind == "collective-permute":
            outside = 1.0  # that of the worst chip
        elif traffic.kind != "all-to-all":
            outside /= span.inside
        seconds = max(seconds, traffic.wire_bytes * outside / chip.dcn_bandwidth)
    return seconds


def inner_bandwidth(span: Span, chip: Chip) -> float:
    """Bytes/s that each device of a group can send within its slice or node."""
    return chip.ici_bandwidth * (sum(links for _, links in span.along) if chip.dims else 1)


def span(groups: messages.Groups, chip: Chip, shape: Sequence[int], places: np.ndarray) -> Span:
    """How the groups of a collective are placed on slices of extents `shape`; of several the worst placed counts.

    Args:
        groups: positions in the flattened mesh.
        chip: the chip.
        shape: extents of a slice (`Target.shape`).
        places: int [devices, 1 + dims] in the order of the flattened mesh: the slice or node, and the coordinates in it
            (`places_of`).
    """
    spans = [_span(np.asarray(places)[list(group)], chip, shape) for group in groups]
    return min(spans, key=lambda s: (s.inside, sum(links for _, links in s.along)))


def _span(places: np.ndarray, chip: Chip, shape: Sequence[int]) -> Span:
    inside = int(min(np.unique(places[:, 0], return_counts=True)[1]))
    if not chip.dims:
        return Span(len(places), inside)
    dims = []
    for extent, ring, along in zip(shape, wraps(chip, shape), places[:, 1 : 1 + len(shape)].T, strict=True):
        at = np.unique(along)
        if len(at) < 2:
            continue
        step = int(np.diff(at).min())
        fills = len(at) * step == extent
        dims.append((len(at), (2 if ring and fills else 1) / step))
    return Span(len(places), inside, tuple(dims))


def places_of(devices: Sequence[Any], chip: Chip) -> np.ndarray:
    """`places` of `span` for the devices of a mesh, `mesh.devices.flat`, of JAX or of a topology.

    GPUs are numbered so that a node has `chip.host` consecutive ids.
    """
    if not chip.dims:
        return np.array([[device.id // chip.host] for device in devices])
    return np.array([[getattr(d, "slice_index", None) or 0, *d.coords[: chip.dims]] for d in devices])


def traffic_of(
    collectives: Sequence[messages.Collective],
    mesh: Mapping[str, int],
    chip: Chip,
    shape: Sequence[int],
    places: np.ndarray,
) -> list[Traffic]:
    """Sums the collectives of a program (`messages.collectives`) by mesh axes and kind; most bytes first.

    `mesh` has sizes by name, as `Mesh.shape`; the other arguments are those of `span`.
    """
    parts: dict[tuple[tuple[str, ...], Span, messages.Kind], float] = {}
    for c in collectives:
        key = messages.axes(c.groups, mesh), span(c.groups, chip, shape, places), c.kind
        parts[key] = parts.get(key, 0.0) + c.wire_bytes * c.times
    traffic = [Traffic(axes, span_of_group, size, kind) for (axes, span_of_group, kind), size in parts.items()]
    return sorted(traffic, key=lambda part: -part.wire_bytes)


def traffic_from_json(fields: Mapping[str, Any], scale: float = 1.0) -> Traffic:
    """The Traffic with fields from `dataclasses.asdict` or JSON, and its bytes multiplied by `scale`."""
    fields_of_span = fields["span"]
    along = tuple((int(count), float(links)) for count, links in fields_of_span["along"])
    span = Span(fields_of_span["group"], fields_of_span["inside"], along)
    return Traffic(tuple(fields["axes"]), span, fields["wire_bytes"] * scale, fields["kind"])


def measured_chip(
    name: str = "cpu", *, devices: int | None = None, size: int = 1024, copy_bytes: int = 2**26, seconds: float = 0.5
) -> Chip:
    """Measures one of this process's devices as a Chip, so that an estimate can be compared with measured times.

    All devices work simultaneously. Those of a CPU share its cores and its memory, so that no more than there are cores
    are used. Between them a message is taken to cost as much as a copy; other networks are not measured, and only
    `vf.plan.chips.CHIPS` has them.

    Args:
        name: name of the chip.
        devices: number of devices into which a CPU is divided; default those that jax has.
        size: side of the square matrices that are multiplied, in bfloat16 and in float32.
        copy_bytes: size of the array that is copied, which should be larger than every cache.
        seconds: for how long each of the three is repeated; the fastest repetition counts.
    """
    working = jax.local_devices()
    device = working[0]
    count = devices or len(working)
    if device.platform == "cpu":
        working = working[: min(count, os.cpu_count() or 1)]
    share = len(working) / count  # each of `count` devices gets this share of a working device's rate

    def rate(work: float, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        run = jax.jit(f, donate_argnums=0)  # allocating new memory would be measured too
        state = jax.block_until_ready([run(jax.device_put(np.asarray(x), each)) for each in working])
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            state = jax.block_until_ready([run(each) for each in state])
            best = min(best, time.perf_counter() - begin)
        return share * work / best

    flops = [
        rate(2.0 * size**3, lambda a: a @ a, jnp.full((size, size), 1 / size, dtype))
        for dtype in (jnp.bfloat16, jnp.float32)
    ]
    copy_rate = rate(2.0 * copy_bytes, lambda a: a + 1, jnp.zeros(copy_bytes // 4, jnp.float32))  # read and written
    stats = device.memory_stats() or {}
    return Chip(
        name=name,
        kind=device.platform if device.platform in ("tpu", "gpu") else "cpu",
        flops_bf16=flops[0],
        flops_f32=flops[1],
        hbm_bytes=float(stats.get("bytes_limit", 0)) or _host_memory() / count,
        hbm_bandwidth=copy_rate,
        lanes=16,
        ici_bandwidth=copy_rate / 2,
        dcn_bandwidth=copy_rate / 2,
        host=count,
        sources=dict.fromkeys(("flops_bf16", "flops_f32", "hbm_bytes", "hbm_bandwidth", "ici_bandwidth"), "measured"),
    )


def _host_memory() -> float:
    """Bytes of memory that this machine, or this container, may use; 0 where the system does not report it."""
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 0.0
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        memory = min(memory, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory
