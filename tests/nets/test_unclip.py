"""DALL-E 2's decoder: which conditions count, and which never train."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vf.nets.unclip import Decoder
from vf.nets.unet import UNet

DIM, CONTEXT, LENGTH = 6, 8, 5
BODY = UNet(
    width=4, width_mult=(1,), num_res_blocks=1, attention=(1,), head_dim=4, norm_groups=2, cond_dim=16,
    cond_projection=False, context_dim=CONTEXT,
)  # fmt: skip
SIZES = {"clip_dim": DIM, "text_length": LENGTH, "image_tokens": 2}
UNCONDITIONED, NET = Decoder(BODY, **SIZES), Decoder(BODY, texts=3, embedding=True, **SIZES)
Z = np.random.default_rng(7).normal(size=(3, 1, 4, 4, 3)).astype(np.float32)
T = np.array([10, 700, 500])
IMAGE = np.random.default_rng(8).normal(size=(3, DIM)).astype(np.float32)
ROW = np.array([0, 1, 2])


@pytest.fixture(scope="module")
def params():
    """Random values everywhere; three texts of 3, 5 and 2 tokens."""
    shapes = jax.eval_shape(lambda: NET.init(jax.random.key(0), Z, T, cond=IMAGE, label=ROW))["params"]
    rng = np.random.default_rng(1)
    flat = flatten_dict(shapes, sep="/")
    made = {name: rng.normal(size=leaf.shape).astype(np.float32) * 0.5 for name, leaf in flat.items()}
    made["texts/mask"] = (np.arange(LENGTH) < np.array([[3], [5], [2]])).astype(np.float32)
    return made


@jax.jit
def apply(params, image, null, row):
    return NET.apply({"params": unflatten_dict(params, sep="/")}, Z, T, cond=image, null=null, label=row)


@jax.jit
def apply_unconditioned(params):
    return UNCONDITIONED.apply({"params": unflatten_dict(params, sep="/")}, Z, T)


ALL, NONE = np.ones(3, bool), np.zeros(3, bool)


def test_masked_tokens_do_not_count(params):
    true = apply(params, IMAGE, NONE, ROW)
    noise = np.random.default_rng(2).normal(size=params["texts/states"].shape).astype(np.float32)
    mask = params["texts/mask"][..., None]
    hidden = {"texts/states": params["texts/states"] + noise * (1 - mask)}
    np.testing.assert_array_equal(apply(params | hidden, IMAGE, NONE, ROW), true)
    shown = {"texts/states": params["texts/states"] + noise * mask}
    assert (np.abs(apply(params | shown, IMAGE, NONE, ROW) - true).max((1, 2, 3, 4)) > 1e-4).all()


def test_image_and_text_are_chosen_apart(params):
    """A null row sees the learned vector for its embedding, and the text that its label names all the same."""
    true = apply(params, IMAGE, NONE, ROW)
    some = apply(params, IMAGE, np.array([True, False, False]), ROW)
    np.testing.assert_array_equal(some[1:], true[1:])
    assert np.abs(some[0] - true[0]).max() > 1e-4
    learned = np.broadcast_to(params["null_embedding"], IMAGE.shape)
    np.testing.assert_array_equal(apply(params, IMAGE, ALL, ROW), apply(params, learned, NONE, ROW))
    other = apply(params, IMAGE, NONE, np.array([1, 1, 2]))
    assert np.abs(other[0] - true[0]).max() > 1e-4
    np.testing.assert_array_equal(other[1:], true[1:])


def test_no_texts_is_a_text_of_masked_tokens(params):
    without_texts = {name: array for name, array in params.items() if not name.startswith("texts/")}
    blank = {name: np.zeros_like(params[name]) for name in ("texts/mask", "texts/pooled")}
    np.testing.assert_allclose(apply_unconditioned(without_texts), apply(params | blank, IMAGE, ALL, ROW), atol=1e-5)
    shapes = jax.eval_shape(lambda: UNCONDITIONED.init(jax.random.key(0), Z, T))["params"]
    assert flatten_dict(shapes, sep="/").keys() == without_texts.keys()


def test_a_text_of_its_own_reads_as_a_row_of_texts(params):
    """And a null row has the empty prompt, the last one, beside the learned vector of the embedding."""
    own = Decoder(BODY, texts=1, text=True, embedding=True, **SIZES)
    empty = {name: params[name][-1:] for name in params if name.startswith("texts/")}
    names = ("states", "mask", "pooled")
    read = {f"text_{name}": params[f"texts/{name}"][ROW] for name in names}
    read["text_mask"] = read["text_mask"] > 0.5
    null = np.array([False, True, False])
    made = own.apply({"params": unflatten_dict(params | empty, sep="/")}, Z, T, cond=IMAGE, null=null, **read)
    np.testing.assert_allclose(made, apply(params, IMAGE, null, np.array([0, 2, 2])), atol=1e-5)


def test_without_an_empty_prompt_no_text_is_a_learned_token(params):
    own = Decoder(BODY, text=True, **SIZES)
    learned = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
    params = {name: array for name, array in params.items() if not name.startswith("texts/")} | {"null_text": learned}
    tree = {"params": unflatten_dict(params, sep="/")}
    random = np.random.default_rng(4)
    read = {
        "text_states": random.normal(size=(3, LENGTH, DIM)).astype(np.float32), "text_mask": np.ones((3, LENGTH), bool),
        "text_pooled": random.normal(size=(3, DIM)).astype(np.float32),
    }  # fmt: skip
    null = np.array([True, False, False])
    made = own.apply(tree, Z, T, null=null, **read)
    token = {name: np.array(value) for name, value in read.items()}
    token["text_states"][0, 0] = token["text_pooled"][0] = learned
    token["text_mask"][0, 1:] = False
    np.testing.assert_allclose(made, own.apply(tree, Z, T, **token), atol=1e-5)
    assert np.abs(made - own.apply(tree, Z, T, **read))[0].max() > 1e-4
    with pytest.raises(ValueError, match="text_states is missing"):
        own.apply(tree, Z, T)


def test_the_mean_of_a_text_s_tokens_is_added_to_the_step(params):
    """Up to its end: for one text it is a bias more."""
    random = np.random.default_rng(5)
    states = np.broadcast_to(random.normal(size=(1, LENGTH, DIM)), (3, LENGTH, DIM)).astype(np.float32)
    read = {"text_states": states, "text_mask": np.arange(LENGTH) < np.full((3, 1), 3), "text_pooled": states[:, 0]}
    kernel, bias = random.normal(size=(DIM, 16)).astype(np.float32), random.normal(size=16).astype(np.float32)
    plain = {name: array for name, array in params.items() if not name.startswith("texts/")}
    plain["null_text"] = np.zeros(DIM, np.float32)
    with_mean = plain | {"text_mean_to_step/kernel": kernel, "text_mean_to_step/bias": bias}
    made = Decoder(BODY, text=True, text_mean=True, **SIZES).apply(
        {"params": unflatten_dict(with_mean, sep="/")}, Z, T, **read
    )
    shifted = plain | {"text_to_step/bias": plain["text_to_step/bias"] + states[0, :3].mean(0) @ kernel + bias}
    true = Decoder(BODY, text=True, **SIZES).apply({"params": unflatten_dict(shifted, sep="/")}, Z, T, **read)
    np.testing.assert_allclose(made, true, atol=1e-4)


def test_texts_do_not_train_and_everything_else_does(params):
    null = np.array([True, False, False])
    moved = jax.jit(jax.grad(lambda p: (apply(p, IMAGE, null, ROW) ** 2).sum()))(params)
    still = {name for name, gradient in moved.items() if not np.any(gradient)}
    assert still == {"texts/states", "texts/mask", "texts/pooled"}


def test_unused_inputs_are_refused():
    with pytest.raises(ValueError, match="label was given to a network without texts"):
        jax.eval_shape(lambda: UNCONDITIONED.init(jax.random.key(0), Z, T, label=ROW))
    with pytest.raises(ValueError, match="cond was given to a network built with embedding"):
        jax.eval_shape(lambda: UNCONDITIONED.init(jax.random.key(0), Z, T, cond=IMAGE))
    with pytest.raises(ValueError, match="cond is missing"):
        jax.eval_shape(lambda: NET.init(jax.random.key(0), Z, T, label=ROW))
    with pytest.raises(ValueError, match="clip_dim = 6"):
        jax.eval_shape(lambda: NET.init(jax.random.key(0), Z, T, label=ROW, cond=IMAGE[:, :3]))
