"""The weights from which a job begins, and whether they have learned what its config says.

They are those of the run's own checkpoints or, where it has none, networks of another run, or a public image model.
"""

import shlex
from collections.abc import Mapping, Sequence

from absl import logging
from ml_collections import ConfigDict

from vf import files
from vf.config import texts
from vf.config.data import named_networks
from vf.config.networks import pretrained_base
from vf.config.specs import Start
from vf.config.values import as_flag, flat, to_json
from vf.files import AnyPath
from vf.nets.initial import Initializer
from vf.pretrained import export
from vf.pretrained.base import SUPERRES
from vf.training import sharding
from vf.types import Params, UserError, counted


def start(
    config: ConfigDict,
    networks: Sequence[str],
    classes: Sequence[str] = (),
    *,
    original: bool = False,
    trains: bool = False,
    begins: Mapping[str, Initializer] | None = None,
) -> Start | None:
    """The weights that `init_from`, `base.init_from` or `base.pretrained` names; None where all are empty.

    `init_from` gives all networks of the model their weights, the other two the base network alone.

    Args:
        networks: names of the model's networks.
        classes: names of the run's classes.
        original: whether the file of `base.pretrained` is taken unchanged, as `file_model` needs it.
        trains: whether the job trains: training may continue under another noise prior, sampling may not.
        begins: how the parameters of the base network begin, by path, for those that a file of super-resolution has
            not; None for no such file.

    Raises UserError where it is no trained model, or one that was trained under a config that does not fit this one.
    """
    file = pretrained_base(config)
    if file is not None and not config.init_from and not config.base.init_from:
        names = classes if config.model.condition == "label" else ()
        added = begins if begins is not None and file.family == SUPERRES else {}

        def read(params: Params) -> Params:
            shapes = sharding.named(params["base"])
            drawn = {path: one.draw(config.seed, f"base/{path}", shapes[path].shape) for path, one in added.items()}
            arrays = file.params(shapes, names, original, drawn)
            return {"base": export.place_arrays(arrays, params["base"], file.path)}

        return Start(("base",), read, {"from": str(file.path), "family": file.family, "fingerprint": file.fingerprint})
    trained = named_networks(config)
    if trained is None:
        return None
    chosen = tuple(networks) if config.init_from else ("base",)
    _check_conditions(config, trained, classes)
    if differing := _differing(config, trained, chosen, trains=trains):
        raise _learned_otherwise(config, trained, differing)
    return Start(chosen, lambda params: trained.read({name: params[name] for name in chosen}), trained.origin())


def check_resumed(
    config: ConfigDict, trained: export.Trained, networks: Sequence[str], classes: Sequence[str], *, trains: bool
) -> None:
    """Checks `config` against the config of the run's own checkpoints, and logs how else the two differ.

    Args:
        trained: what the run has trained so far.
        networks: names of the model's networks.
        classes: names of the clips' classes.
        trains: whether the job trains. A run keeps its noise prior: another one is for another run, by `init_from`.

    Raises UserError where `networks` have learned something else than `config` says.
    """
    if not trained.config:
        logging.warning(
            "%s has no config.json: whether its networks have learned what this config says is not checked",
            trained.path,
        )
        return
    _check_conditions(config, trained, classes)
    if differing := _differing(config, trained, networks, trains=False):
        movable = trains and not _differing(config, trained, networks, trains=True)
        other = f"--config.init_from={shlex.quote(str(trained.path))} with another --workdir trains on from its weights"
        raise _learned_otherwise(config, trained, differing, f", or {other}" if movable else "")
    ours, theirs = flat(to_json(config)), flat(trained.config)
    unused = () if trains else ("train.",)
    facts = [
        f"{name} is {as_flag(value) or 'empty'} (was {as_flag(theirs[name]) or 'empty'})"
        for name, value in ours.items()
        if name in theirs
        and value != theirs[name]
        and not name.startswith(("plan.", "eval.checkpoint", "eval.patience", *unused))
    ]
    if facts:
        logging.info("the config differs from that of step %d: %s", trained.step, ", ".join(facts))


