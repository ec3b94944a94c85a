"""How long a step takes at least: its FLOPs, memory traffic and messages over what the chips can do.

    compute = FLOPs / peak        memory = bytes / HBM bandwidth        network = sum of each collective's time

Each is a lower bound of its own. If all three overlap perfectly, the step takes their maximum, and if nothing
overlaps, their sum; a good program lies between. A collective's time is what a device sends (`messages.wire_bytes`, the
ring algorithms) over the bandwidth that its group has, without latency. Two collectives never overlap here.

The bandwidth of a group (after How to Scale Your Model, jax-ml.github.io/scaling-book/sharding and .../gpus)
    TPU, inside a slice. Each dimension of the torus along which the group lies gives a device 2 links (both ways
    round) if the group fills it and it is a ring, else 1 (the middle of a line is crossed by all of what one half
    has, one way). A group that skips chips shares its links with the groups between: their number divides.
    Dimensions add up. The book has the same: V / (2 link) for an all-gather of V on a ring, (g-1)/g V / link on a
    line, bandwidths of several axes added.
    GPU, inside a node. All NVLinks of a GPU, whatever the group: the switch has no topology.
    Between s slices or nodes. Collectives go in two levels, as in XLA and NCCL: of a group with m members in each
    slice or node, every member exchanges its 1/m of the array with its like, (s-1)/s of which it sends (twice in an
    all-reduce). The slower of the levels counts. All-to-all and permute save nothing by levels: a chip sends all
    that is for other slices or nodes itself.
    All-to-all on a torus goes through other chips, on a ring or a line of g through as many that V of each chip takes
    g/4 V over the bandwidth above. Its dimensions work at once, and the slowest counts.

Mesh axes are laid on the torus as devices lie in the mesh: `span` reads it from their coordinates.
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
    """How a group of devices lies on the machine."""

    group: int
    """Devices."""
    inside: int
    """Of those, in one slice (TPU) or node (GPU)."""
    along: tuple[tuple[int, float], ...] = ()
    """TPU: for each dimension of the torus along which it lies, how many devices, and how many links each has there:
    2 on a ring or 1 on a line, over the groups that share them."""

    @property
    def crosses(self) -> bool:
        """Whether it spans slices or nodes."""
        return self.inside < self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind of a step over the same mesh axes."""

    axes: tuple[str, ...]
    span: Span
    wire_bytes: float
    """Sent by each device, in all executions."""
    kind: messages.Kind = "all-reduce"


@dataclasses.dataclass(frozen=True)
class Step:
    """What one training or sampling step asks of each device."""

    flops: float
    hbm_bytes: float
    """Read and written, e.g. `cost_analysis()['bytes accessed']` where there are no loops."""
    traffic: Sequence[Traffic] = ()
    useful_flops: float | None = None
    """Without recomputation; default `flops`. MFU counts these."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the products."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Times in seconds; MFU is useful FLOPs over what the chip could do in the time."""

    compute_s: float
    memory_s: float
    network_s: float
    network_by_axes: Mapping[tuple[str, ...], float]
    step_s: float
    """If all overlap: the largest."""
    serial_s: float
    """If nothing overlaps: the sum."""
    mfu: float
    """At `step_s`, the highest that can be."""
    serial_mfu: float
    bound: Bound
    """Which of the three is the largest."""


def estimate(step: Step, chip: Chip) -> Estimate:
    """The least time of a step on `chip`. Raises ValueError for a step of nothing."""
    peak = chip.flops_bf16 if step.dtype == "bfloat16" else chip.flops_f32
    by_axes: dict[tuple[str, ...], float] = {}
    for part in step.traffic:
        by_axes[part.axes] = by_axes.get(part.axes, 0.0) + traffic_seconds(part, chip)
    times: dict[Bound, float] = {
        "compute": step.flops / peak,
        "memory": step.hbm_bytes / chip.hbm_bandwidth,
        "network": sum(by_axes.values()),
    }
    least, most = max(times.values()), sum(times.values())
    if least <= 0:
        raise ValueError("expected a step with FLOPs, bytes or messages, got none")
    useful = (step.flops if step.useful_flops is None else step.useful_flops) / peak
    return Estimate(
        times["compute"],
        times["memory"],
        times["network"],
        by_axes,
        least,
        most,
        useful / least,
        useful / most,
        max(times, key=lambda name: times[name]),
    )


