"""What chips can do, as data with a source for each figure, and the machines that a line of text names.

Units are bytes, seconds and FLOPs (a multiply and an add are two), per chip. Network bandwidths are one-way: what
a chip can send while it receives as much.

Sources (`Chip.sources` says which figure is whose):
    [v4], [v5e], [v5p], [v6e]  cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e
    [book]     Austin et al., How to Scale Your Model, jax-ml.github.io/scaling-book/tpus and .../gpus
    [libtpu]   what the compiler of libtpu 0.0.42 says is there when a program does not fit
    [jax]      docs.jax.dev, jax.lax.Precision: DEFAULT multiplies float32 in bfloat16 on TPU, in TF32 on GPU
    [A100], [H100], [H200]     NVIDIA's data sheets of the SXM parts; dense rates, half of those "with sparsity"
    [HGX], [DGX]               NVIDIA's data sheets of HGX B200 and of DGX A100, H100, H200 and B200
    [matmul]   NVIDIA, Matrix Multiplication Background User's Guide: widths that fill tensor cores
"""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vf.types import UserError

Kind = Literal["tpu", "gpu", "cpu"]
GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, which is one device to JAX (v4 and v5p: both TensorCores together)."""

    name: str
    kind: Kind
    flops_bf16: float
    """Peak FLOP/s of products of bfloat16."""
    flops_f32: float
    """Peak FLOP/s of products of float32 as JAX multiplies them by default, which is in less than float32."""
    hbm_bytes: float
    """Memory that a program can use. TPU: without what the runtime keeps; GPU: as sold."""
    hbm_bandwidth: float
    lanes: int
    """Width of the matrix unit: an axis that is no multiple of it is padded to one. GPU: the tensor cores' tile."""
    ici_bandwidth: float
    """Bytes/s one-way: of one of the links to neighbours (TPU), or of all NVLinks of a GPU together."""
    dcn_bandwidth: float
    """Bytes/s one-way and per chip of the network between slices (TPU) or nodes (GPU)."""
    host: int
    """Chips of one host. TPU: of the hosts of slices larger than one host, and libtpu's; GPU: of an NVLink node."""
    cores: int = 1
    """TensorCores per chip."""
    dims: int = 0
    """Dimensions of the torus of links; 0: a switch, through which any chip of a host reaches any other."""
    wrap: int = 0
    """A dimension of the torus is a ring where its extent is a multiple of this, and else a line."""
    cubes: bool = False
    """Whether there are rings only in slices whose extents are all multiples of `wrap`."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)


_TPU_SOURCES = {
    "flops_f32": "[jax]: one bfloat16 pass",
    "hbm_bytes": "[libtpu]",
    "ici_bandwidth": "[book], 10% below a share of [v5e], [v5p], [v6e]'s bidirectional rate per chip",
    "dcn_bandwidth": "[book]",
    "wrap": "[book]",
    "lanes": "[book]",
}


def _gpu_sources(sheet: str, dgx: str) -> dict[str, str]:
    return {
        "flops_bf16": sheet,
        "flops_f32": f"{sheet}, TF32; [jax]",
        "hbm_bytes": sheet,
        "hbm_bandwidth": sheet,
        "ici_bandwidth": f"{sheet}: half of NVLink's rate, which counts both directions; [book]",
        "dcn_bandwidth": dgx,
        "host": dgx,
        "lanes": "[matmul]: 64 elements of bfloat16",
    }


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="tpu",
            flops_bf16=275e12,
            flops_f32=275e12,
            hbm_bytes=30.75 * GIB,
            hbm_bandwidth=1.2e12,
            lanes=128,
            ici_bandwidth=4.5e10,
            dcn_bandwidth=6.25e9,
            host=4,
            cores=2,
            dims=3,
            wrap=4,
            cubes=True,
            sources=_TPU_SOURCES
            | {
                "flops_bf16": "[v4]",
                "hbm_bytes": "[libtpu], of 32 GiB [v4]",
                "hbm_bandwidth": "[v4]",
                "ici_bandwidth": "[book]",
                "host": "[v4]",
                "cores": "[v4]",
                "dims": "[v4]",
            },
        ),
        Chip(
            name="v5e",
            kind="tpu",
            flops_bf16=197e12,
            flops_f32=197e12,
            hbm_bytes=15.75 * GIB,
            hbm_bandwidth=8.19e11,
            lanes=128,
            ici_bandwidth=4.5e10,
            dcn_bandwidth=3.125e9,
            host=4,
            cores=1,
            dims=2,
            wrap=16,
            sources=_TPU_SOURCES
            | {
                "flops_bf16": "[v5e]",
                "hbm_bytes": "[libtpu], of 16 GB [v5e]",
                "hbm_bandwidth": "[v5e]",
                "dcn_bandwidth": "[v5e]: 6.4 Tbit/s per pod of 256; [book]",
                "host": "[libtpu]; [v5e] counts the 8 chips of two such hosts",
                "cores": "[v5e]",
                "dims": "[v5e]",
            },
        ),
        Chip(
            name="v5p",
            kind="tpu",
            flops_bf16=459e12,
            flops_f32=459e12,
            hbm_bytes=95.74 * GIB,
            hbm_bandwidth=2.765e12,
            lanes=128,
            ici_bandwidth=9e10,
            dcn_bandwidth=6.25e9,
            host=4,
            cores=2,
            dims=3,
            wrap=4,
            cubes=True,
            sources=_TPU_SOURCES
            | {
                "flops_bf16": "[v5p]",
                "hbm_bytes": "[libtpu], of 96 GiB [v5p]",
                "hbm_bandwidth": "[v5p]",
                "dcn_bandwidth": "[v5p]: 50 Gbit/s; [book]",
                "host": "[v5p]",
                "cores": "[v5p]",
                "dims": "[v5p]",
                "wrap": "[v5p], [book]",
            },
        ),
        Chip(
            name="v6e",
            kind="tpu",
            flops_bf16=918e12,
            flops_f32=918e12,
            hbm_bytes=31.25 * GIB,
            hbm_bandwidth=1.638e12,
            lanes=256,
            ici_bandwidth=9e10,
            dcn_bandwidth=1.25e10,
            host=4,
            cores=1,
            dims=2,
            wrap=16,
            sources=_TPU_SOURCES
            | {
                "flops_bf16": "[v6e]",
                "hbm_bytes": "[libtpu], of 32 GB [v6e]",
                "hbm_bandwidth": "[v6e]",
                "lanes": "[v6e]",
                "host": "[libtpu]; [v6e] counts the 8 chips of two such hosts",
                "cores": "[v6e]",
                "dims": "[v6e]",
            },
        ),
        Chip(
            name="A100-40",
            kind="gpu",
            flops_bf16=312e12,
            flops_f32=156e12,
            hbm_bytes=40e9,
            hbm_bandwidth=1.555e12,
            lanes=64,
            ici_bandwidth=300e9,
            dcn_bandwidth=25e9,
            host=8,
            sources=_gpu_sources("[A100]", "[DGX A100]: 8 x 200 Gbit/s for 8 GPUs"),
        ),
        Chip(
            name="A100-80",
            kind="gpu",
            flops_bf16=312e12,
            flops_f32=156e12,
            hbm_bytes=80e9,
            hbm_bandwidth=2.039e12,
            lanes=64,
            ici_bandwidth=300e9,
            dcn_bandwidth=25e9,
            host=8,
            sources=_gpu_sources("[A100]", "[DGX A100]: 8 x 200 Gbit/s for 8 GPUs"),
        ),
        Chip(
            name="H100",
            kind="gpu",
            flops_bf16=989e12,
            flops_f32=494e12,
            hbm_bytes=80e9,
            hbm_bandwidth=3.35e12,
            lanes=64,
            ici_bandwidth=450e9,
            dcn_bandwidth=50e9,
            host=8,
            sources=_gpu_sources("[H100]", "[DGX H100]: 8 x 400 Gbit/s for 8 GPUs; [book]"),
        ),
        Chip(
            name="H200",
            kind="gpu",
            flops_bf16=989e12,
            flops_f32=494e12,
            hbm_bytes=141e9,
            hbm_bandwidth=4.8e12,
            lanes=64,
            ici_bandwidth=450e9,
            dcn_bandwidth=50e9,
            host=8,
            sources=_gpu_sources("[H200]", "[DGX H200]: 8 x 400 Gbit/s for 8 GPUs"),
        ),
        Chip(
            name="B200",
            kind="gpu",
            flops_bf16=2.25e15,
            flops_f32=1.1e15,
            hbm_bytes=180e9,
            hbm_bandwidth=8e12,
            lanes=64,
            ici_bandwidth=900e9,
            dcn_bandwidth=50e9,
            host=8,
            sources=_gpu_sources("[HGX B200]", "[DGX B200]: 8 x 400 Gbit/s for 8 GPUs; [book]")
            | {"hbm_bytes": "[DGX B200]: 1,440 GB for 8", "hbm_bandwidth": "[DGX B200]: 64 TB/s for 8"},
        ),
    )
}
"""Every chip whose figures are known. A CPU's are not: `vf.plan.roofline.measured_chip` measures them."""


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


