"""Sharding: a (data, fsdp) mesh and an ordered table of rules, outside the model.

Both axes share the batch; along `fsdp` the large parameters, their moments and their average are divided too, and are
gathered layer by layer where they are used. There is no tensor axis: it would sum activations over devices in every
block, and in a pyramid those are larger than the weights in all stages but the last (datar_base, 10 s, 16 clips on a
device, bfloat16: a map of 33, 16, 8, 4 MB against an MLP of 0.3, 1, 4, 17 MB).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from datar_jax.config import Config, ConfigError, MeshConfig


class Rule(NamedTuple):
    """Sharding of leaves whose path ends with a name and that have given axes."""

    path: str  # a regular expression; paths are joined by "/"
    axes: str
    spec: P


# First match wins. Every leaf of the train state must be covered. What is small is kept whole: gathering it would take
# longer than its memory is worth.
RULES = (
    Rule(r"mixer/(qkv|query|key|value)/kernel", "C D", P(None, "fsdp")),
    Rule(r"mixer/out/kernel", "D C", P("fsdp", None)),
    Rule(r"mlp/up/kernel", "C M", P(None, "fsdp")),
    Rule(r"mlp/down/kernel", "M C", P("fsdp", None)),
    Rule(r"(down_\d+/project|stem/project_1)/kernel", "K L C D", P(None, None, None, "fsdp")),
    Rule(r"head/kernel", "C S", P("fsdp", None)),
    Rule(r"stage_\d+_\d+/adaptor/signal", "F T C", P(None, None, "fsdp")),
    Rule(r"adaptor/signal", "F T 1", P()),
    Rule(r"stem/project(_0)?/kernel", "K L 1 C", P()),
    Rule(r"(local|conv|mixer/position)/kernel", "3 3 1 C", P()),
    Rule(r"mixer/position/kernel", "2 P", P()),
    Rule(r"mixer/position/heads", "P H", P()),
    Rule(r"offset/kernel", "K K C", P()),
    Rule(r"offset/project/kernel", "C 2", P()),
    Rule(r"mixer/table", "H R S", P()),
    Rule(r"mixer/table", "H RS", P()),
    Rule(r"(bias|scale)", "C", P()),
    Rule(r"statistics", "2", P()),
    Rule(r"(step|skipped|count)", "", P()),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes): `data` by `fsdp`.

    Raises:
      ConfigError: the axes do not make up the devices.
    """
    devices = devices or jax.devices()
    if len(devices) % config.fsdp:
        raise ConfigError(f"mesh.fsdp={config.fsdp}: does not divide the {len(devices)} devices; give a divisor of it")
    data = len(devices) // config.fsdp
    if config.data not in (-1, data):
        raise ConfigError(
            f"mesh.data={config.data}: with mesh.fsdp={config.fsdp} that is {config.data * config.fsdp} devices, and "
            f"there are {len(devices)}; give {data}, or -1"
        )
    return jax.make_mesh((data, config.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batches(config: Config, mesh: Mesh) -> None:
    """Refuses batch sizes that do not divide over the devices.

    Raises:
      ConfigError: names the setting and a size that does.
    """
    devices = mesh.size
    for field, size in (
        ("train.batch_size", config.train.batch_size // config.train.grad_accum_steps),
        ("train.eval_batch_size", config.train.eval_batch_size),
    ):
        if size % devices:
            raise ConfigError(
                f"{field}={getattr(config.train, field.split('.')[1])}: its {size} examples at a time do not divide "
                f"over {devices} devices; give a multiple of {devices * (config.train.batch_size // size or 1)}"
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batches: examples over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of values that are the same on every device."""
    return NamedSharding(mesh, P())


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays (or of their shapes) by `RULES`.

    Raises:
      KeyError: a leaf that no rule covers.
      ConfigError: an axis that `mesh.fsdp` does not divide.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
        for rule in RULES:
            if re.search(rf"(^|/){rule.path}$", name) and len(rule.axes.split()) == leaf.ndim:
                sharding = NamedSharding(mesh, rule.spec)
                _check(name, rule, leaf.shape, mesh)
                return sharding
        raise KeyError(f"no sharding rule covers {name} {leaf.shape}; add one to datar_jax/training/sharding.py")

    return jax.tree_util.tree_map_with_path(place, tree)


def _check(name: str, rule: Rule, shape: tuple[int, ...], mesh: Mesh) -> None:
    for size, axis, along in zip(shape, rule.axes.split(), rule.spec):
        if along and size % mesh.shape[along]:
            devices = f"mesh.{along}={mesh.shape[along]}"
            raise ConfigError(f"{devices}: does not divide axis {axis}={size} of {name} {shape}; give a divisor of it")
