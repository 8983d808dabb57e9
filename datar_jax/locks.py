"""Locks of files and folders with one writer (flock), and who holds them; none where a file system has no locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from datar_jax.escaping import printable


class LockHeld(BlockingIOError):
    """Another process holds a lock; `strerror` names the process and its host, `filename` the folder of the lock."""


@contextlib.contextmanager
def exclusive(lock: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a lock file for the block, on file systems that have locks (flock); then removes it.

    The lock ends with the process that holds it, however that ends; the file that a killed one leaves is no lock.

    Args:
      lock: the file; its folder must exist.
      wait: waits for another holder, and is called once with a line that names it; otherwise the lock is refused.

    Raises:
      LockHeld: another process holds it.
    """
    while True:
        try:
            file = locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = ""
            with contextlib.suppress(OSError):  # released since
                holder = printable(lock.read_text(encoding="utf-8", errors="replace")[:200])
            what = f"another process{f' ({holder})' if holder else ''} is writing there"
        if not wait:
            raise LockHeld(errno.EAGAIN, what, str(lock.parent))
        wait(f"{lock.parent}: {what}; waiting for it")
        wait = _silent
        time.sleep(0.2)
    with file:
        try:
            file.truncate(0)  # of one that was killed
            file.write(f"{os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            yield
        finally:
            lock.unlink(missing_ok=True)  # before it is released, so that the next holder sees that it was removed


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Holds the lock on a folder for its only writer; makes the folder, and removes it if it stays empty.

    Readers take no lock. The lock is the file `.lock` in the folder.

    Raises:
      LockHeld: another process writes there.
      OSError: the folder cannot be written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock"):
            yield
    finally:
        with contextlib.suppress(OSError):  # it holds something
            for each in made:
                each.rmdir()


def _silent(line: str) -> None:
    del line


def locked(path: Path, how: int) -> BinaryIO:
    """A new or existing file, open for writing, with the lock on it.

    Raises:
      BlockingIOError: another process holds it, and `how` does not wait.
      OSError: it cannot be opened, or is a link, which is not followed: what it leads to would be written.
    """
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(errno.ELOOP, f"{path.name} is a link; remove it", str(path)) from None
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # another process removed it before it was locked
