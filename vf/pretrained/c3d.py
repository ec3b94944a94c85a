"""Converts C3D's public files: Chainer's npz with the file of its mean volume, and StyleGAN-V's TorchScript of it.

    conv3d_deepnetA_ucf.npz    release v1.0 of rezoo/tgan2: conv1a/W, conv1a/b, ..., fc8/b
    mean2.npz                  the same release, and pfnet-research/tgan's: mean [3 16 128 171], channels B G R
    c3d_ucf101.pt              StyleGAN-V: a TorchScript whose names are not documented

The mean volume belongs to the network, but only `mean2.npz` is known to have it: it is read together with either file.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.c3d import C3D, CLASSES, CONVOLUTIONS, FRAMES, MEAN, PREPARATIONS, SIZE, WIDTH
from vf.pretrained.names import Origin, rename

CONVOLUTION = (2, 3, 4, 1, 0)  # O I D H W -> D H W I O
DENSE = (1, 0)  # O I -> I O
LAYERS = (*(name for name, _, _ in CONVOLUTIONS), "fc6", "fc7", "fc8")
TORCH_NAMES = {"conv1": "conv1a", "conv2": "conv2a"}  # PyTorch ports' names of the two layers that have no b


def table() -> dict[str, Origin]:
    """{our name: Chainer's} of all arrays except the mean."""
    rows: dict[str, Origin] = {}
    for name in LAYERS:
        axes = DENSE if name.startswith("fc") else CONVOLUTION
        rows |= {f"{name}/kernel": Origin(f"{name}/W", axes), f"{name}/bias": Origin(f"{name}/b")}
    return rows


def canonical(arrays: Mapping[str, np.ndarray], *, width: int = WIDTH) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(our arrays, with `mean`; facts `about` them).

    `about` has `layout` (chainer or torch), `by_order` (whether layers were identified by their order, since their
    names are unknown) and, where the file also has a mean of 112 x 112 pixels, `window`: the variants of `vf.nets.c3d`
    that use this window of the volume.

    Args:
        arrays: arrays of one file and of mean2.npz.
        width: width of the network; 64 is the published one.

    Raises:
        ValueError: there is no mean volume, or its values are no pixels; it is another network, or has another number
            of classes than 101.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    mean = _mean(arrays)
    arrays = {name: array for name, array in arrays.items() if array is not mean}
    layers, rest, layout, ordered = _layers(arrays)
    _classes(layers)
    shapes = jax.eval_shape(
        C3D(width).init, jax.random.key(0), jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), np.float32)
    )
    # Ports may have further arrays: a window of the mean, and a matrix that permutes R G B to B G R.
    converted = rename(
        layers | rest, table(), {name: leaf.shape for name, leaf in flatten_dict(shapes["params"], sep="/").items()},
        ignored=lambda name: name in rest and (rest[name].size <= 9 or _is_window(rest[name])),
    )  # fmt: skip
    about: dict[str, Any] = {
        "layout": layout, "by_order": ordered, "classes": CLASSES,
        "licence": "of the weights: not stated (C3D, fine-tuned on UCF-101); of TGANv2, which released them: MIT",
    }  # fmt: skip
    if windows := [array for array in rest.values() if _is_window(array)]:
        about["window"] = _variants(windows[0], mean)
    return converted | {"mean": np.ascontiguousarray(mean, np.float32).reshape(MEAN)}, about


def _mean(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of the mean volume's shape; of several the one named `mean`. Raises ValueError where there is none."""
    fitting = {
        name: array for name, array in arrays.items() if array.shape[-4:] == MEAN and array.size == np.prod(MEAN)
    }
    if not fitting:
        given = f" (its `mean` is {list(arrays['mean'].shape)})" if "mean" in arrays else ""
        raise ValueError(
            f"the mean volume {list(MEAN)} is missing{given}: it is `mean` in mean2.npz of TGANv2's release; give that "
            "file also"
        )
    mean = fitting.get("mean", next(iter(fitting.values())))
    if not (np.isfinite(mean).all() and mean.min() >= 0 and mean.max() <= 255):
        raise ValueError("the mean volume has values that are no pixels of 0 ... 255: is mean2.npz whole?")
    return mean


def _layers(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str, bool]:
    """(layers under Chainer's names, other arrays, layout, whether layers were identified by their order)."""
    if any(name.endswith("/W") for name in arrays):
        known = {row.name for row in table().values()}
        layers = {name: array for name, array in arrays.items() if name in known}
        return layers, {name: array for name, array in arrays.items() if name not in known}, "chainer", False
    layers, rest = {}, {}
    for name, array in arrays.items():
        scope, _, kind = name.rpartition(".")
        layer = scope.rpartition(".")[2]
        layer, kind = TORCH_NAMES.get(layer, layer), {"weight": "W", "W": "W", "bias": "b", "b": "b"}.get(kind, "")
        ours = f"{layer}/{kind}"
        if layer in LAYERS and kind and ours not in layers:
            layers[ours] = array
        else:
            rest[name] = array
    if len(layers) == 2 * len(LAYERS):
        return layers, rest, "torch", False
    try:
        return *_in_order(arrays), "torch", True
    except ValueError:
        if layers:
            return layers, rest, "torch", False  # `rename` raises with what is missing
        raise


def _in_order(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(layers of unknown names, identified by their order; other arrays). ValueError for another number of layers."""
    convolutions = [name for name, a in arrays.items() if a.ndim == 5 and a.shape[2:] == (3, 3, 3)]
    matrices = [name for name, a in arrays.items() if a.ndim == 2 and a.size > 9]
    biases = [name for name, a in arrays.items() if a.ndim == 1 and a.size > 3]
    counts = (len(convolutions), len(matrices), len(biases))
    expected = (len(CONVOLUTIONS), len(LAYERS) - len(CONVOLUTIONS), len(LAYERS))
    if counts != expected:
        raise ValueError(
            f"it has names that no C3D is known by, and {counts[0]} convolutions 3 x 3 x 3, {counts[1]} matrices and "
            f"{counts[2]} biases, where C3D has {expected[0]}, {expected[1]} and {expected[2]}"
        )
    order = dict(zip([f"{name}/W" for name in LAYERS], [*convolutions, *matrices], strict=True))
    order |= dict(zip([f"{name}/b" for name in LAYERS], biases, strict=True))
    layers = {ours: arrays[theirs] for ours, theirs in order.items()}
    return layers, {name: array for name, array in arrays.items() if name not in order.values()}


def _classes(layers: Mapping[str, np.ndarray]) -> None:
    bias = layers.get("fc8/b")
    if bias is not None and bias.size != CLASSES:
        raise ValueError(f"it knows {bias.size} classes, and the inception score's network {CLASSES} (UCF-101)")


def _is_window(array: np.ndarray) -> bool:
    return array.shape[-4:] == (3, FRAMES, SIZE, SIZE) and array.size == 3 * FRAMES * SIZE * SIZE


def _variants(window: np.ndarray, mean: np.ndarray) -> str:
    """The variants that use this window of the mean volume: unchanged, negated, or subtracted from 128 as in TGANv2."""
    variants, window, mean = [], window.reshape(3, FRAMES, SIZE, SIZE), mean.reshape(MEAN)
    for variant, preparation in PREPARATIONS.items():
        part = mean[:, :, preparation.row : preparation.row + SIZE, preparation.column : preparation.column + SIZE]
        if any(np.allclose(window, other, rtol=0, atol=1e-2) for other in (part, -part, 128 - part)):
            variants.append(variant)
    return ", ".join(variants) or "none"
