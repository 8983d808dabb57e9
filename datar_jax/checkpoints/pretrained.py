"""Loads a trained model, description and weights, from the checkpoints of a run or from an export; read-only."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import msgspec
import numpy as np

from datar_jax.checkpoints.integrity import (
    METADATA_BYTES,
    BadCheckpoint,
    Leaf,
    Mismatch,
    file_checksum,
    rank_by_score,
    read_metadata,
    short_message,
    stored_steps,
    tensor_checksums,
    tensor_shapes,
    verify_checksums,
)
from datar_jax.checkpoints.model_info import (
    OFFICIAL,
    ModelError,
    ModelInfo,
    compare_checksums,
    find_model_info,
    is_run,
    read_model_info,
)
from datar_jax.checkpoints.provenance import DataProvenance, Provenance
from datar_jax.checkpoints.weights_archive import MAX_RATIO, SMALL
from datar_jax.config import AudioConfig, Config, ConfigError
from datar_jax.escaping import printable
from datar_jax.foreign_files import check_name, check_regular, open_regular, read_regular
from datar_jax.models.parameter_shapes import parameter_shapes
from datar_jax.typed_json import decode_json

PARAMS, SAFETENSORS, STABLEHLO, ONNX = "params", "model.safetensors", "model.stablehlo", "model.onnx"


@dataclass(frozen=True)
class PretrainedModel:
    """A model as loaded from disk.

    Attributes:
      source: the folder and, of a run, the step of the checkpoint; for messages.
      description: everything except the weights.
      params: tree of float32 parameters; None if there is only a program.
      program: file of a StableHLO or ONNX program; None if there are weights.
      skipped: a line for each checkpoint that could not be used.
      unverified: a line for an export without checksums.
    """

    source: str
    description: ModelInfo
    params: Any
    program: Path | None = None
    skipped: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user has to know of how it was loaded."""
        return self.skipped + self.unverified

    def read_program(self) -> bytes:
        """Reads and verifies the file of the program.

        Raises:
          ModelError: it cannot be read, or differs from its checksum.
        """
        assert self.program
        try:
            with open_regular(self.program) as file:
                content = file.read()
        except OSError as error:
            raise ModelError(f"{self.program}: {error.strerror}") from None
        if written := self.description.checksums.weights:
            compare_checksums(self.program.parent, written, {self.program.name: file_checksum(content)})
        return content


def load_pretrained(path: str | Path) -> PretrainedModel:
    """Loads a trained model.

    Args:
      path: a run's work directory (of one fold), one of its checkpoints, an export of any format, or a file of
        official DAT weights. Of a run, loads the weights that it evaluates: of the checkpoint with the best validation
        score, or of the newest; averaged ones (EMA) if it has them.

    Raises:
      ModelError: no model there, or a damaged one.
    """
    if Path(path).suffix in OFFICIAL and Path(path).is_file():
        return _from_official(Path(path))
    found = find_model_info(path)
    description, folder = read_model_info(found), found.parent
    if is_run(found):
        step = int(Path(path).name) if Path(path).name.isdecimal() and Path(path).parent != folder.parent else None
        step, params, bad = _from_checkpoint(folder / "checkpoints", step)
        skipped = tuple(f"{folder / 'checkpoints'}: {each}; skipped, the weights are of step {step}" for each in bad)
        return PretrainedModel(f"{folder} (step {step})", description, params, skipped=skipped)
    return _from_export(folder, description, Path(path))


def _from_official(path: Path) -> PretrainedModel:
    """Loads official DAT weights, trained on images; the stem's three input channels are folded to one."""
    from datar_jax.checkpoints.dat_weights import fold_channels, read_official

    official = read_official(path)
    stem = "stem/project/kernel" if "stem/project/kernel" in official.params else "stem/project_0/kernel"
    flat = {**official.params, stem: fold_channels(official.params[stem])}
    height, width = official.size or (224, 224)
    model = msgspec.structs.replace(official.config, num_classes=official.classes)
    data = DataProvenance(name=f"pictures ({path.name})")
    try:
        description = ModelInfo(
            config=Config(audio=AudioConfig(n_mels=height), model=model),
            labels=tuple(f"picture class {i}" for i in range(official.classes)),
            frames=width,
            mean_db=None,
            std_db=None,
            provenance=Provenance(program=f"official {official.revision}", data=data),
        )
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from None
    return PretrainedModel(str(path), description, flax.traverse_util.unflatten_dict(flat, sep="/"))


def _from_export(folder: Path, description: ModelInfo, path: Path) -> PretrainedModel:
    formats = [name for name in (SAFETENSORS, PARAMS, STABLEHLO, ONNX) if (folder / name).exists()]
    name = path.name if path.name in formats else next(iter(formats), "")
    if not name:
        raise ModelError(
            f"{folder}: no checkpoint can be read (there is none yet), nor exported weights; train or export the model"
        )
    checksums = description.checksums.weights
    note = f"{folder / name}: has no checksums, as in exports of earlier versions: damage would not be noticed"
    unverified = () if checksums else (note,)
    if name in (STABLEHLO, ONNX):
        return PretrainedModel(str(folder), description, None, folder / name, unverified=unverified)
    if name == SAFETENSORS:
        from datar_jax.checkpoints.safetensors import load_safetensors

        params = load_safetensors(folder / name, checksums)
    else:
        params = read_params(folder / name, checksums)
    _check(folder, description, params)
    return PretrainedModel(str(folder), description, params, unverified=unverified)


