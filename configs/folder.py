"""Your own sounds, one sub-folder per class: only data.root has to be given."""

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_nano


def get_config() -> Config:
    return Config(
        audio=AudioConfig(n_mels=64, hop_ms=20.0, window_ms=40.0),
        data=DataConfig(kind="folder"),
        model=datar_nano(),
        augment=AugmentConfig(
            gain_db=6.0, freq_masks=2, freq_width=8, time_masks=2, time_width=20, freq_shift=2, mixup=0.3
        ),
        optim=OptimConfig(learning_rate=1e-3, ema=0.99, label_smoothing=0.1),
        train=TrainConfig(epochs=60, batch_size=16, evaluate_every_epochs=5),
    )
