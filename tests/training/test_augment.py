"""Augmentation: what each draw may do, how far it reaches, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.audio import log_mel_jax
from datar_jax.config import AugmentConfig
from datar_jax.training import augment as a

pytestmark = pytest.mark.usefixtures("quick_compiles")

F, T, S = 12, 20, 4
FLOOR, MEAN, STD = -80.0, -40.0, 15.0
KEY = jax.random.key(0)


EVERYTHING = AugmentConfig(
    roll=True,
    gain_db=6.0,
    freq_masks=2,
    freq_width=3,
    time_masks=2,
    time_width=5,
    freq_shift=2,
    stretch=0.2,
    mixup=0.4,
    background=0.5,
)


def batch(b: int = 8, seed: int = 0, shortest: int = 1) -> dict[str, jax.Array]:
    """Clips in decibels, some of them padded with the floor, and one-hot targets."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(shortest, T + 1, b)
    frames[0] = T
    mel = np.where(np.arange(T) < frames[:, None, None], rng.uniform(-70, 0, (b, F, T)), FLOOR)
    return {
        "mel": jnp.asarray(mel, jnp.float32),
        "frames": jnp.asarray(frames, jnp.int32),
        "target": jnp.asarray(np.eye(S)[rng.integers(0, S, b)], jnp.float32),
    }


# Each function with its arguments after the key.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "roll": (partial(a.warp_time, roll=True, stretch=0.0), ("mel", "frames")),
    "stretch": (partial(a.warp_time, roll=True, stretch=0.3), ("mel", "frames")),
    "shift": (partial(a.shift_frequency, most=3), ("mel",)),
    "gain": (partial(a.gain, most_db=6.0), ("mel",)),
    "background": (partial(a.add_background, probability=0.5, snr_db=(0.0, 20.0)), ("mel",)),
    "mixup": (partial(a.mixup, alpha=0.4), ("mel", "frames", "target")),
    "masks": (partial(a.mask_bands, config=EVERYTHING), ("mel", "frames")),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_draw_follows_its_key_eager_and_jitted(name: str) -> None:
    function, names = FUNCTIONS[name]
    arguments = [batch()[n] for n in names]
    eager = function(KEY, *arguments)
    chex.assert_trees_all_close(jax.jit(function)(KEY, *arguments), eager, atol=1e-3)
    chex.assert_trees_all_equal(function(KEY, *arguments), eager)
    other = function(jax.random.key(1), *arguments)
    first = jax.tree.leaves(eager)[0]
    assert (np.asarray(jax.tree.leaves(other)[0]) != np.asarray(first)).any()
    assert first.dtype == jnp.float32 and first.shape == arguments[0].shape


# Time.


def warp(mel: Any, frames: Any, roll: bool, stretch: float) -> np.ndarray:
    return np.asarray(jax.jit(a.warp_time, static_argnums=(3, 4))(KEY, mel, frames, roll, stretch))


def test_a_roll_turns_the_sound_in_a_circle() -> None:
    mel, frames, _ = batch(400).values()
    frames = frames.at[-1].set(0)
    mel, rolled, frames = np.asarray(mel), warp(mel, frames, True, 0.0), np.asarray(frames)
    seen: dict[int, set[int]] = {}
    for before, after, n in zip(mel, rolled, frames):
        np.testing.assert_array_equal(after[:, n:], before[:, n:], err_msg="padding")
        fits = [k for k in range(n) if (np.roll(before[:, :n], -k, axis=1) == after[:, :n]).all()]
        assert len(fits) == 1 or n == 0
        seen.setdefault(int(n), set()).update(fits)
    for n in (2, 3, 5):
        assert seen[n] == set(range(n)), "every column is a start"


