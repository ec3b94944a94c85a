"""Reads any public file of weights as {name: array}. The format is recognised by the content, not by the name."""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from vf.pretrained import safetensors_file, tensorflow_file, torch_file
from vf.types import UserError


class Source(NamedTuple):
    """The content of a file or folder of weights."""

    arrays: dict[str, np.ndarray]  # by the names of the file, in its dtypes
    format: str
    files: tuple[Path, ...]  # the files that were read, whose bytes are hashed
    config: Mapping[str, Any] = {}  # config.json of a folder


def read(path: Path) -> Source:
    """Reads every array of a file or folder of weights.

    A TensorFlow checkpoint is named by its prefix, by any of its files, or by its folder; a TF-Hub module or a Hugging
    Face model by its folder.

    Raises UserError where there is no such file, its format is unknown, or it is damaged.
    """
    try:
        return _read(path)
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


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file. Raises ValueError that names the file where it has none, and OSError."""
    try:
        fields = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no whole JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} holds no fields")
    return fields


def git_blob(path: Path) -> str:
    """The id that git gives to the content of a file, by which files of public repositories can be recognised."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 22), b""):
            digest.update(part)
    return digest.hexdigest()


def _read(path: Path) -> Source:
    if path.is_dir():
        return _folder(path)
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


def _folder(path: Path) -> Source:
    variables = path / "variables" if (path / "variables").is_dir() else path
    if indices := sorted(variables.glob("*.index")):
        if len(indices) > 1:
            raise ValueError(f"it holds several checkpoints ({', '.join(file.name for file in indices)}): name one")
        return _checkpoint(indices[0].with_suffix(""))
    config = read_json(file) if (file := path / "config.json").is_file() else {}
    for name in ("model", "diffusion_pytorch_model"):
        parts = [file] if (file := path / f"{name}.safetensors").is_file() else []
        if (index := path / f"{name}.safetensors.index.json").is_file():
            by_name = read_json(index).get("weight_map")
            if not isinstance(by_name, dict):
                raise ValueError(f"{index.name} has no weight_map")
            parts = sorted({path / part for part in by_name.values()})
            if missing := [part.name for part in parts if not part.is_file()]:
                raise ValueError(f"{index.name} names {missing[0]}, which is not there")
        if parts:
            arrays = {name: array for part in parts for name, array in safetensors_file.read(part)[0].items()}
            return Source(arrays, "safetensors folder", tuple(parts), config)
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        if (file := path / name).is_file():
            return Source(torch_file.read(file), "torch folder", (file,), config)
    raise ValueError("the folder holds no *.index, *.safetensors or pytorch_model.bin")


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


class _Numpy(pickle.Unpickler):
    """Reads pickled trees of NumPy or JAX arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy.core", "numpy._core")) and name in ("_reconstruct", "scalar", "_frombuffer"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module == "ml_dtypes":
            return getattr(ml_dtypes, name)
        if name == "FrozenDict" and module.startswith("flax"):
            return dict
        if (module, name) == ("jax._src.array", "_reconstruct_array"):
            return _jax_array
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which weights have no need of")


def _jax_array(make: Any, arguments: Any, state: Any, *_: Any) -> np.ndarray:
    array = make(*arguments)
    array.__setstate__(state)
    return array


def _pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = _Numpy(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"no whole pickle of arrays: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"its pickle holds a {type(tree).__name__}, where a dict of arrays should be")
    leaves = {"/".join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}
    return {name: np.asarray(leaf) for name, leaf in leaves.items() if isinstance(leaf, np.ndarray | np.generic)}
