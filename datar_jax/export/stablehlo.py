"""A program with its weights as one portable file, which jax alone runs: StableHLO, by `jax.export`.

jax reads what an older jax exported for six months at least (its compatibility guarantee), and longer as a rule.

Shapes: B batch, N samples, S classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from datar_jax.checkpoints.quantization import dequantize
from datar_jax.export.waveform_model import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(program: Program, stored: Any, samples: int, platforms: Sequence[str] = PLATFORMS) -> bytes:
    """A program and its weights, for batches of any size.

    Args:
      program: from `program.waveform_program`.
      stored: parameters, or what `weights.compress` made of them: they lie in the file in that form and are widened
        where the program runs.
      samples: N, length of the window.
      platforms: what the file is to run on; each has the formulations that suit it.

    Returns:
      The file: of waveform float32 (B, N), length and start int32 (B,) it makes probabilities float32 (B, S).
    """

    def baked(waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        return program(dequantize(jax.tree.map(jnp.asarray, stored)), waveform_BxN, length_B, start_B)

    (b,) = export.symbolic_shape("b")
    number_B = jax.ShapeDtypeStruct((b,), jnp.int32)
    shapes = jax.ShapeDtypeStruct((b, samples), jnp.float32), number_B, number_B
    return bytes(export.export(jax.jit(baked), platforms=platforms)(*shapes).serialize())


def from_stablehlo(file: bytes) -> Callable[[Array, Array, Array], Array]:
    """The function in a file of `to_stablehlo`; compiled once for each size of batch.

    Raises:
      ValueError: no such file, or one of a format that this jax does not know.
    """
    try:
        exported = export.deserialize(bytearray(file))
    except Exception as error:  # struct.error, IndexError, UnicodeDecodeError and more
        raise ValueError(f"not a program of jax.export, or of another version of it ({error})") from None
    return jax.jit(exported.call)
