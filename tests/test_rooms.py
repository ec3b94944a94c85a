"""Rules on imports: rooms import lower rooms only, only `config` reads configs, and `diffusion` needs no framework."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # lowest first; rooms of one floor do not import each other
    {"types", "rng", "command", "activity"},
    {"files"},
    {"video"},
    {"diffusion", "data", "nets"},
    {"metrics", "models"},
    {"training", "run"},
    {"pretrained"},
    {"scores", "hosts"},
    {"plan"},
    {"config.specs"},
    {"config"},
    {"jobs"},
    {"main", "evaluate", "data.prepare"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in (ROOT / "vf").rglob("*.py") if path.name != "__init__.py")


def imports(path):
    """Every module that `path` imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module):
    """The room of a module such as `vf.nets.unet`. Specs are a separate room, below those that use them. So is the
    command that prepares data, above them all, since it may run a network on the frames."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:2] in (["config", "specs"], ["data", "prepare"]) else parts[0]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path) for path in FILES}


def doors():
    """{(room, room that it imports): modules that do}."""
    found = defaultdict(set)
    for path in FILES:
        own_room = room(module_of(path))
        for name in imports(path):
            if name in MODULES and room(name) != own_room:
                found[own_room, room(name)].add(module_of(path))
    return found


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


def test_no_two_rooms_import_each_other():
    """Nor does any circle of rooms: each imports rooms of lower floors only."""
    upward = {pair: modules for pair, modules in doors().items() if FLOOR[pair[0]] <= FLOOR[pair[1]]}
    assert not upward


@pytest.mark.parametrize("path", sorted((ROOT / "vf" / "diffusion").glob("*.py")), ids=lambda p: p.name)
def test_diffusion_imports_no_framework(path):
    assert not {"flax", "ml_collections", "optax", "orbax", "absl"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_framework(path):
    assert not {"tensorflow", "torch"} & {name.split(".")[0] for name in imports(path)}


def config_fields(path):
    """Lines that read a field of a thing that is called a config, as `config.train` or `FLAGS.config.seed`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name == "config" and ast.unparse(owner) != "jax.config":
                yield node.lineno, f"{name}.{node.attr}"


def test_configs_are_read_in_one_room():
    """`ConfigDict` is known in `config` and, as a type to hand on, in `main`; its fields are read in `config` alone."""
    importers = {room(module_of(path)) for path in FILES if "ml_collections.ConfigDict" in set(imports(path))}
    assert importers == {"config", "main"}
    reads = {
        f"{path.name}:{line} {field}"
        for path in FILES
        if room(module_of(path)) in ("main", "jobs", "hosts", "plan", "run", "training", "models", "config.specs")
        for line, field in config_fields(path)
    }
    assert not reads
