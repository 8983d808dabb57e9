"""Describes a trained model without its weights: settings, classes, window, normalization, provenance. Imports no jax.

`model.json` holds it, beside the checkpoints of a run and beside the weights of an export. Exports of version 0.1 call
the file `config.json`, which otherwise means the settings of a run. Its checksums are of each of its own fields and, in
an export, of each stored tensor or of the program's file: this one file, which is written last, commits an export.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from datar_jax.atomic_files import write_json
from datar_jax.checkpoints.provenance import Provenance
from datar_jax.config import AudioConfig, Config, ConfigError
from datar_jax.config.migration import upgrade
from datar_jax.escaping import printable
from datar_jax.foreign_files import read_regular
from datar_jax.labels import Head, heads_from_sizes
from datar_jax.typed_json import JsonError, decode_json

MODEL_FILE = "model.json"
LEGACY_EXPORT_FILE = "config.json"  # in exports of version 0.1
MAX_BYTES = 64 << 20  # of a description: a million classes
MAX_NAME = 200  # characters of a name in a message
MAX_CELLS = 1 << 22  # of a spectrogram that a model sees at once: 32,768 frames of 128 mel bins
OFFICIAL = (".pth", ".pt", ".npz")  # suffixes of official DAT weights


class ModelError(ValueError):
    """A model cannot be used; the message is one line that names the file and says what to do."""


class Checksums(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """CRC-32 of what belongs to a description, in hexadecimal, by name."""

    fields: dict[str, str] = {}  # of the description, such as `config.audio.sample_rate`
    weights: dict[str, str] = {}  # of an export: its tensors as stored, or the file of its program


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about a trained model except its weights."""

    format: Literal["datar-jax 1"] = "datar-jax 1"
    config: Config
    labels: tuple[str, ...]  # of all heads, in score order
    head_sizes: dict[str, int] = msgspec.field(default={}, name="heads")  # classes of each; empty: a single head
    frames: int  # length of the window, which position tables and learned signals have
    mean_db: float | None  # of the training spectrograms, for normalization; None: not trained on spectrograms
    std_db: float | None
    structure: str = ""  # of an export: `pretrained.structure_checksum` of its weights
    provenance: Provenance = Provenance()
    checksums: Checksums = Checksums()  # none in descriptions of earlier versions

    def __post_init__(self) -> None:
        sizes = tuple(self.head_sizes.values())
        if not 1 <= self.frames <= MAX_CELLS // self.config.audio.n_mels:
            most = f"{MAX_CELLS // self.config.audio.n_mels:,} of audio.n_mels={self.config.audio.n_mels}"
            raise ConfigError(f"frames={self.frames}: a window has 1 to {most}; give a shorter data.window_seconds")
        if self.normalization and not (abs(self.normalization[0]) <= 1000 and 1e-6 <= self.normalization[1] <= 1000):
            raise ConfigError(f"mean_db={self.mean_db}, std_db={self.std_db}: no mean and deviation of decibels")
        if not self.labels or (sizes and (min(sizes) < 1 or sum(sizes) != len(self.labels))):
            raise ConfigError(f"heads={self.head_sizes}: do not add up to the {len(self.labels)} labels")
        if self.config.model.num_classes != len(self.labels):
            raise ConfigError(f"model.num_classes={self.config.model.num_classes}: there are {len(self.labels)} labels")

    @property
    def heads(self) -> tuple[Head, ...]:
        """The classification heads; none: one head over all classes."""
        return heads_from_sizes(self.head_sizes, self.labels)

    @property
    def audio(self) -> AudioConfig:
        """Settings of the front end."""
        return self.config.audio

    @property
    def normalization(self) -> tuple[float, float] | None:
        """Mean and standard deviation in dB; None for a model that was not trained on spectrograms."""
        return None if self.mean_db is None or self.std_db is None else (self.mean_db, self.std_db)

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return self.frames * self.audio.hop_length / self.audio.sample_rate


def write_model_info(path: Path, description: ModelInfo) -> None:
    """Writes a model description as JSON with a checksum of each of its fields, atomically."""
    tree = json.loads(msgspec.json.encode(description))
    tree["checksums"] |= {"fields": dict(_field_checksums(tree))}
    write_json(path, tree)


def read_model_info(path: Path) -> ModelInfo:
    """Reads a model description, also one of an earlier version.

    Raises:
      ModelError: the file is missing, damaged, of a later version, or inconsistent.
    """
    try:
        content = read_regular(path, MAX_BYTES)
        description = decode_json(content, ModelInfo, _upgrade)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except JsonError as error:
        raise ModelError(f"{path}: not a model description of this version ({error})") from None
    if written := description.checksums.fields:
        compare_checksums(path, written, dict(_field_checksums(msgspec.json.decode(content))))
    return description


def _upgrade(tree: Any) -> Any:
    """The plain values of a description, with the settings of an earlier version under today's names."""
    return {**tree, "config": upgrade(tree["config"])} if isinstance(tree, dict) and "config" in tree else tree


def compare_checksums(path: Path, written: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compares checksums with those that were written.

    Raises:
      ModelError: the first name that was changed, added or removed.
    """
    for name in [*written, *found]:
        if written.get(name) != found.get(name):
            change = "was added" if name not in written else "differs" if name in found else "is missing"
            raise ModelError(
                f"{path}: {printable(name[:MAX_NAME])} {change} since it was written; copy or export the model again "
                f"(if it was changed on purpose, remove checksums from {MODEL_FILE})"
            )


def _field_checksums(tree: dict[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Name and checksum of each field of a description, of settings by their dotted names."""
    for name, value in tree.items():
        field = f"{section}{name}"
        if isinstance(value, dict) and field.partition(".")[0] == "config":
            yield from _field_checksums(value, f"{field}.")
        elif field not in ("format", "checksums"):  # a later format has checks of its own
            yield field, f"{zlib.crc32(json.dumps(value).encode()):08x}"


def find_model_info(path: str | Path) -> Path:
    """Finds the file that describes the model at `path`.

    Args:
      path: a run's work directory (of one fold), its `checkpoints` or one of them, an export, or a file of one.

    Raises:
      ModelError: no model there; the message names what was found instead.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise ModelError(f"{path}: no such file or folder; give a run's work directory or an export")
    folder = given.parent if given.is_file() else given
    if not ((folder / MODEL_FILE).is_file() or (folder / LEGACY_EXPORT_FILE).is_file()):
        folder = _model_folder(folder)
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    if folds := sorted(each.parent.name for each in folder.glob(f"fold_*/{MODEL_FILE}")):
        raise ModelError(
            f"{path}: holds {len(folds)} models, one a fold; give one of them, such as {folder / folds[0]}"
        )
    if (folder / "checkpoints").exists():
        raise ModelError(
            f"{path}: has no {MODEL_FILE}, as in runs of early versions; the same training command writes it"
        )
    if (folder / LEGACY_EXPORT_FILE).is_file():
        return folder / LEGACY_EXPORT_FILE
    raise ModelError(f"{path}: neither a run's work directory nor an export")


def is_run(description: Path) -> bool:
    """Whether a file from `find_model_info` belongs to a run; otherwise it belongs to an export."""
    return description.name == MODEL_FILE and (description.parent / "checkpoints").exists()


def _model_folder(folder: Path) -> Path:
    """Work directory of a checkpoint or of a `checkpoints` folder, export of a `params` folder; else the folder."""
    if folder.name.isdecimal() and folder.absolute().parent.name == "checkpoints":
        folder = folder.parent
    return folder.parent if folder.name in ("checkpoints", "params") else folder
