"""Where a model comes from: program, data, run, the model it was initialized from, and its test metrics."""

from __future__ import annotations

import msgspec

MAX_CHAIN = 32  # models, each initialized from the next
Metrics = dict[str, int | float | dict[str, int | str] | None]  # as in `result.json`, by name


class DataProvenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The data of a model."""

    kind: str = ""  # `data.kind` of the run
    name: str = ""
    clips_sha256: str = ""  # of prepared data, as their index has it
    fold: int | None = None  # that was held out for the test
    clips_crc32: bytes = b""  # of training and validation clips: `data.duplicates.pack_checksums`
    clips: dict[str, int] = {}  # by split

    def __post_init__(self) -> None:
        if len(self.clips_crc32) % 4:
            raise ValueError("clips_crc32: not four bytes for each clip")


class RunProvenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model was trained."""

    seed: int
    epochs: int
    steps: int


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Where a model comes from."""

    source: str = msgspec.field(default="", name="from")  # of a pretrained model: where it was read
    program: str = ""
    data: DataProvenance = DataProvenance()
    run: RunProvenance | None = None
    pretraining: Provenance | None = None  # of the model that it was initialized from
    numbers: Metrics = {}  # on the test clips; of an export

    def __post_init__(self) -> None:
        counts = [self.numbers.get(name) for name in ("clips", "macs_per_clip")]
        if self.numbers and not all(isinstance(count, int) for count in counts):
            raise ValueError("numbers: without the numbers clips and macs_per_clip")
        length, model = 0, self.pretraining
        while model is not None:
            length, model = length + 1, model.pretraining
        if length > MAX_CHAIN:
            raise ValueError(f"pretraining: a chain of more than {MAX_CHAIN} models")
