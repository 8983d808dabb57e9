"""ESC-50: fifty classes, five official folds."""

import msgspec

from configs.esc10 import get_config as esc10_config
from datar_jax.config import Config


def get_config() -> Config:
    base = esc10_config()
    return msgspec.structs.replace(base, data=msgspec.structs.replace(base.data, subset=""))
