"""Readers of weights meet every hostile file: one line, in time and memory that grow as the file."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.pretrained import read_params
from datar_jax.checkpoints.safetensors import load_safetensors
from datar_jax.checkpoints.torch_file import read_arrays
from tests.corpus.weight_files import ARCHIVES, SAFETENSORS
from tests.hostile import irregular_files

CASES = [
    *(pytest.param(read_arrays, ARCHIVES[name], id=name) for name in ARCHIVES),
    *(pytest.param(load_safetensors, SAFETENSORS[name], id=f"safetensors-{name}") for name in SAFETENSORS),
]
ALLOWED = 64  # bytes of memory for each of the file, and 16 MB
SLOWEST = 8  # seconds of processor time for a file of at most 4 MB, while its memory is traced


@pytest.mark.parametrize(("reader", "make"), CASES)
def test_a_hostile_file_of_weights_is_one_line(
    tmp_path: Path, reader: Callable[[Path], Any], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ModelError) as error:
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < ALLOWED * path.stat().st_size + (16 << 20)
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < SLOWEST
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 1000, line


@pytest.mark.parametrize("reader", [read_arrays, load_safetensors])
def test_only_regular_files_are_read(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    with irregular_files(tmp_path) as files:
        for file in files:
            with pytest.raises(ModelError, match=str(file)):
                reader(file)


@pytest.mark.parametrize(
    "checksums",
    [
        None,
        {"kernel": "float32[16777216] 00000000"},
        {"kernel": "float32[4, 4] 00000000", "other": "float32[1000000000, 1000] 00000000"},
        {"kernel": "float32[-1000000000, 1000] 00000000", "other": "float32[1000000000, 1000] 00000000"},
    ],
)
def test_arrays_of_orbax_are_not_larger_than_their_files_may_hold(tmp_path: Path, checksums: Any) -> None:
    """What has no file is filled with zeros, and zeros take no room in a file."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "params", {"kernel": np.zeros(1 << 24, np.float32)})
    with pytest.raises(ModelError, match=r"params: cannot be read \([\d,]+ bytes that would become [\d,]+; no such"):
        read_params(tmp_path / "params", checksums)
