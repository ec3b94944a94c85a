"""From a config to what each job takes, job by job: `train`, `sample`, `evaluate`, `plan`."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf import files
from vf.activity import ACTIVITY
from vf.config import control, networks, start, texts
from vf.config import data as clips
from vf.config.models import file_model, image_model, model, noise_schedule, with_statistics
from vf.config.prior import embedding_prior
from vf.config.scores import scorers
from vf.config.specs import (
    ContrastSpec,
    EvaluateSpec,
    EvaluationSpec,
    PlanSettings,
    PlanSpec,
    PriorSpec,
    RunSpec,
    SampleSpec,
    SelfcheckSpec,
    TrainSpec,
)
from vf.config.superres import superres
from vf.config.values import as_user_error, choose, fingerprint, to_json
from vf.data.pipeline import Source
from vf.diffusion import guidance as guidances
from vf.diffusion import schedule as schedules
from vf.diffusion import solvers
from vf.diffusion.guidance import Guidance
from vf.metrics.fvd import LINEAGES
from vf.metrics.protocol import protocol_hash
from vf.models.model import Model
from vf.models.sampler import SampleOptions
from vf.nets.clip import TextConfig
from vf.nets.vit import Config
from vf.plan.subject import PlanSubject
from vf.plan.targets import parse_target
from vf.pretrained import base as pretrained
from vf.pretrained.export import Trained
from vf.training import optim, sharding
from vf.types import UserError, naming_flags

Mode = Literal["train", "sample", "evaluate"]
SOLVERS: Mapping[str, Callable[[float], solvers.Solver]] = {
    "ddim": solvers.DDIM, "dpm": solvers.DPMSolver, "unipc": lambda eta: solvers.UniPC(),
    "heun": lambda eta: solvers.Heun(),
}  # fmt: skip
FLAGS = {
    **{name: f"--config.data.{name}" for name in ("source", "split", "frames", "windows", "fps", "flip")},
    "share": "--config.data.validation_share",
    "schedule": "--config.noise.schedule",
    "steps": "--config.noise.steps",
    "prediction": "--config.base.prediction",
    "pretrained": "--config.base.pretrained",
    "condition": "--config.model.condition",
    "warmup_steps": "--config.train.warmup_steps",
    "target": "--config.plan.target",
}
"""The flag of each parameter that errors of the rooms below may name."""


@naming_flags(FLAGS)
def train(config: ConfigDict, workdir: files.AnyPath, trained: Trained | None) -> TrainSpec:
    """The training job in `workdir`, whose run has `trained` networks so far, None without a checkpoint.

    Raises UserError.
    """
    config = networks.resolved(config, workdir, trained is None)
    run, source = _run(config, workdir, "train", trained)
    if trained is None and run.start is None:
        run = dataclasses.replace(run, model=with_statistics(run.model, source, config))
    clips.check_flip(config, source)
    file = networks.pretrained_base(config)
    given = config.train
    return TrainSpec(
        run=run, source=source, tx=optimizer(config), steps=given.steps,
        batch_size=given.batch_size, accumulate=given.accumulate, ema_decay=given.ema_decay,
        param_dtype=networks.param_dtype(config), half=config.model.dtype == "bfloat16", loading=clips.loading(config),
        log_every=given.log_every, checkpoint_every=given.checkpoint_every, keep=given.keep,
        sample_every=given.sample_every, fingerprint=fingerprint(config),
        files={pretrained.HEADER: pretrained.header_text(file)} if file else {},
    )  # fmt: skip


@naming_flags(FLAGS)
def sample(config: ConfigDict, workdir: files.AnyPath, trained: Trained | None) -> RunSpec:
    """The sampling job in `workdir`, with `trained` as in `train`. Raises UserError."""
    config = networks.resolved(config, workdir, trained is None)
    return _run(config, workdir, "sample", trained)[0]


@naming_flags(FLAGS)
def evaluate(config: ConfigDict, workdir: files.AnyPath, trained: Trained | None) -> EvaluateSpec | SelfcheckSpec:
    """The evaluation job in `workdir`, with `trained` as in `train`; a check of weights for `eval.selfcheck`.

    Raises UserError.
    """
    if config.eval.selfcheck:
        return selfcheck(config)
    config = networks.resolved(config, workdir, trained is None)
    which = str(config.eval.checkpoint)
    if not which.isdecimal():
        choose("eval.checkpoint", which, {"follow": 0, "latest": 0, "a step": 0})
    run = _run(config, workdir, "evaluate", trained)[0]

    def compare(theirs: Mapping[str, Any], step: int, classes: Sequence[str]) -> None:
        networks.resolved(config, workdir, fresh=False)
        there = Trained(workdir, theirs, step, {"class_names": classes})
        start.check_resumed(config, there, run.model.networks, run.class_names, trains=False)
        if step:
            clips.check_validation(config, workdir, fresh=False)

    return EvaluateSpec(
        run=run,
        checkpoint=int(which) if which.isdecimal() else which,  # type: ignore[arg-type]
        last=config.train.steps,
        patience=config.eval.patience,
        compared=trained.config if trained else {},
        compare=compare,
    )


@naming_flags(FLAGS)
def contrast(config: ConfigDict) -> ContrastSpec:
    """The job that trains CLIP's encoders. Raises UserError for values out of range, and data without captions."""
    given = config.text.learn
    shape = {"width": given.width, "depth": given.depth, "heads": given.heads, "mlp": 4 * given.width}
    words = {"width": "text.learn.width", "size": "data.size"}
    vision = as_user_error(
        lambda: Config(**shape, patch=given.patch, tubelet=1, size=config.data.size, frames=1, eps=1e-5,
                       act="quick_gelu", class_token=True), words,
    )  # fmt: skip
    return ContrastSpec(
        source=lambda part, tokenize: clips.source(config, part, tokenize), vision=vision,
        language=lambda count: TextConfig(**shape, context=given.context, vocabulary=count, dim=given.width),
        captions=given.captions, steps=given.steps, batch_size=given.batch_size, lr=given.lr,
        log_every=config.train.log_every, base_frame=clips.base_frame(config), mesh=mesh(config), seed=config.seed,
    )  # fmt: skip


