"""Files of a run: on this machine, on a network disk, or in an object store (`gs://bucket/run`).

An object store keeps whole files under long names. A file appears there once it is written completely, and may be
replaced by another one; but nothing can be appended or renamed, and a folder is only a common prefix of names. Lines
that are appended to a file on a disk become parts in a store, each written as a whole:

    NAME.jsonl                              on a disk
    NAME/<start, ns since 1970>-<n>.jsonl   in a store: the n-th part of the writer that started then

Local paths are `pathlib.Path`; addresses are `etils.epath.Path`, which has the same methods.
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

from vf.command import is_full
from vf.types import UserError

AnyPath: TypeAlias = Path | epath.Path
CLIENTS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # {scheme of a store: the package that reads and writes it}
NO_RENAME = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # errors of mounted stores that cannot rename
FLUSH_SECONDS, PART_LINES = 10.0, 1000  # how long lines wait at most, and how many make a part
A = TypeVar("A")
B = TypeVar("B")


def path(name: str | os.PathLike[str]) -> AnyPath:
    """The path that a user or a config names: an address (SCHEME://...), or a local path in which `~` is the home.

    Raises UserError where the store is unknown, or the package for it is not installed.
    """
    text = os.fspath(name)
    if "://" not in text:
        return expand(text) if isinstance(name, str) else Path(name)
    _check_client(text.split("://")[0])
    return epath.Path(text)


def home() -> Path:
    """The user's home; for a user whom the system does not know, as in many containers, a temporary folder."""
    try:
        return Path.home()
    except RuntimeError:
        return _temporary_home()


@functools.cache
def _temporary_home() -> Path:
    folder = Path(tempfile.gettempdir()) / f"vf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Programs are read from there: it must be no folder that somebody else has put in place.
    return folder if folder.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="vf-"))


def expand(name: str) -> Path:
    """A local path, in which `~` at the beginning is `home`."""
    first, *rest = Path(name).parts or ("",)
    return home().joinpath(*rest) if first == "~" else Path(name).expanduser()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address in an object store."""
    return "://" in os.fspath(path)


def folder(name: str | os.PathLike[str]) -> AnyPath:
    """As `path`, for a folder, which need not exist. An address is checked by listing it.

    Raises UserError as `path`, and where the store cannot be read, such as without credentials.
    """
    target = path(name)
    if is_remote(target):
        try:
            next(iter(target.iterdir()), None)
        except FileNotFoundError:
            pass  # there is no such bucket or no such folder yet; writing raises where it cannot be made
        except Exception as error:  # clients of stores raise errors of many kinds
            raise UserError(_access_error(target, "read", error)) from error
    return target


def check_writable(folder: AnyPath) -> None:
    """Makes the folder, and writes and removes a file there. Raises UserError where that cannot be done."""
    if is_remote(folder):
        try:
            probe = folder / f".writable-{time.time_ns()}"
            probe.write_bytes(b"")
            probe.unlink()
        except Exception as error:  # as in `folder`
            raise UserError(_access_error(folder, "written", error)) from error
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"expected a run folder that can be written and got {folder} ({reason}): {make_room(error)}choose another"
        ) from error


def make_room(error: Exception) -> str:
    """ "make room, or " where `error` says that a disk is full, else "": the beginning of what to do about it."""
    return "make room, or " if is_full(error) else ""


@functools.cache
def _check_client(scheme: str) -> None:
    if scheme not in CLIENTS:
        raise UserError(f"expected a local path or an address of {', '.join(CLIENTS)} and got {scheme}://...")
    import fsspec

    # Clients cache listings forever, and a job must see what another one writes meanwhile.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        if importlib.util.find_spec("tensorflow") is not None:
            return  # epath uses TensorFlow's client where it is installed
        raise UserError(
            f"expected the package that reads and writes {scheme}:// and found none: pip install {CLIENTS[scheme]}"
        ) from error


def check_proxy() -> str:
    """What else to do where a store does not answer and the environment names a proxy; "" where it names none."""
    names = [name for name in os.environ if name.lower() in ("https_proxy", "http_proxy", "all_proxy")]
    return f"; and make sure that the proxy that {names[0]} names answers" if names else ""


def _access_error(folder: AnyPath, action: str, error: Exception) -> str:
    """One sentence on why a folder in a store cannot be read or written, and what to do."""
    bucket = "/".join(os.fspath(folder).split("/")[:3])
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    advice = f"make sure that the bucket {bucket} exists and that these credentials may write there"
    if not isinstance(error, FileNotFoundError) and bucket.startswith("gs://"):
        advice += " (gcloud auth application-default login)"
    advice += check_proxy()
    return f"expected a run folder that can be {action} and got {folder} ({reason:.200}): {advice}"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary local path, whose file replaces `path` on success and is removed on failure.

    A reader sees the old file or the complete new one, never a part; only where a mounted store cannot rename is the
    file written in place. Makes the folder. Raises OSError.
    """
    target = _as_path(path)
    if is_remote(target):  # libraries that write pictures and films need a local file
        with tempfile.TemporaryDirectory(prefix="vf-") as directory:
            yield (temporary := Path(directory) / target.name)
            target.write_bytes(temporary.read_bytes())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # The host's name too, since processes in containers have the same few numbers.
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
    """Writes a file (text as UTF-8) so that a reader sees the old or the complete new one. Makes the folder."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        _as_path(path).write_bytes(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def copy_tree(source: Path, target: AnyPath) -> None:
    """Copies the files of a local folder, and of the folders below it, to `target`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            write_whole(target / path.relative_to(source).as_posix(), path.read_bytes())


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading and seeking; one in a store is read completely, since small reads are slow there."""
    return io.BytesIO(_as_path(path).read_bytes()) if is_remote(path) else open(path, "rb")


def append_line(path: AnyPath, line: str) -> None:
    """Appends `line` to a file of lines, in a store as a separate part. It is written when the call returns."""
    if is_remote(path):
        write_whole(_parts(path) / f"{time.time_ns()}-0.jsonl", line + "\n")
        return
    # Opened and closed for each line, so that a crash damages at most the last one and network disks publish it.
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(path: AnyPath) -> tuple[list[str], list[str]]:
    """(lines of a file, lines of its parts in order); both empty where there is neither.

    There are both where a run has moved between a disk and a store.
    """
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
    texts = map_concurrently(lambda part: part.read_bytes().decode(errors="replace"), parts)
    return lines, [line for text in texts for line in text.splitlines()]


def children(folder: AnyPath) -> list[AnyPath]:
    """The entries of a folder in order of names; [] where it is missing, or no folder."""
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Stores list a file, and the placeholder of an empty folder, as its own child.
    return [entry for entry in entries if entry.name != folder.name] if is_remote(folder) else entries


def map_concurrently(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of every item, in order, by several threads: stores answer slowly, but to many calls at once."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, items))


def _as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A path that the program has made itself, in which `~` is not expanded."""
    return epath.Path(path) if is_remote(path) else Path(path)


