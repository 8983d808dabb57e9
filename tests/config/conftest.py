"""A configuration file for tests to type over."""

from pathlib import Path

import pytest


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file that gives the default configuration."""
    path = tmp_path / "plain.py"
    path.write_text("from datar_jax.config import Config\n\n\ndef get_config():\n    return Config()\n")
    return path
