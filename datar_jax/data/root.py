"""The folder of a data set."""

from __future__ import annotations

from pathlib import Path

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.prepared import CARD


def data_root(config: DataConfig, base: Path | None = None) -> Path:
    """The folder of a data set, which must be there; of prepared data, which may lie in a bucket, only its name.

    Raises:
      ConfigError: no folder is given, it is not there, or it holds data of another kind.
    """
    root = (base or Path()) / Path(config.root).expanduser()
    if not config.root:
        raise ConfigError("data.root='': give the folder that holds the data set")
    if config.kind == "prepared":
        return root
    if not root.is_dir():
        raise ConfigError(f"data.root={config.root!r}: no such folder ({root.resolve()}); give one that exists")
    if (root / CARD).is_file():
        raise ConfigError(f"data.kind={config.kind!r}: {root} holds prepared data; give data.kind='prepared'")
    return root
