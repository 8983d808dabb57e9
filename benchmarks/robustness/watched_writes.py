"""Watches a folder: every open for writing, write, fsync, rename and removal of this process in it."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PARTIAL = re.compile(r"\.partial(?:/|$|-)|/\.[^/]*partial|orbax-checkpoint-tmp|/deleted/|\.lock$|/\.writing-")


APPENDED = re.compile(r"(^|/)metrics\.jsonl$|/tensorboard/|/xla/")  # read row by row; rebuilt where it is cut


State = dict[str, str]  # hash of each file by its name


def state_of(folder: Path) -> State:
    """All files that do not say that they are partial."""
    found: State = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not PARTIAL.search(f"/{name}") and not APPENDED.search(f"/{name}"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Watch:
    """Sees every place at which a command changes a folder.

    Args:
      folder: that is watched.
      at_place: called with the number and the description of a place.
    """

    def __init__(self, folder: Path, at_place: Callable[[int, str], None]) -> None:
        self.folder, self._at_place = os.path.realpath(folder), at_place
        self.places, self.renamed, self._lock = 0, set[tuple[str, str]](), threading.RLock()

    def holds(self, path: Any) -> bool:
        """Whether a path lies in the folder, or is it."""
        name = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        return name.startswith(f"{self.folder}/") or name == self.folder

    def place(self, what: str, path: Any) -> None:
        """Calls `at_place`, if the path lies in the folder."""
        if self.holds(path):
            with self._lock:
                self.places += 1
                self._at_place(self.places, f"{what} {os.path.relpath(os.fsdecode(path), self.folder)}")

    def came(self, path: Any) -> None:
        """Notes the file, or the files of the folder, that a rename brought."""
        if self.holds(path):
            with self._lock:
                name = os.path.relpath(os.fsdecode(path), self.folder)
                brought = state_of(Path(self.folder)).items()
                self.renamed |= {(each, value) for each, value in brought if f"{each}/".startswith(f"{name}/")}


_current: list[Watch] = []  # none or one: an audit hook cannot be removed


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _current:
        return
    watch = _current[0]
    if event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        ):
            watch.place("open", path)
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
        watch.place(event, arguments[0])


class _File(io.FileIO):
    """A file whose writes are places: before, in the middle and after."""

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        if not _current or self.closed:
            return super().write(whole)
        watch = _current[0]
        path = os.readlink(f"/proc/self/fd/{self.fileno()}")
        watch.place("before the write of", path)
        half = super().write(whole[: len(whole) // 2])
        watch.place("in the write of", path)
        return half + (super().write(whole[half:]) if half == len(whole) // 2 else 0)


@contextlib.contextmanager
def watched(folder: Path, at_place: Callable[[int, str], None]) -> Iterator[Watch]:
    """Watches a folder for the block."""
    kept = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
    kept_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        inside = watch.holds(f"/proc/self/fd/{file}" if isinstance(file, int) else file)
        if not set(mode) & set("wax+") or not inside or options.get("opener"):
            return kept_open(file, mode, buffering, *rest, **options)
        raw = _File(file, mode.replace("b", "").replace("t", ""), options.pop("closefd", True))
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **options)

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        watch.place("fsync of", os.readlink(f"/proc/self/fd/{number}"))
        kept["fsync"](file)

    def moved(name: str) -> Callable[..., None]:
        def move(source: Any, target: Any, **options: Any) -> None:
            kept[name](source, target, **options)
            watch.came(target)
            watch.place("after the rename to", target)

        return move

    watch = Watch(folder, at_place)
    os.fsync, os.rename, os.replace = fsync, moved("rename"), moved("replace")
    builtins.open = io.open = opened
    _current.append(watch)
    try:
        yield watch
    finally:
        _current.clear()
        builtins.open = io.open = kept_open
        os.fsync, os.rename, os.replace = kept["fsync"], kept["rename"], kept["replace"]
