"""Exports the trained networks of a run into one folder, and reads networks from such a folder or from a run.

    base.safetensors, residual.safetensors   averaged weights (one_network: the base network alone; a prior has
                                             prior.safetensors instead)
    config.json                              the resolved config of the run
    config.py                                the same for `vf.main`, which then starts from these weights; of which run
                                             and step they are

`find` opens either kind of folder before any weights are read.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vf import files
from vf.files import AnyPath, make_room
from vf.pretrained import base, weights
from vf.training.checkpoint import Checkpoints, difference, fill, signatures
from vf.training.sharding import named
from vf.types import Params, UserError

FAMILIES = (
    "vf",
    *base.FAMILIES,
)  # of files; a base network that a public format can hold has the family of that format
CONFIG = '''"""The config with which the weights in this folder were trained; its jobs start from these weights.

They are the averaged weights of the run {run} at step {step}.

    python -m vf.main --config={out}/config.py --workdir=runs/new --mode=train|sample|evaluate
"""

from pathlib import Path

from configs import base


def get_config(variant: str = ""):
    config = base.resolved(Path(__file__).with_name("config.json"))
    config.init_from = str(folder := Path(__file__).resolve().parent)
    if config.base.pretrained:  # its header says which network the base is
        config.base.pretrained = str(folder / "base.safetensors")
    config.base.init_from = ""  # the weights in this folder replace it
    return base.vary(config, variant, {{}})
'''


def export(run: Path, out: Path, step: int | None = None) -> None:
    """Writes the averaged weights of a run's checkpoint (default the latest) and its config into the folder `out`.

    The folder appears whole or not at all. Raises UserError where `out` exists or cannot be written, or `run` is not
    the folder of a run with such a checkpoint.
    """
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another place", "out")
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is not the folder of a training run: it has no checkpoints/")
    config = _config(run)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with Checkpoints(str(run / "checkpoints"), read_only=True) as checkpoints:
            meta = checkpoints.meta(step)
            chosen = checkpoints.latest() if step is None else step
            for network, shapes in checkpoints.shapes(step).items():  # one network at a time, since they may be large
                params = checkpoints.restore_params({network: shapes}, step=step)[network]
                arrays = {name: np.asarray(array, np.float32) for name, array in named(params).items()}
                about = _about(network, config) | {"run": run.resolve().name, **_facts_of_run(meta)}
                family, public = _public(run, network, config, arrays, meta) if network == "base" else ("", {})
                weights.save(temporary / f"{network}.safetensors", family or "vf", arrays, {**public, **about})
                del params, arrays
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        origin = {"run": run.resolve().name, "step": f"{chosen:,}"}
        (temporary / "config.py").write_text(CONFIG.format(out=out.as_posix(), **origin))
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}): {make_room(error)}choose another place", "out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _facts_of_run(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in a checkpoint's `meta`, as files of weights name them: there `classes` are rows of a table."""
    return {("class_names" if name == "classes" else name): value for name, value in meta.items()}


