"""Control of a sampling, through the sampling job: numbers of noises, files, known frames, and what does not fit."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from tests.small_models import awake, one_network
from tests.test_main import tiny as small
from vf import main, video
from vf.config import build, data
from vf.config import control as fixed
from vf.config.specs import ControlSpec, SampleSpec
from vf.data import pipeline
from vf.data.clips import Windows
from vf.diffusion import windows
from vf.jobs import control, drawing
from vf.models.sampler import SampleOptions
from vf.run import media
from vf.run.recorder import Recorder
from vf.scores import sets, sources
from vf.training import programs, sharding
from vf.training.checkpoint import Checkpoints
from vf.types import UserError

BASE = 3  # of eight frames
DDIM = {"sample__solver": "ddim", "sample__eta": 0.0}


def tiny(**changes):
    """Of networks that predict noise: untrained, they predict none, so that clips show what was drawn."""
    kinds = {f"{part}__{name}": "eps" for part in ("base", "residual") for name in ("prediction", "loss")}
    return small(**kinds | changes)


def untrained(workdir, config):
    """A run's folder with a checkpoint of networks as they begin: to train them would take a minute to compile."""
    spec = build.train(config, workdir, None)
    create, _ = programs.first_state(spec.run.model, spec.tx, spec.run.mesh, 0)
    meta = {"config": spec.fingerprint, "seed": 0, "classes": list(spec.run.class_names), "fps": spec.run.sample.fps}
    with Recorder(workdir) as recorder, Checkpoints(str(workdir / "checkpoints"), keep=1) as checkpoints:
        recorder.describe(spec.run.config, data=dict(spec.run.data))
        checkpoints.save(2, create(), meta)
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"), tiny())


def sampled(run, **changes):
    """(clips, facts) of another drawing."""
    before = {one.folder for one in media.drawings(run)}
    main.run(tiny(**changes), run, "sample")
    (folder,) = {one.folder for one in media.drawings(run)} - before
    return video.load_npz(folder / "clips.npz")["clips"], json.loads((folder / "meta.json").read_text())


def spec(count=6, **fields):
    options = SampleOptions(np.array([5, -1], np.int32))
    return SampleSpec(options, count, 6, 0, "ema", -1, 8.0, control=ControlSpec(3, 4, **fields))


