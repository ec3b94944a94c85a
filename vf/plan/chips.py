"""Figures of chips, with a source for each.

Units are bytes, seconds and FLOPs (a multiply and an add are two), per chip. Network bandwidths are one-way: the rate
at which a chip can send while it receives at the same rate.

Sources (`Chip.sources` names that of each figure):
    [v4], [v5e], [v5p], [v6e]  cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e
    [book]     Austin et al., How to Scale Your Model, jax-ml.github.io/scaling-book/tpus and .../gpus
    [libtpu]   the compiler of libtpu 0.0.42, in its error where a program does not fit
    [jax]      docs.jax.dev, jax.lax.Precision: DEFAULT multiplies float32 in bfloat16 on TPU, in TF32 on GPU
    [A100], [H100], [H200]     NVIDIA's data sheets of the SXM parts; dense rates, half of those "with sparsity"
    [HGX], [DGX]               NVIDIA's data sheets of HGX B200 and of DGX A100, H100, H200 and B200
    [matmul]   NVIDIA, Matrix Multiplication Background User's Guide: widths that fill tensor cores
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

Kind = Literal["tpu", "gpu", "cpu"]
GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one chip, which is one device to JAX (v4 and v5p: both TensorCores together)."""

    name: str
    kind: Kind
    flops_bf16: float
    """Peak FLOP/s of products of bfloat16."""
    flops_f32: float
    """Peak FLOP/s of products of float32 as JAX multiplies them by default, which is in less than float32."""
    hbm_bytes: float
    """Memory that a program can use. TPU: without the part that the runtime reserves; GPU: as sold."""
    hbm_bandwidth: float
    lanes: int
    """Width of the matrix unit: an axis that is no multiple of it is padded to one. GPU: the tensor cores' tile."""
    ici_bandwidth: float
    """Bytes/s one-way of one of the links to neighbours (TPU), or of all NVLinks of a GPU together."""
    dcn_bandwidth: float
    """Bytes/s one-way and per chip, of the network between slices (TPU) or nodes (GPU)."""
    host: int
    """Chips per host. TPU: in slices larger than one host, and in libtpu; GPU: per NVLink node."""
    cores: int = 1
    """TensorCores per chip."""
    dims: int = 0
    """Dimensions of the torus of links; 0 for a switch, which connects any chip of a host with any other."""
    wrap: int = 0
    """A dimension of the torus is a ring where its extent is a multiple of this, and otherwise a line."""
    cubes: bool = False
    """Whether only slices whose extents are all multiples of `wrap` have rings."""
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


def wraps(chip: Chip, shape: Sequence[int]) -> tuple[bool, ...]:
    """For each dimension of a slice of extents `shape`, whether it is a ring: see `Chip.wrap` and `Chip.cubes`."""
    rings = tuple(chip.wrap > 0 and extent % chip.wrap == 0 for extent in shape)
    return tuple(ring and (all(rings) or not chip.cubes) for ring in rings)
