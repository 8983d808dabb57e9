"""What a model is, beside its weights: settings, classes, window, normalisation, where it comes from. Knows no jax.

A run leaves it as `model.json` beside its checkpoints; an export holds the same as `config.json` beside its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from datar_jax.config import AudioConfig, Config, ConfigError
from datar_jax.config.migration import upgrade
from datar_jax.filesystem import write_json

RUN, EXPORT = "model.json", "config.json"
OFFICIAL = (".pth", ".pt", ".npz")  # endings of files of official DAT weights


class ModelError(ValueError):
    """A model that cannot be used; its text is one line that names the file and says what to do."""


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about a trained model but its weights."""

    format: Literal["datar-jax 1"] = "datar-jax 1"
    config: Config
    labels: tuple[str, ...]  # of all heads, in the order of the scores
    heads: dict[str, int] = {}  # classes of each head by its name; empty: one head has all
    frames: int  # columns of the window that position tables and learned signals are made for
    mean_db: float | None  # of the training spectrograms; they are normalised with both. None: never saw one
    std_db: float | None
    structure: str = ""  # of an export: `saved.structure` of what lies beside it
    provenance: dict[str, Any] = {}  # data, run, pretraining, numbers: what the model card tells

    def __post_init__(self) -> None:
        sizes = tuple(self.heads.values())
        if self.frames < 1 or (self.std_db is not None and not self.std_db > 0):
            raise ConfigError(f"frames={self.frames}, std_db={self.std_db}: both must be more than 0")
        if not self.labels or (sizes and (min(sizes) < 1 or sum(sizes) != len(self.labels))):
            raise ConfigError(f"heads={self.heads}: do not share out the {len(self.labels)} labels")
        if self.config.model.num_classes != len(self.labels):
            raise ConfigError(f"model.num_classes={self.config.model.num_classes}: there are {len(self.labels)} labels")

    @property
    def audio(self) -> AudioConfig:
        """The front end."""
        return self.config.audio

    @property
    def normalisation(self) -> tuple[float, float] | None:
        """Mean and deviation in decibels; None of a model that was not trained on spectrograms."""
        return None if self.mean_db is None or self.std_db is None else (self.mean_db, self.std_db)

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.frames * self.audio.hop_length / self.audio.sample_rate


def write_model_info(path: Path, description: ModelInfo) -> None:
    """Writes it as JSON, whole or not at all."""
    write_json(path, json.loads(msgspec.json.encode(description)))


def read_model_info(path: Path) -> ModelInfo:
    """Reads what `write_description` wrote.

    Raises:
      ModelError: the file is missing, damaged, of a later version, or contradicts itself.
    """
    try:
        tree = msgspec.json.decode(path.read_bytes())
        if isinstance(tree, dict) and "config" in tree:
            tree["config"] = upgrade(tree["config"])
        return msgspec.convert(tree, ModelInfo)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: describes no model of this version ({error})") from None


def find_model_info(path: str | Path) -> Path:
    """The file that describes the model that lies at `path`.

    Args:
      path: a run's work directory (of one fold), its `checkpoints` or one of them, an export, or a file of one.

    Raises:
      ModelError: there is none; says what lies there instead.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ModelError(f"{path}: no such file or folder; give a run's work directory or an export")
    folder = place.parent if place.is_file() else place
    if not ((folder / RUN).is_file() or (folder / EXPORT).is_file()):
        folder = _around(folder)
    if (folder / RUN).is_file():
        return folder / RUN
    if folds := sorted(each.parent.name for each in folder.glob(f"fold_*/{RUN}")):
        raise ModelError(
            f"{path}: holds {len(folds)} models, one a fold; give one of them, such as {folder / folds[0]}"
        )
    if (folder / EXPORT).is_file() and not (folder / "checkpoints").exists():
        return folder / EXPORT
    if (folder / "checkpoints").exists():
        raise ModelError(f"{path}: has no {RUN}, as runs of earlier versions; the same training command writes it")
    raise ModelError(f"{path}: neither a run's work directory nor an export of one")


def _around(folder: Path) -> Path:
    """The work directory of a checkpoint or of all, the export of stored parameters; else the folder itself."""
    if folder.name.isdecimal() and folder.absolute().parent.name == "checkpoints":
        folder = folder.parent
    return folder.parent if folder.name in ("checkpoints", "params") else folder
