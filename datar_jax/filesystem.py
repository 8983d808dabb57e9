"""Local files and buckets: folder walks, and paths or URLs through fsspec.

A URL has a scheme (`gs://`, `s3://`, `https://`, `memory://`); the package that fsspec needs for it (gcsfs, s3fs,
aiohttp) is installed by its users. etils.epath, which orbax brings, prefers TensorFlow for buckets where that is
installed, and knows neither https nor memory.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

from datar_jax.atomic_files import atomic_write
from datar_jax.config import ConfigError
from datar_jax.foreign_files import check_name, open_regular


@dataclass(frozen=True)
class StoragePath:
    """A local or remote file or folder."""

    url: str  # as the user wrote it
    path: str  # within its file system
    system: Any  # of fsspec; can be pickled

    @property
    def local(self) -> Path | None:
        """The local path; None for a remote one."""
        return Path(self.path) if "file" in _protocols(self.system) else None

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(f"{self.url.rstrip('/')}/{name}", f"{self.path.rstrip('/')}/{name}", self.system)

    def below(self, name: str) -> StoragePath:
        """The path of a name that was read from a file or listed by a server.

        Raises:
          UnsafeName: it leaves this folder.
        """
        check_name(name)
        return self / name

    def is_folder(self) -> bool:
        """Whether the folder exists; in a bucket, whether any name starts with it."""
        return bool(self.system.isdir(self.path))

    def size(self) -> int:
        """Size of the file in bytes; -1 if it does not exist."""
        try:
            return int(self.system.info(self.path)["size"])
        except FileNotFoundError:
            return -1

    def state(self) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds; -1 and 0 for a file that cannot be read.

        In a bucket, a checksum of what it says of the file's version takes the place of the time.
        """
        if self.local is not None:
            return file_state(self.local)
        try:
            about = self.system.info(self.path)
        except OSError:
            return -1, 0
        return int(about["size"] or 0), zlib.crc32(_version(about).encode())

    def open(self) -> BinaryIO:
        """Opens the file for reading; raises OSError for what is no regular file."""
        return open_regular(self.local) if self.local else cast(BinaryIO, self.system.open(self.path, "rb"))

    def read(self) -> bytes:
        """Returns the content of the file; raises FileNotFoundError, and OSError for what is no regular file."""
        if self.local is None:
            return bytes(self.system.cat_file(self.path))
        with open_regular(self.local) as file:
            return file.read()

    def write(self, content: bytes) -> None:
        """Writes the file atomically and creates its folder."""
        if self.local is None:
            self.system.pipe_file(self.path, content)
        else:
            atomic_write(self.local, content)

    def move_from(self, file: Path) -> None:
        """Moves a finished local file to this path, atomically."""
        if self.local is None:
            self.system.put_file(str(file), self.path)
            file.unlink()
        else:
            file.replace(self.local)

    def copy_to(self, file: Path) -> None:
        """Copies the file to a local path, atomically."""
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:  # one per process
            partial = Path(folder, file.name)
            self.system.get_file(self.path, str(partial))
            partial.replace(file)

    def remove(self) -> None:
        """Removes the file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path)

    @contextlib.contextmanager
    def as_local(self) -> Iterator[Path]:
        """The file as a local path; a remote one is copied for the duration of the block."""
        if self.local is not None:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PurePosixPath(self.path).name)
            self.system.get_file(self.path, str(copy))
            yield copy

    def list_files(self) -> Iterator[tuple[str, str]]:
        """Lists all files below this folder: relative name with forward slashes, and a text that changes with the file.

        Raises:
          ConfigError: a folder cannot be read: its files would be missing.
        """
        if self.local is not None:
            for folder, _, names in walk_folders(self.local):
                for name in names:
                    below = (folder / name).relative_to(self.local).as_posix()
                    try:
                        status = (folder / name).stat()
                    except FileNotFoundError:  # a broken link
                        continue
                    except OSError as error:  # raised again when it is opened
                        yield below, str(error.strerror)
                    else:
                        yield below, f"{status.st_size} {status.st_mtime_ns}"
            return
        for path, about in sorted(self.system.find(self.path, detail=True).items()):
            name = path[len(self.path.rstrip("/")) :].strip("/")
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, f"{about['size']} {_version(about)}"


def storage_path(url: str, field: str) -> StoragePath:
    """The file or folder of a path or URL; `field` is named in errors.

    Raises:
      ConfigError: an empty text, an unknown scheme, or one whose package is not installed.
    """
    import fsspec  # most commands need none

    if not url:  # for fsspec this is the current folder
        raise ConfigError(f"{field}='': give a folder or a URL; the current folder is .")
    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{field}={url!r}: {error}") from None
    return StoragePath(url, path, system)


def file_state(path: str | Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds of a local file; -1 and 0 if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _version(about: dict[str, Any]) -> str:
    """What a bucket says of the version of a file; an empty text if nothing."""
    versions = (about.get(key) for key in ("etag", "ETag", "updated", "LastModified", "mtime", "created"))
    return str(next(filter(None, versions), ""))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(f"{error.filename!r}: cannot be read ({error.strerror}); allow reading it, or remove it")


def walk_folders(root: Path, fail: Callable[[OSError], None] = _refuse) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walks the folders below `root` in order, without hidden ones; follows each link once.

    Args:
      root: first folder.
      fail: called with the error of a folder that cannot be read, whose files will be missing.

    Yields:
      Folder, names of its folders, names of its files.

    Raises:
      ConfigError: a folder cannot be read, unless `fail` is given.
    """
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, onerror=fail, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), inner, sorted(name for name in names if not name.startswith("."))
