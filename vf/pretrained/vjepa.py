"""Converts V-JEPA's encoder and its attentive probe (Meta), two files that are one network for JEDi."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.vit import VJEPA, VJEPA_H, Config
from vf.pretrained import vit
from vf.pretrained.names import Origin

CLASSES = 174  # classes of Something-Something v2
_ROOT, _QUERY = "patch_embed.proj.weight", "pooler.query_tokens"
# Prefixes of DistributedDataParallel and of the wrapper for masks, in the order of nesting; either may be missing.
_WRAPPERS = ("module.backbone.", "backbone.", "module.", "")


def table(config: Config) -> dict[str, Origin]:
    """{our name in an unstacked block: theirs}."""
    rows = {
        "embed/kernel": Origin(_ROOT, vit.TUBELETS), "embed/bias": Origin("patch_embed.proj.bias"),
        "embed/positions": Origin("pos_embed"), "pooler/query": Origin(_QUERY),
    }  # fmt: skip
    for k in range(config.depth):
        rows |= vit.block(f"blocks/{k}", f"blocks.{k}", vit.TIMM)
    rows |= vit.norm("norm", "norm")
    probe = "pooler.cross_attention_block"
    for layer in ("norm1", "norm2"):
        rows |= vit.norm(f"pooler/{layer}", f"{probe}.{layer}")
    for layer, name in (
        ("q", "xattn.q"),
        ("kv", "xattn.kv"),
        ("proj", "xattn.proj"),
        ("fc1", "mlp.fc1"),
        ("fc2", "mlp.fc2"),
    ):
        rows |= vit.dense(f"pooler/{layer}", f"{probe}.{name}")
    return rows


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays from those of both files, facts: `config`, `branch`, `classes`, `official`).

    The target encoder is taken where there is one, and otherwise the encoder; optimizers, predictor and the probe's
    classifier are left out.

    Raises:
        ValueError: the encoder or the probe is missing or another network, or the probe has other classes than
            Something-Something v2's.
    """
    encoder, branch = {}, ""
    for branch in ("target_encoder", "encoder", ""):
        encoder = vit.unwrap(arrays, _ROOT, tuple(f"{branch}.{w}".lstrip(".") for w in _WRAPPERS))
        if encoder:
            break
    classifier = vit.unwrap(arrays, _QUERY, ("classifier.module.", "classifier.", "module.", ""))
    probe = {name: array for name, array in classifier.items() if name.startswith("pooler.")}
    if not encoder:
        raise ValueError(f"no {_ROOT} of a target_encoder, so it is no V-JEPA encoder, such as vith16.pth.tar")
    if not probe:
        raise ValueError(
            f"no {_QUERY}: the attentive probe is missing, and JEDi's features are what it gives; give its file also, "
            "ssv2-probe.pth.tar"
        )
    classes = classifier["linear.bias"].size if "linear.bias" in classifier else None
    if classes not in (None, CLASSES):
        raise ValueError(f"the probe knows {classes} classes, and JEDi's {CLASSES} (Something-Something v2)")
    if not branch:  # names without prefixes: the arrays of encoder and probe are mixed
        encoder = {
            name: array
            for name, array in encoder.items()
            if name.startswith(("patch_embed.", "pos_embed", "blocks.", "norm."))
        }
    width, _, tubelet, patch, _ = vit.shape(encoder, _ROOT, 5)
    frames = VJEPA_H.frames
    side = math.isqrt(vit.shape(encoder, "pos_embed", 3)[1] // (frames // tubelet))
    config = Config(
        width, vit.depth(encoder, "blocks."), vit.heads(width), vit.shape(encoder, "blocks.0.mlp.fc1.weight", 2)[0],
        patch, tubelet, side * patch, frames,
    )  # fmt: skip
    clip = jax.ShapeDtypeStruct((1, frames, config.size, config.size, 3), np.float32)
    shapes = flatten_dict(jax.eval_shape(VJEPA(config).init, jax.random.key(0), clip)["params"], sep="/")
    converted = vit.convert(encoder | probe, table(config), shapes, {"blocks": config.depth})
    about = {
        "config": dataclasses.asdict(config), "branch": branch, "classes": classes, "official": config == VJEPA_H,
        "licence": "see facebookresearch/jepa",
    }  # fmt: skip
    return converted, about
