"""Converts Karlo's unCLIP decoder (Lee et al. 2022) from and to its .ckpt and diffusers' folders decoder and text_proj.

The .ckpt has the U-Net and the projections of its conditions; diffusers has these in a second model,
UnCLIPTextProjModel. Neither has texts: `texts` computes CLIP's states of fixed prompts, which become part of the
converted file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vf.nets.clip import Text
from vf.nets.tokenizer import Tokenizer
from vf.nets.unclip import Decoder
from vf.nets.unet import UNet
from vf.pretrained import adm, clip, files, unet
from vf.pretrained.safetensors_file import Lazy
from vf.pretrained.unet import Link
from vf.pretrained.weights import Weights
from vf.types import UserError

LICENCE = "CreativeML OpenRAIL-M (Kakao Brain)"
IMAGE_TOKENS = 4
# Layers outside the U-Net: {our name: (Karlo's, diffusers')}.
_PROJECTIONS = {
    "image_to_step": ("clip_emb", "clip_image_embeddings_project_to_time_embeddings"),
    "text_to_step": ("text_feat_proj", "embedding_proj"),
    "image_to_tokens": ("clip_tok_proj", "clip_extra_context_tokens_proj"),
    "text_to_tokens": ("text_seq_proj.0", "encoder_hidden_states_proj"),
    "text_norm": ("text_seq_proj.1", "text_encoder_hidden_states_norm"),
}
_NULL = ("cf_param", "learned_classifier_free_guidance_embeddings")


def net(
    about: Mapping[str, Any], *, texts: int = 0, embedding: bool = False, text: bool = False, **changes: Any
) -> Decoder:
    """The network of a converted file with the facts `about`; `changes` are further fields of its U-Net."""
    width = about["network"]["width"]
    body = adm.net(about, cond_dim=4 * width, cond_projection=False, context_dim=about["context_dim"], **changes)
    return Decoder(
        body, embedding=embedding, texts=texts, text=text, clip_dim=about["clip_dim"],
        text_length=about.get("text_length", 77), image_tokens=IMAGE_TOKENS,
    )  # fmt: skip


def links(about: Mapping[str, Any], layout: str) -> dict[str, Link]:
    """{our path: how it is stored}; names in diffusers' folder text_proj have the prefix `text_proj/`."""
    place = unet.LAYOUTS.index(layout)
    body: UNet = net(about).unet
    links_of = {f"unet/{path}": link for path, link in unet.links(body, layout).items()}
    features, dim, context = 4 * body.width, about["clip_dim"], about["context_dim"]
    sizes = {
        "image_to_step": (dim, features), "text_to_step": (dim, features), "text_to_tokens": (dim, context),
        "image_to_tokens": (dim, IMAGE_TOKENS * context),
    }  # fmt: skip
    prefix = "text_proj/" if layout == "diffusers" else ""
    for ours, names in _PROJECTIONS.items():
        theirs = prefix + names[place]
        if ours == "text_norm":
            for leaf, end in (("scale", "weight"), ("bias", "bias")):
                links_of[f"{ours}/{leaf}"] = Link((f"{theirs}.{end}",), (context,), (context,))
        else:
            size = sizes[ours]
            links_of[f"{ours}/kernel"] = Link((f"{theirs}.weight",), size[::-1], size)
            links_of[f"{ours}/bias"] = Link((f"{theirs}.bias",), size[1:], size[1:])
    return links_of | {"null_embedding": Link((prefix + _NULL[place],), (dim,), (dim,))}


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], assume: Mapping[str, Any]
) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """As `adm.canonical`; `about` has `context_dim` and `clip_dim` besides, and no texts yet.

    Names of arrays in diffusers' folder text_proj must have the prefix `text_proj/`.

    Raises:
        ValueError: it is another network, or incomplete.
    """
    layout = unet.layout_of(arrays)
    if not layout:
        raise ValueError("its names are neither Karlo's (input_blocks.0.0.weight) nor diffusers' (down_blocks...)")
    if not any(".encoder_kv." in name or ".add_k_proj." in name for name in arrays):
        raise ValueError(
            "its attention reads no context, so it is no unCLIP decoder: convert it as adm, or name the decoder"
        )
    if layout == "diffusers" and not any(name.startswith("text_proj/") for name in arrays):
        raise ValueError("the folder text_proj is missing: name the folder that holds decoder and text_proj")
    required = {name: value for name, value in adm.REQUIRED.items() if name != "add_attention"}
    unet.check_config(config, "UNet2DConditionModel", required | {"class_embed_type": "identity"})
    fields = unet.infer_fields(arrays, layout) | {"num_classes": 0}
    about = adm.facts(fields, config, {"attention_order": "legacy", **assume})
    norm, null = ((_PROJECTIONS["text_norm"][0] + ".bias", _NULL[0]) if layout == "openai" else
                  (f"text_proj/{_PROJECTIONS['text_norm'][1]}.bias", f"text_proj/{_NULL[1]}"))  # fmt: skip
    size = unet.Sizes(arrays)
    about |= {
        "layout": layout, "licence": LICENCE, "context_dim": size(norm), "clip_dim": size(null), "texts": [],
        "classes": [],
    }  # fmt: skip
    table = links(about, layout)
    return unet.convert(arrays, table), about | unet.dtypes(arrays, table)


