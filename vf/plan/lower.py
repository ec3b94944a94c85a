"""Lowers the programs of a plan for devices that are not at hand, from shapes and shardings without arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vf import rng
from vf.models.model import TEXT
from vf.models.prior import Prior
from vf.models.superres import SuperResolution
from vf.plan import count
from vf.plan.subject import MakeSubject, PlanSubject
from vf.training import programs, sharding
from vf.training import step as steps


def batch_shapes(
    subject: PlanSubject, rows: int, mesh: Mesh | None, over: Sequence[str] = sharding.ROWS
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `rows` clips, with shardings on `mesh` over its axes `over`; without where it is None."""
    model = subject.model
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": (model.shape, np.uint8),
        "label": ((), np.int32),
        "index": ((), np.uint32),
    }
    if isinstance(model, Prior):
        fields["embedding"] = (model.shape[-1:], np.float32)
        del fields["video"]
    elif model.embedding_dim:
        fields["embedding"] = ((model.embedding_dim,), np.float32)
    if model.readers:
        tokens, width, dim = model.text_shape
        shapes = (((tokens, width), np.float32), ((tokens,), np.bool_), ((dim,), np.float32))
        fields |= dict(zip(TEXT, shapes, strict=True))
    if isinstance(model, SuperResolution):
        frames, _, _, channels = model.shape
        fields["low"] = ((frames, model.low_size, model.low_size, channels), np.float32)
    place = None if mesh is None else sharding.batch_sharding(mesh, over)
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place) for name, (shape, dtype) in fields.items()
    }


def on_mesh(state: Any, mesh: Mesh) -> Any:
    """The shapes of a training state, with shardings on `mesh`."""
    return sharding.abstract(state, sharding.shardings(state, mesh))


def _placed(
    make: MakeSubject, sizes: Sequence[int], blocks: int | None, devices: Sequence[Any]
) -> tuple[PlanSubject, Mesh]:
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)), devices=devices)
    return make(mesh, blocks), mesh


def lower_training(make: MakeSubject, sizes: tuple[int, ...], blocks: int | None, devices: Sequence[Any]) -> Any:
    """The lowered training step on a mesh of `sizes` of `devices`, with at most `blocks` residual blocks a level."""
    subject, mesh = _placed(make, sizes, blocks, devices)
    # In stacks, where the devices are accelerators.
    _, abstract = programs.first_state(subject.model, subject.tx, mesh, subject.seed, subject.param_dtype)
    settings = programs.settings(subject.tx, subject.seed, subject.ema_decay)
    update = programs.update(subject.model, mesh, abstract, subject.accumulate)
    return update.lower(abstract, batch_shapes(subject, subject.batch_size, mesh), settings)


def lower_sampling(make: MakeSubject, sizes: tuple[int, ...], blocks: int | None, devices: Sequence[Any]) -> Any:
    """The lowered sampler on a mesh of `sizes` of `devices`, with at most `blocks` residual blocks a level."""
    subject, mesh = _placed(make, sizes, blocks, devices)
    params = on_mesh(subject.state(), mesh).ema
    batch = batch_shapes(subject, subject.sample_batch_size, mesh, sharding.EVERY)
    seed = rng.as_argument(subject.sample_seed)
    if isinstance(subject.model, Prior):
        del batch["embedding"]
        return programs.embeddings(subject.model, mesh, subject.sample_options).lower(params, batch, seed)
    del batch["video"]
    return programs.sampling(subject.model, mesh, subject.sample_options).lower(params, batch, seed)


def counts(subject: PlanSubject, shapes: Any) -> count.Counts:
    """FLOPs and bytes of one clip in training; `shapes` are those of the parameters."""

    def loss(params: Any, rows: Any) -> Any:
        return steps.batch_loss(params, rows, model=subject.model, seed=subject.seed)[0]

    return count.training(loss, lambda rows: batch_shapes(subject, rows, None), shapes)
