"""Converts public files of FID's Inception-v3 (2015-12-05): three sets of names for 94 units and a layer of logits.

    layout        file                                                       name of a mean of a batch norm
    pytorch-fid   pt_inception-2015-12-05-6726825d.pth                       Mixed_5b.branch5x5_1.bn.running_mean
    nvidia        inception-2015-12-05.pt (StyleGAN2-ADA's and clean-fid's)  layers.mixed.tower.conv.mean
    jax-fid       inception_v3_weights_fid.pickle                            Mixed_5b/branch5x5_1/bn/mean

NVIDIA's names follow TensorFlow's scopes: blocks are `mixed` to `mixed_10`, a branch of one unit is `conv`, longer
branches are `tower`, `tower_1` and `tower_2`. They are known from copies of NVIDIA's class in public code. StyleGAN3's
inception-2015-12-05.pkl pickles that class with its source, and is refused: use the .pt.
torchvision's inception_v3 has pytorch-fid's names and 1000 classes. It is another network: a distance in its features
is not FID.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.inception import FEATURES, MIN_SIZE, MIXED, STEM, Branch, Conv, Inception
from vf.pretrained.names import Origin, recognise_layout, rename
from vf.pretrained.weights import OFFICIAL

CLASSES = 1008
TORCH_KERNEL = (2, 3, 1, 0)  # O I H W -> H W I O


def units() -> dict[str, str]:
    """{our name, with '/': NVIDIA's} of the 94 units; pytorch-fid's and jax-fid's names are ours."""
    stem = [step.name for step in STEM if isinstance(step, Conv)]
    scopes = {name: _numbered("conv", k) for k, name in enumerate(stem)}
    for k, (block, branches) in enumerate(MIXED.items()):
        scope, joint, towers = _numbered("mixed", k), "_" if block in ("Mixed_7b", "Mixed_7c") else ".", 0
        for steps in branches:
            names = _scopes(steps)
            if len(steps) == 1:
                tower = ""
            else:
                tower, towers = f"{_numbered('tower', towers)}{joint}", towers + 1
            scopes |= {
                f"{block}/{ours}": f"{scope}.{tower}{theirs.replace('.', joint)}" for ours, theirs in names.items()
            }
    return scopes


def _numbered(name: str, k: int) -> str:
    """Name of the k-th scope called `name`, as TensorFlow numbers them."""
    return f"{name}_{k}" if k else name


def _scopes(steps: Branch) -> dict[str, str]:
    """{unit: scope in its tower} of a branch."""
    line = [step for step in steps if isinstance(step, Conv)]
    fork = [conv for step in steps if isinstance(step, tuple) and not isinstance(step, Conv) for conv in step]
    converted = {conv.name: _numbered("conv", k) for k, conv in enumerate(line)}
    return converted | {conv.name: f"mixed.{_numbered('conv', k)}" for k, conv in enumerate(fork)}


def tables() -> dict[str, dict[str, Origin]]:
    """{layout: {our name: its origin}} of all arrays; NVIDIA's has no gamma, which is 1."""
    torch: dict[str, Origin] = {}
    nvidia: dict[str, Origin] = {}
    flax: dict[str, Origin] = {}
    for ours, scope in units().items():
        dotted = ours.replace("/", ".")
        torch |= {f"{ours}/kernel": Origin(f"{dotted}.conv.weight", TORCH_KERNEL)}
        torch |= {
            f"{ours}/{x}": Origin(f"{dotted}.bn.{y}")
            for x, y in (("gamma", "weight"), ("beta", "bias"), ("mean", "running_mean"), ("var", "running_var"))
        }
        nvidia |= {f"{ours}/kernel": Origin(f"layers.{scope}.weight", TORCH_KERNEL)}
        nvidia |= {f"{ours}/{x}": Origin(f"layers.{scope}.{x}") for x in ("beta", "mean", "var")}
        flax |= {f"{ours}/kernel": Origin(f"{ours}/conv/kernel")}
        flax |= {
            f"{ours}/{x}": Origin(f"{ours}/bn/{y}")
            for x, y in (("gamma", "scale"), ("beta", "bias"), ("mean", "mean"), ("var", "var"))
        }
    return {"pytorch-fid": torch, "nvidia": nvidia, "jax-fid": flax}


LOGITS = {  # names of the kernel and of the bias
    "pytorch-fid": ("fc.weight", "fc.bias"),
    "nvidia": ("output.weight", "output.bias"),
    "jax-fid": ("fc/kernel", "fc/bias"),
}


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, facts: `layout`, `classes`, `licence`).

    The layer of logits is checked and left out: it alone distinguishes FID's network from torchvision's. So files with
    pytorch-fid's names must have it; whether jax-fid's file has it is not known.

    Raises:
        ValueError: it is another network, or has another number of classes than 1008.
    """
    known = tables()
    arrays, layout = recognise_layout(arrays, known)
    if not layout:
        raise ValueError(f"none of its {len(arrays)} names is of FID's network: take {OFFICIAL['inception']}")
    table, logits = known[layout], LOGITS[layout]
    missing = [name for name in logits if name not in arrays]
    if missing and layout == "pytorch-fid":
        raise ValueError(
            f"{' and '.join(missing)} missing, by which FID's network differs from others: take {OFFICIAL['inception']}"
        )
    for name, wanted in zip(logits, ([CLASSES, FEATURES], [CLASSES]), strict=True):
        if name in arrays and sorted(np.shape(arrays[name])) != wanted:
            raise ValueError(
                f"{name} is {list(np.shape(arrays[name]))}, where FID's network has {CLASSES} classes of {FEATURES} "
                f"features (1000 classes are torchvision's, which is another network): take {OFFICIAL['inception']}"
            )
    shapes = _shapes()
    converted = rename(
        arrays, table, shapes, ignored=lambda name: name in logits or name.endswith("num_batches_tracked")
    )
    # `rename` ignores axes of length 1, by which kernels of 1 x 7 and 7 x 1 differ.
    for ours, (name, axes) in table.items():
        shape = np.shape(arrays[name])
        if axes is not None and len(shape) == len(axes):
            shape = tuple(shape[axis] for axis in axes)
        if shape != shapes[ours]:
            raise ValueError(f"{name} is {list(shape)} and should be {list(shapes[ours])} (axes in our order)")
    converted |= {name: np.ones(shape, np.float32) for name, shape in shapes.items() if name not in converted}
    return converted, {"layout": layout, "classes": CLASSES, "licence": "Apache-2.0 (TensorFlow)"}


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{our name: shape}."""
    picture = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3), float)
    params = jax.eval_shape(Inception().init, jax.random.key(0), picture)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
