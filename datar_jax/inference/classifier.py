"""A trained model as a function of a sound file, of samples, or of a batch of windows.

Shapes: B batch, N samples, F mel bins, T frames, C channels, S classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import eval_window_starts, window_samples
from datar_jax.audio.recording import NOT_FINITE, Batch, InputKind, Recording, measure, recording_of_samples
from datar_jax.checkpoints.integrity import short_message
from datar_jax.checkpoints.model_info import ModelError, ModelInfo
from datar_jax.checkpoints.pretrained import ONNX, PretrainedModel, load_pretrained
from datar_jax.config import AudioConfig
from datar_jax.labels import Head
from datar_jax.models.spec import ModelSpec, predict, spectrograms

BATCH = 32  # windows at a time


def load(path: str | Path) -> AudioClassifier:
    """Loads a trained model.

        model = datar_jax.load("runs/mine")
        model.top_k(model("dog.wav"))

    Args:
      path: a run's work directory (of one fold), one of its checkpoints, or an export in any form.

    Raises:
      ModelError: there is no model, or it cannot be used.
    """
    return AudioClassifier(load_pretrained(path))


class AudioClassifier:
    """Classifies and embeds sounds as in evaluation: views of a long clip are averaged.

    Attributes:
      description: settings, classes, normalization, where it comes from.
      source: where it was read, for a person.
      notes: what a person should know of how it was read.
      params: its weights, float32; None of an exported program.
      labels: the classes, in the order of the scores; of several heads one after another.
      heads: name and classes of each head; none: one head over all classes.
      audio: the front end.
      frames: columns of a window.
      input_kind: what a batch holds, see `recording.Recording.windows`.
    """

    description: ModelInfo
    source: str
    notes: tuple[str, ...]
    params: Any
    labels: tuple[str, ...]
    heads: tuple[Head, ...]
    audio: AudioConfig
    frames: int
    input_kind: InputKind

    def __init__(self, saved: PretrainedModel) -> None:
        self.description, self.source, self.params = saved.description, saved.source, saved.params
        self.notes = saved.notes
        self.labels, self.heads = saved.description.labels, saved.description.heads
        self.audio, self.frames = saved.description.audio, saved.description.frames
        if saved.program:
            self.input_kind = "waveform"
            self._program = _open_program(saved)
            return
        if saved.description.normalization is None:
            raise ModelError(f"{saved.source}: never trained on sound; fine-tune it first (configs/finetune.py)")
        self.input_kind = "mel" if self.audio.frontend == "host" else "samples"
        config = saved.description.config
        model = msgspec.structs.replace(config.model, remat=False)  # there is no backward pass
        sizes = tuple(head.size for head in saved.description.heads)
        spec = ModelSpec(msgspec.structs.replace(config, model=model), len(self.labels), self.frames, 1, sizes)
        # jnp.asarray would compile a program for each shape: half a second for the smallest model.
        statistics_2 = np.array(saved.description.normalization, np.float32)
        self._statistics, self._weights = jax.device_put((statistics_2, saved.params))
        self._forward = jax.jit(partial(_forward, spec))

    def __call__(self, sound: str | Path | ArrayLike, sample_rate: int | None = None) -> NDArray[np.float64]:
        """Probabilities of one sound, (S,).

        Args:
          sound: a file, or samples as `recording.recording_of_samples` takes them: one channel (N,), or several.
          sample_rate: of the samples in Hz; of a file it is known.

        Raises:
          AudioError: the sound cannot be used.
          ValueError: samples without a rate, or an array that is no sound by its type or shape.
        """
        recording = self._recording(sound, sample_rate)
        for note in recording.notes:
            warnings.warn(f"{recording.path or 'samples'}: {note}", stacklevel=2)
        starts = eval_window_starts(recording.frames, self.frames)
        scores = [self.score(batch) for batch in _batches(recording, starts, self)]
        score_S = np.concatenate(scores)[: len(starts)].astype(np.float64).mean(0)
        if not np.isfinite(score_S).all():
            raise AudioError(NOT_FINITE)
        return score_S

    def top_k(self, scores_S: ArrayLike, count: int = 5) -> list[tuple[str, float]]:
        """The best classes and their probabilities, best first."""
        scores = np.asarray(scores_S)
        return [(self.labels[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:count]]

    def score(self, batch: Batch) -> NDArray[np.float32]:
        """Probabilities of a batch of windows, (B, S); the batch as `reads` says."""
        if self.input_kind == "waveform":
            return self._run_program(batch)
        return np.asarray(self._forward(self._weights, self._statistics, batch)["scores"])

    def embed(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """What the head sees of a batch of windows.

        Returns:
          `scores` (B, S); `clip` (B, C), the mean over the sound; `columns` (B, T, C), the same of each column of the
          last map.

        Raises:
          ModelError: the model is an exported program, which gives probabilities only.
        """
        if self.input_kind == "waveform":
            raise ModelError(f"{self.source}: a program gives probabilities only; use an export of its weights")
        return {name: np.asarray(x) for name, x in self._forward(self._weights, self._statistics, batch).items()}

    def _run_program(self, batch: Batch) -> NDArray[np.float32]:
        """Scores from an exported program; what it returns is checked, since anyone may have written it."""
        shape = len(batch["waveform"]), len(self.labels)
        try:
            scores_BxS = np.asarray(self._program(batch["waveform"], batch["length"], batch["start"]))
        except Exception as error:  # of XLA and onnxruntime, which do not export their error types
            raise ModelError(f"{self.source}: its program cannot be run ({short_message(error)})") from None
        if scores_BxS.shape != shape or scores_BxS.dtype != np.float32:
            raise ModelError(
                f"{self.source}: its program returned {scores_BxS.dtype}{list(scores_BxS.shape)}, not "
                f"float32{list(shape)}; it is of another model than its description"
            )
        return scores_BxS

    def _recording(self, sound: str | Path | ArrayLike, sample_rate: int | None) -> Recording:
        if isinstance(sound, (str, Path)):
            return measure(sound, self.audio)
        if sample_rate is None:
            raise ValueError("samples without a rate; give sample_rate in Hz")
        return recording_of_samples(sound, sample_rate, self.audio)


def _forward(spec: ModelSpec, params: Any, statistics: jax.Array, batch: Any) -> dict[str, jax.Array]:
    """Scores, and the embeddings they are computed from."""
    sound = spectrograms(spec, batch)
    scores, outputs = predict(spec, params, sound["mel"], sound["frames"], *statistics)
    return {"scores": scores, "clip": outputs["features"], "columns": outputs["columns"]}


def _batches(recording: Recording, starts: NDArray[np.int64], model: AudioClassifier) -> Iterator[Batch]:
    """Yields batches of equal size, at most `BATCH` windows; the last one is padded."""
    rows = recording.windows(starts.tolist(), model.frames, model.input_kind)
    size = min(len(starts), BATCH)
    while block := [row for _, row in zip(range(size), rows)]:
        block += block[:1] * (size - len(block))
        yield {name: np.stack([row[name] for row in block]) for name in block[0]}


def _open_program(saved: PretrainedModel) -> Callable[..., Any]:
    """A function of waveforms, lengths and starts from the file of an exported program."""
    content, description = saved.read_program(), saved.description
    try:
        if saved.program and saved.program.name == ONNX:
            from datar_jax.export.onnx import from_onnx

            return from_onnx(content)
        from datar_jax.export.stablehlo import from_stablehlo

        return from_stablehlo(content, window_samples(description.audio, description.frames), len(description.labels))
    except (ImportError, ValueError) as error:
        raise ModelError(f"{saved.program}: {error}") from None
