"""Converts VideoMAE-v2's fine-tuned checkpoints (OpenGVLab), of which content-debiased FVD uses one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.vit import VIDEOMAE_G, Config, VideoMAE
from vf.pretrained import vit
from vf.pretrained.names import Origin
from vf.pretrained.weights import OFFICIAL

CLASSES = 174  # classes of Something-Something v2
_ROOT = "patch_embed.proj.weight"


def table(config: Config) -> dict[str, Origin]:
    """{our name in an unstacked block: theirs}, with the biases of q, k and v joined."""
    rows = {"embed/kernel": Origin(_ROOT, vit.TUBELETS), "embed/bias": Origin("patch_embed.proj.bias")}
    for k in range(config.depth):
        rows |= vit.block(f"blocks/{k}", f"blocks.{k}", vit.TIMM)
    return rows | vit.norm("norm", "fc_norm")


def with_biases(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replaces q_bias and v_bias by `attn.qkv.bias` = [q_bias, 0, v_bias]. ValueError where one of them is missing."""
    converted = dict(arrays)
    for name in [name for name in arrays if name.endswith((".attn.q_bias", ".attn.v_bias"))]:
        prefix = name[: -len("q_bias")]
        q, v = (f"{prefix}{letter}_bias" for letter in "qv")
        if q not in arrays or v not in arrays:
            raise ValueError(f"1 missing: {v if q in arrays else q}")
        if name == q:
            converted[f"{prefix}qkv.bias"] = np.concatenate([arrays[q], np.zeros_like(arrays[q]), arrays[v]])
        del converted[name]
    return converted


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, facts: `config`, `classes`, `official` (whether it has the size of the metric's network)).

    Raises:
        ValueError: it is another network, or was fine-tuned on other classes than Something-Something v2's.
    """
    stripped = with_biases(vit.unwrap(arrays, _ROOT, ("module.", "model.", "")))
    if not stripped:
        raise ValueError(f"no {_ROOT}, so it is no VideoMAE-v2 that was fine-tuned, such as {OFFICIAL['videomae']}")
    classes = stripped["head.bias"].size if "head.bias" in stripped else None
    if classes not in (None, CLASSES):
        raise ValueError(
            f"it knows {classes} classes, and content-debiased FVD's network {CLASSES} (Something-Something v2)"
        )
    stripped = {name: array for name, array in stripped.items() if not name.startswith("head.")}
    width, _, tubelet, patch, _ = vit.shape(stripped, _ROOT, 5)
    config = Config(
        width, vit.depth(stripped, "blocks."), vit.heads(width), vit.shape(stripped, "blocks.0.mlp.fc1.weight", 2)[0],
        patch, tubelet, size=16 * patch, positions="sinusoids",
    )  # fmt: skip
    clip = jax.ShapeDtypeStruct((1, config.frames, config.size, config.size, 3), np.float32)
    shapes = flatten_dict(jax.eval_shape(VideoMAE(config).init, jax.random.key(0), clip)["params"], sep="/")
    converted = vit.convert(stripped, table(config), shapes, {"blocks": config.depth})
    about = {
        "config": dataclasses.asdict(config), "classes": classes, "official": config == VIDEOMAE_G,
        "licence": "see OpenGVLab/VideoMAEv2",
    }  # fmt: skip
    return converted, about
