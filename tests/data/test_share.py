"""A validation set that no list names: chosen by the videos' names alone, and disjoint from the training videos."""

import hashlib

import numpy as np
import pytest

from configs import base
from tests.data.synthetic import colour, number, write
from vf.config import check, data
from vf.data.clips import STARTS
from vf.data.pipeline import batches, fixed_clips
from vf.data.preparation import prepare
from vf.data.share import Share, position
from vf.data.staging import Parameters
from vf.types import UserError

VIDEOS = [f"{'AB'[k % 2]}/v{k}.avi" for k in range(12)]  # video k has colour k throughout
NAMES = [f"class/video_{k}.avi" for k in range(4000)]


def test_a_video_s_part_depends_on_its_name_alone():
    """The stated function of sha256; other videos, and their order, change nothing."""
    selected = Share(0.1, True).select(NAMES)
    for name, is_selected in zip(NAMES[:100], selected, strict=False):
        head = hashlib.sha256(name.encode()).hexdigest()[:16]
        assert is_selected == (int(head, 16) < 0.1 * 2**64)
    assert abs(selected.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(NAMES))
    np.testing.assert_array_equal(Share(0.1, True).select(NAMES[::-3]), selected[::-3])
    np.testing.assert_array_equal(Share(0.1, False).select(NAMES), ~selected)
    assert not (selected & ~Share(0.2, True).select(NAMES)).any()  # a larger share holds it
    # Names that are not UTF-8 have a place.
    assert Share(0.1, True).select(["caf\udce9.avi", *NAMES]).sum() >= selected.sum()


@pytest.mark.parametrize("validation", [True, False])
def test_a_part_without_videos_is_refused_and_a_sufficient_share_named(validation):
    names = sorted(NAMES[:20], key=position)
    share = Share(position(names[0]) if validation else position(names[-1]) * 1.001, validation)
    with pytest.raises(UserError, match=r"leaves none to (the validation set|training): take") as raised:
        share.select(names)
    better = float(str(raised.value).split("take a share of ")[1].split()[0])
    assert Share(better, validation).select(names).sum() == 1
    with pytest.raises(UserError, match="bring more videos"):
        Share(0.0 if validation else 1.0, validation).select(names[:1])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{how: folder} of twelve videos: to be decoded, and prepared; and a list of two of them."""
    root = tmp_path_factory.mktemp("share")
    for k, name in enumerate(VIDEOS):
        write(root / "videos" / name, times=range(20), paint=lambda _, k=k: np.full((48, 64, 3), colour(k)))
    parameters = Parameters(
        dataset="folder", source=str(root / "videos"), size=16, encoding="raw", quality=0, splits="", fold=1, table="",
        embeddings="", fps=0.0, min_frames=2,
    )  # fmt: skip
    prepare(parameters, root / "data", workers=1)
    (root / "list.txt").write_text(f"{VIDEOS[3]}\n{VIDEOS[8]} 2\n")
    return {"decoded": root / "videos", "prepared": root / "data", "list": root / "list.txt"}


def config(folder, **changes):
    config = base.get_config()
    config.data.update({"source": str(folder), "frames": 4, "stride": 2, "size": 16, "hop": 3, "validation_share": 0.3})
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def shown(clips) -> set[int]:
    """Which videos clips [n f h w 3] are of."""
    return {number(frame) for clip in clips for frame in clip[[0, -1]]}


def trained_on(config) -> set[int]:
    """The videos that two epochs of training show."""
    source = data.source(config)
    found: set[int] = set()
    with batches(source, seed=0, batch_size=len(source), threads=0) as steps:
        for _ in range(2):
            found |= shown(next(steps)["video"])
    return found


@pytest.mark.parametrize("windows", STARTS)
@pytest.mark.parametrize("how", ["decoded", "prepared"])
def test_no_window_of_a_validation_video_is_trained_on(sources, how, windows):
    """Whatever the windows, decoded or prepared: the same videos, and all of them in one part or the other."""
    chosen = config(sources[how], data__windows=windows)
    validation = data.source(chosen, "validation")
    clips = fixed_clips(validation, len(validation))["video"]
    assert len(clips) == len(shown(clips))  # one window a video
    assert shown(clips) == {k for k, name in enumerate(VIDEOS) if position(name) < 0.3}
    assert trained_on(chosen) == set(range(12)) - shown(clips)
    reference = data.source(chosen, "reference")  # the clips that are trained on, one window each
    assert shown(fixed_clips(reference, len(reference))["video"]) == set(range(12)) - shown(clips)
    assert validation.describe()["part"] == "validation"
    assert data.source(chosen).describe()["part"] == reference.describe()["part"] == "training"
    assert not data.validation_is_seen(chosen)


@pytest.mark.parametrize("how", ["decoded", "prepared"])
def test_a_share_of_zero_trains_on_all_videos_and_warns(sources, how):
    chosen = config(sources[how], data__validation_share=0.0)
    validation = data.source(chosen, "validation")
    assert trained_on(chosen) == shown(fixed_clips(validation, 12)["video"]) == set(range(12))
    assert data.validation_is_seen(chosen)


def test_a_list_of_validation_videos_is_left_out_of_training(sources, tmp_path):
    """Whatever the share; a list of training videos that names one of them is refused."""
    chosen = config(sources["decoded"], data__validation_split_file=str(sources["list"]))
    assert shown(fixed_clips(data.source(chosen, "validation"), 2)["video"]) == {3, 8}
    assert trained_on(chosen) == set(range(12)) - {3, 8}
    assert not data.validation_is_seen(chosen)
    chosen.eval.reference_split_file = str(sources["list"])
    assert shown(fixed_clips(data.source(chosen, "reference"), 2)["video"]) == {3, 8}
    chosen.data.split_file = str(sources["list"])
    with pytest.raises(UserError, match=f"both name {VIDEOS[3]} .and 1 more.: a video either trains or validates"):
        data.source(chosen)
    (tmp_path / "all.txt").write_text("\n".join(VIDEOS))
    with pytest.raises(UserError, match="names every video of"):
        data.source(config(sources["decoded"], data__validation_split_file=str(tmp_path / "all.txt")))


def test_inconsistent_splits_are_refused(sources):
    for part, changes, message in (
        ("training", {"data__validation_split": "train"}, "data.split=train trains on train, which"),
        (
            "validation",
            {"data__validation_split": "test"},
            "known are train; .* --config.data.validation_split, or none",
        ),
        ("reference", {"eval__reference_split": "train+dev"}, "no split 'dev'.* by --config.eval.reference_split$"),
        (
            "training",
            {"data__split": "dev"},
            "no split 'dev': known are train; name one of these by --config.data.split$",
        ),
        ("training", {"data__validation_share": 0.99999}, "leaves none to training"),
        ("validation", {"data__validation_share": 1e-9}, "leaves none to the validation set"),
    ):
        with pytest.raises(UserError, match=message):
            data.source(config(sources["prepared"], **changes), part)
    with pytest.raises(UserError, match="the clips of tfds:ucf101 have no names to choose a validation set by"):
        data.source(config("tfds:ucf101"))
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"data.validation_share must be at least 0 and less than 1"):
            check.check(config(sources["prepared"], data__validation_share=share), "train")
