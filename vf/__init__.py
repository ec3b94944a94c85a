"""VideoFusion in JAX. Says in one sentence what is wrong where the packages that it needs are not installed."""

import importlib.util
import sys

REQUIRED = (
    "jax", "av", "numpy", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "importlib_resources",
    "array_record", "tqdm", "ml_collections", "clu", "tensorboardX", "safetensors", "tokenizers", "einops", "jaxtyping",
    "absl", "PIL",
)  # fmt: skip
"""Modules of the packages in requirements.txt."""

# Python is about to run a command of this package by `python -m`, whose imports take seconds.
IS_COMMAND = sys.argv[:1] == ["-m"]
if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
    message = (
        f"vf: {sys.executable} has no module named {missing[0]!r}: `make install` installs it into .venv, whose Python "
        "is `.venv/bin/python`, or `python` after `source .venv/bin/activate`"
    )
    if IS_COMMAND:  # no traceback
        print(message, file=sys.stderr)
        sys.exit(2)
    raise ModuleNotFoundError(message, name=missing[0])
if IS_COMMAND:
    from vf.activity import ACTIVITY

    ACTIVITY.begin("starting")
