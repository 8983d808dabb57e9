"""Exports a model with its weights as one StableHLO file, which needs only jax to run, and runs such files.

A StableHLO file is a program of its author. Before it is compiled it is checked to hold only operations that exports of
this package need: none of them reaches files, devices or functions of the process, and every loop counts to a constant.

jax guarantees to read files of an older jax for at least six months.

Shapes: B batch, N samples, S classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from datar_jax.checkpoints.integrity import short_message
from datar_jax.checkpoints.quantization import dequantize
from datar_jax.export.stablehlo_check import check_program, parse_module
from datar_jax.export.waveform_model import WaveformModel

PLATFORMS = ("cpu", "cuda", "tpu")

Program = Callable[[Any, Any, Any], Any]  # waveform float32 (B, N), length and start int32 (B,) to float32 (B, S)


def to_stablehlo(
    waveform_model: WaveformModel, stored: Any, samples: int, platforms: Sequence[str] = PLATFORMS
) -> bytes:
    """Serializes a waveform model with its weights, for any batch size.

    Args:
      waveform_model: from `make_waveform_model`.
      stored: parameters, or the result of `quantize`; stored as they are and converted to float32 at run time.
      samples: N, length of the window.
      platforms: where the file can run; each gets its own formulations.

    Returns:
      The file, a function of waveform float32 (B, N), length and start int32 (B,) to probabilities float32 (B, S).
    """

    def with_weights(waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        return waveform_model(dequantize(jax.tree.map(jnp.asarray, stored)), waveform_BxN, length_B, start_B)

    (b,) = export.symbolic_shape("b")
    number_B = jax.ShapeDtypeStruct((b,), jnp.int32)
    shapes = jax.ShapeDtypeStruct((b, samples), jnp.float32), number_B, number_B
    with _without_source_paths():
        return bytes(export.export(jax.jit(with_weights), platforms=platforms)(*shapes).serialize())


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Leaves the paths of this machine's source files out of what is lowered."""
    limit = "jax_traceback_in_locations_limit"
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update(limit, 0)
    try:
        yield
    finally:
        jax.config.update(limit, before)


def from_stablehlo(file: bytes, samples: int, classes: int) -> Program:
    """Loads the function from a file of `to_stablehlo`; it is compiled once per batch size.

    Args:
      file: content of the file.
      samples: N that it has to take.
      classes: S that it has to return.

    Raises:
      ValueError: not such a file, of a format that this jax does not support, a function of other shapes, or a program
        that does what exports of this package do not do.
    """
    try:
        exported = export.deserialize(bytearray(file))
        found = [(aval.dtype.name, tuple(map(str, aval.shape))) for aval in (*exported.in_avals, *exported.out_avals)]
        module = parse_module(exported.mlir_module_serialized)
    except Exception as error:  # struct.error, IndexError, UnicodeDecodeError and more
        raise ValueError(f"not a jax.export program, or of an unsupported version ({short_message(error)})") from None
    expected = [("float32", (str(samples),)), ("int32", ()), ("int32", ()), ("float32", (str(classes),))]
    if len(exported.out_avals) != 1 or [(dtype, shape[1:]) for dtype, shape in found] != expected:
        shapes = ", ".join(f"{dtype}[{','.join(shape)}]" for dtype, shape in found)
        raise ValueError(
            f"a program of {shapes}; its description needs float32[b,{samples}], int32[b], int32[b] to "
            f"float32[b,{classes}]"
        )
    check_program(module)
    return jax.jit(exported.call)
