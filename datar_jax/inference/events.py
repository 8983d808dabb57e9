"""Event detection: from the scores of overlapping spans of a recording to events with onset and offset.

Spans cut the recording into cells, between whose ends no span begins or ends. A class's score in a cell is the
geometric mean of the probabilities of all spans that cover it: a window that hears an event anywhere scores high as a
whole, so that only where the windows agree the event can be; their plain mean would begin an event most of a window
early (measured: docs/benchmarks.md). An event is a run of cells with at least `EventSettings.offset`, one of which
reaches `EventSettings.onset`; runs with a short gap between them are one event. Its score is its highest cell's.

Spans come in the order of time and events leave as soon as nothing that follows can change them. What is held is the
spans of a few windows and one run and one event a class, however long the recording.

Times are the recording's own: column t lies at sample t * hop, and no time is a sum of times before it.
Shapes: M spans, S classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datar_jax.config import AudioConfig

_TINY = 1e-7  # a probability is kept this far from 0 before its logarithm is taken: as `metrics`
_NONE = -1  # where a run or an event would begin, of a class that has none


class Event(NamedTuple):
    """A detected event."""

    label: str
    onset: float  # seconds into the recording
    offset: float
    score: float  # the highest that the class had in a cell of the event


@dataclasses.dataclass(frozen=True)
class EventSettings:
    """Thresholds and durations of event detection, as in pyannote.audio's `Binarize`.

    Raises:
      ValueError: a number out of range, which it names.
    """

    onset: float = 0.5  # an event reaches this score somewhere
    offset: float = 0.4  # and lasts while its class has at least this; not above `onset`
    min_duration_off: float = 0.3  # seconds; a shorter gap between two events of a class is closed
    min_duration_on: float = 0.0  # seconds; a shorter event is dropped

    def __post_init__(self) -> None:
        if not 0 < self.onset <= 1:
            raise ValueError(f"onset={self.onset:g}: give a probability above 0, at most 1")
        if not 0 < self.offset <= self.onset:
            raise ValueError(f"offset={self.offset:g}: give more than 0, at most the onset ({self.onset:g})")
        for name in ("min_duration_off", "min_duration_on"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{name}={seconds:g}: give 0 seconds or more")


DEFAULT = EventSettings()


class EventDetector:
    """Detects the events of one recording from its spans, in constant memory.

    Args:
      labels: the classes.
      audio: the front end, whose frames the spans are given in.
      seconds: length of the recording; no event ends later.
      rules: what counts as an event.
    """

    def __init__(
        self, labels: Sequence[str], audio: AudioConfig, seconds: float, rules: EventSettings = DEFAULT
    ) -> None:
        self._labels, self._audio, self._seconds, self._settings = labels, audio, seconds, rules
        self._cells = _Cells(len(labels))
        self._runs = _Runs(len(labels))
        self._events = _Runs(len(labels))

    def add(self, spans_Mx2: ArrayLike, score_MxS: ArrayLike) -> list[Event]:
        """Takes the scores of some spans, such as one window, or the parts of one.

        Args:
          spans_Mx2: first column and last (exclusive) of each. None begins before the earliest one of the last call.
          score_MxS: probabilities.

        Returns:
          The events that are final now, in the order in which they became so.

        Raises:
          ValueError: spans that begin too early, are empty, or have other numbers of scores.
        """
        spans, score = np.asarray(spans_Mx2, np.int64), np.asarray(score_MxS, np.float64)
        if spans.ndim != 2 or spans.shape[1] != 2 or score.shape != (len(spans), len(self._labels)):
            raise ValueError(f"spans {spans.shape} and scores {score.shape}: give (M, 2) and (M, {len(self._labels)})")
        if (spans[:, 0] >= spans[:, 1]).any():
            raise ValueError("a span ends where it begins, or before")
        return [event for cell in self._cells.add(spans, score) for event in self._step(*cell)]

    def close(self) -> list[Event]:
        """Yields the events that are open at the end of the recording."""
        found = [event for cell in self._cells.close() for event in self._step(*cell)]
        nothing_S = np.zeros(len(self._labels))
        return [*found, *self._step(self._cells.end, self._cells.end, nothing_S), *self._emit(math.inf)]

    def _step(self, first: int, last: int, score_S: NDArray[np.float64]) -> Iterator[Event]:
        """Processes one cell, which starts where the last one ended."""
        runs, events = self._runs, self._events
        loud_S = score_S >= self._settings.offset
        for s in np.flatnonzero(~loud_S & (runs.first_S != _NONE)).tolist():
            if runs.peak_S[s] >= self._settings.onset:  # an event of this class that is still there is near enough
                events.extend(s, runs.first_S[s], first, runs.peak_S[s])
            runs.first_S[s] = _NONE
        for s in np.flatnonzero(loud_S).tolist():
            runs.extend(s, first, last, score_S[s])
        yield from self._emit(last)

    def _emit(self, now: float) -> Iterator[Event]:
        """Yields events that can no longer be extended."""
        events = self._events
        next_S = np.where(self._runs.first_S != _NONE, self._runs.first_S, now)
        far_S = (
            next_S - events.last_S
        ) * self._audio.hop_length >= self._settings.min_duration_off * self._audio.sample_rate
        for s in np.flatnonzero(far_S & (events.first_S != _NONE)).tolist():
            first, last = int(events.first_S[s]), int(events.last_S[s])
            events.first_S[s] = _NONE
            if (last - first) * self._audio.hop_length >= self._settings.min_duration_on * self._audio.sample_rate:
                yield Event(self._labels[s], self._time(first), self._time(last), float(events.peak_S[s]))

    def _time(self, column: int) -> float:
        return min(column * self._audio.hop_length / self._audio.sample_rate, self._seconds)


class _Runs:
    """For each class, a run of frames and its highest score, or none."""

    def __init__(self, classes: int) -> None:
        self.first_S = np.full(classes, _NONE, np.int64)
        self.last_S = np.zeros(classes, np.int64)
        self.peak_S = np.zeros(classes)

    def extend(self, s: int, first: int, last: int, score: float) -> None:
        """Extends the run of a class to `last`; a new run starts at `first`."""
        if self.first_S[s] == _NONE:
            self.first_S[s], self.peak_S[s] = first, score
        self.last_S[s], self.peak_S[s] = last, max(self.peak_S[s], score)


_Cell = tuple[int, int, NDArray[np.float64]]  # first column, last (exclusive), score of each class


class _Cells:
    """Turns spans into cells; a cell is complete when no later span can cover it."""

    def __init__(self, classes: int) -> None:
        self._spans = np.zeros((0, 2), np.int64)
        self._logs = np.zeros((0, classes))
        self.end = 0  # of the last cell that left

    def add(self, spans: NDArray[np.int64], score: NDArray[np.float64]) -> Iterator[_Cell]:
        start = int(spans[:, 0].min(initial=np.iinfo(np.int64).max)) if len(spans) else self.end
        if start < self.end:
            raise ValueError(f"a span begins at column {start}, after one that began at {self.end} was there")
        yield from self._until(start)
        self._spans = np.concatenate([self._spans, spans])
        self._logs = np.concatenate([self._logs, np.log(np.maximum(score, _TINY))])

    def close(self) -> Iterator[_Cell]:
        yield from self._until(int(self._spans[:, 1].max(initial=self.end)))

    def _until(self, column: int) -> Iterator[_Cell]:
        """The cells before a column, with the score of each class; 0 where no span is."""
        ends = np.unique(np.concatenate([self._spans.ravel(), [self.end, column]]))
        ends = ends[(ends >= self.end) & (ends <= column)]
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist()):
            over_M = (self._spans[:, 0] <= first) & (self._spans[:, 1] >= last)
            logs_S = self._logs[over_M].mean(axis=0) if over_M.any() else np.full(self._logs.shape[1], -np.inf)
            yield first, last, np.exp(logs_S)
        self.end = column
        open_M = self._spans[:, 1] > column
        self._spans, self._logs = self._spans[open_M], self._logs[open_M]
