"""Takes the samples of a drawing up to a higher resolution, as a drawing of their own beside it.

Between the two stages clips stay float32, on disk, so that a job that was killed goes on where it was; but long clips,
whose windows know each other's frames in pixels, are pixels. Sample k depends on (seed, k) and the weights alone, in
this stage too.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from vf import rng, video
from vf.activity import ACTIVITY
from vf.config.specs import RunSpec, SuperresSpec
from vf.diffusion.windows import Extension
from vf.files import AnyPath
from vf.jobs import control, drawing, memory, meter
from vf.jobs.results import Results
from vf.run import media, provenance
from vf.run.progress import Progress
from vf.run.recorder import Recorder
from vf.training import programs, sharding


@dataclasses.dataclass(frozen=True)
class Superres:
    """The second stage of the drawing of a step.

    Attributes:
        spec: of the run, with a super-resolution.
        recorder: writes into the run's folder.
        phases: of the job's start.
        results: what the folder holds.
        step: whose weights draw the low clips.
    """

    spec: RunSpec
    recorder: Recorder
    phases: meter.Phases
    results: Results
    step: int

    @property
    def stage(self) -> SuperresSpec:
        """What takes them up."""
        assert self.spec.superres is not None
        return self.spec.superres

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Everything that the high clips depend on but the weights of the step, ready for JSON."""
        return {**self.results.sampling, **self.results.start(self.step), "superres": dict(self.stage.protocol)}

    @functools.cached_property
    def folder(self) -> AnyPath:
        """Where the high clips lie."""
        sample = self.spec.sample
        return media.drawing_folder(self.results.workdir, self.step, sample.what, sample.count, self.facts)

    @property
    def _low(self) -> drawing.Parts:
        return drawing.Parts(self.folder / "low", is_writer=self.recorder.is_writer)

    def has(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the shards `names` whose low clips are kept."""
        return tuple(name for name in names if (self.folder / "low" / f"{name}.npz").exists())

    def keeping(self, make: drawing.Make) -> drawing.Make:
        """`make`, whose clips are kept as they are, and given back as pixels."""

        def made(rows: dict[str, np.ndarray], name: str, done: drawing.Done) -> np.ndarray:
            clips = make(rows, name, done)
            self._low.keep(name, {"low": clips})
            return clips if clips.dtype == np.uint8 else np.asarray(video.to_uint8(jnp.asarray(clips)))

        return made

    @ACTIVITY.doing("taking the samples up")
    @memory.explained("super-resolution")
    def draw(self, chosen: Sequence[slice], conditions: Mapping[str, np.ndarray], labels: Any, names: Any) -> None:
        """Takes the kept clips of the shards `chosen` up, and writes them.

        conditions: of all samples, [n ...]. labels, names: what the pictures show beside them.
        """
        stage, sample, mesh = self.stage, self.spec.sample, self.spec.mesh
        length, size = stage.model.shape[0], stage.model.shape[1]
        with self.phases.phase("super-resolution", f"reading the weights of {stage.start.origin.get('from')}"):
            params = stage.start.read(sharding.abstract_params(stage.model.shapes(), mesh))
        program = self.phases.compiled(programs.raising(stage.model, mesh, stage.options), "super-resolution")
        seed = rng.as_argument(sample.seed)
        kind = np.uint8 if sample.extension.further else np.float32
        low_shape = (length, stage.model.low_size, stage.model.low_size, 3)

        def make(rows: dict[str, np.ndarray], name: str, done: drawing.Done) -> np.ndarray:
            found = self._low.kept(name, {"low": np.zeros((len(rows["number"]), *low_shape), kind)})
            assert found is not None
            low = np.asarray(video.from_uint8(found["low"])) if kind == np.uint8 else found["low"]
            batch_size = min(stage.batch_size, -(-len(low) // mesh.size) * mesh.size)
            return programs.in_batches(
                lambda batch: program(params, batch, seed), {**rows, "low": low}, batch_size, mesh, done
            )

        alone = sample.control.cell if sample.control else None
        first = sample.first if alone is None else alone
        rows = {"number": np.arange(first, first + sample.count, dtype=np.uint32)}
        rows |= {"label": conditions["label"]} if stage.model.null_label is not None else {}
        progress = Progress(sample.count, name="taken up", unit="clips", patient=True)
        many = len(chosen) > 1
        shards = drawing.Parts(self.folder / media.SHARDS, is_writer=self.recorder.is_writer, found=progress.skip)
        beside = {"seed": np.full(sample.count, sample.seed)}
        done = progress.update if self.recorder.is_writer else lambda clips: None
        logging.info(
            "taking %d clips from %d to %d pixels, %d at a time", sample.count, stage.model.low_size, size,
            stage.batch_size,
        )  # fmt: skip
        some: list[np.ndarray] = []
        whole = Extension(length, length, 0)
        for clips in drawing.draw(rows, chosen, whole, size, make, done, shards if many else None, beside):
            if media.pictures_take_more(some):
                some.append(clips)
        if not self.recorder.is_writer:
            return
        facts = {"step": self.step, **self.facts, "command": provenance.command_line(sys.orig_argv)}
        media.write_samples(
            self.folder, np.concatenate(some), base_frame=self.spec.model.base_frame, fps=sample.fps, labels=labels,
            class_names=names, meta=facts, columns=control.columns(sample), total=sample.count,
            shards=tuple(map(drawing.shard_name, chosen)) if many else (),
        )  # fmt: skip
        self._low.remove()
        logging.info("samples of %d pixels: %s", size, self.folder)
