"""Your own sounds, listed in a manifest (columns path, label; optionally split or fold, start, end)."""

import msgspec

from configs.folder import get_config as folder_config
from datar_jax.config import Config, DataConfig


def get_config() -> Config:
    return msgspec.structs.replace(folder_config(), data=DataConfig(kind="csv"))
