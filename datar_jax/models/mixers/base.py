"""What a token mixer is, and what one is built from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jax import Array

from datar_jax.ops.sampling import Method


class MixerSite(NamedTuple):
    """Where a mixer stands in a model.

    Attributes:
      letter: of the block in `model.spec`; a mixer may have more than one.
      stage: index of the stage, for settings with one entry per stage.
      size: (F, T) of the map that position tables are made for; the map at run time may be another.
      heads: attention heads.
      dtype: of the matrix products.
      method: formulation of bilinear sampling.
    """

    letter: str
    stage: int
    size: tuple[int, int]
    heads: int
    dtype: Any
    method: Method


class Mixer(Protocol):
    """A flax module that mixes the pixels of a map, `(B, F, T, C)` to `(B, F, T, C)`.

    `valid_BxT` marks the columns that are sound; what the others hold must not change the result in these. None: all.
    """

    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array: ...


class MixerType(Protocol):
    """A class of mixers."""

    def from_settings(self, settings: Any, site: MixerSite, name: str) -> Mixer:
        """Builds the mixer of one block from its settings, an instance of `LETTERS[site.letter]`."""
        ...
