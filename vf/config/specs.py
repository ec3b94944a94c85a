"""What jobs take: typed and complete values, which `build` makes from a config. Nothing here reads a config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from vf.data.pipeline import Source
from vf.diffusion.guidance import CFG
from vf.diffusion.windows import Extension
from vf.metrics.fvd import Lineage
from vf.metrics.protocol import Scorer
from vf.models.model import Model
from vf.models.prior import Prior
from vf.models.sampler import SampleOptions
from vf.models.superres import SuperResolution
from vf.nets.clip import TextConfig
from vf.nets.text_encoder import TextEncoder
from vf.nets.vit import Config
from vf.plan.subject import MakeSubject
from vf.plan.targets import Target
from vf.training.optim import Optimizer
from vf.types import Params


@dataclasses.dataclass(frozen=True)
class Start:
    """Networks that were trained before, here or elsewhere, for a job that finds no checkpoint.

    Attributes:
        networks: names of the model's networks that are given.
        read: {network: tree of ShapeDtypeStruct with shardings} -> {network: tree of arrays}, of `networks` alone.
        origin: where the weights come from, ready for JSON.
    """

    networks: tuple[str, ...]
    read: Callable[[Params], Params]
    origin: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ControlSpec:
    """What a sampling job fixes of its clips.

    Attributes:
        content_seed: of the base noise.
        motion_seed: of the residual noise.
        grid: rows of one content each and columns of one motion each; None where each sample has its own.
        interpolate: `content` or `motion` where the rows, or the columns, go from one to another; else "".
        content_of, motion_of, known_of: a picture or video; "" for none.
        motion_label: class of the clip of `motion_of`.
        cut: (path) -> the file's first clip, u8 [f h w 3]. Raises UserError.
        cell: the clip of the grid that is drawn alone, counted row by row; None for all.
    """

    content_seed: int
    motion_seed: int
    grid: tuple[int, int] | None = None
    interpolate: Literal["", "content", "motion"] = ""
    content_of: str = ""
    motion_of: str = ""
    motion_label: int = -1
    known_of: str = ""
    cut: Callable[[str], np.ndarray] | None = None
    cell: int | None = None

    def protocol(self) -> dict[str, Any]:
        """Everything that is controlled, ready for JSON; {} for nothing."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "cut"}
        return {name: value for name, value in fields.items() if value not in ("", None, -1)}


@dataclasses.dataclass(frozen=True)
class PriorSpec:
    """A trained prior, which draws the embeddings of samples.

    Attributes:
        model: the prior, which computes on the run's mesh.
        start: its weights.
        options: how it samples.
        labels: its label of each class of the run's clips; () where it draws without a class, or of texts.
    """

    model: Prior
    start: Start
    options: SampleOptions
    labels: tuple[int, ...]

    def protocol(self) -> dict[str, Any]:
        """Everything that changes the embeddings but the seed, ready for JSON."""
        return {
            **self.start.origin, "times": self.options.grid.tolist(), "clip_x_0": self.options.clip_x_0,
            "guidance_scale": self.options.guidance.scale, "classes": bool(self.labels),
            "texts": bool(self.model.readers),
        }  # fmt: skip


