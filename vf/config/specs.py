"""What jobs take: typed, complete, made by `build` from a config. Nothing here reads one."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax
from jax.sharding import Mesh

from vf.data.pipeline import Source
from vf.metrics.fvd import Lineage
from vf.metrics.protocol import Scorer
from vf.models.model import Model
from vf.models.sampler import SampleOptions
from vf.plan.subject import MakeSubject
from vf.plan.targets import Target
from vf.types import Params


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


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How many clips, or images of the base generator, to sample, of which classes, in what batches."""

    options: SampleOptions
    count: int
    batch_size: int
    seed: int
    weights: Literal["ema", "params"]
    label: int  # -1 for all classes in turn
    fps: float
    what: Literal["clips", "base"] = "clips"

    def protocol(self) -> dict[str, Any]:
        """What changes the clips, beside the weights."""
        return {
            "sampler": "ddim", "steps": len(self.options.grid) - 1, "eta": self.options.eta,
            "guidance_scale": self.options.guidance_scale, "clip_x_0": self.options.clip_x_0,
            "seed": self.seed, "weights": self.weights, "label": self.label,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """How one step of a run is evaluated.

    Attributes:
        scorers: what scores samples, by name.
        reference: the clips that scores compare samples with; None where a job needs none.
        validation: the clips of the losses, which lend their embeddings to samples; None likewise.
        clips: how many of either are read.
        seen: whether training steps see the validation clips: numbers on them are then called `seen`.
        levels: steps t of the validation losses, int32.
        batch_size: of the validation losses.
        fingerprint: of all that makes two evaluations comparable, but for the weights: a step that was evaluated under
            another one is evaluated again.
        best: the score by which checkpoints are compared.
        lowest: whether its lowest value is the best.
    """

    scorers: Mapping[str, Scorer]
    reference: Source | None
    validation: Source | None
    clips: int
    seen: bool
    levels: np.ndarray
    batch_size: int
    fingerprint: str
    best: str
    lowest: bool


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What every job of a run shares; all that the sampling job needs.

    Attributes:
        config: the resolved config, for the run's folder.
        model: computes on `mesh`.
        data: what is trained on, ready for JSON.
        class_names: of the clips.
        seed: of parameters, data order and all draws of training.
        start: what a job without a checkpoint begins from; None for nothing.
    """

    config: Mapping[str, Any]
    model: Model
    mesh: Mesh
    data: Mapping[str, Any]
    class_names: tuple[str, ...]
    seed: int
    start: Start | None
    sample: SampleSpec
    evaluation: EvaluationSpec


@dataclasses.dataclass(frozen=True)
class Loading:
    """How clips are read; none of it changes which, but `flip`: every second clip is mirrored."""

    threads: int
    workers: int
    read_ahead: int
    flip: bool


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """The training job.

    Attributes:
        source: the clips to train on.
        tx: the optimizer.
        learning_rates: finished updates -> {network: learning rate of the next}, for the log.
        param_dtype: what parameters are kept in.
        half: whether networks compute in bfloat16, to whose peak MFU is related.
        loading: how clips are read.
        files: further files of the run's folder, {name: text}.
        fingerprint: of the config, kept with each checkpoint.
    """

    run: RunSpec
    source: Source
    tx: optax.GradientTransformation
    learning_rates: Callable[[Any], Mapping[str, Any]]
    steps: int
    batch_size: int
    accumulate: int
    ema_decay: float
    param_dtype: Any
    half: bool
    loading: Loading
    log_every: int
    checkpoint_every: int
    keep: int
    sample_every: int
    files: Mapping[str, str]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class EvaluateSpec:
    """The evaluation job: which checkpoints of a run to evaluate.

    Attributes:
        checkpoint: `follow` (each as it is written), `latest`, or a step.
        last: final step of the run.
        patience: seconds without a new checkpoint after which following ends.
    """

    run: RunSpec
    checkpoint: Literal["follow", "latest"] | int
    last: int
    patience: float


@dataclasses.dataclass(frozen=True)
class SelfcheckSpec:
    """Whether the weights of I3D in `file` are FVD's."""

    file: Path
    lineage: Lineage


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """How to plan.

    Attributes:
        mesh: sizes of the mesh to plan for; None to choose the best.
        compile: 'train,sample', 'train' or 'none'.
        meshes: how many of the best ranked are compiled.
        blocks: residual blocks a level that are compiled; 0 for all, and fewer where the limits end that.
        finish: let a TPU's compiler generate code, too, if it can within the limits: then it says itself what it needs.
        minutes, gigabytes: limits of one compilation.
        cache: folder of what was compiled before.
    """

    mesh: tuple[int, ...] | None
    compile: str
    meshes: int
    blocks: int
    finish: bool
    minutes: float
    gigabytes: float
    cache: Path


@dataclasses.dataclass(frozen=True)
class PlanSpec:
    """The planning job.

    Attributes:
        subject: makes what is planned.
        target: the machine.
        settings: how to plan.
        fingerprint: of all that changes the compiled programs.
    """

    subject: MakeSubject
    target: Target
    settings: PlanSettings
    fingerprint: str
