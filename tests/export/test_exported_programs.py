"""Waveform in, probabilities out: the numbers of the host's way at every length, and the same from a file."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.audio.framing import columns, frame_samples, left_context, window_samples
from datar_jax.audio.log_mel import log_mel
from datar_jax.audio.log_mel_jax import frame_samples_jax
from datar_jax.checkpoints.quantization import dequantize, quantize
from datar_jax.export.onnx import _pad, for_onnx, to_onnx
from datar_jax.export.stablehlo import from_stablehlo, to_stablehlo
from datar_jax.export.waveform_model import columns_jax, make_waveform_model
from datar_jax.models.spec import ModelSpec
from datar_jax.training.train_step import eval_step

pytestmark = pytest.mark.usefixtures("quick_compiles")

CLASSES, FRAMES, MEAN, STD = 5, 33, -31.0, 17.0
AUDIO = c.AudioConfig(sample_rate=8_000, n_mels=32, window_ms=25.0, hop_ms=10.0)
SAMPLES = window_samples(AUDIO, FRAMES)
WHOLE = FRAMES * AUDIO.hop_length + AUDIO.hop_length // 2 - 1  # samples of a clip that fills the window
# One deformable block: cheap to compile. What else there is knows no batch size.
MODEL = c.ModelConfig(
    dims=(8,),
    spec=("D",),
    heads=(2,),
    deformable=c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,)),
)
CONFIG = c.Config(audio=AUDIO, model=MODEL, data=c.DataConfig(window_seconds=0.33))
FRONT_ENDS = (
    AUDIO,
    c.AudioConfig(window_ms=40.0, hop_ms=20.0),
    c.AudioConfig(sample_rate=22_050, window_ms=23.2, hop_ms=11.6),
    c.AudioConfig(sample_rate=11_025, window_ms=7.03, hop_ms=0.998),  # a window of odd size; half a hop is no sample
)


def parameters() -> Any:
    """Far from their start, so that no zero hides a path."""
    spec = ModelSpec(CONFIG, CLASSES, FRAMES, 1)
    mel = jax.ShapeDtypeStruct((1, AUDIO.n_mels, FRAMES), jnp.float32)
    shapes = jax.eval_shape(spec.model(train=False).init, jax.random.key(0), mel)["params"]
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: rng.normal(path[-1].key == "scale", 0.3, x.shape).astype(np.float32), shapes
    )


def clips(lengths: list[int], beyond: float = 0.0) -> np.ndarray:
    """Chirps of all levels in windows whose rest holds `beyond`."""
    rng = np.random.default_rng(1)
    waves = np.full((len(lengths), SAMPLES), beyond, np.float32)
    for wave, length in zip(waves, lengths):
        t = np.arange(length) / AUDIO.sample_rate
        wave[:length] = rng.uniform(0.01, 1) * np.sin(2 * np.pi * (200 + 4000 * t) * t) + rng.normal(0, 1e-2, length)
    return waves


# Lengths.


@pytest.mark.parametrize("audio", FRONT_ENDS)
def test_columns_are_those_of_the_store_at_every_length(audio):
    lengths = np.arange(1, 40 * audio.hop_length + 1)
    got = columns_jax(jnp.asarray(lengths, jnp.int32), audio, 40)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, columns(lengths, audio))


@pytest.mark.parametrize("audio", FRONT_ENDS)
def test_an_excerpt_is_that_of_the_host_at_every_kind_of_length(audio):
    frames = -(-2 * audio.n_fft // audio.hop_length)
    least, end = audio.n_fft // 2 + 1, frames * audio.hop_length
    lengths = np.array(
        [1, 2, audio.hop_length // 2 + 1, least - 1, least, least + 1, audio.win_length, 1077 % end, end - 1, end]
    )
    waves = np.random.default_rng(0).normal(size=(len(lengths), end)).astype(np.float32)
    start = jnp.zeros(len(lengths), jnp.int32)
    got = np.asarray(frame_samples_jax(jnp.asarray(waves), jnp.asarray(lengths, jnp.int32), start, audio, frames))
    for wave, length, row in zip(waves, lengths, got):
        valid = int(columns(np.array([length]), audio)[0])
        expected = frame_samples(wave[:length], 0, int(length), audio, 0, valid)
        np.testing.assert_array_equal(row[: expected.size], expected, err_msg=str(length))


def test_a_window_inside_a_recording_is_that_of_the_host():
    for audio in FRONT_ENDS:
        frames, long = 12, 40 * audio.hop_length + 17
        whole = np.random.default_rng(0).normal(size=long).astype(np.float32)
        for start in (0, 1, 2, 5, 40 - frames):
            first = max(0, start * audio.hop_length - left_context(audio))
            part = whole[first:][: window_samples(audio, frames)]
            waves = np.pad(part, (0, window_samples(audio, frames) - part.size))[None]
            here = np.array([start * audio.hop_length - first], np.int32)
            got = frame_samples_jax(jnp.asarray(waves), jnp.array([part.size], jnp.int32), here, audio, frames)[0]
            expected = frame_samples(whole, 0, long, audio, start, frames)
            np.testing.assert_array_equal(got, expected, err_msg=f"{audio} {start}")
            assert columns_jax(jnp.array([part.size], jnp.int32) - here, audio, frames).tolist() == [frames]


# The program.


@pytest.mark.parametrize("labels, heads", [("single", (2, 3)), ("multi", ())])
def test_the_program_scores_as_an_evaluation_with_the_hosts_front_end(labels, heads):
    config = msgspec.structs.replace(CONFIG, data=c.DataConfig(labels=labels, window_seconds=0.33))
    params, lengths = parameters(), [1, 3, 39, 40, 121, 127, 200, 259, 1333, WHOLE - 41, WHOLE - 1, WHOLE]
    mel_BxFxT = np.full((len(lengths), AUDIO.n_mels, FRAMES), AUDIO.floor_db, np.float32)
    frames_B = columns(np.array(lengths), AUDIO).astype(np.int32)
    for mel, wave, length, frames in zip(mel_BxFxT, clips(lengths), lengths, frames_B):
        mel[:, :frames] = log_mel(wave[:length], AUDIO)
    spec = ModelSpec(config, CLASSES, FRAMES, 1, heads)
    statistics = jnp.array([MEAN, STD], jnp.float32)
    expected = jax.jit(partial(eval_step, spec))(params, statistics, {"mel": mel_BxFxT, "frames": frames_B})

    program = jax.jit(make_waveform_model(config, heads, CLASSES, FRAMES, MEAN, STD))
    start = np.zeros(len(lengths), np.int32)
    got = program(params, clips(lengths), np.array(lengths, np.int32), start)
    assert got.dtype == jnp.float32
    assert np.asarray(got).std(0).min() > 1e-3  # clips differ
    # The front ends differ by up to 1e-3 dB in bins far below the loudest, and far less elsewhere.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    beyond = program(params, clips(lengths, 1e4), np.array(lengths, np.int32), start)
    np.testing.assert_array_equal(beyond, got)


def test_a_waveform_of_another_length_is_refused():
    program = make_waveform_model(CONFIG, (), CLASSES, FRAMES, MEAN, STD)
    with pytest.raises(ValueError, match=rf"\(2, 100\); give \(B, {SAMPLES}\), {FRAMES} frames"):
        program({}, np.zeros((2, 100), np.float32), np.array([1, 1]), np.array([0, 0]))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_branch_of_the_model_takes_batches_of_a_size_that_is_not_known(stem):
    model = c.ModelConfig(
        dims=(8, 16),
        spec=("LSND", "D"),
        heads=(2, 4),
        window=c.WindowSettings(sizes=((3, 4), (2, 2))),
        neighborhood=c.NeighborhoodSettings(sizes=((3, 5), (3, 3))),
        deformable=c.DeformableSettings(groups=(1, 2), strides=(2, 1), kernels=(3, 3)),
        stem=stem,
        mlp="conv",
        local_perception=True,
        adaptor="both",
        adaptor_at="both",
    )
    config = msgspec.structs.replace(CONFIG, model=model)
    mel = jax.ShapeDtypeStruct((1, AUDIO.n_mels, FRAMES), jnp.float32)
    init = ModelSpec(config, CLASSES, FRAMES, 1).model(train=False).init
    params = jax.eval_shape(init, jax.random.key(0), mel)["params"]
    program = make_waveform_model(config, (), CLASSES, FRAMES, MEAN, STD)
    (b,) = jax.export.symbolic_shape("b")
    number_B = jax.ShapeDtypeStruct((b,), jnp.int32)
    shapes = jax.ShapeDtypeStruct((b, SAMPLES), jnp.float32), number_B, number_B
    assert jax.eval_shape(program, params, *shapes).shape == (b, CLASSES)


# The file.

ALONE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datar_jax", "flax", "librosa", "scipy.sparse", "optax", "safetensors"):
            raise ImportError(f"{name} is not to be needed")

sys.meta_path.insert(0, Refused())
import jax
import numpy as np

jax.config.update("jax_disable_most_optimizations", True)
folder = sys.argv[1]
run = jax.jit(jax.export.deserialize(bytearray(open(f"{folder}/program", "rb").read())).call)
given = np.load(f"{folder}/given.npz")
for first, last in ((0, 1), (1, 4), (0, 7)):
    got = run(given["waves"][first:last], given["lengths"][first:last], np.zeros(last - first, np.int32))
    np.testing.assert_allclose(got, given["expected"][first:last], rtol=0, atol=1e-6)
print("agreed")
"""