@naming_flags(FLAGS)
def plan(config: ConfigDict) -> PlanSpec:
    """The planning job. Raises UserError for values out of range."""
    settings = plan_settings(config)
    subject = functools.partial(plan_subject, config)
    return PlanSpec(subject, parse_target(config.plan.target), settings, plan_fingerprint(config))


@ACTIVITY.doing("opening the data")
def _run(config: ConfigDict, workdir: files.AnyPath, mode: Mode, trained: Trained | None) -> tuple[RunSpec, Source]:
    """What every job shares, and the source of the training clips."""
    fresh = trained is None
    devices = mesh(config, mode)
    images = config.sample.what == "base"
    elsewhere = config.init_from or config.base.init_from
    # Images of the file's network as it is, with the file's classes, show whether it was read right.
    original = images and fresh and bool(config.base.pretrained) and not elsewhere
    made: Model
    source: Source
    if original:
        made, source = file_model(config, devices)
    else:
        source = clips.source(config)
        made = image_model(config, source, devices) if images else model(config, source, devices)
    scored = mode != "sample" and clips.has_video(config)
    initial = None
    if trained is None:
        begins = made.begins("base")[1] if config.model.low_size and config.base.pretrained else None
        initial = start.start(
            config, made.networks, source.class_names, original=original, trains=mode == "train", begins=begins
        )
    else:
        start.check_resumed(config, trained, made.networks, source.class_names, trains=mode == "train")
    if not original:
        start.check_guidance(config, made.networks, trained, trains=mode == "train")
    start.check_history(config, trained)
    # Sampling needs no real clips: the page shows them beside samples where there are any, and they donate embeddings.
    reference = validation = None
    if mode != "sample" or not (images or config.data.source == "none"):
        reference = clips.source(config, "reference")
    donates = made.embedding_dim and not config.sample.prior
    donors = donates or config.model.low_size or (made.readers and not config.sample.prompts)
    if mode != "sample" or donors or (config.sample.known and not config.sample.known_of):
        validation = clips.source(config, "validation")
        clips.check_validation(config, workdir, fresh)
    prior = embedding_prior(config, source, devices) if made.embedding_dim else None
    drawn = sample_spec(config, source)
    run = RunSpec(
        config=to_json(config), model=made, mesh=devices, data=source.describe(), class_names=source.class_names,
        seed=config.seed, start=initial, sample=drawn,
        superres=superres(config, drawn, devices, sample_options),
        guide=start.guide(config, made.networks, workdir, source.class_names), text=texts.encoder(config),
        embeds=config.text.embed, prior=prior,
        evaluation=EvaluationSpec(
            scorers=scorers(config) if scored else {}, reference=reference, validation=validation,
            clips=config.eval.clips, seen=clips.validation_is_seen(config),
            levels=np.asarray(config.eval.levels, np.int32), batch_size=config.eval.batch_size,
            fingerprint=evaluation_fingerprint(config, reference, validation, prior=prior), best=config.eval.best,
            lowest=choose("eval.best_is", config.eval.best_is, {"lowest": True, "highest": False}),
        ),
    )  # fmt: skip
    return run, source


