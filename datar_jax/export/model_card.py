"""Writes the model card: architecture, training data, test metrics, licences and limits of a model.

Markdown with the front matter that model hubs read (Mitchell et al., "Model Cards for Model Reporting", 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

from datar_jax.audio.framing import left_context, window_samples
from datar_jax.checkpoints.model_info import ModelInfo
from datar_jax.checkpoints.provenance import DataProvenance, Metrics, Provenance
from datar_jax.escaping import markdown, yaml_text
from datar_jax.metrics import format_metric

UNKNOWN = "not stated"
MAX_LISTED_CLASSES = 100

USES = {
    "params": "`datar_jax.load(FOLDER)`, or `orbax.checkpoint.StandardCheckpointer().restore(FOLDER/params)`",
    "safetensors": "`datar_jax.load(FOLDER)`, or any safetensors reader: kernels are (in, out) or (height, width, in, "
    "out), so that PyTorch's Linear takes them transposed and its Conv2d permuted (3, 2, 0, 1)",
    "stablehlo": "`jax.export.deserialize(bytearray(file)).call(waveform, length, start)`, with jax and flatbuffers",
    "onnx": "any ONNX runtime: inputs `waveform`, `length`, `start`, output `probabilities`",
}


def model_card(model: ModelInfo, parameters: int, form: str, weights: str, licences: Mapping[str, str]) -> str:
    """Returns the text of a model card.

    Args:
      model: description of the model.
      parameters: number of parameters.
      form: export format, a key of `USES`.
      weights: storage dtype: float32, bfloat16 or int8.
      licences: of `weights` and of `data`, as the person who exports states them.
    """
    audio, provenance = model.audio, model.provenance
    licence = licences.get("weights") or UNKNOWN
    head = [
        "---",
        "library_name: datar-jax",
        "pipeline_tag: audio-classification",
        f"license: {yaml_text(licence if licence != UNKNOWN else 'other')}",
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
        f"{audio.n_mels} mel bins); shorter clips are padded and masked, longer ones averaged over windows |",
        f"| output | {_output(model)} |",
        f"| use | {USES[form]} |",
    ]
    if form in ("stablehlo", "onnx"):
        samples, context = window_samples(audio, model.frames), left_context(audio)
        what.append(
            f"| arguments | `waveform` float32 (batch, {samples}), a clip padded with zeros at the end; `length` int32 "
            "(batch,), number of valid samples; `start` int32 (batch,), sample at which the window begins: 0 for a "
            f"clip or the beginning of a recording, {context} inside a longer recording |"
        )
    parts = [
        head,
        what,
        _training(provenance),
        _metrics(provenance.numbers, weights),
        _licences(licences),
        _limits(model),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n\n" + _classes(model) + "\n"


def _output(model: ModelInfo) -> str:
    kind = "that sum to 1" if model.config.data.labels == "single" else "of each class independently"
    if len(model.heads) > 1:
        heads = ", ".join(f"{markdown(head.name)} ({head.size})" for head in model.heads)
        return f"probabilities {kind}, for each head: {heads}"
    return f"probabilities {kind}"


def _training(provenance: Provenance) -> list[str]:
    lines = ["## Training", ""]
    data, run = provenance.data, provenance.run
    if data != DataProvenance():
        clips = ", ".join(f"{count:,} {markdown(split)}" for split, count in data.clips.items())
        fold = f", fold {data.fold} held out for the test" if data.fold is not None else ""
        digest = f", SHA-256 of its clips {markdown(data.clips_sha256)}" if data.clips_sha256 else ""
        name, kind = markdown(data.name or UNKNOWN), markdown(data.kind or UNKNOWN)
        lines.append(f"- data: {name} ({kind}){fold}: {clips} clips{digest}")
    if run:
        lines.append(f"- run: {run.epochs} epochs, {run.steps:,} steps, seed {run.seed}")
    lines.append(f"- program: {markdown(provenance.program or UNKNOWN)}")
    lines.append(f"- pretraining: {_chain(provenance.pretraining) if provenance.pretraining else 'none'}")
    return lines


def _chain(before: Provenance) -> str:
    """What a model was initialized from, back to the first."""
    text = f"initialized from {markdown(before.source or UNKNOWN)}, trained on {markdown(before.data.name or UNKNOWN)}"
    if before.data.fold is not None:
        text += f" without fold {before.data.fold}"
    return f"{text}, which was {_chain(before.pretraining)}" if before.pretraining else text


def _metrics(metrics: Metrics, weights: str) -> list[str]:
    lines = ["## Results", ""]
    if not metrics:
        return [
            *lines,
            "Not known: the run had not finished when this was exported, or its test used another checkpoint.",
        ]
    stored = "" if weights == "float32" else f", measured before the weights were converted to {weights}"
    lines += [f"On {metrics['clips']:,} test clips, one seed{stored}:", "", "| | |", "|---|---|"]
    for field, value in metrics.items():
        if not isinstance(value, dict) and (metric := format_metric(field, value)):
            lines.append(f"| {markdown(metric[0])} | {metric[1]} |")
    macs = metrics["macs_per_clip"]
    assert isinstance(macs, int)
    return [*lines, f"| multiply-accumulates per window | {macs / 1e6:,.0f} M |"]


def _licences(licences: Mapping[str, str]) -> list[str]:
    return [
        "## Licences",
        "",
        f"- weights: {markdown(licences.get('weights') or UNKNOWN)}",
        f"- training data: {markdown(licences.get('data') or UNKNOWN)}",
        "- program: Apache-2.0",
    ]


def _limits(model: ModelInfo) -> list[str]:
    audio = model.audio
    return [
        "## Limits",
        "",
        f"- It recognizes only the {len(model.labels)} classes below"
        + ("; every sound is assigned to one of them." if model.config.data.labels == "single" else "."),
        f"- It uses frequencies from {audio.fmin:g} to {audio.highest:g} Hz.",
        "- Scores are not calibrated. Results are for clips of the same kind as the training data.",
    ]


def _classes(model: ModelInfo) -> str:
    more = (
        f", and {len(model.labels) - MAX_LISTED_CLASSES} more (model.json)"
        if len(model.labels) > MAX_LISTED_CLASSES
        else ""
    )
    return "## Classes\n\n" + ", ".join(map(markdown, model.labels[:MAX_LISTED_CLASSES])) + more
