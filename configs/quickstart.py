"""Ten kinds of synthesised sounds on a laptop: what `make quickstart` runs."""

import msgspec

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_nano


def get_config() -> Config:
    return Config(
        audio=AudioConfig(n_mels=64, hop_ms=25.0, window_ms=50.0),
        data=DataConfig(kind="folder", test_fraction=0.3),
        model=msgspec.structs.replace(datar_nano(), stem="patch", drop_path=0.05),
        augment=AugmentConfig(roll=True, gain_db=6.0, freq_masks=1, freq_width=8, time_masks=1, time_width=16),
        optim=OptimConfig(learning_rate=1e-3, ema=0.98, label_smoothing=0.05),
        train=TrainConfig(epochs=20, batch_size=16),
    )
