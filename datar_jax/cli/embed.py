"""`embed`: writes embeddings of sounds to files."""

from __future__ import annotations

import importlib.util
from functools import partial

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import make_parser, path, positive_int, print_line, print_notes, report
from datar_jax.config import ConfigError
from datar_jax.progress import Progress
from datar_jax.wording import count

USAGE = "datar-jax embed MODEL FILE_OR_FOLDER... --out=DIR [--format=npy|parquet] [--batch=32]"
SUMMARY = """Writes one embedding per sound (the input of the model's head, averaged over views) and one per
frame of the model's last feature map, with its start and end time:
  npy      clips.npy and columns.npy (float32, one row each), with clips.csv and columns.csv as row labels
  parquet  clips.parquet and columns.parquet (pip install "datar-jax[parquet]")
Files that cannot be read are reported and skipped; the exit status is then 1. The files get their names
together at the end; if it is interrupted, what there is stays as NAME.partial."""
EXAMPLE = "datar-jax embed runs/quickstart runs/quickstart-data/alarm --out=vectors"


def main(arguments: list[str]) -> int:
    """Writes embeddings.

    Raises:
      ConfigError: an invalid option, or a model that cannot be used.
    """
    parser = make_parser("embed", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("paths", metavar="FILE_OR_FOLDER", nargs="+", help="sound files, or folders of them")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--format", choices=("npy", "parquet"), default="npy")
    parser.add_argument("--batch", type=positive_int, default=32, help="windows at a time (32)")
    given = parser.parse_args(arguments)
    if given.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError('--format=parquet: needs pyarrow; pip install "datar-jax[parquet]", or give npy')

    from datar_jax.backend import require_backend
    from datar_jax.compilation_cache import compiling, keep_compiled
    from datar_jax.inference.classifier import load
    from datar_jax.inference.embeddings import NumpyFiles, ParquetFiles, embed_files, embedding_files
    from datar_jax.inference.windows import FailedFile, iter_audio_files

    keep_compiled()
    require_backend()
    done = failed = 0
    try:
        with Progress() as progress:
            progress.stage("reading the model")
            model = load(given.model)
            if model.params is None:
                raise ModelError(f"{model.source}: a program gives probabilities only; give an export of weights")
            with progress.aside():
                print_notes(model.notes)
            progress.stage("looking for sounds")
            sounds = list(iter_audio_files(given.paths))
            counter = progress.counter("embedding", "sound", compiling(model.description.config.model.spec))
            with embedding_files(ParquetFiles if given.format == "parquet" else NumpyFiles, given.out) as writer:
                for sound in embed_files(model, sounds, given.batch, partial(counter, total=len(sounds))):
                    with progress.aside():
                        if isinstance(sound, FailedFile):
                            failed += 1
                            report(f"{sound.path}: {sound.reason}")
                        else:
                            print_notes(sound.notes, sound.path)
                            done += 1
                            writer.write(sound)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or given.out}: {error.strerror}") from None
    print_line(
        f"{given.out}: embeddings of {count(done, 'sound')}" + (f"; {failed} could not be used" if failed else "")
    )
    return 1 if failed else 0
