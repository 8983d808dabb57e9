"""`export`: a trained model as files that others can use."""

from __future__ import annotations

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import folder, make_parser
from datar_jax.config import ConfigError

USAGE = (
    "python -m datar_jax export MODEL OUT [--format=params|safetensors|stablehlo|onnx] "
    "[--weights=float32|bfloat16|int8] [--licence=TEXT] [--data-licence=TEXT]"
)
SUMMARY = """Writes a folder with model.json, a model card (README.md), and one of
  params       orbax, for jax and flax
  safetensors  weights that PyTorch, numpy and many more read
  stablehlo    the whole program, waveform in and probabilities out, for jax alone
  onnx         the same for ONNX runtimes (pip install "datar-jax[onnx]")"""
EXAMPLE = "python -m datar_jax export runs/quickstart exported --format=safetensors"


def main(arguments: list[str]) -> int:
    """Exports.

    Raises:
      ConfigError: an option that cannot be, or a model that cannot be exported so.
    """
    parser = make_parser("export", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("out", metavar="OUT", type=folder, help="folder to write, new or an export of the same format")
    parser.add_argument("--format", choices=("params", "safetensors", "stablehlo", "onnx"), default="safetensors")
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="stored so")
    parser.add_argument("--licence", default="", help="of the weights, for the card")
    parser.add_argument("--data-licence", default="", help="of the training data, for the card")
    given = parser.parse_args(arguments)

    from datar_jax.export.exporter import export

    licences = {"weights": given.licence, "data": given.data_licence}
    try:
        written = export(given.model, given.out, given.format, given.weights, licences)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or given.out}: {error.strerror}") from None
    size = sum(each.stat().st_size for each in [written, *written.rglob("*")] if each.is_file())
    print(f"{written}: {size / 1e6:.1f} MB; with model.json and README.md beside it")
    return 0
