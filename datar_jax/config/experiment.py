"""All settings of one run, and what they must agree on."""

from __future__ import annotations

from datar_jax.config.audio import AudioConfig
from datar_jax.config.base import StrictStruct, require
from datar_jax.config.data import DataConfig
from datar_jax.config.mixers import WindowSettings
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
        if self.data.window_seconds:
            frames, source = self.audio.frames(self.data.window_seconds), "data.window_seconds"
            check_windows(self, frames, f"{source}={self.data.window_seconds:g}")
        else:  # the length comes with the data; the frequency axis is known already
            check_windows(self, 1 << 30, "the data's length")
        require(
            self.augment.freq_width <= self.audio.n_mels,
            "augment.freq_width",
            self.augment.freq_width,
            f"wider than audio.n_mels={self.audio.n_mels}",
        )


def check_windows(config: Config, frames: int, origin: str) -> None:
    """Refuses attention windows that are larger than the map of their stage.

    Raises:
      ConfigError: names the stage, its window and its map.
    """
    maps = config.model.maps(config.audio.n_mels, frames)
    for i, (letters, window, size) in enumerate(zip(config.model.spec, config.model.window.sizes, maps)):
        if not set(letters) & WindowSettings.letters.keys():
            continue
        for axis, wide, room in zip(("frequency rows", "time columns"), window, size):
            require(
                wide <= room,
                f"model.window.sizes[{i}]",
                window,
                f"larger than its map, which has {room} {axis} (audio.n_mels={config.audio.n_mels}, {origin}); "
                f"give at most {room}",
            )
