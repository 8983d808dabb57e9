"""ESC-50: fifty classes, five official folds.

Read from its own folder, or, once it was prepared by name, with --config.data.kind=prepared: the same clips and folds.
The settings are those of configs/esc10.py and ours; none are from a publication.
"""

import msgspec

from datar_jax.config import Config
from datar_jax.config.loader import load_config


def get_config() -> Config:
    base = load_config("esc10")
    return msgspec.structs.replace(base, data=msgspec.structs.replace(base.data, subset=""))
