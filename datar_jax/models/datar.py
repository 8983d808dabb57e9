"""DATAR: a pyramid transformer over log-mel spectrograms with deformable attention (arXiv 2312.16228).

The paper gives the pyramid, the offset generator, bilinear sampling of keys and values, and a learnable input adaptor;
sizes, block order and the adaptor's form are this project's (see docs/concepts/model.md).

Legend of shapes: B batch, F mel bins / frequency rows, T frames / time columns, C channels, H heads, D head width,
G offset groups, N queries, K keys (sampled points), S classes. Maps are `(B, F, T, C)`; coordinates `(freq, time)`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from datar_jax.config import ModelConfig
from datar_jax.config.mixers import LETTERS
from datar_jax.models.adaptor import InputAdaptor
from datar_jax.models.layers import Dense, DepthwiseConv, DropPath, LayerNorm, Mlp
from datar_jax.models.mixers import MIXERS, MixerSite
from datar_jax.models.stem import Downsample, Stem
from datar_jax.ops.masking import columns, mask_columns
from datar_jax.ops.residual import residual_add
from datar_jax.ops.sampling import Method


class Block(nn.Module):
    """One letter of a stage: local perception (optional), mixer and MLP, each a residual."""

    config: ModelConfig
    letter: str
    stage: int
    size: tuple[int, int]
    drop_path: float
    train: bool
    dtype: Any = jnp.float32
    sampler: Method = "auto"

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        config, x = self.config, x_BxFxTxC
        if config.local_perception:
            x = x + DepthwiseConv(dtype=self.dtype, name="local")(mask_columns(x, valid_BxT)).astype(x.dtype)
        h = LayerNorm(self.dtype, name="norm_mixer")(x)
        if config.adaptor_at in ("block", "both") and config.adaptor != "none" and LETTERS[self.letter].input_adaptor:
            h = InputAdaptor(config.adaptor, self.size, self.dtype, name="adaptor")(h, valid_BxT)
        site = MixerSite(self.letter, self.stage, self.size, config.heads[self.stage], self.dtype, self.sampler)
        mixer = MIXERS[self.letter].from_settings(config.mixer(self.letter), site, name="mixer")
        x = residual_add(x, DropPath(self.drop_path, self.train, name="drop_mixer")(mixer(h, valid_BxT)))
        h = LayerNorm(self.dtype, name="norm_mlp")(x)
        h = Mlp(config.mlp_ratio, config.mlp == "conv", self.dtype, name="mlp")(h, valid_BxT)
        return residual_add(x, DropPath(self.drop_path, self.train, name="drop_mlp")(h))


class DATAR(nn.Module):
    """Spectrogram to class logits.

    Attributes:
      config: sizes and settings.
      classes: width of the head.
      mels: mel bins of the spectrograms.
      frames: length that position tables and learned signals are made for; clips of any length may be given.
      train: stochastic depth and dropout on, from the random stream `dropout`.
      dtype: of the matrix products; the residual stream, norms, softmax and logits stay float32 or wider.
      sampler: formulation of bilinear sampling; all give the same numbers, `auto` is the fastest of each backend.
    """

    config: ModelConfig
    classes: int
    mels: int
    frames: int
    train: bool = False
    dtype: Any = jnp.float32
    sampler: Method = "auto"

    @nn.compact
    def __call__(self, mel_BxFxT: Array, frames_B: Array | None = None) -> tuple[Array, dict[str, Any]]:
        """Scores clips.

        Args:
          mel_BxFxT: normalized spectrograms, float; a fourth axis may hold channels.
          frames_B: frames of each clip that are sound (int32). The rest is padding, whose content changes nothing. Its
            length changes nothing either if the sampling strides divide the map, offsets are bounded, and a shifted
            window has more than one window to shift over. None means all.

        Returns:
          Logits `(B, S)` and named intermediates: `features` `(B, C)`, the pooled vector before the head; `columns`
          `(B, T, C)`, the vector of each column of the last map, whose mean over the sound `features` is; `stages`, the
          map after each stage.

        Raises:
          ValueError: the spectrogram has another number of mel bins than the model was made for.
        """
        config = self.config
        if mel_BxFxT.shape[1] != self.mels:
            raise ValueError(f"the model reads {self.mels} mel bins, the spectrogram has {mel_BxFxT.shape[1]}")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = (mel_BxFxT[..., None] if mel_BxFxT.ndim == 3 else mel_BxFxT).astype(wide)
        x = mask_columns(x, columns(frames_B, x.shape[2], 0))
        if config.adaptor != "none" and config.adaptor_at in ("spectrogram", "both"):
            adapt = InputAdaptor(config.adaptor, (self.mels, self.frames), self.dtype, name="adaptor")
            x = mask_columns(adapt(x, columns(frames_B, x.shape[2], 0)), columns(frames_B, x.shape[2], 0))
        x = Stem(config.dims[0], config.stem, self.dtype, name="stem")(x, frames_B).astype(wide)

        block = nn.remat(Block) if config.remat else Block
        rates = iter(np.linspace(0, config.drop_path, sum(map(len, config.spec))).tolist())
        stages = []
        for i, (letters, size) in enumerate(zip(config.spec, config.maps(self.mels, self.frames))):
            if i:
                x = mask_columns(x, columns(frames_B, x.shape[2], i + 1))
                x = Downsample(config.dims[i], config.stem, self.dtype, name=f"down_{i}")(x).astype(wide)
            valid_BxT = columns(frames_B, x.shape[2], i + 2)
            for j, letter in enumerate(letters):
                options = (self.train, self.dtype, self.sampler)
                x = block(config, letter, i, size, next(rates), *options, name=f"stage_{i}_{j}")(x, valid_BxT)
            stages.append(x)

        x = LayerNorm(wide, name="norm")(x)
        if frames_B is None:
            pooled_BxC = x.mean((1, 2))
        else:
            valid_BxT = columns(frames_B, x.shape[2], len(config.dims) + 1)
            count_B = jnp.maximum(valid_BxT.sum(1), 1)  # type: ignore[union-attr]
            x = mask_columns(x, valid_BxT)
            pooled_BxC = x.mean(1).sum(1) / count_B[:, None]
        features_BxC = nn.Dropout(config.dropout, deterministic=not self.train, name="dropout")(pooled_BxC)
        logits_BxS = Dense(self.classes, wide, name="head")(features_BxC)
        return logits_BxS, {"features": pooled_BxC, "columns": x.mean(1), "stages": stages}


def create_model(
    config: ModelConfig, classes: int, mels: int, frames: int, *, train: bool = False, sampler: Method = "auto"
) -> DATAR:
    """Builds the network of a configuration, with products in its dtype; the arguments are those of `DATAR`."""
    return DATAR(config, classes, mels, frames, train, jnp.dtype(config.dtype).type, sampler)
