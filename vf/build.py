"""From a config to typed objects. The only reader of `ConfigDict`: everything below takes keyword arguments."""

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf import export, files, optim, sharding
from vf import state as states
from vf.data import remote
from vf.data.clips import STARTS, Windows
from vf.data.folder import VideoFolder
from vf.data.pipeline import NoClips, Source
from vf.data.share import Share
from vf.data.sprites import Sprites
from vf.diffusion import decompose, gaussian, priors
from vf.diffusion import schedule as schedules
from vf.metrics.features import default_cache
from vf.metrics.fvd import LINEAGES
from vf.metrics.protocol import ClipProtocol, Evaluator, protocol_hash
from vf.metrics.random_conv3d import RandomConv3dDistance
from vf.metrics.sprites import SpriteScores
from vf.metrics.suite import SEGMENTS, Suite, metrics
from vf.model import CONTEXTS, Model, OneNetwork, SampleOptions, VideoFusion
from vf.nets.unet import UNet
from vf.plan.targets import parse_target
from vf.pretrained import base as pretrained
from vf.pretrained import i3d
from vf.pretrained.networks import FAMILIES, networks
from vf.types import Params, UserError, naming_flags

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
KINDS: dict[str, gaussian.Prediction] = {kind: kind for kind in gaussian.PREDICTIONS}
ATTENTION = {name: name for name in ("auto", "xla", "cudnn")}
PREDICTORS = {predictor: predictor for predictor in ("decomposed", "one_network")}
TFDS = "tfds:"  # before the name of a data set that TFDS itself prepares
Part = Literal["training", "validation", "reference"]
T = TypeVar("T")


def choose(name: str, value: str, known: Mapping[str, T]) -> T:
    """known[value]; UserError that lists what is known otherwise."""
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return known[value]


def said(make: Callable[[], T]) -> T:
    """make(), with a ValueError about a value turned into the UserError that `vf.main` prints."""
    try:
        return make()
    except ValueError as error:
        raise UserError(str(error)) from error


def base_frame(config: ConfigDict) -> int:
    """Array index of the base frame: `noise.base_frame`, or the paper's where that is -1."""
    paper = said(lambda: decompose.base_index(config.data.frames))
    return paper if config.noise.base_frame == -1 else config.noise.base_frame


def source(config: ConfigDict, part: Part = "training") -> Source:
    """The clips of one part of the data.

    training: those that steps see. validation: those of the validation losses, which lend their embeddings to samples;
    no step sees them, unless `validation_is_seen`. reference: those that distances compare samples with. The last two
    are one window a video, the middle one. Raises UserError where a part is empty, or steps would see a clip of a named
    validation set.
    """
    data = config.data
    if data.source == "sprites":
        split = "train" if part == "training" else "test"
        return Sprites(frames=data.frames, size=data.size, base=base_frame(config), split=split)
    if data.source == "none":
        path = config.init_from or config.base.init_from
        return NoClips(export.find(files.path(path)).classes if path else ())
    start = choose("data.windows", data.windows, {known: known for known in STARTS}) if part == "training" else "centre"
    windows = said(lambda: Windows(data.frames, data.stride, data.fps, start, data.hop))
    where, kind = _located(config)
    field, share = _selection(config, part, kind)
    group, name = field.split(".")
    chosen, validation = config[group][name], data[f"validation_{kind}"]
    if kind == "split_file":
        without = validation if field == "data.split_file" else ""
        return VideoFolder(
            where, windows=windows, size=data.size, split_file=chosen or None, without=without or None, share=share
        )
    if both := set(validation.split("+")) & set(data.split.split("+")):
        raise UserError(
            f"data.split={data.split} trains on {min(both)}, which data.validation_split={validation} names: name "
            "another split by --config.data.validation_split, or none for a share of the training videos"
        )
    if data.source.startswith(TFDS):
        if share is not None:
            raise UserError(
                f"the clips of {data.source} have no names to choose a validation set by: name one of its splits by "
                "--config.data.validation_split=test"
            )
        from vf.data.tfds_video import TfdsVideos  # needs TensorFlow

        return TfdsVideos(data.source.removeprefix(TFDS), windows=windows, size=data.size, split=chosen)
    from vf.data.manifest import read_manifest
    from vf.data.prepared import Prepared

    known = read_manifest(Path(where))["splits"]
    if missing := [split for split in chosen.split("+") if split not in known]:
        none = ", or none for a share of the training videos" if part == "validation" else ""
        raise UserError(
            f"{data.source} has no split {missing[0]!r}: known are {', '.join(known)}; name one of these by "
            f"--config.{field}{none}"
        )
    base = base_frame(config) if config.model.context == "embedding" else None
    made = Prepared(where, windows=windows, split=chosen, base_frame=base, share=share)
    if made.size != data.size:
        raise UserError(
            f"{data.source} was prepared at {made.size} pixels, and data.size is {data.size}: set "
            f"--config.data.size={made.size}, or prepare again with --size={data.size}"
        )
    return made


