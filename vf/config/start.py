"""What a job without a checkpoint of its own begins from: networks that were trained before, here or elsewhere."""

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
    here, there = flat(to_json(config)), flat(found.config)
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
        told = ", ".join(f"{name} is {as_flag(here[name])} here and {as_flag(there[name])} there" for name in shown)
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        flags = " ".join(f"--config.{name}={shlex.quote(as_flag(there[name]))}" for name in shown)
        file = found.path / ("config.json" if found.step is not None else "config.py")
        whole = f"its whole config is {file}" if found.step is not None else f"or take --config={file}"
        raise UserError(f"the networks in {found.path} have learned something else: {told}{more}; set {flags}, {whole}")
