"""The weights from which a job without a checkpoint begins: networks of another run, or a public image model."""

import shlex
from collections.abc import Sequence

from ml_collections import ConfigDict

from vf import files
from vf.config.networks import pretrained_base
from vf.config.specs import Start
from vf.config.values import as_flag, flat, to_json
from vf.pretrained import export
from vf.training import sharding
from vf.types import Params, UserError


def start(
    config: ConfigDict,
    networks: Sequence[str],
    classes: Sequence[str] = (),
    *,
    original: bool = False,
    trains: bool = False,
) -> Start | None:
    """The weights that `init_from`, `base.init_from` or `base.pretrained` names; None where all are empty.

    `init_from` gives all networks of the model their weights, the other two the base network alone.

    Args:
        networks: names of the model's networks.
        classes: names of the run's classes.
        original: whether the file of `base.pretrained` is taken unchanged, as `file_model` needs it.
        trains: whether the job trains: training may continue under another noise prior, sampling may not.

    Raises UserError where it is no trained model, or one that was trained under a config that does not fit this one.
    """
    file = pretrained_base(config)
    if file is not None and not config.init_from and not config.base.init_from:
        names = classes if config.model.condition == "label" else ()

        def read(params: Params) -> Params:
            arrays = file.params(sharding.named(params["base"]), names, original)
            return {"base": export.place_arrays(arrays, params["base"], file.path)}

        return Start(("base",), read, {"from": str(file.path), "family": file.family, "fingerprint": file.fingerprint})
    path = config.init_from or config.base.init_from
    if not path:
        return None
    chosen = tuple(networks) if config.init_from else ("base",)
    trained = export.find(files.path(path))
    _check_trained(config, trained, chosen, classes, trains)
    return Start(chosen, lambda params: trained.read({name: params[name] for name in chosen}), trained.origin())


def _check_trained(
    config: ConfigDict, trained: export.Trained, networks: Sequence[str], classes: Sequence[str], trains: bool
) -> None:
    """Raises UserError, with the flags to set, where `networks` were trained otherwise than `config` says."""
    if config.model.condition == "label" and trained.classes and classes and trained.classes != tuple(classes):
        k = next((k for k, (a, b) in enumerate(zip(trained.classes, classes, strict=False)) if a != b), None)
        difference = "the first are equal"
        if k is not None:
            difference = f"class {k} is {trained.classes[k]} there and {classes[k]} here"
        raise UserError(
            f"the networks in {trained.path} have learned {len(trained.classes)} classes, and these clips have "
            f"{len(classes)} ({difference}): take the data that they were trained on, or start from the base network "
            "alone"
        )
    ours, theirs = flat(to_json(config)), flat(trained.config)
    names = ["noise.schedule", "noise.steps", "model.predictor", "model.condition"]
    # Of all contexts the base network sees an embedding alone.
    if "residual" in networks or "embedding" in (ours["model.context"], theirs["model.context"]):
        names.append("model.context")
    if not trains and ("residual" in networks or config.model.predictor == "one_network"):
        names += ["noise.prior", "noise.lam", "noise.a", "noise.base_frame"]
    for network in networks:
        fields = [name for name in ours if name.startswith(f"{network}.net.") and not name.endswith(".dropout")]
        names += [f"{network}.prediction", *fields]
    # A field that their config lacks did not exist yet when they were trained.
    differing = [name for name in names if name in theirs and ours[name] != theirs[name]]
    if differing:
        shown = differing[:4]
        facts = ", ".join(f"{name} is {as_flag(ours[name])} here and {as_flag(theirs[name])} there" for name in shown)
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        flags = " ".join(f"--config.{name}={shlex.quote(as_flag(theirs[name]))}" for name in shown)
        file = trained.path / ("config.json" if trained.step is not None else "config.py")
        whole = f"its whole config is {file}" if trained.step is not None else f"or take --config={file}"
        raise UserError(
            f"the networks in {trained.path} have learned something else: {facts}{more}; set {flags}, {whole}"
        )