def _located(config: ConfigDict) -> tuple[str, Literal["split", "split_file"]]:
    """Where the videos of `data.source` are on this machine, and the field that chooses among them."""
    given = config.data.source
    if given.startswith(TFDS):
        return given, "split"
    where = str(remote.at_hand(given)) if files.is_remote(given) else given
    return where, "split" if (Path(where) / "manifest.json").exists() else "split_file"


def _selection(config: ConfigDict, part: Part, kind: Literal["split", "split_file"]) -> tuple[str, Share | None]:
    """The field that names the split, or the list, of `part`, and which share of its videos that is (None for all)."""
    data = config.data
    named = data[f"validation_{kind}"]
    if part == "validation" and named:
        return f"data.validation_{kind}", None
    if part == "reference" and config.eval[f"reference_{kind}"]:
        return f"eval.reference_{kind}", None
    share = Share(data.validation_share, part == "validation") if data.validation_share and not named else None
    return f"data.{kind}", share


def validation_is_seen(config: ConfigDict) -> bool:
    """Whether the validation clips are clips that steps see: none are named, and `data.validation_share` is 0."""
    data = config.data
    if data.source in ("sprites", "none") or data.validation_share:
        return False
    return not data[f"validation_{_located(config)[1]}"]


def check_validation(config: ConfigDict, workdir: files.AnyPath, fresh: bool) -> None:
    """Raises UserError where earlier steps have trained on clips of the validation set, as far as their config tells.

    These are steps of the run in `workdir`, which has a checkpoint unless it is `fresh`, and then of the networks that
    the run starts from.
    """
    began, data = config.init_from or config.base.init_from, config.data
    path = files.path(began) if fresh and began else workdir
    if (fresh and not began) or data.source in ("sprites", "none") or not (path / "config.json").is_file():
        return
    then, kind = export.find(path).config["data"], _located(config)[1]
    if then["source"] != data.source or validation_is_seen(config):
        return
    named, left_out = data[f"validation_{kind}"], then.get(f"validation_{kind}", "")
    chosen, trained = named or data[kind], then[kind]

    def parts(text: str) -> set[str]:
        return set(text.split("+")) if kind == "split" else {text}

    if chosen and trained and not parts(chosen) & parts(trained):
        return
    share = then.get("validation_share", 0.0)  # before there was such a field, all were trained on
    if named != left_out or (not named and data.validation_share > share):
        raise UserError(
            f"steps of {path} have trained on clips that are the validation set here: set "
            f"--config.data.validation_{kind}={left_out} --config.data.validation_share={share:g} as there, or begin "
            "another run"
        )


def network(config: ConfigDict, net: ConfigDict, source: Source, mesh: Mesh | None = None, **changes: Any) -> UNet:
    """One U-Net, with the fields that the whole model decides."""
    fields = net.to_dict()
    fields["temporal_attention_at"] = fields["temporal_attention_at"] or None
    if labelled(config, source):
        fields |= {"num_classes": source.num_classes, "null_class": True}
    return UNet(**fields | changes, cond_dim=embedding_dim(config, source), **_computation(config, mesh))


def _computation(config: ConfigDict, mesh: Mesh | None) -> dict[str, Any]:
    """How networks compute, whichever they are."""
    given = config.model
    dtype = choose("model.dtype", given.dtype, DTYPES)
    how = {"dtype": dtype, "remat": given.remat, "scan": given.scan}
    how["attention_kernel"] = attention_kernel(choose("model.attention", given.attention, ATTENTION), dtype, mesh)
    return how if mesh is None else how | {"place": sharding.placing(mesh)}


