"""Films of known shots are cut at exactly their joins; every frame is in one shot, or left out with a reason."""

import itertools
import json
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph
from PIL import Image

from tests.data.films import PLAN, film, write_film
from tests.data.synthetic import parameters, single, write_frames
from vf.data import inspect
from vf.data.clips import Windows
from vf.data.listing import Item
from vf.data.preparation import prepare
from vf.data.prepare import arguments, report
from vf.data.prepared import Prepared
from vf.data.shots import Meter, Rules, find_shots
from vf.data.staging import stage
from vf.types import UserError

LEAST = 12
WHY = {"black": "black", "frozen": "frozen", "still": "without motion", "moving": ""}


def cut(source: Path, out: Path, **changes) -> dict:
    given = {"min_frames": LEAST, "shots": Rules(), **changes}
    return prepare(parameters(source, **given), out, workers=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> tuple[Path, dict, Path]:
    """A folder of one film, the manifest of its shots, and the folder of the prepared data."""
    source, out = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("cut")
    write_film(source / "one.mkv")
    return source, cut(source, out), out


def test_shots_begin_exactly_at_the_joins(films):
    _, manifest, _ = films
    ends = np.cumsum([count for _, count in PLAN]).tolist()
    shots = manifest["shots"]["one.mkv"]["shots"]
    assert [(shot["first"], shot["frames"]) for shot in shots] == [
        (end - count, count) for end, (_, count) in zip(ends, PLAN, strict=True)
    ]
    for shot, (kind, count) in zip(shots, PLAN, strict=True):
        why = "has 5 frames, fewer than 12" if count < LEAST and kind == "moving" else WHY[kind]
        assert shot.get("left_out", "").startswith(why) == bool(why) or not why
        assert ("split" in shot) == (not why)
        assert (shot["start"], shot["end"]) == (shot["first"] / 25, (shot["first"] + count) / 25)


@pytest.mark.parametrize(
    "codec",
    [("libx264", {"x264-params": "bframes=3:keyint=12"}), ("mpeg4", {"qmin": "2", "qmax": "6"})],
    ids=["h264", "mpeg4"],
)
def test_codecs_with_losses_are_cut_at_the_same_places(tmp_path, codec):
    plan = [*PLAN, ("black", 1)]  # begins where the decoder gives what it has held back
    frames = write_film(tmp_path / "one.mp4", plan=plan, codec=codec)
    facts = stage(Item("one.mp4", tmp_path / "one.mp4"), parameters(tmp_path, shots=Rules()), tmp_path / "x.clip")
    assert facts["frames"] == len(frames)
    assert [shot["frames"] for shot in facts["shots"]] == [count for _, count in plan]
    for shot in facts["shots"]:
        assert shot["start"] == pytest.approx(shot["first"] / 25, abs=1e-3)
        assert shot["end"] == pytest.approx((shot["first"] + shot["frames"]) / 25, abs=1e-3)


def test_clips_are_the_shots_and_no_frame_is_in_two(films, tmp_path):
    source, manifest, out = films
    prepare(parameters(source), tmp_path, workers=1)
    whole = np.stack([single(tmp_path).clip(k, None)["video"][0] for k in range(sum(count for _, count in PLAN))])
    seen: list[int] = []
    for split, facts in manifest["splits"].items():
        data = Prepared(out, windows=Windows(1, start="all"), split=split)
        frames = iter(range(len(data)))
        for name, count in zip(facts["index"]["name"], facts["index"]["frames"], strict=True):
            video, first = name.split("#")
            assert video == "one.mkv"
            numbers = list(range(int(first), int(first) + count))
            seen += numbers
            np.testing.assert_array_equal([data.clip(next(frames), None)["video"][0] for _ in numbers], whole[numbers])
        assert next(frames, None) is None
    left_out = [shot for shot in manifest["shots"]["one.mkv"]["shots"] if "left_out" in shot]
    seen += [frame for shot in left_out for frame in range(shot["first"], shot["first"] + shot["frames"])]
    assert sorted(seen) == list(range(len(whole)))


def splits(manifest: dict) -> dict[str, str]:
    """{name of a clip: its split}; no clip may be in two."""
    names = [(name, split) for split, facts in manifest["splits"].items() for name in facts["index"]["name"]]
    assert len(dict(names)) == len(names)
    return dict(names)


def test_another_film_leaves_the_splits_of_the_first_as_they_were(films, tmp_path):
    source, rules = films[0], Rules(val_share=0.4, test_share=0.3)
    (tmp_path / "in" / "more").mkdir(parents=True)
    (tmp_path / "in" / "one.mkv").symlink_to(source / "one.mkv")
    for seed in (1, 2):
        write_film(tmp_path / "in" / "more" / f"{seed}.mkv", seed)
    alone = splits(cut(source, tmp_path / "alone", shots=rules))
    among = splits(cut(tmp_path / "in", tmp_path / "out", shots=rules))
    assert len(among) == 3 * len(alone)
    assert set(alone.values()) == {"train", "val", "test"}
    assert alone.items() <= among.items()


def test_a_film_by_itself_is_a_source(films, tmp_path):
    source, manifest, _ = films
    assert splits(cut(source / "one.mkv", tmp_path)) == splits(manifest)


def test_splits_have_about_their_shares_and_a_larger_one_keeps_what_was_in_it():
    names = [f"film.mkv#{k}" for k in range(4000)]
    some, more = Rules(val_share=0.1, test_share=0.2), Rules(val_share=0.15, test_share=0.2)
    counts = {split: sum(some.split(name) == split for name in names) for split in ("train", "val", "test")}
    assert counts["val"] == pytest.approx(400, abs=60)
    assert counts["test"] == pytest.approx(800, abs=80)
    assert all(more.split(name) == "val" for name in names if some.split(name) == "val")


def test_splits_that_folders_name_are_kept(tmp_path):
    write_film(tmp_path / "in" / "train" / "a.mkv")
    write_film(tmp_path / "in" / "test" / "b.mkv", seed=1)
    found = splits(cut(tmp_path / "in", tmp_path / "out"))
    assert {(name.split("/")[0], split) for name, split in found.items()} == {("train", "train"), ("test", "test")}


def test_the_score_is_that_of_ffmpeg():
    if not hasattr(av.VideoFrame, "metadata"):
        pytest.skip("this PyAV does not hand over what filters measure")
    frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in film(3)]
    graph, meter, expected = Graph(), Meter(), []
    chain = [graph.add_buffer(width=64, height=48, format=frames[0].format, time_base=Fraction(1, 25))]
    chain += [graph.add("scale", "64:64:flags=area+accurate_rnd+bitexact"), graph.add("format", "gbrp")]
    chain += [graph.add("scdet", "threshold=100"), graph.add("buffersink")]
    for one, other in itertools.pairwise(chain):
        one.link_to(other)
    graph.configure()
    for frame in frames:
        graph.vpush(frame)
        expected.append(float(graph.vpull().metadata["lavfi.scd.score"]))
        meter.add(frame)
    np.testing.assert_allclose(meter.score[1:], expected[1:], atol=6e-4)  # FFmpeg writes three digits
    assert max(expected) > 10


