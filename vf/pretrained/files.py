"""Reads any public file of weights as {name: array}. The format is recognised by the content, not by the name."""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from vf.pretrained import hub_folder, pickles, safetensors_file, tensorflow_file, torch_file
from vf.types import UserError


class Source(NamedTuple):
    """The content of a file or folder of weights.

    Attributes:
        arrays: by the names of the file, in its dtypes.
        format: of the file or folder.
        files: those that were read, whose bytes are hashed.
        config: config.json of a folder, also where one of its files was named.
        variant: that of a folder which was read, such as `fp16`; "" for the weights that have no such word.
        variants: all that the folder has.
    """

    arrays: dict[str, np.ndarray]
    format: str
    files: tuple[Path, ...]
    config: Mapping[str, Any] = {}
    variant: str = ""
    variants: tuple[str, ...] = ()


def read(path: Path, variant: str = "") -> Source:
    """Reads every array of a file or folder of weights.

    A TensorFlow checkpoint is named by its prefix, by any of its files, or by its folder; a TF-Hub module or a Hugging
    Face model by its folder. Of a folder with several variants, one without a word in its name (which is the average
    over training, where there is one) is read before `fp16` and the like, and `non_ema` last, unless it has `variant`.

    Raises UserError where there is no such file, its format is unknown, or it is damaged.
    """
    try:
        source = _folder(path, variant) if path.is_dir() else _file(path)
        return source._replace(config=hub_folder.config(path))
    except FileNotFoundError as error:
        raise UserError(f"no weights at {error.filename or path}: name the file or folder", "source") from error
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}): is it whole, and the right file?") from error


def sha256(source: Source) -> str:
    """sha256 of the bytes of the files, in their order."""
    digest = hashlib.sha256()
    for path in source.files:
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 22), b""):
                digest.update(part)
    return digest.hexdigest()


def git_blob(path: Path) -> str:
    """The id that git gives to the content of a file, by which files of public repositories can be recognised."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 22), b""):
            digest.update(part)
    return digest.hexdigest()


def _file(path: Path) -> Source:
    prefix = next((str(path).partition(suffix)[0] for suffix in (".index", ".data-") if suffix in path.name), str(path))
    if Path(f"{prefix}.index").is_file():
        return _checkpoint(Path(prefix))
    with path.open("rb") as file:
        head = file.read(9)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return Source(_npz(path), "npz", (path,))
        script = any(name.endswith("/constants.pkl") for name in names)
        return Source(torch_file.read(path), "torchscript" if script else "torch", (path,))
    if len(head) == 9 and head[8:9] == b"{":
        return Source(safetensors_file.read(path)[0], "safetensors", (path,))
    if torch_file.is_legacy(path):
        return Source(torch_file.read(path), "torch (legacy)", (path,))
    if head[:1] == b"\x80":
        return Source(_pickle(path), "pickle", (path,))
    raise ValueError("its format is none of safetensors, PyTorch, TorchScript, TensorFlow, npz and pickle")


def _folder(path: Path, variant: str) -> Source:
    variables = path / "variables" if (path / "variables").is_dir() else path
    if indices := sorted(variables.glob("*.index")):
        if len(indices) > 1:
            raise ValueError(f"it holds several checkpoints ({', '.join(file.name for file in indices)}): name one")
        return _checkpoint(indices[0].with_suffix(""))
    weights = hub_folder.find(path, variant)
    if weights is None:
        raise ValueError("the folder holds no *.index, *.safetensors or *.bin")
    arrays: dict[str, np.ndarray] = {}
    for file in weights.files:
        try:
            arrays |= _file(file).arrays
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error
    kind = {"safetensors": "safetensors folder", "bin": "torch folder"}[weights.kind]
    return Source(arrays, kind, weights.files, {}, weights.variant, weights.variants)


def _checkpoint(prefix: Path) -> Source:
    data = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
    kind = "TF-Hub module" if prefix.parent.name == "variables" else "TensorFlow checkpoint"
    return Source(tensorflow_file.read(prefix), kind, tuple(data))


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        try:
            return {name: file[name] for name in file.files}
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(str(error)) from error


class _Arrays(pickles.Unpickler):
    """Reads pickled trees of NumPy or JAX arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "FrozenDict" and module.startswith("flax"):
            return dict
        if (module, name) == ("jax._src.array", "_reconstruct_array"):
            return _jax_array
        return super().find_class(module, name)


def _jax_array(make: Any, arguments: Any, state: Any, *_: Any) -> np.ndarray:
    array = make(*arguments)
    array.__setstate__(state)
    return array


def _pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = _Arrays(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"no whole pickle of arrays: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"its pickle holds a {type(tree).__name__}, where a dict of arrays should be")
    leaves = {"/".join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}
    return {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray | np.generic)}
