"""What a sampling job fixes of its clips: their content, their motion, and frames that are known."""

import re
from collections.abc import Callable

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vf import files
from vf.config.data import base_frame
from vf.config.specs import ControlSpec
from vf.config.values import as_user_error, choose
from vf.data import frames
from vf.data.clips import Windows
from vf.data.decode import DAMAGE, Video, error_text
from vf.data.pixels import Pixels
from vf.data.reader import open_clip
from vf.diffusion.known import frame_mask
from vf.diffusion.windows import Extension
from vf.types import UserError, counted
from vf.video import load_clips

CONTROL = {
    "content_seed": -1, "motion_seed": -1, "grid": (), "cell": -1, "interpolate": "", "content_of": "", "motion_of": "",
    "motion_label": -1, "known": (), "known_of": "", "reconstruction": 0.0,
}  # fmt: skip
"""The fields of `sample` that say what is fixed, with the values by which nothing is."""
FIELDS = CONTROL | {
    "first": 0, "length": 0, "overlap": 0, "windows": "in_turn", "keep_base_noise": True, "window_noise": "new",
    "history": 0.0, "superres": "", "superres_lam": -1.0, "superres_batch_size": 4, "superres_tile": 0,
    "superres_overlap": 0, "superres_frames": 0, "superres_frame_overlap": 0,
}  # fmt: skip
"""All fields of `sample` that are for the sampling job alone, with the values by which they change nothing."""


def control(config: ConfigDict) -> ControlSpec | None:
    """What is fixed; None for nothing. Raises UserError for values that do not fit together, or the model."""
    sample = config.sample
    if not is_controlled(config):
        return None
    if sample.what == "base" and any(sample[name] != off for name, off in CONTROL.items() if name != "content_seed"):
        raise UserError("images of the base generator have content alone: leave all but sample.content_seed as it is")
    decomposed = config.model.predictor == "decomposed"
    noises = {name: off for name, off in CONTROL.items() if not name.startswith(("known", "rec"))}
    if not decomposed and any(sample[name] != off for name, off in noises.items()):
        raise UserError(
            "content and motion are controlled by decomposed noise: set --config.model.predictor=decomposed, for a run "
            "that was trained so"
        )
    _check_known(config)
    if sample.interpolate or sample.grid or sample.cell != -1:
        _check_grid(config)
    _check_files(config)
    content_seed, motion_seed = (sample.seed if own == -1 else own for own in (sample.content_seed, sample.motion_seed))
    return ControlSpec(
        content_seed, motion_seed, tuple(sample.grid) or None, sample.interpolate, sample.content_of, sample.motion_of,
        sample.label if sample.motion_label == -1 else sample.motion_label, sample.known_of, _cut(config),
        None if sample.cell == -1 else sample.cell,
    )  # fmt: skip


def is_controlled(config: ConfigDict) -> bool:
    """Whether any field says what to fix."""
    return any(config.sample[name] != off for name, off in CONTROL.items())


def known(config: ConfigDict) -> tuple[int, ...]:
    """Array indices of the frames that are known: `sample.known`, or base first the base frame of `content_of`."""
    if config.sample.content_of and config.model.context == "base_frame":
        return (base_frame(config),)
    return tuple(config.sample.known)


def extension(config: ConfigDict) -> Extension:
    """The windows of a clip of `sample.length` frames. Raises UserError where they do not fit."""
    sample, frames = config.sample, config.data.frames
    length, overlap = sample.length or frames, sample.overlap or frames // 2
    if length < frames:
        raise UserError(f"--config.sample.length is at least the {frames} frames of a window, got {length}")
    if length == frames:
        return Extension(frames, frames, 0)
    if sample.what == "base":
        raise UserError("images of the base generator have no length: leave sample.length at 0")
    if not 1 <= overlap < frames:
        raise UserError(
            f"--config.sample.overlap is 1 to {frames - 1}, less than a window's {frames} frames; got {overlap}"
        )
    choose("sample.windows", sample.windows, {"in_turn": 0, "together": 0})
    choose("sample.window_noise", sample.window_noise, {"new": 0, "shuffled": 0})
    _check_window_noise(config)
    if sample.windows == "together":
        _check_together(config, overlap)
    elif config.model.context == "base_frame" and overlap <= base_frame(config):
        raise UserError(
            f"base first, a window is drawn from its base frame, {base_frame(config)}, so that it must be known: set "
            f"--config.sample.overlap={base_frame(config) + 1} or more, got {overlap}"
        )
    return Extension(length, frames, overlap)


