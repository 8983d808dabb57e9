"""Exports a model with its weights as one StableHLO file, which needs only jax to run.

jax guarantees to read files of an older jax for at least six months.

Shapes: B batch, N samples, S classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from datar_jax.checkpoints.quantization import dequantize
from datar_jax.export.waveform_model import WaveformModel

PLATFORMS = ("cpu", "cuda", "tpu")


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
    return bytes(export.export(jax.jit(with_weights), platforms=platforms)(*shapes).serialize())


def from_stablehlo(file: bytes) -> Callable[[Array, Array, Array], Array]:
    """Loads the function from a file of `to_stablehlo`; it is compiled once per batch size.

    Raises:
      ValueError: not such a file, or of a format that this jax does not support.
    """
    try:
        exported = export.deserialize(bytearray(file))
    except Exception as error:  # struct.error, IndexError, UnicodeDecodeError and more
        raise ValueError(f"not a jax.export program, or of an unsupported version ({error})") from None
    return jax.jit(exported.call)
