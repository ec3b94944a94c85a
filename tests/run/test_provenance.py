"""A start is described by what made it, and by no folder of the machine."""

import platform
import subprocess

import numpy as np
import pytest

from vf.run import provenance


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--workdir=/home/someone/runs/x", "--workdir=.../x"),
        ("/data/a/b.npz", ".../b.npz"),
        ("~/runs/x", ".../x"),
        ("--both=/a/b,/c/d", "--both=.../b,.../d"),
        ("--config=configs/demo.py", "--config=configs/demo.py"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("--config.lr=1e-3", "--config.lr=1e-3"),
    ],
)
def test_command_line_hides_the_folders_of_the_machine(word, shown):
    assert provenance.command_line(["/opt/bin/python3", "-m", "vf.main", word]) == f"python3 -m vf.main {shown}"


@pytest.mark.parametrize(
    ("command", "program", "flags"),
    [
        ("python -m vf.main --config a.py --workdir='my run' --x", "python -m vf.main",
         {"config": "a.py", "workdir": "my run", "x": None}),
        ("python -m vf.main -mode=train --n -1 --mode=sample", "python -m vf.main", {"n": "-1", "mode": "sample"}),
        ("main.py", "main.py", {}),
    ],
)  # fmt: skip
def test_a_command_is_taken_apart(command, program, flags):
    """Of a flag that is given twice the last value counts."""
    assert provenance.parts_of(command) == (program.split(), flags)


def test_revision_is_that_of_the_checkout(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    root = tmp_path / "checkout"
    (root / "vf").mkdir(parents=True)
    assert provenance.revision(root) is None
    (root / "vf" / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert provenance.revision(root) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (root / "samples.npz").write_text("output, not code")
    assert provenance.revision(root) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    (root / "vf" / "a.py").write_text("2")
    assert provenance.revision(root) == {"revision": git("rev-parse", "HEAD"), "dirty": True}
    assert provenance.revision(root / "vf") is None  # A package that merely lies in somebody's checkout.


def test_sources_are_the_names_and_contents_of_python_files(tmp_path):
    def found() -> str:
        return provenance.sources(tmp_path)

    seen = [found()]
    for name, text in (("vf/a.py", "1"), ("vf/a.py", "2"), ("configs/a.py", "2"), ("vf/run/a.py", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.append(found())
    (tmp_path / "vf" / "a.py").rename(tmp_path / "vf" / "b.py")
    seen.append(found())
    assert len(set(seen)) == len(seen)
    for name in ("vf/page.css", "a.py"):
        (tmp_path / name).write_text("no code of a run")
    assert found() == seen[-1]


def test_a_fingerprint_changes_with_all_that_must_be_the_same(monkeypatch):
    config = {"seed": 0, "train": {"steps": 4, "schedule": "constant"}, "noise": {"lam": [0.5]}}
    found = provenance.fingerprint(config, {"mode": "train", "workdir": "runs/a"})
    assert found == provenance.fingerprint(config, {"mode": "train", "workdir": "runs/a"})
    told = {
        "mode": "train", "workdir": "runs/a", "config.seed": "0", "config.train.steps": "4",
        "config.train.schedule": '"constant"', "config.noise.lam": "[0.5]", "code": provenance.sources(provenance.ROOT),
        "numpy": np.__version__, "python": platform.python_version(),
    }  # fmt: skip
    assert told.items() <= found.items()
    assert {"jax", "jaxlib", "libtpu"} <= found.keys()  # a package that is not there must be missing everywhere

    def differing(there) -> set[str]:
        return {name for name in {**found, **there} if found.get(name) != there.get(name)}

    other = provenance.fingerprint({**config, "seed": "0"}, {"mode": "sample", "workdir": "runs/a"})
    assert differing(other) == {"config.seed", "mode"}  # a number is not its text
    installed = provenance.version
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--flag")
    monkeypatch.setattr(provenance, "version", lambda name: {"jaxlib": "0"}.get(name, installed(name)))
    monkeypatch.setattr(provenance, "ROOT", provenance.ROOT / "vf")
    there = provenance.fingerprint(config, {"mode": "train", "workdir": "runs/a"})
    assert differing(there) == {"LIBTPU_INIT_ARGS", "jaxlib", "code"}


def test_versions_are_those_installed():
    assert provenance.version("numpy") == np.__version__
    assert provenance.version("no-such-package") is None
