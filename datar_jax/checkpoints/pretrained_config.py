"""Settings that a fine-tuning run takes from the model that it starts from. Imports no jax."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from datar_jax.checkpoints.model_info import OFFICIAL, ModelError, find_model_info, read_model_info
from datar_jax.config import Config, ConfigError
from datar_jax.config.loader import from_stored


def base_sections(source: str, workdir: Path | None = None) -> dict[str, Any]:
    """Returns the sections `audio` and `model` of a pretrained model; the number of classes is left to the data.

    Args:
      source: a work directory, a checkpoint, an export, or a file of official DAT weights (`init.from`).
      workdir: of the run; a run that has started keeps its sizes, should the pretrained model be gone.

    Raises:
      ConfigError: the model cannot be read.
    """
    try:
        if Path(source).suffix in OFFICIAL and Path(source).is_file():
            from datar_jax.checkpoints.dat_weights import read_official

            return {"model": msgspec.to_builtins(read_official(source).config)}
        config = read_model_info(find_model_info(source)).config
    except ModelError as error:
        started = _started_config(workdir / "config.json") if workdir else None
        if not started:
            raise ConfigError(f"init.from={source!r}: {error}") from None
        config = started
    model = {**msgspec.to_builtins(config.model), "num_classes": 0}
    return {"audio": msgspec.to_builtins(config.audio), "model": model}


def _started_config(path: Path) -> Config | None:
    """The configuration of a fine-tuning run that has started; None without one."""
    try:
        config = from_stored(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
    return config if config.init.source else None
