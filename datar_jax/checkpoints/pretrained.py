"""A model at rest: description and weights, from a run's checkpoints or from an export. Nothing is changed there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from datar_jax.checkpoints.integrity import Mismatch, verify
from datar_jax.checkpoints.metadata import BadCheckpoint, rank_by_score, read_record, reason
from datar_jax.checkpoints.model_info import (
    EXPORT,
    OFFICIAL,
    RUN,
    ModelError,
    ModelInfo,
    find_model_info,
    read_model_info,
)
from datar_jax.config import AudioConfig, Config
from datar_jax.models.datar import create_model

PARAMS, SAFETENSORS, STABLEHLO, ONNX = "params", "model.safetensors", "model.stablehlo", "model.onnx"


@dataclass(frozen=True)
class PretrainedModel:
    """A model as it lies on a disk.

    Attributes:
      source: where, for a person: the folder, and the step of a checkpoint.
      description: everything but the weights.
      params: the tree of parameters, float32; None where there is only a program.
      program: the file of a whole program (StableHLO or ONNX); None where there are weights.
      notes: what a person should know of how it was read, such as checkpoints that were passed over.
    """

    source: str
    description: ModelInfo
    params: Any
    program: Path | None = None
    notes: tuple[str, ...] = ()


def load_pretrained(path: str | Path) -> PretrainedModel:
    """Reads a model.

    Args:
      path: a run's work directory (of one fold), one of its checkpoints, an export in any form, or a file of official
        DAT weights. Of a run the weights are those that it evaluates: of the best checkpoint by validation score, or of
        the newest; averaged ones where it averages.

    Raises:
      ModelError: there is none, or it is damaged.
    """
    if Path(path).suffix in OFFICIAL and Path(path).is_file():
        return _from_official(Path(path))
    found = find_model_info(path)
    description, folder = read_model_info(found), found.parent
    if found.name == RUN:
        step = int(Path(path).name) if Path(path).name.isdecimal() and Path(path).parent != folder.parent else None
        step, params, bad = _from_checkpoint(folder / "checkpoints", step)
        notes = tuple(f"{folder / 'checkpoints'}: {each}; passed over, the weights are of step {step}" for each in bad)
        return PretrainedModel(f"{folder} (step {step})", description, params, notes=notes)
    return _from_export(folder, description, Path(path))


def _from_official(path: Path) -> PretrainedModel:
    """Official DAT weights, the stem's three channels folded to one; it was trained on pictures, not on sound."""
    from datar_jax.checkpoints.dat_weights import fold_channels, read_official

    official = read_official(path)
    stem = "stem/project/kernel" if "stem/project/kernel" in official.params else "stem/project_0/kernel"
    flat = {**official.params, stem: fold_channels(official.params[stem])}
    height, width = official.size or (224, 224)
    model = msgspec.structs.replace(official.config, num_classes=official.classes)
    description = ModelInfo(
        config=Config(audio=AudioConfig(n_mels=height), model=model),
        labels=tuple(f"picture class {i}" for i in range(official.classes)),
        frames=width,
        mean_db=None,
        std_db=None,
        provenance={"program": f"official {official.revision}", "data": {"name": f"pictures ({path.name})"}},
    )
    return PretrainedModel(str(path), description, flax.traverse_util.unflatten_dict(flat, sep="/"))


def _from_export(folder: Path, description: ModelInfo, path: Path) -> PretrainedModel:
    forms = [name for name in (SAFETENSORS, PARAMS, STABLEHLO, ONNX) if (folder / name).exists()]
    name = path.name if path.name in forms else next(iter(forms), "")
    if not name:
        raise ModelError(f"{folder}: has {EXPORT}, but no weights beside it; export the model again")
    if name in (STABLEHLO, ONNX):
        return PretrainedModel(str(folder), description, None, folder / name)
    if name == SAFETENSORS:
        from datar_jax.checkpoints.safetensors import load_safetensors

        params = load_safetensors(folder / name)
    else:
        params = read_params(folder / name)
    _check(folder, description, params)
    return PretrainedModel(str(folder), description, params)


