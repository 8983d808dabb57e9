"""Parameters in small forms, and as a safetensors file.

`bfloat16` halves every tensor. `int8` stores the kernels that mix channels, which are nearly all there is, as whole
numbers and one scale per output channel (symmetric: zero stays zero); depthwise kernels, position tables, biases and
norms stay float32. Computing is always done in what `restore` gives, float32.

In a file a tensor is called as in the tree, with dots: `stage_0_0.mixer.qkv.kernel`. Beside an int8 tensor lies the
float32 tensor `NAME.scale`, one number for each entry of its last axis, by which it is to be multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from datar_jax.checkpoints.model_info import ModelError

Form = Literal["float32", "bfloat16", "int8"]

LARGEST = 127  # of an int8 value: as far down as up
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "I8": np.dtype(np.int8)}


class Quantised(NamedTuple):
    """A kernel as whole numbers: `values * scale` along the last axis."""

    values: Any  # int8 (..., S)
    scale: Any  # float32 (S,)


def compress(params: Any, form: Form) -> Any:
    """Parameters in a smaller form.

    Args:
      params: nested dictionaries of floating arrays.
      form: `bfloat16` errs by a 256th of a weight at most, `int8` by half a scale, which is a 254th of the largest
        weight of its output channel.

    Returns:
      The same dictionaries; leaves are numpy arrays, or `Quantised`.

    Raises:
      ValueError: an unknown form, or a weight that is not finite.
    """
    if form not in get_args(Form):
        raise ValueError(f"no form {form!r} of weights; there are {', '.join(get_args(Form))}")

    def small(path: Any, leaf: Any) -> Any:
        weight = np.asarray(leaf, np.float32)
        if not np.isfinite(weight).all():
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: holds NaN or infinity")
        if form == "int8" and _mixes(path[-1].key, weight.shape):
            return quantise(weight)
        return weight.astype(jnp.bfloat16) if form == "bfloat16" else weight

    return jax.tree_util.tree_map_with_path(small, params)


def quantise(weight_xS: np.ndarray) -> Quantised:
    """Whole numbers from -127 to 127 and a scale per output channel, the last axis."""
    most_S = np.abs(weight_xS).reshape(-1, weight_xS.shape[-1]).max(0)
    scale_S = np.maximum(most_S / np.float32(LARGEST), np.finfo(np.float32).tiny)  # a channel may be zero throughout
    return Quantised(np.round(weight_xS / scale_S).astype(np.int8), scale_S)


def restore(stored: Any) -> Any:
    """What `compress` stored, in float32; of numpy or, inside a traced function, of jax arrays."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Quantised):
            return leaf.values.astype(np.float32) * leaf.scale
        return leaf.astype(np.float32)

    return jax.tree.map(wide, stored, is_leaf=lambda leaf: isinstance(leaf, Quantised))


def save_safetensors(path: str | Path, params: Any, form: Form, metadata: Mapping[str, str] | None = None) -> None:
    """Writes parameters to one file, which any safetensors reader opens.

    Args:
      path: of the file.
      params: nested dictionaries of floating arrays.
      form: see `compress`.
      metadata: texts that lie in the file's head.
    """
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for name, leaf in flax.traverse_util.flatten_dict(compress(params, form), sep=".").items():
        tensors |= {name: leaf.values, f"{name}.scale": leaf.scale} if isinstance(leaf, Quantised) else {name: leaf}
    # The writer takes memory as it lies, whatever an array's strides say.
    laid = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    Path(path).write_bytes(save(laid, dict(metadata or {})))


def load_safetensors(path: str | Path) -> Any:
    """Reads parameters that `save_safetensors` wrote, of any form.

    Returns:
      Nested dictionaries of float32 numpy arrays.

    Raises:
      ModelError: no such file, no safetensors file, a tensor of another dtype, an int8 tensor without its scale or a
        scale that does not fit, a number that is not finite.
    """
    tensors = _read(Path(path))
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in tensors.items():
        parent = tensors.get(name.removesuffix(".scale")) if name.endswith(".scale") else None
        if parent is not None and parent.dtype == np.int8:
            continue
        if parent is not None:
            raise ModelError(f"{path}: {name}: a scale beside a tensor of {parent.dtype}; only int8 has one")
        if tensor.dtype == np.int8:
            tensor = _scaled(path, name, tensor, tensors.get(f"{name}.scale"))
        flat[tuple(name.split("."))] = _finite(path, name, tensor.astype(np.float32))
    for key in flat:
        for depth in range(1, len(key)):
            if key[:depth] in flat:
                raise ModelError(f"{path}: {'.'.join(key)}: {'.'.join(key[:depth])} is a tensor too")
    return flax.traverse_util.unflatten_dict(flat)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in the head of a safetensors file.

    Raises:
      ModelError: no such file, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None


def _mixes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf is the kernel of a Dense layer or of a convolution that mixes channels."""
    return name == "kernel" and (len(shape) == 2 or (len(shape) == 4 and shape[2] > 1))


def _read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, in the dtype that they are stored in."""
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
    tensors = {}
    for name, tensor in found:
        if tensor["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise ModelError(f"{path}: {name}: stored as {tensor['dtype']}; weights are stored as {known}")
        tensors[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
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
    return restore(Quantised(values, scale))


def _finite(path: str | Path, name: str, tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise ModelError(f"{path}: {name}: holds NaN or infinity; the file is damaged or its training went wrong")
    return tensor
