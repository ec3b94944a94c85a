"""Eight fake CPU devices, set before jax is imported; and the folder of real clips, where there is one."""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile more than they compute: quickly, and a program that several tests share once only.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="vf-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Folder named by VF_CLIPS, which holds `UCF-101/<Class>/v_*.avi` and `broken/corrupted.mp4`."""
    folder = os.environ.get("VF_CLIPS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VF_CLIPS does not name a folder of real clips")
    return Path(folder)