Windows = Literal["in_turn", "together"]
"""How the windows of a long clip are drawn (`vf.diffusion.windows`)."""
WindowNoise = Literal["new", "shuffled"]
"""The residual noise of further windows: each its own, or that of the first window's frames in another order."""


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How many clips, or images of the base generator, to sample, of which classes, in what batches.

    `fps` is the rate at which pictures of them play, `solver` and `eta` describe `options.solver`; `control` is None
    where nothing is fixed, `first` the number of the first sample, `extension` the windows of long
    clips, all with one base noise where `keep_base_noise` holds, `windows` how they are drawn, `window_noise` whose
    residual noise they have, `dtype` that of the computation. `prompts` are the samples' texts, in turn; () takes the
    captions of validation clips, where the model reads any.
    """

    options: SampleOptions
    count: int
    batch_size: int
    seed: int
    weights: Literal["ema", "params"]
    label: int  # -1 for all classes in turn
    fps: float
    what: Literal["clips", "base"] = "clips"
    solver: str = "ddim"
    eta: float = 0.0
    control: ControlSpec | None = None
    first: int = 0
    extension: Extension = dataclasses.field(default_factory=lambda: Extension(1, 1, 0))
    keep_base_noise: bool = True
    windows: Windows = "in_turn"
    window_noise: WindowNoise = "new"
    dtype: str = "float32"
    prompts: tuple[str, ...] = ()

    @property
    def together(self) -> bool:
        """Whether there are several windows, which are denoised together."""
        return self.windows == "together" and self.extension.further > 0

    def protocol(self) -> dict[str, Any]:
        """Everything that changes the clips except the weights, ready for JSON."""
        grid, guidance = self.options.grid.tolist(), self.options.guidance
        rule = {"rule": type(guidance.rule).__name__} | vars(guidance.rule)
        more = {
            "guidance": None if guidance.rule == CFG() else rule, "residual_guidance_scale": guidance.residual_scale,
            "guidance_interval": guidance.interval, "guidance_rescale": guidance.rescale or None,
            "clip_quantile": self.options.clip_quantile, "restart": self.options.restart,
            "dtype": None if self.dtype == "float32" else self.dtype,
            "known": self.options.known or None, "reconstruction": self.options.reconstruction or None,
            "history": self.options.history or None, "low_noise": self.options.low_noise or None,
            "control": self.control and self.control.protocol(), "first": self.first or None,
            "length": self.extension.length if self.extension.further else None,
            "overlap": self.extension.overlap if self.extension.further else None,
            "keep_base_noise": self.keep_base_noise if self.extension.further else None,
            "windows": "together" if self.together else None, "prompts": list(self.prompts) or None,
            "window_noise": self.window_noise if self.extension.further and self.window_noise != "new" else None,
        }  # fmt: skip
        return {name: value for name, value in more.items() if value is not None} | {
            "sampler": self.solver, "steps": len(grid) - 1, "times": grid, "eta": self.eta,
            "guidance_scale": guidance.scale, "clip_x_0": self.options.clip_x_0,
            "seed": self.seed, "weights": self.weights, "label": self.label,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SuperresSpec:
    """What takes samples up to a higher resolution.

    Attributes:
        model: for whole clips of the samples' length, perhaps in tiles.
        options: how it samples.
        start: its weights.
        batch_size: clips at a time.
        protocol: everything of it that changes the clips, ready for JSON.
    """

    model: SuperResolution
    options: SampleOptions
    start: Start
    batch_size: int
    protocol: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """How one step of a run is evaluated.

    Attributes:
        scorers: {name: scorer of samples}.
        reference: the reference set, which scores compare samples with; None where a job needs none.
        validation: the validation set, for losses and as donors of embeddings; None where a job needs none.
        clips: number of clips that are read from each of the two.
        seen: whether training steps see the validation clips: numbers on them are then called `seen`.
        levels: the steps t at which validation losses are computed, int32.
        batch_size: clips per batch of the validation losses.
        fingerprint: hash of everything but the weights that must agree for two evaluations to be comparable. A step
            that was evaluated under another fingerprint is evaluated again.
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
    """What every job of a run shares, which is all that the sampling job needs.

    Attributes:
        config: the resolved config, for the run's folder.
        model: the model, which computes on `mesh`.
        data: description of the training data, ready for JSON.
        class_names: names of the clips' classes, in the order of labels; () where there are none.
        seed: determines initial parameters, data order and all random draws of training.
        start: weights from which a job without a checkpoint begins; None to begin from initial parameters.
        guide: weights of the worse networks that guide samples; None for none.
        prior: what draws the embeddings of samples; None where clips of the validation set donate them.
        superres: what takes samples up to a higher resolution; None for nothing.
        text: the encoder of clips' captions and of prompts, where the model reads them, and of base frames.
        embeds: whether `text` makes the embeddings of base frames.
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
    guide: Start | None = None
    prior: PriorSpec | None = None
    superres: SuperresSpec | None = None
    text: TextEncoder | None = None
    embeds: bool = False


@dataclasses.dataclass(frozen=True)
class Loading:
    """How clips are read: by how many threads or processes, how many batches ahead, and whether half are mirrored.

    Of these only `flip` changes what is trained on.
    """

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
        param_dtype: dtype in which parameters are stored.
        half: whether networks compute in bfloat16, so that MFU refers to the chip's peak in bfloat16.
        loading: how clips are read.
        files: further files to write into the run's folder, {name: text}.
        fingerprint: hash of the config, stored with each checkpoint.
    """

    run: RunSpec
    source: Source
    tx: Optimizer
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
        checkpoint: `follow` (each checkpoint as it is written), `latest`, or a step.
        last: final step of a run that has not written its own config yet.
        compared: the run's config that this job's was compared with; empty where there was none yet.
        compare: compares this job's config with the run's, given as (config, step, names of its classes); step 0
            before its first checkpoint. Raises UserError where the run learns, or has learned, something else.
        patience: seconds without a new checkpoint after which a job that follows a run ends.
    """

    run: RunSpec
    checkpoint: Literal["follow", "latest"] | int
    last: int
    patience: float
    compared: Mapping[str, Any]
    compare: Callable[[Mapping[str, Any], int, Sequence[str]], None]


@dataclasses.dataclass(frozen=True)
class SelfcheckSpec:
    """A check whether the weights of I3D in `file` are those with which FVD is defined."""

    file: Path
    lineage: Lineage


@dataclasses.dataclass(frozen=True)
class ContrastSpec:
    """The job that trains CLIP's encoders.

    Attributes:
        source: (part of the data, caption -> tokens) -> its clips.
        vision: sizes of the image encoder.
        language: (number of different tokens) -> sizes of the text encoder.
        captions: most captions of which the tokenizer is learned.
        lr: highest learning rate, after the warm-up.
        base_frame: array index of the frame that goes with the caption.
    """

    source: Callable[[Literal["training", "validation"], Callable[[str], np.ndarray]], Source]
    vision: Config
    language: Callable[[int], TextConfig]
    captions: int
    steps: int
    batch_size: int
    lr: float
    log_every: int
    base_frame: int
    mesh: Mesh
    seed: int


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """How to plan.

    Attributes:
        mesh: sizes of the mesh to plan for, in the order of `sharding.AXES`; None to choose the best.
        compile: which programs are compiled: 'train,sample', 'train' or 'none'.
        meshes: how many of the best-ranked meshes are compiled.
        blocks: residual blocks per level that are compiled; 0 for all, or for one where all exceed the limits.
        finish: whether a TPU's compiler also generates code, if it can within the limits, and then reports the memory
            that the program needs.
        minutes, gigabytes: limits on time and memory of one compilation.
        cache: folder of the results of earlier compilations.
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
        subject: makes the model and optimizer that are planned, for a given mesh.
        target: the machine.
        settings: how to plan.
        fingerprint: hash of everything in the config that changes the compiled programs.
    """

    subject: MakeSubject
    target: Target
    settings: PlanSettings
    fingerprint: str
