"""Which device holds what: a mesh of (data, model) and an ordered table of rules, outside the model."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from datar_jax.config import ConfigError

# First match wins; paths are joined by "/". Every leaf of the train state must be covered.
RULES: tuple[tuple[str, P], ...] = (
    (r"mlp/up/kernel$", P(None, "model")),
    (r"mlp/conv/kernel$", P(None, None, None, "model")),
    (r"mlp/(up|conv)/bias$", P("model")),
    (r"mlp/down/kernel$", P("model", None)),
    (r"(kernel|bias|scale|table|signal|count|step|skipped|statistics)$", P()),
)


def make_mesh(model_devices: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices: axis `data` shares the batch, axis `model` the wide layers.

    Raises:
      ConfigError: the model axis does not divide the devices.
    """
    devices = devices or jax.devices()
    if len(devices) % model_devices:
        raise ConfigError(
            f"train.model_devices={model_devices}: does not divide the {len(devices)} devices; give a divisor of it"
        )
    shape = (len(devices) // model_devices, model_devices)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples along the data axis."""
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays (or of their shapes) by `RULES`.

    Raises:
      KeyError: a leaf that no rule covers.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
        for pattern, spec in RULES:
            if re.search(pattern, name):
                return NamedSharding(mesh, spec)
        raise KeyError(f"no sharding rule covers {name} {leaf.shape}; add one to datar_jax/sharding.py")

    return jax.tree_util.tree_map_with_path(place, tree)
