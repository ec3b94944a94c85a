"""A small CLIP with random weights, as the converter writes one, and a tokenizer of the sprites' captions."""

import dataclasses

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.data.sprites import BACKGROUNDS, COLOURS, SHAPES, WAYS
from vf.nets import tokenizer
from vf.nets.clip import CLIP, TextConfig
from vf.nets.vit import Config
from vf.pretrained import weights

CAPTIONS = [f"a {c} {s} moves {w} over {b}" for s in SHAPES for c in COLOURS for w in WAYS for b in BACKGROUNDS]
LENGTH = 10


def write(folder, seed=0):
    """Writes both; returns their paths."""
    encoder, vocabulary = folder / "clip.safetensors", folder / "tokenizer.json"
    tokenizer.learn(CAPTIONS, vocabulary)
    vision = Config(8, 1, 2, 16, patch=8, tubelet=1, size=16, frames=1, act="quick_gelu", class_token=True)
    count = tokenizer.Tokenizer(vocabulary).vocabulary
    language = TextConfig(width=8, depth=1, heads=2, mlp=16, context=LENGTH, vocabulary=count, dim=8)
    inputs = (np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, LENGTH), np.int32))
    shapes = jax.eval_shape(CLIP(vision, language).init, jax.random.key(0), *inputs)["params"]
    random = np.random.default_rng(seed)
    arrays = {
        name: random.normal(size=leaf.shape).astype(np.float32) for name, leaf in flatten_dict(shapes, sep="/").items()
    }
    about = {"vision": dataclasses.asdict(vision), "language": dataclasses.asdict(language)}
    weights.save(encoder, "clip", arrays, about)
    return encoder, vocabulary
