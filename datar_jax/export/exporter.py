"""Exports a trained model: weights or a whole program, `model.json` and a model card."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import flax.traverse_util
import msgspec

from datar_jax.atomic_files import atomic_write
from datar_jax.audio.framing import window_samples
from datar_jax.checkpoints.integrity import file_checksum, short_message, tensor_checksums
from datar_jax.checkpoints.model_info import (
    LEGACY_EXPORT_FILE,
    MAX_BYTES,
    MODEL_FILE,
    Checksums,
    ModelError,
    ModelInfo,
    find_model_info,
    is_run,
    write_model_info,
)
from datar_jax.checkpoints.pretrained import (
    ONNX,
    PARAMS,
    SAFETENSORS,
    STABLEHLO,
    PretrainedModel,
    load_pretrained,
    structure_checksum,
)
from datar_jax.checkpoints.provenance import Metrics
from datar_jax.checkpoints.quantization import WeightDtype, quantize
from datar_jax.checkpoints.safetensors import save_safetensors
from datar_jax.export.model_card import model_card
from datar_jax.foreign_files import read_regular
from datar_jax.locks import locked_folder
from datar_jax.models.flops import count_parameters
from datar_jax.ops.sampling import Method
from datar_jax.typed_json import decode_json

if TYPE_CHECKING:
    from datar_jax.export.waveform_model import WaveformModel

Format = Literal["params", "safetensors", "stablehlo", "onnx"]

FILES = {"params": PARAMS, "safetensors": SAFETENSORS, "stablehlo": STABLEHLO, "onnx": ONNX}
CARD = "README.md"
PARTIAL = ".partial-"  # begins the name of a folder of what is being written


def export(
    path: str | Path, out: Path, form: Format, weights: WeightDtype = "float32", licences: dict[str, str] | None = None
) -> Path:
    """Writes a model to a folder: `model.json`, a model card, and the weights or the program.

    Args:
      path: a model with weights, as for `load_pretrained`.
      out: a folder that is new or empty, or holds an export of the same format, which is replaced.
      form: `params` (orbax), `safetensors`, or a whole program from waveform to probabilities (`stablehlo`, `onnx`).
      weights: storage dtype; computation is float32.
      licences: of `weights` and of `data`, for the card.

    Returns:
      The file or folder that holds the weights.

    Raises:
      ModelError: the model cannot be read, the folder holds something else, or the format is not available.
    """
    saved = load_pretrained(path)
    if saved.skipped:  # its metrics may belong to other weights
        raise ModelError(f"{saved.skipped[0]}; to export those, give it: {Path(path).name}/checkpoints/STEP")
    if saved.params is None:
        raise ModelError(f"{saved.source}: a program, without weights to export; give the run, or an export of weights")
    if form in ("stablehlo", "onnx") and saved.description.normalization is None:
        raise ModelError(f"{saved.source}: not trained on audio; train it first (configs/finetune.py, init.from)")
    if form not in get_args(Format):
        raise ModelError(f"--format={form}: give one of {', '.join(get_args(Format))}")
    if form == "params" and weights == "int8":
        raise ModelError("--weights=int8: orbax stores arrays as they are; give bfloat16, or --format=safetensors")
    if form == "onnx" and weights != "float32":
        raise ModelError(f"--weights={weights}: an ONNX file has float32 weights; give --weights=float32")
    with _prepared_folder(out, form):
        description = with_metrics(saved.description, Path(path))
        target, partial = out / FILES[form], Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out))
        try:
            checksums = Checksums(weights=_WRITERS[form](partial / FILES[form], saved, weights))
            structure = structure_checksum(description, saved.params)
            description = msgspec.structs.replace(description, structure=structure, checksums=checksums)
            card = model_card(description, count_parameters(saved.params), form, weights, licences or {})
            _commit(partial / FILES[form], target, description, card)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # what is left has a partial name, and goes with the next export
    return target


def _commit(finished: Path, target: Path, description: ModelInfo, card: str) -> None:
    """Replaces the export in the folder of `target`; a kill leaves the old one, the new one, or one that does not load.

    The description of the old export goes first and that of the new one comes last: between them there is none. Links,
    such as those of a model hub's cache, are replaced and not written through.
    """
    out = target.parent
    for name in (MODEL_FILE, LEGACY_EXPORT_FILE, CARD):
        (out / name).unlink(missing_ok=True)
    if target.is_dir():
        target.rename(finished.with_suffix(".old"))
    finished.replace(target)
    atomic_write(out / CARD, card.encode())
    write_model_info(out / MODEL_FILE, description)


def with_metrics(model: ModelInfo, path: Path) -> ModelInfo:
    """Adds the run's test metrics to the provenance; omitted for a single checkpoint."""
    with contextlib.suppress(OSError, ValueError):  # official weights have no description
        found = find_model_info(path)
        if is_run(found) and not path.name.isdecimal():
            metrics = decode_json(read_regular(found.parent / "result.json", MAX_BYTES), Metrics)
            return msgspec.structs.replace(model, provenance=msgspec.structs.replace(model.provenance, numbers=metrics))
    return model


