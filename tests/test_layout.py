"""`tests/` mirrors `vf/`: tests of vf/ROOM/MODULE.py are tests/ROOM/test_MODULE.py, with the exceptions below."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# Rooms that are tested as one.
ROOMS = {
    "config": "test_configs",  # every shipped config is built, and wrong values are refused
}
# Modules that have no door of their own: {module: tests of the door through which they are used}.
THROUGH = {
    "data/shot_sheet": "data/test_shots",
    "data/bitstream": "data/test_decode",
    "data/clock": "data/test_decode",
    "data/containers": "data/test_decode",
    "data/notes": "data/test_decode",
    "data/pixels": "data/test_decode",
    "data/reader": "data/test_staging",
    "data/text": "data/test_tables",
    "data/ucf101": "data/test_ucf101_splits",
    "jobs/results": "test_main",
    "jobs/sample": "test_main",
    "jobs/train": "test_main",
    "models/windowed": "jobs/test_together",
    "nets/feature_network": "scores/test_features",
    "plan/lower": "jobs/test_plan",
    "plan/messages": "plan/test_hlo",
    "plan/report": "jobs/test_plan",
    "plan/advice": "jobs/test_plan",
    "plan/subject": "jobs/test_plan",
    "pretrained/convert": "test_pretrained",
    "pretrained/names": "pretrained/test_weights",
    "pretrained/pickles": "pretrained/test_torch_file",
    "pretrained/safetensors_file": "pretrained/test_files",
    "pretrained/unet": "pretrained/test_adm",
    "pretrained/vit": "pretrained/test_videomae",
    "run/gallery": "run/test_page",
    "run/html": "run/test_page",
    "run/score_table": "test_evaluate",
    "scores/networks": "scores/test_suite",
}
# Tests of more than a module.
WHOLE = {
    *ROOMS.values(), "jobs/test_conditions", "metrics/test_peers", "pretrained/test_image_road", "test_benchmarks",
    "test_launch", "test_layout", "test_package", "test_pretrained", "test_rooms", "test_shapes",
    "test_troubleshooting",
}  # fmt: skip


def names(folder: str, prefix: str = "") -> set[str]:
    """Modules with code below `folder`, as paths from there without the suffix."""
    found = (path for path in (ROOT / folder).rglob(f"{prefix}*.py") if path.name != "__init__.py")
    return {path.relative_to(ROOT / folder).with_suffix("").as_posix() for path in found}


MODULES, TESTS = names("vf"), names("tests", "test_")


def mirror(module: str) -> str:
    room, _, name = module.rpartition("/")
    return f"{room}/test_{name}".lstrip("/")


def test_every_module_has_its_tests():
    without = {module for module in MODULES if mirror(module) not in TESTS and module.split("/")[0] not in ROOMS}
    assert without == set(THROUGH)
    assert {*THROUGH.values(), *ROOMS.values()} <= TESTS


def test_every_test_has_its_module():
    assert TESTS - {mirror(module) for module in MODULES} == WHOLE
