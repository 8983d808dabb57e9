"""Shapes of a model's parameters, without its weights."""

from __future__ import annotations

import flax.traverse_util
import jax
import jax.numpy as jnp
import msgspec

from datar_jax.config import ModelConfig
from datar_jax.models.datar import create_model

SHORT = 128  # frames


def parameter_shapes(
    config: ModelConfig, classes: int, mels: int, frames: int, channels: int = 1
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by path, such as `stage_0_0/mixer/qkv/kernel`.

    Of each stage one block of a kind is traced, for the others have the same shapes, and with a short clip, for only
    the model's own `frames` count: time and memory grow neither with depth nor with the window. A bias of fixed pairs
    takes no clip but a whole one.

    Raises:
      ValueError: settings that no map of that size has.
    """
    kinds = tuple("".join(dict.fromkeys(letters)) for letters in config.spec)
    model = create_model(msgspec.structs.replace(config, spec=kinds, remat=False), classes, mels, frames)
    length = frames if config.deformable.position == "fixed" else min(frames, SHORT)
    clip = jax.ShapeDtypeStruct((1, mels, length, channels), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), clip)["params"]
    traced = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}
    shapes = {path: shape for path, shape in traced.items() if not path.startswith("stage_")}
    for i, letters in enumerate(config.spec):
        for j, letter in enumerate(letters):
            block = f"stage_{i}_{kinds[i].index(letter)}/"
            same = (path for path in traced if path.startswith(block))
            shapes |= {f"stage_{i}_{j}/{path.removeprefix(block)}": traced[path] for path in same}
    return shapes
