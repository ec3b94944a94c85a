"""Which clips a job reads: the training clips, the validation set, the reference set."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vf import files
from vf.config import texts
from vf.config.specs import Loading
from vf.config.values import as_user_error, choose
from vf.data import remote
from vf.data.clips import STARTS, Windows
from vf.data.folder import VideoFolder
from vf.data.pipeline import NoClips, Source
from vf.data.share import Share
from vf.data.sprites import Sprites
from vf.data.ucf101 import other_numbers
from vf.diffusion import decompose
from vf.pretrained import export
from vf.types import UserError, naming_flags

TFDS = "tfds:"  # before the name of a data set that TFDS itself prepares
Part = Literal["training", "validation", "reference"]


def base_frame(config: ConfigDict) -> int:
    """Array index of the base frame: `noise.base_frame`, or the paper's where that is -1."""
    paper = as_user_error(lambda: decompose.base_index(config.data.frames), {"frames": "data.frames"})
    return paper if config.noise.base_frame == -1 else config.noise.base_frame


def shown_fps(config: ConfigDict, source: Source) -> float:
    """Frames per second at which samples are shown: `sample.fps` or, where that is 0, the data's; 8 where unknown."""
    return config.sample.fps or config.data.fps or source.fps or 8.0


def source(config: ConfigDict, part: Part = "training", tokenize: Callable[[str], np.ndarray] | None = None) -> Source:
    """The clips of one part of the data, with tokens of their captions by `tokenize`, or as the model reads them.

    training: the clips that training steps see.
    validation: the clips of the validation losses, which are also the donors of the embeddings that condition samples,
        unless a prior draws these.
        No training step sees them, unless `validation_is_seen`. One window of each video, the middle one.
    reference: the clips that distances compare samples with, likewise the middle window of each video.

    Raises UserError where a part is empty, or training steps would see clips of a named validation set.
    """
    data = config.data
    if data.source == "sprites":
        share = Share(data.held_out, False) if part == "training" and data.held_out else None
        split = "train" if part == "training" else "test"
        return Sprites(
            frames=data.frames, size=data.size, base_frame=base_frame(config), split=split, share=share,
            tokenize=tokenize or texts.tokenize(config), video=has_video(config) or tokenize is not None,
        )  # fmt: skip
    if data.source == "none":
        trained = named_networks(config)
        if trained is None:
            return NoClips()
        return NoClips(trained.classes, fps=trained.about.get("fps", 0.0))  # earlier versions recorded no rate
    start = choose("data.windows", data.windows, {known: known for known in STARTS}) if part == "training" else "centre"
    words = ("frames", "stride", "fps", "hop")
    windows = as_user_error(
        lambda: Windows(data.frames, data.stride, data.fps, start, data.hop), {word: f"data.{word}" for word in words}
    )
    where, kind = _located(config)
    video = has_video(config) or tokenize is not None
    tokenize = tokenize or texts.tokenize(config)
    if tokenize is not None and (kind == "split_file" or data.source.startswith(TFDS)):
        raise UserError(
            f"the model reads captions, which {data.source} does not have: prepare it with a table of them, by python "
            "-m vf.data.prepare folder --table=FILE (or webvid)"
        )
    field, share = _selection(config, part, kind)
    group, name = field.split(".")
    chosen, validation = config[group][name], data[f"validation_{kind}"]
    if kind == "split_file":
        without = validation if field == "data.split_file" else ""
        videos = VideoFolder(
            where, windows=windows, size=data.size, split_file=chosen or None, without=without or None, share=share
        )
        if part == "training" and config.model.condition == "label" and (sentence := other_numbers(videos.class_names)):
            logging.warning("%s", sentence)
        return videos
    if both := set(validation.split("+")) & set(data.split.split("+")):
        raise UserError(
            f"data.split={data.split} trains on {min(both)}, which data.validation_split={validation} names: name "
            "another split by --config.data.validation_split, or none for a share of the training videos"
        )
    if data.source.startswith(TFDS):
        if share is not None:
            raise UserError(
                f"the clips of {data.source} have no names to choose a validation set by: name one of its splits by "
                "--config.data.validation_split=test"
            )
        from vf.data.tfds_video import TfdsVideos  # needs TensorFlow

        return TfdsVideos(data.source.removeprefix(TFDS), windows=windows, size=data.size, split=chosen)
    from vf.data.manifest import read_manifest
    from vf.data.prepared import Prepared

    known = read_manifest(Path(where))["splits"]
    if missing := [split for split in chosen.split("+") if split not in known]:
        none = ", or none for a share of the training videos" if part == "validation" else ""
        raise UserError(
            f"{data.source} has no split {missing[0]!r}: known are {', '.join(known)}; name one of these by "
            f"--config.{field}{none}"
        )
    base = base_frame(config) if config.model.context == "embedding" else None
    made = Prepared(where, windows=windows, split=chosen, base_frame=base, share=share, tokenize=tokenize, video=video)
    if made.size != data.size:
        raise UserError(
            f"{data.source} was prepared at {made.size} pixels, and data.size is {data.size}: set "
            f"--config.data.size={made.size}, or prepare again with --size={data.size}"
        )
    return made


