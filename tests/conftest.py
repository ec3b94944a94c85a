"""Eight fake CPU devices and checks of shapes, set before `vf` is imported; the folder of real clips."""

import io
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile more than they compute: quickly, and a program that several tests share once only, unless it is kept
# from run to run.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="vf-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

from tests import shapes  # noqa: E402

# Every call is checked against the shapes in its annotations, in all modules that declare any.
ROOT = Path(__file__).parents[1]
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "vf").rglob("*.py"))
    if "from jaxtyping import" in path.read_text()
]
jaxtyping.install_import_hook(SHAPED, f"{shapes.__name__}.checked")


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Switches checks of shapes off, for calls with wrong shapes on purpose: without the checks, the error is ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Folder named by VF_CLIPS, which holds `UCF-101/<Class>/v_*.avi` and `broken/corrupted.mp4`."""
    folder = os.environ.get("VF_CLIPS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VF_CLIPS does not name a folder of real clips")
    return Path(folder)


@pytest.fixture
def bucket(monkeypatch) -> dict[str, bytes]:
    """A fake gs:// store, as strict as the real one: {"bucket/name": content}.

    Content appears when the file is closed; files cannot be appended to or renamed, and there are no folders; listings
    are cached unless the settings forbid it, as in gcsfs."""
    import fsspec
    from etils.epath import backend
    from fsspec.registry import _registry
    from fsspec.spec import AbstractFileSystem

    from vf import files

    store: dict[str, bytes] = {}

    class Upload(io.BytesIO):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def close(self) -> None:
            if not self.closed:
                store[self.name] = self.getvalue()
            super().close()

    class Store(AbstractFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        def ls(self, path, detail=True, **_):
            path = self._strip_protocol(path).rstrip("/")
            if path in self.dircache:
                found = self.dircache[path]
            else:
                found = self.dircache[path] = self._look(path)
            return found if detail else [one["name"] for one in found]

        def _look(self, path):
            found = {}
            for name, content in list(store.items()):
                if name == path or name.startswith(f"{path}/"):
                    child = "/".join(name.split("/")[: path.count("/") + 2])
                    kind = "file" if child == name else "directory"
                    found[child] = {"name": child, "size": len(content), "type": kind}
            if not found:
                raise FileNotFoundError(path)
            return list(found.values())

        def _open(self, path, mode="rb", **_):
            path = self._strip_protocol(path)
            if mode == "wb":
                return Upload(path)
            assert mode == "rb", f"an object store knows no mode {mode}"
            if path not in store:
                raise FileNotFoundError(path)
            return io.BytesIO(store[path])

        def rm_file(self, path):
            del store[self._strip_protocol(path)]

        def mv(self, *_, **__):
            raise AssertionError("an object store cannot rename")

        rename = move = mv_file = mv

        def _refuse(self, *_, **__):
            raise AssertionError("an object store has no folders to be made")

        mkdir = makedirs = _refuse

    for name in Store.protocol:
        monkeypatch.setitem(_registry, name, Store)
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setenv("EPATH_USE_TF", "false")
    caches = (backend.fsspec_backend._get_filesystem, files._check_client)
    for cache in caches:
        cache.cache_clear()
    yield store
    for cache in caches:
        cache.cache_clear()
