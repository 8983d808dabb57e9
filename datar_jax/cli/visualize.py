"""`look`: one picture of a sound as a model hears it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import folder, make_parser, moment, say_notes
from datar_jax.config import ConfigError
from datar_jax.inference.visualize import draw

if TYPE_CHECKING:
    pass

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
