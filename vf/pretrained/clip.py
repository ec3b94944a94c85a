"""CLIP's ViTs: OpenAI's TorchScript archives and Hugging Face folders.

No array tells which GELU a network was trained with. OpenAI's CLIPs, in either layout, use x sigmoid(1.702 x), and so
does what is made here; other networks of the same shapes (LAION's) would give wrong embeddings.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.clip import CLIP, TEXT_B32, Text, TextConfig
from vf.nets.vit import CLIP_B32, Config
from vf.pretrained import vit
from vf.pretrained.names import From
from vf.pretrained.weights import OFFICIAL

_OPENAI = {
    "norm1": "ln_1", "qkv": "attn.in_proj", "proj": "attn.out_proj", "norm2": "ln_2",
    "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip
_HUGGING_FACE = {
    "norm1": "layer_norm1", "qkv": "self_attn.qkv", "proj": "self_attn.out_proj", "norm2": "layer_norm2",
    "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # tensors in OpenAI's archives, but no weights


def openai(vision: Config, language: TextConfig) -> dict[str, From]:
    """{ours, block by block: OpenAI's}, with its `in_proj_weight` spelt `in_proj.weight`."""
    rows = {
        "image/embed/kernel": From("visual.conv1.weight", vit.PATCHES),
        "image/embed/class_token": From("visual.class_embedding"),
        "image/embed/positions": From("visual.positional_embedding"), "image/proj/kernel": From("visual.proj"),
        "text/tokens": From("token_embedding.weight"), "text/positions": From("positional_embedding"),
        "text/proj/kernel": From("text_projection"), "logit_scale": From("logit_scale"),
        **vit.norm("image/norm_pre", "visual.ln_pre"), **vit.norm("image/norm_post", "visual.ln_post"),
        **vit.norm("text/norm", "ln_final"),
    }  # fmt: skip
    for k in range(vision.depth):
        rows |= vit.block(f"image/blocks/{k}", f"visual.transformer.resblocks.{k}", _OPENAI)
    for k in range(language.depth):
        rows |= vit.block(f"text/blocks/{k}", f"transformer.resblocks.{k}", _OPENAI)
    return rows


def hugging_face(vision: Config, language: TextConfig) -> dict[str, From]:
    """{ours, block by block: Hugging Face's}, with q, k and v as one `qkv`."""
    rows = {
        "image/embed/kernel": From("vision_model.embeddings.patch_embedding.weight", vit.PATCHES),
        "image/embed/class_token": From("vision_model.embeddings.class_embedding"),
        "image/embed/positions": From("vision_model.embeddings.position_embedding.weight"),
        "text/tokens": From("text_model.embeddings.token_embedding.weight"),
        "text/positions": From("text_model.embeddings.position_embedding.weight"), "logit_scale": From("logit_scale"),
        **vit.norm("image/norm_pre", "vision_model.pre_layrnorm"),  # spelt so
        **vit.norm("image/norm_post", "vision_model.post_layernorm"),
        **vit.norm("text/norm", "text_model.final_layer_norm"),
        **vit.dense("image/proj", "visual_projection", bias=False),
        **vit.dense("text/proj", "text_projection", bias=False),
    }  # fmt: skip
    for k in range(vision.depth):
        rows |= vit.block(f"image/blocks/{k}", f"vision_model.encoder.layers.{k}", _HUGGING_FACE)
    for k in range(language.depth):
        rows |= vit.block(f"text/blocks/{k}", f"text_model.encoder.layers.{k}", _HUGGING_FACE)
    return rows


def text(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], TextConfig]:
    """The text encoder alone, with its projection, of a Hugging Face folder of CLIP or CLIPTextModelWithProjection.

    Raises:
        ValueError: another network.
    """
    root = "text_model.embeddings.token_embedding.weight"
    if root not in arrays or "text_projection.weight" not in arrays:
        raise ValueError("it has no text encoder of CLIP with a projection, under Hugging Face's names")
    kept = ("text_model.", "text_projection.")
    arrays = _joined({name: array for name, array in arrays.items() if name.startswith(kept)})
    names = {ours: source.name for ours, source in hugging_face(CLIP_B32, TEXT_B32).items()}
    language = _language(arrays, names, "text_model.encoder.layers.", "hugging_face")
    tokens = jax.ShapeDtypeStruct((1, language.context), np.int32)
    params = jax.eval_shape(Text(language).init, jax.random.key(0), tokens)["params"]
    shapes = flatten_dict({"text": params}, sep="/")
    rows = {k: row for k, row in hugging_face(CLIP_B32, language).items() if k.startswith("text/")}
    made = vit.converted(arrays, rows, shapes, {"text/blocks": language.depth})
    return {name.removeprefix("text/"): array for name, array in made.items()}, language