def test_a_grid_s_rows_share_content_and_its_columns_motion():
    rows = control.numbers(spec(grid=(2, 3)))
    np.testing.assert_array_equal(rows["index"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(rows["motion"], [[4, 0], [4, 1], [4, 2], [4, 0], [4, 1], [4, 2]])
    assert control.columns(spec(grid=(2, 3))) == 3


def test_where_only_frames_are_known_noise_is_drawn_as_ever():
    """Also where it is not decomposed, and has no motion of its own."""
    model = one_network(shape=(8, 16, 16, 3))
    options = SampleOptions(np.array([500, -1], np.int32), known=(0, 1))
    made = SampleSpec(options, 2, 2, 3, "ema", -1, 8.0, control=ControlSpec(3, 3))
    rows = control.numbers(made) | {"known": np.full((2, *model.shape), 200, np.uint8)}
    assert rows.keys() == {"index", "known"}
    draw = programs.sampling(model, sharding.make_mesh(devices=jax.devices()[:1]), options)
    clips = draw(awake(model), rows, np.uint32(3))
    np.testing.assert_array_equal(clips[:, :2], 200)


@pytest.mark.parametrize(("name", "moving"), [("content", [0, 0, 1, 1, 2, 2]), ("motion", [0, 1, 0, 1, 0, 1])])
def test_an_interpolation_goes_from_one_noise_to_the_next_in_equal_angles(name, moving):
    rows = control.numbers(spec(grid=(3, 2), interpolate=name))
    np.testing.assert_allclose(rows[f"{name}_angle"], np.pi / 2 * np.array(moving) / max(moving))
    for cell in range(6):
        alone = control.numbers(spec(1, grid=(3, 2), interpolate=name, cell=cell))
        assert all(np.array_equal(alone[key], value[[cell]]) for key, value in rows.items())
    assert set(rows[f"{name}_towards"]) == {1}
    assert set(rows["index"] if name == "content" else rows["motion"][:, 1]) == {0}


def test_a_grid_is_drawn_and_pictured(run):
    """One base frame a row, of the content's class; the picture has the grid's columns; seeds decide what is drawn."""
    clips, facts = sampled(run, sample__grid=(2, 3), sample__motion_seed=5)
    assert (facts["columns"], facts["count"], facts["control"]["motion_seed"]) == (3, 6, 5)
    assert len(set(facts["labels"][:3])) == len(set(facts["labels"][3:])) == 1
    for row in (clips[:3], clips[3:]):
        assert np.ptp(row[:, BASE].astype(int), axis=0).max() <= 1
        assert np.ptp(row[:, 0].astype(int), axis=0).max() > 10
    assert np.abs(clips[0, BASE].astype(int) - clips[3, BASE]).max() > 10
    alone, facts = sampled(run, sample__grid=(2, 3), sample__motion_seed=5, sample__cell=4)
    np.testing.assert_array_equal(alone, clips[4:5])
    assert (facts["count"], facts["control"]["cell"]) == (1, 4)
    other, _ = sampled(run, sample__grid=(2, 3), sample__motion_seed=6)
    assert np.abs(other[:, BASE].astype(int) - clips[:, BASE]).max() <= 1
    assert np.abs(other[:, 0].astype(int) - clips[:, 0]).max() > 10


def test_a_picture_becomes_the_base_frame(run, tmp_path, caplog):
    """Its centre square, resized; the user is told."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = (200, 40, 90)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    with caplog.at_level(logging.INFO):
        clips, _ = sampled(run, sample__content_of=str(tmp_path / "picture.png"), sample__label=2, sample__count=3)
    assert "picture.png: its centre square of 64 x 32, resized to 16 x 16" in caplog.text
    np.testing.assert_array_equal(clips[:, BASE], np.broadcast_to((200, 40, 90), (3, 16, 16, 3)))
    assert np.abs(clips[0, 0].astype(int) - clips[1, 0]).max() > 10


def test_motion_comes_from_another_clip(run, tmp_path, caplog):
    """Its residual noise is found, and what it samples again is compared with the clip."""
    source = np.random.default_rng(0).integers(60, 196, (2, 8, 16, 16, 3)).astype(np.uint8)
    video.save_npz(tmp_path / "clips.npz", source)
    given = {"sample__motion_of": f"{tmp_path / 'clips.npz'}:1", "sample__label": 2, "sample__count": 5, **DDIM}
    times = {"sample__times": (900, 600, 300, 100, 20)}
    with caplog.at_level(logging.INFO):
        clips, _ = sampled(run, **given, **times)
    assert "sampled again from the noise that was found: off by 0." in caplog.text
    freely, _ = sampled(run, sample__label=2, sample__count=5, sample__clip_x_0=0.0, **DDIM, **times)
    assert np.abs(clips[:, BASE].astype(int) - freely[:, BASE]).max() <= 1  # their own content
    assert np.abs(clips[:, 0].astype(int) - freely[:, 0]).max() > 10


def test_content_of_a_picture_and_motion_of_a_clip(run, tmp_path, caplog):
    """Base first: the picture is the base frame of all, whose residual noise is that of the clip."""
    Image.fromarray(np.full((16, 16, 3), (200, 40, 90), np.uint8)).save(tmp_path / "picture.png")
    source = np.random.default_rng(0).integers(60, 196, (1, 8, 16, 16, 3)).astype(np.uint8)
    video.save_npz(tmp_path / "clips.npz", source)
    with caplog.at_level(logging.INFO):
        clips, _ = sampled(
            run, sample__content_of=str(tmp_path / "picture.png"), sample__motion_of=str(tmp_path / "clips.npz"),
            sample__label=2, sample__count=2, sample__times=(900, 600, 300, 100, 20), **DDIM,
        )  # fmt: skip
    assert "sampled again from the noise that was found: off by 0." in caplog.text
    np.testing.assert_array_equal(clips[:, BASE], np.broadcast_to((200, 40, 90), (2, 16, 16, 3)))
    np.testing.assert_array_equal(clips[0], clips[1])  # all is given


def test_validation_clips_are_gone_on_with(run):
    """Each sample with a clip of its own, and of its class."""
    clips, facts = sampled(run, sample__known=(0, 1, 2, 3), sample__count=7, eval__clips=7)
    config = tiny(eval__clips=7)
    real = pipeline.fixed_clips(data.source(config, "validation"), 7, seed=0)
    np.testing.assert_array_equal(clips[:, :4], real["video"][:, :4])
    names = data.source(config).class_names
    assert facts["labels"] == [names[label] for label in real["label"]]


def test_a_long_clip_begins_as_a_short_one_and_goes_on(run, monkeypatch):
    """Its windows differ, and no frame is lost or repeated; a sample drawn alone is the same. Batches are no larger
    than the clips need, on any number of devices."""
    in_batches, sizes = programs.in_batches, []

    def counted(program, rows, batch_size, mesh, *done):
        sizes.append((batch_size, -(-2 // mesh.size) * mesh.size))
        return in_batches(program, rows, batch_size, mesh, *done)

    short, _ = sampled(run, sample__count=2)
    monkeypatch.setattr(programs, "in_batches", counted)
    long, facts = sampled(run, sample__count=2, sample__length=19, sample__batch_size=16)
    assert len(sizes) == 4
    assert all(size == needed for size, needed in sizes)
    np.testing.assert_array_equal(long[:, :8], short)
    assert (long.shape[1], facts["length"], facts["overlap"]) == (19, 19, 4)
    for first, second in ((4, 8), (8, 12), (12, 16)):  # the new frames of each window
        assert np.abs(long[:, first : first + 3].astype(int) - long[:, second : second + 3]).max() > 10
    alone, _ = sampled(run, sample__count=1, sample__first=1, sample__length=19)
    np.testing.assert_array_equal(alone[0], long[1])


def test_many_samples_stay_in_shards(run, monkeypatch):
    """They are those of one file, and are scored as these are; drawn again, they replace themselves."""
    few, _ = sampled(run, sample__count=20, sample__batch_size=8)
    monkeypatch.setattr(drawing, "SHARD_BYTES", 1)
    before = {one.folder for one in media.drawings(run)}
    config = tiny(sample__count=20, sample__batch_size=8, sample__first=1)  # another drawing
    for _ in range(2):
        main.run(config, run, "sample")
        (folder,) = {one.folder for one in media.drawings(run)} - before
        assert {path.name for path in folder.iterdir()} == {"clips", "meta.json", "strip.png", "wall.gif", "wall.mp4"}
        names = [f"clips_{first:06d}_{last:06d}" for first, last in ((0, 8), (8, 16), (16, 20))]
        assert sorted(path.stem for path in (folder / "clips").iterdir()) == names
        (folder / "clips" / f"{names[1]}.npz").write_bytes(b"damaged")  # only for the first time
    main.run(config, run, "sample")
    shards = [video.load_npz(folder / "clips" / f"{name}.npz") for name in names]
    clips, index, seed, label = (np.concatenate([shard[name] for shard in shards]) for name in
                                 ("clips", "index", "seed", "label"))  # fmt: skip
    np.testing.assert_array_equal(clips[:19], few[1:])
    np.testing.assert_array_equal(index, np.arange(1, 21))
    assert set(seed) == {0}
    video.save_npz(folder.parent / "joined.npz", clips)
    choice = sources.Choice(Windows(8, start="first"))
    sharded, joined = (sets.open_set(path, choice) for path in (folder, folder.parent / "joined.npz"))
    np.testing.assert_array_equal(sharded[:], clips)
    assert (sharded.fingerprint, sharded.facts["content"]) == (joined.fingerprint, joined.facts["content"])
    assert "3 files of clips" in (run / "index.html").read_text()
    names = json.loads((folder / "meta.json").read_text())["labels"]
    assert len(names) == len(label) == 20


def test_a_long_clip_of_shuffled_noise_moves_as_its_first_window(run):
    """Base first, networks that find no noise show it: the new frames have that of the frames left behind."""
    fields = {"sample__count": 2, "sample__length": 19, "sample__window_noise": "shuffled", "sample__clip_x_0": 0.0}
    clips, facts = sampled(run, **fields, **DDIM, sample__times=(200, 100))
    order = windows.shuffled(fixed.extension(tiny(**fields)))[:19]
    for i in range(8, 19):
        if order[i] != BASE:  # which has no residual noise
            assert np.abs(clips[:, i].astype(int) - clips[:, order[i]]).max() <= 1
    assert facts["window_noise"] == "shuffled"


def test_windows_are_denoised_together(tmp_path):
    """Of networks that find no noise, from whose noise a long clip begins as a short one, and goes on."""
    run = untrained(tmp_path, tiny(model__context="none"))
    fields = {"model__context": "none", "sample__clip_x_0": 0.0, "sample__times": (200, 100), **DDIM}
    long_fields = fields | {"sample__length": 19, "sample__windows": "together"}
    short, _ = sampled(run, sample__count=2, **fields)
    long, facts = sampled(run, sample__count=2, **long_fields)
    assert (long.shape[1], facts["windows"], facts["overlap"]) == (19, "together", 4)
    assert np.abs(long[:, :8].astype(int) - short).max() <= 1
    differ = [np.abs(long[:, i].astype(int) - long[:, j]).mean() for i in range(19) for j in range(i)]
    assert min(differ) > 10
    alone, _ = sampled(run, sample__count=1, sample__first=1, **long_fields)
    assert np.abs(alone[0].astype(int) - long[1]).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample__grid": (3,)}, "two numbers, rows and columns"),
        ({"sample__grid": (1, 3), "sample__interpolate": "content"}, "2 rows or more"),
        ({"sample__interpolate": "motion"}, "two numbers, rows and columns"),
        ({"sample__grid": (2, 3), "sample__interpolate": "shape"}, r"\(none\), content, motion"),
        ({"sample__known": (0, 1)}, r"put 3 into sample\.known"),
        ({"sample__known": (3, 8)}, "0 to 7"),
        ({"sample__known": tuple(range(8))}, "got all"),
        ({"sample__known_of": __file__}, r"sample\.known says which"),
        ({"sample__reconstruction": 1.0}, r"sample\.known says which"),
        ({"sample__known": (3,), "sample__grid": (2, 2)}, "leave sample.content_of, motion_of and grid empty"),
        ({"sample__content_of": "no.png"}, "--config.sample.content_of: no.png does not exist: name a picture"),
        ({"sample__known_of": "no.mp4", "sample__known": (3,)}, "--config.sample.known_of: no.mp4 does not exist"),
        ({"sample__motion_of": "a.npz:7"}, "--config.sample.motion_of: a.npz:7 does not exist"),
        ({"sample__content_of": __file__}, "--config.sample.label=K"),
        ({"sample__content_of": __file__, "sample__label": 1}, f"cannot read a clip of {__file__}"),
        ({"sample__motion_of": __file__, "sample__label": 1}, "set --config.sample.solver=ddim"),
        (
            {"sample__motion_of": __file__, "sample__label": 1, "sample__restart": (0, 999, 1), **DDIM},
            "sample.restart=",
        ),
        ({"sample__what": "base", "sample__grid": (2, 2)}, "content alone"),
        ({"sample__what": "base", "sample__length": 9}, "no length"),
        ({"sample__length": 7}, "at least the 8 frames"),
        ({"sample__length": 9, "sample__overlap": 8}, "1 to 7, less than a window's 8"),
        ({"sample__length": 9, "sample__overlap": 3}, "overlap=4 or more, got 3"),
        ({"sample__length": 9, "sample__windows": "both"}, "one of in_turn, together"),
        ({"sample__length": 9, "sample__window_noise": "old"}, "one of new, shuffled"),
        ({"sample__length": 9, "sample__windows": "together"}, "base first, each window is drawn from a clean base"),
        ({"sample__length": 9, "sample__windows": "together", "sample__known": (3,)}, "together knows no frames"),
        ({"sample__grid": (2, 2), "sample__first": 1}, "leave sample.first at 0"),
        ({"sample__grid": (2, 2), "sample__cell": 4}, "0 to 3 row by row, or -1 for all; got 4"),
        ({"sample__cell": 0}, "two numbers, rows and columns"),
        ({"sample__first": -1}, "sample.first must be at least 0"),
    ],
)
def test_control_that_does_not_fit_is_answered_in_one_sentence(run, changes, message):
    before = media.drawings(run)
    with pytest.raises(UserError, match=message):
        main.run(tiny(**changes), run, "sample")
    assert media.drawings(run) == before


def test_only_decomposed_noise_has_content_and_motion():
    with pytest.raises(UserError, match="decomposed noise"):
        fixed.control(tiny(model__predictor="one_network", sample__motion_seed=1))


JOINT = {"model__context": "none", "sample__windows": "together", "sample__length": 19}
ONE = {"model__predictor": "one_network", "sample__length": 19}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**JOINT, "sample__keep_base_noise": False}, r"leave sample\.keep_base_noise at True"),
        ({**JOINT, "noise__lam": (0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.2)}, "one lambda for all frames"),
        ({**JOINT, "sample__overlap": 5}, r"overlap of 5 does not give: set sample\.overlap to 4\.\.4, or"),
        ({**JOINT, "noise__base_frame": 5}, r"overlap of 4 does not give: set sample\.windows=in_turn"),
        ({**JOINT, "sample__guidance": "cfg_pp"}, "cfg_pp puts another back"),
        ({**JOINT, "sample__guidance": "apg", "sample__apg_momentum": -0.5}, "set --config.sample.apg_momentum=0"),
        ({**ONE, "noise__prior": "progressive", "sample__window_noise": "shuffled"}, "which progressive noise has not"),
        ({**ONE, "noise__prior": "mixed", "sample__windows": "together"}, "noise.prior is mixed, which frames share"),
    ],
)
def test_windows_that_a_model_cannot_have_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        fixed.extension(tiny(**changes))


def test_one_window_is_no_long_clip():
    """Whatever is said of windows, it is drawn as ever, into the same folder."""
    ever = tiny()
    said = tiny(sample__windows="together", sample__window_noise="shuffled", sample__overlap=5, sample__length=8)
    specs = [build.sample_spec(config, data.source(ever)) for config in (said, ever)]
    assert specs[0].extension == specs[1].extension == (8, 8, 0)
    assert specs[0].protocol() == specs[1].protocol()
    assert not specs[0].together


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_scored_samples_are_drawn_freely(run, mode):
    with pytest.raises(UserError, match=f"sample.content_seed is for --mode=sample, and this is --mode={mode}"):
        main.run(tiny(sample__content_seed=1), run, mode)


def test_precision_is_a_part_of_what_samples_depend_on():
    """Of the drawing's folder, and of whether a step has been evaluated."""
    half, whole = tiny(model__dtype="bfloat16"), tiny()
    source = data.source(whole)
    specs = [build.sample_spec(config, source).protocol() for config in (half, whole)]
    assert specs[0] == specs[1] | {"dtype": "bfloat16"}
    assert build.evaluation_fingerprint(half) != build.evaluation_fingerprint(whole)
