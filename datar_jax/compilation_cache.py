"""Keeps compiled programs on disk between starts of the program."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path


def compiling(spec: Sequence[str], train: bool = False) -> str:
    """What a person reads while a model is compiled: about the seconds that one CPU core takes (docs/benchmarks.md).

    Args:
      spec: the blocks of each stage.
      train: whether it is the train step.
    """
    blocks = len("".join(spec))
    seconds = 25 + 4 * blocks if train else 5 + blocks // 3
    return f"compiling (about {seconds} s the first time)"


def keep_compiled(folder: Path | None = None) -> None:
    """Turns on jax's persistent compilation cache, unless JAX_COMPILATION_CACHE_DIR has already.

    Args:
      folder: of the cache; None means the user's cache folder.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datar_jax"
    except RuntimeError:  # no home folder: every start compiles
        return
    # The folder is not created yet, so that a configuration error leaves nothing behind.
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(there, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # jax neither reads nor replaces a truncated file.
    for program in folder.glob("*-cache"):
        try:
            content = program.read_bytes()
            if content[:1] in (b"", b"\x78"):  # zlib; newer Pythons use another compression
                zlib.decompress(content)
        except zlib.error:
            program.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removed it
            continue
