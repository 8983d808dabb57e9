"""VGGSound, prepared: 309 classes, 10 s clips of videos.

From MBT (Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", NeurIPS 2021, implementation details, and the
configuration in its code, which is for AudioSet), for its audio branch: 16 kHz, 128 mel bins, 10 ms hop, 8 s of a clip,
SpecAugment with a time mask up to 192 frames and a frequency mask up to 48 bins, mixup with alpha 0.3, stochastic depth
0.3, batch 64, 50 epochs, 2.5 of them warm-up, cosine decay, gradients clipped to norm 1.

Not followed: it starts from ImageNet-21k weights and trains with SGD at 0.5, which a model from scratch cannot copy.

Ours: the model, AdamW and its rate; label smoothing 0.1, as in CAV-MAE (Gong et al., ICLR 2023) on these data.
"""

import msgspec

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_tiny


def get_config() -> Config:
    return Config(
        audio=AudioConfig(frontend="device"),
        data=DataConfig(kind="prepared", window_seconds=8.0),
        model=msgspec.structs.replace(datar_tiny(), drop_path=0.3),
        augment=AugmentConfig(freq_masks=1, freq_width=48, time_masks=1, time_width=192, mixup=0.3),
        optim=OptimConfig(learning_rate=5e-4, warmup=0.05, label_smoothing=0.1),
        train=TrainConfig(epochs=50, batch_size=64, checkpoint_every_epochs=1, log_every_steps=100),
    )
