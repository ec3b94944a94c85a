"""Karlo's unCLIP decoder (Lee et al. 2022): its own .ckpt, and the folders decoder and text_proj of diffusers.

The .ckpt holds what conditions the U-Net beside it; diffusers has that in a second model, UnCLIPTextProjModel. Texts
are not in either: `texts` makes CLIP's states of fixed prompts, which become part of the converted file.
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
# Layers beside the U-Net: ours -> (Karlo's, diffusers').
_BESIDE = {
    "image_to_step": ("clip_emb", "clip_image_embeddings_project_to_time_embeddings"),
    "text_to_step": ("text_feat_proj", "embedding_proj"),
    "image_to_tokens": ("clip_tok_proj", "clip_extra_context_tokens_proj"),
    "text_to_tokens": ("text_seq_proj.0", "encoder_hidden_states_proj"),
    "text_norm": ("text_seq_proj.1", "text_encoder_hidden_states_norm"),
}
_NULL = ("cf_param", "learned_classifier_free_guidance_embeddings")


def net(about: Mapping[str, Any], *, texts: int = 0, embedding: bool = False, **changes: Any) -> Decoder:
    """The network of a converted file; `changes` are the U-Net's."""
    width = about["network"]["width"]
    body = adm.net(about, cond_dim=4 * width, cond_projection=False, context_dim=about["context_dim"], **changes)
    return Decoder(
        body, embedding=embedding, texts=texts, clip_dim=about["clip_dim"], text_length=about.get("text_length", 77),
        image_tokens=IMAGE_TOKENS,
    )  # fmt: skip


def links(about: Mapping[str, Any], layout: str) -> dict[str, Link]:
    """{path of ours: where it is}; diffusers' names of text_proj are marked by `text_proj/`."""
    place = unet.LAYOUTS.index(layout)
    body: UNet = net(about).unet
    found = {f"unet/{path}": link for path, link in unet.links(body, layout).items()}
    features, dim, context = 4 * body.width, about["clip_dim"], about["context_dim"]
    sizes = {
        "image_to_step": (dim, features), "text_to_step": (dim, features), "text_to_tokens": (dim, context),
        "image_to_tokens": (dim, IMAGE_TOKENS * context),
    }  # fmt: skip
    mark = "text_proj/" if layout == "diffusers" else ""
    for ours, names in _BESIDE.items():
        theirs = mark + names[place]
        if ours == "text_norm":
            for leaf, end in (("scale", "weight"), ("bias", "bias")):
                found[f"{ours}/{leaf}"] = Link((f"{theirs}.{end}",), (context,), (context,))
        else:
            size = sizes[ours]
            found[f"{ours}/kernel"] = Link((f"{theirs}.weight",), size[::-1], size)
            found[f"{ours}/bias"] = Link((f"{theirs}.bias",), size[1:], size[1:])
    return found | {"null_embedding": Link((mark + _NULL[place],), (dim,), (dim,))}


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], assume: Mapping[str, Any]
) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """As `adm.canonical`; `about` has `context_dim` and `clip_dim` beside, and no texts yet.

    Diffusers' arrays of text_proj are to be marked by `text_proj/`.

    Raises:
        ValueError: another network, or half of this one.
    """
    stripped = unet.unwrapped(arrays)
    layout = unet.layout_of(stripped)
    if not layout:
        raise ValueError(
            "its names are neither Karlo's (model.input_blocks.0.0.weight) nor diffusers' (down_blocks...)"
        )
    if not any(".encoder_kv." in name or ".add_k_proj." in name for name in stripped):
        raise ValueError(
            "its attention reads no context, so it is no unCLIP decoder: convert it as adm, or name the decoder"
        )
    if layout == "diffusers" and not any(name.startswith("text_proj/") for name in stripped):
        raise ValueError("the folder text_proj is missing: name the folder that holds decoder and text_proj")
    required = {name: value for name, value in adm.REQUIRED.items() if name != "add_attention"}
    unet.check_config(config, "UNet2DConditionModel", required | {"class_embed_type": "identity"})
    fields = unet.configuration(stripped, layout) | {"num_classes": 0}
    about = adm.facts(fields, config, {"attention_order": "legacy", **assume})
    norm, null = ((_BESIDE["text_norm"][0] + ".bias", _NULL[0]) if layout == "openai" else
                  (f"text_proj/{_BESIDE['text_norm'][1]}.bias", f"text_proj/{_NULL[1]}"))  # fmt: skip
    size = unet.Sizes(stripped)
    about |= {
        "layout": layout, "licence": LICENCE, "context_dim": size(norm), "clip_dim": size(null), "texts": [],
        "classes": [],
    }  # fmt: skip
    table = links(about, layout)
    return unet.converted(stripped, table), about | unet.dtypes(stripped, table)


