"""ESC-50: fifty classes, five official folds.

Read from its own folder, or, once it was prepared by name, with --config.data.kind=prepared: the same clips and folds.
The settings are those of configs/esc10.py and ours; none are from a publication.
"""

import msgspec

from configs.esc10 import get_config as esc10_config
from datar_jax.config import Config


def get_config() -> Config:
    base = esc10_config()
    return msgspec.structs.replace(base, data=msgspec.structs.replace(base.data, subset=""))
