"""Another model's weights on your own classes: give init.from and data.root. Its front end and sizes come with it.

A linear probe is --config.optim.freeze=backbone --config.optim.learning_rate=1e-2.
"""

from datar_jax.config import AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(kind="folder"),
        augment=AugmentConfig(
            gain_db=6.0, freq_masks=2, freq_width=8, time_masks=2, time_width=20, freq_shift=2, mixup=0.3
        ),
        optim=OptimConfig(learning_rate=5e-4, layer_decay=0.75, ema=0.99, label_smoothing=0.1),
        train=TrainConfig(epochs=30, batch_size=16, evaluate_every_epochs=3),
    )
