"""Every score that the code gives is explained, and `docs/glossary.md` says the same."""

from pathlib import Path

import numpy as np

from vf.metrics import fvd
from vf.run import glossary
from vf.scores import sprites, suite

ROOT = Path(__file__).parents[2]


def test_every_score_is_explained():
    metrics = suite.metrics(fvd.LINEAGES["styleganv"])
    names = {*metrics, "fvd_segments_00", "fvd_segments_12", "fd_random_conv3d", "base_frame_gap"}
    names |= {other for others in suite._OTHER_NAMES.values() for other in others.values()}
    names |= {f"sprites/{name}" for name in sprites.scores(np.zeros((2, 4, 16, 16, 3), np.uint8), 1)}
    assert {name for name in names if glossary.score_facts(name) is None} == set()
    assert glossary.score_facts("fvd_new") is None
    for name, metric in metrics.items():
        assert glossary.score_facts(name).distance == (metric.distance is not None)


def test_what_is_not_fvd_says_so_first():
    for name, facts in glossary.SCORES.items():
        if name.startswith(("fd_", "kd_", "mmd_")):
            assert facts.meaning.startswith("Not ")
            assert "no published number" in facts.meaning


def test_names_of_one_chart():
    assert glossary.group("validation/base_eps/t50") == "validation/base_eps"
    assert glossary.group("train/lr_base") == glossary.group("train/lr_residual") == "train/lr"
    assert glossary.group("train/grad_norm_base") == "train/grad_norm"
    assert glossary.group("train/loss_base") == "train/loss_base"
    assert glossary.NUMBERS["seen/base"].startswith("The base generator's part of the loss on clips that training sees")


def test_the_page_of_documentation_says_the_same():
    """`docs/glossary.md` has a row for each score and each number, with the sentence of the page."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    for name, facts in glossary.SCORES.items():
        assert f"| `{name}` | {facts.meaning} | {facts.better} |\n" in text
    for name, meaning in glossary.NUMBERS.items():
        if not name.startswith("seen/"):
            assert f"| `{name}` | {meaning} |\n" in text
