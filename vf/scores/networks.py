"""From converted files to the networks of metrics."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vf.metrics import fvd
from vf.nets import c3d, clip, inception, vit
from vf.nets.feature_network import Network
from vf.nets.tokenizer import Tokenizer
from vf.pretrained import i3d, weights
from vf.pretrained.weights import Weights
from vf.scores import suite
from vf.scores.suite import Captions
from vf.types import UserError

FAMILIES = ("i3d", "c3d", "inception", "videomae", "vjepa", "clip")  # that metrics ask for


def networks(
    names: Iterable[str],
    files: Mapping[str, Path],
    lineage: fvd.Lineage,
    frames: int,
    *,
    exact: bool = True,
    other: bool = False,
) -> tuple[dict[str, Network], frozenset[str]]:
    """The networks `names`, from the converted files in `files`, and those with other weights than the metric's.

    Args:
        names: of networks, as metrics ask for them: a family, or FAMILY:VARIANT; `flicker` needs no file.
        files: {family: safetensors file of the converter}.
        lineage: how I3D is run.
        frames: of the clips.
        exact: float32 on every platform; False takes the platform's default precision.
        other: accept weights that are not those of the published metric.

    Raises:
        UserError: no file for a family, a file that is not its own, or weights that are not the published metric's.
    """
    made: dict[str, Network] = {}
    loaded: dict[str, Weights] = {}
    for name in dict.fromkeys(names):
        family, _, variant = name.partition(":")
        if family == "flicker":
            made[name] = suite.flicker()
            continue
        if family not in loaded:
            loaded[family] = open_weights(family, files)
        found = loaded[family]
        params = found.tree()
        if family == "i3d":
            made[name] = fvd.network(params, found.fingerprint, lineage, exact=exact)
        elif family == "c3d":
            made[name] = c3d.network(params, found.fingerprint, variant=variant, exact=exact)  # type: ignore[arg-type]
        elif family == "inception":
            made[name] = inception.network(params, found.fingerprint, mode=variant, exact=exact)  # type: ignore[arg-type]
        elif family == "videomae":
            config = vit.Config(**found.about["config"])
            made[name] = vit.videomae(params, found.fingerprint, config=config, exact=exact)
        elif family == "vjepa":
            config = vit.Config(**found.about["config"])
            made[name] = vit.vjepa(params, found.fingerprint, config=config, exact=exact)
        else:
            vision, language = vit.Config(**found.about["vision"]), clip.TextConfig(**found.about["language"])
            made[name] = clip.clip_image(
                params, found.fingerprint, frames=frames, vision=vision, language=language, exact=exact
            )
    doubts = {family: doubt for family, found in loaded.items() if (doubt := _doubt(family, found))}
    for family, doubt in doubts.items():
        if not other:
            raise UserError(
                f"{files[family]}: {doubt}; other weights, if allowed, give a distance under another name",
                "other_weights",
            )
    return made, frozenset(doubts)


def _doubt(family: str, found: Weights) -> str:
    """Why these are not the weights of the published metric; empty where they are, or where it has no one network."""
    if family == "i3d":
        return i3d.doubt(found.about)
    if family in ("videomae", "vjepa") and not found.about["official"]:
        return f"this is a {family} network of another size than the metric's ({weights.OFFICIAL[family]})"
    return ""


def open_weights(family: str, files: Mapping[str, Path]) -> Weights:
    """The converted weights of `family`. Raises UserError where none were named, or `weights.load` does."""
    if family not in files:
        raise UserError(
            f"no weights of {family} were named: make a file of {weights.OFFICIAL[family]} with python -m "
            f"vf.pretrained.convert {family} --source=FILE --out={family}.safetensors, and name that",
            family,
        )
    return weights.load(files[family], family)


def captions(texts: Sequence[str], files: Mapping[str, Path], vocabulary: Path, prefix: str = "") -> Captions:
    """CLIP's embeddings of `texts`, one of each generated clip. Raises UserError as `open_weights` and `Tokenizer`."""
    found = open_weights("clip", files)
    tokens, cut = Tokenizer(vocabulary).encode(list(texts), prefix=prefix)
    values = clip.clip_text(
        found.tree(), jnp.asarray(tokens), vision=vit.Config(**found.about["vision"]),
        language=clip.TextConfig(**found.about["language"]),
    )  # fmt: skip
    return Captions(
        np.asarray(values), {"prefix": prefix, "policy": "one caption for each clip, in order", "truncated": cut}
    )