def evaluation_fingerprint(config: ConfigDict, *sets: Source | None, prior: PriorSpec | None = None) -> str:
    """Hash of everything but the weights that must agree for two evaluations to be comparable; `sets` of real clips."""
    ignored = {"checkpoint", "patience", "best", "best_is", "selfcheck", "batch_size", "cache"}
    fields = to_json(config)
    hashed = {name: fields[name] for name in ("sample", "data", "seed")}
    for name in ("what", "fps", *control.FIELDS):  # evaluations are of clips only, freely drawn, at whatever rate
        del hashed["sample"][name]
    for name in ("prior", "prior_steps", "prior_guidance_scale"):  # which `prior` says whole
        del hashed["sample"][name]
    if prior is not None:
        hashed["prior"] = prior.protocol()
    hashed["eval"] = {name: value for name, value in fields["eval"].items() if name not in ignored}
    # Evaluations of before these fields are the same where they are off.
    for group, name, off in (
        ("sample", "low_noise", 0), ("sample", "prompts", ""), ("sample", "each", 1), ("data", "held_out", 0),
    ):  # fmt: skip
        if hashed[group][name] == off:
            del hashed[group][name]
    if config.model.dtype != "float32":
        hashed["dtype"] = config.model.dtype
    hashed["sets"] = [source and source.describe() for source in sets]
    return protocol_hash(hashed)


def selfcheck(config: ConfigDict) -> SelfcheckSpec:
    """A check whether the weights of I3D are FVD's. Raises UserError where no weights are named."""
    if not config.eval.i3d:
        raise UserError("eval.selfcheck needs the converted weights: set --config.eval.i3d=FILE")
    return SelfcheckSpec(Path(config.eval.i3d), choose("eval.lineage", config.eval.lineage, LINEAGES))


def sample_options(config: ConfigDict) -> SampleOptions:
    """How to sample. Raises UserError for values out of range."""
    sample = config.sample
    if not 0 <= sample.eta <= 1:
        raise UserError(
            f"--config.sample.eta must lie in [0, 1] (0 is deterministic, 1 has the variance of DDPM), got {sample.eta}"
        )
    if not 0 <= sample.clip_quantile < 1 or (sample.clip_quantile and not sample.clip_x_0):
        raise UserError(
            "sample.clip_quantile must lie in [0, 1), and be 0 where sample.clip_x_0 is 0, which bounds nothing; got "
            f"{sample.clip_quantile} with sample.clip_x_0={sample.clip_x_0}"
        )
    make = choose("sample.solver", sample.solver, SOLVERS)
    if sample.eta and sample.solver in ("heun", "unipc"):
        raise UserError(
            f"{sample.solver} is deterministic: set sample.eta to 0 (got {sample.eta}), or sample.solver to ddim or dpm"
        )
    schedule = noise_schedule(config)
    if sample.times:
        grid = as_user_error(lambda: schedules.given_times(sample.times, schedule), {"times": "sample.times"})
    else:
        choose("sample.spacing", sample.spacing, schedules.SPACINGS)
        grid = as_user_error(
            lambda: schedules.spaced_times(sample.spacing, sample.steps, schedule), {"steps": "sample.steps"}
        )
    bound = None if control.inverts(config) else sample.clip_x_0 or None  # a bound cannot be inverted
    return SampleOptions(
        grid, make(sample.eta), guidance(config, grid), bound, sample.clip_quantile or None,
        _restart(sample.restart, grid), control.known(config), sample.reconstruction, sample.history, sample.low_noise,
    )  # fmt: skip


def _restart(values: tuple[int, ...], grid: np.ndarray) -> solvers.Restart | None:
    """Where a walk along `grid` restarts. Raises UserError for values out of range."""
    if not values:
        return None
    if len(values) != 3:
        raise UserError(
            f"--config.sample.restart must be () or three numbers, low, high and count, got {tuple(values)}"
        )
    made = as_user_error(lambda: solvers.Restart(*values), {"restart": "sample.restart"})
    as_user_error(lambda: made.parts(grid), {"restart": "sample.restart"})
    return made


