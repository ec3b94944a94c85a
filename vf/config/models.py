"""From a config to the model that it names, with the networks that `networks` builds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf.activity import ACTIVITY
from vf.config import texts
from vf.config.data import base_frame
from vf.config.networks import base_network, computation, embedding_dim, labelled, network, pretrained_base
from vf.config.values import as_user_error, choose
from vf.data.pipeline import NoClips, Source, embedding_statistics
from vf.diffusion import decompose, gaussian, noise
from vf.diffusion import schedule as schedules
from vf.diffusion.tiles import Tiles
from vf.models.model import Model
from vf.models.one_network import OneNetwork
from vf.models.prior import Prior
from vf.models.superres import SuperResolution
from vf.models.videofusion import VideoFusion
from vf.nets import initial
from vf.nets import prior as nets_prior
from vf.types import UserError

KINDS: dict[str, gaussian.Prediction] = {kind: kind for kind in gaussian.PREDICTIONS}
ZERO_SNR = {"zero terminal SNR": "noise.zero_terminal_snr"}
PREDICTORS = {predictor: predictor for predictor in ("decomposed", "one_network", "prior")}


def model(config: ConfigDict, source: Source, mesh: Mesh | None = None, tiles: Tiles | None = None) -> Model:
    """The model that `config` names, for clips of `source`, which computes on `mesh` (None: on one device).

    tiles: in which super-resolution samples; None for whole clips.

    Raises UserError where values do not fit together.
    """
    if choose("model.predictor", config.model.predictor, PREDICTORS) == "prior":
        return prior_model(config, source, mesh)
    data, given = config.data, config.noise
    base = base_frame(config)
    lam = as_user_error(
        lambda: decompose.make_lambda(_one_or_all(given.lam), data.frames, base), {"lambda": "noise.lam"}
    )
    shared = _shared(config, source, data.frames, base)
    base_prediction = choose("base.prediction", config.base.prediction, KINDS)
    base_loss = choose("base.loss", config.base.loss or base_prediction, KINDS)
    draws: dict[str, Callable[[], noise.Prior]] = {
        "decomposed": lambda: noise.Decomposed(lam),
        "independent": noise.Independent,
        "mixed": lambda: noise.Mixed(given.a),
        "progressive": lambda: noise.Progressive(given.a),
    }
    prior = choose("noise.prior", given.prior, draws)()
    if config.model.predictor == "one_network":
        if config.train.known_share:
            raise UserError(
                "train.known_share is of the residual generator, and one_network has none: set "
                "--config.train.known_share=0"
            )
        if config.model.low_size:
            made: Model = _superres(config, source, mesh, prior, shared | {"tiles": tiles})
            _check_shapes(config, made)
            return made
        net = network(config, "base", source, mesh, frame_embed=True)
        made = as_user_error(
            lambda: OneNetwork(net=net, prior=prior, prediction=base_prediction, loss=base_loss, **shared), ZERO_SNR
        )
    else:
        if not isinstance(prior, noise.Decomposed):
            raise UserError(
                f"model.predictor=decomposed predicts the parts of decomposed noise, but noise.prior is "
                f"{given.prior}: set --config.noise.prior=decomposed, or --config.model.predictor=one_network"
            )
        residual_prediction = choose("residual.prediction", config.residual.prediction, KINDS)
        made = as_user_error(
            lambda: VideoFusion(
                base=base_network(config, source, mesh),
                residual=network(config, "residual", source, mesh, frame_embed=True),
                lam=lam,
                base_prediction=base_prediction,
                residual_prediction=residual_prediction,
                base_loss=base_loss,
                residual_loss=choose("residual.loss", config.residual.loss or residual_prediction, KINDS),
                base_images=config.base.images,
                context=config.model.context,
                context_noise=config.model.context_noise,
                motion=_motion(config, source),
                known_share=config.train.known_share,
                **shared,
            ),
            {"lambda": "noise.lam", "base-first": "model.context", **ZERO_SNR},
        )
    _check_shapes(config, made)
    return made


def prior_model(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> Prior:
    """The prior that `config.prior` describes, for embeddings of `source`.

    Raises UserError as `model` does.
    """
    if not (dim := embedding_dim(config, source)):
        raise UserError(
            f"model.predictor=prior draws embeddings, and model.context is {config.model.context}: set "
            "--config.model.context=embedding"
        )
    classes = source.num_classes if labelled(config, source) else 0
    made = prior_of(config, dim, classes, mesh, text_shape=texts.shape(config))
    _check_shapes(config, made)
    return made


def prior_of(
    config: ConfigDict, dim: int, classes: int, mesh: Mesh | None, *, labelled: bool = True,
    text_shape: tuple[int, int, int] = (0, 0, 0),
) -> Prior:  # fmt: skip
    """The prior that `config.prior` describes, for embeddings of `dim` numbers and so many classes, 0 for none.

    Args:
        labelled: whether it is told the class, where it has classes; without, it takes none.
        text_shape: of the texts that it reads, as `Model.text_shape`; zeros for none.

    Raises UserError where values do not fit together.
    """
    if text_shape[0] and text_shape[1:] != (dim, dim):
        raise UserError(
            f"the prior draws embeddings of {dim} numbers of texts with {text_shape[2]}: take embeddings and texts of "
            "one CLIP (--config.text.encoder)"
        )
    prediction = choose("prior.prediction", config.prior.prediction, KINDS)
    how = {name: value for name, value in computation(config, mesh).items() if name in ("dtype", "remat", "place")}
    net = nets_prior.Prior(dim=dim, num_classes=classes, text_length=text_shape[0], **config.prior.net, **how)
    return as_user_error(
        lambda: Prior(
            net=net, prior=noise.Independent(), prediction=prediction, schedule=noise_schedule(config),
            loss=choose("prior.loss", config.prior.loss or prediction, KINDS), shape=(1, 1, 1, dim),
            base_frame=base_frame(config), readers=("prior",) if text_shape[0] else (), text_shape=text_shape,
            null_label=classes if classes and labelled else None, condition_dropout=config.model.condition_dropout,
            loss_weight=config.model.loss_weight,
        ),
        ZERO_SNR,
    )  # fmt: skip


def with_statistics(made: Model, source: Source, config: ConfigDict) -> Model:
    """`made` with the statistics of the embeddings of training clips as first values, where it is a prior."""
    if not isinstance(made, Prior):
        return made
    embed = texts.embed(config, base_frame(config)) if config.text.embed else None
    with ACTIVITY.doing("computing the statistics of the embeddings"):
        mean, std = embedding_statistics(source, config.data.flip, config.data.threads, embed)
    values = (initial.Values(values=tuple(map(float, numbers))) for numbers in (mean, std))
    net: Any = made.net
    return dataclasses.replace(made, net=net.clone(**dict(zip(("mean_init", "std_init"), values, strict=True))))


def _superres(
    config: ConfigDict, source: Source, mesh: Mesh | None, prior: noise.Prior, shared: dict[str, Any]
) -> SuperResolution:
    """The super-resolution that `model.low_size` asks for. Without layers over frames no frame knows its index."""
    given = config.model
    kind = choose("base.prediction", config.base.prediction, KINDS)
    more = {"frame_embed": bool(config.base.net.temporal), "amplitude_embed": given.low_noise > 0}
    file = pretrained_base(config)
    if file is None:
        net: Any = network(config, "base", source, mesh, **more)
    else:
        file.check(config.noise.schedule, config.noise.steps, config.base.prediction)
        names = ("temporal", "temporal_attention_at", "dropout")
        own = {name: value for name, value in config.base.net.items() if name in names}
        own["temporal_attention_at"] = own["temporal_attention_at"] or None
        net = file.network(
            class_names=source.class_names if labelled(config, source) else (),
            embedding_dim=embedding_dim(config, source), **own, **more, **computation(config, mesh),
        )  # fmt: skip
    return as_user_error(
        lambda: SuperResolution(
            net=net, prior=prior, prediction=kind, loss=choose("base.loss", config.base.loss or kind, KINDS),
            low_size=given.low_size, low_noise=given.low_noise, **shared,
        ),
        {"low size": "model.low_size", "low clips": "model.low_noise", "tiles": "sample.superres_tile", **ZERO_SNR},
    )  # fmt: skip


def image_model(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> OneNetwork:
    """The base generator alone, as an image model: its clips have one frame.

    Its noise is the base noise b, so that sample k is the base frame of the whole model's clip k. Raises UserError as
    `model` does.
    """
    if choose("model.predictor", config.model.predictor, PREDICTORS) != "decomposed":
        raise UserError(
            f"sample.what=base draws images of the base generator, but model.predictor is {config.model.predictor}, "
            "which has none: set --config.sample.what=clips"
        )
    prediction = choose("base.prediction", config.base.prediction, KINDS)
    prior, shared = noise.Decomposed(np.ones(1, np.float32)), _shared(config, source, 1, 0)
    net = base_network(config, source, mesh)
    made = as_user_error(
        lambda: OneNetwork(net=net, prior=prior, prediction=prediction, **shared),
        ZERO_SNR,
    )
    _check_shapes(config, made)
    return made


def file_model(config: ConfigDict, mesh: Mesh | None = None) -> tuple[OneNetwork, NoClips]:
    """The image model of the file that `base.pretrained` names, unchanged, and a source without clips of its classes.

    Raises UserError where guidance is asked of a network that was trained without "no class".
    """
    file = pretrained_base(config)
    assert file is not None
    file.check(config.noise.schedule, config.noise.steps, config.base.prediction)
    if config.noise.zero_terminal_snr:
        raise UserError(
            f"{file.path} was trained with another schedule than noise.zero_terminal_snr makes: set it to False"
        )
    sample = config.sample
    if (sample.guidance_scale != 1 or sample.guidance == "cfg_pp") and not file.can_be_guided:
        raise UserError(
            f"sample.guidance_scale is {sample.guidance_scale} by {sample.guidance}, but the network of {file.path} "
            'was trained without "no class": set --config.sample.guidance=cfg --config.sample.guidance_scale=1'
        )
    classes = NoClips(file.class_names)
    made = OneNetwork(
        net=file.original_network(dropout=0.0, **computation(config, mesh)),
        prior=noise.Decomposed(np.ones(1, np.float32)),
        prediction=choose("base.prediction", config.base.prediction, KINDS),
        null_label=file.classes or None, learned_variance=file.fields["learned_variance"], **_common(config, 1, 0),
    )  # fmt: skip
    _check_shapes(config, made)
    return made, classes


def noise_schedule(config: ConfigDict) -> schedules.Schedule:
    """The noise schedule. Raises UserError for an unknown one, or a number of steps that it cannot have."""
    make = choose("noise.schedule", config.noise.schedule, schedules.SCHEDULES)
    words = {"steps": "noise.steps", "schedule": "noise.schedule"}
    made = as_user_error(lambda: make(config.noise.steps), words)
    return schedules.zero_terminal_snr(made) if config.noise.zero_terminal_snr else made


def _check_shapes(config: ConfigDict, made: Model) -> None:
    """Raises UserError for sizes that do not divide, before anything is read or compiled."""
    for name in made.networks:
        fields = {field: f"{name}.net.{field}" for field in config[name].net}
        words = {"size": "data.size", "channels": f"{name}.net.width", **fields}
        as_user_error(functools.partial(made.begins, name), words)


def _shared(config: ConfigDict, source: Source, frames: int, base: int) -> dict[str, Any]:
    """Arguments of every model of the config, for clips of `frames` frames with the base frame at `base`."""
    return _common(config, frames, base) | {
        "null_label": source.num_classes if config.model.condition == "label" else None,
        "embedding_dim": embedding_dim(config, source),
        "readers": texts.readers(config),
        "text_shape": texts.shape(config),
    }


def _common(config: ConfigDict, frames: int, base: int) -> dict[str, Any]:
    """Those arguments of every model that do not depend on the data."""
    size = config.data.size
    return {
        "schedule": noise_schedule(config),
        "shape": (frames, size, size, 3),
        "base_frame": base,
        "condition_dropout": config.model.condition_dropout,
        "loss_weight": config.model.loss_weight,
    }


def _motion(config: ConfigDict, source: Source) -> str:
    """`noise.motion`. Raises UserError for a field that no clip has, or that a mirrored clip has wrong."""
    field = choose("noise.motion", config.noise.motion, {"": "", "label": "label", "motion": "motion"})
    if field == "label" and not source.num_classes:
        raise UserError("noise.motion is label, but the clips have none: set --config.noise.motion=''")
    if field == "motion" and config.data.source != "sprites":
        raise UserError("noise.motion=motion is of the sprites: set --config.noise.motion=label, or ''")
    if field == "motion" and config.data.flip:
        raise UserError("mirrored clips move otherwise than noise.motion says: set --config.data.flip=False")
    return field


def _one_or_all(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(values) == 1 else tuple(values)
