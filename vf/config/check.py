"""Refuses values of a config that do not fit together, or do not fit the job, before anything is read or built."""

from ml_collections import ConfigDict

from vf.config import control
from vf.config.values import choose, flat, to_json
from vf.types import UserError

LEAST = {
    "train.steps": 1, "train.batch_size": 1, "train.accumulate": 1, "train.log_every": 1, "train.checkpoint_every": 1,
    "train.keep": 1, "train.lr_base": 0, "train.lr_residual": 0, "train.lr_prior": 0, "train.warmup_steps": 0,
    "train.clip_norm": 0,
    "sample.count": 1, "sample.first": 0, "sample.batch_size": 1, "sample.length": 0, "sample.overlap": 0,
    "sample.history": 0, "sample.reconstruction": 0, "eval.clips": 4, "eval.batch_size": 1, "noise.steps": 1,
    "data.frames": 2, "data.size": 1, "data.stride": 1, "data.threads": 0, "data.workers": 0, "data.read_ahead": 1,
    "base.images": 1, "prior.net.width": 2, "prior.net.depth": 1, "prior.net.heads": 1, "sample.prior_steps": 1,
    "sample.each": 0, "text.image_tokens": 1, "text.context_dim": 0, "model.low_size": 0,
    "model.low_noise": 0, "sample.low_noise": 0, "sample.superres_batch_size": 1, "sample.superres_tile": 0,
    "sample.superres_overlap": 0, "sample.superres_frames": 0, "sample.superres_frame_overlap": 0,
    **{f"text.learn.{field}": 1 for field in ("width", "depth", "heads", "patch", "captions", "steps", "batch_size")},
    "text.learn.context": 3,
    **{
        f"{network}.net.{field}": least
        for network in ("base", "residual")
        for field, least in (("width", 2), ("num_res_blocks", 0), ("head_dim", 1), ("patch", 1), ("norm_groups", 1))
    },
}  # fmt: skip
"""{field: the least value that it may have}"""
NUMBERS = (
    "noise.lam", "sample.times", "sample.guidance_interval", "eval.levels", "base.net.width_mult",
    "residual.net.width_mult",
)  # fmt: skip


