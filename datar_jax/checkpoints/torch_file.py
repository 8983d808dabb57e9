"""Weights as other programs leave them: `.pth` of PyTorch and `.npz` of numpy, read without running what they hold.

A `.pth` is a zip archive of one pickle, which describes tensors, and of the raw numbers of each storage. `pickles`
finds out what the pickle describes; here the numbers are looked up, within the bounds of their storage.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.torch_pickle import STORAGES, Storage, Tensor, interpret, name_of

LONGEST = 4 << 20  # bytes of a pickle: a checkpoint of a thousand tensors with their moments takes less than one of 4
ROOMS = ("model", "state_dict")  # where a checkpoint keeps its weights, if it is not the dict itself
DAMAGED = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError)  # what zipfile raises


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """The named arrays of a file of weights.

    Args:
      path: a `.pth` as `torch.save` writes it since PyTorch 1.6, which holds a dict of tensors, or one under `model` or
        `state_dict`; or a `.npz` of arrays by name, whose names may begin with `model/`, `model.`, `state_dict/` or
        `state_dict.`. What the file is, its content says. Of names that all begin with `module.`, that is taken off.

    Returns:
      Arrays by name, read-only, dtypes as stored. What a `.pth` holds beside tensors is left out.

    Raises:
      ModelError: what the file is instead, or where it is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; give a .pth or .npz file") from None
    if first != b"PK\x03\x04":
        old = first[:2] == b"\x80\x02"
        what = "a .pth of PyTorch before 1.6" if old else "neither a .pth (zip) nor a .npz file"
        raise ModelError(
            f"{path}: {what}; load it where you trust it and write it anew, by torch.save(...) of PyTorch 1.6 or newer "
            "or by numpy.savez(path, **{name: tensor.numpy()})"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: entry for entry in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ModelError(f"{path}: two entries of one name; this is no file that torch.save wrote")
            pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) > 1:
                raise ModelError(f"{path}: has {len(pickles)} files data.pkl; this is no file that torch.save wrote")
            if pickles:
                arrays = _Archive(path, archive, members, pickles[0].removesuffix("data.pkl")).arrays()
            else:
                arrays = _read_npz(path, members)
    except DAMAGED as error:
        raise ModelError(f"{path}: damaged ({' '.join(str(error).split())}); fetch it again") from None
    if not arrays:
        raise ModelError(f"{path}: holds no arrays by name; give a state_dict")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    return arrays


def _read_npz(path: Path, members: dict[str, zipfile.ZipInfo]) -> dict[str, np.ndarray]:
    if not all(name.endswith(".npy") for name in members):
        raise ModelError(f"{path}: a zip archive, but neither of torch.save nor of numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            whole = {name: file[name] for name in file.files}
    except (ValueError, MemoryError) as error:  # ValueError: an array of objects, too, would have to be unpickled
        raise ModelError(f"{path}: one of its arrays cannot be read ({' '.join(str(error).split())})") from None
    for room in (f"{name}{mark}" for name in ROOMS for mark in "/."):
        inside = {name.removeprefix(room): value for name, value in whole.items() if name.startswith(room)}
        if inside:
            return inside
    return whole


class _Archive:
    """A `.pth` that is open."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], root: str) -> None:
        self.path, self.archive, self.members, self.root = path, archive, members, root
        self.storages: dict[Storage, np.ndarray] = {}

    def arrays(self) -> dict[str, np.ndarray]:
        if self.root + "byteorder" in self.members and self.read("byteorder") != b"little":
            raise ModelError(f"{self.path}: written by a machine of other byte order; write it anew on a common one")
        if self.members[self.root + "data.pkl"].file_size > LONGEST:
            raise ModelError(f"{self.path}: its data.pkl is longer than {LONGEST} bytes; save the state_dict alone")
        program = self.read("data.pkl")
        try:
            top = interpret(program)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.path}: its data.pkl is damaged ({' '.join(str(error).split())[:80]})") from None
        for room in ROOMS:
            if isinstance(top, dict) and isinstance(top.get(room), dict):
                top = top[room]
                break
        if not isinstance(top, dict):
            raise ModelError(f"{self.path}: holds {name_of(top)}, no dict of tensors; save model.state_dict()")
        found = {key: x for key, x in top.items() if isinstance(key, str) and isinstance(x, Tensor)}
        arrays = {name: self.array(name, tensor) for name, tensor in found.items()}
        if sum(x.nbytes for x in arrays.values()) > self.path.stat().st_size:
            raise ModelError(f"{self.path}: its tensors together are longer than the file; save them without aliases")
        return arrays

    def read(self, name: str) -> bytes:
        entry = self.members.get(self.root + name)
        if entry is None:
            raise ModelError(f"{self.path}: has no {self.root}{name}; the file is not whole")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ModelError(f"{self.path}: {entry.filename} is compressed, which torch.save does not do")
        return self.archive.read(entry)

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """A tensor's numbers: a view of its storage, read when first seen."""
        storage, offset, shape, strides = tensor
        whole = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
        numbers = (offset, storage.numbers, *shape, *strides) if whole else ()
        if (
            not numbers
            or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers)
            or not len(shape) == len(strides) <= 8
        ):
            raise ModelError(f"{self.path}: the tensor {name!r} is described in a way that torch.save does not write")
        if storage not in self.storages:
            dtype, data = np.dtype(STORAGES[storage.kind]), self.read(f"data/{storage.key}")
            if len(data) != storage.numbers * dtype.itemsize:
                raise ModelError(
                    f"{self.path}: data/{storage.key} of the tensor {name!r} has {len(data)} bytes, and should have "
                    f"{storage.numbers * dtype.itemsize}"
                )
            self.storages[storage] = np.frombuffer(data, dtype)
        flat = self.storages[storage]
        reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1 if 0 not in shape else 0
        if reach > flat.size or math.prod(shape) > flat.size:
            raise ModelError(
                f"{self.path}: the tensor {name!r} {shape} with strides {strides} from {offset} on reaches beyond its "
                f"{flat.size} numbers"
            )
        steps = tuple(stride * flat.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
