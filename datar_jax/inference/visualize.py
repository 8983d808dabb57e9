"""Draws one window of a sound file with `save_attention_figure`."""

from __future__ import annotations

from pathlib import Path

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.config import ConfigError
from datar_jax.inference.classifier import AudioClassifier


def draw(model: AudioClassifier, file: str, out: Path, at: float | None) -> tuple[float, float, tuple[str, ...]]:
    """Draws a window of a sound; returns its start and end in seconds, and what is odd about the file."""
    import jax.numpy as jnp
    import numpy as np

    from datar_jax.audio.log_mel_jax import normalize
    from datar_jax.audio.recording import measure
    from datar_jax.inference.attention_figure import save_attention_figure
    from datar_jax.inference.attention_maps import compute_attention_maps
    from datar_jax.inference.predict import predict_files
    from datar_jax.inference.windows import FailedFile
    from datar_jax.models.heads import probabilities

    description, audio = model.description, model.audio
    if model.params is None or description.normalization is None:
        raise ModelError(
            f"{model.source}: an exported program has no attention maps; give a run, or an export of weights"
        )
    prediction = next(iter(predict_files(model, [file])))
    if isinstance(prediction, FailedFile):
        raise ConfigError(f"{file}: {prediction.reason}")
    recording = measure(file, audio)
    second = audio.sample_rate / audio.hop_length  # in columns
    last = max(0, recording.frames - model.frames)
    if at is None:
        loudest = max(prediction.events, key=lambda event: event.score, default=None)
        middle = (loudest.onset + loudest.offset) / 2 * second if loudest else 0
        at = min(last, max(0, round(middle - model.frames / 2))) / second
    start = round(at * second)
    if start >= recording.frames:
        raise ConfigError(f"--at={at:g}: {file} ends at {recording.seconds:.2f} s")
    row = next(recording.windows([start], model.frames, "mel"))
    valid = int(row["frames"])
    mel_FxT = np.asarray(normalize(row["mel"], *description.normalization))
    shape, classes = description.config.model, len(model.labels)
    inside = compute_attention_maps(shape, model.params, classes, audio.n_mels, model.frames, mel_FxT, valid)
    sizes = tuple(head.size for head in model.heads)
    score_S = np.asarray(probabilities(jnp.asarray(inside.logits_S)[None], description.config.data.labels, sizes)[0])
    began, ended = start / second, min((start + valid) / second, recording.seconds)
    events = [
        event._replace(onset=max(event.onset, began) - began, offset=min(event.offset, ended) - began)
        for event in prediction.events
        if event.onset < ended and event.offset > began
    ]
    name = Path(file).name
    title = name if start == 0 and valid == recording.frames else f"{name}, from {began:.2f} s"
    save_attention_figure(out, row["mel"], audio, inside, score_S, model.labels, events, model.heads, title)
    return began, ended, prediction.notes
