"""Front end and model settings of the model that a run starts from (`init.from`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from datar_jax.checkpoints.model_info import OFFICIAL, ModelError, find_model_info, read_model_info
from datar_jax.config import Config, ConfigError
from datar_jax.config.loader import read_stored


def pretrained_sections(source: str, workdir: Path | None = None) -> dict[str, Any]:
    """Sections `audio` and `model` of a pretrained model, as plain values; the number of classes is left to the data.

    Args:
      source: a work directory, a checkpoint, an export, or a file of official DAT weights.
      workdir: of the run. A run that has started reads its own configuration where `source` is gone.

    Raises:
      ConfigError: there is no such model.
    """
    try:
        if Path(source).suffix in OFFICIAL and Path(source).is_file():
            from datar_jax.checkpoints.dat_weights import read_official

            return {"model": msgspec.to_builtins(read_official(source).config)}
        config = read_model_info(find_model_info(source)).config
    except ModelError as error:
        own = _own_config(workdir / "config.json") if workdir else None
        if not own:
            raise ConfigError(f"init.from={source!r}: {error}") from None
        config = own
    model = {**msgspec.to_builtins(config.model), "num_classes": 0}
    return {"audio": msgspec.to_builtins(config.audio), "model": model}


def _own_config(path: Path) -> Config | None:
    """The configuration of a fine-tuning run that has started, or None."""
    try:
        config = read_stored(path)
    except ConfigError:
        return None
    return config if config.init.source else None
