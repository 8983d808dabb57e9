"""Reads configurations that earlier versions stored: fields that were renamed or moved since."""

from __future__ import annotations

from typing import Any

from datar_jax.config.base import ConfigError
from datar_jax.config.data import idle_fields
from datar_jax.config.mixers import LETTERS, MIXER_SETTINGS
from datar_jax.config.model import ModelConfig

# Section of `Config`, name in format 1 (versions before 0.2), name now.
RENAMED = {
    "audio": {"mels": "n_mels"},
    "data": {"balance": "balanced_sampling"},
    "model": {"classes": "num_classes"},
    "init": {"new": "allow_missing", "left": "allow_unexpected"},
    "optim": {"final_rate": "final_lr_ratio"},
    "train": {
        "accumulate": "grad_accum_steps",
        "evaluate_every": "evaluate_every_epochs",
        "checkpoint_every": "checkpoint_every_epochs",
        "log_every": "log_every_steps",
    },
}


# Fields of `model` in format 1 that moved into the settings of a mixer.
MOVED = {
    "windows": ("window.sizes", "neighborhood.sizes"),
    "groups": ("deformable.groups",),
    "strides": ("deformable.strides",),
    "kernels": ("deformable.kernels",),
    "offset_range": ("deformable.offset_range",),
    "grid": ("deformable.grid",),
    "position": ("deformable.position",),
}


def upgrade(tree: Any) -> Any:
    """The plain values of a stored `Config` under today's field names; anything else is returned unchanged.

    Raises:
      ConfigError: a field under its old and its new name, or one that no version wrote.
    """
    if not isinstance(tree, dict):
        return tree
    return {section: upgrade_section(section, fields) for section, fields in tree.items()}


def upgrade_section(section: str, fields: Any) -> Any:
    """One section of `Config`, such as `audio`, under today's field names."""
    if not isinstance(fields, dict):
        return fields
    names = RENAMED.get(section, {})
    if both := [old for old, new in names.items() if old in fields and new in fields]:
        raise ConfigError(f"{section}.{both[0]}: given also as {section}.{names[both[0]]}; keep that")
    fields = {names.get(name, name): value for name, value in fields.items()}
    if section == "data":
        fields.setdefault("validation_fraction", 0.0)  # runs before 0.2 took no validation clips from the training ones
        return {name: value for name, value in fields.items() if name not in idle_fields(fields)}
    return _upgrade_model(fields) if section == "model" else fields


def renamed(field: str) -> str:
    """What became of a field of format 1, for an error message; empty if there was no such field.

    Args:
      field: with its section (`model.windows`), or the name alone.
    """
    section, _, name = field.rpartition(".")
    if section in ("", "model"):
        if name in MOVED:
            return f"is now {' or '.join(f'model.{new}' for new in MOVED[name])}"
        if name == "sampler":
            return "was removed, each backend has its fastest formulation; leave it out"
    for each, names in RENAMED.items():
        if section in ("", each) and name in names:
            return f"is now {each}.{names[name]}"
    return ""


def _upgrade_model(fields: dict[str, Any]) -> dict[str, Any]:
    """Moves flat fields into their mixer's settings; those of mixers that no block is are dropped, they did nothing."""
    if not fields.keys() & (MOVED.keys() | {"sampler"}):
        return fields
    spec = "".join(part for part in fields.get("spec") or ModelConfig().spec if isinstance(part, str))
    if mixed := [kind.field for kind in MIXER_SETTINGS if kind.field in fields]:
        raise ConfigError(f"model.{mixed[0]}: beside fields that have moved there ({', '.join(MOVED)}); keep one")
    kept = {name: value for name, value in fields.items() if name not in MOVED and name != "sampler"}
    used = {LETTERS[letter].field for letter in spec if letter in LETTERS}
    for name, places in MOVED.items():
        for place in places if name in fields else ():
            mixer, _, field = place.partition(".")
            if mixer in used:
                kept.setdefault(mixer, {})[field] = fields[name]
    if "neighborhood" in used:  # filled small maps in the published grids
        kept.setdefault("neighborhood", {})["fill"] = fields.get("grid", "centre") != "centre"
    if kept.get("adaptor") == "none":
        kept.pop("adaptor_at", None)
    elif "deformable" not in used:
        if kept.get("adaptor_at") == "both":
            kept["adaptor_at"] = "spectrogram"
        elif kept.get("adaptor_at", "block") == "block":
            kept.pop("adaptor", None)
    return kept
