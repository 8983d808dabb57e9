"""The model card: what a model is, what it was trained on, how well it does there, and what is not known of it.

Markdown with the head that model hubs read (Mitchell et al., "Model Cards for Model Reporting", 2019).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from datar_jax.audio.framing import left_context, window_samples
from datar_jax.checkpoints.model_info import ModelInfo
from datar_jax.metrics import format_metric

UNKNOWN = "not stated"
SHOWN = 100  # classes that are listed by name

USES = {
    "params": "`datar_jax.load(FOLDER)`, or `orbax.checkpoint.StandardCheckpointer().restore(FOLDER/params)`",
    "safetensors": "`datar_jax.load(FOLDER)`, or any safetensors reader: kernels are (in, out) or (height, width, in, "
    "out), so that PyTorch's Linear takes them transposed and its Conv2d permuted (3, 2, 0, 1)",
    "stablehlo": "`jax.export.deserialize(bytearray(file)).call(waveform, length, start)`, with jax and flatbuffers",
    "onnx": "any ONNX runtime: inputs `waveform`, `length`, `start`, output `probabilities`",
}


def model_card(model: ModelInfo, parameters: int, form: str, weights: str, licences: Mapping[str, str]) -> str:
    """The text of a card.

    Args:
      model: what is known of the model.
      parameters: their number.
      form: of the export, a key of `USES`.
      weights: how numbers are stored: float32, bfloat16 or int8.
      licences: of `weights` and of `data`, as the person who exports states them.
    """
    audio, provenance = model.audio, model.provenance
    licence = licences.get("weights") or UNKNOWN
    head = [
        "---",
        "library_name: datar-jax",
        "pipeline_tag: audio-classification",
        f"license: {_yaml(licence if licence != UNKNOWN else 'other')}",
        "tags: [audio-event-recognition, deformable-attention, jax]",
        "---",
    ]
    shape = model.config.model
    what = [
        f"# DATAR: {len(model.labels)} classes of sound",
        "",
        "A pyramid transformer over log-mel spectrograms with deformable attention (arXiv 2312.16228, reimplemented by "
        "DATAR-JAX).",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameters:,}, stored as {weights} |",
        f"| blocks, widths | {' · '.join(shape.spec)}, {' · '.join(map(str, shape.dims))} |",
        f"| input | one channel at {audio.sample_rate:,} Hz, {model.seconds:g} s ({model.frames} frames of "
        f"{audio.n_mels} mel bins); shorter clips are padded and masked, of longer ones windows are averaged |",
        f"| output | {_output(model)} |",
        f"| use | {USES[form]} |",
    ]
    if form in ("stablehlo", "onnx"):
        samples, context = window_samples(audio, model.frames), left_context(audio)
        what.append(
            f"| arguments | `waveform` float32 (batch, {samples}), a clip at its start and zeros "
            "behind; `length` int32 (batch,), its size; `start` int32 (batch,), 0; of a longer recording a part, in "
            f"which the window begins at sample `start`, {context} but for its beginning |"
        )
    parts = [
        head,
        what,
        _training(provenance),
        _numbers(provenance.get("numbers"), weights),
        _licences(licences),
        _limits(model),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n\n" + _classes(model) + "\n"


def _yaml(text: str) -> str:
    """A text as YAML reads it; what may mean something there is quoted."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else json.dumps(text)


def _output(model: ModelInfo) -> str:
    kind = "that sum to 1" if model.config.data.labels == "single" else "of each class by itself"
    if len(model.heads) > 1:
        heads = ", ".join(f"{name} ({size})" for name, size in model.heads.items())
        return f"probabilities {kind}, of each head: {heads}"
    return f"probabilities {kind}"


def _training(provenance: Mapping[str, Any]) -> list[str]:
    lines = ["## Training", ""]
    data, run = provenance.get("data", {}), provenance.get("run", {})
    if data:
        clips = ", ".join(f"{count:,} {side}" for side, count in data.get("clips", {}).items())
        fold = f", fold {data['fold']} kept for the test" if "fold" in data else ""
        digest = f", SHA-256 of its clips {data['clips_sha256']}" if "clips_sha256" in data else ""
        lines.append(f"- data: {data.get('name', UNKNOWN)} ({data.get('kind', UNKNOWN)}){fold}: {clips} clips{digest}")
    if run:
        lines.append(f"- run: {run['epochs']} epochs, {run['steps']:,} steps, seed {run['seed']}")
    lines.append(f"- program: {provenance.get('program', UNKNOWN)}")
    before = provenance.get("pretraining")
    lines.append(f"- pretraining: {_chain(before) if before else 'none'}")
    return lines


def _chain(before: Mapping[str, Any]) -> str:
    """What a model started from, and what that one did."""
    data = before.get("data", {})
    told = f"started from {before.get('from', UNKNOWN)}, trained on {data.get('name', UNKNOWN)}"
    if "fold" in data:
        told += f" without fold {data['fold']}"
    earlier = before.get("pretraining")
    return f"{told}, which {_chain(earlier)}" if earlier else told


def _numbers(numbers: Mapping[str, Any] | None, weights: str) -> list[str]:
    lines = ["## Numbers", ""]
    if not numbers:
        return [*lines, "Not known: the run had not ended when this was exported, or it evaluates another checkpoint."]
    stored = "" if weights == "float32" else f", measured before the weights were stored as {weights}"
    lines += [f"On {numbers['clips']:,} test clips, one seed{stored}:", "", "| | |", "|---|---|"]
    for field, value in numbers.items():
        if metric := format_metric(field, value):
            lines.append(f"| {' | '.join(metric)} |")
    return [*lines, f"| multiply-accumulates per window | {numbers['macs_per_clip'] / 1e6:,.0f} M |"]


def _licences(licences: Mapping[str, str]) -> list[str]:
    return [
        "## Licences",
        "",
        f"- weights: {licences.get('weights') or UNKNOWN}",
        f"- training data: {licences.get('data') or UNKNOWN}",
        "- program: Apache-2.0",
    ]


def _limits(model: ModelInfo) -> list[str]:
    audio = model.audio
    return [
        "## Limits",
        "",
        f"- It knows the {len(model.labels)} classes below and nothing else"
        + (": whatever it hears, one of them comes out on top." if model.config.data.labels == "single" else "."),
        f"- It hears {audio.fmin:g} to {audio.highest:g} Hz.",
        "- Scores are not calibrated, and were measured on clips like those that it was trained on.",
    ]


def _classes(model: ModelInfo) -> str:
    more = f", and {len(model.labels) - SHOWN} more (config.json)" if len(model.labels) > SHOWN else ""
    return "## Classes\n\n" + ", ".join(model.labels[:SHOWN]) + more
