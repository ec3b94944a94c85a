"""Refuses values of a config that do not fit together, or do not fit the job, before anything is read or built."""

from ml_collections import ConfigDict

from vf.config.values import choose
from vf.types import UserError


def check(config: ConfigDict, mode: str) -> None:
    """Raises UserError for numbers out of range and for values that contradict each other or a job of `mode`.

    Only what the code that uses a value would not explain well is checked here.
    """
    train, sample = config.train, config.sample
    for name, value, least in (
        ("train.steps", train.steps, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.accumulate", train.accumulate, 1),
        ("train.log_every", train.log_every, 1),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("sample.count", sample.count, 1),
        ("sample.batch_size", sample.batch_size, 1),
        ("eval.clips", config.eval.clips, 4),
        ("noise.steps", config.noise.steps, 1),
        ("data.frames", config.data.frames, 2),
        ("data.stride", config.data.stride, 1),
        ("data.threads", config.data.threads, 0),
        ("data.workers", config.data.workers, 0),
        ("data.read_ahead", config.data.read_ahead, 1),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    if train.batch_size % train.accumulate:
        raise UserError(
            f"train.batch_size ({train.batch_size}) must divide into train.accumulate ({train.accumulate}) parts"
        )
    if not 0 <= config.data.validation_share < 1:
        raise UserError(f"data.validation_share must be at least 0 and less than 1, got {config.data.validation_share}")
    choose("sample.weights", sample.weights, {"ema": 0, "params": 0})
    choose("sample.what", sample.what, {"clips": 0, "base": 0})
    if config.init_from and config.base.init_from:
        raise UserError(
            "init_from and base.init_from both say where the base network starts from: leave one of them empty"
        )
    if config.base.pretrained and config.model.predictor == "one_network":
        raise UserError(
            "base.pretrained is an image model, and model.predictor is one_network, which has none: "
            "set --config.model.predictor=decomposed"
        )
    if levels := [t for t in config.eval.levels if not 0 <= t < config.noise.steps]:
        raise UserError(f"eval.levels are steps 0..{config.noise.steps - 1} of the schedule, got {levels[0]}")
    if sample.guide and mode not in ("sample", "evaluate"):
        raise UserError(f"sample.guide is for --mode=sample and evaluate, and this is --mode={mode}: leave it empty")
    if mode not in ("sample", "plan"):
        if sample.what == "base":
            raise UserError(f"sample.what=base is for --mode=sample, and this is --mode={mode}: leave it at clips")
        if config.data.source == "none":
            raise UserError(f"data.source=none is for --mode=sample, and this is --mode={mode}: name the data")
