"""The compiled programs of a run: first state, update, validation, sampling; and how rows go through in batches."""

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from vf import rng, video
from vf.models import sampler as samplers
from vf.models import windowed
from vf.models.model import TEXT, Model
from vf.models.prior import Prior
from vf.models.superres import SuperResolution
from vf.models.videofusion import VideoFusion
from vf.nets import initial
from vf.nets.text_encoder import TextEncoder
from vf.training import sharding, stacks
from vf.training import state as states
from vf.training.optim import Optimizer
from vf.training.step import train_step, validation_step
from vf.types import Batch


def first_state(
    model: Model, tx: states.Transformation, mesh: Mesh, seed: int, param_dtype: Any = jnp.float32,
    *, stacked: bool | None = None,
) -> tuple[Callable[..., states.TrainState], Any]:  # fmt: skip
    """A function that makes the initial state where it belongs, and the state's shapes with shardings.

    The function takes {network: nested parameters} of those that begin as something else than random numbers. Its
    parameters are a function of the seed and their names, whatever the mesh.

    stacked: keep parameters in stacks (`vf.training.stacks`). By default on accelerators alone: XLA's CPU compiler
        makes one kernel for all arrays of a shape anyway, and one more for every reader of a slice of a stack.
    """
    shapes, begins = model.initializers()
    if stacked is None:
        stacked = mesh.devices.flat[0].platform != "cpu"
    if stacked:
        shapes = {name: jax.eval_shape(stacks.stack, net) for name, net in shapes.items()}
    state = states.shapes(shapes, tx, param_dtype)
    where = sharding.shardings(state, mesh)
    abstract = sharding.abstract(state, where)
    begin = jax.jit(functools.partial(states.create, tx=tx, dtype=param_dtype), out_shardings=where, donate_argnums=0)

    def create(given: Mapping[str, Any] | None = None) -> states.TrainState:
        given = given or {}
        drawn = {name: net for name, net in abstract.ema.items() if name not in given}
        params = _drawn(drawn, functools.partial(_draw, begins, seed))
        params |= {name: stacks.restack(abstract.ema[name], net) for name, net in given.items()}
        return begin({name: params[name] for name in abstract.ema})

    return create, abstract


def _draw(begins: Mapping[str, initial.Initializer], seed: int, one: stacks.Parameter) -> np.ndarray:
    """First values of the parameters that an array holds."""
    values = [begins[name].draw(seed, name, one.shape) for name in one.names]
    return np.stack(values) if one.stacked else values[0]


def _drawn(abstract: Any, draw: Callable[[stacks.Parameter], np.ndarray]) -> Any:
    """Arrays where `abstract` has shapes with shardings; this process makes its own shards."""

    def put(one: stacks.Parameter, like: jax.ShapeDtypeStruct) -> jax.Array:
        values = draw(one)
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])

    ones, tree = jax.tree.flatten(stacks.map_parameters(lambda one: one, abstract))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # NumPy draws beside other threads
        return jax.tree.unflatten(tree, list(pool.map(put, ones, jax.tree.leaves(abstract))))


class Settings(NamedTuple):
    """Settings of training that are arguments of its program: to change their values compiles nothing."""

    tx: states.Transformation
    seed: Any  # u32 []
    ema_decay: Any  # f32 []


def settings(tx: Optimizer, seed: int, ema_decay: float) -> Settings:
    """The settings as arrays, by whose values no two programs differ."""
    return Settings(jax.tree.map(np.float32, tx), rng.as_argument(seed), np.float32(ema_decay))


def text_encoding(
    encoder: TextEncoder | None, mesh: Mesh, over: Sequence[str] = sharding.EVERY, *, embeds: int | None = None
) -> Callable[[Batch], Batch]:
    """(batch with `tokens` i32 [b t] or without, its rows split over the mesh axes `over`) -> the batch with what
    networks read of the texts in their place; the batch as it is where there is no encoder.

    embeds: index of the frame of which clips, where there are any, get CLIP's `embedding`; None for none.
    """
    if encoder is None:
        return lambda batch: batch
    params = jax.device_put(encoder.params, sharding.replicated(mesh))
    where = sharding.batch_sharding(mesh, over)
    encode, embed = (jax.jit(function, out_shardings=where) for function in (encoder.encode, encoder.embed))

    def encoded(batch: Batch) -> Batch:
        read = {name: value for name, value in batch.items() if name != "tokens"}
        if "tokens" in batch:
            read |= dict(zip(TEXT, encode(params, batch["tokens"]), strict=True))
        if embeds is not None and "video" in batch:
            read["embedding"] = embed(params, batch["video"][:, embeds])
        return read

    return encoded


