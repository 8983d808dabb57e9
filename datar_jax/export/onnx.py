"""Exports a model with its weights as an ONNX file, which onnxruntime runs without jax.

jax2onnx translates one primitive at a time and does not support calls, custom derivatives and choices by platform.
`_inline_jaxpr` removes them without changing a result, and replaces padding by concatenation, because the translation
of `pad` needs a fixed batch size.

Shapes: B batch, N samples, S classes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array
from jax.extend import core

from datar_jax.checkpoints.integrity import short_message
from datar_jax.checkpoints.quantization import dequantize
from datar_jax.config import Config
from datar_jax.escaping import printable
from datar_jax.export.waveform_model import WaveformModel


def for_onnx(config: Config) -> Config:
    """The settings of the same model with products in float32; its program samples by gathers."""
    model = msgspec.structs.replace(config.model, dtype="float32")
    return msgspec.structs.replace(config, model=model)


def to_onnx(waveform_model: WaveformModel, stored: Any, samples: int) -> bytes:
    """Serializes a waveform model with its weights, for any batch size.

    Args:
      waveform_model: from `make_waveform_model` with settings from `for_onnx`.
      stored: parameters, or the result of `quantize`.
      samples: N, length of the window.

    Returns:
      The file, with inputs `waveform` float32 (B, N), `length` and `start` int32 (B,), output `probabilities` float32
      (B, S).

    Raises:
      ImportError: jax2onnx is not installed.
    """
    try:
        with _quiet_loggers("jax2onnx"):
            import jax2onnx  # it pins an older orbax-checkpoint, which this does not use
    except ImportError:
        raise ImportError(
            "writing ONNX needs jax2onnx: pip install 'datar-jax[onnx]', then pip install --no-deps jax2onnx==0.17.1"
        ) from None

    def with_weights(waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        return waveform_model(dequantize(jax.tree.map(jnp.asarray, stored)), waveform_BxN, length_B, start_B)

    (b,) = jax.export.symbolic_shape("B")
    number_B = jax.ShapeDtypeStruct((b,), jnp.int32)
    shapes = jax.ShapeDtypeStruct((b, samples), jnp.float32), number_B, number_B
    closed = jax.make_jaxpr(with_weights)(*shapes)  # traced before jax2onnx patches functions of jax

    def inlined(waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        return _inline_jaxpr(closed, [waveform_BxN, length_B, start_B])[0]

    names = {"input_names": ["waveform", "length", "start"], "output_names": ["probabilities"], "model_name": "datar"}
    with _quiet_loggers("jax2onnx", "onnx_ir"):
        return bytes(jax2onnx.to_onnx(inlined, shapes, **names).SerializeToString())


def from_onnx(file: bytes) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Loads the function from a file of `to_onnx`, run by onnxruntime.

    Raises:
      ImportError: onnxruntime is not installed.
      ValueError: not such a file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("running ONNX needs onnxruntime: pip install 'datar-jax[onnx]'") from None
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: it warns about each folded constant
        session = onnxruntime.InferenceSession(file, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime does not export its error types
        raise ValueError(f"not an ONNX file that onnxruntime reads ({short_message(error)})") from None
    names = [each.name for each in session.get_inputs()]
    if names != ["waveform", "length", "start"]:
        found = printable(", ".join(names)[:200])
        raise ValueError(f"a program of {found or 'nothing'}; exported models take waveform, length, start")
    return lambda *given: session.run(None, dict(zip(names, given)))[0]


@contextlib.contextmanager
def _quiet_loggers(*names: str) -> Iterator[None]:
    """Suppresses log messages below ERROR of some packages, about missing examples and symbolic shapes."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _inline_jaxpr(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with calls inlined and unsupported primitives replaced."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args]))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        out = equation.outvars
        # Empty arrays are only ever concatenated; in ONNX a size of 0 would mean "unchanged".
        empty = all(0 in getattr(variable.aval, "shape", ()) for variable in out)
        values.update(
            zip(out, [None] * len(out) if empty else _lower_primitive(equation, list(map(read, equation.invars))))
        )
    return list(map(read, jaxpr.outvars))


def _lower_primitive(equation: core.JaxprEqn, given: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [None]
    if name == "cond" and given[0] is None:  # choice by platform
        return _inline_jaxpr(params["branches"][params["branches_platforms"].index(None)], given[1:])
    if name == "jit":
        return _inline_jaxpr(params["jaxpr"], given)
    if name in ("custom_vjp_call", "custom_jvp_call"):
        return _inline_jaxpr(params["call_jaxpr"], given)
    if name == "scan":
        body = params["jaxpr"]
        plain = jax.make_jaxpr(lambda *args: _inline_jaxpr(body, args))(
            *(variable.aval for variable in body.jaxpr.invars)
        )
        out: Sequence[Any] = equation.primitive.bind(*given, **{**params, "jaxpr": plain})
        return out
    if name == "concatenate":
        return [jax.lax.concatenate([part for part in given if part is not None], params["dimension"])]
    if name == "pad":
        return [_pad(given[0], given[1], params["padding_config"])]
    one = equation.primitive.bind(*given, **params)
    return one if equation.primitive.multiple_results else [one]


def _pad(x: Array, value: Array, padding: Sequence[tuple[int, int, int]]) -> Array:
    """`jax.lax.pad` without interior padding, as concatenation; negative padding slices."""
    for axis, (low, high, interior) in enumerate(padding):
        if interior:
            raise NotImplementedError("padding between the entries of an axis")
        if low < 0 or high < 0:
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        before, after = (
            [jax.lax.broadcast(value, (*x.shape[:axis], rim, *x.shape[axis + 1 :]))] if rim > 0 else []
            for rim in (low, high)
        )
        if before or after:
            x = jax.lax.concatenate([*before, x, *after], axis)
    return x
