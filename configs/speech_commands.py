"""Speech Commands v2, prepared: 35 words of one second.

From AST (Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021, and the script in its code): 16 kHz, 128
mel bins, 25 ms window, 10 ms hop, SpecAugment with a frequency mask up to 48 bins and a time mask up to 48 frames,
mixup, no balanced sampling, rate 2.5e-4, batch 128, 30 epochs.

Not followed: it starts from ImageNet weights, adds noise, moves a clip by up to 10 frames, asks of each word by itself
(binary cross-entropy), mixes 60 % of the clips with a share from Beta(10, 10), and keeps the epoch that scored best on
the validation list. Here all clips of a batch are mixed, one word is chosen (softmax), and the last epoch counts.

Ours: the model, AdamW, its decay and warm-up, alpha 0.5. One second makes maps of 25, 13, 7 and 4 columns: the windows
of the last two stages are as wide as those.
"""

import msgspec

from datar_jax.config import (
    AudioConfig,
    AugmentConfig,
    Config,
    DataConfig,
    OptimConfig,
    TrainConfig,
    WindowSettings,
    datar_tiny,
)


def get_config() -> Config:
    return Config(
        audio=AudioConfig(frontend="device"),
        data=DataConfig(kind="prepared", window_seconds=1.0),
        model=msgspec.structs.replace(datar_tiny(), window=WindowSettings(sizes=((8, 8), (8, 8), (8, 7), (4, 4)))),
        augment=AugmentConfig(freq_masks=1, freq_width=48, time_masks=1, time_width=48, mixup=0.5),
        optim=OptimConfig(learning_rate=2.5e-4),
        train=TrainConfig(epochs=30, batch_size=128, log_every_steps=100),
    )
