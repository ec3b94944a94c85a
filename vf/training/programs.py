"""The compiled programs of a run: first state, update, validation, sampling; and how rows go through in batches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vf import rng, video
from vf.models import sampler as samplers
from vf.models.model import Model
from vf.training import sharding
from vf.training import state as states
from vf.training.step import train_step, validation_step
from vf.types import Batch


def first_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, seed: int, param_dtype: Any = jnp.float32
) -> tuple[Callable[[], states.TrainState], Any]:
    """A function that makes the initial state where it belongs, and the state's shapes with shardings."""

    def create() -> states.TrainState:
        return states.create(model.init(rng.key(seed, rng.Purpose.PARAMETERS)), tx, param_dtype)

    shapes = jax.eval_shape(create)
    where = sharding.shardings(shapes, mesh)
    return jax.jit(create, out_shardings=where), sharding.abstract(shapes, where)


def update(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, abstract: Any, *, seed: int, ema_decay: float,
    accumulate: int,
) -> Any:  # fmt: skip
    """The jitted step, (state, batch) -> (state, numbers); the state given is used up."""
    step = functools.partial(
        train_step, model=model, tx=tx, seed=seed, ema_decay=ema_decay, accumulate=accumulate,
        spread=sharding.averaging(mesh),
    )  # fmt: skip
    where = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))


def validation(model: Model, mesh: Mesh, seed: int) -> Any:
    """Jitted (params, batch, t) -> errors [b] of each clip at noise level t."""
    step = functools.partial(validation_step, model=model, seed=seed)
    return jax.jit(step, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def sampling(model: Model, mesh: Mesh, seed: int, options: samplers.SampleOptions) -> Any:
    """Jitted (params, batch of conditions) -> u8 [b f h w 3]. Sample k depends on (seed, k) and the weights alone."""

    def sample(params: Any, batch: Batch) -> jax.Array:
        keys = rng.example_keys(seed, rng.Purpose.SAMPLE, batch["index"])
        return video.to_uint8(samplers.sample(model, params, keys, model.condition(batch), options))

    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def in_batches(
    program: Callable[[Batch], Any], rows: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh
) -> Any:  # fmt: skip
    """What `program` gives for all `rows` [n ...], on every host: a tree of arrays [n ...].

    The last batch is filled up with the last row, and what comes of that is cut, so that one program serves all.
    """
    count = len(next(iter(rows.values())))
    mine = sharding.my_rows(mesh, batch_size, sharding.EVERY)
    parts = []
    for first in range(0, count, batch_size):
        chosen = np.minimum(first + mine, count - 1)
        batch = {name: value[chosen] for name, value in rows.items()}
        made = program(sharding.put_batch(batch, mesh, batch_size, sharding.EVERY))
        parts.append(multihost_utils.process_allgather(made, tiled=True))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:count], *parts)