def traffic_seconds(traffic: Traffic, chip: Chip) -> float:
    """Seconds that these collectives take, one after the other: see the module's docstring for the model."""
    span = traffic.span
    if span.group < 2 or not traffic.wire_bytes:
        return 0.0
    seconds = 0.0
    if span.inside > 1 and traffic.kind == "all-to-all" and chip.dims:
        size = traffic.wire_bytes * span.inside / (span.group - 1)  # with what stays
        seconds = max(size * count / 4 / (links * chip.ici_bandwidth) for count, links in span.along)
    elif span.inside > 1:
        seconds = traffic.wire_bytes / inner_bandwidth(span, chip)
    if span.crosses:
        outside = (span.group - span.inside) / (span.group - 1)  # of what is sent, if to all others alike
        if traffic.kind == "collective-permute":
            outside = 1.0  # some chip's, at worst
        elif traffic.kind != "all-to-all":
            outside /= span.inside
        seconds = max(seconds, traffic.wire_bytes * outside / chip.dcn_bandwidth)
    return seconds


def inner_bandwidth(span: Span, chip: Chip) -> float:
    """Bytes/s that each device of a group can send inside its slice or node."""
    return chip.ici_bandwidth * (sum(links for _, links in span.along) if chip.dims else 1)


def span(groups: messages.Groups, chip: Chip, shape: Sequence[int], places: np.ndarray) -> Span:
    """How the groups of a collective lie on slices of extents `shape` (`Target.shape`).

    groups: positions in the flattened mesh. places: [devices, 1 + dims] of ints in the order of the flattened mesh:
    which slice or node, and the coordinates there (`places_of`). Of several groups the worst placed counts.
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
    """`places` of `span` for the devices of a mesh, `mesh.devices.flat`: JAX's own or those of a topology.

    GPU: nodes are runs of `chip.host` devices by id.
    """
    if not chip.dims:
        return np.array([[device.id // chip.host] for device in devices])
    return np.array([[getattr(d, "slice_index", None) or 0, *d.coords[: chip.dims]] for d in devices])


def traffic_of(
    found: Sequence[messages.Collective], mesh: Mapping[str, int], chip: Chip, shape: Sequence[int], places: np.ndarray
) -> list[Traffic]:
    """A program's collectives (`messages.collectives`) by mesh axes and kind, most bytes first.

    mesh: sizes by name, as `Mesh.shape`; the others as in `span`.
    """
    parts: dict[tuple[tuple[str, ...], Span, messages.Kind], float] = {}
    for c in found:
        key = messages.axes(c.groups, mesh), span(c.groups, chip, shape, places), c.kind
        parts[key] = parts.get(key, 0.0) + c.wire_bytes * c.times
    traffic = [Traffic(axes, where, size, kind) for (axes, where, kind), size in parts.items()]
    return sorted(traffic, key=lambda part: -part.wire_bytes)


def traffic_read(fields: Mapping[str, Any], scale: float = 1.0) -> Traffic:
    """The Traffic of `dataclasses.asdict` or of JSON, its bytes times `scale`."""
    where = fields["span"]
    along = tuple((int(count), float(links)) for count, links in where["along"])
    placed = Span(where["group"], where["inside"], along)
    return Traffic(tuple(fields["axes"]), placed, fields["wire_bytes"] * scale, fields["kind"])


def measured_chip(
    name: str = "cpu", *, devices: int | None = None, size: int = 1024, copy_bytes: int = 2**26, seconds: float = 0.5
) -> Chip:
    """One of this process's devices as a Chip, by measurement: so that an estimate can be held against a clock.

    devices: into how many a CPU is taken to be divided; default those that jax has. size: of the square matrices that
    are multiplied, in bfloat16 and in float32. copy_bytes: of the array that is copied, to be larger than every cache.
    seconds: for which each of the three is repeated; the fastest counts.
    All devices work at once: those of a CPU share its cores and its memory, so that no more than cores are put to work.
    Between them a message is taken for a copy; for others, networks are not measured and only `vf.plan.chips.CHIPS` has
    them.
    """
    working = jax.local_devices()
    device = working[0]
    count = devices or len(working)
    if device.platform == "cpu":
        working = working[: min(count, os.cpu_count() or 1)]
    share = len(working) / count  # of what a device at work does, where more of them take turns

    def rate(work: float, f: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        run = jax.jit(f, donate_argnums=0)  # new memory would have to be found first, page by page
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
    copied = rate(2.0 * copy_bytes, lambda a: a + 1, jnp.zeros(copy_bytes // 4, jnp.float32))  # read and written
    stats = device.memory_stats() or {}
    return Chip(
        name=name,
        kind=device.platform if device.platform in ("tpu", "gpu") else "cpu",
        flops_bf16=flops[0],
        flops_f32=flops[1],
        hbm_bytes=float(stats.get("bytes_limit", 0)) or _host_memory() / count,
        hbm_bandwidth=copied,
        lanes=16,
        ici_bandwidth=copied / 2,
        dcn_bandwidth=copied / 2,
        host=count,
        sources=dict.fromkeys(("flops_bf16", "flops_f32", "hbm_bytes", "hbm_bandwidth", "ici_bandwidth"), "measured"),
    )


def _host_memory() -> float:
    """Bytes of memory that this machine, or this container of it, may use; 0 where the system does not tell."""
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 0.0
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        memory = min(memory, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory
