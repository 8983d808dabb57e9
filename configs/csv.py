"""Your own sounds, listed in a manifest (columns path, label; optionally split or fold, start, end)."""

import msgspec

from datar_jax.config import Config, DataConfig
from datar_jax.config.loader import load_config


def get_config() -> Config:
    return msgspec.structs.replace(load_config("folder"), data=DataConfig(kind="csv"))
