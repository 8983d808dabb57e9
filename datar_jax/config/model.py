"""Settings of the model, and the four published-size variants."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import msgspec

from datar_jax.config.base import StrictStruct, require
from datar_jax.config.mixers import (
    LETTERS,
    MIXER_SETTINGS,
    DeformableSettings,
    MixerSettings,
    NeighborhoodSettings,
    WindowSettings,
)

MAX_BLOCKS = 64


class ModelConfig(StrictStruct, frozen=True):
    """Every size of a DATAR. Tuples have one entry per stage; a mixer's own settings are in a struct of their own."""

    largest: ClassVar[dict[str, float]] = {
        "dims": 4096,
        "spec": MAX_BLOCKS,
        "heads": 128,
        "mlp_ratio": 16,
        "num_classes": 1_000_000,
    }

    dims: tuple[int, ...] = (32, 64, 128, 256)
    spec: tuple[str, ...] = ("L", "S", "LD", "D")  # a letter per block, see config/mixers.py
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window: WindowSettings = WindowSettings()
    neighborhood: NeighborhoodSettings = NeighborhoodSettings()
    deformable: DeformableSettings = DeformableSettings()
    stem: Literal["patch", "conv"] = "patch"
    mlp: Literal["plain", "conv"] = "plain"
    mlp_ratio: int = 4
    local_perception: bool = False  # a depthwise 3x3 residual before each block (DAT++)
    adaptor: Literal["none", "signal", "conv", "both"] = "conv"  # the learnable input adaptor
    adaptor_at: Literal["spectrogram", "block", "both"] = "block"
    dropout: float = 0.0  # before the head
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0
    num_classes: int = 0  # width of the head; 0 means as many as the data have
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrix products; softmax, norms, losses stay float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time

    def check(self) -> None:
        stages = len(self.dims)
        require(stages >= 1, "model.dims", self.dims, "give at least one stage")
        for name in ("spec", "heads"):
            self._require_per_stage(f"model.{name}", getattr(self, name))
        blocks = sum(map(len, self.spec))
        require(blocks <= MAX_BLOCKS, "model.spec", self.spec, f"{blocks} blocks; give at most {MAX_BLOCKS}")
        known = ", ".join(f"{letter} ({word})" for kind in MIXER_SETTINGS for letter, word in kind.letters.items())
        for i, (letters, dim, heads) in enumerate(zip(self.spec, self.dims, self.heads)):
            known_only = bool(letters) and set(letters) <= LETTERS.keys()
            require(known_only, f"model.spec[{i}]", letters, f"spell each stage with the letters {known}")
            require(
                dim >= 1 and heads >= 1 and dim % heads == 0,
                f"model.heads[{i}]",
                heads,
                f"does not divide model.dims[{i}]={dim}; give a divisor of it",
            )
        for kind in MIXER_SETTINGS:
            self._check_mixer(kind)
        self._check_adaptor()
        require(self.mlp_ratio >= 1, "model.mlp_ratio", self.mlp_ratio, "give 1 or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give 0 or more, less than 1")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "give 0 or more, less than 1")
        require(
            self.num_classes >= 0,
            "model.num_classes",
            self.num_classes,
            "give 0 (as the data have) or a positive number",
        )

    def _require_per_stage(self, field: str, value: tuple[Any, ...]) -> None:
        stages = len(self.dims)
        require(len(value) == stages, field, value, f"give {stages} entries, one per stage of model.dims")

    def _check_mixer(self, kind: type[MixerSettings]) -> None:
        """Refuses settings of a mixer that no block is, and settings that do not suit the stages that have it."""
        settings = self.mixer(next(iter(kind.letters)))
        used = [i for i, letters in enumerate(self.spec) if set(letters) & kind.letters.keys()]
        if not used:
            for name in kind.__struct_fields__:
                value, default = getattr(settings, name), getattr(kind(), name)
                letters = " or ".join(kind.letters)
                remedy = f"has no effect, model.spec={self.spec} has no {letters} block; leave it at {default!r}"
                require(value == default, f"{kind.section()}.{name}", value, remedy)
            return
        for name in kind.per_stage:
            if getattr(settings, name) or getattr(kind(), name):  # what is empty by default may be left so
                self._require_per_stage(f"{kind.section()}.{name}", getattr(settings, name))
        for i in used:
            settings.check_stage(i, self.spec[i], self.heads[i])

    def _check_adaptor(self) -> None:
        """Refuses an input adaptor that has no place in the model, and a place without an adaptor."""
        if self.adaptor == "none":
            remedy = "has no effect with model.adaptor='none'; leave it at 'block'"
            require(self.adaptor_at == "block", "model.adaptor_at", self.adaptor_at, remedy)
        elif not any(LETTERS[letter].input_adaptor for letter in "".join(self.spec)):
            before = " or ".join(letter for letter, kind in LETTERS.items() if kind.input_adaptor)
            why = f"has no effect before blocks, model.spec={self.spec} has no {before} block"
            require(self.adaptor_at != "both", "model.adaptor_at", self.adaptor_at, f"{why}; give 'spectrogram'")
            default = self.adaptor_at != "block" or self.adaptor == "conv"
            require(default, "model.adaptor", self.adaptor, f"{why}; give 'none', or model.adaptor_at='spectrogram'")

    def mixer(self, letter: str) -> MixerSettings:
        """The settings of the mixer that a letter of `spec` stands for."""
        settings: MixerSettings = getattr(self, LETTERS[letter].field)
        return settings

    def maps(self, mels: int, frames: int) -> list[tuple[int, int]]:
        """Map size (frequency rows, time columns) of each stage for a spectrogram of mels x frames."""
        return [(math.ceil(mels / 2 ** (i + 2)), math.ceil(frames / 2 ** (i + 2))) for i in range(len(self.dims))]


def datar_nano() -> ModelConfig:
    """The laptop model: depths 1-1-2-1, convolutional stem and MLP, local perception."""
    return ModelConfig(
        window=WindowSettings(sizes=((8, 8), (8, 8), (4, 8), (2, 8))),
        stem="conv",
        mlp="conv",
        local_perception=True,
        drop_path=0.1,
    )


def datar_tiny() -> ModelConfig:
    """Depths 2-2-6-2, widths 96 to 768."""
    return ModelConfig(
        dims=(96, 192, 384, 768),
        spec=("LS", "LS", "LDLDLD", "LD"),
        heads=(3, 6, 12, 24),
        deformable=DeformableSettings(groups=(1, 1, 3, 6)),
        drop_path=0.2,
    )


def datar_small() -> ModelConfig:
    """As tiny, with eighteen blocks in the third stage."""
    return msgspec.structs.replace(datar_tiny(), spec=("LS", "LS", "LD" * 9, "LD"), drop_path=0.3)


def datar_base() -> ModelConfig:
    """As small, widths 128 to 1024."""
    return msgspec.structs.replace(
        datar_small(),
        dims=(128, 256, 512, 1024),
        heads=(4, 8, 16, 32),
        deformable=DeformableSettings(groups=(1, 1, 4, 8)),
        drop_path=0.5,
    )


MODELS = {f.__name__: f for f in (datar_nano, datar_tiny, datar_small, datar_base)}
