"""Made folders and archives of empty files, as people have them and as nobody should."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from vf.data.listing import DATASETS, WEIZMANN, Listing, read_member
from vf.types import UserError

UCF = ("Bowling/v_Bowling_g01_c01.avi", "Bowling/v_Bowling_g02_c01.avi", "Archery/v_Archery_g01_c01.avi")
LISTS = {
    "classInd.txt": "1 Archery\n2 Bowling\n3 Rafting\n",
    "trainlist01.txt": f"{UCF[0]} 2\n{UCF[2]} 1\n",
    "testlist01.txt": f"{UCF[1]}\n",
}


def make(root: Path, *names: str) -> Path:
    """`root` with empty files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(folder: Path, contents: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(archive: Path, contents: dict[str, bytes]) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as file:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return archive


def listed(dataset: str, source: Path, *, splits: Path | None = None, fold: int = 1, table: Path | None = None):
    return DATASETS[dataset](source, splits, fold, table)


def told(dataset: str, source: Path, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        listed(dataset, source, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def facts(found: Listing) -> dict[str, str]:
    """Split and label of each clip, in order; an item's path or member is there."""
    for item in found.items:
        assert item.member or item.path.exists()
    assert len({item.name for item in found.items}) == len(found.items)
    return {item.name: " ".join(filter(None, (item.split, item.label))) for item in found.items}


def tabled(tmp_path: Path, table: str | bytes, *names: str, dataset: str = "webvid") -> Listing:
    write(tmp_path, {"captions.csv": table})
    return listed(dataset, make(tmp_path / "videos", *names), table=tmp_path / "captions.csv")


# Files in the order of their clips, a folder of frames by its only frame; and each clip's split and class.
LAYOUTS = [
    ("ucf101", {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "train Bowling"}),
    ("ucf101", {f"UCF-101/{UCF[0]}": "train Bowling"}),
    ("ucf101", {f"train/{UCF[0]}": "train Bowling", f"val/{UCF[2]}": "val Archery"}),
    (
        "sky_timelapse",
        {"sky_test/c/c_1/1.JPG": "test", "sky_train/a/a_2/f.jpg": "train", "sky_train/a/a_10/f.jpg": "train"},
    ),
    ("sky_timelapse", {"test/c2/1.png": "test", "train/c1/1.png": "train"}),
    ("taichi_hd", {"test/c/1.png": "test", "train/a#1#2.mp4/0001.png": "train", "train/b.mp4": "train"}),
    ("taichi_hd", {"taichi/test/b.mp4": "test", "taichi/train/a.mp4/deep/1.png": "train"}),
    ("weizmann", {"Eli_PJump.avi": "train pjump", "eli_wave2.avi": "train wave2", "lena_walk2.avi": "train walk"}),
    (
        "weizmann",
        {"bend/ido/1.png": "train bend", "Wave1/ido.avi": "train wave1", "Wave1/lyova_wave1.avi": "train wave1"},
    ),
    ("folder", {"clip_2.MP4": "train", "clip_10.gif": "train"}),
    ("folder", {"a/2.webm": "train a", "a/f/1.png": "train a", "b/1.mp4": "train b"}),
    ("folder", {"Training/b/1.mp4": "train b", "valid/a/1.mp4": "val a"}),
    ("folder", {"sky_test/a/1.mp4": "test a", "sky_train/b/1.mp4": "train b"}),
    ("folder", {"top/a/1.mp4": "train a", "top/b/1.mp4": "train b"}),
    ("folder", {"only/1.mp4": "train only"}),
    ("folder", {"test/a/1.mp4": "test a"}),
    ("folder", {"a/1.mp4": "train", "b/deep/1.mp4": "train"}),
]


@pytest.mark.parametrize(("dataset", "expected"), LAYOUTS)
def test_layouts_in_natural_order(tmp_path, dataset, expected):
    found = listed(dataset, make(tmp_path, *reversed(expected)))
    names = [str(Path(name).parent) if name.lower().endswith((".jpg", ".png")) else name for name in expected]
    assert list(facts(found).items()) == list(zip(names, expected.values(), strict=True))
    labels = {item.label for item in found.items} - {""}
    assert found.classes == (WEIZMANN if dataset == "weizmann" else tuple(sorted(labels)))
    assert (found.lost, found.unlisted) == ({}, [])


def test_what_is_hidden_or_no_clip_is_skipped(tmp_path):
    clips = ["a/1.avi", "b/f/1.png", "b/f/2.png"]
    others = [".staging/x.avi", "a/.git/x.avi", "__MACOSX/a/1.avi", "a/._1.avi", "a/1.jpg", "b/cover.png", "c/.1.png"]
    others += ["cover.png", "out/ucf101_clips/1.0.0/x.array_record", "out/manifest.json", "a/notes.txt", "avi", ".avi"]
    found = listed("folder", make(tmp_path, *clips, *others))
    assert facts(found) == {"a/1.avi": "train a", "b/f": "train b"}
    assert (found.lost, found.unlisted) == ({}, [])


@pytest.mark.parametrize("target", [".", "a", "../elsewhere", "..", "../other"])
def test_links_are_followed_and_loops_end(tmp_path, target):
    make(tmp_path / "other", "y.avi")
    make(tmp_path / "elsewhere", "x.avi")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    source = make(tmp_path / "source", "a/1.avi", "b/2.avi")
    (source / "a" / "there").symlink_to(source / target)
    (source / "b" / "there").symlink_to(source / target)
    (source / "broken").symlink_to(source / "nowhere")
    (source / "self").symlink_to(source / "self")
    found = listed("folder", source)
    through = {"../elsewhere": ["there/x.avi"], "../other": ["there/y.avi"]}.get(target, [])
    expected = {"a/1.avi", "b/2.avi"} | {f"{folder}/{name}" for folder in "ab" for name in through}
    if target == "a":
        expected |= {"b/there/1.avi"}
    assert set(facts(found)) == expected


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    source = make(tmp_path, "a/1.avi", "b/2.avi")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = {"b"}
    found = listed("folder", source)
    assert facts(found) == {"a/1.avi": "train a"}
    assert found.lost == {"b": "the folder cannot be read: Permission denied"}
    refused = {source.name}
    assert "Permission denied" in told("folder", source)


def test_an_empty_folder_named_as_a_video_is_told(tmp_path):
    (tmp_path / "train" / "gone.mp4").mkdir(parents=True)
    found = listed("taichi_hd", make(tmp_path, "train/a.mp4"))
    assert list(found.lost) == ["train/gone.mp4"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_sources_without_clips_are_explained(tmp_path, dataset):
    table = write(tmp_path, {"t.csv": "path\na.avi\n"}) / "t.csv"
    kwargs = {"table": table} if dataset == "webvid" else {}
    assert "does not exist" in told(dataset, tmp_path / "nowhere", **kwargs)
    assert "does not exist" in told(dataset, tmp_path / ("x" * 300), **kwargs)
    empty = make(tmp_path / "empty", "1.png", "UCF101.rar")
    assert all(
        part in told(dataset, empty, **kwargs) for part in ("no videos", ".avi", "no folders", ".png", "--source")
    )


def test_options_of_other_data_sets_are_refused(tmp_path):
    make(tmp_path, "bend/a_bend.avi")
    for dataset in DATASETS:
        if dataset != "ucf101":
            assert "--splits is for ucf101" in told(dataset, tmp_path, splits=tmp_path)
        if dataset not in ("webvid", "folder"):
            assert "--table is for" in told(dataset, tmp_path, table=tmp_path)


def test_names_that_are_no_utf8_and_long_ones(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    long = "x" * 251 + ".avi"
    found = listed("folder", make(tmp_path, f"{odd}/{odd}.avi", f"b/{long}"))
    assert facts(found) == {f"b/{long}": "train b", f"{odd}/{odd}.avi": r"train caf\xe9"}
    assert found.classes == ("b", r"caf\xe9")  # as every file can hold it


# UCF101's own lists


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
    found = listed("ucf101", source.parent if top else source, splits=splits)
    expected = {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}
    assert list(facts(found).items()) == [(top + name, fact) for name, fact in expected.items()]
    assert found.classes == ("Archery", "Bowling", "Rafting")
    assert (found.lost, found.unlisted) == ({}, [f"{top}Archery/extra.avi"])


def test_the_fold_chooses_the_lists(tmp_path):
    others = {"trainlist03.txt": f"{UCF[1]} 2\n", "testlist03.txt": UCF[0]}
    found = listed("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", LISTS | others), fold=3)
    assert facts(found) == {UCF[0]: "test Bowling", UCF[1]: "train Bowling"}


def test_lists_as_editors_leave_them(tmp_path):
    """A byte order mark, Windows' line ends and separators, blank lines, a row twice."""
    lists = {name: f"\ufeff\n{text}".replace("\n", " \r\n\r\n") for name, text in LISTS.items()}
    lists["testlist01.txt"] += f".\\{UCF[1]}".replace("/", "\\")
    found = listed("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", lists))
    assert facts(found) == {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}
    assert (found.classes, found.lost, found.unlisted) == (("Archery", "Bowling", "Rafting"), {}, [])


def test_classes_are_numbered_by_value(tmp_path):
    splits = write(tmp_path / "s", LISTS | {"classInd.txt": "10 Rafting\n2 Bowling\n1 Archery\n"})
    assert listed("ucf101", make(tmp_path / "u", *UCF), splits=splits).classes == ("Archery", "Bowling", "Rafting")


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
def test_what_lists_say_wrongly_is_lost_with_the_reason(tmp_path, changed, lost, why):
    found = listed("ucf101", make(tmp_path / "u", *UCF), splits=write(tmp_path / "s", LISTS | changed))
    assert found.lost[lost] == why
    assert not {item.name for item in found.items} & {*found.lost, *found.unlisted}
    assert {item.name for item in found.items} | (set(found.lost) & set(UCF)) == set(UCF)
    assert found.items


def test_lists_fit_converted_videos_and_folders_of_frames_but_no_copies(tmp_path):
    source = make(tmp_path / "u", UCF[0][:-4] + ".mp4", UCF[1][:-4] + "/1.jpg", f"one/{UCF[2]}", f"two/{UCF[2]}")
    found = listed("ucf101", source, splits=write(tmp_path / "s", LISTS))
    assert facts(found) == {UCF[0][:-4] + ".mp4": "train Bowling", UCF[1][:-4]: "test Bowling"}
    assert found.lost == {UCF[2]: f"trainlist01.txt names it, and it may be one/{UCF[2]} or two/{UCF[2]}"}
    assert found.unlisted == [f"one/{UCF[2]}", f"two/{UCF[2]}"]


@pytest.mark.parametrize("name", LISTS)
def test_lists_that_cannot_serve_are_explained(tmp_path, name):
    source = make(tmp_path / "u", *UCF)
    splits = write(tmp_path / "s", LISTS)
    (splits / name).write_text("\ufeff \r\n\r\n")
    assert all(part in told("ucf101", source, splits=splits) for part in (f"{splits / name} is empty", "each line"))
    (splits / name).unlink()
    for kind in ("absent", "a folder"):
        reason = told("ucf101", source, splits=splits)
        assert all(part in reason for part in (f"{splits / name} cannot be read", "--splits", "each line"))
        if kind == "absent":
            (splits / name).mkdir()
    assert "cannot be read" in told("ucf101", source, splits=make(tmp_path, "trainlist01.txt") / "trainlist01.txt")
    assert "cannot be read" in told("ucf101", source, splits=pack(tmp_path / "s.zip", {"readme.txt": b""}))


@pytest.mark.parametrize("line", ["Archery", "one Archery", "1 Other", "4 Archery", "1 Archery\n" * 2])
def test_class_numbers_that_make_no_sense_are_explained(tmp_path, line):
    splits = write(tmp_path / "s", LISTS | {"classInd.txt": f"1 Archery\n{line}\n"})
    assert "a number and a class, each once" in told("ucf101", make(tmp_path / "u", *UCF), splits=splits)


def test_videos_outside_of_classes(tmp_path):
    found = listed("ucf101", make(tmp_path, *UCF, "loose.avi"))
    assert set(facts(found)) == set(UCF)
    assert found.lost == {"loose.avi": "lies in no folder of a class"}
    assert "CLASS/v_CLASS" in told("ucf101", tmp_path / "Bowling")


@pytest.mark.parametrize(
    ("file", "why"), [("eli_swim.avi", "no action"), ("run/eli_walk.avi", "two actions: run and walk")]
)
def test_a_name_without_one_action_is_lost(tmp_path, file, why):
    found = listed("weizmann", make(tmp_path, "eli_skip.avi", file))
    assert facts(found) == {"eli_skip.avi": "train skip"}
    assert list(found.lost) == [file]
    assert why in found.lost[file]


# Archives


@pytest.mark.parametrize("top", ["", "UCF-101/", "./UCF-101/", "/UCF-101/", "UCF-101\\"])
@pytest.mark.parametrize("kind", ["zip", "tar", "ZIP"])
def test_archives_are_as_folders(tmp_path, kind, top):
    contents = {(top + name).replace("/", top[-1:] or "/"): name.encode() for name in UCF}
    others = dict.fromkeys(("__MACOSX/Bowling/x.avi", f"{top}._x.avi", "readme.txt", f"{top}Bowling/1.jpg"), b"")
    archive = pack(tmp_path / "data.zip", contents | others) if kind != "tar" else pack(tmp_path / "data.tar", contents)
    archive = archive.rename(tmp_path / f"data.{kind}")
    found = listed("ucf101", archive)
    clean = "UCF-101/" if top else ""
    expected = {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "train Bowling"}
    assert list(facts(found).items()) == [(clean + name, fact) for name, fact in expected.items()]
    assert (found.classes, found.lost) == (("Archery", "Bowling"), {})
    for item in found.items:
        assert read_member(item.path, item.member).decode() == item.name.removeprefix(clean)
    labels = [item.label for item in listed("folder", archive).items]
    assert labels == ["Archery", "Bowling", "Bowling"]


@pytest.mark.parametrize("place", ["inside", "beside", "given"])
def test_lists_of_an_archive(tmp_path, place):
    lists = {f"ucfTrainTestlist/{name}": text.encode() for name, text in LISTS.items()}
    archive = pack(tmp_path / "u.tar", dict.fromkeys(UCF, b"") | (lists if place == "inside" else {}))
    splits = None if place == "inside" else write(tmp_path / "ucfTrainTestlist", LISTS)
    found = listed("ucf101", archive, splits=splits if place == "given" else None)
    assert facts(found) == {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "test Bowling"}


def test_a_name_that_is_twice_in_an_archive_means_the_later(tmp_path):
    archive = pack(tmp_path / "u.tar", {"A/1.avi": b"old"})
    with tarfile.open(archive, "a") as file:
        info = tarfile.TarInfo("A/1.avi")
        info.size = 3
        file.addfile(info, io.BytesIO(b"new"))
    (item,) = listed("ucf101", archive).items
    assert read_member(item.path, item.member) == b"new"


def test_links_within_an_archive(tmp_path):
    archive = pack(tmp_path / "u.tar", {"A/1.avi": b"one"})
    with tarfile.open(archive, "a") as file:
        for name, kind, target in (
            ("A/2.avi", tarfile.LNKTYPE, "A/1.avi"),
            ("A/3.avi", tarfile.SYMTYPE, "1.avi"),
            ("A/4.avi", tarfile.SYMTYPE, "4.avi"),
            ("A/5.avi", tarfile.SYMTYPE, "none.avi"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    assert [item.name[2] for item in listed("ucf101", archive).items] == list("12345")
    assert {read_member(archive, f"A/{k}.avi") for k in "123"} == {b"one"}
    for k in "45":
        with pytest.raises(ValueError, match="cannot be read from its archive"):
            read_member(archive, f"A/{k}.avi")


def test_frames_in_an_archive_are_told(tmp_path):
    archive = pack(tmp_path / "u.zip", {"train/1/f.png": b"", "train/2.avi": b""})
    found = listed("sky_timelapse", archive)
    assert (facts(found), found.lost) == (
        {"train/2.avi": "train"},
        {"train/1": "frames in an archive are not read: unpack it"},
    )
    assert "unpack" in told("sky_timelapse", pack(tmp_path / "v.zip", {"train/1/f.png": b""}))


@pytest.mark.parametrize("name", ["u.rar", "u.tar.gz", "u.7z", "UCF101"])
def test_archives_of_other_kinds_are_explained(tmp_path, name):
    archive = pack(tmp_path / name, dict.fromkeys(UCF, b""))
    assert all(
        part in told("ucf101", archive) for part in (str(archive), "neither a folder nor", ".zip, .tar", "unpack")
    )


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_no_archive_is_explained(tmp_path, kind):
    archive = tmp_path / f"u.{kind}"
    for content in (b"", b"Rar!\x1a\x07\x00" * 200, pack(tmp_path / "u.tar.gz", dict.fromkeys(UCF, b"")).read_bytes()):
        archive.write_bytes(content)
        assert f"the archive {archive} cannot be read" in told("ucf101", archive)


@pytest.mark.parametrize("damage", ["in the data", "in a header", "before the end", "of a header"])
def test_a_damaged_tar_gives_what_comes_before(tmp_path, damage):
    archive = pack(tmp_path / "u.tar", {name: bytes(700) + b"!" for name in UCF})
    content = bytearray(archive.read_bytes())
    one = 512 + 1024
    if damage == "in a header":
        content[one : one + 200] = b"?" * 200
    cut = {"in the data": one + 512 + 100, "before the end": 2 * one, "of a header": one + 100, "in a header": None}
    archive.write_bytes(content[: cut[damage]])
    found = listed("ucf101", archive)
    there = {"in a header": 1, "of a header": 1}.get(damage, 2)
    assert set(facts(found)) == set(UCF[:there])
    assert found.lost == {"u.tar": f"is damaged or cut off after {UCF[there - 1]}: copy it again"}
    assert read_member(archive, UCF[0]) == bytes(700) + b"!"
    if damage == "in the data":
        with pytest.raises(ValueError, match="cannot be read from its archive"):
            read_member(archive, UCF[1])


def test_a_damaged_member_of_a_zip_is_a_value_error(tmp_path):
    archive = pack(tmp_path / "u.zip", {name: os.urandom(3000) + bytes(3000) for name in UCF})
    whole = archive.read_bytes()
    failed = 0
    for place in range(0, 3000, 37):
        archive.write_bytes(whole[:place] + b"\xff\x00\xff" + whole[place + 3 :])
        os.utime(archive, ns=(place, place))  # else a second change within a tick is no change
        assert len(listed("ucf101", archive).items) == 3
        try:
            read_member(archive, UCF[0])
        except ValueError as error:
            failed += "cannot be read from its archive" in str(error)
    assert failed > 70


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_is_replaced_is_read_anew(tmp_path, kind):
    for age, names in enumerate((UCF[:1], UCF)):
        archive = pack(tmp_path / f"new.{kind}", {name: name.encode() + bytes(age) for name in names})
        archive = archive.rename(tmp_path / f"u.{kind}")
        os.utime(archive, ns=(age, age))
        assert {item.name for item in listed("ucf101", archive).items} == set(names)
        for name in names:
            assert read_member(archive, name) == name.encode() + bytes(age)


def test_a_member_or_archive_that_is_absent(tmp_path):
    for kind in ("zip", "tar"):
        archive = pack(tmp_path / f"u.{kind}", {"A/1.avi": b""})
        with pytest.raises(ValueError, match="cannot be read from its archive"):
            read_member(archive, "A/2.avi")
        archive.unlink()
        with pytest.raises(OSError, match="No such file"):
            read_member(archive, "A/1.avi")


# Tables


SPELLINGS = ("p/1.mp4", "p/1", "./p/1.mp4", r"p\1.mp4", r".\p\1", "1.mp4", "1")
SPELLINGS += ("videos/p/1.mp4", "{source}/p/1.mp4", "p/1.avi", "p/1.MP4")


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_table_names_a_clip_in_many_ways(tmp_path, name):
    found = tabled(tmp_path, f"path,caption\n{name.format(source=tmp_path / 'videos')},a cat\n", "p/1.mp4", "p/11.mp4")
    assert [(item.name, item.caption) for item in found.items] == [("p/1.mp4", "a cat")]
    assert (found.lost, found.unlisted) == ({}, ["p/11.mp4"])


def test_what_a_table_names_exactly_goes_first(tmp_path):
    found = tabled(tmp_path, "path\n1\np/1.mp4\n", "1.mp4", "q/1.mp4", "p/1.mp4", "p/1.avi", "q/p/1.mp4")
    assert list(facts(found)) == ["1.mp4", "p/1.mp4"]
    assert found.lost == {}


WEBVID = "videoid,contentUrl,duration,page_dir,name\n1,http://x/1.mp4,PT1S,0_5,a cat\n1,http://x/1,,6_9,a dog\n"


@pytest.mark.parametrize(
    ("table", "files"),
    [
        (WEBVID, ("0_5/1.mp4", "6_9/1.mp4")),
        (WEBVID, ("part/0_5/1.mp4", "part/6_9/1.mp4")),
        ("videoid,name\n1,a cat\n2,a dog\n", ("1.mp4", "2.mp4")),
        ("path,caption\n1.mp4,a cat\n2.mp4,a dog\n1.mp4,a tabby\n", ("1.mp4", "2.mp4")),
        ("video_id,sentence\nvideo1,a cat\nvideo2,a dog\n", ("all/video1.mp4", "all/video2.mp4")),
        ("\ufeffPath , Text\r\n 1.mp4 , a cat \r\n\r\n,\r\n2.mp4,a dog\r\n", ("1.mp4", "2.mp4")),
        ("file;x,filename,text\n,1,a cat\n,2,a dog,\n", ("1/1.png", "2/1.png")),
    ],
)
def test_public_headings_give_captions(tmp_path, table, files):
    found = tabled(tmp_path, table, *files)
    assert [item.caption for item in found.items] == ["a cat", "a dog"]
    assert (found.lost, found.unlisted, found.classes) == ({}, [], ())
    (tmp_path / "captions.csv").rename(tmp_path / "videos" / "captions.csv")
    make(tmp_path / "videos", "._captions.csv")
    assert listed("webvid", tmp_path / "videos") == found


def test_captions_keep_their_commas_lines_and_letters(tmp_path):
    caption = 'a cat, "Tom",\r\nand a dog, größer'
    quoted = caption.replace('"', '""')
    found = tabled(tmp_path, f'path,caption\n1.mp4,"{quoted}"\n2.mp4,x\n', "1.mp4", "2.mp4")
    assert [item.caption for item in found.items] == [caption, "x"]


def test_a_table_overrides_and_selects(tmp_path):
    table = "path,label,caption,split\ntest/a/1.mp4,,first,\ntest/a/2.mp4,b,,validation\ntrain/c/3.mp4,10,,TEST\n"
    files = ("test/a/1.mp4", "test/a/2.mp4", "train/c/3.mp4", "train/c/4.mp4")
    found = tabled(tmp_path, table, *files, dataset="folder")
    assert facts(found) == {"test/a/1.mp4": "test a", "test/a/2.mp4": "val b", "train/c/3.mp4": "test 10"}
    assert [item.caption for item in found.items] == ["first", "", ""]
    assert (found.classes, found.lost, found.unlisted) == (("10", "a", "b"), {}, ["train/c/4.mp4"])


def test_labels_that_are_numbers_are_classes_in_their_order(tmp_path):
    found = tabled(tmp_path, "path,label\n1,10\n2,9\n3,0\n", "1.mp4", "2.mp4", "3.mp4", dataset="folder")
    assert facts(found) == {"1.mp4": "train 10", "2.mp4": "train 9", "3.mp4": "train 0"}
    assert found.classes == ("0", "9", "10")


def test_a_table_of_bytes_that_are_no_utf8(tmp_path):
    odd = os.fsdecode(b"caf\xe9.mp4")
    table = b'path,label,caption\ncaf\xe9.mp4,"a\nb",caf\xe9\ncaf\\xe8.mp4,a b,\n'
    found = tabled(tmp_path, table, odd, os.fsdecode(b"caf\xe8.mp4"), dataset="folder")
    assert {item.name: item.caption for item in found.items} == {odd: r"caf\xe9", os.fsdecode(b"caf\xe8.mp4"): ""}
    assert (found.classes, found.lost) == (("a b",), {})  # of one line, and as the manifest spells its names


@pytest.mark.parametrize(
    ("rows", "lost", "why"),
    [
        ("9.mp4,,", "9.mp4", "captions.csv names it, but it is not in the source"),
        ("b/1.mp4,,", "b/1.mp4", "captions.csv names it, but it is not in the source"),
        ("/else/a/1.mp4,,", "/else/a/1.mp4", "captions.csv names it, but it is not in the source"),
        (f"{'x' * 9999},,", "x" * 9999, "captions.csv names it, but it is not in the source"),
        ("2,,", "2", "captions.csv names it, and it may be a/2.mp4 or b/2.mp4"),
        (",x,test", "captions.csv, line 3", "the row names no video"),
        ("1,x,test\n1.mp4,,train", "a/1.mp4", "captions.csv gives it two splits: test and train"),
        ("1,x,test\n1.mp4,y,", "a/1.mp4", "captions.csv gives it two labels: x and y"),
        ("1,x,dev", "a/1.mp4", "captions.csv gives it the split dev, which is none of train, training, test"),
        ("1,,", "a/1.mp4", "has no label, though others have"),
        ("1,a cat, a dog, a pig", "captions.csv, line 3", "has more cells than the heading"),
        ('1,"a" cat,', "captions.csv, line 3", "the row cannot be read: ',' expected"),
        (f"1,{'x' * 150_000},", "captions.csv, line 3", "the row cannot be read: field larger"),
    ],
)
@pytest.mark.parametrize("dataset", ["webvid", "folder"])
def test_rows_that_cannot_serve_are_lost_with_the_reason(tmp_path, dataset, rows, lost, why):
    table = f"path,label,split\n3.mp4,z,val\n{rows}\n4.mp4,z,val\n"
    found = tabled(tmp_path, table, "a/1.mp4", "a/2.mp4", "b/2.mp4", "3.mp4", "4.mp4", dataset=dataset)
    assert facts(found) == {"3.mp4": "val z", "4.mp4": "val z"}
    assert list(found.lost) == [lost]
    assert found.lost[lost].startswith(why)
    rest = {"a/1.mp4", "a/2.mp4", "b/2.mp4"}
    assert set(found.unlisted) == rest - set(found.lost)


def test_a_quote_that_is_never_closed_is_told(tmp_path):
    found = tabled(tmp_path, 'path,text\n1,x\n2,"y\n3,z\n', "1.mp4", "2.mp4", "3.mp4")
    assert set(facts(found)) == {"1.mp4"}
    assert found.lost == {"captions.csv, line 3": "the row cannot be read: unexpected end of data"}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("", ("commas", "videoid", "path", "its heading is ''")),
        ("a.mp4,a cat\n", ("commas", "its heading is 'a.mp4,a cat'")),
        ("path;text\na.mp4;a cat\n", ("commas", "its heading is 'path;text'")),
        ("path,text\na.mp4,a cat\n".encode("utf-16"), ("UTF-8", "its heading is")),
        (bytes(range(256)) * 500, ("UTF-8", "its heading is")),
        (b'"' + bytes(300_000), ("cannot be read", "field larger")),
        ("path,text\n", ("it has no rows",)),
        ("path,text\nb.mp4,a cat\n", ("b.mp4", "is not in the source")),
        ("x," * 9999, ("its heading is 'x,x,",)),
        (None, ("cannot be read",)),
    ],
)
def test_tables_that_cannot_serve_are_explained(tmp_path, table, parts):
    path = tmp_path / "t.csv"
    if table is not None:
        write(tmp_path, {"t.csv": table})
    source = make(tmp_path / "videos", "a.mp4")
    for dataset in ("webvid", "folder"):
        reason = told(dataset, source, table=path)
        assert all(part in reason for part in (str(path), *parts)), reason
        assert len(reason) < 1000


def test_webvid_wants_one_table(tmp_path):
    source = make(tmp_path, "1.mp4")
    assert "found 0: name it with --table" in told("webvid", source)
    assert "found 2: name it with --table" in told("webvid", make(source, "a.csv", "b.csv"))
    assert "found 0: name it with --table" in told("webvid", pack(tmp_path / "u.zip", {"1.mp4": b""}))
