"""Checkpoints of a run: numbered by step, written in the background, read back onto any mesh.

A checkpoint is a folder `<step>/` of four items. `params`, `ema` and `optimizer` (the step and the optimizer's state)
are each a flat {'/'-joined path: array}; `meta` is JSON with the caller's facts of the run, and the shape and dtype of
every array. So a sampling job reads one tree of networks and no moments. Orbax writes into a temporary folder and
renames it when everything is on disk; what a killed job leaves is never taken for a checkpoint.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from vf import files
from vf.activity import ACTIVITY
from vf.training import stacks
from vf.training.sharding import named
from vf.training.state import TrainState
from vf.types import Params, UserError

# Files next to the folder of checkpoints, which name the best step and the one under evaluation. Both are retained.
BEST, EVALUATING = "best.json", "judging.json"
_ITEMS = ("params", "ema", "optimizer", "meta")
_DONE = "commit_success.txt"  # which Orbax writes last, into each item and then into the checkpoint


class Checkpoints:
    """The checkpoints in one folder.

    Every process makes one, after `jax.distributed.initialize`, and all processes must call all methods except
    `steps`, `latest`, `meta` and `shapes`. As a context manager it waits for the last save.

    Args:
        directory: local path or gs:// address; made if missing.
        keep: number of the latest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are kept too. So are those that `best.json` and `judging.json`
            next to `directory` name, whichever job has written these.
        read_only: for jobs that read what another job is writing; it changes nothing and cannot save.

    Raises UserError where the folder cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every: int | None = None,
        read_only: bool = False,
    ) -> None:
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
        """Step of the latest complete checkpoint, or None. A save counts once it is finished."""
        return max(self.steps(), default=None)

    def without_ema(self) -> list[int]:
        """Steps of checkpoints without averaged weights, which another program has written or somebody has removed."""
        return sorted(step for step, path in self._folders().items() if not (path / "ema").exists())

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], force: bool = False) -> bool:
        """Starts a save; returns once `state` has been copied and may be donated.

        Args:
            step: the step.
            state: the training state.
            meta: facts of the run in JSON's types: fingerprint of the architecture, hash of the config, seed.
            force: whether to save even if checkpoints at `step` or later exist, and to remove those first.

        Returns whether it saves: without `force`, a step that is already saved is not saved again. Raises UserError for
        a step before the latest checkpoint (it would be the first to be removed), and any error of the save before.
        """
        if self._manager is None:
            raise RuntimeError("these checkpoints were opened with read_only=True")
        self.check()  # otherwise a failed save of this same step would be taken for finished
        items = _items(stacks.to_host(state))
        # Shapes are stored here too, so that comparing them takes one small file instead of opening every array.
        record = {"run": dict(meta), "arrays": {item: signatures(tree) for item, tree in items.items()}}
        json.dumps(record)  # raises for values that are not JSON here, not in the background
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
                meta=ocp.args.JsonSave(record),
            ),
            force=True,
        )

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """Reads a saved state, bit for bit, onto the devices that `state` names.

        Args:
            state: a TrainState of `jax.ShapeDtypeStruct` with shardings (`vf.training.sharding.abstract`), on any mesh,
                which need not be the one that wrote the checkpoint. Arrays without a sharding are put on the first
                local device.
            step: step of the checkpoint; default the latest.

        Raises UserError where there is no such checkpoint, its files are damaged, or it belongs to another network or
        optimizer; the message names the arrays that differ.
        """
        step, path = self._find(step)
        by_name = stacks.unstack(state)
        expected, saved = _items(by_name), self._about(path)["arrays"]
        for item, tree in expected.items():
            problem = difference(saved[item], signatures(tree), dtypes=True)
            if problem and item == "optimizer":
                raise UserError(
                    f"checkpoint {step} in {self.directory} fits these networks, but not this optimizer: of"
                    f" its state, {problem}; use the optimizer settings of that run (accumulate, frozen)"
                )
            if problem:
                raise _other_network(step, self.directory, item, problem)
        params, ema, optimizer = (self._read(path, item, tree) for item, tree in expected.items())
        rest = fill(_optimizer(by_name), optimizer)
        read = TrainState(
            step=rest["step"],
            params=fill(by_name.params, params),
            ema=fill(by_name.ema, ema),
            opt_state=rest["opt_state"],
        )
        return stacks.restack(state, read)

    def restore_params(
        self, params: Params, which: Literal["ema", "params"] = "ema", step: int | None = None
    ) -> Params:
        """Reads the averaged (or the raw) parameters alone, for jobs that do not train.

        Args:
            params: {network: tree} of `jax.ShapeDtypeStruct` with shardings. Networks that are left out are not read.
                Values are converted to these dtypes.
            which: `ema` for averaged parameters, `params` for raw ones.
            step: step of the checkpoint; default the latest.

        Raises UserError as `restore`.
        """
        step, path = self._find(step)
        by_name = stacks.unstack(params)
        expected = named(by_name)
        networks = {name.split("/")[0] for name in expected}
        saved = self._about(path)["arrays"][which]
        saved = {name: kind for name, kind in saved.items() if name.split("/")[0] in networks}
        problem = difference(saved, signatures(expected), dtypes=False)
        if problem:
            raise _other_network(step, self.directory, which, problem)
        return stacks.restack(params, fill(by_name, self._read(path, which, expected)))

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The `meta` with which a checkpoint was saved; default the latest. Raises UserError as `restore`."""
        step, path = self._find(step)
        return self._about(path)["run"]

    def shapes(self, step: int | None = None, which: Literal["ema", "params"] = "ema") -> Params:
        """{network: tree} of `jax.ShapeDtypeStruct` from the checkpoint's records, to read it without a config.

        Default the latest. Raises UserError as `restore`.
        """
        step, path = self._find(step)
        saved = self._about(path)["arrays"][which]
        leaves = {name: jax.ShapeDtypeStruct(json.loads(shape), jnp.dtype(d)) for name, (shape, d) in saved.items()}
        return unflatten_dict(leaves, sep="/")

    def wait(self) -> None:
        """Returns when everything is on disk. Raises any error of a save."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def settle(self) -> None:
        """Returns when no save is in progress; from any thread, and without raising its errors."""
        while self._manager is not None and self._manager.is_saving_in_progress():
            time.sleep(0.05)

    def check(self) -> None:
        """Raises any error of a save so far, without waiting. It is cheap enough to be called every step."""
        if self._manager is not None:
            self._manager.check_for_errors()
            # Orbax's finalising thread may have taken the error, which is then raised only when that is joined.
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    @ACTIVITY.doing("writing the checkpoint")
    def close(self) -> None:
        """Waits for the last save and removes checkpoints beyond `keep`. Raises any error of a save."""
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _folders(self) -> dict[int, epath.Path]:
        """{step: folder} of every folder named as a checkpoint, complete or not."""
        if not self.directory.exists():
            return {}
        return {int(path.name): path for path in self.directory.iterdir() if path.name.isdecimal()}

    def _prepare(self) -> None:
        """Checks that the folder can be written, and moves incomplete checkpoints out of the way of new ones."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".writable-{time.time_ns()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {self.directory} ({error}): "
                f"{files.make_room(error)}choose another workdir"
            ) from error
        for step, path in self._folders().items():
            if not _complete(path):
                # Orbax checks only names, and would count this one as saved.
                moved = path.with_name(f"{step}.incomplete-{time.time_ns()}")
                logging.warning("%s is incomplete; moved to %s", path, moved.name)
                path.rename(moved)

    def _find(self, step: int | None) -> tuple[int, epath.Path]:
        steps, folders = self.steps(), self._folders()
        incomplete = sorted(set(folders) - set(steps))
        without_ema = self.without_ema()
        note = f" (incomplete, and ignored: {incomplete})" if incomplete else ""
        if without_ema:
            note = f" ({without_ema} have no averaged weights, `ema`; incomplete, and ignored: {incomplete})"
        if step is None and not steps:
            raise UserError(f"no checkpoint in {self.directory}{note}: is this the workdir of a run that saved one?")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}: it has {steps}{note}")
        step = max(steps) if step is None else step
        return step, folders[step]

    def _about(self, path: epath.Path) -> dict[str, Any]:
        return self._guard(path, lambda: ocp.JsonCheckpointHandler().restore(path / "meta"))

    def _read(self, path: epath.Path, item: str, expected: dict[str, Any]) -> dict[str, jax.Array]:
        default_sharding = SingleDeviceSharding(jax.local_devices()[0])
        expected = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or default_sharding)
            for name, a in expected.items()
        }
        args = ocp.args.PyTreeRestore(
            item=expected,
            restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
            partial_restore=True,  # only the networks that are needed
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return self._guard(path, lambda: reader.restore(path / item, args=args))

    def _guard(self, path: epath.Path, read: Callable[[], Any]) -> Any:
        """read(), where errors of damaged files become a UserError; lack of memory (a RuntimeError) does not."""
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
    """Orbax's manager, without its handling of preemption, which is that of `vf.hosts`.

    jax takes the step of its last query for how far a process is. Orbax queries the step of every checkpoint, and on
    process 0 once more in the background, when training is some steps ahead.
    """

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes stop at this step: never, as far as Orbax is concerned."""
        del step
        return False


