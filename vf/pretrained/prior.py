"""Converts Karlo's prior (Lee et al. 2022) from and to its diffusers folder, a PriorTransformer.

The folder has the statistics of embeddings, but no texts: `karlo.texts` computes CLIP's states of fixed prompts and of
the empty one, which become part of the converted file, as in that of the decoder.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vf.files import AnyPath
from vf.nets.prior import Prior
from vf.pretrained import export, unet, weights
from vf.pretrained.safetensors_file import Lazy
from vf.types import UserError

LICENCE = "CreativeML OpenRAIL-M (Kakao Brain)"
FAMILY = "karlo-prior"
ROOT = "proj_to_clip_embeddings.weight"  # an array that no other network has
CLIP_X_0 = 5.0  # bound of the clean embedding when sampling, in units of its statistics
# Layers: {our name: diffusers' names}; q, k and v are one of ours.
_LAYERS = {
    "time/hidden": "time_embedding.linear_1", "time/out": "time_embedding.linear_2", "noised_in": "proj_in",
    "pooled_in": "embedding_proj", "states_in": "encoder_hidden_states_proj", "norm": "norm_out",
    "out": "proj_to_clip_embeddings",
}  # fmt: skip
_BLOCKS = {
    "norm1": "norm1", "qkv": "attn1.to_q attn1.to_k attn1.to_v", "proj": "attn1.to_out.0", "norm2": "norm3",
    "fc1": "ff.net.0.proj", "fc2": "ff.net.2",
}  # fmt: skip
_VECTORS = {
    "positions": "positional_embedding", "query": "prd_embedding", "mean": "clip_mean", "std": "clip_std",
}  # fmt: skip
_OTHERS = 4  # tokens besides those of the text
# Fields of config.json for which there is one value here; diffusers leaves out what has its default.
_REQUIRED = {
    "additional_embeddings": _OTHERS, "added_emb_type": "prd", "time_embed_act_fn": "silu", "norm_in_type": None,
    "embedding_proj_norm_type": None, "encoder_hid_proj_type": "linear", "dropout": 0.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Header:
    """A trained prior, before its weights are read: a run, what was exported of one, or a converted file.

    Attributes:
        path: where it is.
        dim: numbers of an embedding.
        classes: names of its classes; () for none.
        trained: the run, or what was exported of it; None for a converted file.
        file: the header of a converted file; None for a run.
    """

    path: AnyPath
    dim: int
    classes: tuple[str, ...]
    trained: export.Trained | None = None
    file: weights.Weights | None = None


def open_prior(path: AnyPath) -> Header:
    """Opens the prior at `path`. Raises UserError where there is none, or its files are damaged."""
    if path.suffix == ".safetensors":
        file = weights.peek(path, (FAMILY,))
        return Header(path, file.about["network"]["dim"], tuple(file.about["classes"]), file=file)
    trained = export.find(path)
    if (predictor := trained.config["model"]["predictor"]) != "prior":
        raise UserError(
            f"{path} holds no prior but networks of model.predictor={predictor}: name a run that was trained with "
            "--config.model.predictor=prior",
            "trained",
        )
    labelled = trained.config["model"]["condition"] == "label"
    return Header(path, trained.about["embedding_dim"], trained.classes if labelled else (), trained)


class Link(NamedTuple):
    """How one array of ours is stored there: a `unet.Storage` of arrays that stack layers.

    Attributes:
        names: its names there: of every layer in turn, of every part of it.
        shape: shape of each of them.
        our_shape: shape of ours.
        parts: number of arrays there that are joined on the last axis of ours.
        stacked: whether our first axis is that of layers.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]
    parts: int = 1
    stacked: bool = False

    def to_ours(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """Our array, from theirs."""
        made = np.empty(self.our_shape, np.float32)
        for place, part in zip(self._pieces(made), parts, strict=True):
            place[...] = part.reshape(place.shape)
        return made

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """Their arrays, from ours; views, where the file's shape allows it."""
        return [piece.reshape(self.shape) for piece in self._pieces(array)]

    def _pieces(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Views on our array, in the order of their names, with the axes of a layer as theirs."""
        is_kernel = self.names[0].endswith("weight") and array.ndim - self.stacked == 2
        for layer in array if self.stacked else array[None]:
            for part in np.split(layer, self.parts, -1):
                yield part.T if is_kernel else part


def net(about: Mapping[str, Any], **changes: Any) -> Prior:
    """The network of a converted file with the facts `about`; `changes` are further fields of it."""
    return Prior(**about["network"], texts=len(about["texts"]), **changes)


def links(about: Mapping[str, Any]) -> dict[str, Link]:
    """{our path: how it is stored} of every array but the texts, which are not stored there."""
    made = Prior(**about["network"], texts=1)  # so that no learned text takes their place
    z = jnp.zeros((1, 1, 1, 1, made.dim))
    tree = jax.eval_shape(lambda: made.init(jax.random.key(0), z, jnp.zeros(1, jnp.int32)))["params"]
    found = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        scope, _, end = path.rpartition("/")
        if scope == "texts":
            continue
        if not scope:
            ones = {"positions": 1, "query": 2, "mean": 1, "std": 1}[end]
            found[path] = Link((_VECTORS[end],), (1,) * ones + leaf.shape, leaf.shape)
            continue
        kind = {"kernel": "weight", "scale": "weight", "bias": "bias"}[end]
        if not scope.startswith("blocks/"):
            shape = leaf.shape[::-1]
            found[path] = Link((f"{_LAYERS[scope]}.{kind}",), shape, leaf.shape)
            continue
        layers = _BLOCKS[scope.removeprefix("blocks/")].split()
        names = tuple(f"transformer_blocks.{k}.{layer}.{kind}" for k in range(made.depth) for layer in layers)
        size = leaf.shape[-1] // len(layers)
        found[path] = Link(names, (size, *leaf.shape[1:-1]), leaf.shape, len(layers), stacked=True)
    return found


def canonical(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], assume: Mapping[str, Any]
) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """(our arrays, made one at a time; facts: `network`, `schedule`, `prediction`, `clip_x_0`, no texts yet).

    Args:
        arrays: by the names of the folder.
        config: fields of its config.json, and of the scheduler_config.json beside it.
        assume: `head_dim`, where no config.json says it.

    Raises:
        ValueError: it is another network, or incomplete.
    """
    if ROOT not in arrays:
        raise ValueError(f"it has no {ROOT}, so it is no PriorTransformer of diffusers: name Karlo's folder `prior`")
    unet.check_config(config, "PriorTransformer", _REQUIRED | {"variance_type": "fixed_small_log"})
    unet.check_schedule(config)
    size = unet.Sizes(arrays)
    width = size("proj_in.bias")
    head_dim = assume.get("head_dim", config.get("attention_head_dim", 64))
    if width % head_dim:
        raise ValueError(f"its tokens have {width} channels, which heads of {head_dim} do not divide")
    schedule = unet.translate("beta_schedule", config.get("beta_schedule", "squaredcos_cap_v2"), unet.SCHEDULES)
    prediction = unet.translate("prediction_type", config.get("prediction_type", "sample"), unet.PREDICTIONS)
    if prediction != "x_0":
        raise ValueError(f"its scheduler says that it predicts {prediction}, where a prior predicts x_0 (`sample`)")
    about: dict[str, Any] = {
        "network": {
            "dim": size(ROOT), "width": width, "heads": width // head_dim,
            "depth": size.count(r"transformer_blocks\.(\d+)\."),
            "text_length": size("positional_embedding", axis=1) - _OTHERS,
        },
        "schedule": {"name": schedule, "steps": config.get("num_train_timesteps", 1000)}, "prediction": prediction,
        "clip_x_0": config.get("clip_sample_range", CLIP_X_0), "layout": "diffusers", "licence": LICENCE, "texts": [],
        "classes": [],
    }  # fmt: skip
    table = links(about)
    return unet.convert(arrays, table), about | unet.dtypes(arrays, table)


def diffusers(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[dict[str, Lazy], dict]]:
    """{folder: (tensors, config.json)} of the pipeline's prior and prior_scheduler."""
    fields = about["network"]
    config = {
        "_class_name": "PriorTransformer", "num_attention_heads": fields["heads"], "num_layers": fields["depth"],
        "attention_head_dim": fields["width"] // fields["heads"], "embedding_dim": fields["dim"],
        "num_embeddings": fields["text_length"], **_REQUIRED,
    }  # fmt: skip
    theirs = {ours: name for known in (unet.SCHEDULES, unet.PREDICTIONS) for name, ours in known.items()}
    scheduler = {
        "_class_name": "UnCLIPScheduler", "num_train_timesteps": about["schedule"]["steps"],
        "beta_schedule": theirs[about["schedule"]["name"]], "prediction_type": theirs[about["prediction"]],
        "variance_type": "fixed_small_log", "clip_sample": True, "clip_sample_range": about["clip_x_0"],
    }  # fmt: skip
    return {
        "prior": (unet.export_arrays(arrays, links(about), about), config),
        "prior_scheduler": ({}, scheduler),
    }
