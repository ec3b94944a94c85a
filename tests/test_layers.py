"""Layers import downward only, and `diffusion` knows neither networks nor configs nor meshes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # lowest first; within a layer, modules may import each other
    {"types", "rng", "files", "video"},
    {"diffusion", "data", "metrics"},
    {"nets", "pretrained"},
    {"model", "state", "optim", "sharding"},
    {"step", "checkpoint", "export", "record", "gallery"},
    {"build", "sample", "judge", "evaluate", "train", "plan", "meter", "hosts"},
    {"main"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
COMMANDS = {"pretrained/convert.py"}  # nobody imports them, so that they may import anything
FILES = sorted(path for path in (ROOT / "vf").rglob("*.py") if path.name != "__init__.py")


def imports(path):
    """Every module that `path` imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    inside = path.relative_to(ROOT / "vf")
    mine = "main" if inside.as_posix() in COMMANDS else inside.parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vf" and len(parts) > 1:
            assert RANK[parts[1]] <= RANK[mine], f"{mine} imports {parts[1]}, which lies above it"


@pytest.mark.parametrize("path", sorted((ROOT / "vf" / "diffusion").glob("*.py")), ids=lambda p: p.name)
def test_the_maths_is_pure(path):
    assert not {"flax", "ml_collections", "optax", "orbax", "absl"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_framework(path):
    assert not {"tensorflow", "torch"} & {name.split(".")[0] for name in imports(path)}


def test_only_build_and_main_read_configs():
    readers = {path.name for path in FILES if "ml_collections" in {name.split(".")[0] for name in imports(path)}}
    assert readers == {"build.py", "main.py"}
