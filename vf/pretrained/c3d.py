"""C3D's public files: Chainer's npz with its mean volume beside it, and StyleGAN-V's compiled copy of it.

    conv3d_deepnetA_ucf.npz    release v1.0 of rezoo/tgan2: conv1a/W, conv1a/b, ..., fc8/b
    mean2.npz                  the same release, and pfnet-research/tgan's: mean [3 16 128 171], channels B G R
    c3d_ucf101.pt              StyleGAN-V: a TorchScript whose names are not documented

The mean volume belongs to the network, but only `mean2.npz` is known to hold it: it is read beside either file.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vf.nets.c3d import C3D, CLASSES, CONVOLUTIONS, FRAMES, MEAN, PREPARATIONS, SIZE, WIDTH
from vf.pretrained.names import From, renamed

CONVOLUTION = (2, 3, 4, 1, 0)  # O I D H W -> D H W I O
DENSE = (1, 0)  # O I -> I O
LAYERS = (*(name for name, _, _ in CONVOLUTIONS), "fc6", "fc7", "fc8")
SHORT = {"conv1": "conv1a", "conv2": "conv2a"}  # as PyTorch ports name the two layers that have no b


def table() -> dict[str, From]:
    """{ours: Chainer's}, complete but for the mean."""
    found: dict[str, From] = {}
    for name in LAYERS:
        axes = DENSE if name.startswith("fc") else CONVOLUTION
        found |= {f"{name}/kernel": From(f"{name}/W", axes), f"{name}/bias": From(f"{name}/b")}
    return found


def canonical(arrays: Mapping[str, np.ndarray], *, width: int = WIDTH) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ours, `mean` among them, and what is known about them.

    `about` has `layout` (chainer or torch), `by_order` (whether layers were taken by their order, for want of known
    names) and, where the file has a mean of its own of 112 x 112 pixels, `window`: the variants of `vf.nets.c3d`
    whose window of the volume it is.

    Args:
        arrays: of one file and of mean2.npz.
        width: of the network; 64 is the published one.

    Raises:
        ValueError: no mean volume, or one that is no picture; another network, or another number of classes than 101.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    mean = _mean(arrays)
    arrays = {name: array for name, array in arrays.items() if array is not mean}
    layers, rest, layout, ordered = _layers(arrays)
    _classes(layers)
    shapes = jax.eval_shape(
        C3D(width).init, jax.random.key(0), jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), np.float32)
    )
    # What a port may have beside the layers: its own window of the mean, and a turn of R G B to B G R.
    made = renamed(
        layers | rest, table(), {name: leaf.shape for name, leaf in flatten_dict(shapes["params"], sep="/").items()},
        ignored=lambda name: name in rest and (rest[name].size <= 9 or _is_window(rest[name])),
    )  # fmt: skip
    about: dict[str, Any] = {
        "layout": layout, "by_order": ordered, "classes": CLASSES,
        "licence": "of the weights: not stated (C3D, fine-tuned on UCF-101); of TGANv2, which released them: MIT",
    }  # fmt: skip
    if windows := [array for array in rest.values() if _is_window(array)]:
        about["window"] = _variants(windows[0], mean)
    return made | {"mean": np.ascontiguousarray(mean, np.float32).reshape(MEAN)}, about


def _mean(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of the mean volume's shape: the one that is called `mean`, else any."""
    fitting = {
        name: array for name, array in arrays.items() if array.shape[-4:] == MEAN and array.size == np.prod(MEAN)
    }
    if not fitting:
        told = f" (its `mean` is {list(arrays['mean'].shape)})" if "mean" in arrays else ""
        raise ValueError(
            f"the mean volume {list(MEAN)} is missing{told}: it is `mean` in mean2.npz of TGANv2's release; give that "
            "file also"
        )
    mean = fitting.get("mean", next(iter(fitting.values())))
    if not (np.isfinite(mean).all() and mean.min() >= 0 and mean.max() <= 255):
        raise ValueError("the mean volume has values that are no pixels of 0 ... 255: is mean2.npz whole?")
    return mean


def _layers(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str, bool]:
    """Layers under Chainer's names, the other arrays, the layout, and whether order told the layers."""
    if any(name.endswith("/W") for name in arrays):
        wanted = {row.name for row in table().values()}
        layers = {name: array for name, array in arrays.items() if name in wanted}
        return layers, {name: array for name, array in arrays.items() if name not in wanted}, "chainer", False
    layers, rest = {}, {}
    for name, array in arrays.items():
        scope, _, kind = name.rpartition(".")
        layer = scope.rpartition(".")[2]
        layer, kind = SHORT.get(layer, layer), {"weight": "W", "W": "W", "bias": "b", "b": "b"}.get(kind, "")
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
            return layers, rest, "torch", False  # `renamed` tells what is missing
        raise


def _in_order(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Layers of unknown names, in the file's order, and the other arrays; ValueError where their number differs."""
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
    taken = dict(zip([f"{name}/W" for name in LAYERS], [*convolutions, *matrices], strict=True))
    taken |= dict(zip([f"{name}/b" for name in LAYERS], biases, strict=True))
    layers = {ours: arrays[theirs] for ours, theirs in taken.items()}
    return layers, {name: array for name, array in arrays.items() if name not in taken.values()}


def _classes(layers: Mapping[str, np.ndarray]) -> None:
    bias = layers.get("fc8/b")
    if bias is not None and bias.size != CLASSES:
        raise ValueError(f"it knows {bias.size} classes, and the inception score's network {CLASSES} (UCF-101)")


def _is_window(array: np.ndarray) -> bool:
    return array.shape[-4:] == (3, FRAMES, SIZE, SIZE) and array.size == 3 * FRAMES * SIZE * SIZE


def _variants(window: np.ndarray, mean: np.ndarray) -> str:
    """Whose window of the mean volume `window` is, as it is, negated, or taken from 128 as TGANv2 keeps it."""
    found, window, mean = [], window.reshape(3, FRAMES, SIZE, SIZE), mean.reshape(MEAN)
    for variant, how in PREPARATIONS.items():
        part = mean[:, :, how.row : how.row + SIZE, how.column : how.column + SIZE]
        if any(np.allclose(window, other, rtol=0, atol=1e-2) for other in (part, -part, 128 - part)):
            found.append(variant)
    return ", ".join(found) or "none"
