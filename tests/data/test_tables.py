"""The spellings of clips that tables use, and their mistakes."""

import os

import pytest

from tests.data.sources import error_message, list_clips, list_with_table, make, splits_and_labels, write

SPELLINGS = ("p/1.mp4", "p/1", "./p/1.mp4", r"p\1.mp4", r".\p\1", "1.mp4", "1")
SPELLINGS += ("videos/p/1.mp4", "{source}/p/1.mp4", "p/1.avi", "p/1.MP4")


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_table_names_a_clip_in_many_ways(tmp_path, name):
    found = list_with_table(
        tmp_path, f"path,caption\n{name.format(source=tmp_path / 'videos')},a cat\n", "p/1.mp4", "p/11.mp4"
    )
    assert [(item.name, item.caption) for item in found.items] == [("p/1.mp4", "a cat")]
    assert (found.lost, list(found.unlisted)) == ({}, ["p/11.mp4"])


def test_an_exact_name_in_a_table_takes_precedence(tmp_path):
    found = list_with_table(tmp_path, "path\n1\np/1.mp4\n", "1.mp4", "q/1.mp4", "p/1.mp4", "p/1.avi", "q/p/1.mp4")
    assert list(splits_and_labels(found)) == ["1.mp4", "p/1.mp4"]
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
    found = list_with_table(tmp_path, table, *files)
    assert [item.caption for item in found.items] == ["a cat", "a dog"]
    assert (found.lost, list(found.unlisted), found.classes) == ({}, [], ())
    (tmp_path / "captions.csv").rename(tmp_path / "videos" / "captions.csv")
    make(tmp_path / "videos", "._captions.csv")
    found.unlisted["._captions.csv"] = "is hidden"
    assert list_clips("webvid", tmp_path / "videos") == found


def test_captions_keep_their_commas_lines_and_letters(tmp_path):
    caption = 'a cat, "Tom",\r\nand a dog, größer'
    quoted = caption.replace('"', '""')
    found = list_with_table(tmp_path, f'path,caption\n1.mp4,"{quoted}"\n2.mp4,x\n', "1.mp4", "2.mp4")
    assert [item.caption for item in found.items] == [caption, "x"]


def test_a_table_overrides_and_selects(tmp_path):
    table = "path,label,caption,split\ntest/a/1.mp4,,first,\ntest/a/2.mp4,b,,validation\ntrain/c/3.mp4,10,,TEST\n"
    files = ("test/a/1.mp4", "test/a/2.mp4", "train/c/3.mp4", "train/c/4.mp4")
    found = list_with_table(tmp_path, table, *files, dataset="folder")
    assert splits_and_labels(found) == {"test/a/1.mp4": "test a", "test/a/2.mp4": "val b", "train/c/3.mp4": "test 10"}
    assert [item.caption for item in found.items] == ["first", "", ""]
    assert (found.classes, found.lost, list(found.unlisted)) == (("10", "a", "b"), {}, ["train/c/4.mp4"])


def test_labels_that_are_numbers_are_classes_in_their_order(tmp_path):
    found = list_with_table(tmp_path, "path,label\n1,10\n2,9\n3,0\n", "1.mp4", "2.mp4", "3.mp4", dataset="folder")
    assert splits_and_labels(found) == {"1.mp4": "train 10", "2.mp4": "train 9", "3.mp4": "train 0"}
    assert found.classes == ("0", "9", "10")


def test_a_table_that_is_not_utf8(tmp_path):
    odd = os.fsdecode(b"caf\xe9.mp4")
    table = b'path,label,caption\ncaf\xe9.mp4,"a\nb",caf\xe9\ncaf\\xe8.mp4,a b,\n'
    found = list_with_table(tmp_path, table, odd, os.fsdecode(b"caf\xe8.mp4"), dataset="folder")
    assert {item.name: item.caption for item in found.items} == {odd: "café", os.fsdecode(b"caf\xe8.mp4"): ""}
    assert (found.classes, found.lost) == (("a b",), {})  # of one line, and as the manifest spells its names


SAVED = {  # how programs save one table
    "UTF-8": ",".join, "Excel, UTF-8": ",".join, "Excel": ";".join, "Excel, Unicode": "\t".join, "no mark": ",".join,
    "sep": ";".join,
}  # fmt: skip
ENCODED = {"Excel, UTF-8": "utf-8-sig", "Excel": "cp1252", "Excel, Unicode": "utf-16", "no mark": "utf-16-le"}