def _public(
    run: Path, network: str, config: Mapping[str, Any], arrays: Mapping[str, Any], meta: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """(family, facts) of a base network that public formats can hold; ("", {}) for others."""
    header = base.open_base(file) if (file := run / base.HEADER).is_file() else None
    facts = _about(network, config)
    return base.described(
        arrays, config[network]["net"], schedule=facts["schedule"], prediction=facts["prediction"], header=header,
        image_size=config["data"]["size"], classes=meta.get("classes", []),
    )  # fmt: skip


def _about(network: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a network for its file of weights, which suffice for readers who have that file alone."""
    return {
        "generator": network,
        "net": config[network]["net"],
        "prediction": config[network]["prediction"],
        "schedule": {name: config["noise"][field] for name, field in (("name", "schedule"), ("steps", "steps"))},
        **{name: config["model"][name] for name in ("predictor", "context", "condition")},
    }


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained networks in a folder.

    Attributes:
        path: the folder of a run, or one that `export` wrote.
        config: the resolved config with which they were trained.
        step: step of the run's checkpoint; None for an exported folder.
        about: facts of them: `step`, `seed`, `config` (hash), `class_names` and the like.
    """

    path: AnyPath
    config: Mapping[str, Any]
    step: int | None
    about: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes on which they were trained."""
        return tuple(self.about.get("class_names", ()))

    def origin(self) -> dict[str, Any]:
        """Where the weights come from, ready for JSON."""
        names = ("run", "step", "seed", "config", "fingerprints")
        return {"from": str(self.path), **{name: self.about[name] for name in names if name in self.about}}

    def read(self, params: Params) -> Params:
        """Reads the averaged weights of some networks.

        `params` is {network: tree} of `jax.ShapeDtypeStruct` with shardings, on any mesh. Raises UserError where the
        files are damaged, or their arrays do not match.
        """
        if self.step is not None:
            with Checkpoints(str(self.path / "checkpoints"), read_only=True) as checkpoints:
                return checkpoints.restore_params(params, step=self.step)
        arrays = {}
        for network, tree in params.items():
            path = self.path / f"{network}.safetensors"
            arrays[network] = place_arrays(weights.load(path, _peek(path).family).arrays, tree, path)
        return arrays


def find(path: AnyPath, step: int | None = None) -> Trained:
    """Opens the networks in the folder of a run (those of its checkpoint at `step`, by default the latest), or in one
    that `export` wrote.

    Raises UserError where it is neither, or its config or weights files are damaged.
    """
    if (path / "checkpoints").is_dir():
        with Checkpoints(str(path / "checkpoints"), read_only=True) as checkpoints:
            step = checkpoints.latest() if step is None else step
            about = _facts_of_run(checkpoints.meta(step))  # raises where there is none
        return Trained(path, _config(path), step, about)
    if not any((path / f"{network}.safetensors").exists() for network in ("base", "prior")):
        lacks = "holds neither checkpoints/ nor base.safetensors" if path.is_dir() else "is no folder"
        raise UserError(f"{path} {lacks}: name the folder of a run, or what was exported of one", "trained")
    if files.is_remote(path):
        raise UserError(
            f"{path} holds exported weights, which are read from a disk alone: copy that folder here", "trained"
        )
    config = _config(path)
    headers = {file.stem: _peek(file) for file in sorted(path.glob("*.safetensors"))}
    fingerprints = {network: header.fingerprint for network, header in headers.items()}
    first = headers["base" if "base" in headers else "prior"]
    return Trained(path, config, None, {**first.about, "fingerprints": fingerprints})


def of_run(path: AnyPath) -> Trained | None:
    """The networks that the run in the folder `path` has trained so far; None where it has no checkpoint.

    Their config is empty where somebody has removed the run's. Raises UserError as `find` does.
    """
    with Checkpoints(str(path / "checkpoints"), read_only=True) as checkpoints:
        if (step := checkpoints.latest()) is None:
            return None
        about = _facts_of_run(checkpoints.meta(step))
    return Trained(path, _config(path) if (path / "config.json").is_file() else {}, step, about)


def _peek(file: Path) -> weights.Weights:
    """The header of an exported file. Raises UserError where it is damaged or missing."""
    if not file.is_file():
        raise UserError(f"{file} is missing: export the run again, by python -m vf.pretrained.convert vf")
    return weights.peek(file, FAMILIES)


def place_arrays(arrays: Mapping[str, np.ndarray], tree: Params, path: Path) -> Params:
    """Puts the arrays of the file at `path`, {'/'-joined path: array}, on devices as the tree `tree`.

    Its leaves are `jax.ShapeDtypeStruct` with shardings, and every host makes its shards. Raises UserError where the
    arrays do not match the tree.
    """
    shapes = named(tree)
    if problem := difference(signatures(arrays), signatures(shapes), dtypes=False, holder="the file"):
        raise UserError(f"{path} is of another network: {problem}; use the model settings that it was trained with")

    def put(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Copies, since jax could not donate arrays that are views on the file.
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: np.array(arrays[name][index], leaf.dtype)
        )

    return fill(tree, {name: put(name, leaf) for name, leaf in shapes.items()})


def _config(path: AnyPath) -> dict[str, Any]:
    """Reads the resolved config in a folder. Raises UserError where it is missing or damaged."""
    try:
        config = json.loads((path / "config.json").read_text())
        _about("base", config)  # raises where fields are missing
    except FileNotFoundError:
        raise UserError(
            f"{path} holds weights but no config.json, which says what they are of: bring it back"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path / 'config.json'} is not the resolved config of a run ({reason:.200})") from error
    return config
