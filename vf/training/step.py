"""One training step and one validation step, pure: (state, batch) -> (state, numbers)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vf import rng
from vf.diffusion import decompose
from vf.models.model import Errors, Model
from vf.models.videofusion import VideoFusion
from vf.training import stacks
from vf.training import state as states
from vf.types import Batch

MOTION, MOST_MOTIONS = "motion_noise", 1 << 16
Gradients = Callable[[Any, Batch], tuple[Any, dict[str, Array]]]
"""(parameters, batch) -> (gradients of its mean loss, numbers)."""


def loss(model: Model, errors: Errors) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The training loss and its parts: the sum of both generators' (`decompose.losses`), or the mean of all frames."""
    if model.shape[0] == 1:
        return (total := errors.loss.mean()), {"loss": total}
    base, residual = decompose.losses(errors.loss, model.base_frame)
    total = base + residual if model.networks == ("base", "residual") else errors.loss.mean()
    return total, {"loss": total, "loss_base": base, "loss_residual": residual}


def batch_loss(
    params: Any, rows: Mapping[str, Array], *, model: Model, seed: rng.Seed
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The training loss of a batch, and its parts.

    Clips of equal `motion` u32 [b] share their residual noise, where the batch has it.
    """
    keys = rng.example_keys(seed, rng.Purpose.TRAIN, rows["index"])
    x = model.clips(params, rows)
    shared = {}
    if MOTION in rows:
        shared["motion_keys"] = rng.example_keys(seed, rng.Purpose.MOTION, rows[MOTION])
    return loss(model, model.errors(params, x, model.condition(rows), keys, train=True, **shared))


def train_step(
    state: states.TrainState,
    batch: Batch,
    *,
    model: Model,
    tx: states.Transformation,
    seed: rng.Seed,
    ema_decay: float | Float[Array, ""],
    accumulate: int = 1,
    spread: Callable[[Gradients], Gradients] = lambda gradients: gradients,
) -> tuple[states.TrainState, dict[str, Array]]:
    """One update. The batch is cut into `accumulate` equal micro-batches, whose gradients are averaged.

    spread: how gradients of a batch that is spread over devices are found; as the compiler sees fit, unless given.

    Returns the new state and scalars: loss, its parts, and each network's gradient norm before clipping.
    """
    if isinstance(model, VideoFusion) and model.motion:
        # Another noise for each motion at each step, and the same on every device and in every micro-batch.
        numbers_of_noise = jnp.uint32(state.step) * MOST_MOTIONS + batch[model.motion].astype(jnp.uint32)
        batch = {**batch, MOTION: numbers_of_noise}
    loss_of = functools.partial(batch_loss, model=model, seed=seed)
    gradients = functools.partial(_gradients, loss_of=loss_of, parts=accumulate)
    grads, numbers = spread(gradients)(state.params, batch)
    # In float32, whatever gradients are: a sum of squares in bfloat16 loses the small ones.
    numbers |= {f"grad_norm_{name}": optax.tree.norm(jax.tree.map(jnp.float32, grads[name])) for name in model.networks}
    decay = functools.partial(states.ema_decay, decay=ema_decay)
    key = jax.random.fold_in(rng.key(seed, rng.Purpose.ROUND), state.step)
    return states.update(state, grads, tx, decay, key), numbers


def _gradients(params: Any, batch: Batch, *, loss_of: Callable[..., Any], parts: int) -> tuple[Any, dict[str, Array]]:
    """Gradients of the mean loss of a batch, stacked as `params` are, and the numbers that come with it."""

    def gradients(params: Any, batch: Batch) -> tuple[Any, dict[str, Array]]:
        # Of each parameter, not of the stacks: those would be sums of as many mostly empty arrays.
        grads, numbers = jax.grad(loss_of, has_aux=True)(stacks.unstack(params), batch)
        return stacks.restack(params, grads), numbers

    if parts == 1:
        return gradients(params, batch)
    # Row r goes to micro-batch r % parts, so that every device keeps a share of each.
    micros = {k: jnp.swapaxes(v.reshape(-1, parts, *v.shape[1:]), 0, 1) for k, v in batch.items()}
    # In float32, whatever parameters are: a sum of many in bfloat16 loses the small ones.
    nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    summed, numbers = jax.lax.scan(lambda total, rows: _add(total, *gradients(params, rows)), nothing, micros)
    return jax.tree.map(lambda g: g / parts, summed), jax.tree.map(lambda v: v.mean(0), numbers)


def _add(total: Any, grads: Any, numbers: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
    return jax.tree.map(jnp.add, total, grads), numbers


def validation_step(
    params: Any, batch: Batch, t: Int[Array, ""], *, model: Model, seed: rng.Seed
) -> dict[str, Float[Array, " b"]]:
    """Errors of each network, of each clip [b], at one noise level `t`, without dropout.

    `base` and `residual` are the network's part of the training loss, `base_eps` and `residual_eps` the share of the
    noise that it did not find, whatever it predicts (`vf.models.model.Errors`). Each is a mean over pixels and over the
    frames that the network answers for: the base frame and the others; one network answers for all frames, and is
    `base`. The noise of clip `index` at `t` is a function of `seed` and these two: always the same.
    """
    keys = jax.vmap(jax.random.fold_in, (0, None))(rng.example_keys(seed, rng.Purpose.EVALUATE, batch["index"]), t)
    params = stacks.unstack(params)
    x = model.clips(params, batch)
    errors = model.errors(params, x, model.condition(batch), keys, t=jnp.full(len(x), t))
    kinds = {"": errors.loss, "_eps": errors.eps}
    return {f"{net}{kind}": mean for kind, found in kinds.items() for net, mean in _by_network(model, found).items()}


def _by_network(model: Model, errors: Float[Array, "b f"]) -> dict[str, Float[Array, " b"]]:
    """The mean over the frames that each network answers for."""
    if model.networks != ("base", "residual"):
        return {model.networks[0]: errors.mean(1)}
    others = jnp.delete(errors, model.base_frame, axis=1, assume_unique_indices=True)
    return {"base": errors[:, model.base_frame], "residual": others.mean(1)}
