"""Keeps compiled programs on disk between starts of the program."""

from __future__ import annotations

import os
import zlib
from pathlib import Path


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
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(
        there, os.W_OK
    ):  # the folder is not created yet, so that a configuration error leaves nothing behind
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
