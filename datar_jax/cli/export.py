"""`export`: writes a trained model as weights or as a program for other software."""

from __future__ import annotations

import contextlib

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import make_parser, path, print_line
from datar_jax.config import ConfigError
from datar_jax.progress import Progress

USAGE = (
    "datar-jax export MODEL OUT [--format=params|safetensors|stablehlo|onnx] "
    "[--weights=float32|bfloat16|int8] [--licence=TEXT] [--data-licence=TEXT]"
)
SUMMARY = """Writes a folder with model.json, a model card (README.md), and one of
  params       weights for orbax, jax and flax
  safetensors  weights for PyTorch, numpy and others
  stablehlo    a program from waveform to probabilities, run by jax alone
  onnx         the same program for ONNX runtimes (pip install "datar-jax[onnx]")
StableHLO and ONNX files are programs of their author: run only those that you trust."""
EXAMPLE = "datar-jax export runs/quickstart exported --format=safetensors"


def main(arguments: list[str]) -> int:
    """Exports a model.

    Raises:
      ConfigError: an invalid option, or a model that cannot be exported in this format.
    """
    parser = make_parser("export", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("out", metavar="OUT", type=path, help="folder to write, new or an export of the same format")
    parser.add_argument("--format", choices=("params", "safetensors", "stablehlo", "onnx"), default="safetensors")
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="of the file")
    parser.add_argument("--licence", default="", help="licence of the weights, for the model card")
    parser.add_argument("--data-licence", default="", help="licence of the training data, for the model card")
    given = parser.parse_args(arguments)

    from datar_jax.export.exporter import export

    new = not given.out.exists()
    licences = {"weights": given.licence, "data": given.data_licence}
    try:
        with Progress() as progress:
            progress.stage("exporting")
            written = export(given.model, given.out, given.format, given.weights, licences)
    except (ModelError, OSError) as error:
        if new:
            with contextlib.suppress(OSError):  # it holds something
                given.out.rmdir()
        why = f"{error.filename or given.out}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise ConfigError(why) from None
    size = sum(each.stat().st_size for each in [written, *written.rglob("*")] if each.is_file())
    print_line(f"{written}: {size / 1e6:.1f} MB; with model.json and README.md beside it")
    return 0
