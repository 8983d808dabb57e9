"""The names that `datar_jax` gives stay the same, whatever has been imported before."""

import subprocess
import sys
from pathlib import Path

import pytest

import datar_jax

PROGRAM = """
import datar_jax
first = {name: getattr(datar_jax, name) for name in datar_jax.__all__}
import datar_jax.export.exporter, datar_jax.training.trainer
changed = [name for name in first if getattr(datar_jax, name) is not first[name]]
assert not changed, changed
"""


def test_a_public_name_means_one_thing():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert run.returncode == 0, run.stderr


def test_export_is_called_through_its_package():
    assert callable(datar_jax.export.export)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = datar_jax.missing
