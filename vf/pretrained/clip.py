"""Converts CLIP's ViTs from OpenAI's TorchScript archives, from Hugging Face folders, and from OpenCLIP's.

No array says with which GELU a network was trained, nor into how many heads its width is divided: OpenAI's CLIPs use
x sigmoid(1.702 x) and heads of 64 channels, LAION's of the same shapes the other GELU, and their larger ones other
heads. A folder's config.json (open_clip_config.json) is obeyed; OpenAI's archives need none.

Hugging Face has folders of one encoder, too, with its projection: CLIPVisionModelWithProjection, which suffices for
embeddings of frames, and CLIPTextModelWithProjection, as diffusers' pipelines keep them. They have no `logit_scale`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.clip import TEXT_B32, Image, Text, TextConfig
from vf.nets.vit import CLIP_B32, Config
from vf.pretrained import vit
from vf.pretrained.names import Origin
from vf.pretrained.weights import OFFICIAL

_OPENAI = {
    "norm1": "ln_1", "qkv": "attn.in_proj", "proj": "attn.out_proj", "norm2": "ln_2",
    "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip
_HUGGING_FACE = {
    "norm1": "layer_norm1", "qkv": "self_attn.qkv", "proj": "self_attn.out_proj", "norm2": "layer_norm2",
    "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
ACTS: tuple[Any, ...] = ("quick_gelu", "gelu")
HUGGING_FACE_ROOTS = {
    "image": "vision_model.embeddings.patch_embedding.weight", "text": "text_model.embeddings.token_embedding.weight",
}  # fmt: skip
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # tensors in OpenAI's archives that are no weights


def openai(vision: Config, language: TextConfig) -> dict[str, Origin]:
    """{our name in an unstacked block: OpenAI's}, with its `in_proj_weight` spelt `in_proj.weight`."""
    rows = {
        "image/embed/kernel": Origin("visual.conv1.weight", vit.PATCHES),
        "image/embed/class_token": Origin("visual.class_embedding"),
        "image/embed/positions": Origin("visual.positional_embedding"), "image/proj/kernel": Origin("visual.proj"),
        "text/tokens": Origin("token_embedding.weight"), "text/positions": Origin("positional_embedding"),
        "text/proj/kernel": Origin("text_projection"), "logit_scale": Origin("logit_scale"),
        **vit.norm("image/norm_pre", "visual.ln_pre"), **vit.norm("image/norm_post", "visual.ln_post"),
        **vit.norm("text/norm", "ln_final"),
    }  # fmt: skip
    for k in range(vision.depth):
        rows |= vit.block(f"image/blocks/{k}", f"visual.transformer.resblocks.{k}", _OPENAI)
    for k in range(language.depth):
        rows |= vit.block(f"text/blocks/{k}", f"transformer.resblocks.{k}", _OPENAI)
    return rows


def hugging_face(vision: Config, language: TextConfig) -> dict[str, Origin]:
    """{our name in an unstacked block: Hugging Face's}, with q, k and v joined to `qkv`."""
    rows = {
        "image/embed/kernel": Origin("vision_model.embeddings.patch_embedding.weight", vit.PATCHES),
        "image/embed/class_token": Origin("vision_model.embeddings.class_embedding"),
        "image/embed/positions": Origin("vision_model.embeddings.position_embedding.weight"),
        "text/tokens": Origin("text_model.embeddings.token_embedding.weight"),
        "text/positions": Origin("text_model.embeddings.position_embedding.weight"),
        "logit_scale": Origin("logit_scale"),
        **vit.norm("image/norm_pre", "vision_model.pre_layrnorm"),  # misspelt in their code
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


def text(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], TextConfig]:
    """(arrays, configuration) of the text encoder with its projection, from a Hugging Face folder.

    The folder is of CLIP or CLIPTextModelWithProjection; `config` has the fields of its config.json.

    Raises:
        ValueError: it is another network.
    """
    if HUGGING_FACE_ROOTS["text"] not in arrays or "text_projection.weight" not in arrays:
        raise ValueError("it has no text encoder of CLIP with a projection, under Hugging Face's names")
    prefixes = ("text_model.", "text_projection.")
    parts = {name: array for name, array in arrays.items() if name.startswith(prefixes)}
    converted, about = canonical(parts, config)
    return {name.removeprefix("text/"): array for name, array in converted.items()}, TextConfig(**about["language"])


def _language(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], blocks: str, layout: str) -> TextConfig:
    """The configuration of the text encoder, inferred from shapes."""
    vocabulary, width = vit.shape(arrays, names["text/tokens"], 2)
    projection = vit.shape(arrays, names["text/proj/kernel"], 2)
    return TextConfig(
        width, vit.depth(arrays, blocks), max(width // 64, 1),
        vit.shape(arrays, names["text/blocks/0/fc1/kernel"], 2)[0],
        vit.shape(arrays, names["text/positions"], 2)[0], vocabulary, projection[0 if layout == "hugging_face" else 1],
    )  # fmt: skip


def _join(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins Hugging Face's q_proj, k_proj and v_proj. Raises ValueError where one of them is missing."""
    converted = {name: array for name, array in arrays.items() if not name.endswith(".position_ids")}
    for name in [name for name in converted if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if missing := [part for part in parts if part not in converted]:
            raise ValueError(f"{len(missing)} missing: {', '.join(missing)}")
        converted[name.replace(".q_proj.", ".qkv.")] = np.concatenate([converted.pop(part) for part in parts])
    return converted


class _Settings(NamedTuple):
    """What no array says, of one of the two encoders."""

    act: Any = ""  # one of ACTS; "" for unknown
    heads: int = 0  # 0 for unknown
    eps: float = 1e-5


def _settings(config: Mapping[str, Any]) -> tuple[_Settings, _Settings]:
    """The settings of the image and the text encoder that config.json or open_clip_config.json says.

    Raises ValueError for a GELU that is not known here.
    """
    if model := config.get("model_cfg"):  # OpenCLIP's
        act = "quick_gelu" if model.get("quick_gelu") else "gelu"
        vision, text = model["vision_cfg"], model["text_cfg"]
        heads = vision["width"] // vision["head_width"] if "head_width" in vision else 0
        return _Settings(act, heads), _Settings(act, text.get("heads", 0))
    found = []
    for part in ("vision_config", "text_config"):
        # A folder of one encoder has the fields of that; what is missing has transformers' default.
        fields = {**config, **(config.get(f"{part}_dict") or {}), **(config.get(part) or {})}
        act = fields.get("hidden_act", "quick_gelu") if config else ""
        if act not in (*ACTS, ""):
            raise ValueError(f"its activation is {act}, where {' and '.join(ACTS)} are known here")
        found.append(_Settings(act, fields.get("num_attention_heads", 0), fields.get("layer_norm_eps", 1e-5)))
    return found[0], found[1]


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None, assume: Mapping[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, facts: `layout`, `vision` and `language` (the configurations), `official`, `act_from`).

    Of an image encoder alone `language` is {"dim": numbers of an embedding}, of a text encoder alone `vision` is {}.
    `act_from` is what says which GELU it has: `config`, `archive` (it is one of OpenAI's), `flag`, or "" for nothing,
    where OpenAI's is assumed.

    Args:
        arrays: by the names of the file.
        config: fields of the folder's config.json or open_clip_config.json; {} for none.
        assume: `act`, one of `ACTS`, which takes precedence.

    Raises:
        ValueError: it is another network, a CLIP with a ResNet, or incomplete.
    """
    image, text_settings = _settings(config or {})
    sources = {"flag": "act" in (assume or {}), "config": bool(image.act), "archive": _SETTINGS[0] in arrays}
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
    elif set(HUGGING_FACE_ROOTS.values()) & set(arrays):
        layout, make = "hugging_face", hugging_face
        vision_blocks, text_blocks = "vision_model.encoder.layers.", "text_model.encoder.layers."
        arrays = _join(arrays)
    else:
        raise ValueError(f"neither OpenAI's names nor Hugging Face's, so it is no CLIP, such as {OFFICIAL['clip']}")
    whole = "logit_scale" in arrays or layout == "openai"
    towers = [tower for tower, root in HUGGING_FACE_ROOTS.items() if whole or root in arrays]
    names = {ours: source.name for ours, source in make(CLIP_B32, TEXT_B32).items()}  # for layers outside blocks
    act: Any = (assume or {}).get("act")
    vision, language = CLIP_B32, TEXT_B32
    shapes: dict[str, Any] = {"logit_scale": (1,)} if whole else {}
    if "image" in towers:
        vision = dataclasses.replace(
            _vision(arrays, names, vision_blocks, image.heads), eps=image.eps, act=act or image.act or ACTS[0]
        )
        dim = vit.shape(arrays, names["image/proj/kernel"], 2)[0 if layout == "hugging_face" else 1]
        pixels = jax.ShapeDtypeStruct((1, vision.size, vision.size, 3), np.float32)
        shapes |= _shapes("image", Image(vision, dim, None), pixels)
    if "text" in towers:
        language = _language(arrays, names, text_blocks, layout)
        language = dataclasses.replace(
            language, heads=text_settings.heads or language.heads, eps=text_settings.eps,
            act=act or text_settings.act or ACTS[0],
        )  # fmt: skip
        if language.width % language.heads:
            raise ValueError(f"its text encoder is {language.width} wide, which {language.heads} heads do not divide")
        shapes |= _shapes("text", Text(language), jax.ShapeDtypeStruct((1, language.context), np.int32))
    depths = {"image": vision.depth, "text": language.depth}
    rows = {ours: row for ours, row in make(vision, language).items() if ours.partition("/")[0] in {*towers, *shapes}}
    converted = vit.convert(arrays, rows, shapes, {f"{tower}/blocks": depths[tower] for tower in towers})
    acts = {"image": vision.act, "text": language.act}
    about = {
        "layout": layout, "vision": dataclasses.asdict(vision) if "image" in towers else {},
        "language": dataclasses.asdict(language) if "text" in towers else {"dim": dim},
        "official": (vision, language) == (CLIP_B32, TEXT_B32) and whole,
        "act_from": next((source for source, holds in sources.items() if holds), ""),
        "licence": "of those who trained it" if "gelu" in map(acts.get, towers) else "MIT, where it is OpenAI's",
    }  # fmt: skip
    return converted, about


def _shapes(tower: str, module: Any, like: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Shapes of the parameters of an encoder, with its name before theirs."""
    params = jax.eval_shape(module.init, jax.random.key(0), like)["params"]
    return flatten_dict({tower: params}, sep="/")


def _vision(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], blocks: str, heads: int) -> Config:
    """The sizes of the image encoder, inferred from shapes; `heads` where they are known, else 0."""
    width, _, patch, _ = vit.shape(arrays, names["image/embed/kernel"], 4)
    side = math.isqrt(vit.shape(arrays, names["image/embed/positions"], 2)[0] - 1)
    return dataclasses.replace(
        CLIP_B32, width=width, depth=vit.depth(arrays, blocks), heads=heads or max(width // 64, 1), patch=patch,
        size=side * patch, mlp=vit.shape(arrays, names["image/blocks/0/fc1/kernel"], 2)[0],
    )  # fmt: skip
