"""AudioSet, prepared: 527 classes, any number of them in each 10 s clip.

From PSLA (Gong et al., "PSLA: Improving Audio Tagging with Pretraining, Sampling, Labeling, and Aggregation", TASLP
2021) and AST (Gong et al., Interspeech 2021), whose code shares it: 16 kHz, 128 mel bins, 25 ms window, 10 ms hop, the
whole clip, SpecAugment with a frequency mask up to 48 bins and a time mask up to 192 frames, mixup, balanced sampling,
binary cross-entropy, averaged weights; from PSLA 30 epochs.

Not followed: they start from ImageNet weights and take Adam at 1e-4 (PSLA, batch 100) or 1e-5 (AST, batch 12, 5
epochs), and PSLA corrects the labels of the balanced list. They mix half of the clips, with a share from Beta(10, 10);
here all clips of a batch are mixed, and alpha is 0.5, as MBT's code has it on this data set. They average the weights
of the last epochs, here it is an exponential mean.

Ours: the model, AdamW and its rate, the decay of the mean, batch 128. Where training is the balanced list alone, the
recipe is another: --config.data.balanced_sampling=false --config.train.epochs=60.
"""

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_tiny


def get_config() -> Config:
    return Config(
        audio=AudioConfig(frontend="device"),
        data=DataConfig(kind="prepared", labels="multi", balanced_sampling=True, window_seconds=10.0),
        model=datar_tiny(),
        augment=AugmentConfig(freq_masks=1, freq_width=48, time_masks=1, time_width=192, mixup=0.5),
        optim=OptimConfig(learning_rate=5e-4, warmup=0.05, ema=0.9999),
        train=TrainConfig(epochs=30, batch_size=128, checkpoint_every_epochs=1, log_every_steps=100),
    )
