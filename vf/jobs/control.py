"""Control of a sampling: the numbers of its noises, and what files give of content, motion and frames."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from vf import rng
from vf.config.specs import ControlSpec, RunSpec, SampleSpec
from vf.diffusion import windows
from vf.jobs import meter
from vf.models.videofusion import VideoFusion
from vf.training import programs
from vf.types import Params


def numbers(spec: SampleSpec) -> dict[str, np.ndarray]:
    """The rows of `spec.count` samples that say which noise is whose: `index`, the number of the base noise, and as far
    as anything is controlled what `programs.control` reads."""
    index, fixed = np.arange(spec.first, spec.first + spec.count, dtype=np.uint32), spec.control
    if fixed is None or spec.what == "base":
        return {"index": index}
    content = motion = index
    rows: dict[str, np.ndarray] = {}
    if fixed.grid:
        index = index if fixed.cell is None else np.array([fixed.cell], np.uint32)
        content, motion = (k.astype(np.uint32) for k in np.divmod(index, fixed.grid[1]))
        for name, number, count in zip(("content", "motion"), (content, motion), fixed.grid, strict=True):
            if fixed.interpolate == name:  # all from the noise 0 towards the noise 1
                rows[f"{name}_angle"] = (np.pi / 2 * number / (count - 1)).astype(np.float32)
                rows[f"{name}_towards"] = np.ones_like(number)
                number *= 0
    if not fixed.grid and fixed.motion_seed == fixed.content_seed:
        return {"index": index}  # also of a model whose noise has no parts
    seeds = np.full(spec.count, rng.as_argument(fixed.motion_seed))
    return rows | {"index": content, "motion": np.stack([seeds, motion], 1)}


def window(run: RunSpec, number: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of one window of long clips, which has residual noise of its own, or that of the first window in another
    order, and base noise of its own where that is not kept; noise that is not decomposed is as residual noise."""
    if not number:
        return rows
    spec, decomposed = run.sample, isinstance(run.model, VideoFusion)
    if spec.window_noise == "shuffled":
        return _shuffled(run, number, rows)
    given = ("base_noise", "residual_noise", "motion_towards", "motion_angle")  # of the first window
    rows = {name: value for name, value in rows.items() if name not in given}
    index, (content_seed, motion_seed) = rows["index"], _seeds(spec)
    window = np.full_like(index, number)
    content = [np.full_like(index, rng.as_argument(content_seed)), index]
    if not (decomposed and spec.keep_base_noise):
        content.append(window)
    rows |= {"content": np.stack(content, 1)}
    if not decomposed:
        return rows
    motion = rows.get("motion", np.stack([np.full_like(index, rng.as_argument(motion_seed)), index], 1))
    return rows | {"motion": np.column_stack([motion, window])}


def _shuffled(run: RunSpec, number: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `window`, of a window whose residual noise is that of the first one."""
    spec, (index, extension) = run.sample, (rows["index"], run.sample.extension)
    first = number * extension.stride
    order = windows.shuffled(extension)[first : first + extension.frames].astype(np.int32)
    rows = rows | {"order": np.broadcast_to(order, (len(index), len(order)))}
    if spec.keep_base_noise or not isinstance(run.model, VideoFusion):
        return rows
    content_seed, motion_seed = _seeds(spec)
    own = {name: value for name, value in rows.items() if name != "base_noise"}
    content = [np.full_like(index, rng.as_argument(content_seed)), index, np.full_like(index, number)]
    motion = [np.full_like(index, rng.as_argument(motion_seed)), index]  # which are those of `index` alone
    return {"motion": np.stack(motion, 1), **own, "content": np.stack(content, 1)}


def _seeds(spec: SampleSpec) -> tuple[int, int]:
    """The seeds of base and residual noise."""
    fixed = spec.control
    return (fixed.content_seed, fixed.motion_seed) if fixed else (spec.seed, spec.seed)


def columns(spec: SampleSpec) -> int:
    """Clips in a row of the drawing's pictures."""
    return spec.control.grid[1] if spec.control and spec.control.grid else 8


def rows(
    spec: RunSpec, phases: meter.Phases, params: Params, conditions: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """`conditions`, with the frames and noises that the files of `spec.sample.control` give.

    A noise that is found by inversion is checked: what is sampled from it again is compared with the file.
    Raises UserError where a file cannot be read.
    """
    sample, fixed = spec.sample, spec.sample.control
    if fixed is None or fixed.cut is None or not (fixed.content_of or fixed.motion_of or fixed.known_of):
        return conditions
    found: dict[str, np.ndarray] = {}
    if path := fixed.known_of or (fixed.content_of if sample.options.known else ""):
        found["known"] = fixed.cut(path)
    elif path := fixed.content_of:
        found["base_noise"] = _noises(spec, phases, params, fixed, path, sample.label)["base_noise"]
    if path := fixed.motion_of:
        found["residual_noise"] = _noises(spec, phases, params, fixed, path, fixed.motion_label)["residual_noise"]
    # One copy in memory, whatever the number of samples.
    return {**conditions, **{name: np.broadcast_to(one, (sample.count, *one.shape)) for name, one in found.items()}}


def _noises(
    spec: RunSpec, phases: meter.Phases, params: Params, fixed: ControlSpec, path: str, label: int
) -> dict[str, np.ndarray]:
    """`base_noise` f32 [h w 3] and `residual_noise` f32 [f h w 3] of the first clip of a file.

    Logs how near sampling from them comes to it.
    """
    assert isinstance(spec.model, VideoFusion)
    assert fixed.cut is not None
    # All of the clip is found again, also where the samples will have another's base frame.
    clip, mesh, options = fixed.cut(path), spec.mesh, spec.sample.options._replace(known=())
    batch = {"video": clip[None], "index": np.zeros(1, np.uint32), "label": np.full(1, max(label, 0), np.int32)}
    invert = phases.compiled(programs.inversion(spec.model, mesh, options), "inversion")
    noise = programs.in_batches(lambda rows: invert(params, rows), batch, mesh.size, mesh)
    noises = {"base_noise": noise.base, "residual_noise": noise.residual}
    sample = phases.compiled(programs.sampling(spec.model, mesh, options), "sampling again")
    seed = rng.as_argument(0)  # no noise is drawn
    again = programs.in_batches(lambda rows: sample(params, rows, seed), batch | noises, mesh.size, mesh)
    error = np.sqrt(np.mean(np.square(again[0].astype(float) - clip)))
    logging.info("%s, sampled again from the noise that was found: off by %.1f of 255 (root mean square)", path, error)
    return {name: values[0] for name, values in noises.items()}