@contextlib.contextmanager
def _prepared_folder(out: Path, form: str) -> Iterator[None]:
    """Makes the folder and holds its lock; refuses one that holds anything but an export of that format."""
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out}: a file; give a folder")
    known = {MODEL_FILE, LEGACY_EXPORT_FILE, CARD, FILES[form]}
    names = (each.name for each in out.iterdir()) if out.exists() else ()
    other = sorted(name for name in names if name not in known and not name.startswith("."))
    if other:
        raise ModelError(f"{out}: holds {', '.join(other[:5])}; give a new folder")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(out))
            for stale in out.glob(f"{PARTIAL}*"):  # of an export that was killed
                shutil.rmtree(stale)
        except OSError as error:
            raise ModelError(f"{out}: {error.strerror}; give another folder") from None
        yield


# Each writes one file or folder, whose parent exists, and returns the checksums of what it holds.


def _write_params(target: Path, saved: PretrainedModel, weights: WeightDtype) -> dict[str, str]:
    import orbax.checkpoint as ocp

    params = quantize(saved.params, weights)
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(target.absolute(), params)
    except Exception as error:  # OSError from Python's files, ValueError from tensorstore's
        why = short_message(error)
        _remove_as_it_grows(target.parent)
        path = target.parent.parent / target.name
        raise ModelError(f"{path}: cannot be written ({why}); make room, or give another folder") from None
    return tensor_checksums(flax.traverse_util.flatten_dict(params, sep="/"))


def _remove_as_it_grows(folder: Path) -> None:
    """Removes a folder that threads of a failed checkpoint still write to, when they have ended."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
        if not folder.exists():
            return


def _write_safetensors(target: Path, saved: PretrainedModel, weights: WeightDtype) -> dict[str, str]:
    metadata = {"format": "flax", "program": saved.description.provenance.program}
    return save_safetensors(target, saved.params, weights, metadata)


def _write_stablehlo(target: Path, saved: PretrainedModel, weights: WeightDtype) -> dict[str, str]:
    from datar_jax.export.stablehlo import to_stablehlo

    waveform_model, samples = _waveform_model(saved.description)
    return _write_program(target, to_stablehlo(waveform_model, quantize(saved.params, weights), samples))


def _write_onnx(target: Path, saved: PretrainedModel, _weights: WeightDtype) -> dict[str, str]:
    from datar_jax.export.onnx import for_onnx, to_onnx

    model = msgspec.structs.replace(saved.description, config=for_onnx(saved.description.config))
    waveform_model, samples = _waveform_model(model, sampler="gather")
    try:
        return _write_program(target, to_onnx(waveform_model, saved.params, samples))
    except ImportError as error:
        raise ModelError(f"--format=onnx: {error}") from None


def _write_program(target: Path, program: bytes) -> dict[str, str]:
    atomic_write(target, program)
    return {target.name: file_checksum(program)}


def _waveform_model(model: ModelInfo, sampler: Method = "auto") -> tuple[WaveformModel, int]:
    """The function from waveforms to probabilities, and the number of samples of its window."""
    from datar_jax.export.waveform_model import make_waveform_model

    assert model.normalization
    sizes = tuple(head.size for head in model.heads)
    function = make_waveform_model(
        model.config, sizes, len(model.labels), model.frames, *model.normalization, sampler=sampler
    )
    return function, window_samples(model.audio, model.frames)


_WRITERS = {
    "params": _write_params,
    "safetensors": _write_safetensors,
    "stablehlo": _write_stablehlo,
    "onnx": _write_onnx,
}
