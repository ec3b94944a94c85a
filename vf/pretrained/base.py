"""A converted image model as a run's base generator: which network it is, and the parameters that it starts with.

The file determines the architecture: width, depth, heads. The run determines the condition: none, a class of the clip,
or an embedding of the clip's base frame. Where the file's conditions are others, the network starts as the image model
under the mean of its conditions:

    ADM     Its table of classes is replaced by one of the run's classes. A row is the file's row of the same name, or
            else the mean over the file's rows. Without a condition the mean is added to the bias of the step
            embedding, which is the same function.
    Karlo   Without a condition it gets its learned null embedding and the empty prompt; a class is the text of its
            name.

Karlo's super-resolution has no conditions. It starts as it is, with whatever layers the run adds without effect.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from vf.pretrained import adm, karlo, weights
from vf.types import UserError

FAMILIES = ("adm", "karlo-decoder")
SUPERRES = "karlo-superres"  # the family of what takes clips of a low resolution up
HEADER = "base.json"  # in a run's folder: the header of the file that the run started from


@dataclasses.dataclass(frozen=True)
class Base:
    """The header of a converted file. Its arrays are read by `params` alone.

    Attributes:
        path: the file.
        family: one of `FAMILIES`, or `SUPERRES`.
        fingerprint: hash of its values.
        about: see `adm.canonical` and `karlo.canonical`.
    """

    path: Path
    family: str
    fingerprint: str
    about: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a U-Net that the file determines, as a config has them."""
        network = self.about["network"]
        names = (*adm.FIELDS, *adm.UPSAMPLER) if self.family == SUPERRES else adm.FIELDS
        return {name: tuple(v) if isinstance(v := network[name], list) else v for name in names}

    @property
    def classes(self) -> int:
        """Number of classes of the original network; 0 for an unconditional one."""
        if self.family in ("adm", SUPERRES):
            return int(self.about["network"]["num_classes"]) - self.can_be_guided
        return max(len(self.about["texts"]) - 1, 0)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the original network's classes; their numbers where they have no names."""
        names = self.about["classes"]
        return tuple(names[k] if k < len(names) else str(k) for k in range(self.classes))

    @property
    def can_be_guided(self) -> bool:
        """Whether the original network was trained with "no class", which is then label `classes`."""
        return bool(self.about.get("texts")) or list(self.about["classes"][-1:]) == [""]

    def check(self, schedule: str, steps: int, prediction: str) -> None:
        """Raises UserError where a run's schedule or base prediction is not the file's."""
        values = {
            "schedule": (schedule, self.about["schedule"]["name"]),
            "steps": (steps, self.about["schedule"]["steps"]),
            "prediction": (prediction, self.about["prediction"]),
        }
        for name, (ours, trained) in values.items():
            if ours != trained:
                raise UserError(f"{self.path} was trained with {name} {trained}, and this run has {ours}", name)

    def network(
        self, *, class_names: Sequence[str] = (), embedding_dim: int = 0, text_dim: int = 0, **changes: Any
    ) -> nn.Module:
        """The base generator of a run, conditioned on classes where there are `class_names`, on an embedding of
        `embedding_dim` channels where that is not 0, and likewise on texts.

        Raises UserError for classes that the file has no text of, texts that it cannot read, or an embedding of another
        size.
        """
        if text_dim and (
            self.family != "karlo-decoder" or text_dim != self.about["clip_dim"] or not self.about["texts"]
        ):
            decoder = self.family == "karlo-decoder"
            reads = f"reads texts of {self.about['clip_dim']} channels" if decoder else "reads no texts"
            reads = "has no empty prompt" if decoder and not self.about["texts"] else reads
            raise UserError(
                f"{self.path} {reads}, and those here have {text_dim}: take Karlo's decoder, converted with "
                "--text-encoder=FOLDER, and that text encoder"
            )
        if self.family in ("adm", SUPERRES):
            kinds = {"num_classes": len(class_names), "null_class": bool(class_names)}
            return adm.net(self.about, **kinds, cond_dim=embedding_dim, **changes)
        if embedding_dim not in (0, self.about["clip_dim"]):
            raise UserError(
                f"the records' embedding has {embedding_dim} numbers, and {self.path} takes CLIP's of "
                f"{self.about['clip_dim']} (ViT-L/14): prepare the data with such embeddings"
            )
        self._rows(class_names)
        texts = len(class_names) + 1 if self.about["texts"] else 0
        return karlo.net(self.about, texts=texts, embedding=embedding_dim > 0, text=text_dim > 0, **changes)

    def original_network(self, **changes: Any) -> nn.Module:
        """The file's network unchanged, with the file's classes; label `classes` is the empty prompt of Karlo."""
        if self.family == "adm":
            return adm.net(self.about, **changes)
        return karlo.net(self.about, texts=len(self.about["texts"]), **changes)

    def params(
        self, shapes: Mapping[str, Any], class_names: Sequence[str] = (), original: bool = False,
        drawn: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """{path: float32 array} for the network that `network` made, or `original_network` where `original` says so.

        `shapes` {path: anything with a shape} are those of its parameters. `drawn` are first values of layers that a
        file of super-resolution has not: those over frames, and embeddings, all of which begin without effect. Raises
        UserError where the file has changed or is damaged, or does not fit them.
        """
        if self.path.name == HEADER:
            raise UserError(
                f"the base network starts from weights that are no longer there, {self.path} being only what they said "
                "of themselves: bring the file back, or name another",
                "pretrained",
            )
        arrays = dict(weights.load(self.path, self.family).arrays)
        if "embed/cond/bias" in arrays and "embed/cond/bias" not in shapes:
            # The network was trained with an embedding and gets none: the bias is what an embedding of zeros gives.
            arrays["embed/time/out/bias"] = arrays["embed/time/out/bias"] + arrays["embed/cond/bias"]
        if not original and self.family == "adm":
            arrays |= self._labels(arrays, shapes, class_names)
        if not original and self.about.get("texts"):
            rows = [*self._rows(class_names), len(self.about["texts"]) - 1]
            arrays |= {name: array[rows] for name, array in arrays.items() if name.startswith("texts/")}
        # A condition that the image model does not have starts without effect.
        fresh = {
            path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items() if path.startswith("embed/cond/")
        }
        merged = {**_without_effect(drawn or {}), **fresh, **arrays}
        wrong = [path for path, leaf in shapes.items() if path not in merged or merged[path].shape != tuple(leaf.shape)]
        if wrong:
            raise UserError(f"{self.path} does not fit the base network, first at {wrong[0]}: convert it again")
        return {path: merged[path] for path in shapes}

    def _labels(
        self, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any], class_names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        table, bias = arrays.get("embed/label/embedding"), arrays["embed/time/out/bias"]
        shape = shapes.get("embed/label/embedding")
        if table is None:
            return {"embed/label/embedding": np.zeros(shape.shape, np.float32)} if shape is not None else {}
        mean = table.astype(np.float64).mean(0)
        if shape is None:
            return {"embed/time/out/bias": (bias + mean).astype(np.float32)}
        rows = np.broadcast_to(mean.astype(np.float32), shape.shape).copy()
        known = {name: row for row, name in enumerate(self.about["classes"])}
        for row, name in enumerate([*class_names, ""]):  # "" is "no class"
            if name in known:
                rows[row] = table[known[name]]
        return {"embed/label/embedding": rows}

    def _rows(self, class_names: Sequence[str]) -> list[int]:
        """Rows of the texts of these classes. Raises UserError where a class has no text."""
        known = {name: row for row, name in enumerate(self.about["classes"])}
        if missing := [name for name in class_names if name not in known]:
            lack = f"no text of class {missing[0]}" if known else "no texts"
            raise UserError(
                f"{self.path} has {lack}, and the run's condition is label: convert it with a text encoder of CLIP "
                "(which stores the names of UCF101's classes), or set condition to none",
                "condition",
            )
        return [known[name] for name in class_names]


def _without_effect(drawn: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """First values of which embeddings are 0, with layers before them that are not, so that they can be learned."""
    last = ("embed/frame/out/", "embed/amplitude/out/", "embed/label/")
    return {path: np.zeros_like(array) if path.startswith(last) else array for path, array in drawn.items()}


def open_base(path: Path, families: tuple[str, ...] = FAMILIES) -> Base:
    """Reads the header of a converted file, or of the copy that a run keeps, `HEADER`, which has no arrays.

    Raises UserError where there is no such file, or it is not of `families`.
    """
    if path.name == HEADER and path.is_file():
        try:
            header = json.loads(path.read_text())
            return Base(path, header["family"], header["fingerprint"], header["about"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): copy it from a backup, or start in another folder"
            ) from error
    header = weights.peek(path, families)
    return Base(path, header.family, header.fingerprint, header.about)


def header_text(base: Base) -> str:
    """Content of `HEADER`, which `open_base` reads instead of the file where its arrays are no longer needed."""
    return json.dumps({"family": base.family, "fingerprint": base.fingerprint, "about": dict(base.about)}, indent=1)


def described(
    shapes: Mapping[str, Any],
    net: Mapping[str, Any],
    *,
    schedule: Mapping[str, Any],
    prediction: str,
    image_size: int,
    classes: Sequence[str],
    header: Base | None,
) -> tuple[str, dict[str, Any]]:
    """Family and `about` of a base network that a run has trained; ("", {}) where no public format holds it.

    Args:
        shapes: {path: anything with a .shape} of its parameters.
        net: its fields in the config.
        schedule: `name` and `steps` of the noise schedule.
        prediction: eps, x_0 or v.
        image_size: side of the images in pixels.
        classes: class names in the order of labels.
        header: the header of the file that it started from; None where it started from none.

    Raises UserError where that header is needed and missing.
    """
    family = family_of(shapes)
    # Runs of earlier versions have not the fields in which upsamplers differ. A base generator reads three colours.
    reads = [shapes[path].shape[-2] for path in ("conv_in/kernel", "unet/conv_in/kernel") if path in shapes]
    if not family or not all(net.get(name, True) for name in adm.UPSAMPLER) or reads != [3 * net["patch"] ** 2]:
        return "", {}
    table = shapes.get("embed/label/embedding")
    network = {name: net[name] for name in adm.FIELDS} | {"num_classes": table.shape[0] if table is not None else 0}
    about: dict[str, Any] = dict(header.about) if header else {"licence": "of those who trained it"}
    about |= {
        "network": network, "schedule": dict(schedule), "prediction": prediction, "image_size": image_size,
        "layout": "vf", "dtype": "float32", "other_dtypes": {},
        "classes": [*classes, ""] if table is not None else [],
    }  # fmt: skip
    if family == "karlo-decoder":
        if header is None:
            raise UserError(f"the run's {HEADER} is missing, which says what its base network is: bring it back")
        rows = shapes["texts/mask"].shape[0] if "texts/mask" in shapes else 0
        named = list(classes) if rows > 1 else []
        texts = dict(zip(header.about["classes"], header.about["texts"], strict=False))
        about |= {"classes": named, "texts": [*(texts[name] for name in named), ""] if rows else []}
    if header:
        about |= {"started_from": header.fingerprint}
    return family, about


def family_of(arrays: Mapping[str, Any]) -> str:
    """The family whose file can hold a base network with parameters of these paths; "" for none."""
    if any(path.startswith("unet/") for path in arrays):
        return "" if "null_text" in arrays else "karlo-decoder"  # Karlo's has an empty prompt
    video = ("temporal", "embed/frame")
    is_adm = "embed/time/out/bias" in arrays and not any(part in path for path in arrays for part in video)
    return "adm" if is_adm else ""
