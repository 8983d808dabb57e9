"""Augmentation of training spectrograms, on the device, inside the step: pure functions, key first.

Shapes: B clips, F mel bins, T frames, S classes. Spectrograms are in decibels until `normalize`. Only the first
`frames` columns of a clip are sound; what is moved in time is moved in a circle inside them, so that padding stays
where it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.audio.log_mel_jax import normalize
from datar_jax.config import AugmentConfig
from datar_jax.models.spec import Batch


def augment(
    key: Array, batch: Batch, config: AugmentConfig, floor_db: float, mean: Array | float, std: Array | float
) -> Batch:
    """Augments and normalizes a batch.

    Args:
      key: the only source of randomness.
      batch: `mel` `(B, F, T)` in decibels, `frames` `(B,)` int32, `target` `(B, S)`.
      config: what is done; a zero switches an entry off.
      floor_db: the front end's floor, below which nothing falls.
      mean: of the training spectrograms, in decibels.
      std: their deviation, in decibels.

    Returns:
      `mel` normalized, `frames`, `target` (mixed, when mixup is on).
    """
    warp_key, gain_key, shift_key, background_key, mix_key, mask_key = jax.random.split(key, 6)
    mel, frames, target = batch["mel"], batch["frames"], batch["target"]
    if config.roll or config.stretch:
        mel = warp_time(warp_key, mel, frames, config.roll, config.stretch)
    if config.freq_shift:
        mel = shift_frequency(shift_key, mel, config.freq_shift)
    if config.gain_db:
        mel = jnp.maximum(gain(gain_key, mel, config.gain_db), floor_db)
    if config.background:
        mel = add_background(background_key, mel, config.background, config.background_snr_db)
    if config.gain_db or config.background:
        sound_BxT = jnp.arange(mel.shape[2])[None] < frames[:, None]
        mel = jnp.where(sound_BxT[:, None, :], mel, batch["mel"])
    mel = normalize(mel, mean, std)
    if config.mixup:
        mel, frames, target = mixup(mix_key, mel, frames, target, config.mixup)
    mel = mask_bands(mask_key, mel, frames, config)
    return {"mel": mel, "frames": frames, "target": target}


def warp_time(key: Array, mel_BxFxT: Array, frames_B: Array, roll: bool, stretch: float) -> Array:
    """Reads every clip from a random column on (`roll`), at a random speed within `1 +- stretch`, in a circle.

    Columns between two frames are blended linearly; without stretching, every column is a column of the input.
    """
    start_key, speed_key = jax.random.split(key)
    b, _, t = mel_BxFxT.shape
    span_B = jnp.maximum(frames_B, 1)
    start_B = jnp.floor(jax.random.uniform(start_key, (b,)) * span_B) if roll else jnp.zeros(b)
    speed_B = 1 + jax.random.uniform(speed_key, (b,), minval=-stretch, maxval=stretch)

    def read(mel_FxT: Array, start: Array, speed: Array, span: Array) -> Array:
        at = jnp.mod(start + speed * jnp.arange(t), span)
        left = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, span - 1)
        right = jnp.where(left + 1 >= span, 0, left + 1)
        part = (at - left)[None]
        moved = mel_FxT[:, left] * (1 - part) + mel_FxT[:, right] * part if stretch else mel_FxT[:, left]
        return jnp.where((jnp.arange(t) < span)[None], moved, mel_FxT)

    return jax.vmap(read)(mel_BxFxT, start_B, speed_B, span_B)


def shift_frequency(key: Array, mel_BxFxT: Array, most: int) -> Array:
    """Moves every clip along the mel axis by up to `most` bins; the edge bin is repeated."""
    bins = mel_BxFxT.shape[1]
    shift_B = jax.random.randint(key, (mel_BxFxT.shape[0],), -most, most + 1)
    return jax.vmap(lambda mel, s: mel[jnp.clip(jnp.arange(bins) - s, 0, bins - 1)])(mel_BxFxT, shift_B)


def gain(key: Array, mel_BxFxT: Array, most_db: float) -> Array:
    """Makes every clip louder or softer by up to `most_db` decibels."""
    return mel_BxFxT + jax.random.uniform(key, (mel_BxFxT.shape[0], 1, 1), minval=-most_db, maxval=most_db)


def add_background(key: Array, mel_BxFxT: Array, probability: float, snr_db: tuple[float, float]) -> Array:
    """Adds the power of the next clip of the batch, whose sum is `snr_db` below the clip's own; label unchanged."""
    use_key, level_key = jax.random.split(key)
    shape = (mel_BxFxT.shape[0], 1, 1)
    nats = jnp.log(10.0) / 10  # of one decibel of power
    power = mel_BxFxT * nats
    level = jax.scipy.special.logsumexp(power, axis=(1, 2), keepdims=True)
    snr = jax.random.uniform(level_key, shape, minval=snr_db[0], maxval=snr_db[1]) * nats
    other = jnp.roll(power, 1, 0) - jnp.roll(level, 1, 0) + level - snr
    use = jax.random.bernoulli(use_key, probability, shape)
    return jnp.where(use, jnp.logaddexp(power, other) / nats, mel_BxFxT)


def mixup(key: Array, mel: Array, frames_B: Array, target_BxS: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Blends every clip and its target with the next one of the batch, share ~ Beta(alpha, alpha) (Zhang et al., 2018).

    The longer of the two says how much is sound.
    """
    share = jax.random.beta(key, alpha, alpha, (mel.shape[0],))
    share = jnp.maximum(share, 1 - share)  # the clip itself leads: its partner leads in its own turn

    def blend(x: Array) -> Array:
        part = share.reshape(-1, *(1,) * (x.ndim - 1))
        return part * x + (1 - part) * jnp.roll(x, 1, 0)

    return blend(mel), jnp.maximum(frames_B, jnp.roll(frames_B, 1)), blend(target_BxS)


def mask_bands(key: Array, mel_BxFxT: Array, frames_B: Array, config: AugmentConfig) -> Array:
    """SpecAugment (Park et al., 2019): bands of mel bins and of frames are set to the mean, which is zero.

    A width is uniform in 0..maximum, both included, and a band lies inside the sound. However short a clip is, all its
    bands of time together hide at most half of it.
    """
    b, f, t = mel_BxFxT.shape
    freq_key, time_key = jax.random.split(key)
    mels_B = jnp.full((b,), f)
    freq = _bands(freq_key, mels_B, mels_B, f, config.freq_masks, config.freq_width)
    half_B = frames_B // (2 * max(config.time_masks, 1))
    time = _bands(time_key, frames_B, half_B, t, config.time_masks, config.time_width)
    return jnp.where(freq[:, :, None] | time[:, None, :], 0, mel_BxFxT)


def _bands(key: Array, room_B: Array, most_B: Array, size: int, count: int, widest: int) -> Array:
    """Union of `count` random bands inside `room_B` of `size`, none wider than `most_B`: `(B, size)` bool."""
    if not count or not widest:
        return jnp.zeros((room_B.shape[0], size), bool)
    width_key, start_key = jax.random.split(key)
    shape = (room_B.shape[0], count)
    widths_B = jnp.minimum(widest, most_B)[:, None] + 1  # how many there are
    width = jax.random.randint(width_key, shape, 0, widest + 1) * widths_B // (widest + 1)
    start = jnp.floor(jax.random.uniform(start_key, shape) * (room_B[:, None] - width + 1)).astype(jnp.int32)
    at = jnp.arange(size)[None, None]
    return jnp.any((at >= start[..., None]) & (at < (start + width)[..., None]), axis=1)