def structure_checksum(description: ModelInfo, params: Any) -> str:
    """CRC-32 of a model's settings and of the names and shapes of its weights, in hexadecimal."""
    config = description.config
    shapes = {name: list(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    about = [msgspec.to_builtins(config.model), config.audio.n_mels, description.frames, sorted(shapes.items())]
    return f"{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def _check(folder: Path, description: ModelInfo, params: Any) -> None:
    """Checks that the weights have the names and shapes of the described model."""
    if description.structure == structure_checksum(description, params):
        return  # else the model is traced, which takes a second
    flat = {name: tuple(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    wanted = _shapes(folder, description)
    if wrong := [name for name in sorted({*flat, *wanted}) if flat.get(name) != wanted.get(name)]:
        name = wrong[0]
        raise ModelError(
            f"{folder}: its weights are of another model than its description: {printable(name)} is "
            f"{flat.get(name, 'missing')}, expected {wanted.get(name, 'none')} ({len(wrong)} such)"
        )


def _shapes(folder: Path, description: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of the described model, by path."""
    labels, mels = len(description.labels), description.audio.n_mels
    try:
        return parameter_shapes(description.config.model, labels, mels, description.frames)
    except ValueError as error:
        raise ModelError(f"{folder}: its description is of no model ({short_message(error)})") from None


class _OrbaxKey(msgspec.Struct):
    key: str


class _OrbaxLeaf(msgspec.Struct):
    key_metadata: list[_OrbaxKey]


class _OrbaxTree(msgspec.Struct):
    tree_metadata: dict[str, _OrbaxLeaf]


def _stored_bytes(folder: Path) -> int:
    """Size of all files of a folder of orbax, which opens them without looking: none may be a pipe or a device.

    Raises:
      OSError: one of them is.
    """
    files = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    return sum(check_regular(each).st_size for each in files)


def _check_size(stored: int, leaves: Mapping[str, Any]) -> None:
    """Refuses arrays that are far larger than their files: what is missing in a file would be filled with zeros.

    Raises:
      ValueError: they are.
    """
    whole = sum(math.prod(map(abs, leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves.values())
    if whole > MAX_RATIO * stored + SMALL:
        raise ValueError(f"{stored:,} bytes that would become {whole:,}; no such weights were written")


def read_params(folder: Path, checksums: Mapping[str, str] | None = None) -> Any:
    """Reads parameters that `export` stored with orbax, as a tree of numpy arrays.

    Args:
      folder: of orbax.
      checksums: of the arrays, by path, from the description of the export; none: they are not verified.

    Raises:
      ModelError: they cannot be read, or one differs from its checksum.
    """
    import orbax.checkpoint as ocp  # takes seconds to import

    try:
        stored_bytes = _stored_bytes(folder)
        with ocp.StandardCheckpointer() as reader:
            if checksums:  # has what the metadata would have to be read for
                shapes = flax.traverse_util.unflatten_dict(tensor_shapes(checksums), sep="/")
            else:
                stored = decode_json(read_regular(folder / "_METADATA", METADATA_BYTES), _OrbaxTree).tree_metadata
                for about in stored.values():  # orbax joins names to the folder
                    check_name("/".join(key.key for key in about.key_metadata))
                shapes = reader.metadata(folder.absolute()).item_metadata.tree
            flat = flax.traverse_util.flatten_dict(shapes, sep="/")
            for name in flat:
                check_name(name)
            _check_size(stored_bytes, flat)
            params = reader.restore(folder.absolute(), jax.tree.map(_on_one_device, shapes))
    except Exception as error:  # orbax raises six kinds for a damaged folder
        raise ModelError(f"{folder}: cannot be read ({short_message(error)}); export the model again") from None
    params = jax.tree.map(np.asarray, params)
    if checksums:
        compare_checksums(folder, checksums, tensor_checksums(flax.traverse_util.flatten_dict(params, sep="/")))
    return params


def _from_checkpoint(folder: Path, step: int | None) -> tuple[int, Any, list[str]]:
    """Step and weights of a checkpoint: the given step, else the best, else the newest that is intact.

    The third value lists what is wrong with the checkpoints that were skipped.
    """
    steps = [each for each in stored_steps(folder) if step in (None, each)]
    metadata, bad = {}, []
    for each in steps:
        try:
            metadata[each] = read_metadata(folder, each)
        except BadCheckpoint as why:
            bad.append(f"step {each}: {why}")
    scores = {each: found.score for each, found in metadata.items() if found.score is not None}
    order = rank_by_score(scores, list(metadata))
    for each in [*order, *(each for each in metadata if each not in order)]:
        try:
            return each, _weights(folder / str(each), metadata[each].leaves), bad
        except Exception as error:  # many kinds, as in `read_params`
            bad.append(f"step {each}: {short_message(error)}")
    raise ModelError(f"{folder}: no checkpoint can be read ({'; '.join(bad) or 'there is none yet'})")


def _weights(folder: Path, leaves: Mapping[str, Leaf]) -> Any:
    """Reads and verifies the averaged parameters of a checkpoint, or its parameters if it has no averages."""
    import orbax.checkpoint as ocp

    part = "ema" if any(name.startswith("ema/") for name in leaves) else "params"
    kept = {name: leaf for name, leaf in leaves.items() if name.startswith(f"{part}/")}
    for name in kept:
        check_name(name.removeprefix(f"{part}/"))
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in kept.items()}
    _check_size(_stored_bytes(folder), shapes)
    like = jax.tree.map(_on_one_device, flax.traverse_util.unflatten_dict(shapes, sep="/"))
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        wanted = ocp.args.PyTreeRestore(item=like, restore_args=arguments, partial_restore=True)
        state = reader.restore(folder.absolute() / "state", args=wanted)
    try:
        verify_checksums(leaves, state)
    except Mismatch as error:
        raise ModelError(str(error)) from None
    return jax.tree.map(np.asarray, state[part])


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf, placed on one device of this process."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=device)
