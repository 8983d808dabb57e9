"""`visualize`: draws a sound, its classes and events, and where the model attends."""

from __future__ import annotations

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import make_parser, path, print_line, print_notes, seconds
from datar_jax.config import ConfigError
from datar_jax.progress import Progress

USAGE = "datar-jax visualize MODEL FILE [--out=attention.png] [--at=SECONDS]"
SUMMARY = """Draws the log-mel spectrogram, the best classes and the events, and for each deformable block its
sampling points (reference points, moved points, attention weight) and its attention as a heat map. Of a
long recording one window is drawn: the one that starts at --at, or the one around the event with the
highest score. --out ends in .png, .pdf or .svg."""
EXAMPLE = "datar-jax visualize runs/quickstart runs/quickstart-data/alarm/alarm_000.wav --out=attention.png"


def main(arguments: list[str]) -> int:
    """Draws one window of a sound.

    Raises:
      ConfigError: an invalid option, or a model or sound that cannot be used.
    """
    parser = make_parser("visualize", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("file", metavar="FILE", help="a sound file")
    parser.add_argument("--out", type=path, default="attention.png", help="the picture (attention.png)")
    parser.add_argument("--at", type=seconds, help="start of the window, seconds into the sound")
    given = parser.parse_args(arguments)

    from datar_jax.audio.errors import AudioError
    from datar_jax.backend import require_backend
    from datar_jax.compilation_cache import compiling, keep_compiled
    from datar_jax.inference.classifier import load
    from datar_jax.inference.visualize import draw

    keep_compiled()
    require_backend()
    try:
        with Progress() as progress:
            progress.stage("reading the model")
            model = load(given.model)
            progress.stage(f"drawing: {compiling(model.description.config.model.spec)}")
            start, end, notes = draw(model, given.file, given.out, given.at)
        print_notes(model.notes)
    except AudioError as error:
        raise ConfigError(f"{given.file}: {error}") from None
    except (ModelError, ValueError) as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or given.out}: {error.strerror}") from None
    print_notes(notes, given.file)
    print_line(f"{given.out}: {given.file}, {start:.2f} to {end:.2f} s")
    return 0
