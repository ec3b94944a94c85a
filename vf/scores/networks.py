"""Builds the networks that metrics need from converted files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vf.activity import ACTIVITY
from vf.metrics import fvd
from vf.nets import c3d, clip, efficientnet, inception, vit
from vf.nets.feature_network import Network
from vf.nets.tokenizer import Tokenizer
from vf.pretrained import i3d, weights
from vf.pretrained.efficientnet import load as load_efficientnet
from vf.pretrained.weights import Weights
from vf.scores import suite
from vf.scores.suite import Captions
from vf.types import UserError

# Families of networks that metrics need. Without a file, the efficientnet is that of the installed package.
FAMILIES = ("i3d", "c3d", "inception", "videomae", "vjepa", "clip", "efficientnet")


@ACTIVITY.doing("reading the networks")
def networks(
    names: Iterable[str],
    files: Mapping[str, Path],
    lineage: fvd.Lineage,
    frames: int,
    *,
    exact: bool = True,
    other: bool = False,
) -> tuple[dict[str, Network], frozenset[str]]:
    """({name: network}, names of the families whose weights are not those of the published metric).

    Args:
        names: names of networks, as metrics give them: a family, or FAMILY:VARIANT; `flicker` needs no file.
        files: {family: safetensors file that the converter wrote}.
        lineage: how I3D is run.
        frames: frames per clip.
        exact: whether to compute in float32 on every platform; False takes the platform's default precision.
        other: whether weights are accepted that are not those of the published metric.

    Raises:
        UserError: a family has no file, or a file of another family, or weights that are not those of the published
            metric.
    """
    built: dict[str, Network] = {}
    loaded: dict[str, Weights] = {}
    for name in dict.fromkeys(names):
        family, _, variant = name.partition(":")
        if family == "flicker":
            built[name] = suite.flicker()
            continue
        if family not in loaded:
            loaded[family] = open_weights(family, files)
        converted = loaded[family]
        params = converted.tree()
        if family == "i3d":
            built[name] = fvd.network(params, converted.fingerprint, lineage, exact=exact)
        elif family == "c3d":
            built[name] = c3d.network(params, converted.fingerprint, variant=variant, exact=exact)  # type: ignore[arg-type]
        elif family == "inception":
            built[name] = inception.network(params, converted.fingerprint, mode=variant, exact=exact)  # type: ignore[arg-type]
        elif family == "efficientnet":
            built[name] = efficientnet.network(params, converted.fingerprint, exact=exact)
        elif family == "videomae":
            config = vit.Config(**converted.about["config"])
            built[name] = vit.videomae(params, converted.fingerprint, config=config, exact=exact)
        elif family == "vjepa":
            config = vit.Config(**converted.about["config"])
            built[name] = vit.vjepa(params, converted.fingerprint, config=config, exact=exact)
        else:
            built[name] = clip.clip_image(
                params, converted.fingerprint, frames=frames, exact=exact, **_of_clip(converted, "image")
            )
    problems = {family: problem for family, converted in loaded.items() if (problem := _problem(family, converted))}
    for family, problem in problems.items():
        if not other:
            raise UserError(
                f"{files[family]}: {problem}; other weights, if allowed, give a distance under another name",
                "other_weights",
            )
    return built, frozenset(problems)


@ACTIVITY.doing("reading the network of the embeddings")
def frame_network(name: str) -> Network:
    """The network of embeddings of single frames, u8 [b 1 h w 3] -> f32 [b dim], as generators are conditioned on.

    `name` is `efficientnet`, for the installed package, `efficientnet:FILE`, or `clip:FILE` of the converter. CLIP's
    embeddings are not divided by their length, as Karlo takes them.

    Raises UserError where the package is not installed, or a file cannot be read as that network.
    """
    family, _, file = name.partition(":")
    converted = open_weights(family, {family: Path(file)} if file else {})
    if family == "efficientnet":
        return efficientnet.network(converted.tree(), converted.fingerprint)
    return clip.clip_image(
        converted.tree(), converted.fingerprint, frames=1, normalised=False, **_of_clip(converted, "image")
    )


def _of_clip(converted: Weights, tower: str) -> dict[str, Any]:
    """The sizes of a CLIP. Raises UserError where the file does not hold its encoder `tower`, image or text."""
    other = {"image": "text", "text": "image"}[tower]
    if f"{tower}/proj/kernel" not in converted.arrays:
        raise UserError(
            f"the file made of {converted.about['source']} holds CLIP's {other} encoder alone, where its {tower} "
            f"encoder is needed: convert the whole CLIP, or the folder of a {tower} encoder",
            "weights",
        )
    language = {"language": clip.TextConfig(**converted.about["language"])}
    return language if tower == "text" else language | {"vision": vit.Config(**converted.about["vision"])}


def _problem(family: str, converted: Weights) -> str:
    """The reason why these are not the weights of the published metric; "" where they are, or it has no single ones."""
    if family == "i3d":
        return i3d.problem(converted.about)
    if family in ("videomae", "vjepa") and not converted.about["official"]:
        return f"this is a {family} network of another size than the metric's ({weights.OFFICIAL[family]})"
    return ""


def open_weights(family: str, files: Mapping[str, Path]) -> Weights:
    """Reads the converted weights of `family`. Raises UserError where no file is named, and as `weights.load`.

    Those of `efficientnet` are read from the installed package where no file is named, and from a file like its own.
    """
    if family == "efficientnet":
        return load_efficientnet(files.get(family))
    if family not in files:
        raise UserError(
            f"no weights of {family} were named: make a file of {weights.OFFICIAL[family]} with python -m "
            f"vf.pretrained.convert {family} --source=FILE --out={family}.safetensors, and name that",
            family,
        )
    return weights.load(files[family], family)


@ACTIVITY.doing("reading CLIP and the captions")
def captions(texts: Sequence[str], files: Mapping[str, Path], vocabulary: Path, prefix: str = "") -> Captions:
    """CLIP's embeddings of `texts`, one for each generated clip. Raises UserError as `open_weights` and `Tokenizer`."""
    converted = open_weights("clip", files)
    sizes = _of_clip(converted, "text")
    context = converted.about["language"]["context"]
    tokens, cut = Tokenizer(vocabulary).encode(list(texts), prefix=prefix, context=context)
    values = clip.clip_text(converted.tree(), jnp.asarray(tokens), **sizes)
    return Captions(
        np.asarray(values), {"prefix": prefix, "policy": "one caption for each clip, in order", "truncated": cut}
    )
