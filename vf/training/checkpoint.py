"""Checkpoints of a run: numbered by step, written in the background, read back onto any mesh.

A checkpoint is a folder `<step>/` of four items, each a flat {'/'-joined path: array} but the last: `params`,
`ema`, `optimizer` (the step and the optimizer's state) and `meta` (JSON: what the caller says of the run, and
shape and dtype of every array). A sampling job thus reads one network tree and no moments. Orbax writes into
a temporary folder and renames it when everything is on disk; what a killed job leaves behind is never taken
for a checkpoint.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from vf import files
from vf.training.sharding import named
from vf.training.state import TrainState
from vf.types import Params, UserError

BEST, EVALUATING = "best.json", "judging.json"  # beside the folder of checkpoints; the `step` that either names is kept
_ITEMS = ("params", "ema", "optimizer", "meta")
_DONE = "commit_success.txt"  # Orbax's last write, into each item and then into the checkpoint


class Checkpoints:
    """The checkpoints in one folder.

    Build one in every process, after `jax.distributed.initialize`; all methods but `steps`, `latest`, `meta`
    and `shapes` are to be called by all processes. Usable as a context manager, which waits for the last save.

    directory: local path or gs:// address; made if missing.
    keep: how many of the latest checkpoints stay.
    keep_every: checkpoints at multiples of this step stay too; and those that `best.json` and `judging.json` beside
        `directory` name, whichever job wrote them there.
    read_only: for jobs that read what another job is writing; leaves the folder as it is and cannot save.

    Raises UserError when the folder cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
        absl_logging.get_absl_logger().addFilter(_quiet)
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise UserError(f"keep and keep_every must be at least 1, but are {keep} and {keep_every}")
        path = epath.Path(files.path(os.fspath(directory)))
        self.directory = path if files.is_remote(path) else path.absolute()
        self._manager: _Manager | None = None
        if read_only:
            return
        if jax.process_index() == 0:
            self._prepare()
        policies: list[checkpoint_managers.PreservationPolicy] = [
            checkpoint_managers.LatestN(keep), _Named([self.directory.parent / name for name in (BEST, EVALUATING)]),
        ]  # fmt: skip
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints in the folder now, in order."""
        return sorted(step for step, path in self._folders().items() if _complete(path))

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint, or None. A save counts when it is done."""
        return max(self.steps(), default=None)

    def without_ema(self) -> list[int]:
        """Steps of checkpoints that lack averaged weights: another program's, or somebody removed them."""
        return sorted(step for step, path in self._folders().items() if not (path / "ema").exists())

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], force: bool = False) -> bool:
        """Starts to write; returns when `state` has been copied and may be donated.

        meta: JSON values that describe the run: fingerprint of the architecture, hash of the config, seed.
        force: write even if checkpoints at `step` or later exist, and remove those first.

        Returns whether it saves: without `force`, a step that is saved already is left alone.
        Raises UserError for a step before the latest checkpoint (it would be the first to be cleaned up), and
        whatever went wrong in the save before.
        """
        if self._manager is None:
            raise RuntimeError("these checkpoints were opened with read_only=True")
        self.check()  # else a failed save of this very step would pass for done
        items = _items(state)
        # Shapes are kept here too, where comparing them costs one small file and not an opening of every
        # array.
        about = {"run": dict(meta), "arrays": {item: kinds(tree) for item, tree in items.items()}}
        json.dumps(about)  # a value that is not JSON shall fail here, not in the background
        later = [s for s in self._manager.all_steps() if s >= step]
        if later and not force:
            if step in later:
                return False
            raise UserError(
                f"cannot save step {step}: {self.directory} holds later checkpoints {sorted(later)};"
                " move them away, or train in another workdir"
            )
        if later:
            self._manager.wait_until_finished()
            for s in later:
                self._manager.delete(s)
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                **{item: ocp.args.PyTreeSave(tree) for item, tree in items.items()},
                meta=ocp.args.JsonSave(about),
            ),
            force=True,
        )

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """The saved state, bit for bit, on the devices that `state` names.

        state: a TrainState of `jax.ShapeDtypeStruct` with shardings (`vf.training.sharding.abstract`); any mesh will
            do, whichever the checkpoint was written on. Arrays without one go to the first local device.
        step: default the latest.

        Raises UserError when there is none, when its files are damaged, or when it belongs to another network
        or optimizer; the message names the arrays that differ.
        """
        step, path = self._find(step)
        wanted, found = _items(state), self._about(path)["arrays"]
        for item, tree in wanted.items():
            unlike = difference(found[item], kinds(tree), dtypes=True)
            if unlike and item == "optimizer":
                raise UserError(
                    f"checkpoint {step} in {self.directory} fits these networks, but not this optimizer: of"
                    f" its state, {unlike}; use the optimizer settings of that run (accumulate, frozen)"
                )
            if unlike:
                raise _other_network(step, self.directory, item, unlike)
        params, ema, optimizer = (self._read(path, item, tree) for item, tree in wanted.items())
        rest = fill(_optimizer(state), optimizer)
        return TrainState(
            step=rest["step"],
            params=fill(state.params, params),
            ema=fill(state.ema, ema),
            opt_state=rest["opt_state"],
        )

    def restore_params(
        self, params: Params, which: Literal["ema", "params"] = "ema", step: int | None = None
    ) -> Params:
        """The averaged (or the raw) parameters alone, for jobs that do not train.

        params: {network: tree} of `jax.ShapeDtypeStruct` with shardings. Networks left out are not read.
            Values are converted to the dtype asked for.

        Raises UserError as `restore` does.
        """
        step, path = self._find(step)
        wanted = named(params)
        networks = {name.split("/")[0] for name in wanted}
        found = self._about(path)["arrays"][which]
        found = {name: kind for name, kind in found.items() if name.split("/")[0] in networks}
        unlike = difference(found, kinds(wanted), dtypes=False)
        if unlike:
            raise _other_network(step, self.directory, which, unlike)
        return fill(params, self._read(path, which, wanted))

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """What `save` was given as `meta`; default the latest. Raises UserError as `restore` does."""
        step, path = self._find(step)
        return self._about(path)["run"]

    def shapes(self, step: int | None = None, which: Literal["ema", "params"] = "ema") -> Params:
        """{network: tree} of `jax.ShapeDtypeStruct`, as the checkpoint records them: to read it without a config.

        Default the latest. Raises UserError as `restore` does."""
        step, path = self._find(step)
        found = self._about(path)["arrays"][which]
        leaves = {name: jax.ShapeDtypeStruct(json.loads(shape), jnp.dtype(d)) for name, (shape, d) in found.items()}
        return unflatten_dict(leaves, sep="/")

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong on the way."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def check(self) -> None:
        """Raises what went wrong in the background, without waiting. Cheap: call it every step."""
        if self._manager is not None:
            self._manager.check_for_errors()
            # Orbax's finalizing thread may have collected the error before us; only joining it gives it back.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, removes what `keep` no longer covers, and raises what went wrong."""
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _folders(self) -> dict[int, epath.Path]:
        """Every folder that is named as a checkpoint, complete or not."""
        if not self.directory.exists():
            return {}
        return {int(path.name): path for path in self.directory.iterdir() if path.name.isdecimal()}

    def _prepare(self) -> None:
        """Makes sure the folder takes files, and moves incomplete checkpoints out of the way of new ones."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".writable-{time.time_ns()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {self.directory} ({error}): choose another workdir"
            ) from error
        for step, path in self._folders().items():
            if not _complete(path):
                # Orbax itself looks only at names: it would count this one as saved and worth keeping.
                aside = path.with_name(f"{step}.incomplete-{time.time_ns()}")
                absl_logging.warning("%s is incomplete; moved to %s", path, aside.name)
                path.rename(aside)

    def _find(self, step: int | None) -> tuple[int, epath.Path]:
        steps, folders = self.steps(), self._folders()
        torn = sorted(set(folders) - set(steps))
        bare = self.without_ema()
        note = f" (incomplete, and ignored: {torn})" if torn else ""
        if bare:
            note = f" ({bare} have no averaged weights, `ema`; incomplete, and ignored: {torn})"
        if step is None and not steps:
            raise UserError(f"no checkpoint in {self.directory}{note}: is this the workdir of a run that saved one?")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}: it has {steps}{note}")
        step = max(steps) if step is None else step
        return step, folders[step]

    def _about(self, path: epath.Path) -> dict[str, Any]:
        return self._guard(path, lambda: ocp.JsonCheckpointHandler().restore(path / "meta"))

    def _read(self, path: epath.Path, item: str, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        here = SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or here) for name, a in wanted.items()
        }
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,  # the networks asked for, not all
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return self._guard(path, lambda: reader.restore(path / item, args=args))

    def _guard(self, path: epath.Path, read: Callable[[], Any]) -> Any:
        """Damage is told as such; running out of memory (a RuntimeError) is not taken for it."""
        try:
            return read()
        except (OSError, ValueError, KeyError) as error:
            others = [step for step in self.steps() if step != int(path.name)]
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"checkpoint {path} cannot be read, so its files are damaged or incomplete ({reason:.200});"
                f" move it away to go on from another one (there are {others})"
            ) from error


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves preemption to `vf.hosts`.

    jax counts how far each process is by the number that it was last asked about. Orbax asks about the step of every
    checkpoint, and on process 0 once more in the background, when training is steps ahead."""

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step at which all stop: not asked."""
        del step
        return False


class _Named(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints that an evaluation has marked: the best so far, and the one that it is at."""

    def __init__(self, files: Sequence[epath.Path]) -> None:
        self.files = files

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """As Orbax asks."""
        steps = {_named_step(file) for file in self.files}
        return [checkpoint.step in steps for checkpoint in checkpoints]