def check(config: ConfigDict, mode: str) -> None:
    """Raises UserError for numbers out of range and for values that contradict each other or a job of `mode`.

    Only what the code that uses a value would not explain well is checked here.
    """
    train, sample, frames = config.train, config.sample, config.data.frames
    fields = flat(to_json(config))
    for name in NUMBERS:
        if wrong := [value for value in fields[name] if not isinstance(value, int | float)]:
            raise UserError(f"--config.{name} takes numbers, got {wrong[0]!r}")
    for name in ("base.net.width_mult", "residual.net.width_mult"):
        if min(fields[name], default=0) <= 0:
            raise UserError(f"--config.{name} must be positive numbers, one for each level, got {fields[name]}")
    for name, least in LEAST.items():
        if fields[name] < least:
            raise UserError(f"--config.{name} must be at least {least}, got {fields[name]}")
    if not -1 <= config.noise.base_frame < frames:
        raise UserError(
            f"--config.noise.base_frame must be one of 0..{frames - 1}, or -1 for the paper's, got "
            f"{config.noise.base_frame}"
        )
    if train.batch_size % train.accumulate:
        raise UserError(
            f"--config.train.batch_size ({train.batch_size}) must divide into --config.train.accumulate "
            f"({train.accumulate}) parts"
        )
    if not 0 <= train.known_share <= 1:
        raise UserError(f"--config.train.known_share must be a share, 0 to 1, got {train.known_share}")
    if not 0 <= config.data.validation_share < 1:
        raise UserError(
            f"--config.data.validation_share must be at least 0 and less than 1, got {config.data.validation_share}"
        )
    if not 0 <= config.data.held_out < 1 or (config.data.held_out and config.data.source != "sprites"):
        raise UserError(
            "--config.data.held_out is a share of the contents of sprites, at least 0 and less than 1, and 0 for other "
            f"data; got {config.data.held_out}"
        )
    if config.model.condition == "text" and config.data.source == "sprites" and config.data.flip:
        raise UserError("mirrored clips move otherwise than their captions say: set --config.data.flip=False")
    choose("sample.weights", sample.weights, {"ema": 0, "params": 0})
    choose("sample.what", sample.what, {"clips": 0, "base": 0})
    if config.init_from and config.base.init_from:
        raise UserError(
            "init_from and base.init_from both say where the base network starts from: leave one of them empty"
        )
    if config.model.low_size and (
        config.model.predictor != "one_network" or sample.what == "base" or config.model.condition == "text"
    ):
        raise UserError(
            "super-resolution (model.low_size) is of clips by one network that reads no texts: set "
            "--config.model.predictor=one_network --config.sample.what=clips --config.model.condition=none"
        )
    if not -1 <= sample.superres_lam <= 1 or -1 < sample.superres_lam < 0:
        raise UserError(
            f"--config.sample.superres_lam must be 0 to 1, or -1 for that of its run, got {sample.superres_lam}"
        )
    for name, size in (("overlap", "tile"), ("frame_overlap", "frames")):
        if fields[f"sample.superres_{name}"] and fields[f"sample.superres_{name}"] >= fields[f"sample.superres_{size}"]:
            raise UserError(
                f"--config.sample.superres_{name} must be less than --config.sample.superres_{size} "
                f"({fields[f'sample.superres_{size}']}), got {fields[f'sample.superres_{name}']}"
            )
    if not config.model.low_size and (config.model.low_noise or sample.low_noise):
        raise UserError("low_noise is of super-resolution, which takes clips of model.low_size up: set both to 0")
    if config.base.pretrained and config.model.predictor != "decomposed" and not config.model.low_size:
        raise UserError(
            f"base.pretrained is an image model, and model.predictor is {config.model.predictor}, which has none: "
            "set --config.model.predictor=decomposed"
        )
    if config.model.predictor == "prior":
        _check_prior(config)
    if sample.prior and sample.known:
        raise UserError(
            "sample.known gives frames of clips, whose embeddings a prior does not draw: leave sample.prior or "
            "sample.known empty"
        )
    if sample.prior and (config.model.context != "embedding" or config.model.predictor == "prior"):
        why = "draws embeddings itself" if config.model.predictor == "prior" else "sees none"
        raise UserError(
            f"sample.prior draws embeddings for the generators, and model.predictor={config.model.predictor} with "
            f"model.context={config.model.context} {why}: leave it empty, or take a run of "
            "--config.model.context=embedding"
        )
    if levels := [t for t in config.eval.levels if not 0 <= t < config.noise.steps]:
        steps = config.noise.steps
        raise UserError(f"--config.eval.levels must be of 0..{steps - 1}, as noise.steps is {steps}, got {levels[0]}")
    if sample.guide and mode not in ("sample", "evaluate"):
        raise UserError(
            f"--config.sample.guide is for --mode=sample and evaluate, and this is --mode={mode}: leave it empty"
        )
    if mode == "sample":
        control.check_existence(config)
    if mode not in ("sample", "plan"):
        if own := [name for name, off in control.FIELDS.items() if sample[name] != off]:
            raise UserError(
                f"--config.sample.{own[0]} is for --mode=sample, and this is --mode={mode}: leave it as it is"
            )
        if sample.what == "base":
            raise UserError(f"sample.what=base is for --mode=sample, and this is --mode={mode}: leave it at clips")
        if config.data.source == "none":
            raise UserError(f"data.source=none is for --mode=sample, and this is --mode={mode}: name the data")


def _check_prior(config: ConfigDict) -> None:
    """Raises UserError for what asks clips of a prior, which has embeddings alone."""
    sample = config.sample
    asked = {f"sample.{name}": off for name, off in control.FIELDS.items() if name != "first"}
    asked |= {"train.known_share": 0.0, "eval.metrics": "", "noise.motion": ""}
    fields = flat(to_json(config))
    for name, off in asked.items():
        value = getattr(config[name.split(".")[0]], name.split(".")[1])
        if value != off:
            raise UserError(
                f"--config.{name} is of clips, and model.predictor=prior draws embeddings: leave it as it is, got "
                f"{fields.get(name, value)}"
            )
    if sample.what != "clips":
        raise UserError("sample.what=base is of generators, and model.predictor=prior has none: leave it at clips")