def test_a_stretch_reads_at_one_speed_within_its_bound() -> None:
    """On a ramp along time the value is the column that was read."""
    b, stretch = 300, 0.25
    ramp = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (b, 1, T))
    half = T // 2
    frames = jnp.full(b, T).at[: b // 2].set(half)
    still = warp(ramp, frames, False, stretch)[:, 0]
    np.testing.assert_array_equal(still[: b // 2, half:], np.arange(half, T)[None].repeat(b // 2, 0))
    assert (still[:, 0] == 0).all(), "without a roll a clip begins where it began"
    speed = still[:, 1:6] / np.arange(1, 6)  # 5 columns at a speed below 1.25 do not reach the end of ten
    np.testing.assert_allclose(speed, np.broadcast_to(speed[:, :1], speed.shape), rtol=1e-5)
    assert 0.75 <= speed.min() < 0.76 and 1.24 < speed.max() <= 1.25
    turned = warp(ramp, frames, True, stretch)[b // 2 :, 0]
    assert set(turned[:, 0].tolist()) == set(range(T)), "a start is a whole column"
    assert turned.min() >= 0 and turned.max() <= T - 1, "nothing is read outside the sound"


def test_a_stretched_circle_joins_its_ends() -> None:
    """A turning pointer keeps turning at one speed where the last column meets the first."""
    b = 200
    frames = np.where(np.arange(b) % 2, T, T // 2)
    angle = 2 * np.pi * np.arange(T) / frames[:, None]
    out = warp(np.stack([np.cos(angle), np.sin(angle)], 1), frames, True, 0.25)
    seen = np.unwrap(np.arctan2(out[:, 1], out[:, 0]), axis=1)
    for n in (T, T // 2):
        steps = np.diff(seen[frames == n, :n], axis=1) * n / (2 * np.pi)  # columns per column
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=0.02)
        assert 0.73 < steps.min() < 0.8 and 1.2 < steps.max() < 1.27


# Frequency and level.


def test_a_frequency_shift_repeats_the_edge_and_reaches_its_bounds() -> None:
    most, clips = 3, batch(300)
    shift = jax.jit(a.shift_frequency, static_argnums=2)
    before, after = np.asarray(clips["mel"]), np.asarray(shift(KEY, clips["mel"], most))
    seen = set()
    for x, y in zip(before, after):
        fits = [s for s in range(-F, F + 1) if (x[np.clip(np.arange(F) - s, 0, F - 1)] == y).all()]
        assert len(fits) == 1
        seen.update(fits)
    assert seen == set(range(-most, most + 1))


def test_a_gain_is_one_number_per_clip() -> None:
    clips = batch(2000)
    moved = np.asarray(a.gain(KEY, clips["mel"], 6.0), np.float64) - np.asarray(clips["mel"], np.float64)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=2e-5)
    each = moved[:, 0, 0]
    assert -6.0001 <= each.min() < -5.9 and 5.9 < each.max() <= 6.0001 and abs(each.mean()) < 0.4


add_background = jax.jit(a.add_background)


@pytest.mark.parametrize("snr", [-10.0, 0.0, 15.0])
def test_background_adds_the_power_of_the_next_clip(snr: float) -> None:
    clips = batch(8)
    before = np.asarray(clips["mel"], np.float64)
    after = np.asarray(add_background(KEY, clips["mel"], 1.0, (snr, snr)), np.float64)
    assert (after >= before - 1e-4).all(), "adding power never lowers it"
    power, mixed = 10 ** (before / 10), 10 ** (after / 10)
    total = power.sum((1, 2))
    np.testing.assert_allclose(10 * np.log10(total / (mixed - power).sum((1, 2))), snr, atol=0.02)
    next_clip = np.roll(power, 1, 0)
    scale = (total / next_clip.sum((1, 2)) / 10 ** (snr / 10))[:, None, None]
    np.testing.assert_allclose(mixed, power + scale * next_clip, rtol=2e-4)


def test_background_has_its_probability_and_its_range() -> None:
    clips = batch(1000)
    changed = {
        p: (np.asarray(add_background(KEY, clips["mel"], p, (0.0, 10.0))) != np.asarray(clips["mel"])).any((1, 2))
        for p in (0.0, 0.3, 1.0)
    }
    assert not changed[0.0].any() and changed[1.0].all() and abs(changed[0.3].mean() - 0.3) < 0.06
    power = 10 ** (np.asarray(clips["mel"], np.float64) / 10)
    after = 10 ** (np.asarray(add_background(KEY, clips["mel"], 1.0, (0.0, 10.0)), np.float64) / 10)
    snr = 10 * np.log10(power.sum((1, 2)) / (after - power).sum((1, 2)))
    assert -0.1 < snr.min() < 0.3 and 9.7 < snr.max() < 10.1


# Mixtures.


@pytest.mark.parametrize("alpha", [0.1, 0.4, 2.0])
def test_mixup_blends_clip_and_target_by_one_share(alpha: float) -> None:
    clips = batch(500)
    mel, frames, target = (np.asarray(x, np.float64) for x in jax.jit(a.mixup)(KEY, *clips.values(), alpha))
    np.testing.assert_allclose(target.sum(1), 1, atol=1e-6)
    own, partner = np.asarray(clips["target"]), np.roll(np.asarray(clips["target"]), 1, 0)
    differs = (own != partner).any(1)
    share = np.where(differs, (target * own).sum(1), np.nan)
    assert (share[differs] >= 0.5).all() and (share[differs] <= 1).all(), "the clip itself leads"
    before = np.asarray(clips["mel"], np.float64)
    blend = share[:, None, None] * before + (1 - share[:, None, None]) * np.roll(before, 1, 0)
    np.testing.assert_allclose(mel[differs], blend[differs], atol=1e-3)
    assert np.nanmin(share) < 0.55 and np.nanmax(share) > 0.9
    rare = {0.1: 0.80, 0.4: 0.55, 2.0: 0.2}[alpha]  # a small alpha mixes little
    assert abs((share[differs] > 0.9).mean() - rare) < 0.12
    np.testing.assert_array_equal(frames, np.maximum(clips["frames"], np.roll(clips["frames"], 1)))


def test_mixup_blends_the_targets_of_all_heads_by_the_same_share() -> None:
    """A row with one label of each head still sums to 1 in each."""
    clips, other = batch(50), batch(50, seed=1)["target"]
    plain = a.mixup(KEY, *clips.values(), 0.4)[2]
    both = a.mixup(KEY, clips["mel"], clips["frames"], jnp.concatenate([clips["target"], other], 1), 0.4)[2]
    np.testing.assert_array_equal(both[:, :S], plain)
    np.testing.assert_allclose(both[:, S:].sum(1), 1, atol=1e-6)


# Masks.


def widths(masked: np.ndarray) -> np.ndarray:
    """Length of the one band of each row; a row with a gap in its band fails."""
    n = masked.sum(1)
    first, last = masked.argmax(1), masked.shape[1] - masked[:, ::-1].argmax(1)
    assert ((last - first == n) | (n == 0)).all()
    return n


def mask(b: int, frames: Any, config: AugmentConfig) -> np.ndarray:
    """What is masked of clips of ones, `(B, F, T)` bool."""
    out = jax.jit(a.mask_bands, static_argnums=3)(KEY, jnp.ones((b, F, T)), jnp.broadcast_to(frames, b), config)
    assert set(np.unique(out)) <= {0.0, 1.0}
    return np.asarray(out) == 0


def test_a_mask_has_every_width_from_nothing_to_its_maximum() -> None:
    b, widest = 2000, 5
    in_time = mask(b, T, AugmentConfig(time_masks=1, time_width=widest))
    assert (in_time.all(1) == in_time.any(1)).all(), "a band of frames covers all bins"
    in_freq = mask(b, T, AugmentConfig(freq_masks=1, freq_width=widest))
    assert (in_freq.all(2) == in_freq.any(2)).all(), "a band of bins covers all frames"
    for masked in (in_time[:, 0], in_freq[:, :, 0]):
        share = np.bincount(widths(masked), minlength=widest + 1) / b
        assert len(share) == widest + 1
        np.testing.assert_allclose(share, 1 / (widest + 1), atol=0.04)
        where = masked.mean(0)
        assert (where > 0.15 * where.max()).all() and masked[:, 0].any() and masked[:, -1].any(), "it reaches both ends"


def test_masks_lie_inside_the_sound() -> None:
    b, widest = 1000, 8
    frames = np.random.default_rng(0).integers(0, T + 1, b)
    masked = mask(b, frames, AugmentConfig(time_masks=1, time_width=widest))[:, 0]
    assert not masked[np.arange(T) >= frames[:, None]].any()
    n = widths(masked)
    assert (n <= np.minimum(frames // 2, widest)).all()
    for length in (3, 7, 15):
        assert n[frames == length].max() == min(length // 2, widest), "at most half of a clip is masked"
        assert masked[frames == length][:, length - 1].any()


def test_the_masks_of_a_clip_differ_and_are_as_many_as_asked() -> None:
    masked = mask(1000, T, AugmentConfig(freq_masks=2, freq_width=1))[:, :, 0]
    count = np.bincount(masked.sum(1), minlength=3) / 1000
    both = 0.25 * (1 - 1 / F)  # two widths of one, in two places
    np.testing.assert_allclose(count, [0.25, 0.75 - both, both], atol=0.05)
    for off in (AugmentConfig(freq_masks=2), AugmentConfig(freq_width=3), AugmentConfig(time_masks=3, freq_width=1)):
        assert not mask(2, T, off).any()


# The whole.


whole = jax.jit(a.augment, static_argnums=2)


def run(config: AugmentConfig, clips: dict[str, jax.Array], key: jax.Array = KEY) -> dict[str, jax.Array]:
    return whole(key, clips, config, FLOOR, MEAN, STD)


def test_everything_off_is_normalise_only() -> None:
    clips = batch()
    out = run(AugmentConfig(), clips)
    np.testing.assert_allclose(out["mel"], (np.asarray(clips["mel"]) - MEAN) / STD, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal((out["frames"], out["target"]), (clips["frames"], clips["target"]))
    np.testing.assert_allclose(log_mel_jax.normalize(jnp.array([-40.0, -25.0]), MEAN, STD), [0, 1])


@pytest.mark.parametrize(
    "field", ["roll", "gain_db", "freq_masks", "time_masks", "freq_shift", "stretch", "mixup", "background"]
)
def test_each_switch_does_something(field: str) -> None:
    on = {"roll": True, "gain_db": 3.0, "freq_masks": 1, "time_masks": 1, "freq_shift": 2, "stretch": 0.2}
    on |= {"mixup": 1.0, "background": 1.0}
    width = {"freq_masks": {"freq_width": 5}, "time_masks": {"time_width": 9}}.get(field, {})
    clips = batch(shortest=4)
    changed = run(AugmentConfig(**{field: on[field]}, **width), clips)
    plain = run(AugmentConfig(), clips)
    assert (np.asarray(changed["mel"]) != np.asarray(plain["mel"])).any()
    assert (np.asarray(changed["target"]) != np.asarray(plain["target"])).any() == (field == "mixup")


def test_the_whole_follows_its_key() -> None:
    clips = batch()
    chex.assert_trees_all_equal(run(EVERYTHING, clips), run(EVERYTHING, clips))
    other = run(EVERYTHING, clips, jax.random.key(1))
    assert (np.asarray(other["mel"]) != np.asarray(run(EVERYTHING, clips)["mel"])).any()
    chex.assert_tree_all_finite(other)
    chex.assert_trees_all_equal_shapes_and_dtypes(other, clips)
    np.testing.assert_allclose(other["target"].sum(1), 1, rtol=1e-6)


def test_a_gain_stays_above_the_floor_and_masks_are_the_mean() -> None:
    clips = batch(64)
    out = np.asarray(run(AugmentConfig(gain_db=60.0), clips)["mel"]) * STD + MEAN
    assert out.min() == pytest.approx(FLOOR, abs=1e-3)
    masked = np.asarray(run(AugmentConfig(freq_masks=1, freq_width=F), clips)["mel"])
    untouched = np.asarray(run(AugmentConfig(), clips)["mel"])
    assert (masked[masked != untouched] == 0).all() and (masked != untouched).any()


def test_padding_is_untouched_by_what_moves_and_masks() -> None:
    clips = batch(32)
    config = AugmentConfig(roll=True, stretch=0.3, time_masks=3, time_width=T)
    out, plain = (np.asarray(run(x, clips)["mel"]) for x in (config, AugmentConfig()))
    padding = np.broadcast_to(np.arange(T) >= np.asarray(clips["frames"])[:, None, None], out.shape)
    np.testing.assert_array_equal(out[padding], plain[padding])