def _check_window_noise(config: ConfigDict) -> None:
    """Raises UserError where noise that has no parts is neither new in each window nor the same in another order."""
    sample, prior = config.sample, config.noise.prior
    if config.model.predictor == "decomposed":
        return
    if sample.window_noise == "shuffled" and prior not in ("independent", "mixed"):
        raise UserError(
            f"sample.window_noise=shuffled puts frames' noises in another order, which {prior} noise has not: set "
            "--config.sample.window_noise=new"
        )
    if sample.windows == "together" and sample.window_noise == "new" and prior != "independent":
        raise UserError(
            f"sample.windows=together gives each frame a noise of its own, and noise.prior is {prior}, which frames "
            "share: set --config.sample.windows=in_turn"
        )


def _check_together(config: ConfigDict, overlap: int) -> None:
    """Raises UserError for what windows that are denoised together cannot have."""
    sample, frames, base = config.sample, config.data.frames, base_frame(config)
    instead = "set --config.sample.windows=in_turn"
    if sample.known or sample.known_of or sample.reconstruction or sample.history:
        raise UserError(
            f"sample.windows=together knows no frames: leave sample.known and what belongs to it, or {instead}"
        )
    if sample.guidance == "cfg_pp":
        raise UserError(
            "sample.windows=together keeps the noise that a frame has, and cfg_pp puts another back: set "
            "--config.sample.guidance=cfg"
        )
    if sample.apg_momentum:
        raise UserError(
            "sample.windows=together keeps no memory of a window, and sample.apg_momentum needs it: set "
            "--config.sample.apg_momentum=0"
        )
    if config.model.predictor != "decomposed":
        return
    if config.model.context == "base_frame":
        raise UserError(
            "base first, each window is drawn from a clean base frame, which is there only after the window before: "
            f"{instead}, or sample a model of another context"
        )
    if not sample.keep_base_noise:
        raise UserError(
            "windows that are denoised together share frames, and so their base noise: leave sample.keep_base_noise at "
            f"True, or {instead}"
        )
    lam = list(config.noise.lam)
    if len(lam) > 1 and len({value for i, value in enumerate(lam) if i != base}) > 1:
        raise UserError(
            f"sample.windows=together needs one lambda for all frames but the base frame, since a frame has another "
            f"place in each window, and noise.lam has several: {instead}"
        )
    if not base < overlap < frames - base:
        choices = f"sample.overlap to {base + 1}..{frames - base - 1}, or " if 2 * base + 1 < frames else ""
        raise UserError(
            f"the base frame, {base}, must be in the first window alone, and what is in its place in others in another "
            f"one, which an overlap of {overlap} does not give: set {choices}sample.windows=in_turn"
        )


def inverts(config: ConfigDict) -> bool:
    """Whether the noise of a file is found by inversion."""
    return bool(config.sample.motion_of or (config.sample.content_of and not known(config)))


def _check_known(config: ConfigDict) -> None:
    sample, base = config.sample, base_frame(config)
    if not sample.known:
        if sample.known_of or sample.reconstruction:
            raise UserError("sample.known says which frames are given: set it, as --config.sample.known='(0,1,2,3)'")
        return
    as_user_error(lambda: frame_mask(tuple(sample.known), config.data.frames), {"known": "sample.known"})
    if sample.content_of or sample.motion_of or sample.grid:
        raise UserError("known frames fix content and motion: leave sample.content_of, motion_of and grid empty")
    if config.model.context == "base_frame" and base not in sample.known:
        raise UserError(
            f"base first, frame {base} is sampled before the others, without knowing any of them: put {base} into "
            f"sample.known ({', '.join(map(str, sample.known))}), or sample a model of another context"
        )


def _check_grid(config: ConfigDict) -> None:
    grid, cell = config.sample.grid, config.sample.cell
    if config.sample.first:
        raise UserError(
            "a grid begins at content 0 and motion 0: leave sample.first at 0, and say by sample.cell which clip of it "
            "is drawn alone"
        )
    choose("sample.interpolate", config.sample.interpolate, {"": 0, "content": 0, "motion": 0})
    if len(grid) != 2 or min(grid) < 1:
        raise UserError(
            f"--config.sample.grid is two numbers, rows and columns, 1 or more, as '(4,6)'; got {tuple(grid)}"
        )
    if not -1 <= cell < grid[0] * grid[1]:
        raise UserError(
            f"--config.sample.cell is a clip of the grid, 0 to {grid[0] * grid[1] - 1} row by row, or -1 for all; got "
            f"{cell}"
        )
    axis = {"content": 0, "motion": 1}.get(config.sample.interpolate)
    if axis is not None and grid[axis] < 2:
        raise UserError(
            f"to interpolate {config.sample.interpolate} takes 2 {('rows', 'columns')[axis]} or more, and sample.grid "
            f"has {grid[axis]}"
        )


