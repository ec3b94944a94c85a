"""Data sets that tests of several modules read; none of them changes one."""

import itertools
from pathlib import Path

import pytest

from tests.data.synthetic import CLASSES, parameters, write
from vf.data.preparation import prepare


@pytest.fixture(scope="session")
def ucf(tmp_path_factory) -> Path:
    """UCF101's layout: three classes of three videos of 70 frames, and official split files beside."""
    root = tmp_path_factory.mktemp("made") / "UCF-101"
    for name in CLASSES:
        for group in (1, 2, 3):
            write(root / name / f"v_{name}_g0{group}_c01.avi")
    lists = root.parent / "ucfTrainTestlist"
    lists.mkdir()
    numbers = {name: k for k, name in enumerate(CLASSES, 1)}
    (lists / "classInd.txt").write_text("".join(f"{k} {name}\n" for name, k in numbers.items()))
    train = [f"{name}/v_{name}_g0{g}_c01.avi {numbers[name]}\n" for name in CLASSES for g in (2, 3)]
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(f"{name}/v_{name}_g01_c01.avi\n" for name in CLASSES))
    return root


@pytest.fixture(scope="session")
def prepared(ucf, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("prepared")
    return out, prepare(parameters(ucf, "ucf101"), out, workers=2)


@pytest.fixture(scope="session")
def many(ucf, tmp_path_factory) -> Path:
    """Sixty clips: enough to take seconds."""
    root = tmp_path_factory.mktemp("many")
    for k, file in itertools.product(range(60 // 9 + 1), sorted(ucf.rglob("*.avi"))):
        (root / f"{k}_{file.name}").symlink_to(file)
    return root
