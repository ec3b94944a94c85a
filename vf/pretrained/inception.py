"""Public files of FID's Inception-v3 (2015-12-05): three sets of names for the same 94 units and one layer of logits.

    layout        file                                                       an average of a batch norm
    pytorch-fid   pt_inception-2015-12-05-6726825d.pth                       Mixed_5b.branch5x5_1.bn.running_mean
    nvidia        inception-2015-12-05.pt (StyleGAN2-ADA's and clean-fid's)  layers.mixed.tower.conv.mean
    jax-fid       inception_v3_weights_fid.pickle                            Mixed_5b/branch5x5_1/bn/mean

NVIDIA's names follow TensorFlow's scopes: blocks go from `mixed` to `mixed_10`, a branch of one unit is `conv`, longer
ones are `tower`, `tower_1` and `tower_2`. They are those of NVIDIA's class as public code repeats it. StyleGAN3's
inception-2015-12-05.pkl pickles that class with its source, and is refused: take the .pt.
torchvision's inception_v3 has pytorch-fid's names and 1000 classes. It is another network: a distance in its features
is not FID.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.inception import FEATURES, LEAST_SIZE, MIXED, STEM, Branch, Conv, Inception
from vf.pretrained.names import From, recognised, renamed
from vf.pretrained.weights import OFFICIAL

CLASSES = 1008
TORCH_KERNEL = (2, 3, 1, 0)  # O I H W -> H W I O


def units() -> dict[str, str]:
    """{ours, with '/': NVIDIA's} of the 94 units; pytorch-fid's and jax-fid's are ours."""
    stem = [step.name for step in STEM if isinstance(step, Conv)]
    found = {name: _numbered("conv", k) for k, name in enumerate(stem)}
    for k, (block, branches) in enumerate(MIXED.items()):
        scope, joint, towers = _numbered("mixed", k), "_" if block in ("Mixed_7b", "Mixed_7c") else ".", 0
        for steps in branches:
            names = _scopes(steps)
            if len(steps) == 1:
                tower = ""
            else:
                tower, towers = f"{_numbered('tower', towers)}{joint}", towers + 1
            found |= {
                f"{block}/{ours}": f"{scope}.{tower}{theirs.replace('.', joint)}" for ours, theirs in names.items()
            }
    return found


def _numbered(name: str, k: int) -> str:
    """As TensorFlow numbers scopes of one name."""
    return f"{name}_{k}" if k else name


def _scopes(steps: Branch) -> dict[str, str]:
    """{unit: its scope in the tower} of a branch."""
    line = [step for step in steps if isinstance(step, Conv)]
    fork = [conv for step in steps if isinstance(step, tuple) and not isinstance(step, Conv) for conv in step]
    made = {conv.name: _numbered("conv", k) for k, conv in enumerate(line)}
    return made | {conv.name: f"mixed.{_numbered('conv', k)}" for k, conv in enumerate(fork)}


def tables() -> dict[str, dict[str, From]]:
    """{layout of names: {ours: theirs}}, each complete; NVIDIA's has no gamma, which is 1."""
    torch: dict[str, From] = {}
    nvidia: dict[str, From] = {}
    flax: dict[str, From] = {}
    for ours, scope in units().items():
        dotted = ours.replace("/", ".")
        torch |= {f"{ours}/kernel": From(f"{dotted}.conv.weight", TORCH_KERNEL)}
        torch |= {
            f"{ours}/{x}": From(f"{dotted}.bn.{y}")
            for x, y in (("gamma", "weight"), ("beta", "bias"), ("mean", "running_mean"), ("var", "running_var"))
        }
        nvidia |= {f"{ours}/kernel": From(f"layers.{scope}.weight", TORCH_KERNEL)}
        nvidia |= {f"{ours}/{x}": From(f"layers.{scope}.{x}") for x in ("beta", "mean", "var")}
        flax |= {f"{ours}/kernel": From(f"{ours}/conv/kernel")}
        flax |= {
            f"{ours}/{x}": From(f"{ours}/bn/{y}")
            for x, y in (("gamma", "scale"), ("beta", "bias"), ("mean", "mean"), ("var", "var"))
        }
    return {"pytorch-fid": torch, "nvidia": nvidia, "jax-fid": flax}


LOGITS = {  # names of the kernel and of the bias
    "pytorch-fid": ("fc.weight", "fc.bias"),
    "nvidia": ("output.weight", "output.bias"),
    "jax-fid": ("fc/kernel", "fc/bias"),
}


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ours, and what is known about them: `layout`, `classes`.

    The layer of logits is looked at and left out: it alone tells FID's network from torchvision's. So files of
    pytorch-fid's names must have it; of jax-fid's file it is not known whether it does.

    Raises:
        ValueError: another network, or other numbers of classes than 1008.
    """
    known = tables()
    arrays, layout = recognised(arrays, known)
    if not layout:
        raise ValueError(f"none of its {len(arrays)} names is of FID's network: take {OFFICIAL['inception']}")
    table, logits = known[layout], LOGITS[layout]
    missing = [name for name in logits if name not in arrays]
    if missing and layout == "pytorch-fid":
        raise ValueError(
            f"{' and '.join(missing)} missing, which tells FID's network from others: take {OFFICIAL['inception']}"
        )
    for name, wanted in zip(logits, ([CLASSES, FEATURES], [CLASSES]), strict=True):
        if name in arrays and sorted(np.shape(arrays[name])) != wanted:
            raise ValueError(
                f"{name} is {list(np.shape(arrays[name]))}, where FID's network has {CLASSES} classes of {FEATURES} "
                f"features (1000 classes are torchvision's, which is another network): take {OFFICIAL['inception']}"
            )
    shapes = _shapes()
    made = renamed(arrays, table, shapes, ignored=lambda name: name in logits or name.endswith("num_batches_tracked"))
    # `renamed` is blind to axes of one pixel, which here tell 1 x 7 from 7 x 1.
    for ours, (name, axes) in table.items():
        shape = np.shape(arrays[name])
        if axes is not None and len(shape) == len(axes):
            shape = tuple(shape[axis] for axis in axes)
        if shape != shapes[ours]:
            raise ValueError(f"{name} is {list(shape)} and should be {list(shapes[ours])} (axes in our order)")
    made |= {name: np.ones(shape, np.float32) for name, shape in shapes.items() if name not in made}
    return made, {"layout": layout, "classes": CLASSES, "licence": "Apache-2.0 (TensorFlow)"}


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{ours: shape}."""
    picture = jax.ShapeDtypeStruct((1, LEAST_SIZE, LEAST_SIZE, 3), float)
    params = jax.eval_shape(Inception().init, jax.random.key(0), picture)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
