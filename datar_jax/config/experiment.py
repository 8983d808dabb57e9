"""All settings of one run, and what they must agree on."""

from __future__ import annotations

from datar_jax.config.audio import AudioConfig
from datar_jax.config.base import StrictStruct, require
from datar_jax.config.data import DataConfig
from datar_jax.config.model import ModelConfig
from datar_jax.config.training import AugmentConfig, InitConfig, MeshConfig, OptimConfig, TrainConfig


class Config(StrictStruct, frozen=True):
    """One run."""

    audio: AudioConfig = AudioConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        require(
            self.augment.freq_width <= self.audio.n_mels,
            "augment.freq_width",
            self.augment.freq_width,
            f"wider than audio.n_mels={self.audio.n_mels}",
        )