def test_a_file_needs_jax_alone_and_takes_batches_of_any_size(tmp_path):
    program, params = make_waveform_model(CONFIG, (2, 3), CLASSES, FRAMES, MEAN, STD), parameters()
    lengths = np.array([1, 40, 127, 700, 1333, WHOLE - 1, WHOLE], np.int32)
    stored, waves = quantize(params, "int8"), clips(lengths.tolist())
    file = to_stablehlo(program, stored, SAMPLES)
    (tmp_path / "program").write_bytes(file)
    expected = jax.jit(program)(dequantize(stored), waves, lengths, 0 * lengths)
    np.savez(tmp_path / "given.npz", waves=waves, lengths=lengths, expected=expected)
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "agreed\n", done.stderr
    np.testing.assert_allclose(
        from_stablehlo(file, SAMPLES, CLASSES)(waves[:1], lengths[:1], 0 * lengths[:1]), expected[:1], rtol=0, atol=1e-6
    )


def test_weights_lie_in_the_file_in_the_form_that_they_were_given_in():
    big = {"kernel": np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)}

    def program(params: Any, waveform: Any, length: Any, start: Any) -> Any:
        return waveform @ params["kernel"] + (length + start)[:, None]

    sizes = {
        form: len(to_stablehlo(program, quantize(big, form), 512, ["cpu"])) for form in ("float32", "bfloat16", "int8")
    }
    rest = sizes["float32"] - 4 * 512 * 64
    assert 0 < rest < 8_000
    assert abs(sizes["bfloat16"] - 2 * 512 * 64 - rest) < 2_000
    assert abs(sizes["int8"] - 512 * 64 - rest) < 2_000