def check_existence(config: ConfigDict) -> None:
    """Raises UserError for a file that is not there, before anything is said of what it would need."""
    for field, name in _files(config).items():
        if not files.path(_split(name)[0]).exists():
            raise UserError(
                f"--config.sample.{field}: {name} does not exist: name a picture, a video, a folder of frames, or "
                "clips.npz:3 for a clip of a drawing"
            )


def _files(config: ConfigDict) -> dict[str, str]:
    """{field: file} of those that are named."""
    names = {name: config.sample[name] for name in ("content_of", "motion_of", "known_of")}
    return {name: file for name, file in names.items() if file}


def _check_files(config: ConfigDict) -> None:
    sample = config.sample
    named = _files(config)
    if not named:
        return
    name = next(iter(named))
    if config.model.context == "embedding":
        raise UserError(
            f"--config.sample.{name} names a file, whose embedding is not known here, and this model is conditioned on "
            "one: use a model of another context"
        )
    if config.model.condition == "label":
        wanted = {"sample.label": sample.label}
        if sample.motion_of:
            wanted["sample.motion_label"] = sample.label if sample.motion_label == -1 else sample.motion_label
        if missing := next((field for field, label in wanted.items() if label < 0), None):
            raise UserError(
                f"the model is conditioned on a class, and that of {named[name]} is not known: say it by "
                f"--config.{missing}=K"
            )
    if inverts(config) and (sample.solver != "ddim" or sample.eta or sample.restart):
        raise UserError(
            f"the noise of {sample.motion_of or sample.content_of} is found by inverting deterministic DDIM: set "
            "--config.sample.solver=ddim --config.sample.eta=0 --config.sample.restart='()'"
        )
    if inverts(config) and sample.apg_momentum:
        raise UserError(
            f"the noise of {sample.motion_of or sample.content_of} is found by inverting each step by itself, which "
            "guidance with momentum does not allow: set --config.sample.apg_momentum=0"
        )


def _cut(config: ConfigDict) -> Callable[[str], np.ndarray]:
    """Reads the first clip of a file, by the data's size, frames and rate."""
    data = config.data
    windows = as_user_error(
        lambda: Windows(data.frames, data.stride, data.fps, "first"), {"stride": "data.stride", "fps": "data.fps"}
    )

    def read(name: str) -> np.ndarray:
        pixels = Pixels(data.size)
        file, row = _split(name)
        if row is not None:
            return _row(file, row, (data.frames, data.size, data.size, 3))
        path = files.expand(file)
        try:
            if path.suffix.lower() in frames.IMAGES and not frames.is_animated(path):
                picture = frames.read_picture(path)
                size = f"{picture.width} x {picture.height}"
                logging.info("%s: its centre square of %s, resized to %d x %d", path, size, data.size, data.size)
                return np.repeat(pixels(picture)[None], data.frames, axis=0)
            clip = open_clip(path, fps=data.fps)
            if isinstance(clip, Video):
                size = f"{clip.header.width} x {clip.header.height}"
                logging.info("%s: the centre square of %s, resized to %d x %d", path, size, data.size, data.size)
            return clip.clip(windows.indices(len(clip), clip.fps, 0, None), pixels)
        except DAMAGE as error:
            raise UserError(f"cannot read a clip of {path}: {error_text(error)}") from error

    return read


def _split(name: str) -> tuple[str, int | None]:
    """(file, row) of what a field names: the row of `clips.npz:3`, 0 of `clips.npz`, None of other files."""
    if row := re.fullmatch(r"(.*\.npz)(?::(\d+))?", name):
        return row[1], int(row[2] or 0)
    return name, None


def _row(path: str, row: int, shape: tuple[int, ...]) -> np.ndarray:
    """One clip of an .npz of clips, such as those of a drawing."""
    clips = load_clips(path)
    if row >= len(clips):
        raise UserError(f"{path} has {counted(len(clips), 'clip')}, 0 to {len(clips) - 1}, and {row} was asked for")
    if clips.shape[1] < shape[0] or clips.shape[2:] != shape[1:]:
        raise UserError(f"the clips of {path} are {list(clips.shape[1:])}, and this model's {list(shape)}")
    return clips[row, : shape[0]]
