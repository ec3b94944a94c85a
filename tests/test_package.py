"""Outside of its environment, every command says in one sentence where to run it."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vf

ROOT = Path(__file__).parents[1]


def test_the_modules_of_all_requirements_are_known():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>= ]", line)[0] for line in lines if line and not line.startswith("#")}
    packages = {name.replace("_", "-").lower() for name in required}
    for module, names in importlib.metadata.packages_distributions().items():
        if module in vf.REQUIRED:
            packages -= {name.replace("_", "-").lower() for name in names}
    assert not packages


@pytest.mark.parametrize("missing", ["jax", "av"])
@pytest.mark.parametrize("command", ["vf.main", "vf.evaluate", "vf.data.prepare", "vf.pretrained.convert"])
def test_a_missing_package_is_answered_in_one_sentence(tmp_path, command, missing):
    """Of a Python in which all packages are there but one."""
    code = (
        "import importlib.util, runpy, sys\n"
        "known = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {missing!r} else known(name, *a)\n"
        f"sys.argv = ['-m', '--help']; runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"vf: \S+ has no module named '{missing}': .*source \.venv/bin/activate.*\n", done.stderr)
    assert not done.stdout


@pytest.mark.parametrize(
    "command", [path.stem for path in ROOT.glob("benchmarks/*.py") if '"__main__"' in path.read_text()]
)
def test_measurements_need_the_packages_too(command):
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"benchmarks.{command}"], cwd=ROOT, capture_output=True, text=True,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "has no module named 'jax'" in done.stderr


@pytest.mark.parametrize(("command", "missing", "remedy"), [
    ("unet", "diffusers", "pip install -r requirements-dev.txt"), ("mutate", "cosmic_ray", "make mutate"),
])  # fmt: skip
def test_a_measurement_names_the_tool_that_it_needs(command, missing, remedy):
    code = (
        "import importlib.util, runpy, sys\n"
        "known = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {missing!r} else known(name, *a)\n"
        f"sys.argv, sys.orig_argv = ['-m'], ['python', '-m', 'benchmarks.{command}']\n"
        f"runpy.run_module('benchmarks.{command}', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"vf: benchmarks.{command} needs {missing}, which `{remedy}` installs\n"


def test_a_python_without_packages_at_all(tmp_path):
    """The command itself, as README has it."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "vf.main", "--config=configs/demo.py", "--workdir=runs/demo"],
        cwd=ROOT, capture_output=True, text=True, env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no module named 'jax'" in done.stderr
    assert done.stderr.count("\n") == 1
    imported = subprocess.run(
        [sys.executable, "-S", "-c", "import vf"], cwd=ROOT, capture_output=True, text=True, env={}
    )
    assert "ModuleNotFoundError: vf: " in imported.stderr  # a program that imports it sees where