@pytest.mark.parametrize("file", [b"", b"no program", bytes(1000)])
def test_other_files_are_refused(file):
    with pytest.raises(ValueError, match=r"not a jax\.export program"):
        from_stablehlo(file, SAMPLES, CLASSES)


# The other file.


def test_onnxruntime_computes_the_same_from_an_onnx_file():
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    stored, lengths = quantize(parameters(), "int8"), np.array([1, 40, 127, 700, 1333, WHOLE - 1, WHOLE], np.int32)
    expected = jax.jit(make_waveform_model(CONFIG, (2, 3), CLASSES, FRAMES, MEAN, STD))(
        dequantize(stored), clips(lengths.tolist()), lengths, 0 * lengths
    )
    file = to_onnx(make_waveform_model(for_onnx(CONFIG), (2, 3), CLASSES, FRAMES, MEAN, STD, "gather"), stored, SAMPLES)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape[1:]) for each in session.get_inputs()] == [
        ("waveform", [SAMPLES]),
        ("length", []),
        ("start", []),
    ]
    for first, last in ((0, 1), (1, 4), (0, 7)):
        given = {"waveform": clips(lengths.tolist())[first:last], "length": lengths[first:last]}
        given["start"] = 0 * given["length"]
        (got,) = session.run(["probabilities"], given)
        np.testing.assert_allclose(got, expected[first:last], rtol=0, atol=1e-5)


def test_padding_as_concatenation_is_padding():
    x, value = jnp.arange(24.0).reshape(2, 3, 4), jnp.float32(7)
    for padding in ([(0, 0, 0), (1, 0, 0), (2, 3, 0)], [(0, 1, 0), (-1, 2, 0), (-1, -2, 0)], [(0, 0, 0)] * 3):
        np.testing.assert_array_equal(_pad(x, value, padding), jax.lax.pad(x, value, padding))
    with pytest.raises(NotImplementedError, match="between the entries"):
        _pad(x, value, [(0, 0, 1)] * 3)


def test_without_the_converter_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'datar-jax\[onnx\]'"):
        to_onnx(lambda *_: None, {}, SAMPLES)
