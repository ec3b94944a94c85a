"""An archive is read like the folder that it holds; a damaged one gives the members that can be read."""

import io
import os
import tarfile

import pytest

from tests.data.sources import UCF, error_message, list_clips, pack, splits_and_labels
from vf.data.archives import read_member


@pytest.mark.parametrize("top", ["", "UCF-101/", "./UCF-101/", "/UCF-101/", "UCF-101\\"])
@pytest.mark.parametrize("kind", ["zip", "tar", "ZIP"])
def test_archives_are_as_folders(tmp_path, kind, top):
    contents = {(top + name).replace("/", top[-1:] or "/"): name.encode() for name in UCF}
    others = dict.fromkeys(("__MACOSX/Bowling/x.avi", f"{top}._x.avi", "readme.txt", f"{top}Bowling/1.jpg"), b"")
    archive = pack(tmp_path / "data.zip", contents | others) if kind != "tar" else pack(tmp_path / "data.tar", contents)
    archive = archive.rename(tmp_path / f"data.{kind}")
    found = list_clips("ucf101", archive)
    clean = "UCF-101/" if top else ""
    expected = {UCF[2]: "train Archery", UCF[0]: "train Bowling", UCF[1]: "train Bowling"}
    assert list(splits_and_labels(found).items()) == [(clean + name, fact) for name, fact in expected.items()]
    assert (found.classes, found.lost) == (("Archery", "Bowling"), {})
    for item in found.items:
        assert read_member(item.path, item.member).decode() == item.name.removeprefix(clean)
    labels = [item.label for item in list_clips("folder", archive).items]
    assert labels == ["Archery", "Bowling", "Bowling"]


def test_a_name_that_occurs_twice_in_an_archive_means_the_later(tmp_path):
    archive = pack(tmp_path / "u.tar", {"A/1.avi": b"old"})
    with tarfile.open(archive, "a") as file:
        info = tarfile.TarInfo("A/1.avi")
        info.size = 3
        file.addfile(info, io.BytesIO(b"new"))
    (item,) = list_clips("ucf101", archive).items
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
    assert [item.name[2] for item in list_clips("ucf101", archive).items] == list("12345")
    assert {read_member(archive, f"A/{k}.avi") for k in "123"} == {b"one"}
    for k in "45":
        with pytest.raises(ValueError, match="cannot be read from its archive"):
            read_member(archive, f"A/{k}.avi")


def test_frames_in_an_archive_are_reported(tmp_path):
    archive = pack(tmp_path / "u.zip", {"train/1/f.png": b"", "train/2.avi": b""})
    found = list_clips("sky_timelapse", archive)
    assert (splits_and_labels(found), found.lost) == (
        {"train/2.avi": "train"},
        {"train/1": "frames in an archive are not read: unpack it"},
    )
    assert "unpack" in error_message("sky_timelapse", pack(tmp_path / "v.zip", {"train/1/f.png": b""}))


@pytest.mark.parametrize("name", ["u.rar", "u.tar.gz", "u.7z", "UCF101"])
def test_archives_of_other_kinds_are_explained(tmp_path, name):
    archive = pack(tmp_path / name, dict.fromkeys(UCF, b""))
    assert all(
        part in error_message("ucf101", archive) for part in (str(archive), "is no folder", ".zip, .tar", "unpack")
    )


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_is_not_an_archive_is_explained(tmp_path, kind):
    archive = tmp_path / f"u.{kind}"
    for content in (b"", b"Rar!\x1a\x07\x00" * 200, pack(tmp_path / "u.tar.gz", dict.fromkeys(UCF, b"")).read_bytes()):
        archive.write_bytes(content)
        assert f"the archive {archive} cannot be read" in error_message("ucf101", archive)


@pytest.mark.parametrize("damage", ["in the data", "in a header", "before the end", "of a header"])
def test_a_damaged_tar_gives_the_members_before_the_damage(tmp_path, damage):
    archive = pack(tmp_path / "u.tar", {name: bytes(700) + b"!" for name in UCF})
    content = bytearray(archive.read_bytes())
    one = 512 + 1024
    if damage == "in a header":
        content[one : one + 200] = b"?" * 200
    cut = {"in the data": one + 512 + 100, "before the end": 2 * one, "of a header": one + 100, "in a header": None}
    archive.write_bytes(content[: cut[damage]])
    found = list_clips("ucf101", archive)
    there = {"in a header": 1, "of a header": 1}.get(damage, 2)
    assert set(splits_and_labels(found)) == set(UCF[:there])
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
        assert len(list_clips("ucf101", archive).items) == 3
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
        assert {item.name for item in list_clips("ucf101", archive).items} == set(names)
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