def _parts(path: AnyPath) -> AnyPath:
    return path.with_suffix("")


class StoreWriter:
    """Writes lines, and one growing local file, into a store.

    They are written `FLUSH_SECONDS` after the first of them was added, at `PART_LINES` lines, and by `flush`; a killed
    job loses those that wait. The latest part is written again with the lines that followed, until it has
    `PART_LINES`, so that a run of days makes hundreds of parts, not one every ten seconds.

    Args:
        path: the file of lines, whose parts are written.
        seconds: replaces `FLUSH_SECONDS`.
    """

    def __init__(self, path: AnyPath, seconds: float | None = None) -> None:
        self._folder, self._seconds = _parts(path), FLUSH_SECONDS if seconds is None else seconds
        self._start, self._number = time.time_ns(), 0
        self._lines: list[str] = []  # lines of the latest part
        self._written, self._written_at = 0, 0.0  # how many of them are in the store, and when they were written
        self._waiting_file: tuple[Path, AnyPath] | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()  # protects all of the above
        self._writing = threading.Lock()  # one thread writes at a time, while others may add lines

    def line(self, text: str) -> None:
        """Adds one line. Raises the store's error where the line fills the part, and it cannot be written."""
        with self._lock:
            self._lines.append(text)
            full = len(self._lines) - self._written >= PART_LINES
            self._start_timer()
        if full:
            self.flush()

    def file(self, local: Path, remote: AnyPath) -> None:
        """Copies `local`, which has grown, to `remote` at the next write."""
        with self._lock:
            self._waiting_file = local, remote
            self._start_timer()

    def flush(self, *, lines_only: bool = False) -> None:
        """Writes what waits, or only the lines of it, before the call returns.

        Raises the store's error where that fails; what was not written then waits for the next write.
        """
        with self._writing:
            with self._lock:
                if self._timer is not None and not (lines_only and self._waiting_file):
                    self._timer.cancel()
                    self._timer = None
                # Stores accept about one write per second under one name.
                if self._written >= PART_LINES or time.time() - self._written_at < 1:
                    self._begin_part()
                lines, name = list(self._lines), f"{self._start}-{self._number}.jsonl"
                file = None
                if not lines_only:
                    file, self._waiting_file = self._waiting_file, None
            try:
                if len(lines) > self._written:
                    write_whole(self._folder / name, "".join(f"{line}\n" for line in lines))
                    with self._lock:
                        self._written, self._written_at = len(lines), time.time()
                if file is not None and file[0].exists():
                    write_whole(file[1], file[0].read_bytes())
            except BaseException:
                with self._lock:
                    self._waiting_file = self._waiting_file or file
                raise

    def _begin_part(self) -> None:
        """Begins a new part with the lines that wait."""
        if self._written:
            self._lines, self._written, self._number = self._lines[self._written :], 0, self._number + 1

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._flush_later)
            self._timer.daemon = True
            self._timer.start()

    def _flush_later(self) -> None:
        """Flushes, and tries again later on an error: a store may be unavailable for a while without ending the run."""
        try:
            self.flush()
        except Exception as error:
            logging.warning("%s could not be written and is tried again (%s)", self._folder, error)
            with self._lock:
                self._start_timer()
