"""Files of weights that cost far more than their size, or are none: each writes one file into a folder."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Maker = Callable[[Path], Path]


def npz(path: Path, *, header: bytes | None = None, body: bytes = b"", name: str = "a.npy", method: int = 0) -> Path:
    """A .npz of one array, whose header may be anything."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (len(body) // 4,)})
    text = head.getvalue() if header is None else b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, text + body)
    return path


def pth(path: Path, program: bytes, name: str = "archive/data.pkl") -> Path:
    """A .pth whose pickle is a program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"\x80\x02" + program + b".")
    return path


def bomb(path: Path) -> Path:
    """A thousand zeros for each byte."""
    return npz(path, body=bytes(64 << 20), method=zipfile.ZIP_DEFLATED)


def hidden_bomb(path: Path) -> Path:
    """The same, and the entry says that it has a few bytes."""
    return _of_size(bomb(path), 1000)


def ends_early(path: Path) -> Path:
    """An entry that says that it has a thousand bytes more than its stream."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (251,), }\n"
    npz(path, header=header, body=bytes(4), method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        size = archive.infolist()[0].file_size
    return _of_size(path, size + 1000)


def _of_size(path: Path, size: int) -> Path:
    """An archive whose entry says that it has another size, in both places."""
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.find(signature) + at
        content[start : start + 4] = struct.pack("<I", size)
    path.write_bytes(bytes(content))
    return path


def overlapping(path: Path) -> Path:
    """Many entries of one piece of the file."""
    npz(path, body=bytes(100_000))
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry = content[start : content.index(b"PK\x05\x06")]
    entries = b"".join(entry.replace(b"a.npy", b"%c.npy" % (33 + i)) for i in range(9))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, len(entries), start, 0)
    path.write_bytes(content[:start] + entries + end)
    return path


def broken_stream(path: Path) -> Path:
    """A compressed entry with bytes of no stream."""
    npz(path, body=np.random.default_rng(0).bytes(1000), method=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(bytes(content))
    return path


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]], extra: bytes = b"") -> Path:
    """A safetensors file of zeros: dtype, shape and bytes of each tensor."""
    head, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode() + extra
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


_ONE = b"J\x01\x00\x00\x00"
_COLLIDING = [(i * ((1 << 61) - 1)).to_bytes(16, "little") for i in range(1, 180_000)]
ARCHIVES: dict[str, Maker] = {
    "bomb": lambda at: bomb(at / "a.npz"),
    "hidden bomb": lambda at: hidden_bomb(at / "a.npz"),
    "ends early": lambda at: ends_early(at / "a.npz"),
    "overlapping": lambda at: overlapping(at / "a.npz"),
    "broken stream": lambda at: broken_stream(at / "a.npz"),
    "bzip2": lambda at: npz(at / "a.npz", body=bytes(1000), method=zipfile.ZIP_BZIP2),
    "shape without end": lambda at: npz(
        at / "a.npz", header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"
    ),
    "negative shape": lambda at: npz(
        at / "a.npz", header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n"
    ),
    "long shape": lambda at: npz(
        at / "a.npz", header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 3000 + b"1), }\n"
    ),
    "number without end": lambda at: npz(
        at / "a.npz", header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 9000 + b",), }\n"
    ),
    "token": lambda at: npz(at / "a.npz", header=b"{'descr': '<f4', 'shape': (\n"),
    "nested header": lambda at: npz(at / "a.npz", header=b"(" * 9000),
    "unknown type": lambda at: npz(
        at / "a.npz", header=b"{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }\n", body=b"aaa"
    ),
    "objects": lambda at: npz(
        at / "a.npz", header=b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", body=b"cos\nsystem\n."
    ),
    "no header": lambda at: npz(at / "a.npz", header=b""),
    "name with escapes": lambda at: npz(at / "a.npz", body=bytes(8), name="\x1b[31m\nred.npy"),
    "long name": lambda at: npz(at / "a.npz", body=bytes(8), name="a." * 20_000 + ".npy"),
    "equal hashes": lambda at: pth(at / "a.pth", b"}(" + b"".join(b"\x8a\x10" + x + _ONE for x in _COLLIDING) + b"u"),
    "equal hashes of memos": lambda at: pth(
        at / "a.pth", b"]" + b"".join(b"p%d\n" % (i * ((1 << 61) - 1)) for i in range(150_000))
    ),
    "arguments without end": lambda at: pth(
        at / "a.pth", b"(" + b"N" * 245_000 + b"tq\x000ccollections\nOrderedDict\nq\x01" + b"0h\x01h\x00R" * 63_000
    ),
    "instructions without end": lambda at: pth(at / "a.pth", b"]" * 3_900_000),
    "digits without end": lambda at: pth(at / "a.pth", b"L" + b"9" * 3_000_000 + b"L\n"),
    "pickle cut": lambda at: pth(at / "a.pth", b"\x8a"),
    "text of no encoding": lambda at: pth(at / "a.pth", b"X\x02\x00\x00\x00\xff\xfe"),
}
SAFETENSORS: dict[str, Maker] = {
    "a million dots": lambda at: safetensors(at / "a", {"a" + ".a" * 500_000: ("F32", [1], 4)}),
    "slash": lambda at: safetensors(at / "a", {"a/b": ("F32", [1], 4)}),
    "empty part": lambda at: safetensors(at / "a", {"a..b": ("F32", [1], 4)}),
    "no name": lambda at: safetensors(at / "a", {"": ("F32", [1], 4)}),
    "escapes": lambda at: safetensors(at / "a", {"\x1b[31m\n": ("F32", [1], 4)}),
    "shape without end": lambda at: safetensors(at / "a", {"a": ("F32", [0, (1 << 63) - 1], 0)}),
    "many axes": lambda at: safetensors(at / "a", {"a": ("F32", [1] * 100, 4)}),
    "unknown type": lambda at: safetensors(at / "a", {"a": ("F4", [1], 4)}),
    "of another size": lambda at: safetensors(at / "a", {"a": ("F32", [2], 4)}),
    "trailing text": lambda at: safetensors(at / "a", {"a": ("F32", [1], 4)}, b"{}"),
}