@pytest.mark.parametrize("program", SAVED)
def test_a_table_gives_the_same_captions_however_it_is_saved(tmp_path, program):
    join = SAVED[program]
    caption = '"café “au lait”,\r\n5; 6\t€"'
    lines = ["sep=;"] * (program == "sep") + [join(["Path", "caption"]), join(["1.mp4", caption]), join(["é.mp4", "x"])]
    content = "\r\n".join([*lines, ""]).replace("“au", '""au').replace("lait”", 'lait""')
    found = list_with_table(tmp_path, content.encode(ENCODED.get(program, "utf-8")), "1.mp4", "é.mp4")
    assert [item.caption for item in found.items] == ['café "au lait",\r\n5; 6\t€', "x"]
    told = ["2 rows of captions.csv not in UTF-8, and read as Windows-1252: save it as UTF-8 where letters are wrong"]
    assert (found.lost, found.table_notes) == ({}, told if program == "Excel" else [])


@pytest.mark.parametrize(
    ("heading", "caption", "told"),
    [
        ("caption", "a cat", []),
        ("Text", "a cat", ["captions are the column 'text' of captions.csv"]),
        ("prompt", "a cat", ["captions are the column 'prompt' of captions.csv"]),
        ("description", "a cat", ["captions are the column 'description' of captions.csv"]),
        ("Légende", "", ["no column of captions (caption, text, sentence", "columns that are not read: légende"]),
        ("label", "", []),
        ("caption,fps", "a cat", ["columns that are not read: fps"]),
        ("fps,caption", "", ["1 clip without a caption in captions.csv", "columns that are not read: fps"]),
    ],
)
def test_where_captions_come_from_is_told(tmp_path, heading, caption, told):
    found = list_with_table(tmp_path, f"path,{heading}\n1.mp4,a cat,\n", "1.mp4")
    assert [item.caption for item in found.items] == [caption]
    assert len(found.table_notes) == len(told)
    assert all(part in note for part, note in zip(told, found.table_notes, strict=True)), found.table_notes


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
def test_unusable_rows_are_left_out_with_the_reason(tmp_path, dataset, rows, lost, why):
    table = f"path,label,split\n3.mp4,z,val\n{rows}\n4.mp4,z,val\n"
    found = list_with_table(tmp_path, table, "a/1.mp4", "a/2.mp4", "b/2.mp4", "3.mp4", "4.mp4", dataset=dataset)
    assert splits_and_labels(found) == {"3.mp4": "val z", "4.mp4": "val z"}
    assert list(found.lost) == [lost]
    assert found.lost[lost].startswith(why)
    rest = {"a/1.mp4", "a/2.mp4", "b/2.mp4"}
    assert set(found.unlisted) == rest - set(found.lost)


def test_a_quote_that_is_never_closed_is_refused(tmp_path):
    found = list_with_table(tmp_path, 'path,text\n1,x\n2,"y\n3,z\n', "1.mp4", "2.mp4", "3.mp4")
    assert set(splits_and_labels(found)) == {"1.mp4"}
    assert found.lost == {"captions.csv, line 3": "the row cannot be read: unexpected end of data"}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("", ("commas", "videoid", "path", "its heading is ''")),
        ("a.mp4,a cat\n", ("commas", "its heading is 'a.mp4,a cat'")),
        ("path|text\na.mp4|a cat\n", ("commas", "its heading is 'path|text'")),
        ('[{"path": "a.mp4"}]', ("t.csv is JSON: it should be a CSV", "its heading is")),
        ('\n{"path": "a.mp4"}\n', ("t.csv is JSON: it should be a CSV", "its heading is")),
        (b"PK\3\4\24\0\6\0", ("t.csv is an Excel workbook", "should be a CSV")),
        (bytes(range(256)) * 500, ("UTF-8", "its heading is")),
        (b'"' + bytes(300_000), ("cannot be read", "field larger")),
        ("path,text\n", ("it has no rows",)),
        ("path,text\nb.mp4,a cat\n", ("b.mp4", "is not in the source")),
        ("x," * 9999, ("its heading is 'x,x,",)),
        (None, ("cannot be read",)),
    ],
)
def test_unusable_tables_are_explained(tmp_path, table, parts):
    path = tmp_path / "t.csv"
    if table is not None:
        write(tmp_path, {"t.csv": table})
    source = make(tmp_path / "videos", "a.mp4")
    for dataset in ("webvid", "folder"):
        reason = error_message(dataset, source, table=path)
        assert all(part in reason for part in (str(path), *parts)), reason
        assert len(reason) < 1000
