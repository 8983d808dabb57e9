"""Compiled programs, kept on the disk from one start to the next."""

from __future__ import annotations

import os
import zlib
from pathlib import Path


def keep_compiled(folder: Path | None = None) -> None:
    """Lets the next start of this program skip compilation; JAX_COMPILATION_CACHE_DIR names another place.

    Args:
      folder: where; None means the user's cache.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datar_jax"
    except RuntimeError:  # a user without a home: every start compiles
        return
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(there, os.W_OK):  # nor is it made yet: a mistake in the settings leaves nothing behind
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # jax would neither read nor replace a program whose writing was cut off.
    for program in folder.glob("*-cache"):
        try:
            content = program.read_bytes()
            if content[:1] in (b"", b"\x78"):  # of zlib; newer Pythons have another compression
                zlib.decompress(content)
        except zlib.error:
            program.unlink(missing_ok=True)
        except FileNotFoundError:  # another start was faster
            continue
