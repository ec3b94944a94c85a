"""Reads .zip and .tar archives without unpacking them: the names of their members, and the content of a member."""

import functools
import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from vf.data.decode import error_text, printable
from vf.types import UserError

ARCHIVES = (".zip", ".tar")
DAMAGE = (  # what reading a broken archive may raise, next to OSError
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(LookupError, RuntimeError, EOFError, ValueError),
)


def members(archive: Path) -> tuple[list[str], str]:
    """Names of an archive's files, and the problem of an archive that is damaged after them ("" where it is not).

    Raises UserError for a file of another kind, or an archive that cannot be read at all.
    """
    kind = archive.suffix.lower()
    if kind not in ARCHIVES:
        raise UserError(
            f"{archive} is no folder, no video and none of {', '.join(ARCHIVES)}: unpack it first "
            "(`tar xf` for .tar.gz, `unrar x` for .rar) and name the folder"
        )
    try:
        if kind == ".tar":
            infos, problem = _open_tar(archive, archive.stat().st_mtime_ns)
            return list(infos), problem
        file = _open_zip(archive, archive.stat().st_mtime_ns)
        return [info.filename for info in file.infolist() if not info.is_dir()], ""
    except (OSError, *DAMAGE) as error:
        raise UserError(f"the archive {archive} cannot be read ({error_text(error)}): copy it again") from error


def read_member(archive: Path, name: str) -> bytes:
    """Content of one member of a .zip or .tar. Raises OSError or ValueError where it is damaged."""
    changed = archive.stat().st_mtime_ns
    try:
        if archive.suffix.lower() == ".zip":
            return _open_zip(archive, changed).read(name)
        info = _open_tar(archive, changed)[0][name]
        with tarfile.open(archive, "r:") as file:
            member = file.extractfile(info if info.isreg() else name)  # a name is followed where it is a link
            return member.read() if member else b""
    except DAMAGE as error:
        raise ValueError(f"cannot be read from its archive: {error_text(error)}") from error


# Tables of contents are cached: in an archive of 13,000 videos, reading one again takes longer than decoding a video.


@functools.lru_cache(maxsize=2)
def _open_zip(archive: Path, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


@functools.lru_cache(maxsize=2)
def _open_tar(archive: Path, changed: int) -> tuple[dict[str, tarfile.TarInfo], str]:
    """Files and links by name, and after which of them the archive is damaged ("" where it is not)."""
    infos: dict[str, tarfile.TarInfo] = {}
    last = ""
    with tarfile.open(archive, "r:") as file:
        try:
            for info in file:
                last = info.name
                if info.isreg() or info.islnk() or info.issym():
                    infos[last] = info
            # The reader mistakes a damaged header for the end of the archive; the true end is a block of zeros.
            with archive.open("rb") as raw:
                raw.seek(file.offset)
                is_complete = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.ReadError:
            is_complete = False
    return infos, "" if is_complete else f"is damaged or cut off after {printable(last)}: copy it again"