def _language(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], blocks: str, layout: str) -> TextConfig:
    """The configuration of the text encoder that shapes tell."""
    vocabulary, width = vit.shape(arrays, names["text/tokens"], 2)
    projection = vit.shape(arrays, names["text/proj/kernel"], 2)
    return TextConfig(
        width, vit.depth(arrays, blocks), max(width // 64, 1),
        vit.shape(arrays, names["text/blocks/0/fc1/kernel"], 2)[0],
        vit.shape(arrays, names["text/positions"], 2)[0], vocabulary, projection[0 if layout == "hugging_face" else 1],
    )  # fmt: skip


def _joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's q_proj, k_proj and v_proj as one; ValueError where one of them is missing."""
    made = {name: array for name, array in arrays.items() if not name.endswith(".position_ids")}
    for name in [name for name in made if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if missing := [part for part in parts if part not in made]:
            raise ValueError(f"{len(missing)} missing: {', '.join(missing)}")
        made[name.replace(".q_proj.", ".qkv.")] = np.concatenate([made.pop(part) for part in parts])
    return made


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ours, and what is known about them: `layout`, `vision`, `language` (the two configurations), `official`.

    Raises:
        ValueError: another network, a CLIP with a ResNet, or half of one.
    """
    if "visual.conv1.weight" in arrays:
        layout, make, vision_blocks, text_blocks = (
            "openai",
            openai,
            "visual.transformer.resblocks.",
            "transformer.resblocks.",
        )
        if "visual.class_embedding" not in arrays:
            raise ValueError("its image encoder is no vision transformer")
        arrays = {
            name.replace(".in_proj_", ".in_proj."): array for name, array in arrays.items() if name not in _SETTINGS
        }
    elif "vision_model.embeddings.patch_embedding.weight" in arrays:
        layout, make = "hugging_face", hugging_face
        vision_blocks, text_blocks = "vision_model.encoder.layers.", "text_model.encoder.layers."
        arrays = _joined(arrays)
    else:
        raise ValueError(f"neither OpenAI's names nor Hugging Face's, so it is no CLIP, such as {OFFICIAL['clip']}")
    names = {ours: source.name for ours, source in make(CLIP_B32, TEXT_B32).items()}  # of what is not in blocks
    width, _, patch, _ = vit.shape(arrays, names["image/embed/kernel"], 4)
    side = math.isqrt(vit.shape(arrays, names["image/embed/positions"], 2)[0] - 1)
    vision = dataclasses.replace(
        CLIP_B32, width=width, depth=vit.depth(arrays, vision_blocks), heads=max(width // 64, 1), patch=patch,
        size=side * patch, mlp=vit.shape(arrays, names["image/blocks/0/fc1/kernel"], 2)[0],
    )  # fmt: skip
    language = _language(arrays, names, text_blocks, layout)
    params = jax.eval_shape(
        CLIP(vision, language).init, jax.random.key(0),
        jax.ShapeDtypeStruct((1, vision.size, vision.size, 3), np.float32),
        jax.ShapeDtypeStruct((1, language.context), np.int32),
    )["params"]  # fmt: skip
    shapes = flatten_dict(params, sep="/")
    stacks = {"image/blocks": vision.depth, "text/blocks": language.depth}
    made = vit.converted(arrays, make(vision, language), shapes, stacks)
    about = {
        "layout": layout, "vision": dataclasses.asdict(vision), "language": dataclasses.asdict(language),
        "official": (vision, language) == (CLIP_B32, TEXT_B32), "licence": "MIT (OpenAI)",
    }  # fmt: skip
    return made, about