def update(model: Model, mesh: Mesh, abstract: Any, accumulate: int) -> Any:
    """The jitted step, (state, batch, settings) -> (state, numbers); the state given is used up."""

    def step(state: Any, batch: Batch, settings: Settings) -> Any:
        return train_step(
            state, batch, model=model, accumulate=accumulate, spread=sharding.averaging(mesh), **settings._asdict()
        )

    where = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))


def validation(model: Model, mesh: Mesh) -> Any:
    """Jitted (params, batch, t, seed) -> errors [b] of each clip at noise level t."""

    def step(params: Any, batch: Batch, t: Array, seed: rng.Seed) -> Any:
        return validation_step(params, batch, t, model=model, seed=seed)

    return jax.jit(step, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def sampling(model: Model, mesh: Mesh, options: samplers.SampleOptions, pixels: bool = True) -> Any:
    """Jitted (params, batch of conditions and control, seed) -> u8 [b f h w 3]; f32 in [-1, 1] without `pixels`.

    Sample k depends on (seed, k), the weights and what is controlled of it alone (`control`).
    """

    def sample(params: Any, batch: Batch, seed: rng.Seed) -> jax.Array:
        keys, fixed = _keys(batch, seed), control(batch, seed)
        clips = samplers.sample(model, stacks.unstack(params), keys, model.condition(batch), options, fixed)
        return video.to_uint8(clips) if pixels else jnp.clip(clips, -1, 1)

    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def raising(model: SuperResolution, mesh: Mesh, options: samplers.SampleOptions) -> Any:
    """Jitted (params, batch of conditions, `low` f32 [b f h w 3] and `number` u32 [b], seed) -> u8 [b f H W 3].

    The clip of number k depends on (seed, k), the weights, its low clip and its conditions alone.
    """

    def sample(params: Any, batch: Batch, seed: rng.Seed) -> jax.Array:
        keys = rng.example_keys(seed, rng.Purpose.SUPERRES, batch["number"])
        return video.to_uint8(samplers.sample(model, stacks.unstack(params), keys, model.condition(batch), options))

    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def embeddings(model: Prior, mesh: Mesh, options: samplers.SampleOptions) -> Any:
    """Jitted (params, batch of `index` u32 [b] and conditions, seed) -> f32 [b d], embeddings that the prior samples.

    Number k depends on (seed, k), its condition and the weights alone.
    """

    def sample(params: Any, batch: Batch, seed: rng.Seed) -> jax.Array:
        params, keys = stacks.unstack(params), rng.example_keys(seed, rng.Purpose.PRIOR, batch["index"])
        return model.embeddings(params, samplers.sample(model, params, keys, model.condition(batch), options))

    return jax.jit(sample, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


class Windowed(NamedTuple):
    """The jitted programs by which windows are denoised together (`vf.models.windowed`); t, where known, is int32 [].

    Attributes:
        start: (batch of control, seed) -> the noise of each row that sampling starts from, `residual` f32 [b f h w c]
            and, where noise is decomposed, `base` f32 [b h w c].
        injected: the same of the noise at a time, the last argument.
        base: (params, batch of conditions and `z` f32 [b h w c], t) -> `windowed.Base`.
        window: (params, batch of conditions, `z` f32 [b f h w c] and `b` f32 [b h w c], t) -> clean estimates, with `b`
            where noise is decomposed.
        begin: batch of `z` -> the solver's state, a flat dict.
        advance: (batch of `z`, clean estimates `x_0`, the state, and noises `xi` and `again` where any are injected,
            times [4]) -> batch of `z` and the state.
        pixels: batch of `z` -> u8.
    """

    start: Any
    injected: Any
    base: Any
    window: Any
    begin: Any
    advance: Any
    pixels: Any


def together(model: Model, mesh: Mesh, options: samplers.SampleOptions) -> Windowed:
    """The programs for a model and options."""

    def noise(batch: Batch, seed: rng.Seed, t: Array | None = None) -> Any:
        keys, fixed = _keys(batch, seed), control(batch, seed)
        if isinstance(model, VideoFusion):
            return samplers.noise_parts(model, keys, fixed, t)._asdict()
        return {"residual": samplers.undivided_noise(model, keys, fixed, t)}

    def base(params: Any, batch: Batch, t: Array) -> windowed.Base:
        assert isinstance(model, VideoFusion)
        return windowed.base(model, stacks.unstack(params), model.condition(batch), batch["z"], t, options)

    def window(params: Any, batch: Batch, t: Array) -> Array:
        condition = model.condition(batch)
        return windowed.window(model, stacks.unstack(params), condition, batch["z"], t, batch.get("b"), options)

    def begin(batch: Batch) -> dict[str, Array]:
        leaves = jax.tree.leaves(windowed.begin(options, batch["z"]))
        return {f"state_{number}": leaf for number, leaf in enumerate(leaves)}

    def advance(batch: Batch, times: Array) -> dict[str, Array]:
        z = batch["z"]
        like = jax.eval_shape(functools.partial(windowed.begin, options), z)
        leaves, tree = jax.tree.flatten(like)
        state = jax.tree.unflatten(tree, [batch[f"state_{number}"] for number in range(len(leaves))])
        z, state = windowed.advance(model, options, z, state, batch["x_0"], times, batch.get("xi"), batch.get("again"))
        return {"z": z} | {f"state_{number}": leaf for number, leaf in enumerate(jax.tree.leaves(state))}

    jit = functools.partial(jax.jit, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))
    pixels = jit(lambda batch: video.to_uint8(batch["z"]))
    return Windowed(jit(noise), jit(noise), jit(base), jit(window), jit(begin), jit(advance), pixels)


def _keys(batch: Batch, seed: rng.Seed) -> jax.Array:
    """The keys of the samples of a batch."""
    if "content" in batch:
        return _numbered(batch["content"])
    return rng.example_keys(seed, rng.Purpose.SAMPLE, batch["index"])


def control(batch: Batch, seed: rng.Seed) -> samplers.Control:
    """What the rows of a batch control, each as far as it is there.

    `motion` u32 [b k], seed, number and perhaps window of the residual noise, in place of `seed` and `index`, as
    `content` for the base noise; `content_towards` u32 [b] and `motion_towards` u32 [b], the numbers of the noises to
    which base and residual noise turn by `content_angle` and `motion_angle` f32 [b]; `base_noise`, `residual_noise`
    f32; `known` u8 [b f h w 3]; `order` i32 [b f].
    """

    def towards(name: str, seeds: jax.Array) -> samplers.Towards | None:
        if (numbers := batch.get(f"{name}_towards")) is None:
            return None
        return samplers.Towards(_numbered(jnp.stack([seeds, numbers], 1)), batch[f"{name}_angle"])

    own, motion = jnp.broadcast_to(jnp.uint32(seed), batch["index"].shape), batch.get("motion")
    known = batch.get("known")
    return samplers.Control(
        motion=None if motion is None else _numbered(motion),
        content_towards=towards("content", own),
        motion_towards=towards("motion", own if motion is None else motion[:, 0]),
        base_noise=batch.get("base_noise"), residual_noise=batch.get("residual_noise"),
        known=None if known is None else video.from_uint8(known), order=batch.get("order"),
    )  # fmt: skip


def _numbered(numbers: jax.Array) -> jax.Array:
    """Keys [b] of rows of a seed and numbers, u32 [b k]; of two as `rng.example_keys`."""

    def key(row: jax.Array) -> jax.Array:
        made = rng.key(row[0], rng.Purpose.SAMPLE)
        for number in row[1:]:
            made = jax.random.fold_in(made, number)
        return made

    return jax.vmap(key)(numbers)


def inversion(model: VideoFusion, mesh: Mesh, options: samplers.SampleOptions) -> Any:
    """Jitted (params, batch of conditions and `video` u8 [b f h w 3]) -> their noises, `models.sampler.Noise`."""

    def invert(params: Any, batch: Batch) -> samplers.Noise:
        clips = video.from_uint8(batch["video"])
        return samplers.invert(model, stacks.unstack(params), clips, model.condition(batch), options)

    return jax.jit(invert, out_shardings=sharding.batch_sharding(mesh, sharding.EVERY))


def in_batches(
    program: Callable[[Batch], Any], rows: Mapping[str, np.ndarray], batch_size: int, mesh: Mesh,
    done: Callable[[int], None] = lambda rows: None,
) -> Any:  # fmt: skip
    """What `program` gives for all `rows` [n ...], on every host: a tree of arrays [n ...].

    The last batch is filled up with the last row, and what comes of that is cut, so that one program serves all. After
    each batch `done` is told how many rows are.
    """
    count = len(next(iter(rows.values())))
    mine = sharding.my_rows(mesh, batch_size, sharding.EVERY)
    parts = []
    for first in range(0, count, batch_size):
        chosen = np.minimum(first + mine, count - 1)
        batch = {name: value[chosen] for name, value in rows.items()}
        made = program(sharding.put_batch(batch, mesh, batch_size, sharding.EVERY))
        parts.append(multihost_utils.process_allgather(made, tiled=True))
        done(min(first + batch_size, count))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:count], *parts)