def param_dtype(config: ConfigDict) -> Any:
    """What parameters are kept in."""
    return choose("model.param_dtype", config.model.param_dtype, DTYPES)


def attention_kernel(wanted: str, dtype: Any, mesh: Mesh | None = None) -> str:
    """The attention that runs on the mesh's devices (default: on this machine's): the fused one where it does, unless
    `wanted` says otherwise. Raises UserError where the one that is wanted does not run there."""
    if wanted == "xla":
        return wanted
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    reason = None
    if platform not in ("gpu", "cuda"):
        reason = f"it is a kernel of NVIDIA GPUs, and this is {platform}"
    elif dtype != jnp.bfloat16:
        reason = "it computes in bfloat16: set --config.model.dtype=bfloat16"
    else:
        try:
            _try_cudnn()
        except Exception as error:  # whatever the driver, the library or the compiler have to say
            reason = f"it does not run here ({str(error).splitlines()[0]:.200})"
            logging.warning("attention is XLA's own, not cuDNN's: %s", reason)
    if reason and wanted == "cudnn":
        raise UserError(f"model.attention is cudnn, but {reason}; or take --config.model.attention=auto")
    return "xla" if reason else "cudnn"


def _try_cudnn() -> None:
    """Attention, and its gradient, at the shapes of a small network."""
    x = jnp.zeros((2, 64, 2, 64), jnp.bfloat16)

    def total(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").astype(jnp.float32).sum()

    jax.block_until_ready(jax.jit(jax.grad(total))(x))


def labelled(config: ConfigDict, source: Source) -> bool:
    """Whether networks are told classes. Raises UserError where the clips have none."""
    wanted = choose("model.condition", config.model.condition, {"none": False, "label": True})
    if wanted and not source.num_classes:
        raise UserError("model.condition is label, but the clips have none: arrange them as DIR/<Class>/<clip>")
    return wanted


def base_network(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> nn.Module:
    """The base generator: that of the converted file where `base.pretrained` names one, else `base.net`."""
    file = pretrained_base(config)
    if file is None:
        return network(config, config.base.net, source, mesh)
    file.check(config.noise.schedule, config.noise.steps, config.base.prediction)
    return file.network(
        class_names=source.class_names if labelled(config, source) else (),
        embedding_dim=embedding_dim(config, source), dropout=config.base.net.dropout,
        **_computation(config, mesh),
    )  # fmt: skip


def pretrained_base(config: ConfigDict) -> pretrained.Base | None:
    """What `base.pretrained` names, None for nothing. Raises UserError where it is no converted base generator."""
    return pretrained.open_base(files.path(config.base.pretrained)) if config.base.pretrained else None


def resolved(config: ConfigDict, workdir: files.AnyPath, fresh: bool = True) -> ConfigDict:
    """A copy of `config` that says what the base network is where a converted file decides it.

    Where that file has gone, runs that began with it still know what it said.

    Args:
        fresh: there is no checkpoint in `workdir`.

    Raises UserError as `pretrained_base`, and for another file than the run began with.
    """
    config = config.copy_and_resolve_references()
    if not config.base.pretrained:
        return config
    kept = [workdir / pretrained.HEADER]
    if config.init_from:
        kept += [files.path(config.init_from) / name for name in (pretrained.HEADER, "base.safetensors")]
    if not files.path(config.base.pretrained).exists() and (known := [path for path in kept if path.is_file()]):
        logging.warning("%s has gone; the base network is built as %s says", config.base.pretrained, known[0])
        config.base.pretrained = str(known[0])
    file = pretrained_base(config)
    assert file is not None
    if not fresh and kept[0].is_file() and (began := pretrained.open_base(kept[0])).fingerprint != file.fingerprint:
        raise UserError(
            f"{file.path} is not what the run in {workdir} began with (fingerprint {file.fingerprint}, and it was "
            f"{began.fingerprint}): name that file, or another --workdir"
        )
    if (size := file.about.get("image_size", config.data.size)) != config.data.size:
        logging.warning("%s was trained on %d pixels, and data.size is %d", file.path, size, config.data.size)
    config.base.net.update(file.fields)
    return config


def embedding_dim(config: ConfigDict, source: Source) -> int:
    """Channels of the records' embedding of the clean base frame where the model uses it, else 0."""
    if choose("model.context", config.model.context, {c: c for c in CONTEXTS}) != "embedding":
        return 0
    dim = getattr(source, "embedding_dim", 0)
    if not dim:
        raise UserError(
            "model.context is embedding, but these records have no embedding of the base frame: "
            "take --config.model.context=base_frame, or data with an `embedding` field"
        )
    return dim


def model(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> Model:
    """The model that `config` names, for clips of `source`, that computes on `mesh` (None: on one device).

    Raises UserError where values do not fit together."""
    data, noise = config.data, config.noise
    base = base_frame(config)
    lam = said(lambda: decompose.make_lambda(_one_or_all(noise.lam), data.frames, base))
    shared = _shared(config, source, data.frames, base)
    base_prediction = choose("base.prediction", config.base.prediction, KINDS)
    base_loss = choose("base.loss", config.base.loss or base_prediction, KINDS)
    draws: dict[str, Callable[[], priors.Prior]] = {
        "decomposed": lambda: priors.Decomposed(lam),
        "independent": priors.Independent,
        "mixed": lambda: priors.Mixed(noise.a),
        "progressive": lambda: priors.Progressive(noise.a),
    }
    prior = choose("noise.prior", noise.prior, draws)()
    if choose("model.predictor", config.model.predictor, PREDICTORS) == "one_network":
        net = network(config, config.base.net, source, mesh, frame_embed=True)
        made: Model = OneNetwork(net=net, prior=prior, prediction=base_prediction, loss=base_loss, **shared)
    else:
        if not isinstance(prior, priors.Decomposed):
            raise UserError(
                f"model.predictor=decomposed predicts the parts of decomposed noise, but noise.prior is "
                f"{noise.prior}: set --config.noise.prior=decomposed, or --config.model.predictor=one_network"
            )
        residual_prediction = choose("residual.prediction", config.residual.prediction, KINDS)
        made = said(
            lambda: VideoFusion(
                base=base_network(config, source, mesh),
                residual=network(config, config.residual.net, source, mesh, frame_embed=True),
                lam=lam,
                base_prediction=base_prediction,
                residual_prediction=residual_prediction,
                base_loss=base_loss,
                residual_loss=choose("residual.loss", config.residual.loss or residual_prediction, KINDS),
                base_images=config.base.images,
                context=config.model.context,
                context_noise=config.model.context_noise,
                **shared,
            )
        )
    said(lambda: shapes(made))  # sizes that do not divide are told here, before anything is read or compiled
    return made


def image_model(config: ConfigDict, source: Source, mesh: Mesh | None = None) -> OneNetwork:
    """The base generator alone, which is an image model: clips of one frame. Raises UserError as `model` does.

    Its noise is the base noise b, so that sample k is the base frame of the model's clip k."""
    if choose("model.predictor", config.model.predictor, PREDICTORS) == "one_network":
        raise UserError(
            "sample.what=base draws images of the base generator, but model.predictor is one_network, which is no "
            "image model: set --config.sample.what=clips"
        )
    made = OneNetwork(
        net=base_network(config, source, mesh), prior=priors.Decomposed(np.ones(1, np.float32)),
        prediction=choose("base.prediction", config.base.prediction, KINDS), **_shared(config, source, 1, 0),
    )  # fmt: skip
    said(lambda: shapes(made))
    return made


def file_model(config: ConfigDict, mesh: Mesh | None = None) -> tuple[OneNetwork, NoClips]:
    """The image model of the file that `base.pretrained` names, as it is there, and its classes; needs no clips.

    Raises UserError where guidance is asked of a network that knows no absence of a class."""
    file = pretrained_base(config)
    assert file is not None
    file.check(config.noise.schedule, config.noise.steps, config.base.prediction)
    if config.sample.guidance_scale != 1 and not file.can_be_guided:
        raise UserError(
            f"sample.guidance_scale is {config.sample.guidance_scale}, but the network of {file.path} was trained "
            'without "no class": set --config.sample.guidance_scale=1'
        )
    classes = NoClips(file.class_names)
    made = OneNetwork(
        net=file.own_network(dropout=0.0, **_computation(config, mesh)),
        prior=priors.Decomposed(np.ones(1, np.float32)),
        prediction=choose("base.prediction", config.base.prediction, KINDS),
        null_label=file.classes or None, **_common(config, 1, 0),
    )  # fmt: skip
    said(lambda: shapes(made))
    return made, classes


def _shared(config: ConfigDict, source: Source, frames: int, base: int) -> dict[str, Any]:
    """What every model of the config has in common, for clips of `frames` frames with the base frame at `base`."""
    return _common(config, frames, base) | {
        "null_label": source.num_classes if config.model.condition == "label" else None,
        "embedding_dim": embedding_dim(config, source),
    }


def _common(config: ConfigDict, frames: int, base: int) -> dict[str, Any]:
    """The part of it that no clips decide."""
    size, noise = config.data.size, config.noise
    return {
        "schedule": said(lambda: choose("noise.schedule", noise.schedule, schedules.SCHEDULES)(noise.steps)),
        "shape": (frames, size, size, 3),
        "base_frame": base,
        "condition_dropout": config.model.condition_dropout,
        "loss_weight": config.model.loss_weight,
    }


def shapes(model: Model) -> Any:
    """Shapes and dtypes of the parameters, computed without making them."""
    return jax.eval_shape(model.init, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Start:
    """Networks that were trained before, here or elsewhere, for a job that finds no checkpoint.

    Attributes:
        networks: which of the model's they are.
        read: {network: tree of ShapeDtypeStruct with shardings} -> {network: tree of arrays}, of `networks` alone.
        origin: which weights they are, ready for JSON.
    """

    networks: tuple[str, ...]
    read: Callable[[Params], Params]
    origin: Mapping[str, Any]


def start(
    config: ConfigDict, networks: Sequence[str], classes: Sequence[str] = (), *, own: bool = False, trains: bool = False
) -> Start | None:
    """What `init_from` names, for all `networks` of the model, or what gives the base its parameters: `base.init_from`,
    or else the file of `base.pretrained`. None where there is nothing of the kind.

    Args:
        classes: names of the run's classes.
        trains: training may go on under other noise.
        own: take the file of `base.pretrained` as it is, for `file_model`.

    Raises UserError where it is no trained model, or one that learned something else than this config says."""
    file = pretrained_base(config)
    if file is not None and not config.init_from and not config.base.init_from:
        names = classes if config.model.condition == "label" else ()

        def read(params: Params) -> Params:
            arrays = file.params(sharding.named(params["base"]), names, own)
            return {"base": export.place(arrays, params["base"], file.path)}

        return Start(("base",), read, {"from": str(file.path), "family": file.family, "fingerprint": file.fingerprint})
    path = config.init_from or config.base.init_from
    if not path:
        return None
    chosen = tuple(networks) if config.init_from else ("base",)
    found = export.find(files.path(path))
    _check_learned(config, found, chosen, classes, trains)
    return Start(chosen, lambda params: found.read({name: params[name] for name in chosen}), found.origin())


def _check_learned(
    config: ConfigDict, found: export.Trained, networks: Sequence[str], classes: Sequence[str], trains: bool
) -> None:
    """Raises UserError, with the flags to set, where `networks` have learned something else than `config` says."""
    if config.model.condition == "label" and found.classes and classes and found.classes != tuple(classes):
        k = next((k for k, (a, b) in enumerate(zip(found.classes, classes, strict=False)) if a != b), None)
        told = (
            f"class {k} is {found.classes[k]} there and {classes[k]} here" if k is not None else "the first are equal"
        )
        raise UserError(
            f"the networks in {found.path} have learned {len(found.classes)} classes, and these clips have "
            f"{len(classes)} ({told}): take the data that they were trained on, or start from the base network alone"
        )
    here, there = _flat(plain(config)), _flat(found.config)
    names = ["noise.schedule", "noise.steps", "model.predictor", "model.condition"]
    # The base network sees no context but an embedding.
    if "residual" in networks or "embedding" in (here["model.context"], there["model.context"]):
        names.append("model.context")
    if not trains and ("residual" in networks or config.model.predictor == "one_network"):
        names += ["noise.prior", "noise.lam", "noise.a", "noise.base_frame"]
    for network in networks:
        fields = [name for name in here if name.startswith(f"{network}.net.") and not name.endswith(".dropout")]
        names += [f"{network}.prediction", *fields]
    # A field that is not told was not there yet when they were trained.
    differing = [name for name in names if name in there and here[name] != there[name]]
    if differing:
        shown = differing[:4]
        told = ", ".join(f"{name} is {_flag(here[name])} here and {_flag(there[name])} there" for name in shown)
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        flags = " ".join(f"--config.{name}={shlex.quote(_flag(there[name]))}" for name in shown)
        file = found.path / ("config.json" if found.step is not None else "config.py")
        whole = f"its whole config is {file}" if found.step is not None else f"or take --config={file}"
        raise UserError(f"the networks in {found.path} have learned something else: {told}{more}; set {flags}, {whole}")


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a.b.c: value} of nested dicts."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _flag(value: Any) -> str:
    """A value of a config as a flag takes it."""
    if isinstance(value, list):
        return f"({','.join(map(json.dumps, value))}{',' if len(value) == 1 else ''})"
    return str(value)


def _one_or_all(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(values) == 1 else tuple(values)


def optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, Callable[[Any], dict[str, Any]]]:
    """The optimizer, and finished updates -> learning rates for the log."""
    train = config.train
    rates: dict[str, Any] = {
        "lr": {"base": train.lr_base, "residual": train.lr_residual},
        "schedule": train.schedule,
        "warmup_steps": train.warmup_steps,
        "total_steps": train.steps,
        "frozen": ("base",) if train.freeze_base else (),
    }
    if train.freeze_base and config.model.predictor == "one_network":
        raise UserError("train.freeze_base leaves one_network nothing to train: set it to False")
    tx = optim.make(
        **rates, weight_decay=train.weight_decay, b1=train.b1, b2=train.b2, eps=train.eps,
        clip_norm=train.clip_norm or None,
    )  # fmt: skip
    return tx, optim.learning_rates(**rates)


def mesh(config: ConfigDict, mode: str = "") -> Mesh:
    """The mesh of all devices. Raises UserError where it does not fit them, or a batch of a job of `mode` not it."""
    made = sharding.make_mesh(**{axis: config.mesh[axis] for axis in sharding.AXES})
    if mode == "train":
        sharding.check_rows(made, "train.batch_size", config.train.batch_size, config.train.accumulate, clips=True)
    for name in {"train": ("sample", "eval"), "evaluate": ("sample", "eval"), "sample": ("sample",)}.get(mode, ()):
        sharding.check_rows(made, f"{name}.batch_size", config[name].batch_size, over=sharding.EVERY)
    return made


def cpu_devices(config: ConfigDict, *, plan: bool = False) -> None:
    """Makes several devices of one CPU where the config asks for it and the environment does not say otherwise; to
    plan, as many as stand in for the target's, here and in the process that compiles.

    XLA runs much of a small network on one core per device: two devices train the demo faster than one with two cores.
    To be called before jax starts; of no effect on accelerators.
    """
    if plan:
        target = parse_target(config.plan.target)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_NUM_CPU_DEVICES"] = str(1 if target.topology_name else target.devices)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
    elif config.mesh.cpu_devices and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)


def sample_options(config: ConfigDict) -> SampleOptions:
    """How to sample. Raises UserError for values out of range."""
    sample = config.sample
    if not 0 <= sample.eta <= 1:
        raise UserError(f"sample.eta must lie in [0, 1] (0 is deterministic DDIM, 1 is DDPM), got {sample.eta}")
    grid = said(lambda: schedules.time_grid(sample.steps, config.noise.steps))
    return SampleOptions(grid, sample.eta, sample.guidance_scale, sample.clip_x_0 or None)


def evaluators(config: ConfigDict) -> dict[str, Evaluator]:
    """What judges samples, by name; sprites are also judged in closed form.

    Raises UserError for unknown metrics, and for weights that are missing or not what they should be."""
    made: dict[str, Evaluator] = {"fd_random_conv3d": RandomConv3dDistance(config.eval.batch_size)}
    if config.data.source == "sprites":
        made["sprites"] = SpriteScores(base_frame(config))
    if config.eval.metrics:
        made["suite"] = _suite(config)
    return made


def _suite(config: ConfigDict) -> Suite:
    data, evaluation = config.data, config.eval
    lineage = choose("eval.lineage", evaluation.lineage, LINEAGES)
    known = metrics(lineage) | {SEGMENTS: metrics(lineage)["fvd"]}
    del known["clipsim"]  # a run has no captions
    names = tuple(name.strip() for name in evaluation.metrics.split(",") if name.strip())
    wanted = [choose("eval.metrics", name, known).network for name in names]
    files = {name: Path(evaluation[name]) for name in FAMILIES if evaluation.get(name)}
    with naming_flags({name: f"--config.eval.{name}" for name in (*FAMILIES, "other_weights")}):
        made, others = networks(
            wanted, files, lineage, data.frames, exact=evaluation.exact, other=evaluation.other_weights
        )
    protocol = ClipProtocol(
        lineage=evaluation.lineage, split=evaluation.reference_split or data.split, frames=data.frames,
        stride=data.stride, fps=data.fps, size=data.size, seed=config.seed,
    )  # fmt: skip
    cache = Path(evaluation.cache) if evaluation.cache else default_cache()
    return Suite(
        names, made, protocol, evaluation.batch_size, cache, evaluation.bootstrap, others,
        keep_generated=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationJob:
    """Which checkpoints to judge, and what the best of them is."""

    checkpoint: Literal["follow", "latest"] | int
    patience: float  # seconds
    best: str
    lowest: bool
    mark: str  # hash of all that makes two evaluations comparable, less the weights


def evaluation_job(config: ConfigDict) -> EvaluationJob:
    """`config.eval`'s part of it. Raises UserError for values out of range."""
    evaluation = config.eval
    which = str(evaluation.checkpoint)
    if not which.isdecimal():
        choose("eval.checkpoint", which, {"follow": 0, "latest": 0, "a step": 0})
    aside = {"checkpoint", "patience", "best", "best_is", "selfcheck", "batch_size", "cache"}
    everything = plain(config)
    judged = {name: everything[name] for name in ("sample", "data", "seed")}
    del judged["sample"]["what"]  # clips, always
    judged["eval"] = {name: value for name, value in everything["eval"].items() if name not in aside}
    return EvaluationJob(
        checkpoint=int(which) if which.isdecimal() else which,  # type: ignore[arg-type]
        patience=evaluation.patience,
        best=evaluation.best,
        lowest=choose("eval.best_is", evaluation.best_is, {"lowest": True, "highest": False}),
        mark=protocol_hash(judged),
    )


def selfcheck(config: ConfigDict) -> dict[str, float]:
    """Checks the weights of I3D by black against white clips. Raises UserError where they are not FVD's."""
    if not config.eval.i3d:
        raise UserError("eval.selfcheck needs the converted weights: set --config.eval.i3d=FILE")
    print(i3d.selfcheck(Path(config.eval.i3d), choose("eval.lineage", config.eval.lineage, LINEAGES)))
    return {}


def check(config: ConfigDict) -> None:
    """Numbers that no later code would explain well. Raises UserError."""
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


def plain(config: ConfigDict) -> dict[str, Any]:
    """The resolved config as JSON can say it."""
    return json.loads(json.dumps(config.copy_and_resolve_references().to_dict(), default=list))


def fingerprint(config: ConfigDict) -> str:
    """First 12 hex digits of the sha256 of the resolved config."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """How many clips, or images of the base generator, to sample, of which classes, in what batches."""

    options: SampleOptions
    count: int
    batch_size: int
    seed: int
    weights: Literal["ema", "params"]
    label: int
    fps: float
    what: Literal["clips", "base"] = "clips"

    def protocol(self) -> dict[str, Any]:
        """What changes the clips, beside the weights."""
        return {
            "sampler": "ddim", "steps": len(self.options.grid) - 1, "eta": self.options.eta,
            "guidance_scale": self.options.guidance_scale, "clip_x_0": self.options.clip_x_0,
            "seed": self.seed, "weights": self.weights, "label": self.label,
        }  # fmt: skip


def sample_job(config: ConfigDict) -> SampleJob:
    """`config.sample`, typed."""
    s = config.sample
    return SampleJob(sample_options(config), s.count, s.batch_size, s.seed, s.weights, s.label, s.fps, s.what)


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is planned: a training run and its sampler. Its model computes on the mesh that it was made for."""

    model: Model
    tx: optax.GradientTransformation
    job: SampleJob
    seed: int
    batch_size: int
    eval_batch_size: int
    accumulate: int
    ema_decay: float
    param_dtype: Any
    dtype: Any
    remat: bool
    blocks: int  # residual blocks a level, of the network that has most

    def state(self) -> Any:
        """Shapes of the training state."""
        return jax.eval_shape(
            lambda key: states.create(self.model.init(key), self.tx, self.param_dtype), jax.random.key(0)
        )


def planned(config: ConfigDict, mesh: Mesh | None, blocks: int | None) -> Planned:
    """`config`'s part of a plan on `mesh` (None: to be counted), with at most `blocks` residual blocks a level."""
    config = config.copy_and_resolve_references()
    nets = (config.base.net, config.residual.net)
    most = max(net.num_res_blocks for net in nets)
    for net in nets:
        net.num_res_blocks = min(net.num_res_blocks, blocks or net.num_res_blocks)
    return Planned(
        model=model(config, plan_source(config), mesh), tx=optimizer(config)[0], job=sample_job(config),
        seed=config.seed, batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size, accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay, param_dtype=param_dtype(config), dtype=DTYPES[config.model.dtype],
        remat=config.model.remat != "none", blocks=most,
    )  # fmt: skip


def plan_source(config: ConfigDict) -> Source:
    """The clips of `config`, or what a plan must know of them where they are not here."""
    try:
        if files.is_remote(config.data.source):
            raise UserError(f"{config.data.source} is not fetched to plan")
        return source(config)
    except UserError as error:
        made = NoClips(tuple(f"class {k}" for k in range(config.plan.classes)), config.plan.embedding_dim)
        asked = (
            ("model.condition", "label", made.num_classes, "classes"),
            ("model.context", "embedding", made.embedding_dim, "embedding_dim"),
        )
        for field, value, given, name in asked:
            group, key = field.split(".")
            if config[group][key] == value and not given:
                raise UserError(f"{field} is {value}, and the data is not here: set --config.plan.{name}=N") from error
        return made


def levels(config: ConfigDict) -> np.ndarray:
    """Steps t of the validation loss, int32."""
    return np.asarray(config.eval.levels, np.int32)


@dataclasses.dataclass(frozen=True)
class Loading:
    """How clips are read; none of it changes which."""

    threads: int
    workers: int
    read_ahead: int
    flip: bool  # this does: every second clip is mirrored


def loading(config: ConfigDict) -> Loading:
    """`config.data`'s part of it. Sprites keep Python itself busy, so that more than one thread only costs."""
    data = config.data
    return Loading(1 if data.source == "sprites" else data.threads, data.workers, data.read_ahead, data.flip)


def plan_settings(config: ConfigDict) -> dict[str, Any]:
    """`config.plan`, less the target. Raises UserError for values out of range."""
    plan = config.plan
    if not plan.target:
        raise UserError(
            "--mode=plan needs a machine: set --config.plan.target=v5e:16x16 (or v5p:2x4x4, gpu:8xH200, cpu:8)"
        )
    choose("plan.compile", plan.compile, {"train,sample": 0, "train": 0, "none": 0})
    own = choose("plan.mesh", plan.mesh, {"best": False, "config": True})
    for name in ("meshes", "minutes", "gigabytes"):
        if plan[name] <= 0:
            raise UserError(f"plan.{name} must be positive, got {plan[name]}")
    return {
        "mesh": tuple(config.mesh[axis] for axis in sharding.AXES) if own else None,
        "compile": plan.compile, "meshes": plan.meshes, "blocks": plan.blocks, "finish": plan.finish,
        "minutes": plan.minutes, "gigabytes": plan.gigabytes,
        "cache": Path(plan.cache) if plan.cache else Path.home() / ".cache/vf/plans",
    }  # fmt: skip


def plan_mark(config: ConfigDict) -> str:
    """Hash of all that changes the compiled programs of a plan."""
    fields = plain(config)
    kept = {name: fields[name] for name in ("data", "noise", "model", "base", "residual", "train", "sample")}
    for name in ("steps", "log_every", "checkpoint_every", "keep", "sample_every"):
        del kept["train"][name]
    kept["plan"] = {name: fields["plan"][name] for name in ("classes", "embedding_dim")}
    return protocol_hash(kept)
