"""Weights in small forms: how far they err, and files that others read and that are refused when they are damaged."""

from __future__ import annotations

import json
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.quantization import Quantized, dequantize, quantize, quantize_leaf
from datar_jax.checkpoints.safetensors import load_safetensors, save_safetensors


def parameters(seed: int = 0) -> Any:
    """A kernel of each kind, and what is no kernel."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 2, shape[-1])).astype(np.float32)

    dense = {"kernel": normal(24, 48), "bias": normal(48)}
    return {
        "stage_0_0": {"mixer": {"qkv": dense, "table": normal(2, 15)}, "mlp": {"conv": {"kernel": normal(3, 3, 1, 8)}}},
        "down_1": {"project": {"kernel": normal(3, 3, 8, 16)}, "norm": {"scale": normal(16), "bias": normal(16)}},
        "offset": {"kernel": normal(5, 5, 4)},
    }


MIXING = {"stage_0_0.mixer.qkv.kernel", "down_1.project.kernel"}


def flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


# Forms.


@given(seed=st.integers(0, 1000), magnitude=st.sampled_from([-40, -30, -3, 0, 5, 30]))
def test_whole_numbers_err_by_half_a_scale(seed, magnitude):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(7, 5)) * 10.0**magnitude).astype(np.float32)
    weight[:, 1] = 0
    values, scale = quantize_leaf(weight)
    assert values.dtype == np.int8 and values.min() >= -127
    assert scale.dtype == np.float32 and scale.shape == (5,) and (scale > 0).all()
    # Beyond half a scale, only the rounding of a quotient and of a product of float32, of at most 127 scales.
    assert (np.abs(dequantize(Quantized(values, scale)) - weight) <= scale * (0.5 + 127 * 2.0**-23)).all()
    if magnitude > -40:  # the largest of each channel is kept
        assert (np.abs(values).max(0) == np.where(np.arange(5) == 1, 0, 127)).all()
    assert (quantize_leaf(-weight).values == -values).all()


def test_forms_store_what_they_say():
    params = parameters()
    for name, leaf in flat(quantize(params, "float32")).items():
        assert leaf.dtype == np.float32 and (leaf == flat(params)[name]).all()
    for name, leaf in flat(quantize(params, "bfloat16")).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_allclose(leaf.astype(np.float32), flat(params)[name], rtol=2.0**-8, atol=0)
    whole = flat(quantize(params, "int8"))
    assert {name for name, leaf in whole.items() if isinstance(leaf, Quantized)} == MIXING
    for name, leaf in whole.items():
        if name not in MIXING:
            assert leaf.dtype == np.float32 and (leaf == flat(params)[name]).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(dequantize(quantize(params, "int8")))} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="weights='int4': give one of float32, bfloat16, int8"):
        quantize(params, "int4")  # type: ignore[arg-type]


def test_a_weight_that_is_not_finite_is_not_stored():
    params = parameters()
    params["stage_0_0"]["mixer"]["qkv"]["kernel"][3, 4] = np.nan
    with pytest.raises(ValueError, match=r"stage_0_0\.mixer\.qkv\.kernel: holds NaN or infinity"):
        quantize(params, "int8")


# Files.


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_a_file_gives_back_what_was_stored(tmp_path, form):
    path, params = tmp_path / "weights.safetensors", parameters()
    params["offset"]["kernel"] = params["offset"]["kernel"].transpose(1, 0, 2)  # not as it lies in memory
    save_safetensors(path, params, form, {"labels": '["dog"]'})
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"labels": '["dog"]'}
    got = load_safetensors(path)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    for name, leaf in flat(dequantize(quantize(params, form))).items():
        assert flat(got)[name].dtype == np.float32
        np.testing.assert_array_equal(flat(got)[name], leaf, err_msg=name)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    small = sum(flat(params)[name].size for name in MIXING)
    head = (
        path.stat().st_size - {"float32": 4 * weights, "bfloat16": 2 * weights, "int8": 4 * weights - 3 * small}[form]
    )
    assert 0 < head < 2_000


def test_numpy_alone_reads_int8(tmp_path):
    from safetensors.numpy import load_file

    save_safetensors(tmp_path / "w", parameters(), "int8")
    tensors = load_file(tmp_path / "w")
    assert set(tensors) == {*flat(parameters()), *(f"{name}.scale" for name in MIXING)}
    for name in MIXING:
        values, scale = tensors[name], tensors[f"{name}.scale"]
        assert values.dtype == np.int8 and scale.dtype == np.float32
        assert (np.abs(values * scale - flat(parameters())[name]) <= 0.501 * scale).all()


def test_torch_reads_every_form(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    for form, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)):
        save_safetensors(tmp_path / form, parameters(), form)
        tensors = load_file(tmp_path / form)
        name = "stage_0_0.mixer.qkv.kernel"
        assert tensors[name].dtype == dtype and tensors[name].shape == (24, 48)
        scale = tensors[f"{name}.scale"] if form == "int8" else 1
        expected = flat(load_safetensors(tmp_path / form))[name]
        np.testing.assert_array_equal((tensors[name].float() * scale).numpy(), expected)


def written(path: Any, tensors: dict[str, np.ndarray]) -> Any:
    from safetensors.numpy import save_file

    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"a.kernel": np.zeros((2, 3), np.int8)}, "a.kernel: int8 without its scale; the file has no a.kernel.scale"),
        (
            {"a.kernel": np.zeros((2, 3), np.int8), "a.kernel.scale": np.ones(2, np.float32)},
            "a.kernel.scale: float32 \\(2,\\), but a.kernel of shape \\(2, 3\\) needs float32 \\(3,\\)",
        ),
        (
            {"a.kernel": np.zeros((2, 3), np.int8), "a.kernel.scale": np.ones(3, np.int8)},
            "a.kernel.scale: int8 \\(3,\\), but",
        ),
        (
            {"a.kernel": np.ones((2, 3), np.int8), "a.kernel.scale": np.array([1, np.inf, 1], np.float32)},
            "a.kernel.scale: holds NaN or infinity",
        ),
        (
            {"a.kernel": np.full((2, 1), 9, np.int8), "a.kernel.scale": np.array([3e38], np.float32)},
            "a.kernel: holds NaN or infinity",
        ),
        ({"a.bias": np.array([0, np.nan], np.float32)}, "a.bias: holds NaN or infinity"),
        ({"a.bias": np.zeros(2, np.float64)}, "a.bias: stored as F64; weights are stored as F32, BF16, I8"),
        (
            {"a.kernel": np.zeros(3, np.float32), "a.kernel.scale": np.ones(3, np.float32)},
            "a.kernel.scale: a scale for a float32 tensor; only int8 tensors have one",
        ),
        ({"a": np.zeros(3, np.float32), "a.b.c": np.ones(3, np.float32)}, "a.b.c: a is a tensor too"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_file_and_tensor(tmp_path, tensors, message):
    path = written(tmp_path / "damaged.safetensors", tensors)
    with pytest.raises(ModelError, match=f"^{path}: {message}"), np.errstate(over="ignore"):
        load_safetensors(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights"
    for content in (None, b"", b"text", struct.pack("<Q", 9) + b"{}", b"a" * 100):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=f"^{path}: cannot be read as safetensors"):
            load_safetensors(path)
    save_safetensors(path, parameters(), "int8")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_safetensors(path)
    head = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    assert head["down_1.project.kernel"]["dtype"] == "I8"  # as any reader sees it