def guide(config: ConfigDict, networks: Sequence[str], workdir: AnyPath, classes: Sequence[str] = ()) -> Start | None:
    """The weights that `sample.guide` names: of a step of the run in `workdir`, or of a folder; None where it is empty.

    Raises UserError where there are none, or they have learned something else than `config` says, or nothing is guided.
    """
    if not (name := config.sample.guide):
        return None
    scales = {scale for _, scale in _guidance_scales(config, networks).values()}
    if scales == {1} and config.sample.guidance != "cfg_pp":
        raise UserError(
            f"sample.guide is {name}, but nothing is guided at a scale of 1: set --config.sample.guidance_scale=2"
        )
    trained = export.find(workdir, int(name)) if name.isdecimal() else export.find(files.path(name))
    _check_conditions(config, trained, classes)
    if differing := _differing(config, trained, networks, trains=False):
        raise _learned_otherwise(config, trained, differing)
    return Start(
        tuple(networks), lambda params: trained.read({name: params[name] for name in networks}), trained.origin()
    )


def check_guidance(
    config: ConfigDict, networks: Sequence[str], trained: export.Trained | None, *, trains: bool
) -> None:
    """Raises UserError where guidance is asked of a network that has no condition, or does not know its absence.

    A network knows it from training that drops the condition of some clips (model.condition_dropout): that of the run
    so far, of the weights that it starts from, or of the job itself. The base network may also know it as a public
    image model does.

    Args:
        networks: names of the model's networks.
        trained: what the run has trained so far; None where it has no checkpoint.
        trains: whether the job trains.
    """
    own = config.sample.residual_guidance_scale
    if own != -1 and config.model.predictor != "decomposed":
        raise UserError(
            f"sample.residual_guidance_scale is {own}, but {config.model.predictor} has no residual network: set "
            "--config.sample.residual_guidance_scale=-1"
        )
    if config.sample.guide:
        return  # a worse network takes the place of the absent condition
    for network, (field, asked) in _guidance_scales(config, networks).items():
        if asked == 1 and config.sample.guidance != "cfg_pp":
            continue
        is_condition = config.model.context == "embedding" and network != "prior"  # which draws it
        if config.model.condition == "none" and not is_condition:
            raise UserError(
                f"sample.{field} is {asked}, but the model has no condition to be guided to (model.condition is none): "
                f"set --config.sample.{field}=1, or train with --config.model.condition=label"
            )
        if not _knows_absence(config, network, trained, trains=trains):
            raise UserError(
                f"sample.{field} is {asked}, but the {network} network was never trained without its condition "
                f"(model.condition_dropout was 0): set --config.sample.{field}=1, or train with "
                "--config.model.condition_dropout=0.1"
            )


def _guidance_scales(config: ConfigDict, networks: Sequence[str]) -> dict[str, tuple[str, float]]:
    """{network: (field of `sample`, scale of guidance)}."""
    scale, own = config.sample.guidance_scale, config.sample.residual_guidance_scale
    fields = dict.fromkeys(("base", "prior"), ("guidance_scale", scale))
    fields |= {"residual": ("residual_guidance_scale", scale if own == -1 else own)}
    return {network: fields[network] for network in networks}


def _knows_absence(config: ConfigDict, network: str, trained: export.Trained | None, *, trains: bool) -> bool:
    """Whether `network` was, or is to be, trained without its condition too; true where no config says."""
    if trains and config.model.condition_dropout > 0:
        return True
    file = pretrained_base(config)
    if network == "base" and file is not None and file.can_be_guided:
        return True
    path = config.init_from or (config.base.init_from if network == "base" else "")
    if trained is None and path:
        trained = export.find(files.path(path))
    if trained is None:
        return False
    return not trained.config or trained.config["model"]["condition_dropout"] > 0


