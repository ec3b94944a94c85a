"""UCF101's official lists, as published and as editors leave them."""

import pytest

from configs import base
from tests.data.sources import LISTS, UCF, error_message, list_clips, make, pack, splits_and_labels, write
from vf.config import data
from vf.data import prepare
from vf.data.ucf101 import CLASSES, other_numbers


@pytest.mark.parametrize("place", ["given", "zip", "inside", "beside", "above"])
def test_official_lists_split_and_number(tmp_path, place):
    source = make(tmp_path / "data" / "UCF-101", *UCF, "Archery/extra.avi")
    splits = None
    if place == "given":
        splits = write(tmp_path / "lists", LISTS)
    elif place == "zip":
        splits = pack(tmp_path / "s.zip", {f"ucfTrainTestlist/{name}": text.encode() for name, text in LISTS.items()})
    else:
        write((source if place == "inside" else source.parent) / "ucfTrainTestlist", LISTS)
    top = "UCF-101/" if place == "above" else ""
    found = list_clips("ucf101", source.parent if top else source, splits=splits)
    expected = {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}
    assert list(splits_and_labels(found).items()) == [(top + name, fact) for name, fact in expected.items()]
    assert found.classes == ("Archery", "Bowling", "Rafting")
    assert (found.lost, list(found.unlisted)) == ({}, [f"{top}Archery/extra.avi"])


def test_the_fold_chooses_the_lists(tmp_path):
    others = {"trainlist03.txt": f"{UCF[1]} 2\n", "testlist03.txt": UCF[0]}
    found = list_clips("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", LISTS | others), fold=3)
    assert splits_and_labels(found) == {UCF[0]: "test Bowling", UCF[1]: "train Bowling"}


def test_lists_as_editors_leave_them(tmp_path):
    """A byte order mark, Windows' line ends and separators, blank lines, a row twice."""
    lists = {name: f"\ufeff\n{text}".replace("\n", " \r\n\r\n") for name, text in LISTS.items()}
    lists["testlist01.txt"] += f".\\{UCF[1]}".replace("/", "\\")
    found = list_clips("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", lists))
    assert splits_and_labels(found) == {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}
    assert (found.classes, found.lost, list(found.unlisted)) == (("Archery", "Bowling", "Rafting"), {}, [])


def test_classes_are_numbered_by_value(tmp_path):
    splits = write(tmp_path / "s", LISTS | {"classInd.txt": "10 Rafting\n2 Bowling\n1 Archery\n"})
    assert list_clips("ucf101", make(tmp_path / "u", *UCF), splits=splits).classes == ("Archery", "Bowling", "Rafting")


ABSENT = "testlist01.txt names it, but it is not in the source"


UNKNOWN = "it has two classes: Archery and number 7, which classInd.txt does not know"


@pytest.mark.parametrize(
    ("changed", "lost", "why"),
    [
        ({"testlist01.txt": f"{UCF[1]}\nBowling/v_Bowling_g99_c01.avi\n"}, "Bowling/v_Bowling_g99_c01.avi", ABSENT),
        ({"testlist01.txt": f"{UCF[1]}\n{UCF[0]}\n"}, UCF[0], "both the train list and the test list name it"),
        ({"testlist01.txt": f"{UCF[1]} 1\n"}, UCF[1], "it has two classes: Archery and Bowling"),
        (
            {"trainlist01.txt": f"{UCF[0]} 2\n{UCF[2]} 1\n{UCF[2]} 3\n"},
            UCF[2],
            "it has two classes: Archery and Rafting",
        ),
        ({"trainlist01.txt": f"{UCF[0]} 2\n{UCF[2]} 7\n"}, UCF[2], UNKNOWN),
        ({"classInd.txt": "1 Archery\n"}, UCF[1], "its class Bowling is not in classInd.txt"),
        ({"testlist01.txt": UCF[1].encode() + b"\nA/\xff.avi\n"}, r"A/\xff.avi", ABSENT),
        ({"testlist01.txt": f"{UCF[1]}\n{'x' * 9999}\n"}, "x" * 9999, ABSENT),
    ],
)
def test_clips_that_lists_misname_are_left_out_with_the_reason(tmp_path, changed, lost, why):
    found = list_clips("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", LISTS | changed))
    assert found.lost[lost] == why
    assert not {item.name for item in found.items} & {*found.lost, *found.unlisted}
    assert {item.name for item in found.items} | (set(found.lost) & set(UCF)) == set(UCF)
    assert found.items


