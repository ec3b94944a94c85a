"""The sampling job: weights in, clips on disk. Sample k depends on (seed, k) and the weights alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vf import gallery, rng, sharding, video
from vf.build import SampleJob
from vf.files import AnyPath
from vf.model import Model
from vf.types import Batch, UserError


def sampler(model: Model, job: SampleJob, mesh: Mesh) -> Any:
    """Compiled (params, batch of conditions) -> u8 [b f h w 3]; keep it, since compiling takes longer than sampling."""

    def sample(params: Any, batch: Batch) -> jax.Array:
        keys = rng.example_keys(job.seed, rng.Purpose.SAMPLE, batch["index"])
        return video.to_uint8(model.sample(params, keys, model.condition(batch), job.options))

    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def conditions(model: Model, job: SampleJob, records: Mapping[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """What `job.count` samples are conditioned on: `index` u32 [n], `label` i32 [n] and, where the model uses one,
    `embedding` f32 [n d].

    Labels are as asked, or all in turn. The paper draws the embedding from a prior network; until there is one, the
    clips of the validation set lend theirs, so a score with context `embedding` is that of a perfect prior. Sample k
    gets the embedding of the next clip of its own class, so that its label and embedding are those of one clip; a model
    that knows no classes gets clips of all of them, unless a class is asked for.

    Args:
        records: `label` [m] and `embedding` [m d] of the validation clips; read only for the embedding.
        classes: how many there are.

    Raises UserError for a class that is none, or that no clip in `records` is of.
    """
    if model.null_label is not None and job.label >= classes:
        raise UserError(f"sample.label must be a class, 0 to {classes - 1}, or -1 for all in turn; got {job.label}")
    index = np.arange(job.count, dtype=np.uint32)
    label = index % max(classes, 1) if job.label < 0 else np.full(job.count, job.label)
    if not model.embedding_dim:
        return {"index": index, "label": label.astype(np.int32)}
    if model.null_label is None and job.label < 0:
        donor = index % len(records["label"])
    else:
        donor = _donors(label, records["label"])
    return {"index": index, **{name: records[name][donor] for name in ("label", "embedding")}}


def _donors(wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label of `wanted` [n] the row of `labels` [m] that is next in turn among those equal to it, int [n]."""
    donor = np.zeros(len(wanted), int)
    for label in np.unique(wanted):
        rows, mine = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(rows):
            raise UserError(
                f"samples of class {label} need the embedding of a validation clip of that class, and none of the "
                f"{len(labels)} is: read more by --config.eval.clips=N, or ask for another class by "
                "--config.sample.label=K"
            )
        donor[mine] = rows[np.arange(len(mine)) % len(rows)]
    return donor


def clips(sample: Any, params: Any, given: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh) -> np.ndarray:
    """All samples, u8 [n f h w 3], on every host. The last batch is filled up and cut, so one program serves all."""
    count = len(given["index"])
    rows = sharding.my_rows(mesh, batch_size, sharding.EVERY)
    made = []
    for first in range(0, count, batch_size):
        mine = np.minimum(first + rows, count - 1)
        batch = sharding.put_batch(
            {name: value[mine] for name, value in given.items()}, mesh, batch_size, sharding.EVERY
        )
        made.append(np.asarray(multihost_utils.process_allgather(sample(params, batch), tiled=True)))
    return np.concatenate(made)[:count]


def write(
    workdir: str | AnyPath,
    step: int,
    generated: np.ndarray,
    given: Mapping[str, np.ndarray],
    model: Model,
    job: SampleJob,
    class_names: Sequence[str],
    protocol: Mapping[str, Any],
) -> AnyPath:
    """`WORKDIR/samples/step_00001000`: clips.npz (lossless), a wall as GIF and MP4, a film strip, meta.json; for images
    of the base generator `base_step_00001000`, with a wall alone."""
    labels = given["label"].tolist() if model.null_label is not None else None
    folder = gallery.step_folder(workdir, step, images=job.what == "base")
    meta = {"step": step, **protocol}
    return gallery.write_samples(
        folder, generated, centre=model.base_frame, fps=job.fps, labels=labels, class_names=class_names, meta=meta
    )
