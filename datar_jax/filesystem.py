"""Files on this machine or in a bucket, by path or URL, through fsspec.

A path is what the operating system calls so; a URL has a scheme (`gs://`, `s3://`, `https://`, `memory://`), and what
fsspec needs for it (gcsfs, s3fs, aiohttp) is installed by whoever uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import fsspec

from datar_jax.config import ConfigError


@dataclass(frozen=True)
class Place:
    """A file or a folder somewhere."""

    url: str  # as a person wrote it
    path: str  # as its file system calls it
    system: Any  # fsspec's; it pickles

    @property
    def local(self) -> Path | None:
        """The path, where it lies on this machine."""
        return Path(self.path) if "file" in _protocols(self.system) else None

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.url.rstrip('/')}/{name}", f"{self.path.rstrip('/')}/{name}", self.system)

    def is_folder(self) -> bool:
        """Whether there is a folder of that name; in a bucket, whether a name begins with it."""
        return bool(self.system.isdir(self.path))

    def size(self) -> int:
        """Bytes of the file; -1 where there is none."""
        try:
            return int(self.system.info(self.path)["size"])
        except FileNotFoundError:
            return -1

    def read(self) -> bytes:
        """The content of the file; raises FileNotFoundError."""
        return bytes(self.system.cat_file(self.path))

    def write(self, content: bytes) -> None:
        """Writes the file, whole or not at all; its folder is made."""
        if self.local is None:
            self.system.pipe_file(self.path, content)
            return
        self.local.parent.mkdir(parents=True, exist_ok=True)
        partial = self.local.with_name(f".{self.local.name}.partial")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.local)

    def take(self, file: Path) -> None:
        """Moves a finished file of this machine here, whole or not at all."""
        if self.local is None:
            self.system.put_file(str(file), self.path)
            file.unlink()
        else:
            file.replace(self.local)

    def give(self, file: Path) -> None:
        """Copies this file to a path of this machine, whole or not at all."""
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:  # processes may meet here
            partial = Path(folder, file.name)
            self.system.get_file(self.path, str(partial))
            partial.replace(file)

    def remove(self) -> None:
        """Takes the file away, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path)

    @contextlib.contextmanager
    def here(self) -> Iterator[Path]:
        """The file as a path of this machine, copied for as long as the block lasts where it lies elsewhere."""
        if self.local is not None:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, PurePosixPath(self.path).name)
            self.system.get_file(self.path, str(copy))
            yield copy

    def files(self) -> Iterator[tuple[str, str]]:
        """Names of all files below this folder, relative and with forward slashes, and what changes when one does.

        Raises:
          ConfigError: a folder cannot be read: its files would be missing.
        """
        if self.local is not None:
            for folder, _, names in walk_folders(self.local):
                for name in names:
                    below = (folder / name).relative_to(self.local).as_posix()
                    try:
                        status = (folder / name).stat()
                    except FileNotFoundError:  # a link to nothing
                        continue
                    except OSError as error:  # whoever opens it is told again
                        yield below, str(error.strerror)
                    else:
                        yield below, f"{status.st_size} {status.st_mtime_ns}"
            return
        for path, about in sorted(self.system.find(self.path, detail=True).items()):
            name = path[len(self.path.rstrip("/")) :].strip("/")
            if not any(part.startswith(".") for part in name.split("/")):
                changed = (about.get(key) for key in ("etag", "ETag", "updated", "LastModified", "mtime", "created"))
                yield name, f"{about['size']} {next(filter(None, changed), '')}"


def place(url: str, field: str) -> Place:
    """The file or folder of a path or URL.

    Raises:
      ConfigError: nothing was given, a scheme that is not known, or one whose package is not installed.
    """
    if not url:  # fsspec would take it for the current folder
        raise ConfigError(f"{field}='': give a folder or a URL; the current folder is .")
    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{field}={url!r}: {error}") from None
    return Place(url, path, system)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(f"{error.filename!r}: cannot be read ({error.strerror}); mend that, or take it away")


def walk_folders(root: Path, fail: Callable[[OSError], None] = _refuse) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders below `root`, the folders and the files in each, in order; hidden ones left out, links entered once.

    Args:
      root: where to begin.
      fail: told of a folder that cannot be read, whose files will be missing.

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


def printable(name: str) -> str:
    """A name on one line: control characters and what is no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # or a machine that goes down leaves an empty file under the name
    partial.replace(path)