def guidance(config: ConfigDict, grid: np.ndarray) -> Guidance:
    """How predictions are guided at the times of `grid`. Raises UserError for values out of range."""
    sample = config.sample
    own = None if sample.residual_guidance_scale == -1 else sample.residual_guidance_scale
    interval = tuple(sample.guidance_interval) or None
    if interval is not None and len(interval) != 2:
        raise UserError(f"--config.sample.guidance_interval must be () or two times, first and last, got {interval}")
    rules: dict[str, Callable[[], guidances.Rule]] = {
        "cfg": guidances.CFG,
        "apg": lambda: guidances.APG(sample.apg_parallel, sample.apg_norm or None, sample.apg_momentum),
        "cfg_zero": lambda: guidances.CFGZero(int(grid[sample.zero_steps - 1]) if sample.zero_steps else None),
        "cfg_pp": guidances.CFGPlusPlus,
    }
    rule = choose("sample.guidance", sample.guidance, rules)
    if sample.guidance == "cfg_pp" and sample.solver in ("heun", "unipc"):
        raise UserError(
            f"sample.guidance=cfg_pp puts other noise back than there was, which {sample.solver} cannot: set "
            "sample.solver to ddim or dpm"
        )
    owners = {"apg_parallel": "apg", "apg_norm": "apg", "apg_momentum": "apg", "zero_steps": "cfg_zero"}
    for name, owner in owners.items():
        if sample[name] and sample.guidance != owner:
            raise UserError(
                f"sample.{name} is {sample[name]}, which is of sample.guidance={owner}, not {sample.guidance}"
            )
        if sample[name] < 0 and name != "apg_momentum":
            raise UserError(f"sample.{name} must be 0 or more, got {sample[name]}")
    if sample.zero_steps >= len(grid):
        raise UserError(
            f"sample.zero_steps must be at most the number of steps, {len(grid) - 1}, got {sample.zero_steps}"
        )
    return as_user_error(
        lambda: Guidance(sample.guidance_scale, own, interval, sample.guidance_rescale, rule()),
        {
            "interval": "sample.guidance_interval",
            "rescaling": "sample.guidance_rescale",
            "momentum": "sample.apg_momentum",
        },
    )


def sample_spec(config: ConfigDict, source: Source) -> SampleSpec:
    """`config.sample`, typed, for a model of the clips of `source`."""
    s, fps, fixed = config.sample, clips.shown_fps(config, source), control.control(config)
    count = s.count
    if fixed and fixed.grid:
        count = fixed.grid[0] * fixed.grid[1] if fixed.cell is None else 1
    if prompts := texts.prompts(config):
        if fixed and fixed.grid:
            raise UserError(
                "sample.grid has contents of its own: leave --config.sample.prompts empty, or --config.sample.grid=()"
            )
        if config.model.context == "embedding" and config.model.predictor != "prior" and not config.sample.prior:
            raise UserError(
                "the model is conditioned on an embedding of the base frame, which a prompt does not give: name a "
                "prior that draws it (--config.sample.prior), or leave --config.sample.prompts empty"
            )
        count = len(prompts) * s.each or count
    return SampleSpec(
        sample_options(config), count, s.batch_size, s.seed, s.weights, s.label, fps, s.what, s.solver, s.eta,
        control=fixed, first=s.first, extension=control.extension(config), keep_base_noise=s.keep_base_noise,
        windows=s.windows, window_noise=s.window_noise, dtype=config.model.dtype, prompts=prompts,
    )  # fmt: skip


def optimizer(config: ConfigDict) -> optim.Optimizer:
    """The optimizer. Raises UserError where nothing would be trained, or for an unknown schedule."""
    train = config.train
    if train.freeze_base and config.model.predictor != "decomposed":
        raise UserError(f"train.freeze_base leaves {config.model.predictor} nothing to train: set it to False")
    choose("train.schedule", train.schedule, dict.fromkeys(optim.SCHEDULES, 0))
    rates = {"base": train.lr_base, "residual": train.lr_residual}
    return optim.make(
        lr={"prior": train.lr_prior} if config.model.predictor == "prior" else rates, schedule=train.schedule,
        warmup_steps=train.warmup_steps, total_steps=train.steps, weight_decay=train.weight_decay,
        b1=train.b1, b2=train.b2, eps=train.eps, clip_norm=train.clip_norm or None,
        frozen=("base",) if train.freeze_base else (),
    )  # fmt: skip


