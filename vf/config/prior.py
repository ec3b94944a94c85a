"""The prior that draws the embeddings of samples: of a run, of what was exported of one, or Karlo's."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vf.config import texts
from vf.config.models import prior_of
from vf.config.networks import computation, embedding_dim, named_prior
from vf.config.specs import PriorSpec, Start
from vf.config.values import as_user_error
from vf.data.pipeline import Source
from vf.diffusion import noise, solvers
from vf.diffusion import schedule as schedules
from vf.diffusion.guidance import Guidance
from vf.models.prior import Prior
from vf.models.sampler import SampleOptions
from vf.pretrained import export, weights
from vf.pretrained import prior as pretrained
from vf.types import Params, UserError, counted

KARLO_GUIDANCE = 4.0  # the default of its pipeline


def embedding_prior(config: ConfigDict, source: Source, mesh: Mesh) -> PriorSpec | None:
    """What draws the embeddings of samples of `config`, for clips of the classes of `source`; None for nothing.

    Raises UserError where it draws other embeddings than the generators see, or knows other classes than they do.
    """
    header = named_prior(config)
    if header is None:
        return None
    if (seen := embedding_dim(config, source)) != header.dim:
        raise UserError(
            f"the prior in {header.path} draws embeddings of {header.dim} numbers, and those that the generators see "
            f"have {seen}: name a prior that was trained on embeddings of the same network (--config.sample.prior)"
        )
    labels = () if (reads := _reads(config, header)) else _labels(config, header, source)
    conditioned = reads or bool(labels)
    make = _karlo if header.file else _trained
    made, scale = make(config, header, mesh, labelled=bool(labels), reads=reads)
    if (own := config.sample.prior_guidance_scale) != -1:
        if own != 1 and not conditioned:
            raise UserError(
                f"sample.prior_guidance_scale is {own}, but the prior in {header.path} draws without a class or text, "
                "to which it could be guided: set --config.sample.prior_guidance_scale=-1"
            )
        scale = own
    steps = as_user_error(
        lambda: schedules.time_grid(config.sample.prior_steps, made.schedule.steps), {"steps": "sample.prior_steps"}
    )
    options = SampleOptions(
        steps, solvers.DDIM(eta=1.0), Guidance(scale if conditioned else 1.0), _bound(header) or None
    )
    return PriorSpec(made, _start(header), options, labels)


def _bound(header: pretrained.Header) -> float:
    """The bound of its clean estimates; 0 for none."""
    if header.trained is not None:
        return float(header.trained.config["sample"]["clip_x_0"])
    assert header.file is not None
    return float(header.file.about["clip_x_0"])


def _labels(config: ConfigDict, header: pretrained.Header, source: Source) -> tuple[int, ...]:
    """The prior's label of each class of the clips; () where it draws without a class. Raises UserError."""
    names = source.class_names
    missing = [name for name in names if name not in header.classes]
    if names and header.classes and not missing:
        return tuple(header.classes.index(name) for name in names)
    if config.model.condition == "label":
        known = (
            f"knows {counted(len(header.classes), 'class')} without {missing[0]}" if header.classes else "knows none"
        )
        raise UserError(
            f"the generators are conditioned on classes, and the prior in {header.path} {known}: name one that was "
            "trained on the same classes with --config.model.condition=label (--config.sample.prior)"
        )
    if header.classes and header.trained and not header.trained.config["model"]["condition_dropout"]:
        raise UserError(
            f"the prior in {header.path} was never trained without a class, and these clips have none of its classes: "
            "name another (--config.sample.prior)"
        )
    return ()


def _reads(config: ConfigDict, header: pretrained.Header) -> bool:
    """Whether the prior reads the texts of samples. Raises UserError where only one of it and the generators does."""
    theirs = header.trained is None or header.trained.config["model"]["condition"] == "text"  # Karlo's reads texts
    if not texts.reads(config):
        if header.trained is not None and theirs:
            raise UserError(
                f"the prior in {header.path} reads texts, and the generators do not: take generators of "
                "--config.model.condition=text, or another prior (--config.sample.prior)"
            )
        return False
    if not theirs:
        raise UserError(
            f"the generators read texts, and the prior in {header.path} does not: name one that was trained with "
            "--config.model.condition=text (--config.sample.prior)"
        )
    found, learned = texts.encoder(config), header.trained and header.trained.about.get("text_encoder")
    if found is not None and learned and found.fingerprint != learned:
        raise UserError(
            f"the prior in {header.path} has learned the texts of another encoder (its fingerprint was {learned}, and "
            f"that of {config.text.encoder} is {found.fingerprint}): name that one by --config.text.encoder"
        )
    return True


def _trained(
    config: ConfigDict, header: pretrained.Header, mesh: Mesh, *, labelled: bool, reads: bool
) -> tuple[Prior, float]:
    """The model of a run, and its scale of guidance."""
    assert header.trained is not None
    theirs = ConfigDict(dict(header.trained.config))
    length, width, dim = header.trained.about.get("text_shape", (0, 0, 0))
    made = prior_of(
        theirs, header.dim, len(header.classes), mesh, labelled=labelled,
        text_shape=(length, width, dim) if reads else (0, 0, 0),
    )  # fmt: skip
    return made, theirs.sample.guidance_scale


def _karlo(
    config: ConfigDict, header: pretrained.Header, mesh: Mesh, *, labelled: bool, reads: bool
) -> tuple[Prior, float]:
    """The model of a converted file, and its scale of guidance. Raises UserError where it lacks the texts it needs."""
    assert header.file is not None
    about = header.file.about
    if not about["texts"]:
        raise UserError(
            f"{header.path} has neither texts of classes nor the empty prompt: convert it again with "
            "--text-encoder=FOLDER"
        )
    shape = (about["network"]["text_length"], header.dim, header.dim)
    if reads and texts.shape(config) != shape:
        raise UserError(
            f"the prior in {header.path} reads texts of {shape[0]} tokens of {shape[1]} numbers, and those of "
            f"{config.text.encoder} have {texts.shape(config)[:2]}: Karlo's is the ViT-L/14 of OpenAI "
            "(--config.text.encoder)"
        )
    how = {name: value for name, value in computation(config, mesh).items() if name in ("dtype", "place")}
    made = Prior(
        net=pretrained.net(about, **how), prior=noise.Independent(), prediction=about["prediction"],
        schedule=schedules.SCHEDULES[about["schedule"]["name"]](about["schedule"]["steps"]), loss=about["prediction"],
        shape=(1, 1, 1, header.dim), base_frame=0, null_label=len(about["texts"]) - 1 if labelled else None,
        readers=("prior",) if reads else (), text_shape=shape if reads else (0, 0, 0),
    )  # fmt: skip
    return made, KARLO_GUIDANCE


def _start(header: pretrained.Header) -> Start:
    """The prior's weights."""
    if header.trained is not None:
        return Start(("prior",), header.trained.read, header.trained.origin())
    file, path = header.file, header.path
    assert file is not None

    def read(params: Params) -> Params:
        arrays = weights.load(path, pretrained.FAMILY).arrays
        return {"prior": export.place_arrays(arrays, params["prior"], path)}

    return Start(("prior",), read, {"from": str(path), "family": file.family, "fingerprint": file.fingerprint})
