"""Reads configurations that earlier versions stored: fields that were renamed since."""

from __future__ import annotations

from typing import Any

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


def upgrade(tree: Any) -> Any:
    """The plain values of a stored `Config` under today's field names; what is no such tree is returned as it is."""
    if not isinstance(tree, dict):
        return tree
    return {section: upgrade_section(section, fields) for section, fields in tree.items()}


def upgrade_section(section: str, fields: Any) -> Any:
    """One section of `Config`, such as `audio`, under today's field names."""
    names = RENAMED.get(section, {})
    return {names.get(name, name): value for name, value in fields.items()} if isinstance(fields, dict) else fields
