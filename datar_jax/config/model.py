"""Settings of the model, and the four published-size variants."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from datar_jax.config.base import StrictStruct, require


class ModelConfig(StrictStruct, frozen=True):
    """Every size of a DATAR. Tuples have one entry per stage; windows are (frequency, time) pairs."""

    dims: tuple[int, ...] = (32, 64, 128, 256)
    spec: tuple[str, ...] = (
        "L",
        "S",
        "LD",
        "D",
    )  # a letter per block: L window, S shifted, N neighbourhood, D deformable
    heads: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[tuple[int, int], ...] = ((8, 8), (8, 8), (8, 8), (4, 8))
    groups: tuple[int, ...] = (1, 1, 2, 4)  # offset groups of the deformable blocks
    strides: tuple[int, ...] = (8, 4, 1, 1)  # of the sampling grid
    kernels: tuple[int, ...] = (9, 7, 5, 3)  # of the offset network
    offset_range: float = 2.0  # bound: half of it in key cells; negative: unbounded, clamped to the map
    grid: Literal["centre", "dat2022", "dat2023"] = "centre"  # reference points: ours, or a published convention
    # of the deformable blocks: a bias from a table or from a small network (log_cpb), or a convolution of the queries
    position: Literal["table", "log_cpb", "dwc", "none"] = "table"
    stem: Literal["patch", "conv"] = "patch"
    mlp: Literal["plain", "conv"] = "plain"
    mlp_ratio: int = 4
    local_perception: bool = False  # a depthwise 3x3 residual before each block (DAT++)
    adaptor: Literal["none", "signal", "conv", "both"] = "conv"  # the learnable input adaptor
    adaptor_at: Literal["spectrogram", "block", "both"] = "block"
    dropout: float = 0.0  # before the head
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0
    num_classes: int = 0  # width of the head; 0 means as many as the data have
    sampler: Literal["auto", "map_coordinates", "gather", "window", "hat", "separable"] = "auto"  # see sampling.py
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrix products; softmax, norms, losses stay float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time

    def check(self) -> None:
        stages = len(self.dims)
        require(stages >= 1, "model.dims", self.dims, "give at least one stage")
        for name in ("spec", "heads", "windows", "groups", "strides", "kernels"):
            value = getattr(self, name)
            require(len(value) == stages, f"model.{name}", value, f"give {stages} entries, one per stage of model.dims")
        for i in range(stages):
            letters, dim, heads, groups = self.spec[i], self.dims[i], self.heads[i], self.groups[i]
            require(
                bool(letters) and set(letters) <= set("LSND"),
                f"model.spec[{i}]",
                letters,
                "spell each stage with the letters L (window), S (shifted window), N (neighbourhood), D (deformable)",
            )
            require(
                dim >= 1 and heads >= 1 and dim % heads == 0,
                f"model.heads[{i}]",
                heads,
                f"does not divide model.dims[{i}]={dim}; give a divisor of it",
            )
            require(min(self.windows[i]) >= 1, f"model.windows[{i}]", self.windows[i], "give a pair of positive sizes")
            require(
                "N" not in letters or all(side % 2 for side in self.windows[i]),
                f"model.windows[{i}]",
                self.windows[i],
                f"give odd sizes: model.spec[{i}]={letters!r} has a neighbourhood, and that has a middle",
            )
            if "D" in letters:
                require(
                    groups >= 1 and heads % groups == 0,
                    f"model.groups[{i}]",
                    groups,
                    f"does not divide model.heads[{i}]={heads}; give a divisor of it",
                )
                require(self.strides[i] >= 1, f"model.strides[{i}]", self.strides[i], "give 1 or more")
                require(
                    self.kernels[i] >= 1 and self.kernels[i] % 2 == 1,
                    f"model.kernels[{i}]",
                    self.kernels[i],
                    "give an odd size",
                )
        require(self.mlp_ratio >= 1, "model.mlp_ratio", self.mlp_ratio, "give 1 or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give 0 or more, less than 1")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "give 0 or more, less than 1")
        require(
            self.num_classes >= 0,
            "model.num_classes",
            self.num_classes,
            "give 0 (as the data have) or a positive number",
        )

    def maps(self, mels: int, frames: int) -> list[tuple[int, int]]:
        """Map size (frequency rows, time columns) of each stage for a spectrogram of mels x frames."""
        return [(math.ceil(mels / 2 ** (i + 2)), math.ceil(frames / 2 ** (i + 2))) for i in range(len(self.dims))]


def datar_nano() -> ModelConfig:
    """The laptop model: depths 1-1-2-1, convolutional stem and MLP, local perception."""
    return ModelConfig(
        windows=((8, 8), (8, 8), (4, 8), (2, 8)), stem="conv", mlp="conv", local_perception=True, drop_path=0.1
    )


def datar_tiny() -> ModelConfig:
    """Depths 2-2-6-2, widths 96 to 768."""
    return ModelConfig(
        dims=(96, 192, 384, 768),
        spec=("LS", "LS", "LDLDLD", "LD"),
        heads=(3, 6, 12, 24),
        groups=(1, 1, 3, 6),
        drop_path=0.2,
    )


def datar_small() -> ModelConfig:
    """As tiny, with eighteen blocks in the third stage."""
    return msgspec.structs.replace(datar_tiny(), spec=("LS", "LS", "LD" * 9, "LD"), drop_path=0.3)


def datar_base() -> ModelConfig:
    """As small, widths 128 to 1024."""
    return msgspec.structs.replace(
        datar_small(), dims=(128, 256, 512, 1024), heads=(4, 8, 16, 32), groups=(1, 1, 4, 8), drop_path=0.5
    )


MODELS = {f.__name__: f for f in (datar_nano, datar_tiny, datar_small, datar_base)}
