"""Trains a small CLIP on captioned clips, where nobody has a public one: both encoders, and the tokenizer.

With unit vectors u_i of the base frames of a batch and v_i of their captions, s = exp(logit_scale), and the share
p_ij = [caption j equals caption i] / number of these, which is uniform over equal captions,

    loss = - 1/2 mean_i sum_j p_ij (log softmax_j s u_i . v_j + log softmax_j s v_i . u_j)                       (1)

For distinct captions this is the loss of CLIP (Radford et al. 2021, figure 3).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from vf.activity import ACTIVITY
from vf.config.specs import ContrastSpec
from vf.data import pipeline
from vf.files import AnyPath
from vf.hosts.run import Hosts
from vf.nets import tokenizer
from vf.nets.clip import CLIP, preprocess, unit
from vf.pretrained import weights
from vf.run.progress import Progress
from vf.training import sharding
from vf.types import Batch, UserError

ENCODER, TOKENIZER = "clip.safetensors", "tokenizer.json"
LEAST_TEMPERATURE = 1 / 100  # CLIP's: s is at most 100
SPREAD = 50.0  # of the words' first vectors, whose deviation is then 1 (CLIP's: 0.02)


def loss(
    u: Float[Array, "b d"], v: Float[Array, "b d"], tokens: Int[Array, "b t"], logit_scale: Float[Array, "1"]
) -> Float[Array, ""]:
    """(1) of embeddings that are not divided by their length."""
    scale = jnp.minimum(jnp.exp(logit_scale), 1 / LEAST_TEMPERATURE)
    logits = scale * unit(u) @ unit(v).T
    same = (tokens[:, None] == tokens).all(-1)
    share = same / same.sum(1, keepdims=True)
    there, back = (jnp.sum(share * jax.nn.log_softmax(some), 1).mean() for some in (logits, logits.T))
    return -(there + back) / 2


def run(spec: ContrastSpec, workdir: AnyPath, hosts: Hosts) -> dict[str, float]:
    """Trains, and writes `ENCODER`, as the converter writes CLIP's, and `TOKENIZER` into `workdir`; {} where they are.

    A job that is stopped begins anew: it takes minutes. Returns the validation loss, `loss/validation`, and the share
    of validation frames whose nearest caption is of a clip of their class, `nearest_caption_of_class`. Raises UserError
    where clips have no captions.
    """
    file, vocabulary = workdir / ENCODER, workdir / TOKENIZER
    if hosts.share(file.is_file() and vocabulary.is_file()):
        logging.info("%s is there already, and is left as it is: remove it to train another", file)
        return {}
    if jax.process_index() == 0:
        tokenizer.learn(_captions(spec), vocabulary)
    hosts.share(None)  # until it is written
    words = tokenizer.Tokenizer(vocabulary)
    language = spec.language(words.vocabulary)
    net = CLIP(spec.vision, language, None)
    source, validation = (
        spec.source(part, lambda caption: words.encode([caption], context=language.context)[0][0])
        for part in ("training", "validation")
    )
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0, spec.lr, spec.steps // 10, spec.steps), weight_decay=0.1)

    def value(params: Any, batch: Batch) -> Array:
        u, v = _embed(net, params, batch, spec.base_frame)
        return loss(u, v, batch["tokens"], params["logit_scale"])

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Batch) -> tuple[Any, Array]:
        params, moments = state
        found, grads = jax.value_and_grad(value)(params, batch)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), found

    rows = sharding.my_rows(spec.mesh, spec.batch_size).tolist()
    with (
        ACTIVITY.doing("preparing CLIP's encoders") as task,
        pipeline.batches(source, seed=spec.seed, batch_size=spec.batch_size, rows=rows, threads=1) as batches,
    ):
        batch = sharding.put_batch(next(batches), spec.mesh, spec.batch_size)
        inputs = _inputs(batch, spec.base_frame, spec.vision.size)
        params = jax.jit(net.init)(jax.random.key(spec.seed), *inputs)["params"]
        # Of words that no base frame shows, such as those of motion, the loss learns nothing. They keep apart in the
        # states of their own tokens where these begin far apart.
        params["text"]["tokens"] *= SPREAD
        state = jax.device_put((params, tx.init(params)), sharding.replicated(spec.mesh))
        progress = Progress(spec.steps, 0)
        task.begin("training CLIP's encoders")
        for step in range(1, spec.steps + 1):
            state, found = update(state, batch)
            batch = sharding.put_batch(next(batches), spec.mesh, spec.batch_size)
            if step % spec.log_every == 0 or step == spec.steps:
                progress.update(step, loss=float(found))
        task.begin("scoring CLIP's encoders")
        scores = _scores(net, state[0], validation, spec)
    if jax.process_index() == 0:
        arrays = {name: np.asarray(value) for name, value in flatten_dict(state[0], sep="/").items()}
        about = {"vision": vars(spec.vision), "language": vars(language), "official": False, "act_from": "training"}
        weights.save(file, "clip", arrays, about | {"layout": "vf", "licence": "of those who trained it"})
        logging.info("text encoder: %s; its tokenizer: %s", file, vocabulary)
    return scores


def _captions(spec: ContrastSpec) -> list[str]:
    """Captions of some training clips."""
    found: list[str] = []

    def note(caption: str) -> np.ndarray:
        found.append(caption)
        return np.zeros(0, np.int32)

    source = spec.source("training", note)
    with ACTIVITY.doing("reading captions"):
        pipeline.fixed_clips(source, min(len(source), spec.captions), seed=spec.seed)
    if not any(found):
        raise UserError(
            "none of the clips has a caption: prepare them with a table of captions, by python -m vf.data.prepare "
            "folder --table=FILE (or webvid)"
        )
    return found


def _inputs(batch: Batch, base_frame: int, size: int) -> tuple[Array, Array]:
    return preprocess(batch["video"][:, base_frame], size), batch["tokens"]


def _embed(net: CLIP, params: Any, batch: Batch, base_frame: int) -> tuple[Array, Array]:
    embedded: Any = net.apply({"params": params}, *_inputs(batch, base_frame, net.vision.size))
    return embedded[0], embedded[1]


def _scores(net: CLIP, params: Any, source: pipeline.Source, spec: ContrastSpec) -> dict[str, float]:
    clips = pipeline.fixed_clips(source, spec.batch_size, seed=spec.seed)
    u, v = jax.jit(functools.partial(_embed, net, base_frame=spec.base_frame))(params, clips)
    nearest = np.asarray(unit(u) @ unit(v).T).argmax(1)
    same = float(np.mean(clips["label"][nearest] == clips["label"]))
    found = float(loss(u, v, jnp.asarray(clips["tokens"]), params["logit_scale"]))
    logging.info(
        "validation loss %.3f; the nearest caption is of their class for %.1f %% of the frames", found, 100 * same
    )
    return {"loss/validation": found, "nearest_caption_of_class": same}
