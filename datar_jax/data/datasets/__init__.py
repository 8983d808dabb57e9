"""Published data sets by name, one file each."""

from __future__ import annotations

from datar_jax.data.datasets import (
    audioset,
    epic_kitchens,
    epic_sounds,
    esc50,
    fsd50k,
    kinetics_sounds,
    speech_commands,
    vggsound,
)
from datar_jax.data.datasets.base import DatasetSpec

CORPORA: dict[str, DatasetSpec] = {
    "audioset": audioset.CORPUS,
    "epic_kitchens": epic_kitchens.CORPUS,
    "epic_sounds": epic_sounds.CORPUS,
    "esc50": esc50.CORPUS,
    "fsd50k": fsd50k.CORPUS,
    "kinetics_sounds": kinetics_sounds.CORPUS,
    "speech_commands": speech_commands.CORPUS,
    "vggsound": vggsound.CORPUS,
}