def _named_step(file: epath.Path) -> int | None:
    try:
        return int(json.loads(file.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing is marked


def _complete(path: epath.Path) -> bool:
    return (path / _DONE).exists() and all((path / item / _DONE).exists() for item in _ITEMS)


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    return {"params": named(state.params), "ema": named(state.ema), "optimizer": named(_optimizer(state))}


def kinds(arrays: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{path: (shape, dtype)} as text."""
    return {name: (str(list(a.shape)), str(a.dtype)) for name, a in arrays.items()}


def fill(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """`tree` with the leaves that {'/'-joined path: leaf} names."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named(tree)])


def difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, dtypes: bool, holder: str = "the checkpoint"
) -> str:
    """What tells the arrays of `holder` from those asked for, both as `kinds` gives them; empty if nothing does."""

    def unlike(part: int) -> list[str]:
        both = [(name, found[name][part], kind[part]) for name, kind in wanted.items() if name in found]
        return [f"{name} is {there} there and {here} here" for name, there, here in both if there != here]

    parts = [
        _list(f"not in {holder}", [name for name in wanted if name not in found]),
        _list(f"only in {holder}", [name for name in found if name not in wanted]),
        _list("of another shape", unlike(0)),
        _list("of another dtype", unlike(1) if dtypes else []),
    ]
    return "; ".join(part for part in parts if part)


def _list(title: str, names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {title} ({shown})" if names else ""


def _other_network(step: int, directory: epath.Path, item: str, difference: str) -> UserError:
    return UserError(
        f"checkpoint {step} in {directory} belongs to another network: of its {item}, {difference};"
        " use the model settings of the run that wrote it, or another workdir"
    )


def _quiet(record: logging.LogRecord) -> bool:
    """Orbax tells every phase of every save at level INFO; its warnings are let through."""
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname
