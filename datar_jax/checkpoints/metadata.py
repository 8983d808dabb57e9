"""The line of a checkpoint: JSON with a checksum of its own, beside the state that it describes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class BadCheckpoint(Exception):
    """Why one checkpoint cannot be used."""


def record_path(folder: Path, step: int) -> Path:
    """Where the line of a checkpoint lies."""
    return folder / str(step) / "meta" / "metadata"


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The line of a checkpoint, verified.

    Raises:
      BadCheckpoint: it is missing, damaged, or of another checkpoint.
    """
    try:
        record = json.loads(record_path(folder, step).read_bytes())
        crc = record.pop("crc", None)
        whole = crc == sealed(record)["crc"]
    except FileNotFoundError:
        raise BadCheckpoint("it has no meta/metadata: not a whole checkpoint of this program") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadCheckpoint(f"meta/metadata cannot be read: {reason(error)}") from None
    if not whole or not {"step", "data", "run", "score", "leaves"} <= set(record):
        raise BadCheckpoint("meta/metadata is not what was written")
    if record["step"] != step:
        raise BadCheckpoint(f"it is of step {record['step']}")
    return record


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with a checksum of its own."""
    return {**record, "crc": zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def rank_by_score(scores: Mapping[int, float], steps: Sequence[int]) -> list[int]:
    """Those of the steps that have a score; of equal ones the later first."""
    return sorted((step for step in steps if step in scores), key=lambda step: (scores[step], step), reverse=True)


def reason(error: BaseException) -> str:
    """The part of an error that a person wants to read."""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) < 160 else line.rsplit(": ", 1)[-1][:160]
