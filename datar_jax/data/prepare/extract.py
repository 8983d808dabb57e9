"""Unpacks archives atomically into one folder, and never outside of it.

Files and folders below one folder come out of an archive, and nothing else: links of either kind are refused, which the
holes in `tarfile`'s own filters were made of, and which no data set needs. Beside a folder NAME there may lie
`.NAME.partial`, what is out so far, and `.NAME.lock`, while a process is at it.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from datar_jax.data.prepare.partial_files import BLOCK, SHOWN, FetchError, beside, sole_writer, unwritten
from datar_jax.escaping import printable
from datar_jax.foreign_files import UnsafeName, check_name, open_regular

RATIO = 100  # what comes out of an archive may be this much larger than it; wav and text stay far below
FLOOR = 1 << 26  # bytes that may always come out
EACH = 4096  # bytes that a file counts as at least, so that empty ones are bounded, too
BETWEEN = 1 << 22  # bytes of a tar between two contents: headers, long names, the padding at the end
UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a zip, tar or tar.gz into a folder of its own, atomically.

    What the file is says its content, not its name. Files are made anew with the permissions of any new file; times,
    owners and permissions of the archive are left. Memory does not grow with the sizes of files; a zip's table of
    contents is held whole.

    Args:
      archive: the file.
      folder: one that is there and not empty was unpacked before and is left as it is. Where the file system has
        locks, a second process is refused while one is at it.

    Returns:
      `folder`.

    Raises:
      FetchError: the archive is missing or damaged; or holds links, devices, encrypted or sparse files, a name twice,
        or one that leads out; or more comes out of it than the disk has room for or than 100 times its size; or the
        folder cannot be written. Then nothing stays of what was unpacked.
    """
    place = Path(os.path.realpath(folder))  # what a link leads to may be an empty folder on another disk
    try:
        if not _is_full(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with sole_writer(place):
                if not _is_full(place):
                    _unpack(archive, place)
    except OSError as error:
        raise unwritten(folder, error) from error
    return folder


def _is_full(folder: Path) -> bool:
    """Whether the folder exists and is not empty; raises FetchError if it is something else."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise FetchError(f"{folder}: is there and is no folder; move it away")
    return any(folder.iterdir())


def _unpack(archive: Path, folder: Path) -> None:
    partial = beside(folder, "partial")
    if partial.exists():  # of a process that was killed
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        _write(archive, partial)
        os.sync()  # one for all: what a power cut takes must not lie under the name of something whole
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(archive: Path, folder: Path) -> None:
    """Writes all members of an archive below an empty folder."""
    try:
        file = open_regular(archive)
    except OSError as error:
        raise FetchError(f"{archive}: cannot be read ({error.strerror}); give the path of the archive") from error
    with file:
        target = _Target(archive, os.fstat(file.fileno()).st_size, folder)
        try:
            start = file.read(4)
            file.seek(0)
            if start[:2] == b"PK":
                _unzip(file, target)
            elif start[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    _untar(unpacked, target)
            else:
                _untar(file, target)
        except FetchError:
            raise
        except UnsafeName as error:
            raise target.foreign(f"it holds {error}") from None
        except UNREADABLE as error:
            if getattr(error, "errno", None) not in (None, errno.EINVAL):  # EINVAL: a damaged table gives a position
                raise  # of the disk that is written to
            reason = printable(str(error), SHOWN) or type(error).__name__
            raise target.foreign(f"it is damaged, or no zip, tar or tar.gz ({reason})") from error
    if not target.files:
        raise target.foreign("it holds no file")


class _Target:
    """The folder that an archive is unpacked to, and the bytes that may still come out."""

    def __init__(self, archive: Path, size: int, folder: Path) -> None:
        self.archive, self.folder, self.files = archive, folder, 0
        self._most, self._free = RATIO * size + FLOOR, shutil.disk_usage(folder).free
        self._left = min(self._most, self._free)

    def path(self, name: str, size: int | None) -> Path:
        """The path of a member of some bytes, or of a folder (None); nothing is there yet, but its parents are."""
        path = self.folder / name
        if size is not None or name.rstrip("/") != ".":  # `./` is the folder itself
            check_name(name)
        self._left -= max(EACH, size or 0)
        if self._left < 0 and self._free < self._most:
            raise FetchError(
                f"{self.archive}: more comes out of it than the {self._free / 1e6:.1f} MB that fit; make room"
            )
        if self._left < 0:
            raise self.foreign(f"more than {RATIO} times its size comes out of it")
        try:
            (path if size is None else path.parent).mkdir(parents=True, exist_ok=True)
            taken = size is not None and path.exists()
        except (FileExistsError, NotADirectoryError):
            taken = True
        if taken:  # a name in two cases, too, where they are one to the disk
            raise self.foreign(f"it holds {printable(name, SHOWN)} twice, or as a file and as a folder")
        self.files += size is not None
        return path

    def foreign(self, what: str) -> FetchError:
        """The error of an archive that cannot be used."""
        return FetchError(f"{self.archive}: {what}; move it away and run the same command, which fetches it again")


def _unzip(file: BinaryIO, target: _Target) -> None:
    with zipfile.ZipFile(file) as contents:
        for info in contents.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise target.foreign(f"{printable(info.filename, SHOWN)} in it is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA may ask for 4 GB
                raise target.foreign(f"{printable(info.filename, SHOWN)} in it is packed in an uncommon way")
            path = target.path(info.orig_filename, None if info.is_dir() else info.file_size)
            if not info.is_dir():
                with contents.open(info) as member, path.open("xb") as copy:
                    shutil.copyfileobj(member, copy, BLOCK)  # at most file_size bytes, which the checksum is of


def _untar(file: BinaryIO | gzip.GzipFile, target: _Target) -> None:
    """Unpacks a tar in one pass."""
    meter = _Meter(file, BETWEEN)
    with tarfile.open(fileobj=meter, mode="r|", tarinfo=_Header) as contents:
        while (member := contents.next()) is not None:
            if not (member.isdir() or member.isfile()) or member.issparse():
                raise target.foreign(f"{printable(member.name, SHOWN)} in it is a link, a device or sparse")
            target.path(member.name, None if member.isdir() else member.size)
            if member.isfile():
                meter.left = member.size + BETWEEN
                contents.extract(member, target.folder, set_attrs=False, filter="data")
            meter.left = BETWEEN
            contents.members.clear()  # type: ignore[attr-defined] # it keeps all that it has seen
            contents.pax_headers = {}
    while meter.read(BLOCK):  # to the checksum of gzip
        pass


class _Header(tarfile.TarInfo):
    """Header that accepts only zeros as the end; `tarfile` also stops at a damaged or missing header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(f"{error or 'no header'}") from None
        if header.size < 0:
            raise tarfile.ReadError("a negative size")
        return header


class _Meter(io.RawIOBase):
    """A file with a read limit: tarfile would load whatever size a header claims."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, left: int):
        self.file, self.left = file, left

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise tarfile.ReadError("a header beyond all measure")
        return block
