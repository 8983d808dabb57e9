"""FSD50K, prepared: 200 classes, any number of them in each clip of 0.3 to 30 s.

From PSLA (Gong et al., "PSLA: Improving Audio Tagging with Pretraining, Sampling, Labeling, and Aggregation", TASLP
2021, and the script in its code): 16 kHz, 128 mel bins, 25 ms window, 10 ms hop, 30 s, SpecAugment with a frequency
mask up to 48 bins and a time mask up to 192 frames, mixup, balanced sampling, binary cross-entropy, rate 5e-4,
averaged weights, batch 24, 40 epochs.

Not followed: it starts from ImageNet weights and corrects labels. It mixes half of the clips, with a share from
Beta(10, 10); here all clips of a batch are mixed, and alpha is 0.5. It averages the weights of the second half of the
epochs, here it is an exponential mean; its rate is halved again and again from epoch 10 on, here it falls as a cosine.

Ours: the model, AdamW, the decay of the mean. Most clips are far shorter than 30 s: --config.data.window_seconds=10 is
three times cheaper, crops the others at random in training and averages their views in evaluation.
"""

from datar_jax.config import AudioConfig, AugmentConfig, Config, DataConfig, OptimConfig, TrainConfig, datar_tiny


def get_config() -> Config:
    return Config(
        audio=AudioConfig(frontend="device"),
        data=DataConfig(kind="prepared", labels="multi", balanced_sampling=True, window_seconds=30.0),
        model=datar_tiny(),
        augment=AugmentConfig(freq_masks=1, freq_width=48, time_masks=1, time_width=192, mixup=0.5),
        optim=OptimConfig(learning_rate=5e-4, ema=0.9998),
        train=TrainConfig(epochs=40, batch_size=24, checkpoint_every_epochs=1, log_every_steps=100),
    )