def _cubes(limit: int, chips: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of whole 4x4x4 cubes in ascending order, as they are ordered, of up to `chips` chips."""
    extents = range(4, limit + 1, 4)
    shapes = itertools.combinations_with_replacement(extents, 3)
    return _SMALL + tuple(sorted((s for s in shapes if math.prod(s) <= chips), key=lambda s: (math.prod(s), s)))


SHAPES: Mapping[str, Sequence[tuple[int, ...]]] = {
    "v4": _cubes(16, 4096),
    "v5e": _FLAT,
    "v5p": _cubes(24, 6144),
    "v6e": _FLAT,
}
"""The slices that can be had: [v4], [v5e], [v5p], [v6e]. libtpu compiles for others too (any even extents)."""

_FORMS = "v4:2x2x1, v5e:16x16, v5p:4x4x8, v6e:8x8, v5p:4x4x4*2 (two slices), gpu:8xH100, gpu:64xH200 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to plan for; `parse_target` makes it."""

    text: str
    kind: Kind
    chip: Chip | None
    """None for cpu: `vf.plan.roofline.measured_chip` is."""
    shape: tuple[int, ...]
    """TPU: extents of a slice's torus; GPU: (nodes, GPUs of a node); CPU: (devices,)."""
    slices: int
    devices: int
    """Devices of all slices, as JAX counts them."""
    topology_name: str | None
    """Of one slice, for `jax.experimental.topologies.get_topology_desc`; None where no TPU is meant."""
    topology_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    """Further keyword arguments of `get_topology_desc`."""

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which dimensions of a TPU slice are rings; empty for others."""
        return wraps(self.chip, self.shape) if self.chip and self.chip.dims else ()


def wraps(chip: Chip, shape: Sequence[int]) -> tuple[bool, ...]:
    """Which dimensions of a slice of extents `shape` are rings: see `Chip.wrap` and `Chip.cubes`."""
    rings = tuple(chip.wrap > 0 and extent % chip.wrap == 0 for extent in shape)
    return tuple(ring and (all(rings) or not chip.cubes) for ring in rings)


def parse_target(text: str) -> Target:
    """The machine that `text` names: `v5e:16x16`, `v5p:4x4x8*2` (two slices), `gpu:64xH200` or `cpu:8`.

    Raises UserError for a chip that is not known, and for sizes that do not exist, with the nearest that does.
    """
    family, colon, rest = text.strip().partition(":")
    families = [*SHAPES, "gpu", "cpu"]
    if family not in families or not colon:
        examples = {name: f"{name}:{'x'.join(map(str, shapes[-1]))}" for name, shapes in SHAPES.items()}
        examples |= {"v5litepod": examples["v5e"], "trillium": examples["v6e"], "gpu": "gpu:8xH100", "cpu": "cpu:8"}
        examples |= {name.lower(): f"gpu:8x{name}" for name, chip in CHIPS.items() if chip.kind == "gpu"}
        near = difflib.get_close_matches(family.lower(), examples, 1)
        advice = f"did you mean one like {examples[near[0]]}" if near else f"write one like {_FORMS}"
        raise UserError(f"target {text!r} names no machine that is known, of {', '.join(families)}: {advice}")
    if family == "cpu":
        return _cpu(text, rest)
    return _gpu(text, rest) if family == "gpu" else _tpu(text, family, rest)


def _cpu(text: str, rest: str) -> Target:
    if not re.fullmatch(r"[1-9]\d*", rest):
        raise UserError(f"target {text!r} needs the number of CPU devices, from 1 on: write one like cpu:8")
    return Target(text, "cpu", None, (int(rest),), 1, int(rest), None)


def _gpu(text: str, rest: str) -> Target:
    names = [name for name, chip in CHIPS.items() if chip.kind == "gpu"]
    found = re.fullmatch(r"([1-9]\d*)x([\w-]+)", rest)
    if not found:
        raise UserError(f"target {text!r} needs a number of GPUs and their kind: write one like gpu:8xH100")
    count, name = int(found[1]), found[2]
    if name not in names:
        begun = [known for known in names if known.startswith(name.upper())]
        near = (begun or difflib.get_close_matches(name.upper(), names, 1, 0))[0]
        raise UserError(
            f"target {text!r} has a GPU that is not known, of {', '.join(names)}: the nearest is gpu:{count}x{near}"
        )
    chip = CHIPS[name]
    if count > chip.host and count % chip.host:
        near_count = round(count / chip.host) * chip.host
        raise UserError(
            f"target {text!r} leaves a node of {chip.host} GPUs partly empty: change {count} to {near_count}"
            f" or to another multiple of {chip.host}"
        )
    shape = (max(1, count // chip.host), min(count, chip.host))
    return Target(text, "gpu", chip, shape, 1, count, None)


def _tpu(text: str, family: str, rest: str) -> Target:
    chip, shapes = CHIPS[family], SHAPES[family]
    found = re.fullmatch(r"(\d+(?:x\d+)*)(?:\*(\d+))?", rest)
    example = "x".join(map(str, shapes[-1]))
    if not found:
        raise UserError(f"target {text!r} needs the extents of a slice: write one like {family}:{example}")
    shape = tuple(int(extent) for extent in found[1].split("x"))
    slices = int(found[2] or 1)
    if slices < 1:
        raise UserError(f"target {text!r} has no slices: change *{found[2]} to *1 or more")
    if shape not in shapes:
        shown = ["x".join(map(str, s)) for s in (shapes if chip.dims == 2 else _SMALL)]
        more = "" if chip.dims == 2 else f" and ascending multiples of 4 up to {example}"
        size = max(1, math.prod(shape))
        same = [s for s in shapes if s == tuple(sorted(shape))]  # the right extents in another order
        near = (same or sorted(shapes, key=lambda s: (abs(math.log(math.prod(s) / size)), sum(s))))[0]
        suffix = f"*{found[2]}" if found[2] else ""
        raise UserError(
            f"{family}:{found[1]} is no slice: {family} has {', '.join(shown)}{more}; the nearest is"
            f" {family}:{'x'.join(map(str, near))}{suffix}"
        )
    options: dict[str, Any] = {}
    if family == "v4":  # else libtpu's v4 has a device per TensorCore, with half of the memory each
        options["chip_config_name"] = "megacore"
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if slices > 1:
        options["num_slices"] = slices
    name = f"{family}:{found[1]}"
    return Target(text, "tpu", chip, shape, slices, math.prod(shape) * slices, name, options)
