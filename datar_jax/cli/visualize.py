"""`look`: one picture of a sound as a model hears it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import folder, make_parser, moment, say_notes
from datar_jax.config import ConfigError

if TYPE_CHECKING:
    from datar_jax.inference.classifier import Model

USAGE = "python -m datar_jax look MODEL FILE [--out=look.png] [--at=SECONDS]"
SUMMARY = """Draws the log-mel spectrogram, the best classes and the timeline, and for each deformable block the
points where it sampled (reference points, moved points, weight by attention) and its attention as a
heat map. Of a long recording, one window: the one that begins at --at, or the one around the event
with the highest score. --out ends in .png, .pdf or .svg."""
EXAMPLE = "python -m datar_jax look runs/quickstart runs/quickstart-data/alarm/alarm_000.wav --out=look.png"


def main(arguments: list[str]) -> int:
    """Draws.

    Raises:
      ConfigError: an option, a model or a sound that cannot be used.
    """
    parser = make_parser("look", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("file", metavar="FILE", help="a sound")
    parser.add_argument("--out", type=folder, default="look.png", help="the picture (look.png)")
    parser.add_argument("--at", type=moment, help="seconds into the sound where the window begins")
    given = parser.parse_args(arguments)

    from datar_jax.audio.decode import AudioError
    from datar_jax.compilation_cache import keep_compiled
    from datar_jax.inference.classifier import load

    keep_compiled()
    out = folder(str(given.out))
    try:
        model = load(given.model)
        say_notes(model.notes)
        began, ended = draw(model, given.file, out, given.at)
    except AudioError as error:
        raise ConfigError(f"{given.file}: {error}") from None
    except (ModelError, ValueError) as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror}") from None
    print(f"{out}: {given.file}, {began:.2f} to {ended:.2f} s")
    return 0


def draw(model: Model, file: str, out: Path, at: float | None) -> tuple[float, float]:
    """Draws the window of a sound; returns where it begins and ends, in seconds."""
    import jax.numpy as jnp
    import numpy as np

    from datar_jax.audio.recording import measure
    from datar_jax.inference.attention_figure import look_png
    from datar_jax.inference.attention_maps import inspect
    from datar_jax.inference.predict import Failed, listen
    from datar_jax.training.augment import normalise
    from datar_jax.training.tasks.classification import scores

    description, audio = model.description, model.audio
    if model.params is None or description.normalisation is None:
        raise ModelError(f"{model.source}: a program shows nothing of its inside; give a run, or an export of weights")
    heard = next(iter(listen(model, [file])))
    if isinstance(heard, Failed):
        raise ConfigError(f"{file}: {heard.reason}")
    recording = measure(file, audio)
    second = audio.sample_rate / audio.hop  # in columns
    last = max(0, recording.frames - model.frames)
    if at is None:
        loudest = max(heard.events, key=lambda event: event.score, default=None)
        middle = (loudest.onset + loudest.offset) / 2 * second if loudest else 0
        at = min(last, max(0, round(middle - model.frames / 2))) / second
    start = round(at * second)
    if start >= recording.frames:
        raise ConfigError(f"--at={at:g}: {file} ends at {recording.seconds:.2f} s")
    row = next(recording.windows([start], model.frames, "mel"))
    valid = int(row["frames"])
    mel_FxT = np.asarray(normalise(row["mel"], *description.normalisation))
    shape, classes = description.config.model, len(model.labels)
    inside = inspect(shape, model.params, classes, audio.mels, model.frames, mel_FxT, valid)
    sizes = tuple(size for _, size in model.heads)
    score_S = np.asarray(scores(jnp.asarray(inside.logits_S)[None], description.config.data.labels, sizes)[0])
    began, ended = start / second, min((start + valid) / second, recording.seconds)
    events = [
        event._replace(onset=max(event.onset, began) - began, offset=min(event.offset, ended) - began)
        for event in heard.events
        if event.onset < ended and event.offset > began
    ]
    name = Path(file).name
    title = name if start == 0 and valid == recording.frames else f"{name}, from {began:.2f} s"
    look_png(out, row["mel"], audio, inside, score_S, model.labels, events, model.heads, title)
    return began, ended