def structure(description: ModelInfo, params: Any) -> str:
    """A checksum of a model's settings and of the names and shapes of its weights: of one that was put together."""
    config = description.config
    shapes = {name: list(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    about = [msgspec.to_builtins(config.model), config.audio.n_mels, description.frames, sorted(shapes.items())]
    return f"{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def _check(folder: Path, description: ModelInfo, params: Any) -> None:
    """Refuses weights that lie beside the description of another model."""
    if description.structure == structure(description, params):  # or the model is traced, which takes a second
        return
    flat = {name: tuple(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    wanted = {name: tuple(leaf.shape) for name, leaf in _shapes(description).items()}
    if wrong := [name for name in sorted({*flat, *wanted}) if flat.get(name) != wanted.get(name)]:
        name = wrong[0]
        raise ModelError(
            f"{folder}: its weights are of another model than its description: {name} is {flat.get(name, 'missing')}, "
            f"described is {wanted.get(name, 'none')} ({len(wrong)} such)"
        )


def _shapes(description: ModelInfo) -> dict[str, Any]:
    """Shapes of the parameters of a model that is described."""
    audio, frames = description.audio, description.frames
    model = create_model(description.config.model, len(description.labels), audio.n_mels, frames)
    mel_BxFxT, frames_B = jnp.zeros((1, audio.n_mels, frames)), jnp.full((1,), frames)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), mel_BxFxT, frames_B))["params"]
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))


def read_params(folder: Path) -> Any:
    """The parameters that `export` stored through orbax, as a tree of numpy arrays.

    Raises:
      ModelError: they cannot be read.
    """
    import orbax.checkpoint as ocp  # seconds, which only those pay who read through it

    try:
        with ocp.StandardCheckpointer() as reader:
            shapes = reader.metadata(folder.absolute()).item_metadata.tree
            params = reader.restore(folder.absolute(), jax.tree.map(_here, shapes))
    except Exception as error:  # orbax raises six kinds for a damaged folder
        raise ModelError(f"{folder}: cannot be read ({reason(error)}); export the model again") from None
    return jax.tree.map(np.asarray, params)


def _from_checkpoint(folder: Path, step: int | None) -> tuple[int, Any, list[str]]:
    """Step and evaluated weights of a checkpoint: of that step, else of the best, else of the newest that is whole.

    The third is what is wrong with those that were passed over.
    """
    steps = sorted((int(each.name) for each in folder.glob("*") if each.name.isdecimal()), reverse=True)
    if step is not None:
        steps = [each for each in steps if each == step]
    records, bad = {}, []
    for each in steps:
        try:
            records[each] = read_record(folder, each)
        except BadCheckpoint as why:
            bad.append(f"step {each}: {why}")
    scores = {each: record["score"] for each, record in records.items() if record["score"] is not None}
    order = rank_by_score(scores, list(records))
    for each in [*order, *(each for each in records if each not in order)]:
        try:
            return each, _weights(folder / str(each), records[each]["leaves"]), bad
        except Exception as error:  # as above
            bad.append(f"step {each}: {reason(error)}")
    raise ModelError(f"{folder}: no checkpoint can be read ({'; '.join(bad) or 'there is none yet'})")


def _weights(folder: Path, leaves: Mapping[str, Any]) -> Any:
    """The averaged parameters of one checkpoint, or where there are none the parameters, verified."""
    import orbax.checkpoint as ocp

    part = "ema" if any(name.startswith("ema/") for name in leaves) else "params"
    kept = {name: leaf for name, leaf in leaves.items() if name.startswith(f"{part}/")}
    shapes = {name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"]) for name, leaf in kept.items()}
    like = jax.tree.map(_here, flax.traverse_util.unflatten_dict(shapes, sep="/"))
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        wanted = ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=True)
        state = reader.restore(folder.absolute() / "state", args=wanted)
    try:
        verify(leaves, state)
    except Mismatch as error:
        raise ModelError(str(error)) from None
    return jax.tree.map(np.asarray, state[part])


def _here(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf, on one device of this process."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=device)