def mesh(config: ConfigDict, mode: str = "") -> Mesh:
    """The mesh of all devices.

    Raises UserError where its sizes do not fit the devices, or where a batch of a job of `mode` cannot be split so.
    """
    made = sharding.make_mesh(**{axis: config.mesh[axis] for axis in sharding.AXES})
    if mode == "train":
        sharding.check_rows(made, "train.batch_size", config.train.batch_size, config.train.accumulate, clips=True)
    for name in {"train": ("sample", "eval"), "evaluate": ("sample", "eval"), "sample": ("sample",)}.get(mode, ()):
        sharding.check_rows(made, f"{name}.batch_size", config[name].batch_size, over=sharding.EVERY)
    return made


@naming_flags(FLAGS)
def cpu_devices(config: ConfigDict, *, plan: bool = False) -> None:
    """Splits one CPU into as many devices as `mesh.cpu_devices` says, unless the environment sets their number.

    XLA runs much of a small network on one core per device: two devices train the demo faster than one with two cores.
    To plan, it becomes as many devices as stand in for the target's, here and in the process that compiles. Must be
    called before jax starts its backends; has no effect on accelerators.
    """
    if plan and config.plan.target:
        target = parse_target(config.plan.target)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_NUM_CPU_DEVICES"] = str(1 if target.topology_name else target.devices)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
    elif not plan and config.mesh.cpu_devices and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)


@naming_flags(FLAGS)
def plan_subject(
    config: ConfigDict, mesh: Mesh | None, blocks: int | None, *, accumulate: int | None = None, remat: bool = False
) -> PlanSubject:
    """The model, optimizer and batches of `config`, to be planned.

    Args:
        mesh: the mesh on which the model computes; None to count operations, on no mesh.
        blocks: the most residual blocks that each level has; None for as many as the config says.
        accumulate: number of micro-batches instead of the config's.
        remat: whether activations are computed again even where the config keeps them.
    """
    config = config.copy_and_resolve_references()
    if accumulate:
        config.train.accumulate = accumulate
    if remat:
        config.model.remat = "blocks"
    nets = (config.base.net, config.residual.net)
    max_blocks = max(net.num_res_blocks for net in nets)
    for net in nets:
        net.num_res_blocks = min(net.num_res_blocks, blocks or net.num_res_blocks)
    source = clips.plan_source(config)
    sampling, made = sample_spec(config, source), model(config, source, mesh)
    start.check_guidance(config, made.networks, None, trains=True)
    return PlanSubject(
        model=made, tx=optimizer(config), seed=config.seed,
        sample_options=sampling.options, sample_seed=sampling.seed, sample_batch_size=sampling.batch_size,
        batch_size=config.train.batch_size, eval_batch_size=config.eval.batch_size, accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay, param_dtype=networks.param_dtype(config),
        dtype=networks.DTYPES[config.model.dtype], remat=config.model.remat != "none", blocks=max_blocks,
    )  # fmt: skip


def plan_settings(config: ConfigDict) -> PlanSettings:
    """`config.plan` without the target. Raises UserError for values out of range."""
    given = config.plan
    if not given.target:
        raise UserError(
            "--mode=plan needs a machine: set --config.plan.target=v5e:16x16 (or v5p:2x4x4, gpu:8xH200, cpu:8)"
        )
    choose("plan.compile", given.compile, {"train,sample": 0, "train": 0, "none": 0})
    from_config = choose("plan.mesh", given.mesh, {"best": False, "config": True})
    for name in ("meshes", "minutes", "gigabytes"):
        if given[name] <= 0:
            raise UserError(f"--config.plan.{name} must be positive, got {given[name]}")
    return PlanSettings(
        mesh=tuple(config.mesh[axis] for axis in sharding.AXES) if from_config else None,
        compile=given.compile, meshes=given.meshes, blocks=given.blocks, finish=given.finish,
        minutes=given.minutes, gigabytes=given.gigabytes,
        cache=Path(given.cache) if given.cache else files.home() / ".cache/vf/plans",
    )  # fmt: skip


def plan_fingerprint(config: ConfigDict) -> str:
    """Hash of everything in the config that changes the compiled programs of a plan."""
    fields = to_json(config)
    hashed = {name: fields[name] for name in ("data", "noise", "model", "base", "residual", "train", "sample")}
    for name in ("steps", "log_every", "checkpoint_every", "keep", "sample_every"):
        del hashed["train"][name]
    hashed["plan"] = {name: fields["plan"][name] for name in ("classes", "embedding_dim")}
    return protocol_hash(hashed)