class _Named(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints that files of an evaluation name: the best so far, and the one being evaluated."""

    def __init__(self, files: Sequence[epath.Path]) -> None:
        self.files = files

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """For each checkpoint, whether it is kept; called by Orbax."""
        steps = {_named_step(file) for file in self.files}
        return [checkpoint.step in steps for checkpoint in checkpoints]


def _named_step(file: epath.Path) -> int | None:
    try:
        return int(json.loads(file.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no checkpoint is named


def _complete(path: epath.Path) -> bool:
    return (path / _DONE).exists() and all((path / item / _DONE).exists() for item in _ITEMS)


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    return {"params": named(state.params), "ema": named(state.ema), "optimizer": named(_optimizer(state))}


def signatures(arrays: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{path: (shape, dtype)} of arrays, as text."""
    return {name: (str(list(a.shape)), str(a.dtype)) for name, a in arrays.items()}


def fill(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree of the structure of `tree`, with the leaves {'/'-joined path: leaf}."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named(tree)])


def difference(
    saved: Mapping[str, Any], expected: Mapping[str, Any], *, dtypes: bool, holder: str = "the checkpoint"
) -> str:
    """How the arrays of `holder` differ from the expected ones, in one sentence; "" where they do not.

    Args:
        saved: `signatures` of the arrays of `holder`.
        expected: `signatures` of the arrays that are needed.
        dtypes: whether dtypes must agree.
        holder: what the arrays are read from.
    """

    def differing(part: int) -> list[str]:
        both = [(name, saved[name][part], kind[part]) for name, kind in expected.items() if name in saved]
        return [f"{name} is {theirs} there and {ours} here" for name, theirs, ours in both if theirs != ours]

    parts = [
        _list(f"not in {holder}", [name for name in expected if name not in saved]),
        _list(f"only in {holder}", [name for name in saved if name not in expected]),
        _list("of another shape", differing(0)),
        _list("of another dtype", differing(1) if dtypes else []),
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