def original(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Lazy]:
    """{name in `state_dict` of Karlo's .ckpt: tensor}. Raises ValueError as `adm.openai`."""
    unet.check_openai(about)
    exported = unet.export_arrays(arrays, links(about, "openai"), about)
    return {f"model.{name}": lazy for name, lazy in exported.items()}


def diffusers(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[dict[str, Lazy], dict]]:
    """{folder: (tensors, config.json)} of the pipeline's decoder, text_proj and decoder_scheduler."""
    exported = unet.export_arrays(arrays, links(about, "diffusers"), about)
    kinds = (
        "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D",
    )  # fmt: skip
    decoder = unet.diffusers_config(about, kinds) | {
        "_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": about["context_dim"], "class_embed_type": "identity",
    }  # fmt: skip
    projection = {
        "_class_name": "UnCLIPTextProjModel", "clip_extra_context_tokens": IMAGE_TOKENS,
        "clip_embeddings_dim": about["clip_dim"], "cross_attention_dim": about["context_dim"],
        "time_embed_dim": 4 * about["network"]["width"],
    }  # fmt: skip
    prefix = "text_proj/"
    return {
        "decoder": ({name: lazy for name, lazy in exported.items() if not name.startswith(prefix)}, decoder),
        "text_proj": (
            {name.removeprefix(prefix): lazy for name, lazy in exported.items() if name.startswith(prefix)}, projection,
        ),
        "decoder_scheduler": ({}, unet.scheduler_config(about, "UnCLIPScheduler")),
    }  # fmt: skip


def prompt(name: str) -> str:
    """The prompt for a class of UCF101: ApplyEyeMakeup -> apply eye makeup."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def texts(folder: Path, classes: Sequence[str], clip_dim: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(CLIP's states of the prompts of `classes` and, last, of the empty prompt; facts of them).

    Tokens after the end of a prompt are masked, so that padding has no effect.

    Args:
        folder: folder of a CLIP or CLIPTextModelWithProjection by transformers. Its tokenizer is in it, or in the
            folder `tokenizer` next to it.
        classes: names such as ApplyEyeMakeup.
        clip_dim: dimension of CLIP's embeddings in the decoder.

    Raises:
        UserError: the folder is not of such a model, or its model has another size.
    """
    source = files.read(folder)
    try:
        params, language = clip.text(source.arrays, source.config)
    except ValueError as error:
        raise UserError(f"{folder} is no text encoder of CLIP: {error}") from error
    if {language.width, language.dim} != {clip_dim}:
        raise UserError(
            f"{folder} has states of {language.width} numbers and embeddings of {language.dim}, and the decoder takes "
            f"{clip_dim}: Karlo's is the ViT-L/14 of OpenAI"
        )
    sibling = folder.parent / "tokenizer"
    has_tokenizer = (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()
    prompts = [*map(prompt, classes), ""]
    tokens, _ = Tokenizer(folder if has_tokenizer or not sibling.is_dir() else sibling).encode(
        prompts, context=language.context
    )
    tree = Weights("clip", params, "", {}).tree()
    encode = jax.jit(lambda params, rows: Text(language, states=True).apply({"params": params}, rows))
    # In small parts, so that little memory is needed besides the weights.
    parts = [encode(tree, tokens[k : k + 8]) for k in range(0, len(tokens), 8)]
    states, pooled = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    ends = tokens.argmax(1)[:, None]
    arrays = {"states": states, "mask": (np.arange(language.context) <= ends).astype(np.float32), "pooled": pooled}
    about = {
        "texts": prompts,
        "text_length": language.context,
        "classes": list(classes),
        "text_encoder_sha256": files.sha256(source),
    }
    return {f"texts/{name}": array for name, array in arrays.items()}, about