def test_lists_fit_converted_videos_and_folders_of_frames_but_no_copies(tmp_path):
    source = make(tmp_path / "u", UCF[0][:-4] + ".mp4", UCF[1][:-4] + "/1.jpg", f"one/{UCF[2]}", f"two/{UCF[2]}")
    found = list_clips("ucf101", source, splits=write(tmp_path / "s", LISTS))
    assert splits_and_labels(found) == {UCF[0][:-4] + ".mp4": "train Bowling", UCF[1][:-4]: "test Bowling"}
    assert found.lost == {UCF[2]: f"trainlist01.txt names it, and it may be one/{UCF[2]} or two/{UCF[2]}"}
    assert list(found.unlisted) == [f"one/{UCF[2]}", f"two/{UCF[2]}"]


@pytest.mark.parametrize("name", LISTS)
def test_unusable_lists_are_explained(tmp_path, name):
    source = make(tmp_path / "u", *UCF)
    splits = write(tmp_path / "s", LISTS)
    (splits / name).write_text("\ufeff \r\n\r\n")
    assert all(
        part in error_message("ucf101", source, splits=splits) for part in (f"{splits / name} is empty", "each line")
    )
    (splits / name).unlink()
    for kind in ("absent", "a folder"):
        reason = error_message("ucf101", source, splits=splits)
        assert all(part in reason for part in (f"{splits / name} cannot be read", "UCF101's own lists", "each line"))
        if kind == "absent":
            (splits / name).mkdir()
    assert "cannot be read" in error_message(
        "ucf101", source, splits=make(tmp_path, "trainlist01.txt") / "trainlist01.txt"
    )
    assert "cannot be read" in error_message("ucf101", source, splits=pack(tmp_path / "s.zip", {"readme.txt": b""}))


@pytest.mark.parametrize("line", ["Archery", "one Archery", "1 Other", "4 Archery", "1 Archery\n" * 2])
def test_class_numbers_that_make_no_sense_are_explained(tmp_path, line):
    splits = write(tmp_path / "s", LISTS | {"classInd.txt": f"1 Archery\n{line}\n"})
    assert "a number and a class, each once" in error_message("ucf101", make(tmp_path / "u", *UCF), splits=splits)


@pytest.mark.parametrize("place", ["inside", "beside", "given"])
def test_lists_of_an_archive(tmp_path, place):
    lists = {f"ucfTrainTestlist/{name}": text.encode() for name, text in LISTS.items()}
    archive = pack(tmp_path / "u.tar", dict.fromkeys(UCF, b"") | (lists if place == "inside" else {}))
    splits = None if place == "inside" else write(tmp_path / "ucfTrainTestlist", LISTS)
    found = list_clips("ucf101", archive, splits=splits if place == "given" else None)
    assert splits_and_labels(found) == {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}


def test_labels_by_the_list_are_those_that_the_lists_give(tmp_path):
    """Its numbers less one, also where few classes are there."""
    numbers = "".join(f"{k} {name}\n" for k, name in enumerate(CLASSES, 1))
    lists = {"classInd.txt": numbers, "trainlist01.txt": f"{UCF[0]} {CLASSES.index('Bowling') + 1}\n"}
    found = list_clips("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", LISTS | lists))
    label = found.classes.index("Bowling")
    assert f"Bowling is 0 here and {label} by the list" in other_numbers(("Bowling", "PlayingGuitar"))


def test_a_part_of_the_classes_has_other_numbers(prepared, ucf, caplog):
    """Which is said where data is prepared without the lists, and where videos train a model with labels."""
    assert other_numbers(CLASSES) == other_numbers(("a", "b")) == other_numbers(()) == ""
    expected = "Bowling is 0 here and 15 by the list, PlayingGuitar is 1 here and 62 by the list)"
    assert expected in other_numbers(("Bowling", "PlayingGuitar"))
    out, manifest = prepared
    assert expected in prepare.report({**manifest, "classes": ["Bowling", "PlayingGuitar"]}, out)
    config = base.get_config()
    config.data.source, config.data.size = str(ucf), 16
    for condition, told in (("none", 0), ("label", 1)):
        config.model.condition = condition
        data.source(config)
        data.source(config, "validation")
        assert caplog.text.count("3 of UCF101's 101 classes are here, with labels 0 to 2") == told
