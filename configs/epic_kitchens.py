"""EPIC-KITCHENS-100, prepared: 97 verbs and 300 nouns, actions of half a second to minutes.

From Auditory SlowFast (Kazakos et al., "Slow-Fast Auditory Streams for Audio Recognition", ICASSP 2021, and the
configuration in its code): 24 kHz, 2 s of an action, 128 mel bins, 5 ms hop, SpecAugment with two frequency masks up to
27 bins and two time masks up to 25 frames, dropout 0.5 before the heads, batch 32, 30 epochs.

Not followed: it starts from VGG-Sound weights, trains with SGD at 0.001 and two steps down, and warps time. Its 10 ms
window is padded to a transform of 2,048 samples; ours is the power of two that holds the window, and 256 samples would
leave 21 of the 128 mel filters empty. 11 ms asks for 512, which leaves none.

Ours: the model, AdamW and its rate, warm-up and cosine decay.
"""

import msgspec

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_tiny


def get_config() -> Config:
    return Config(
        audio=AudioConfig(sample_rate=24_000, window_ms=11.0, hop_ms=5.0, frontend="device"),
        data=DataConfig(kind="prepared", window_seconds=2.0),
        model=msgspec.structs.replace(datar_tiny(), dropout=0.5),
        augment=AugmentConfig(freq_masks=2, freq_width=27, time_masks=2, time_width=25),
        optim=OptimConfig(learning_rate=5e-4),
        train=TrainConfig(epochs=30, batch_size=32, checkpoint_every_epochs=1, log_every_steps=100),
    )