def check_history(config: ConfigDict, trained: export.Trained | None) -> None:
    """Raises UserError where a residual generator is to be shown clean frames that has never seen any in training."""
    if not config.sample.history:
        return
    if not (config.sample.known or config.sample.length > config.data.frames):
        raise UserError(
            "sample.history is of known frames: set --config.sample.known, --config.sample.length, or "
            "--config.sample.history=0"
        )
    if trained is None and config.init_from:
        trained = export.find(files.path(config.init_from))
    theirs = trained.config["train"].get("known_share", 0) if trained is not None and trained.config else 0
    if not theirs:
        raise UserError(
            f"sample.history={config.sample.history} shows the residual generator clean frames, which it never saw "
            "in training: set --config.sample.history=0, or train with --config.train.known_share=0.5"
        )


def _check_conditions(config: ConfigDict, trained: export.Trained, classes: Sequence[str]) -> None:
    """Raises UserError where the networks were trained on other classes than these, or texts of another encoder."""
    found, learned = texts.encoder(config), trained.about.get("text_encoder")
    if found and learned and found.fingerprint != learned:
        raise UserError(
            f"the networks in {trained.path} have learned the texts of another encoder (its fingerprint was {learned}, "
            f"and that of {config.text.encoder} is {found.fingerprint}): name that one by --config.text.encoder"
        )
    if config.model.condition != "label" or not trained.classes or not classes or trained.classes == tuple(classes):
        return
    k = next((k for k, (a, b) in enumerate(zip(trained.classes, classes, strict=False)) if a != b), None)
    difference = "the first are equal"
    if k is not None:
        difference = f"class {k} is {trained.classes[k]} there and {classes[k]} here"
    raise UserError(
        f"the networks in {trained.path} have learned {counted(len(trained.classes), 'class')}, and these clips "
        f"have {len(classes)} ({difference}): take the data that they were trained on, or start from the base network "
        "alone"
    )


def _differing(config: ConfigDict, trained: export.Trained, networks: Sequence[str], *, trains: bool) -> list[str]:
    """Names of the fields that `networks` have learned otherwise than `config` says.

    trains: whether they are to be trained on: then noise prior and clip size may be others.
    """
    ours, theirs = flat(to_json(config)), flat(trained.config)
    names = ["noise.schedule", "noise.steps", "model.predictor", "model.condition", "model.low_size"]
    if (ours["model.low_noise"] > 0) != (theirs.get("model.low_noise", 0) > 0):  # whether networks are told of noise
        names.append("model.low_noise")
    # Of all contexts the base network sees an embedding alone.
    if "residual" in networks or "embedding" in (ours["model.context"], theirs["model.context"]):
        names.append("model.context")
    if not trains:
        names += ["data.size", "noise.zero_terminal_snr"]  # a network may be trained on under the rescaled schedule
        if "residual" in networks or config.model.predictor == "one_network":
            names += ["data.frames", "noise.prior", "noise.lam", "noise.a", "noise.base_frame"]
    if config.model.condition == "text" and "residual" in networks:
        names.append("residual.text")
    for network in networks:
        fields = [name for name in ours if name.startswith(f"{network}.net.") and not name.endswith(".dropout")]
        names += [f"{network}.prediction", *fields]
    # A field that their config lacks did not exist yet when they were trained.
    return [name for name in names if name in theirs and ours[name] != theirs[name]]


def _learned_otherwise(
    config: ConfigDict, trained: export.Trained, differing: Sequence[str], alternative: str = ""
) -> UserError:
    """The error for networks that have learned something else, with the flags to set and any `alternative` to them."""
    ours, theirs = flat(to_json(config)), flat(trained.config)
    shown = differing[:4]
    facts = ", ".join(f"{name} is {as_flag(ours[name])} here and {as_flag(theirs[name])} there" for name in shown)
    more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
    flags = " ".join(f"--config.{name}={shlex.quote(as_flag(theirs[name]))}" for name in differing)
    file = trained.path / ("config.json" if trained.step is not None else "config.py")
    whole = f"its whole config is {file}" if trained.step is not None else f"or take --config={file}"
    return UserError(
        f"the networks in {trained.path} have learned something else: {facts}{more}; set {flags}, {whole}{alternative}"
    )
