"""What a run is: typed, frozen settings that fail at birth.

This room knows no jax. A configuration is a tree of frozen structs; every struct checks itself when it is built, and
`Config` checks what its parts must agree on. An error is one line: the field, its value, and what would do.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec


class ConfigError(ValueError):
    """A setting that cannot be used; its text is one line for the person who typed it."""


def _require(holds: bool, field: str, value: object, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"{field}={value!r}: {remedy}")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings: immutable, hashable, no unknown names, no number that is not finite."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()  # the field of `Config` that holds it
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                finite = not isinstance(number, float) or math.isfinite(number)
                _require(finite, f"{section}.{name}", value, "give a finite number")
        self.check()

    def check(self) -> None:
        """Raises ConfigError if the fields contradict each other."""


class AudioConfig(Settings, frozen=True):
    """The log-mel front end (DATAR.md, front end: our decision)."""

    sample_rate: int = 16_000  # Hz; every clip is resampled to it
    window_ms: float = 25.0  # Hann window
    hop_ms: float = 10.0
    mels: int = 128  # mel bins = frequency rows of the spectrogram
    fmin: float = 20.0  # Hz, lower edge of the first mel filter
    fmax: float = 0.0  # Hz, upper edge of the last one; 0 means half the sample rate
    floor_db: float = -80.0  # power below this many decibels is set to it: digital silence is finite
    frontend: Literal["host", "device"] = "host"  # where spectrograms are computed; "device": inside the step

    def check(self) -> None:
        _require(1_000 <= self.sample_rate <= 192_000, "audio.sample_rate", self.sample_rate, "give 1000 to 192000 Hz")
        _require(self.hop >= 1, "audio.hop_ms", self.hop_ms, "give at least one sample")
        _require(self.window >= self.hop, "audio.window_ms", self.window_ms, "give at least audio.hop_ms")
        _require(self.mels >= 32, "audio.mels", self.mels, "give at least 32: four stages divide it by 32")
        _require(
            0 <= self.fmin < self.highest,
            "audio.fmin",
            self.fmin,
            f"give 0 or more and less than audio.fmax ({self.highest:g} Hz)",
        )
        _require(
            self.highest <= self.sample_rate / 2,
            "audio.fmax",
            self.fmax,
            f"give at most half of audio.sample_rate ({self.sample_rate / 2:g} Hz)",
        )
        _require(-200 <= self.floor_db < 0, "audio.floor_db", self.floor_db, "give -200 to 0 decibels, such as -80")

    @property
    def window(self) -> int:
        """Window length in samples."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop(self) -> int:
        """Hop in samples."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def fft(self) -> int:
        """Transform length in samples: the power of two that holds the window."""
        return 1 << (self.window - 1).bit_length()

    @property
    def highest(self) -> float:
        """Upper edge of the last mel filter in Hz."""
        return self.fmax or self.sample_rate / 2

    def frames(self, seconds: float) -> int:
        """Spectrogram columns of `seconds` of sound (at least one)."""
        return max(1, round(seconds * self.sample_rate / self.hop))


class DataConfig(Settings, frozen=True):
    """Where the labelled sounds are and how they are divided."""

    root: str = ""  # folder that holds the data set
    kind: Literal["folder", "csv", "esc", "prepared"] = "folder"  # prepared: by `python -m datar_jax prepare`
    # folder: class = sub-folder of root. A list file holds one path per line, relative to root.
    train_list: str = ""
    test_list: str = ""
    test_fraction: float = 0.2  # share of clips (of groups, with `group`) that the stable hash puts aside
    group: str = ""  # regular expression on the path: clips with equal match (or first group) stay on one side
    # csv: columns path, label and optionally split or fold, start, end (seconds)
    manifest: str = "manifest.csv"
    # csv with folds, esc: 1.. tests on that fold, 0 runs the whole cross-validation
    fold: int = 1
    validation_fold: int = 0  # a fold inside the training folds that is scored during training; 0 means none
    subset: str = ""  # esc: "esc10" keeps the ten-class subset of a larger list
    labels: Literal["single", "multi"] = "single"  # one class per clip and head (softmax) or several (sigmoid)
    balance: bool = False  # draw rare classes as often as common ones, with replacement
    window_seconds: float = 0.0  # length of what the model sees; 0 means what the data ask for
    max_bad_fraction: float = 0.01  # share of unusable files beyond which the run stops
    cache: str = ""  # folder of decoded features; empty means `cache` in the work directory
    workers: int = 0  # grain worker processes; 0 reads in this process
    threads: int = 2  # grain read threads per process

    def check(self) -> None:
        _require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "give a share between 0 and 1")
        _require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "give 0 to 1")
        _require(self.fold >= 0, "data.fold", self.fold, "give a fold number, or 0 for the whole cross-validation")
        _require(self.validation_fold >= 0, "data.validation_fold", self.validation_fold, "give a fold number or 0")
        _require(
            self.validation_fold == 0 or self.validation_fold != self.fold,
            "data.validation_fold",
            self.validation_fold,
            f"data.fold={self.fold} is the test fold; choose another one",
        )
        _require(
            bool(self.train_list) == bool(self.test_list),
            "data.train_list" if self.test_list else "data.test_list",
            self.train_list if self.test_list else self.test_list,
            "give both lists, data.train_list and data.test_list, or neither",
        )
        _require(self.window_seconds >= 0, "data.window_seconds", self.window_seconds, "give seconds, or 0")
        _require(self.workers >= 0, "data.workers", self.workers, "give 0 or more processes")
        _require(self.threads >= 1, "data.threads", self.threads, "give at least 1 thread")
        _require(self.subset in ("", "esc10"), "data.subset", self.subset, "give 'esc10' or nothing")
        try:
            re.compile(self.group)
        except re.error as error:
            raise ConfigError(f"data.group={self.group!r}: not a regular expression ({error})") from None


class ModelConfig(Settings, frozen=True):
    """Every size of a DATAR. Tuples have one entry per stage; windows are (frequency, time) pairs."""

    dims: tuple[int, ...] = (32, 64, 128, 256)
    spec: tuple[str, ...] = (
        "L",
        "S",
        "LD",
        "D",
    )  # a letter per block: L window, S shifted, N neighbourhood, D deformable
    heads: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[tuple[int, int], ...] = ((8, 8), (8, 8), (8, 8), (4, 8))
    groups: tuple[int, ...] = (1, 1, 2, 4)  # offset groups of the deformable blocks
    strides: tuple[int, ...] = (8, 4, 1, 1)  # of the sampling grid
    kernels: tuple[int, ...] = (9, 7, 5, 3)  # of the offset network
    offset_range: float = 2.0  # bound: half of it in key cells; negative: unbounded, clamped to the map
    grid: Literal["centre", "dat2022", "dat2023"] = "centre"  # reference points: ours, or a published convention
    # of the deformable blocks: a bias from a table or from a small network (log_cpb), or a convolution of the queries
    position: Literal["table", "log_cpb", "dwc", "none"] = "table"
    stem: Literal["patch", "conv"] = "patch"
    mlp: Literal["plain", "conv"] = "plain"
    mlp_ratio: int = 4
    local_perception: bool = False  # a depthwise 3x3 residual before each block (DAT++)
    adaptor: Literal["none", "signal", "conv", "both"] = "conv"  # the learnable input adaptor
    adaptor_at: Literal["spectrogram", "block", "both"] = "block"
    dropout: float = 0.0  # before the head
    drop_path: float = 0.0  # stochastic depth of the last block; grows linearly from 0
    classes: int = 0  # width of the head; 0 means as many as the data have
    sampler: Literal["auto", "map_coordinates", "gather", "window", "hat", "separable"] = "auto"  # see sampling.py
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrix products; softmax, norms, losses stay float32
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time

    def check(self) -> None:
        stages = len(self.dims)
        _require(stages >= 1, "model.dims", self.dims, "give at least one stage")
        for name in ("spec", "heads", "windows", "groups", "strides", "kernels"):
            value = getattr(self, name)
            _require(
                len(value) == stages, f"model.{name}", value, f"give {stages} entries, one per stage of model.dims"
            )
        for i in range(stages):
            letters, dim, heads, groups = self.spec[i], self.dims[i], self.heads[i], self.groups[i]
            _require(
                bool(letters) and set(letters) <= set("LSND"),
                f"model.spec[{i}]",
                letters,
                "spell each stage with the letters L (window), S (shifted window), N (neighbourhood), D (deformable)",
            )
            _require(
                dim >= 1 and heads >= 1 and dim % heads == 0,
                f"model.heads[{i}]",
                heads,
                f"does not divide model.dims[{i}]={dim}; give a divisor of it",
            )
            _require(min(self.windows[i]) >= 1, f"model.windows[{i}]", self.windows[i], "give a pair of positive sizes")
            _require(
                "N" not in letters or all(side % 2 for side in self.windows[i]),
                f"model.windows[{i}]",
                self.windows[i],
                f"give odd sizes: model.spec[{i}]={letters!r} has a neighbourhood, and that has a middle",
            )
            if "D" in letters:
                _require(
                    groups >= 1 and heads % groups == 0,
                    f"model.groups[{i}]",
                    groups,
                    f"does not divide model.heads[{i}]={heads}; give a divisor of it",
                )
                _require(self.strides[i] >= 1, f"model.strides[{i}]", self.strides[i], "give 1 or more")
                _require(
                    self.kernels[i] >= 1 and self.kernels[i] % 2 == 1,
                    f"model.kernels[{i}]",
                    self.kernels[i],
                    "give an odd size",
                )
        _require(self.mlp_ratio >= 1, "model.mlp_ratio", self.mlp_ratio, "give 1 or more")
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "give 0 or more, less than 1")
        _require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "give 0 or more, less than 1")
        _require(self.classes >= 0, "model.classes", self.classes, "give 0 (as the data have) or a positive number")

    def maps(self, mels: int, frames: int) -> list[tuple[int, int]]:
        """Map size (frequency rows, time columns) of each stage for a spectrogram of mels x frames."""
        return [(math.ceil(mels / 2 ** (i + 2)), math.ceil(frames / 2 ** (i + 2))) for i in range(len(self.dims))]


def datar_nano() -> ModelConfig:
    """The laptop model: depths 1-1-2-1, convolutional stem and MLP, local perception."""
    return ModelConfig(
        windows=((8, 8), (8, 8), (4, 8), (2, 8)), stem="conv", mlp="conv", local_perception=True, drop_path=0.1
    )


def datar_tiny() -> ModelConfig:
    """Depths 2-2-6-2, widths 96 to 768."""
    return ModelConfig(
        dims=(96, 192, 384, 768),
        spec=("LS", "LS", "LDLDLD", "LD"),
        heads=(3, 6, 12, 24),
        groups=(1, 1, 3, 6),
        drop_path=0.2,
    )


def datar_small() -> ModelConfig:
    """As tiny, with eighteen blocks in the third stage."""
    return msgspec.structs.replace(datar_tiny(), spec=("LS", "LS", "LD" * 9, "LD"), drop_path=0.3)


def datar_base() -> ModelConfig:
    """As small, widths 128 to 1024."""
    return msgspec.structs.replace(
        datar_small(), dims=(128, 256, 512, 1024), heads=(4, 8, 16, 32), groups=(1, 1, 4, 8), drop_path=0.5
    )


MODELS = {f.__name__: f for f in (datar_nano, datar_tiny, datar_small, datar_base)}


class AugmentConfig(Settings, frozen=True):
    """Augmentation of training spectrograms; zero switches an entry off."""

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
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "give 0 (off) or more")
        _require(0 <= self.stretch < 1, "augment.stretch", self.stretch, "give 0 (off) or more, less than 1")
        _require(0 <= self.background <= 1, "augment.background", self.background, "give a probability, 0 to 1")
        low, high = self.background_snr_db
        _require(low <= high, "augment.background_snr_db", self.background_snr_db, "give (low, high) with low <= high")


class OptimConfig(Settings, frozen=True):
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = 1e-3  # peak, for the whole batch
    final_rate: float = 0.01  # share of the peak that is left at the end
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.05  # biases, norms, position tables and adaptor signals are not decayed
    beta2: float = 0.999
    clip_norm: float = 1.0  # global norm of the gradient; 0 switches clipping off
    ema: float = 0.0  # decay of the averaged weights that are evaluated; 0 evaluates the weights themselves
    label_smoothing: float = 0.0
    layer_decay: float = 1.0  # each block learns at this share of the rate of the one above it; 1: all alike
    freeze: Literal["none", "backbone"] = "none"  # backbone: a linear probe; only the head learns, nothing is dropped

    def check(self) -> None:
        _require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "give more than 0, such as 1e-3")
        _require(0 <= self.final_rate <= 1, "optim.final_rate", self.final_rate, "give 0 to 1")
        _require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "give a share of the steps, 0 to below 1")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "give 0 or more")
        _require(0 < self.beta2 < 1, "optim.beta2", self.beta2, "give more than 0, less than 1")
        _require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "give 0 (off) or more")
        _require(0 <= self.ema < 1, "optim.ema", self.ema, "give 0 (off) or more, less than 1")
        _require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing, "give 0 to below 1")
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "give more than 0, 1 at most")


class InitConfig(Settings, frozen=True):
    """What a run starts from: fresh weights, or those of another model (fine-tuning).

    The sizes of model and front end are then that model's, and what is typed for them goes over it.
    """

    source: str = msgspec.field(default="", name="from")  # a work directory, a checkpoint, an export, official weights
    new: str = ""  # regular expression: parameters that may be new, beside the head
    left: str = ""  # regular expression: parameters of the other model that may be left out, beside its head

    def check(self) -> None:
        for name in ("new", "left"):
            value = getattr(self, name)
            try:
                re.compile(value)
            except re.error as error:
                raise ConfigError(f"init.{name}={value!r}: not a regular expression ({error})") from None
            _require(
                bool(self.source) or not value, f"init.{name}", value, "init.from is not given, which this goes with"
            )


class TrainConfig(Settings, frozen=True):
    """The loop: how long, how wide, how often."""

    epochs: int = 50
    batch_size: int = 32  # over all devices and processes
    accumulate: int = 1  # micro-batches per step
    eval_batch_size: int = 64
    seed: int = 0
    evaluate_every: int = 0  # epochs between scores of the validation split, where there is one; 0: only at the end
    checkpoint_every: int = 10  # epochs
    log_every: int = 10  # steps
    stall_seconds: float = 60.0  # after so long without a batch or a step, the run says what it waits for
    max_skipped: int = 50  # steps in a row without a finite gradient after which the run stops and says where it begins

    def check(self) -> None:
        counts = (
            "epochs",
            "batch_size",
            "accumulate",
            "eval_batch_size",
            "checkpoint_every",
            "log_every",
            "max_skipped",
        )
        _require(self.stall_seconds > 0, "train.stall_seconds", self.stall_seconds, "give more than 0")
        for name in counts:
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "give 1 or more")
        _require(self.evaluate_every >= 0, "train.evaluate_every", self.evaluate_every, "give 0 or more epochs")
        _require(0 <= self.seed < 2**31, "train.seed", self.seed, "give 0 or more, less than 2**31")
        _require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"does not divide train.batch_size={self.batch_size}; give a divisor of it",
        )


class MeshConfig(Settings, frozen=True):
    """How the devices of all processes are arranged; all share the batch."""

    data: int = -1  # devices that each hold a whole copy of the state, or a group that does; -1: as many as there are
    fsdp: int = 1  # devices that share one copy of parameters, moments and average

    def check(self) -> None:
        _require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "give 1 or more, or -1 for all there are")
        _require(self.fsdp >= 1, "mesh.fsdp", self.fsdp, "give 1 or more")


class Config(Settings, frozen=True):
    """One run."""

    audio: AudioConfig = AudioConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def check(self) -> None:
        if self.data.window_seconds:
            frames, source = self.audio.frames(self.data.window_seconds), "data.window_seconds"
            check_windows(self, frames, f"{source}={self.data.window_seconds:g}")
        else:  # the length comes with the data; the frequency axis is known already
            check_windows(self, 1 << 30, "the data's length")
        _require(
            self.augment.freq_width <= self.audio.mels,
            "augment.freq_width",
            self.augment.freq_width,
            f"wider than audio.mels={self.audio.mels}",
        )


def check_windows(config: Config, frames: int, origin: str) -> None:
    """Refuses attention windows that are larger than the map of their stage.

    Raises:
      ConfigError: names the stage, its window and its map.
    """
    for i, (window, size) in enumerate(zip(config.model.windows, config.model.maps(config.audio.mels, frames))):
        if set(config.model.spec[i]) <= {"N", "D"}:
            continue
        for axis, wide, room in zip(("frequency rows", "time columns"), window, size):
            _require(
                wide <= room,
                f"model.windows[{i}]",
                window,
                f"larger than its map, which has {room} {axis} (audio.mels={config.audio.mels}, {origin}); "
                f"give at most {room}",
            )