def original(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Lazy]:
    """Tensors by the names of Karlo's own .ckpt, which has them in `state_dict`. Raises ValueError as `adm.openai`."""
    unet.check_openai(about)
    made = unet.exported(arrays, links(about, "openai"), about)
    return {f"model.{name}": lazy for name, lazy in made.items()}


def diffusers(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[dict[str, Lazy], dict]]:
    """{folder: (tensors, config.json)} of the pipeline's decoder, text_proj and decoder_scheduler."""
    made = unet.exported(arrays, links(about, "diffusers"), about)
    kinds = (
        "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D",
    )  # fmt: skip
    decoder = unet.diffusers_config(about, kinds) | {
        "_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": about["context_dim"], "class_embed_type": "identity",
    }  # fmt: skip
    beside = {
        "_class_name": "UnCLIPTextProjModel", "clip_extra_context_tokens": IMAGE_TOKENS,
        "clip_embeddings_dim": about["clip_dim"], "cross_attention_dim": about["context_dim"],
        "time_embed_dim": 4 * about["network"]["width"],
    }  # fmt: skip
    mark = "text_proj/"
    return {
        "decoder": ({name: lazy for name, lazy in made.items() if not name.startswith(mark)}, decoder),
        "text_proj": (
            {name.removeprefix(mark): lazy for name, lazy in made.items() if name.startswith(mark)}, beside,
        ),
        "decoder_scheduler": ({}, unet.scheduler_config(about, "UnCLIPScheduler")),
    }  # fmt: skip


def words(name: str) -> str:
    """A class of UCF101 as a prompt: ApplyEyeMakeup -> apply eye makeup."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def texts(folder: Path, classes: Sequence[str], clip_dim: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """CLIP's states of the prompts of `classes` and, last, of the empty prompt: arrays, and `about` of them.

    Tokens after the end of a prompt are masked, so that what they are padded with does not count.

    Args:
        folder: of a CLIP or CLIPTextModelWithProjection by transformers, with its tokenizer in it, or in the folder
            `tokenizer` beside it.
        classes: names such as ApplyEyeMakeup.
        clip_dim: of the decoder.

    Raises:
        UserError: the folder is not that of such a model, or of another size.
    """
    source = files.read(folder)
    told = source.config.get("text_config", source.config).get("hidden_act", "quick_gelu")
    try:
        params, language = clip.text(source.arrays)
        if told != "quick_gelu":
            raise ValueError(f"its activation is {told}, where OpenAI's CLIP has quick_gelu")
    except ValueError as error:
        raise UserError(f"{folder} is no text encoder of CLIP: {error}") from error
    if {language.width, language.dim} != {clip_dim}:
        raise UserError(
            f"{folder} has states of {language.width} numbers and embeddings of {language.dim}, and the decoder takes "
            f"{clip_dim}: Karlo's is the ViT-L/14 of OpenAI"
        )
    beside = folder.parent / "tokenizer"
    own = (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()
    prompts = [*map(words, classes), ""]
    tokens, _ = Tokenizer(folder if own or not beside.is_dir() else beside).encode(prompts, context=language.context)
    tree = Weights("clip", params, "", {}).tree()
    encode = jax.jit(lambda params, rows: Text(language, states=True).apply({"params": params}, rows))
    # In small parts, so that memory is that of the weights.
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
