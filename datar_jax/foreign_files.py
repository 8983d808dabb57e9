"""Files and names that others wrote: a name stays below its folder, only regular files are opened."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

# What looks like a slash, or is one elsewhere. NFKC, applied first, maps the wide and the small forms.
_SLASHES = str.maketrans(dict.fromkeys("\\\u2044\u2215\u2216\u29f5\u29f8\u29f9", "/"))
_DEPTH, _PART, _NAME = 32, 255, 1024  # parts of a name, bytes of each, bytes of all


class UnsafeName(ValueError):
    """A name that was read from a file and leaves the folder that it counts from; the text holds the name."""


def check_name(name: str) -> None:
    """Checks that a name which a file brings (list, card, archive, checkpoint) stays below the folder it counts from.

    Backslashes and characters that look like separators or dots count as such; alone they are allowed.

    Raises:
      UnsafeName: it is absolute, of a home or a drive, holds `..`, or cannot be the name of a file.
    """
    seen = name if name.isascii() else unicodedata.normalize("NFKC", name)
    parts = seen.translate(_SLASHES).split("/")
    if not parts[0] or parts[0][0] == "~" or parts[0][1:2] == ":" or ".." in parts:
        raise UnsafeName(f"{ascii(name)[:80]} may lead out of its folder")
    try:
        sizes = [len(part) for part in os.fsencode(name).split(b"/")]
    except UnicodeEncodeError:
        sizes = [_NAME]
    if "\0" in name or len(sizes) > _DEPTH or max(sizes) > _PART or sum(sizes) >= _NAME or {*parts} <= {"", "."}:
        raise UnsafeName(f"{ascii(name)[:80]} cannot be the name of a file")


def path_below(folder: Path, name: str) -> Path:
    """The path of a name that was read from a file, below a folder; for reading, since links are followed.

    Raises:
      UnsafeName: as `check_name`.
    """
    check_name(name)
    return folder / name


def check_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file, itself or behind a link.

    Raises:
      OSError: there is none, or it is a folder, a pipe, a socket or a device; `strerror` says which.
    """
    try:
        return _regular(os.stat(path), path)
    except ValueError:  # a null character, or what is no text
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading; never waits, as opening a pipe or a device does.

    Raises:
      OSError: as `check_regular`, or it cannot be read.
    """
    check_regular(path)  # before it is opened: opening alone may move a tape
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 (returned)
    try:
        _regular(os.fstat(file.fileno()), path)  # it may have been exchanged
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: str | Path, most: int) -> bytes:
    """Returns the content of a regular file of at most `most` bytes.

    Raises:
      OSError: as `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes, the most that such a file has", str(path))
    return content


def _regular(status: os.stat_result, path: str | Path) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or device, not a file", str(path))
    return status
