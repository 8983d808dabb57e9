"""Token mixers, one per file, and the letter of `model.spec` that each is chosen by."""

from __future__ import annotations

from datar_jax.models.mixers.base import Mixer, MixerSite, MixerType
from datar_jax.models.mixers.deformable import DeformableAttention
from datar_jax.models.mixers.neighborhood import NeighborhoodAttention
from datar_jax.models.mixers.window import WindowAttention

MIXERS: dict[str, MixerType] = {
    "L": WindowAttention,
    "S": WindowAttention,
    "N": NeighborhoodAttention,
    "D": DeformableAttention,
}

__all__ = ["MIXERS", "DeformableAttention", "Mixer", "MixerSite", "NeighborhoodAttention", "WindowAttention"]
