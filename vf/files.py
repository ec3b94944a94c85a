"""Files of a run: on this machine, on a network disk, or in an object store (`gs://bucket/run`).

An object store keeps whole files under long names. A file appears there when all of it is written, and another whole
one may take its place; but nothing is appended or renamed, and a folder is no more than what names have in common.
What is appended on a disk becomes parts in a store, each written whole:

    NAME.jsonl                              on a disk
    NAME/<start, ns since 1970>-<n>.jsonl   in a store: the n-th part of the writer that started then

Local paths are `pathlib.Path`, addresses `etils.epath.Path`, which offers the same methods.
"""

import errno
import functools
import importlib.util
import io
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

from absl import logging
from etils import epath

from vf.types import UserError

AnyPath: TypeAlias = Path | epath.Path
CLIENTS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # the package that knows each store
NO_RENAME = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # what mounted stores may say to it
EVERY_SECONDS, MOST_LINES = 10.0, 1000  # how long lines wait, and how many make a part
A = TypeVar("A")
B = TypeVar("B")


def path(name: str | os.PathLike[str]) -> AnyPath:
    """What a user or a config names: an address (SCHEME://...) or a local path, in which `~` is home.

    Raises UserError where the store is unknown, or the package that knows it is not installed."""
    text = os.fspath(name)
    if "://" not in text:
        return Path(text).expanduser() if isinstance(name, str) else Path(name)
    _check_client(text.split("://")[0])
    return epath.Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address in an object store."""
    return "://" in os.fspath(path)


def folder(name: str | os.PathLike[str]) -> AnyPath:
    """`path`, after a look into it where it is an address; it need not exist.

    Raises UserError as `path`, and where the store gives no answer, such as without credentials."""
    found = path(name)
    if is_remote(found):
        try:
            next(iter(found.iterdir()), None)
        except FileNotFoundError:
            pass  # no bucket, or nothing in it yet: writing will tell
        except Exception as error:  # every store's client has errors of its own
            raise UserError(_refused(found, "read", error)) from error
    return found


def check_writable(folder: AnyPath) -> None:
    """Makes the folder, and writes and removes a file there. Raises UserError where that cannot be done."""
    if is_remote(folder):
        try:
            probe = folder / f".writable-{time.time_ns()}"
            probe.write_bytes(b"")
            probe.unlink()
        except Exception as error:  # as in `folder`
            raise UserError(_refused(folder, "written", error)) from error
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"expected a run folder that can be written and got {folder} ({reason}): choose another"
        ) from error


@functools.cache
def _check_client(scheme: str) -> None:
    if scheme not in CLIENTS:
        raise UserError(f"expected a local path or an address of {', '.join(CLIENTS)} and got {scheme}://...")
    import fsspec

    # Clients remember listings for good, and a job shall see what another one writes meanwhile.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        if importlib.util.find_spec("tensorflow") is not None:
            return  # epath takes its client where it is installed
        raise UserError(
            f"expected the package that reads and writes {scheme}:// and found none: pip install {CLIENTS[scheme]}"
        ) from error


def _refused(folder: AnyPath, what: str, error: Exception) -> str:
    """One sentence on why a folder in a store cannot be read or written, and what to do."""
    bucket = "/".join(os.fspath(folder).split("/")[:3])
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    do = f"make sure that the bucket {bucket} exists and that these credentials may write there"
    if not isinstance(error, FileNotFoundError) and bucket.startswith("gs://"):
        do += " (gcloud auth application-default login)"
    return f"expected a run folder that can be {what} and got {folder} ({reason:.200}): {do}"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary local path whose file takes the place of `path` on success and vanishes on failure.

    A reader sees the old file or the whole new one, never a half; where a mounted store cannot rename, the file is
    written in place. Makes the folder. Raises OSError."""
    target = _as_path(path)
    if is_remote(target):  # libraries that write pictures and films need a local file
        with tempfile.TemporaryDirectory(prefix="vf-") as made:
            yield (temporary := Path(made) / target.name)
            target.write_bytes(temporary.read_bytes())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes in containers have the same few numbers.
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            if error.errno not in NO_RENAME:
                raise
            shutil.copyfile(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file (text as UTF-8) so that a reader sees the old one or the new one. Makes the folder."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        _as_path(path).write_bytes(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def copy_tree(source: Path, target: AnyPath) -> None:
    """Copies the files of a local folder, and of the folders in it, to `target`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            write_whole(target / path.relative_to(source).as_posix(), path.read_bytes())


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read and seek in; one in a store is fetched whole, since small reads are slow there."""
    return io.BytesIO(_as_path(path).read_bytes()) if is_remote(path) else open(path, "rb")


def append_line(path: AnyPath, line: str) -> None:
    """Appends `line` to a file of lines; in a store it becomes a part of its own. Done when the call returns."""
    if is_remote(path):
        write_whole(_parts(path) / f"{time.time_ns()}-0.jsonl", line + "\n")
        return
    # Opened and closed for each line: a crash tears at most the last, and network disks publish it.
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(path: AnyPath) -> tuple[list[str], list[str]]:
    """The lines of a file, and those of its parts from the first on; none where there is neither.

    There are both where a run has moved between a disk and a store."""
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    numbered: list[tuple[list[int], AnyPath]] = []
    for part in children(_parts(path)):
        words = part.name.removesuffix(".jsonl").split("-")
        if part.name.endswith(".jsonl") and len(words) == 2 and all(word.isdecimal() for word in words):
            numbered.append(([int(word) for word in words], part))
    parts = [part for _, part in sorted(numbered, key=lambda found: found[0])]
    texts = together(lambda part: part.read_bytes().decode(errors="replace"), parts)
    return lines, [line for text in texts for line in text.splitlines()]


def children(folder: AnyPath) -> list[AnyPath]:
    """What a folder holds, by name; nothing where it is missing or no folder."""
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Stores list a file, and the mark of an empty folder, as its own child.
    return [one for one in found if one.name != folder.name] if is_remote(folder) else found


def together(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of every item, in order, several at a time: a store answers slowly, but many at once."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, items))


def _as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A path of this program, whose `~` is a name like others."""
    return epath.Path(path) if is_remote(path) else Path(path)


def _parts(path: AnyPath) -> AnyPath:
    return path.with_suffix("")


class StoreWriter:
    """Lines, and one growing local file, on their way into a store.

    They are written `EVERY_SECONDS` after the first that waits, at `MOST_LINES` lines, and by `flush`; a killed job
    loses what waits. The latest part is written again with the lines that followed, until it holds `MOST_LINES`: a run
    of days makes hundreds of parts, not one for every ten seconds.

    path: of the file of lines, whose parts are written.
    seconds: in place of `EVERY_SECONDS`.
    """

    def __init__(self, path: AnyPath, seconds: float | None = None) -> None:
        self._folder, self._seconds = _parts(path), EVERY_SECONDS if seconds is None else seconds
        self._start, self._number = time.time_ns(), 0
        self._lines: list[str] = []  # of the latest part
        self._written, self._at = 0, 0.0  # how many of them are in the store, and since when
        self._grown: tuple[Path, AnyPath] | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()  # of all of the above
        self._writing = threading.Lock()  # one writer at a time, while more lines may be gathered

    def line(self, text: str) -> None:
        """Gathers one line. Raises what went wrong where it fills the part and cannot be written."""
        with self._lock:
            self._lines.append(text)
            full = len(self._lines) - self._written >= MOST_LINES
            self._soon()
        if full:
            self.flush()

    def file(self, local: Path, remote: AnyPath) -> None:
        """`local` has grown, and shall be copied to `remote`."""
        with self._lock:
            self._grown = local, remote
            self._soon()

    def flush(self, *, lines_alone: bool = False) -> None:
        """Writes what waits, or the lines of it; done when the call returns.

        What could not be written keeps waiting, and the reason is raised."""
        with self._writing:
            with self._lock:
                if self._timer is not None and not (lines_alone and self._grown):
                    self._timer.cancel()
                    self._timer = None
                # A store takes about one file a second under one name.
                if self._written >= MOST_LINES or time.time() - self._at < 1:
                    self._next()
                lines, name = list(self._lines), f"{self._start}-{self._number}.jsonl"
                grown = None
                if not lines_alone:
                    grown, self._grown = self._grown, None
            try:
                if len(lines) > self._written:
                    write_whole(self._folder / name, "".join(f"{line}\n" for line in lines))
                    with self._lock:
                        self._written, self._at = len(lines), time.time()
                if grown is not None and grown[0].exists():
                    write_whole(grown[1], grown[0].read_bytes())
            except BaseException:
                with self._lock:
                    self._grown = self._grown or grown
                raise

    def _next(self) -> None:
        """Begins another part with the lines that wait."""
        if self._written:
            self._lines, self._written, self._number = self._lines[self._written :], 0, self._number + 1

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._late)
            self._timer.daemon = True
            self._timer.start()

    def _late(self) -> None:
        """A store that does not answer for a while is no reason to end a run."""
        try:
            self.flush()
        except Exception as error:
            logging.warning("%s could not be written and is tried again (%s)", self._folder, error)
            with self._lock:
                self._soon()
