"""VideoMAE-v2's fine-tuned checkpoints (OpenGVLab), of which content-debiased FVD uses one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.vit import VIDEOMAE_G, Config, VideoMAE
from vf.pretrained import vit
from vf.pretrained.names import From
from vf.pretrained.weights import OFFICIAL

CLASSES = 174  # of Something-Something v2
_ROOT = "patch_embed.proj.weight"


def table(config: Config) -> dict[str, From]:
    """{ours, block by block: theirs}, with q, k and v's biases as one."""
    rows = {"embed/kernel": From(_ROOT, vit.TUBELETS), "embed/bias": From("patch_embed.proj.bias")}
    for k in range(config.depth):
        rows |= vit.block(f"blocks/{k}", f"blocks.{k}", vit.TIMM)
    return rows | vit.norm("norm", "fc_norm")


def with_biases(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`attn.qkv.bias` = [q_bias, 0, v_bias] in place of the two; ValueError where a block has one of them only."""
    made = dict(arrays)
    for name in [name for name in arrays if name.endswith((".attn.q_bias", ".attn.v_bias"))]:
        prefix = name[: -len("q_bias")]
        q, v = (f"{prefix}{letter}_bias" for letter in "qv")
        if q not in arrays or v not in arrays:
            raise ValueError(f"1 missing: {v if q in arrays else q}")
        if name == q:
            made[f"{prefix}qkv.bias"] = np.concatenate([arrays[q], np.zeros_like(arrays[q]), arrays[v]])
        del made[name]
    return made


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ours, and what is known about them: `config`, `classes`, `official` (whether it has the score's size).

    Raises:
        ValueError: another network, or one that was fine-tuned on other classes than Something-Something v2's.
    """
    found = with_biases(vit.unwrapped(arrays, _ROOT, ("module.", "model.", "")))
    if not found:
        raise ValueError(f"no {_ROOT}, so it is no VideoMAE-v2 that was fine-tuned, such as {OFFICIAL['videomae']}")
    classes = found["head.bias"].size if "head.bias" in found else None
    if classes not in (None, CLASSES):
        raise ValueError(
            f"it knows {classes} classes, and content-debiased FVD's network {CLASSES} (Something-Something v2)"
        )
    found = {name: array for name, array in found.items() if not name.startswith("head.")}
    width, _, tubelet, patch, _ = vit.shape(found, _ROOT, 5)
    config = Config(
        width, vit.depth(found, "blocks."), vit.heads(width), vit.shape(found, "blocks.0.mlp.fc1.weight", 2)[0],
        patch, tubelet, size=16 * patch, positions="sinusoids",
    )  # fmt: skip
    clip = jax.ShapeDtypeStruct((1, config.frames, config.size, config.size, 3), np.float32)
    shapes = flatten_dict(jax.eval_shape(VideoMAE(config).init, jax.random.key(0), clip)["params"], sep="/")
    made = vit.converted(found, table(config), shapes, {"blocks": config.depth})
    about = {
        "config": dataclasses.asdict(config), "classes": classes, "official": config == VIDEOMAE_G,
        "licence": "see OpenGVLab/VideoMAEv2",
    }  # fmt: skip
    return made, about
