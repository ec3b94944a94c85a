"""Super-resolution: distance to the real clips, flicker by noise and network, seams of tiles, and memory.

    python -m benchmarks.superres runs/superres runs/superres_image      # runs of configs/superres.py:demo
    python -m benchmarks.superres --memory                               # Karlo's networks, 16 x 256 x 256

The second run has `--config.base.net.temporal="()"`. Clips are those of the test split of the sprites. Flicker is the
mean over pixels, of 255, of

    still    the standard deviation over frames of what comes of a clip whose frames are all equal
    moving   |r^(i+1) - r^i|, r being what comes of a clip less the real one, so that true motion is taken out

A seam is where a tile begins or ends; its jump is the mean |r(j) - r(j - 1)| across it, over that of all other columns.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base as configs
from vf import rng, video
from vf.config import build, data, models
from vf.data.sprites import Sprites
from vf.diffusion import decompose, noise, solvers, tiles
from vf.diffusion.schedule import cosine, time_grid
from vf.metrics.psnr import psnr
from vf.models.sampler import SampleOptions, sample
from vf.models.superres import SuperResolution, TwoNetworks
from vf.nets.unet import UNet
from vf.training.checkpoint import Checkpoints

CLIPS, BATCH = 64, 32
PRIORS = {"independent": 0.0, "lambda 0.5": 0.5, "lambda 1": 1.0}


def opened(workdir: Path) -> tuple[Any, SuperResolution, Any]:
    """(config, model, averaged parameters) of a run."""
    config = configs.resolved(workdir / "config.json")
    model = models.model(config, data.source(config))
    assert isinstance(model, SuperResolution)
    with Checkpoints(str(workdir / "checkpoints"), read_only=True) as checkpoints:
        return config, model, checkpoints.restore_params(model.shapes())


def changed(model: SuperResolution, lam: float, tile: tiles.Tiles | None = None) -> SuperResolution:
    """The model under independent noise (0), or decomposed noise of this lambda."""
    prior: noise.Prior = noise.Independent()
    if lam:
        prior = noise.Decomposed(decompose.make_lambda(lam, model.shape[0], model.base_frame))
    return dataclasses.replace(model, prior=prior, tiles=tile)


def drawer(model: SuperResolution, params: Any, options: SampleOptions) -> Callable[[np.ndarray], np.ndarray]:
    """A function of clips u8 [n f h w 3] that gives what comes of them, reduced; float32 in [0, 255]."""

    @jax.jit
    def draw(params: Any, clips: jax.Array, index: jax.Array) -> jax.Array:
        keys = rng.example_keys(0, rng.Purpose.SUPERRES, index)
        return jnp.clip(sample(model, params, keys, model.condition({"video": clips}), options), -1, 1) * 127.5 + 127.5

    def drawn(clips: np.ndarray) -> np.ndarray:
        numbers = np.arange(CLIPS, dtype=np.uint32).reshape(-1, BATCH)
        return np.concatenate([draw(params, clips[some], some) for some in numbers])

    return drawn


def by_noise(workdir: Path) -> None:
    """A row for each noise, of one run."""
    config, model, params = opened(workdir)
    options = build.sample_options(config)
    source = Sprites(frames=model.shape[0], size=model.shape[1], base_frame=model.base_frame, split="test")
    clips = np.stack([source.clip(k)["video"] for k in range(CLIPS)])
    still = np.repeat(clips[:, :1], model.shape[0], axis=1)
    print(f"{workdir}: temporal={tuple(config.base.net.temporal)}")
    for name, grid in (("bilinear", "half_pixel"), ("bicubic", "antialiased_bicubic")):
        print(f"  {name:24} psnr {psnr(model.interpolated(clips, grid), clips):6.2f}")  # type: ignore[arg-type]
    for name, lam in PRIORS.items():
        made, of_still = map(drawer(changed(model, lam), params, options), (clips, still))
        rest = made - clips
        moving, near = np.abs(np.diff(rest, axis=1)).mean(), psnr(np.round(made).astype(np.uint8), clips)
        print(f"  {name:24} psnr {near:6.2f}  still {of_still.std(1).mean():7.4f}  moving {moving:7.4f}", flush=True)


def seams(workdir: Path) -> None:
    """A row for each overlap of tiles of half of a side."""
    config, model, params = opened(workdir)
    options = build.sample_options(config)
    size = model.shape[1]
    source = Sprites(frames=model.shape[0], size=size, base_frame=model.base_frame, split="test")
    clips = np.stack([source.clip(k)["video"] for k in range(CLIPS)])
    for overlap in (0, size // 4):
        tile = tiles.Tiles(size // 2, overlap)
        rest = drawer(changed(model, 1.0, tile), params, options)(clips) - clips
        jumps = np.abs(np.diff(rest, axis=3)).mean((0, 1, 2, 4))  # jump k is from column k to k + 1
        firsts = tiles.first_places(size, size // 2, overlap)
        at = sorted(
            {int(first) - 1 for first in firsts if first} | {int(first) + size // 2 - 1 for first in firsts[:-1]}
        )
        elsewhere = np.delete(jumps, at)
        near = psnr(np.round(rest + clips).astype(np.uint8), clips)
        found = f"seams {jumps[at].mean():.4f}, elsewhere {elsewhere.mean():.4f}, psnr {near:.2f}"
        print(f"  tiles of {size // 2}, overlap {overlap:2}: {found}", flush=True)


def memory() -> None:
    """The compiler's figures of Karlo's two networks on one clip of 16 x 256 x 256, whole frames and tiles."""
    net = UNet(320, (1, 2, 3, 4), 3, (), middle_attention=False, scale_shift=False, dtype=jnp.bfloat16)
    for tile in (tiles.Tiles(frames=1), tiles.Tiles(128, 32, 1, 0), tiles.Tiles(128, 32, 4, 0)):
        model = TwoNetworks(
            schedule=cosine(), shape=(16, 256, 256, 3), base_frame=0, net=net, last=net, low_size=64, tiles=tile,
            prior=noise.Decomposed(np.ones(16, np.float32)),
        )  # fmt: skip
        options = SampleOptions(time_grid(7, 1000), solvers.DDIM(1.0))

        def draw(params: Any, low: jax.Array, index: jax.Array, model=model, options=options) -> jax.Array:
            keys = rng.example_keys(0, rng.Purpose.SUPERRES, index)
            return video.to_uint8(sample(model, params, keys, {"low": low}, options))

        shapes = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, jnp.bfloat16), model.shapes())
        rows = jax.ShapeDtypeStruct((1, 16, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.uint32)
        found = jax.jit(draw).lower(shapes, *rows).compile().memory_analysis()
        assert found is not None
        parts = {name: getattr(found, f"{name}_size_in_bytes") / 2**30 for name in ("argument", "output", "temp")}
        print(
            tile, {name: round(size, 2) for name, size in parts.items()}, f"{sum(parts.values()):.2f} GiB", flush=True
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    for workdir in args.runs:
        by_noise(workdir)
        seams(workdir)
    if args.memory:
        memory()


if __name__ == "__main__":
    main()
