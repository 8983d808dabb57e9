"""Flax modules, from layers and mixers to DATAR, and their cost."""

from datar_jax.models.datar import DATAR, create_model
from datar_jax.models.flops import count_parameters, macs, macs_per_clip
from datar_jax.models.mixers import MIXERS
from datar_jax.models.spec import ModelSpec

__all__ = ["DATAR", "MIXERS", "ModelSpec", "count_parameters", "create_model", "macs", "macs_per_clip"]
