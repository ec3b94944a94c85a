"""Folders and archives of empty files, and their listings."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vf.data.datasets import DATASETS
from vf.data.listing import Listing
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


def list_clips(dataset: str, source: Path, *, splits: Path | None = None, fold: int = 1, table: Path | None = None):
    return DATASETS[dataset](source, splits, fold, table)


def error_message(dataset: str, source: Path, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        list_clips(dataset, source, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits_and_labels(found: Listing) -> dict[str, str]:
    """Split and label of each clip, in order; checks that each item's path exists and that names are distinct."""
    for item in found.items:
        assert item.member or item.path.exists()
    assert len({item.name for item in found.items}) == len(found.items)
    return {item.name: " ".join(filter(None, (item.split, item.label))) for item in found.items}


def list_with_table(tmp_path: Path, table: str | bytes, *names: str, dataset: str = "webvid") -> Listing:
    write(tmp_path, {"captions.csv": table})
    return list_clips(dataset, make(tmp_path / "videos", *names), table=tmp_path / "captions.csv")
