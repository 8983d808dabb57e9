"""Classes and events of sound files; windows of many files share batches of one size.

Files come one after another and each is held as a few windows only, so that memory depends neither on how many there
are nor on how long they are. A file that cannot be used is an answer like any other. While a batch is computed, the
next one is read.

Shapes: B windows of a batch, S classes, W windows of a recording.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datar_jax.audio.recording import NOT_FINITE, Batch
from datar_jax.inference.events import DEFAULT, Event, EventDetector, EventSettings
from datar_jax.inference.windows import FailedFile, Reader, map_windows
from datar_jax.labels import Heads, class_names


class Scorer(Reader, Protocol):
    """A model that scores windows."""

    @property
    def labels(self) -> Sequence[str]:
        """The classes, those of each head after another."""

    @property
    def heads(self) -> Heads:
        """Name and number of classes of each head; none: one head over all classes."""

    def score(self, batch: Batch) -> NDArray[np.float32]:
        """Probabilities of a batch of windows, (B, S)."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Scores and events of one file."""

    path: str
    seconds: float
    scores_S: NDArray[np.float64] = dataclasses.field(compare=False)  # mean over the views that a run is evaluated on
    events: tuple[Event, ...]  # by onset
    notes: tuple[str, ...] = ()  # what is odd about the file


def predict_files(
    model: Scorer,
    paths: Iterable[str | Path | FailedFile],
    rules: EventSettings = DEFAULT,
    overlap: float = 0.75,
    batch_size: int = 32,
    watch: Callable[[float], None] | None = None,
) -> Iterator[Prediction | FailedFile]:
    """Yields scores and events of files and of the sounds in folders.

    Args:
      model: what scores windows.
      paths: files, and folders, searched as by `iter_audio_files`.
      rules: what counts as an event.
      overlap: share of a window that the next one has too, 0 to below 1; the more, the finer are the times of events,
        and the longer it takes. Clip scores do not depend on it.
      batch_size: windows that are scored together.
      watch: as `map_windows`.

    Yields:
      An answer for each file, in order.

    Raises:
      ValueError: an overlap or a batch size that cannot be.
    """
    labels = class_names(model.labels, model.heads)
    for item in map_windows(model.score, model, paths, overlap, batch_size, watch):
        if isinstance(item, FailedFile):
            yield item
            continue
        recording, score_S = item.recording, np.asarray(item.output, np.float64)
        if item.number == 0:
            timeline = EventDetector(labels, recording.audio, recording.seconds, rules)
            events: list[Event] = []
            total_S, views = np.zeros(len(labels)), 0
        if item.is_view:
            total_S, views = total_S + score_S, views + 1
        events += timeline.add([[item.start, item.start + item.frames]], score_S[None])
        if item.number == item.windows - 1:
            events += timeline.close()
            if np.isfinite(total_S).all():
                ordered = tuple(sorted(events, key=lambda event: (event.onset, event.label)))
                yield Prediction(recording.path, recording.seconds, total_S / views, ordered, recording.notes)
            else:
                yield FailedFile(recording.path, NOT_FINITE)
