"""Saves and loads parameters as a safetensors file.

A tensor has the dotted path of its parameter: `stage_0_0.mixer.qkv.kernel`. Each int8 tensor has a float32 companion
`NAME.scale`, which holds one factor for each entry of its last axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from datar_jax.atomic_files import atomic_write
from datar_jax.checkpoints.integrity import tensor_checksums
from datar_jax.checkpoints.model_info import ModelError, compare_checksums
from datar_jax.checkpoints.quantization import Quantized, WeightDtype, dequantize, quantize
from datar_jax.foreign_files import check_regular

MAX_NAME = 200  # characters
_NAME = re.compile(r"\w+(\.\w+){0,15}", re.ASCII)
_DTYPES = ("F32", "BF16", "I8")


def save_safetensors(
    path: str | Path, params: Any, form: WeightDtype, metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Writes parameters to one file, which any safetensors reader opens; its folder must exist.

    Args:
      path: output file.
      params: nested dictionaries of floating arrays.
      form: see `quantization.quantize`.
      metadata: strings for the header of the file.

    Returns:
      The checksums of its tensors, for `load_safetensors`.
    """
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for name, leaf in flax.traverse_util.flatten_dict(quantize(params, form), sep=".").items():
        tensors |= {name: leaf.values, f"{name}.scale": leaf.scale} if isinstance(leaf, Quantized) else {name: leaf}
    # The writer ignores strides.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    atomic_write(Path(path), save(contiguous, dict(metadata or {})))
    return tensor_checksums(contiguous)


def load_safetensors(path: str | Path, checksums: Mapping[str, str] | None = None) -> Any:
    """Reads parameters that `save_safetensors` wrote, in any dtype.

    Args:
      path: the file.
      checksums: of its tensors, from the description of the export; none: they are not verified.

    Returns:
      Nested dictionaries of float32 numpy arrays.

    Raises:
      ModelError: no such file, not a safetensors file, a tensor that differs from its checksum or is of another dtype,
        an int8 tensor without a scale of the right shape, a value that is not finite.
    """
    tensors = _read(Path(path))
    if checksums:
        compare_checksums(Path(path), checksums, tensor_checksums(tensors))
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in tensors.items():
        parent = tensors.get(name.removesuffix(".scale")) if name.endswith(".scale") else None
        if parent is not None and parent.dtype == np.int8:
            continue
        if parent is not None:
            raise ModelError(f"{path}: {name}: a scale for a {parent.dtype} tensor; only int8 tensors have one")
        if tensor.dtype == np.int8:
            tensor = _scaled(path, name, tensor, tensors.get(f"{name}.scale"))
        flat[tuple(name.split("."))] = _finite(path, name, tensor.astype(np.float32, copy=False))
    for key in flat:
        for depth in range(1, len(key)):
            if key[:depth] in flat:
                raise ModelError(f"{path}: {'.'.join(key)}: {'.'.join(key[:depth])} is a tensor too")
    return flax.traverse_util.unflatten_dict(flat)


def _read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, in their stored dtype."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:  # maps the file: each tensor is copied once
            for name in file.keys():  # noqa: SIM118  # it has no iterator
                if len(name) > MAX_NAME or not _NAME.fullmatch(name):
                    raise ModelError(f"{path}: {ascii(name)[:MAX_NAME]}: no name of a parameter, words joined by dots")
                dtype, shape = file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()
                if len(shape) > 8 or max(shape, default=0) >= 1 << 40:
                    raise ModelError(f"{path}: {name}: has the shape {str(shape)[:MAX_NAME]}, as no parameter")
                if dtype not in _DTYPES:
                    raise ModelError(f"{path}: {name}: stored as {dtype}; weights are stored as {', '.join(_DTYPES)}")
                tensors[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else ascii(str(error))[1:200]
        raise ModelError(f"{path}: cannot be read as safetensors ({why})") from None
    return tensors


def _scaled(path: str | Path, name: str, values: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    if scale is None:
        raise ModelError(f"{path}: {name}: int8 without its scale; the file has no {name}.scale")
    if scale.dtype != np.float32 or scale.shape != values.shape[-1:]:
        raise ModelError(
            f"{path}: {name}.scale: {scale.dtype} {scale.shape}, but {name} of shape {values.shape} needs "
            f"float32 {values.shape[-1:]}"
        )
    _finite(path, f"{name}.scale", scale)
    return dequantize(Quantized(values, scale))


def _finite(path: str | Path, name: str, tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise ModelError(f"{path}: {name}: holds NaN or infinity; the file is damaged or its training went wrong")
    return tensor
