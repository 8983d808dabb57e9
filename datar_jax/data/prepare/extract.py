"""Unpacks archives atomically into one folder, and never outside of it.

An archive is not believed. Out of it come files and folders below one folder, nothing else: links of either kind are
refused altogether, for they are what holes in `tarfile`'s own filters were made of, and no data set needs them. For a
folder NAME there may lie beside it `.NAME.partial`, what is out so far, and `.NAME.lock`, while a process is at it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from datar_jax.data.prepare.partial_files import BLOCK, FetchError, beside, plain, sole_writer, unwritten

RATIO = 100  # what comes out of an archive may be this much larger than it; wav and text stay far below
FLOOR = 1 << 26  # bytes that may always come out
EACH = 4096  # bytes that a file counts as at least, so that empty ones are bounded, too
BETWEEN = 1 << 22  # bytes of a tar between two contents: headers, long names, the padding at the end
DEPTH, LONGEST = 32, 1024  # folders and bytes of a name

Member = tuple[str, Iterator[bytes] | None]  # name, content; None for a folder


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
        size = archive.stat().st_size
    except OSError as error:
        raise FetchError(f"{archive}: cannot be read ({error.strerror}); give the path of the archive") from error
    most, free = RATIO * size + FLOOR, shutil.disk_usage(folder).free
    left = min(most, free)

    def take(amount: int) -> None:
        nonlocal left
        left -= amount
        if left < 0 and free < most:
            raise FetchError(f"{archive}: more comes out of it than the {free / 1e6:.1f} MB that fit; make room")
        if left < 0:
            raise _foreign(archive, f"more than {RATIO} times its size comes out of it")

    files = 0
    for name, blocks in _members(archive):
        parts = _parts(archive, name)
        target = folder.joinpath(*parts)
        take(EACH)
        try:
            (target if blocks is None else target.parent).mkdir(parents=True, exist_ok=True)
            if blocks is None:
                continue
            with target.open("xb") as file:
                for block in blocks:
                    take(len(block))
                    file.write(block)
            files += 1
        except (
            FileExistsError,
            NotADirectoryError,
        ) as error:  # a name in two cases, too, where they are one to the disk
            raise _foreign(archive, f"it holds {plain(name)} twice, or as a file and as a folder") from error
    if not files:
        raise _foreign(archive, "it holds no file")


def _parts(archive: Path, name: str) -> list[str]:
    """Parts of a member's name; raises FetchError if it leaves the folder or is empty."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise _foreign(archive, f"it holds {plain(name)}, which leads out of its folder")
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        lengths = [LONGEST]
    if "\0" in name or len(parts) > DEPTH or max(lengths, default=0) > 255 or sum(lengths) >= LONGEST:
        raise _foreign(archive, f"it holds {plain(name)}, which cannot be a file's name")
    return parts


def _members(archive: Path) -> Iterator[Member]:
    """Yields members in order; each content must be read before the next member."""
    with _reading(archive), archive.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"PK":
            yield from _zip(archive, file)
        elif start[:2] == b"\x1f\x8b":
            with gzip.open(file) as plain:
                yield from _tar(archive, plain)
        else:
            yield from _tar(archive, file)


def _zip(archive: Path, file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as contents:
        for info in contents.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _foreign(archive, f"{plain(info.filename)} in it is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA may ask for 4 GB
                raise _foreign(archive, f"{plain(info.filename)} in it is packed in an uncommon way")
            if info.is_dir():
                yield info.filename, None
            else:
                yield info.filename, _blocks(archive, contents.open(info))


def _tar(archive: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[Member]:
    """Yields members of a tar in one pass."""
    meter = _Meter(file, BETWEEN)
    with tarfile.open(fileobj=meter, mode="r|", tarinfo=_Header) as contents:
        while (member := contents.next()) is not None:
            if member.isdir():
                yield member.name, None
            elif member.isfile() and not member.issparse():
                content = contents.extractfile(member)
                assert content is not None  # it is of a file
                meter.left = member.size + BETWEEN
                yield member.name, _blocks(archive, content)
            else:
                raise _foreign(archive, f"{plain(member.name)} in it is a link, a device or sparse")
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


def _blocks(archive: Path, content: IO[bytes]) -> Iterator[bytes]:
    with _reading(archive), content:
        while block := content.read(BLOCK):
            yield block


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns library errors about an unreadable archive into one line.

    Put around reading only: what goes wrong in writing is not the archive's.
    """
    try:
        yield
    except FetchError:
        raise
    except (
        *(OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError),
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
    ) as error:
        reason = plain(error) or type(error).__name__
        raise _foreign(archive, f"it is damaged, or no zip, tar or tar.gz ({reason})") from error


def _foreign(archive: Path, what: str) -> FetchError:
    return FetchError(f"{archive}: {what}; move it away and run the same command, which fetches it again")
