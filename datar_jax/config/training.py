"""Settings of a training run: augmentation, optimizer, initial weights, loop and mesh."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import msgspec

from datar_jax.config.base import ConfigError, Resumable, StrictStruct, require


class AugmentConfig(StrictStruct, frozen=True):
    """Augmentation of training spectrograms; zero switches an entry off."""

    largest: ClassVar[dict[str, float]] = {
        "gain_db": 200,
        "freq_masks": 1000,
        "freq_width": 1024,
        "time_masks": 1000,
        "time_width": 1_000_000,
        "freq_shift": 1024,
        "mixup": 1000,
        "background_snr_db": 200,
    }

    roll: bool = False  # cyclic shift in time by any amount (only clips that fill the window)
    gain_db: float = 0.0  # uniform in +- this many decibels
    freq_masks: int = 0  # SpecAugment
    freq_width: int = 0  # widest mask in mel bins
    time_masks: int = 0
    time_width: int = 0  # widest mask in frames
    freq_shift: int = 0  # shift along the mel axis by up to this many bins: a change of pitch
    stretch: float = 0.0  # resize along time by a factor within 1 +- this share
    mixup: float = 0.0  # alpha of the Beta distribution
    background: float = 0.0  # probability of adding another clip's power, label unchanged
    background_snr_db: tuple[float, float] = (10.0, 30.0)  # clip over background

    def check(self) -> None:
        for name in ("gain_db", "freq_masks", "freq_width", "time_masks", "time_width", "freq_shift", "mixup"):
            require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "give 0 (off) or more")
        require(0 <= self.stretch < 1, "augment.stretch", self.stretch, "give 0 (off) or more, less than 1")
        require(0 <= self.background <= 1, "augment.background", self.background, "give a probability, 0 to 1")
        low, high = self.background_snr_db
        require(low <= high, "augment.background_snr_db", self.background_snr_db, "give (low, high) with low <= high")


class OptimConfig(StrictStruct, frozen=True):
    """AdamW with warm-up and cosine decay."""

    largest: ClassVar[dict[str, float]] = {"learning_rate": 1000, "weight_decay": 1000, "clip_norm": 1_000_000}

    learning_rate: float = 1e-3  # peak, for the whole batch
    final_lr_ratio: float = 0.01  # share of the peak that is left at the end
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.05  # biases, norms, position tables and adaptor signals are not decayed
    beta2: float = 0.999
    clip_norm: float = 1.0  # global norm of the gradient; 0 switches clipping off
    ema: float = 0.0  # decay of the averaged weights that are evaluated; 0 evaluates the weights themselves
    label_smoothing: float = 0.0
    layer_decay: float = 1.0  # each block learns at this share of the rate of the one above it; 1: all alike
    freeze: Literal["none", "backbone"] = "none"  # backbone: a linear probe; only the head learns, nothing is dropped

    def check(self) -> None:
        require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "give more than 0, such as 1e-3")
        require(0 <= self.final_lr_ratio <= 1, "optim.final_lr_ratio", self.final_lr_ratio, "give 0 to 1")
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "give a share of the steps, 0 to below 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "give 0 or more")
        require(0 < self.beta2 < 1, "optim.beta2", self.beta2, "give more than 0, less than 1")
        require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "give 0 (off) or more")
        require(0 <= self.ema < 1, "optim.ema", self.ema, "give 0 (off) or more, less than 1")
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing, "give 0 to below 1")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "give more than 0, 1 at most")


class InitConfig(StrictStruct, frozen=True):
    """Initial weights: random, or those of another model (fine-tuning).

    The sizes of model and front end are then those of the other model, unless overridden on the command line.
    """

    source: str = msgspec.field(default="", name="from")  # a work directory, a checkpoint, an export, official weights
    # Regular expressions on parameter names; heads are always allowed.
    allow_missing: str = ""  # parameters that may be missing from the other model and start at random
    allow_unexpected: str = ""  # parameters of the other model that may be left out

    def check(self) -> None:
        for name in ("allow_missing", "allow_unexpected"):
            value = getattr(self, name)
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"init.{name}={value!r}: not a regular expression ({error})") from None
            require(bool(self.source) or not value, f"init.{name}", value, "has no effect without init.from; give both")


class TrainConfig(StrictStruct, frozen=True):
    """The loop: how long, how wide, how often."""

    largest: ClassVar[dict[str, float]] = {
        **dict.fromkeys(("batch_size", "grad_accum_steps", "eval_batch_size"), 1_000_000),
        **dict.fromkeys(("epochs", "evaluate_every_epochs", "checkpoint_every_epochs"), 1_000_000_000),
        **dict.fromkeys(("log_every_steps", "stall_seconds", "max_skipped"), 1_000_000_000),
    }

    epochs: int = 50
    batch_size: int = 32  # over all devices and processes
    grad_accum_steps: int = 1  # micro-batches per step
    eval_batch_size: int = 64
    seed: int = 0
    evaluate_every_epochs: int = 0  # between evaluations on the validation split, if any; 0: only at the end
    checkpoint_every_epochs: Resumable[int] = 10
    log_every_steps: Resumable[int] = 10
    stall_seconds: Resumable[float] = 60.0  # so long without a batch or a step, and the run logs what it waits for
    max_skipped: Resumable[int] = 50  # steps in a row without a finite gradient; then the run stops and says why

    def check(self) -> None:
        counts = (
            "epochs",
            "batch_size",
            "grad_accum_steps",
            "eval_batch_size",
            "checkpoint_every_epochs",
            "log_every_steps",
            "max_skipped",
        )
        require(self.stall_seconds > 0, "train.stall_seconds", self.stall_seconds, "give more than 0")
        for name in counts:
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "give 1 or more")
        require(
            self.evaluate_every_epochs >= 0,
            "train.evaluate_every_epochs",
            self.evaluate_every_epochs,
            "give 0 or more epochs",
        )
        require(0 <= self.seed < 2**31, "train.seed", self.seed, "give 0 or more, less than 2**31")
        require(
            self.batch_size % self.grad_accum_steps == 0,
            "train.grad_accum_steps",
            self.grad_accum_steps,
            f"does not divide train.batch_size={self.batch_size}; give a divisor of it",
        )


class MeshConfig(StrictStruct, frozen=True):
    """How the devices of all processes are arranged; all share the batch."""

    largest: ClassVar[dict[str, float]] = {"data": 1_000_000, "fsdp": 1_000_000}

    data: Resumable[int] = -1  # devices that each hold a whole copy of the state, or a group that does; -1: all devices
    fsdp: Resumable[int] = 1  # devices that share one copy of parameters, moments and average

    def check(self) -> None:
        require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "give 1 or more, or -1 for all devices")
        require(self.fsdp >= 1, "mesh.fsdp", self.fsdp, "give 1 or more")