def test_a_picture_of_another_size_begins_a_shot():
    meter = Meter()
    for k in range(20):
        picture = np.full((48, 64, 3) if k < 9 else (32, 32, 3), 90, np.uint8)
        meter.add(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    assert [shot.frames for shot in find_shots(meter, 25.0, Rules(), 2)] == [9, 11]


def test_another_format_of_the_same_picture_is_no_change():
    """And what lies under transparent pixels, which are laid on black, neither."""
    meter, (hidden, other) = Meter(), (np.full((48, 64, 4), value, np.uint8) for value in (200, 90))
    hidden[..., 3] = other[..., 3] = 0
    for pixels, name in ((hidden[..., :3], "rgb24"), (np.dstack([hidden[..., :3], np.full((48, 64), 255)]), "rgba")):
        meter.add(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels, np.uint8), format=name))
    for pixels in (hidden, other):
        meter.add(av.VideoFrame.from_ndarray(pixels, format="rgba"))
    assert meter.difference[0] == 100
    assert meter.difference[1] < 1
    assert meter.difference[3] == 0
    assert meter.black == [False, False, True, True]


def test_the_last_shot_ends_after_it_begins_whatever_the_rate():
    meter = Meter()
    for k in range(6):
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90 + 5 * (k % 2), np.uint8), format="rgb24")
        picture.pts, picture.time_base = 40 * k, Fraction(1, 20)
        meter.add(picture)
    (shot,) = find_shots(meter, 25.0, Rules(), 2)
    assert (shot.start, shot.end) == (0, 10.04)


def test_folders_of_frames_are_films_too(tmp_path):
    for k, frame in enumerate(film(0, PLAN[:2])):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"{k}.png")
    facts = stage(Item("frames", tmp_path / "frames"), parameters(tmp_path, shots=Rules()), tmp_path / "x.clip")
    assert [(shot["frames"], shot["start"]) for shot in facts["shots"]] == [(24, 0.0), (12, 1.0)]  # at 24 a second


