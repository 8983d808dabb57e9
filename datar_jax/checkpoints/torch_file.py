"""Reads weights from PyTorch `.pth` and numpy `.npz` files without executing anything in them.

A `.pth` is a zip archive of one pickle, which describes tensors, and of the raw numbers of each storage.
`torch_pickle` parses the pickle; this module reads the numbers and checks that each tensor stays in its storage.
"""

from __future__ import annotations

import math
from pathlib import Path
from zipfile import ZIP_STORED

import numpy as np

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.torch_pickle import STORAGES, Storage, Tensor, name_of, parse_pickle
from datar_jax.checkpoints.weights_archive import MAX_NAME, WeightsArchive, open_archive
from datar_jax.foreign_files import open_regular

MAX_PICKLE_BYTES = 4 << 20  # a checkpoint of a thousand tensors with optimizer moments needs less than 1 MiB
WEIGHT_KEYS = ("model", "state_dict")  # keys under which a checkpoint may hold its weights


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Reads the named arrays of a weights file.

    Args:
      path: a `.pth` as `torch.save` writes it since PyTorch 1.6, which holds a dict of tensors, or one under `model` or
        `state_dict`; or a `.npz` of arrays by name, whose names may begin with `model/`, `model.`, `state_dict/` or
        `state_dict.`. The type is detected from the content. A prefix `module.` that all names share is removed.

    Returns:
      Arrays by name, read-only, dtypes as stored. Everything in a `.pth` but tensors is ignored.

    Raises:
      ModelError: another kind of file, or a damaged one.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            first = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; give a .pth or .npz file") from None
    if first != b"PK\x03\x04":
        old = first[:2] == b"\x80\x02"
        what = "a .pth of PyTorch before 1.6" if old else "neither a .pth (zip) nor a .npz file"
        raise ModelError(
            f"{path}: {what}; load it where you trust it and save it again, by torch.save(...) of PyTorch 1.6 or newer "
            "or by numpy.savez(path, **{name: tensor.numpy()})"
        )
    with open_archive(path) as archive:
        pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) > 1:
            raise ModelError(f"{path}: has {len(pickles)} files data.pkl; not a file that torch.save wrote")
        arrays = _TorchFile(archive, pickles[0].removesuffix("data.pkl")).arrays() if pickles else _read_npz(archive)
    if not arrays:
        raise ModelError(f"{path}: holds no named arrays; give a state_dict")
    if bad := [name for name in arrays if len(name) > MAX_NAME or not name.isprintable()]:
        raise ModelError(f"{path}: a tensor has the name {bad[0][:MAX_NAME]!r}; not a file of weights")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    return arrays


def _read_npz(archive: WeightsArchive) -> dict[str, np.ndarray]:
    if not all(name.endswith(".npy") for name in archive.members):
        raise ModelError(f"{archive.path}: a zip archive, but neither of torch.save nor of numpy.savez")
    names = [name.removesuffix(".npy") for name in archive.members]
    prefixes = (f"{name}{mark}" for name in WEIGHT_KEYS for mark in "/.")
    prefix = next((each for each in prefixes if any(name.startswith(each) for name in names)), "")
    chosen = [name for name in names if name.startswith(prefix)]
    return {name.removeprefix(prefix): archive.read_npy(f"{name}.npy") for name in chosen}


class _TorchFile:
    """An open `.pth` file."""

    def __init__(self, archive: WeightsArchive, root: str) -> None:
        self.path, self.archive, self.members, self.root = archive.path, archive, archive.members, root
        self.storages: dict[str, bytearray] = {}

    def arrays(self) -> dict[str, np.ndarray]:
        if self.root + "byteorder" in self.members and self.read("byteorder") != b"little":
            raise ModelError(f"{self.path}: written in big-endian byte order; save it again on a little-endian machine")
        if self.members[self.root + "data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise ModelError(f"{self.path}: data.pkl is longer than {MAX_PICKLE_BYTES} bytes; save only the state_dict")
        pickled = bytes(self.read("data.pkl"))
        try:
            top = parse_pickle(pickled)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ModelError(f"{self.path}: its data.pkl is damaged ({str(error)[:80]!a})") from None
        for key in WEIGHT_KEYS:
            if isinstance(top, dict) and isinstance(top.get(key), dict):
                top = top[key]
                break
        if not isinstance(top, dict):
            raise ModelError(f"{self.path}: holds {name_of(top)}, not a dict of tensors; save model.state_dict()")
        found = {key: x for key, x in top.items() if isinstance(key, str) and isinstance(x, Tensor)}
        arrays = {name: self.array(name, tensor) for name, tensor in found.items()}
        if sum(x.nbytes for x in arrays.values()) > self.archive.size:
            raise ModelError(f"{self.path}: its tensors together are longer than the file; save them without aliases")
        return arrays

    def read(self, name: str) -> bytearray:
        entry = self.members.get(self.root + name)
        if entry is None:
            raise ModelError(f"{self.path}: has no {self.root}{name}; the file is incomplete")
        if entry.compress_type != ZIP_STORED:
            raise ModelError(f"{self.path}: {entry.filename} is compressed; torch.save writes uncompressed entries")
        return self.archive.read(entry.filename)

    def array(self, name: str, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, a view of its storage, which is read on first use."""
        storage, offset, shape, strides = tensor
        whole = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
        numbers = (offset, storage.numbers, *shape, *strides) if whole else ()
        if (
            not numbers
            or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers)
            or not len(shape) == len(strides) <= 8
        ):
            raise ModelError(f"{self.path}: the tensor {name!r} has a description that torch.save does not write")
        dtype = np.dtype(STORAGES[storage.kind])
        if storage.key not in self.storages:
            self.storages[storage.key] = self.read(f"data/{storage.key}")
        data = self.storages[storage.key]
        if len(data) != storage.numbers * dtype.itemsize:
            raise ModelError(
                f"{self.path}: data/{storage.key} of the tensor {name!r} has {len(data)} bytes, expected "
                f"{storage.numbers * dtype.itemsize}"
            )
        flat = np.frombuffer(data, dtype)
        reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1 if 0 not in shape else 0
        if reach > flat.size or math.prod(shape) > flat.size:
            raise ModelError(
                f"{self.path}: the tensor {name!r} {shape} with strides {strides} and offset {offset} exceeds its "
                f"{flat.size} elements"
            )
        steps = tuple(stride * flat.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
