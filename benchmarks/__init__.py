"""The measurements of RESULTS.md. Says in one sentence what is missing where a measurement needs more than `vf`."""

import importlib.util
import sys

import vf  # noqa: F401  ends a command of a Python without its packages

TOOLS = {"float32_fvd": ("torch",), "mutate": ("cosmic_ray",), "unet": ("torch", "diffusers")}
"""{command: modules that it needs beside those of requirements.txt}"""

if sys.argv[:1] == ["-m"]:  # Python is about to run one of the commands
    for command, modules in TOOLS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if f"benchmarks.{command}" in sys.orig_argv and missing:
            install = "make mutate" if command == "mutate" else "pip install -r requirements-dev.txt"
            print(f"vf: benchmarks.{command} needs {missing[0]}, which `{install}` installs", file=sys.stderr)
            sys.exit(2)