def has_video(config: ConfigDict) -> bool:
    """Whether records are read with their pixels: a prior sees embeddings alone, unless they are made of those."""
    return config.model.predictor != "prior" or config.text.embed


def named_networks(config: ConfigDict) -> export.Trained | None:
    """The trained networks that `init_from` or `base.init_from` names; None where both are empty.

    Raises UserError where there are none, or their files are damaged.
    """
    field = "init_from" if config.init_from else "base.init_from"
    path = config.init_from or config.base.init_from
    with naming_flags({"trained": f"--config.{field}"}):
        return export.find(files.path(path)) if path else None


def _located(config: ConfigDict) -> tuple[str, Literal["split", "split_file"]]:
    """Path of `data.source` on this machine, and the kind of field that selects its videos."""
    given = config.data.source
    if given.startswith(TFDS):
        return given, "split"
    where = str(remote.local_copy(given)) if files.is_remote(given) else given
    return where, "split" if (Path(where) / "manifest.json").exists() else "split_file"


def _selection(config: ConfigDict, part: Part, kind: Literal["split", "split_file"]) -> tuple[str, Share | None]:
    """The field that names the split, or the list, of `part`, and the share of its videos (None for all of them)."""
    data = config.data
    named = data[f"validation_{kind}"]
    if part == "validation" and named:
        return f"data.validation_{kind}", None
    if part == "reference" and config.eval[f"reference_{kind}"]:
        return f"eval.reference_{kind}", None
    share = Share(data.validation_share, part == "validation") if data.validation_share and not named else None
    return f"data.{kind}", share


def validation_is_seen(config: ConfigDict) -> bool:
    """Whether training steps see the validation clips: no validation set is named, and its share is 0."""
    data = config.data
    if data.source in ("sprites", "none") or data.validation_share:
        return False
    return not data[f"validation_{_located(config)[1]}"]


def check_validation(config: ConfigDict, workdir: files.AnyPath, fresh: bool) -> None:
    """Raises UserError where earlier steps have trained on clips of the validation set, according to their config.

    Earlier steps are those of the run in `workdir` or, where it is `fresh` and so has no checkpoint, those of the
    networks from which it starts.
    """
    start, data = config.init_from or config.base.init_from, config.data
    path = files.path(start) if fresh and start else workdir
    if (fresh and not start) or data.source in ("sprites", "none") or not (path / "config.json").is_file():
        return
    earlier, kind = export.find(path).config["data"], _located(config)[1]
    if earlier["source"] != data.source or validation_is_seen(config):
        return
    named, left_out = data[f"validation_{kind}"], earlier.get(f"validation_{kind}", "")
    chosen, trained = named or data[kind], earlier[kind]

    def parts(text: str) -> set[str]:
        return set(text.split("+")) if kind == "split" else {text}

    if chosen and trained and not parts(chosen) & parts(trained):
        return
    share = earlier.get("validation_share", 0.0)  # runs from before this field existed trained on all clips
    version = "" if "validation_share" in earlier else ", made by a version that left none out,"
    if named != left_out or (not named and data.validation_share > share):
        raise UserError(
            f"steps of {path}{version} have trained on clips that are the validation set here: set "
            f"--config.data.validation_{kind}={left_out} --config.data.validation_share={share:g} as there, or begin "
            "another run"
        )


def check_flip(config: ConfigDict, source: Source) -> None:
    """Raises UserError where clips of `source` are to be mirrored, and have embeddings but no mirrored ones."""
    if config.data.flip and not getattr(source, "can_flip", True):
        raise UserError(
            f"{config.data.source} has no embeddings of mirrored frames, and clips are to be mirrored: set flip to "
            "False, or prepare the data into another folder with --embed-mirrored, or with `mirrored` in the file of "
            "embeddings",
            "flip",
        )


def loading(config: ConfigDict) -> Loading:
    """How `config.data` says that clips are read.

    Drawing sprites keeps Python itself busy, so that more than one thread would only cost time.
    """
    data = config.data
    return Loading(1 if data.source == "sprites" else data.threads, data.workers, data.read_ahead, data.flip)


def plan_source(config: ConfigDict) -> Source:
    """The clips of `config`; where they are not on this machine, a source without clips of the sizes in `config.plan`.

    Raises UserError where such a size is needed and not given.
    """
    try:
        if files.is_remote(config.data.source):
            raise UserError(f"{config.data.source} is not fetched to plan")
        return source(config)
    except UserError as error:
        made = NoClips(tuple(f"class {k}" for k in range(config.plan.classes)), config.plan.embedding_dim)
        needed = (
            ("model.condition", "label", made.num_classes, "classes"),
            ("model.context", "embedding", made.embedding_dim, "embedding_dim"),
        )
        for field, value, size, name in needed:
            group, key = field.split(".")
            if config[group][key] == value and not size:
                raise UserError(f"{field} is {value}, and the data is not here: set --config.plan.{name}=N") from error
        return made
