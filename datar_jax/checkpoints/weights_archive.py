"""Zip archives of weights, `.pth` and `.npz`: what a member takes is bounded by the file before it is read.

Of a file of N bytes, members that are stored take at most N bytes together, compressed ones `MAX_RATIO` N.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.foreign_files import open_regular

MAX_RATIO = 16  # trained weights shrink by a tenth; masks and tables of small models by more
SMALL = 1 << 20  # bytes that may come of any file
MAX_NAME = 200  # characters of the name of a member or a tensor
PIECE = 1 << 20
# What numpy writes for an array of numbers; anything else would need Python's parser.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biuf]\d+)', 'fortran_order': (True|False), 'shape': \((|\d+,|\d+(?:, \d+)+),?\), \}\s*"
)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, NotImplementedError)


class WeightsArchive:
    """An open archive.

    Attributes:
      path: of the file.
      size: of the file in bytes.
      members: the entries by name.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path, self.size, self._archive = path, size, archive
        entries = archive.infolist()
        self.members = {entry.filename: entry for entry in entries}
        if len(self.members) < len(entries):
            raise ModelError(f"{path}: two entries of one name; not a file that torch.save wrote")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ModelError(f"{path}: an entry is compressed in a way that neither torch.save nor numpy uses")
            if len(entry.filename) > MAX_NAME or not entry.filename.isprintable():
                raise ModelError(f"{path}: an entry has the name {entry.filename[:MAX_NAME]!r}; not a file of weights")
            if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
                raise ModelError(f"{path}: damaged ({entry.filename} has two sizes); download it again")
        if sum(entry.compress_size for entry in entries) > size:
            raise ModelError(f"{path}: its entries together are longer than the file; they overlap")
        if (whole := sum(entry.file_size for entry in entries)) > MAX_RATIO * size + SMALL:
            raise ModelError(
                f"{path}: {size:,} bytes that would become {whole:,}, more than {MAX_RATIO} times as many; "
                "save it without compression"
            )

    def read(self, name: str) -> bytearray:
        """The content of a member."""
        entry = self.members[name]
        content, done = bytearray(entry.file_size), 0
        with self._archive.open(entry) as file:
            while piece := file.read(PIECE):  # by pieces: a stream may give more than its entry says
                content[done : done + len(piece)] = piece
                done += len(piece)
        if done != entry.file_size:
            raise ModelError(f"{self.path}: damaged ({name} ends early); download it again")
        return content

    def read_npy(self, name: str) -> np.ndarray:
        """The array of a member that numpy wrote, read-only; its header is checked before anything else is read.

        Raises:
          ModelError: not an array of numbers, or one of another size than its header says.
        """
        with self._archive.open(self.members[name]) as file:
            start = file.read(8)
            wide = start[6:7] != b"\x01"
            length = file.read(4 if wide else 2)
            text = file.read(min(int.from_bytes(length, "little"), 4096))
        header = _HEADER.fullmatch(text)
        if start[:6] != b"\x93NUMPY" or start[6:7] not in b"\x01\x02\x03" or not header:
            raise ModelError(f"{self.path}: the array {name!r} cannot be read; give arrays of numbers, without objects")
        try:
            dtype = np.dtype(header[1].decode())
        except TypeError:
            raise ModelError(f"{self.path}: the array {name!r} has numbers of the unknown type {header[1]!r}") from None
        shape = tuple(int(n) for n in header[3].split(b",") if n.strip()) if len(header[3]) < 200 else (-1,)
        begin = len(start) + len(length) + len(text)
        expected, found = math.prod(shape) * dtype.itemsize, self.members[name].file_size - begin
        if min(shape, default=0) < 0 or len(shape) > 8 or max(shape, default=0) >= 1 << 40 or expected != found:
            raise ModelError(f"{self.path}: the array {name!r} of shape {shape} has {found:,} bytes, not {expected:,}")
        flat = np.frombuffer(self.read(name), dtype, offset=begin) if expected else np.empty(0, dtype)
        flat.flags.writeable = False
        return flat.reshape(shape, order="F" if header[2] == b"True" else "C")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[WeightsArchive]:
    """Opens an archive; errors of reading it inside the block are named, too.

    Raises:
      ModelError: damaged, or larger inside than its size allows.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield WeightsArchive(path, archive, path.stat().st_size)
    except ModelError:
        raise
    except (*_DAMAGE, ValueError, OverflowError) as error:
        line = "".join(c if c.isprintable() else " " for c in str(error))[:200]
        raise ModelError(f"{path}: damaged ({line}); download it again") from None
