"""Samples taken up to a higher resolution by one command: both sizes, whatever else is drawn, and what is refused."""

import json
import re

import jax
import numpy as np
import pytest

from configs import superres as recipe
from tests.test_main import tiny
from vf import files, main, video
from vf.config import build, check
from vf.jobs import drawing
from vf.models.superres import TwoNetworks
from vf.pretrained import base, convert, export
from vf.run.metrics_file import read_metrics
from vf.training import programs, sharding
from vf.types import UserError


def small(**changes):
    """The recipe at a size that compiles in seconds, from the 16 pixels of `tiny` to 32."""
    config = recipe.get_config("demo")
    config.base.net.update({"width": 8, "num_res_blocks": 0, "head_dim": 8, "norm_groups": 4, "temporal": ("conv",)})
    given = {
        "train.steps": 2, "train.warmup_steps": 1, "train.schedule": "constant", "train.log_every": 1,
        "train.checkpoint_every": 2, "train.sample_every": 0, "sample.count": 3, "sample.batch_size": 8,
        "sample.steps": 2, "eval.clips": 8, "eval.batch_size": 8, "eval.levels": (500,), "mesh.cpu_devices": 0,
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    config.update_from_flattened_dict(given)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of super-resolution."""
    workdir = tmp_path_factory.mktemp("superres")
    return workdir, main.run(small(), workdir, "train")


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("base")
    main.run(tiny(train__steps=2, train__checkpoint_every=2), workdir, "train")
    return workdir


def clips_of(workdir, count, seed=0):
    """{size: clips} of the drawings of so many samples."""
    name = re.compile(f"step_00000002_clips_seed{seed}_n{count}_[0-9a-f]{{8}}")
    found = {}
    for folder in files.children(workdir / "samples"):
        if name.fullmatch(folder.name):
            meta = json.loads((folder / "meta.json").read_text())
            names = [f"clips/{shard}" for shard in meta.get("shards", [])] or ["clips"]
            found[meta["height"]] = np.concatenate([video.load_npz(folder / f"{one}.npz")["clips"] for one in names])
            assert not (folder / "low").exists()
    return found


def test_a_run_of_the_recipe_takes_its_validation_clips_up(trained):
    workdir, scores = trained
    assert np.isfinite([scores[name] for name in ("psnr", "psnr_bilinear", "psnr_bicubic")]).all()
    assert scores["psnr_bicubic"] > scores["psnr_bilinear"] > 20
    lines = [line for line in read_metrics(workdir) if line.get("score") == "psnr"]
    assert lines[0]["protocol"]["low_size"] == 16
    assert clips_of(workdir, 3)[32].shape == (3, 8, 32, 32, 3)


def test_samples_are_taken_up_each_by_itself(trained, base_run, monkeypatch):
    """Sample 2 of three is that of a job of one; shards of a killed job, and one by one, are the same clips."""
    given = {"sample__superres": str(trained[0]), "sample__superres_batch_size": 8}
    config = tiny(train__steps=2, sample__count=3, **given)
    main.run(config, base_run, "sample")
    both = clips_of(base_run, 3)
    assert {size: clips.shape for size, clips in both.items()} == {16: (3, 8, 16, 16, 3), 32: (3, 8, 32, 32, 3)}
    assert "taken up to 32 pixels" in (base_run / "index.html").read_text()
    one = tiny(train__steps=2, sample__count=1, sample__first=2, **given)
    main.run(one, base_run, "sample")
    for size, clips in clips_of(base_run, 1).items():
        np.testing.assert_array_equal(clips[0], both[size][2])
    monkeypatch.setattr(drawing, "SHARD_BYTES", 1)
    many = tiny(train__steps=2, sample__count=12, **given)
    made = programs.raising
    calls, lows = [], []

    def killed(*args):
        program = made(*args)

        class Program:
            def lower(self, *rows):
                compiled = program.lower(*rows).compile()

                class Lowered:
                    def compile(self):
                        def call(*rows):
                            calls.append(len(calls))
                            lows.append(np.asarray(rows[1]["low"]))
                            if len(calls) == 2:
                                raise KeyboardInterrupt
                            return compiled(*rows)

                        return call

                return Lowered()

        return Program()

    monkeypatch.setattr(programs, "raising", killed)
    with pytest.raises(KeyboardInterrupt):
        main.run(many, base_run, "sample")
    main.run(many, base_run, "sample")
    assert len(calls) == 3  # one shard, that which was killed, and the same again
    of_pixels = np.asarray(video.from_uint8(np.asarray(video.to_uint8(lows[0]))))
    assert np.abs(lows[0] - of_pixels).max() > 1e-3  # between the stages clips are no pixels
    for size, clips in clips_of(base_run, 12).items():
        np.testing.assert_array_equal(clips[:3], both[size])


def test_karlos_two_networks_are_named_as_files(tmp_path, base_run):
    """Of the size that the converted files say; one noise for all frames, or as is asked; in tiles."""
    torch_unets = pytest.importorskip("tests.pretrained.torch_unets")
    net = torch_unets.superres(width=32, mult=(1, 2), blocks=1)
    net.save_pretrained(tmp_path / "net")
    for name in ("first", "last"):
        convert.convert_base(
            base.SUPERRES, tmp_path / "net", tmp_path / f"{name}.safetensors", assume={"image_size": 64}
        )
    both = f"{tmp_path}/first.safetensors,{tmp_path}/last.safetensors"
    config = tiny(sample__superres=both, sample__superres_tile=32, sample__superres_frames=3)
    stage = build.sample(config, base_run, export.find(base_run)).superres
    assert isinstance(stage.model, TwoNetworks)
    assert (stage.model.shape, stage.model.low_size, tuple(stage.model.tiles)) == ((8, 64, 64, 3), 16, (32, 8, 3, 0))
    np.testing.assert_array_equal(stage.model.prior.lam, np.ones(8))
    assert stage.options.grid.tolist() == [999, 832, 666, 500, 333, 166, 0, -1]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows = {"low": np.zeros((1, 8, 16, 16, 3), np.float32), "number": np.zeros(1, np.uint32)}
    program = programs.raising(stage.model, mesh, stage.options)
    assert jax.eval_shape(program, stage.model.shapes(), rows, np.uint32(0)).shape == (1, 8, 64, 64, 3)
    params = stage.start.read(sharding.abstract_params(stage.model.shapes(), mesh))
    assert params.keys() == {"base", "last"}
    for value, text in (
        (f"{both},{both}", "has two networks, first and last, and these are 4 files"),
        (str(tmp_path / "none.safetensors"), r"no weights at .*superres.*\(--config\.sample\.superres\)"),
    ):
        with pytest.raises(UserError, match=text):
            build.sample(tiny(sample__superres=value), base_run, export.find(base_run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample__superres": "{base}"}, "is no super-resolution: name a run of configs/superres.py"),
        ({"data__size": 32}, "takes clips of 16 x 16 up, and these are of 32 x 32: name another"),
        ({"sample__what": "base"}, "takes clips up, not images of the base generator"),
        ({"sample__superres": "nowhere"}, r"\(--config\.sample\.superres\)"),
        (
            {"sample__superres_tile": 8, "sample__superres_overlap": 8},
            "must be less than --config.sample.superres_tile",
        ),
        ({"sample__superres_lam": 2.0}, "must be 0 to 1, or -1 for that of its run"),
    ],
)
def test_what_does_not_fit_is_refused(trained, base_run, changes, message):
    config = tiny(**{"sample__superres": str(trained[0])} | changes)
    config.sample.superres = config.sample.superres.replace("{base}", str(base_run))

    def build_it():
        check.check(config, "sample")
        build.sample(config, base_run / "new", None)

    with pytest.raises(UserError, match=message):
        build_it()
