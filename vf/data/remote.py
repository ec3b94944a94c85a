"""Copies data from an object store to the machine once, where it is then read as any folder.

Clips are read in random order and again in each epoch, which is slow and costly in object stores. The copy is in
`~/.cache/vf/data/STORE/BUCKET/...` (or below `VF_DATA_CACHE`), for every job on the machine. A mount (gcsfuse, NFS)
counts as a local folder, and is read directly.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from vf import files
from vf.data.manifest import MANIFEST
from vf.types import UserError

THREADS = 16


def local_copy(address: str) -> Path:
    """The local copy of the folder at `address` (gs://bucket/data), which is made or brought up to date.

    Files that are missing or of another size are fetched, and files that the store no longer has are removed; where
    the data was prepared again, all are fetched. Processes of one machine wait for each other. Raises UserError where
    the folder is empty, or the store cannot be read.
    """
    files.path(address)  # raises where the store's client is not installed
    import fsspec

    scheme = address.split("://")[0]
    try:
        store, root = fsspec.core.url_to_fs(address)
        listed = {name.removeprefix(root).lstrip("/"): info["size"] for name, info in _find(store, root)}
    except Exception as error:  # clients of stores raise errors of many kinds
        raise UserError(
            f"expected a data set at {address}, which cannot be read ({type(error).__name__}: {error}): make sure that "
            f"it exists, and that these credentials may read it{files.check_proxy()}"
        ) from error
    if not listed:
        raise UserError(f"expected a data set at {address} and found nothing there: check the address")
    target = Path(os.environ.get("VF_DATA_CACHE") or files.home() / ".cache/vf/data") / scheme / root
    with _locked(target):
        if MANIFEST in listed and (target / MANIFEST).exists():
            with store.open(f"{root}/{MANIFEST}", "rb") as file:
                if file.read() != (target / MANIFEST).read_bytes():
                    shutil.rmtree(target)
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target).as_posix() not in listed:
                path.unlink()
        missing = [name for name, size in listed.items() if _size(target / name) != size]
        if missing:
            size = sum(listed[name] for name in missing) / 1e9
            logging.info("fetching %d of %d files, %.2f GB, of %s", len(missing), len(listed), size, address)

        def fetch(name: str) -> None:
            with files.replacing(target / name) as temporary:
                store.get_file(f"{root}/{name}", str(temporary))

        try:
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(fetch, [name for name in missing if name != MANIFEST]))
            if MANIFEST in missing:  # last, since a folder without it is no data set
                fetch(MANIFEST)
        except Exception as error:  # as above, and a full disk
            raise UserError(
                f"fetching {address} to {target} stopped ({type(error).__name__}: {error}): the same command goes on "
                f"from there; VF_DATA_CACHE names another folder{files.check_proxy()}"
            ) from error
    return target


def _find(store: object, root: str) -> Iterator[tuple[str, dict]]:
    entries: dict[str, dict] = store.find(root, detail=True)  # type: ignore[attr-defined]
    # Some stores list an object that stands for the folder itself.
    return ((name, info) for name, info in entries.items() if not name.endswith("/") and name != root)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Excludes other processes of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
