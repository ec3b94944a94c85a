"""From a config to the super-resolution that takes samples up: a run, what was exported of one, or Karlo's files."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf import files
from vf.config import models, networks
from vf.config.specs import SampleSpec, Start, SuperresSpec
from vf.config.values import as_user_error, flat, to_json
from vf.data.pipeline import NoClips
from vf.diffusion import noise, schedule, solvers
from vf.diffusion.tiles import Tiles
from vf.models.sampler import SampleOptions
from vf.models.superres import SuperResolution, TwoNetworks
from vf.pretrained import adm, base, export, karlo_superres
from vf.training import sharding
from vf.types import Params, UserError, naming_flags

FLAG = "--config.sample.superres"
STEPS = 7  # of Karlo's super-resolution


def superres(
    config: ConfigDict, sample: SampleSpec, mesh: Mesh, options: Callable[[ConfigDict], SampleOptions]
) -> SuperresSpec | None:
    """What `sample.superres` names, for the clips of `sample`; None where it is empty.

    options: how a config samples.

    Raises UserError where it is no super-resolution of clips of this size, or its weights are missing or damaged.
    """
    name = config.sample.superres
    if not name:
        return None
    if sample.what != "clips":
        raise UserError(f"sample.superres takes clips up, not images of the base generator: leave it empty ({FLAG})")
    paths = [files.path(part) for part in name.split(",")]
    if all(path.suffix == ".safetensors" for path in paths):
        model, start, made = _of_files(config, paths, sample.extension.length, mesh)
    else:
        model, start, made = _of_run(config, name, sample.extension.length, mesh, options)
    if model.low_size != config.data.size:
        raise UserError(
            f"{name} takes clips of {model.low_size} x {model.low_size} up, and these are of {config.data.size} x "
            f"{config.data.size}: name another ({FLAG})"
        )
    facts = {
        "from": dict(start.origin), "size": model.shape[1], "tiles": model.tiles and model.tiles._asdict(),
        "times": made.grid.tolist(), "solver": repr(made.solver), "clip_x_0": made.clip_x_0,
        "low_noise": made.low_noise, "lambda": config.sample.superres_lam,
    }  # fmt: skip
    return SuperresSpec(model, made, start, config.sample.superres_batch_size, facts)


def _tiles(config: ConfigDict, window: int) -> Tiles | None:
    """The tiles of `sample.superres_*`; None for whole clips.

    window: frames of one where the config leaves that open, of networks that mix frames; 0 for others.
    """
    sample = config.sample
    side, overlap = sample.superres_tile, sample.superres_overlap or sample.superres_tile // 4
    frames, shared = sample.superres_frames or window, sample.superres_frame_overlap or window // 2
    made = Tiles(side, overlap if side else 0, frames, shared if frames else 0)
    return None if made == Tiles() else made


def _of_files(
    config: ConfigDict, paths: list[files.AnyPath], frames: int, mesh: Mesh
) -> tuple[SuperResolution, Start, SampleOptions]:
    """Karlo's network, or the two of the first steps and of the last, on frames by themselves."""
    with naming_flags({"weights": FLAG}):
        found = [base.open_base(path, (base.SUPERRES,)) for path in paths]
    if len(found) > 2:
        raise UserError(
            f"Karlo's super-resolution has two networks, first and last, and these are {len(found)} files ({FLAG})"
        )
    about = found[0].about
    size, steps = about["image_size"], about["schedule"]["steps"]
    lam = 1.0 if config.sample.superres_lam == -1 else config.sample.superres_lam
    nets = [adm.net(file.about, dropout=0.0, **networks.computation(config, mesh)) for file in found]
    fields: dict[str, Any] = {
        "schedule": schedule.SCHEDULES[about["schedule"]["name"]](steps), "shape": (frames, size, size, 3),
        "base_frame": 0, "prediction": about["prediction"], "net": nets[0], "tiles": _tiles(config, 0),
        "prior": noise.Decomposed(np.full(frames, lam, np.float32)), "low_size": size // karlo_superres.FACTOR,
    }  # fmt: skip
    if len(nets) > 1:
        fields["last"] = nets[1]
    kind = SuperResolution if len(nets) == 1 else TwoNetworks
    model = as_user_error(lambda: kind(**fields), {"tiles": "sample.superres_tile"})

    def read(params: Params) -> Params:
        return {
            name: export.place_arrays(file.params(sharding.named(params[name])), params[name], file.path)
            for name, file in zip(model.networks, found, strict=True)
        }

    origin = {"from": config.sample.superres, "fingerprints": [file.fingerprint for file in found]}
    grid = schedule.time_grid(STEPS, steps)
    return model, Start(model.networks, read, origin), SampleOptions(grid, solvers.DDIM(1.0))


def _of_run(
    config: ConfigDict, name: str, frames: int, mesh: Mesh, options: Callable[[ConfigDict], SampleOptions]
) -> tuple[SuperResolution, Start, SampleOptions]:
    """The networks that a run has trained, sampled as the run itself samples."""
    path = files.path(name)
    with naming_flags({"trained": FLAG}):
        trained = export.find(path)
    theirs = config.copy_and_resolve_references()
    ours = flat(to_json(config))
    for field, value in flat(trained.config).items():
        if field.split(".")[0] in ("data", "noise", "model", "base", "sample") and field in ours:
            theirs.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
    theirs.base.init_from = ""
    if not theirs.model.low_size:
        raise UserError(f"{name} is no super-resolution: name a run of configs/superres.py ({FLAG})")
    if theirs.model.condition != "none" and theirs.model.condition != config.model.condition:
        raise UserError(
            f"{name} is conditioned on the {theirs.model.condition}, which these clips have not: name another ({FLAG})"
        )
    window = theirs.data.frames if theirs.base.net.temporal and frames > theirs.data.frames else 0
    theirs.data.frames = frames
    if config.sample.superres_lam != -1:
        theirs.noise.prior, theirs.noise.lam = "decomposed", (config.sample.superres_lam,)
    theirs = networks.resolved(theirs, path)
    model = models.model(theirs, NoClips(trained.classes), mesh, _tiles(config, window))
    assert isinstance(model, SuperResolution)
    return model, Start(model.networks, trained.read, trained.origin()), options(theirs)