def test_a_film_is_staged_without_being_held(tmp_path):
    frames = write_film(tmp_path / "long.mkv", plan=[("moving", 40)] * 15)
    tracemalloc.start()
    facts = stage(
        Item("long.mkv", tmp_path / "long.mkv"), parameters(tmp_path, size=64, shots=Rules()), tmp_path / "x.clip"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts["frames"] == len(frames)
    assert peak < len(frames) * 64 * 64 * 3 / 5


def test_films_without_a_shot_are_lost_and_told(tmp_path):
    write_film(tmp_path / "in" / "one.mkv")
    write_film(tmp_path / "in" / "title.mkv", plan=[("still", 20), ("black", 5), ("still", 18)])
    (tmp_path / "in" / "text.mkv").write_text("no video\n" * 50)
    manifest = cut(tmp_path / "in", tmp_path / "out")
    assert set(manifest["rejected"]) == {"title.mkv", "text.mkv"}
    assert manifest["rejected"]["title.mkv"].startswith("no shot of it can be used; most often: without motion")
    text = report(manifest, tmp_path / "out")
    assert "one.mkv: 8 shots, 0:06.76 of 0:09.24; 5 left out:" in text
    assert "  0:01.44 to 0:01.68: black" in text
    assert "title.mkv: 0 shots, 0:00.00 of 0:01.72; 3 left out:" in text

    (tmp_path / "titles").mkdir()
    (tmp_path / "in" / "title.mkv").rename(tmp_path / "titles" / "title.mkv")
    with pytest.raises(UserError, match=r"no shot of any video can be used, for example title\.mkv: no shot of it"):
        cut(tmp_path / "titles", tmp_path / "none")


def test_only_folders_are_cut_and_embeddings_have_no_names(tmp_path):
    write_frames(tmp_path / "in" / "train" / "a")
    with pytest.raises(UserError, match="only those of a folder are cut"):
        cut(tmp_path / "in", tmp_path / "out", dataset="sky_timelapse")
    with pytest.raises(UserError, match="embeddings go by the names of clips"):
        cut(tmp_path / "in", tmp_path / "out", embeddings="x.npz")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--cut-score=9"], "--cut-score is of shots, and --shots is not given"),
        (["--shots", "--cut-score=101"], "--cut-score must lie in 0..100, got 101"),
        (["--shots", "--val-share=0.6", "--test-share=0.5"], "must leave shots to train on, and are 0.6 and 0.5"),
        (["--shots", "--min-motion=few"], "invalid float value: 'few'"),
    ],
)
def test_a_slip_in_flags_is_answered_in_one_sentence(capsys, flags, sentence):
    with pytest.raises(SystemExit, match=r"^2$"):
        arguments(["folder", "--source=a", "--out=b", *flags])
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("vf: ")
    assert said.count("\n") == 1


def test_flags_set_the_rules():
    given, _ = arguments(["folder", "--source=a", "--out=b", "--shots", "--cut-score=9", "--val-share=0.3"])
    assert given.shots == Rules(cut_score=9, val_share=0.3)
    assert given.min_frames == 16
    plain, _ = arguments(["folder", "--source=a", "--out=b"])
    assert (plain.shots, plain.min_frames) == (None, 2)
    later = {"shots", "embed", "embed_mirrored", "deinterlace"}
    assert not later & set(plain.to_json())  # so that data without them keep their fingerprint


def test_other_rules_are_other_data(films):
    source, manifest, out = films
    assert cut(source, out) == json.loads((out / "manifest.json").read_text()) | {"already": True}
    with pytest.raises(UserError, match=r"prepared already with other parameters \(shots was .*0\.1.* and is None\)"):
        prepare(parameters(source, min_frames=LEAST), out, workers=1)
    assert manifest["parameters"]["shots"]["cut_score"] == 8.0


def test_inspect_draws_every_shot_in_order_of_time(films, tmp_path, capsys):
    _, manifest, out = films
    inspect.main(["--shots", f"--data={out}", f"--out={tmp_path / 'shots.png'}"])
    said = capsys.readouterr().out
    used = [shot for shot in manifest["shots"]["one.mkv"]["shots"] if "split" in shot]
    assert f"shots.png: {len(used)} shots, 4 a row" in said
    assert "0:01.44    0:01.68      6  left out: black" in said
    for shot in used:
        assert f"{shot['frames']:>6}  {shot['split']}" in said
    data = inspect.open_collection(out, None, every=True)
    rows = inspect.draw_shots(data)
    assert [row.clip.name for row in rows] == [f"one.mkv#{shot['first']}" for shot in used]
    for row, shot in zip(rows, used, strict=True):
        k = next(k for k, clip in enumerate(data.clips) if clip.name == row.clip.name)
        count = shot["frames"]
        np.testing.assert_array_equal(row.frames, data.read(k, np.array([0, (count - 1) // 2, count - 1])))
    with Image.open(tmp_path / "shots.png") as picture:
        assert picture.size[0] > 4 * 3 * 16


def test_inspect_says_where_there_are_no_shots(films, tmp_path, capsys):
    source, *_ = films
    with pytest.raises(SystemExit, match=r"^2$"):
        inspect.main(["--shots", f"--data={source}", f"--out={tmp_path / 'shots.png'}"])
    assert "the data has no shots: python -m vf.data.prepare folder --shots cuts videos into them (--shots)" in (
        capsys.readouterr().err
    )
