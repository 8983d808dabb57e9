"""ESC-10 from scratch: ten classes, five official folds, no outside data. Also reads ESC-50's folder (its subset)."""

import msgspec

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_nano


def get_config() -> Config:
    # Half as wide as datar_nano; chosen together with the epochs in single runs on fold 1 (README, Numbers).
    model = msgspec.structs.replace(datar_nano(), dims=(16, 32, 64, 128), mlp_ratio=3)
    return Config(
        audio=AudioConfig(n_mels=64, hop_ms=20.0, window_ms=40.0),
        data=DataConfig(kind="esc", subset="esc10"),
        model=model,
        augment=AugmentConfig(
            roll=True,
            gain_db=6.0,
            freq_masks=2,
            freq_width=8,
            time_masks=2,
            time_width=25,
            freq_shift=4,
            stretch=0.15,
            mixup=0.5,
        ),
        optim=OptimConfig(learning_rate=1e-3, ema=0.998, label_smoothing=0.1),
        train=TrainConfig(epochs=150, batch_size=16),
    )
