"""Draws long clips whose windows are denoised together, in memory on the device that does not grow with their length.

The clips lie on the host, as noise that becomes clean a step of the solver at a time; the device sees a batch of
windows, of whatever clips, and gives their clean estimates back. The host holds about ten times a clip's float32.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vf import rng
from vf.config.specs import RunSpec
from vf.diffusion import solvers, windows
from vf.jobs import control, meter
from vf.jobs.drawing import Parts
from vf.models.model import TEXT
from vf.models.videofusion import VideoFusion
from vf.training import programs
from vf.types import Batch, Params

KEEP_SECONDS = 60.0  # of steps that a killed job takes again at most, beside the one under way
Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Together:
    """Draws the clips of a sampling.

    Attributes:
        spec: what to draw.
        phases: of the job's start.
        params: of the networks.
    """

    spec: RunSpec
    phases: meter.Phases
    params: Params

    def draw(self, rows: Rows, name: str, done: Callable[[int], None], *, parts: Parts) -> np.ndarray:
        """Clips u8 [n length h w 3].

        Args:
            rows: their conditions and control, [n ...].
            name: that under which `parts` keeps how far they are, now and then.
            done: is told how many windows' worth of the work is done.
            parts: of the drawing.
        """
        model, options, extension = self.spec.model, self.spec.sample.options, self.spec.sample.extension
        walk = solvers.walk(options.grid, model.schedule, options.solver, options.restart)
        count = len(rows["index"])
        work = count * (extension.further + 1)
        now = self._begin(rows)
        first = 0
        if kept := parts.kept(name, {**now, "steps": np.zeros((), np.int64)}):
            first = int(kept["steps"])
            parts.found(work * first // len(walk))
            now = {field: value for field, value in kept.items() if field != "steps"}
        at = time.monotonic()
        for number, times in enumerate(walk[first:].astype(np.int32), first):
            t, then, up_to, before = times
            z = _whole(now["z"], count, extension)
            told = functools.partial(lambda number, share: done(math.ceil(work * (number + share) / len(walk))), number)
            batch = {**now, "x_0": _blocks(self._clean(rows, z, t, told), extension)}
            if options.solver.injects:
                batch["xi"] = _blocks(self._noise(rows, t + before), extension)
            if options.restart:
                again = self._noise(rows, then + before) if up_to > then else np.zeros_like(z)
                batch["again"] = _blocks(again, extension)
            now = self._in_batches(functools.partial(self._programs.advance, times=times), batch)
            if time.monotonic() - at >= KEEP_SECONDS:
                parts.keep(name, {**now, "steps": np.asarray(number + 1)})
                at = time.monotonic()
        pixels = self._in_batches(self._programs.pixels, {"z": now["z"]})
        return _whole(pixels, count, extension)[:, : extension.length]

    @functools.cached_property
    def _programs(self) -> programs.Windowed:
        made = programs.together(self.spec.model, self.spec.mesh, self.spec.sample.options)
        return made._replace(
            base=self.phases.compiled(made.base, "base frames"), window=self.phases.compiled(made.window, "windows")
        )

    def _in_batches(self, program: Callable[[Batch], Any], rows: Rows) -> Any:
        return programs.in_batches(program, rows, self.spec.sample.batch_size, self.spec.mesh)

    def _begin(self, rows: Rows) -> dict[str, np.ndarray]:
        """The noise that sampling starts from, `z`, in rows of as many frames as a window, and the solver's state."""
        z = {"z": _blocks(self._noise(rows, None), self.spec.sample.extension)}
        return z | self._in_batches(self._programs.begin, z)

    def _noise(self, rows: Rows, t: int | None) -> np.ndarray:
        """The clips' noise, f32 [n covered h w c], that is injected at a time; None for the start.

        It is that of the first window, with new frames from the windows' own noises, or in its own frames' order.
        """
        sample, model = self.spec.sample, self.spec.model
        extension = sample.extension
        first = self._drawn(rows, t)
        residual = first["residual"]
        if sample.window_noise == "shuffled":
            long = residual[:, windows.shuffled(extension)]
        else:
            numbers = range(1, extension.further + 1)
            further = [control.window(self.spec, number, dict(rows)) for number in numbers]
            drawn = self._drawn({name: np.concatenate([one[name] for one in further]) for name in further[0]}, t)
            new = drawn["residual"][:, extension.overlap :]
            long = np.concatenate([residual, *new.reshape(len(further), -1, *new.shape[1:])], axis=1)
        if not isinstance(model, VideoFusion):
            return long
        lam = np.full(extension.covered, np.delete(model.lam, model.base_frame)[0])  # all others are equal
        lam[model.base_frame] = 1
        lam = lam[:, None, None, None]
        return np.sqrt(lam) * first["base"][:, None] + np.sqrt(1 - lam) * long

    def _drawn(self, rows: Rows, t: int | None) -> dict[str, np.ndarray]:
        fixed = self.spec.sample.control
        seed = rng.as_argument(fixed.content_seed if fixed else self.spec.sample.seed)
        if t is None:
            return self._in_batches(lambda batch: self._programs.start(batch, seed), rows)
        return self._in_batches(lambda batch: self._programs.injected(batch, seed, np.int32(t)), rows)

    def _clean(self, rows: Rows, z: np.ndarray, t: np.int32, told: Callable[[float], None]) -> np.ndarray:
        """The clean estimate of clips, f32 [n covered h w c]: the mean over their windows, and of the base frame.

        told: is told which share of the windows is done.
        """
        extension, size = self.spec.sample.extension, self.spec.sample.batch_size
        condition = {name: rows[name] for name in ("label", "embedding", *TEXT) if name in rows}
        base, c = None, None
        if isinstance(self.spec.model, VideoFusion):
            c = self.spec.model.base_frame
            seen = {**condition, "z": z[:, c]}
            base = self._in_batches(lambda batch: self._programs.base(self.params, batch, t), seen)
        mean = windows.Mean(z.shape, extension, windows.weights(extension.frames, c))
        cut = windows.cut(z, extension)
        pairs = np.indices(cut.shape[:2]).reshape(2, -1)
        for first in range(0, pairs.shape[1], size):
            clip, number = pairs[:, first : first + size]
            seen = {name: value[clip] for name, value in condition.items()} | {"z": cut[clip, number]}
            seen |= {} if base is None else {"b": base.b[clip]}
            made = self._in_batches(lambda batch: self._programs.window(self.params, batch, t), seen)
            for k, m, x_0 in zip(clip, number, made, strict=True):
                mean.add(int(k), int(m), x_0)
            told(min(1.0, (first + size) / pairs.shape[1]))
        found = mean.value()
        if base is not None:
            found[:, c] = base.x_0
        return found


def _blocks(clips: np.ndarray, extension: windows.Extension) -> np.ndarray:
    """Clips [n covered ...] in rows of as many frames as a window, the last of each clip filled up with zeros."""
    filled = np.pad(clips, [(0, 0), (0, -clips.shape[1] % extension.frames), *[(0, 0)] * (clips.ndim - 2)])
    return filled.reshape(-1, extension.frames, *clips.shape[2:])


def _whole(rows: np.ndarray, count: int, extension: windows.Extension) -> np.ndarray:
    """The clips of `_blocks`."""
    return rows.reshape(count, -1, *rows.shape[2:])[:, : extension.covered]
