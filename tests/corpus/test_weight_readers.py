"""Readers of weights meet every hostile file: one line, in memory that grows as the file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.safetensors import load_safetensors
from datar_jax.checkpoints.torch_file import read_arrays
from tests.corpus.weight_files import ARCHIVES, SAFETENSORS
from tests.hostile import irregular_files

CASES = [
    *(pytest.param(read_arrays, ARCHIVES[name], id=name) for name in ARCHIVES),
    *(pytest.param(load_safetensors, SAFETENSORS[name], id=f"safetensors-{name}") for name in SAFETENSORS),
]
ALLOWED = 64  # bytes of memory for each of the file, and 16 MB


@pytest.mark.parametrize(("reader", "make"), CASES)
def test_a_hostile_file_of_weights_is_one_line(
    tmp_path: Path, reader: Callable[[Path], Any], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as error:
            reader(path)
        assert tracemalloc.get_traced_memory()[1] < ALLOWED * path.stat().st_size + (16 << 20)
    finally:
        tracemalloc.stop()
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 1000, line


@pytest.mark.parametrize("reader", [read_arrays, load_safetensors])
def test_only_regular_files_are_read(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    with irregular_files(tmp_path) as files:
        for file in files:
            with pytest.raises(ModelError, match=str(file)):
                reader(file)
