"""Settings of the token mixers: one frozen struct per mixer, which names the letters of `model.spec` that it sets up.

A new mixer brings a struct here (listed in `MIXER_SETTINGS`), a field of its type on `ModelConfig`, and a module in
models/mixers/. Tuples have one entry per stage; entries of stages without the mixer are not read.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from datar_jax.config.base import StrictStruct, require

MAX_WINDOW = 1024  # pixels of a window; its bias grows with their square
Sizes = tuple[tuple[int, int], ...]  # (frequency rows, time columns) of each stage


class MixerSettings(StrictStruct, frozen=True):
    """Base of the settings of one mixer."""

    field: ClassVar[str] = ""  # of ModelConfig
    letters: ClassVar[dict[str, str]] = {}  # letters of model.spec, and what each stands for
    per_stage: ClassVar[tuple[str, ...]] = ()  # fields with one entry per stage
    input_adaptor: ClassVar[bool] = False  # whether the learnable input adaptor stands before its blocks

    @classmethod
    def section(cls) -> str:
        """Dotted name of these settings in `Config`."""
        return f"model.{cls.field}"

    def check_stage(self, stage: int, letters: str, heads: int) -> None:
        """Raises ConfigError unless the settings suit a stage that has the mixer.

        Args:
          stage: index of the stage.
          letters: its blocks, `model.spec[stage]`.
          heads: its attention heads.
        """


class WindowSettings(MixerSettings, frozen=True):
    """Window attention (L) and shifted window attention (S)."""

    field: ClassVar[str] = "window"
    letters: ClassVar[dict[str, str]] = {"L": "window", "S": "shifted window"}
    per_stage: ClassVar[tuple[str, ...]] = ("sizes", "shifts")
    largest: ClassVar[dict[str, float]] = {"sizes": MAX_WINDOW, "shifts": MAX_WINDOW}

    sizes: Sizes = ((8, 8), (8, 8), (8, 8), (4, 8))
    # Shift and mask an axis, too, that one window covers, as the code of DAT does. Ours leaves it whole: there is no
    # neighboring window to look into, and the mask would only part what belongs together.
    shift_covered: bool = False
    shifts: Sizes = ()  # pixels that S moves its windows by; empty: half a window, rounded up

    def check_stage(self, stage: int, letters: str, heads: int) -> None:
        field, window = f"model.window.sizes[{stage}]", self.sizes[stage]
        require(min(window) >= 1, field, window, "give a pair of positive sizes")
        require(math.prod(window) <= MAX_WINDOW, field, window, f"give a window of at most {MAX_WINDOW} pixels")
        if self.shifts and "S" in letters:
            field, shift = f"model.window.shifts[{stage}]", self.shifts[stage]
            inside = all(0 <= pixels < side for pixels, side in zip(shift, window)) and any(shift)
            require(inside, field, shift, f"give pixels of (frequency, time) below the window {window}, not both 0")


class NeighborhoodSettings(MixerSettings, frozen=True):
    """Neighborhood attention (N)."""

    field: ClassVar[str] = "neighborhood"
    letters: ClassVar[dict[str, str]] = {"N": "neighborhood"}
    per_stage: ClassVar[tuple[str, ...]] = ("sizes",)
    largest: ClassVar[dict[str, float]] = {"sizes": MAX_WINDOW}

    sizes: Sizes = ((7, 7), (7, 7), (7, 7), (7, 7))
    fill: bool = False  # fill a map that is smaller than the window with zeros that are attended to, as DAT++ does

    def check_stage(self, stage: int, letters: str, heads: int) -> None:
        field, size = f"model.neighborhood.sizes[{stage}]", self.sizes[stage]
        require(
            min(size) >= 1 and all(side % 2 for side in size),
            field,
            size,
            f"give odd sizes: model.spec[{stage}]={letters!r} has a neighborhood, which is centered on a pixel",
        )
        require(math.prod(size) <= MAX_WINDOW, field, size, f"give a window of at most {MAX_WINDOW} pixels")


class DeformableSettings(MixerSettings, frozen=True):
    """Deformable attention (D)."""

    field: ClassVar[str] = "deformable"
    letters: ClassVar[dict[str, str]] = {"D": "deformable"}
    per_stage: ClassVar[tuple[str, ...]] = ("groups", "strides", "kernels")
    input_adaptor: ClassVar[bool] = True
    largest: ClassVar[dict[str, float]] = {"groups": 64, "strides": 64, "kernels": 31, "offset_range": 1000}

    groups: tuple[int, ...] = (1, 1, 2, 4)  # offset groups
    strides: tuple[int, ...] = (8, 4, 1, 1)  # of the sampling grid, in pixels
    kernels: tuple[int, ...] = (9, 7, 5, 3)  # of the offset network
    offset_range: float = 2.0  # bound: half of it in key cells; negative: unbounded, clamped to the map
    grid: Literal["centre", "dat2022", "dat2023"] = "centre"  # reference points: ours, or a published convention
    # A bias from a table, of each pair of query and key (fixed) or from a small network (log_cpb), or a convolution of
    # the queries.
    position: Literal["table", "fixed", "log_cpb", "dwc", "none"] = "table"
    offsets: bool = True  # false: means of stride x stride pixels in place of samples, DAT++'s `no_off`

    def check_stage(self, stage: int, letters: str, heads: int) -> None:
        groups, stride, kernel = self.groups[stage], self.strides[stage], self.kernels[stage]
        require(
            groups >= 1 and heads % groups == 0,
            f"model.deformable.groups[{stage}]",
            groups,
            f"does not divide model.heads[{stage}]={heads}; give a divisor of it",
        )
        require(stride >= 1, f"model.deformable.strides[{stage}]", stride, "give 1 or more")
        field = f"model.deformable.kernels[{stage}]"
        require(kernel >= 1, field, kernel, "give 1 or more")
        # An even kernel has one key more than our grid has cells, each half a pixel beside the middle of its own.
        odd = self.grid != "centre" or kernel % 2 == 1
        require(
            odd,
            field,
            kernel,
            "give an odd size, which has a middle as the cells of grid 'centre' have; or a published grid",
        )
        self._check_published()

    def _check_published(self) -> None:
        """Refuses what only the code of 2023 has under the other grids."""
        newest = self.grid == "dat2023"
        why = "a bias of each pair fits maps of one size, and clips have any length; give 'table'"
        if self.grid == "dat2022":
            why = "the published code of 2022 fails with it; give 'table', or grid 'dat2023'"
        require(self.position != "fixed" or newest, "model.deformable.position", self.position, why)
        why = "the points of grid 'centre' rest, with their position bias, where offset_range=0; give that"
        if self.grid == "dat2022":
            why = "the published code of 2022 fails with it; give grid 'dat2023'"
        require(self.offsets or newest, "model.deformable.offsets", self.offsets, why)
        why = "has no effect with model.deformable.offsets=False, as published; give 'none'"
        require(self.offsets or self.position == "none", "model.deformable.position", self.position, why)


MIXER_SETTINGS: tuple[type[MixerSettings], ...] = (WindowSettings, NeighborhoodSettings, DeformableSettings)
LETTERS: dict[str, type[MixerSettings]] = {letter: kind for kind in MIXER_SETTINGS for letter in kind.letters}
