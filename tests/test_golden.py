"""The modules against numbers of the official DAT code: outputs and gradients, float32 and float64."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.attention import DeformableAttention, WindowAttention
from datar_jax.config import ModelConfig
from datar_jax.model import DATAR, Mlp

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("DATAR_GOLDEN", HERE.parent.parent / "shared" / "golden"))
OWN = sorted((HERE / "golden").glob("*.npz"))
FOREIGN = sorted(FOLDER.glob("*.npz"))
Module = Callable[[Any], nn.Module]


@dataclass
class Fixture:
    """One file: arrays by key, and what the official class was built with."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def grid(self) -> str:
        return "dat2022" if self.meta["tree"].startswith("797f187") else "dat2023"


def read(path: Path) -> Fixture:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return Fixture(arrays, json.loads(str(arrays.pop("meta"))))


# Official names on the left of each pair, ours on the right; the layout follows from the name's end.
DATTN = {
    r"rpe_table": "table",
    r"conv_offset\.0\.weight": "offset/kernel",
    r"conv_offset\.0\.bias": "offset/bias",
    r"conv_offset\.1\.norm\.weight": "offset/norm/scale",
    r"conv_offset\.1\.norm\.bias": "offset/norm/bias",
    r"conv_offset\.3\.weight": "offset/project/kernel",
    r"proj_q\.(weight|bias)": r"query/\1",
    r"proj_k\.(weight|bias)": r"key/\1",
    r"proj_v\.(weight|bias)": r"value/\1",
    r"proj_out\.(weight|bias)": r"out/\1",
}
WINDOW = {
    r"relative_position_bias_table": "table",
    r"proj_qkv\.(weight|bias)": r"qkv/\1",
    r"proj_out\.(weight|bias)": r"out/\1",
}
MLP = {r"chunk\.linear1\.(weight|bias)": r"up/\1", r"chunk\.linear2\.(weight|bias)": r"down/\1"}
MLP_CONV = {
    r"linear1\.0\.(weight|bias)": r"up/\1",
    r"dwc\.(weight|bias)": r"conv/\1",
    r"linear2\.0\.(weight|bias)": r"down/\1",
}


def model_names(depths: list[int]) -> dict[str, str]:
    names = {
        r"patch_proj\.0\.(weight|bias)": r"stem/project/\1",
        r"patch_proj\.1\.norm\.(weight|bias)": r"stem/norm/\1",
        r"down_projs\.(\d)\.0\.weight": lambda m: f"down_{int(m[1]) + 1}/project/weight",
        r"down_projs\.(\d)\.1\.norm\.(weight|bias)": lambda m: f"down_{int(m[1]) + 1}/norm/{m[2]}",
        r"cls_norm\.norm\.(weight|bias)": r"norm/\1",
        r"cls_head\.(weight|bias)": r"head/\1",
        r"stages\.(\d)\.layer_norms\.(\d+)\.norm\.(weight|bias)": lambda m: (
            f"stage_{m[1]}_{int(m[2]) // 2}/{('norm_mixer', 'norm_mlp')[int(m[2]) % 2]}/{m[3]}"
        ),
    }
    for part, inner in (("attns", {**DATTN, **WINDOW}), ("mlps", MLP)):
        room = "mixer" if part == "attns" else "mlp"
        for pattern, target in inner.items():
            names[rf"stages\.(\d)\.{part}\.(\d+)\.(?P<rest>{pattern})"] = lambda m, p=pattern, t=target, r=room: (
                f"stage_{m[1]}_{m[2]}/{r}/{re.sub(p, t, m['rest'])}"
            )
    return names


def to_ours(arrays: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    """Flat official parameters as our flat parameters, values moved to our layout. Every name must be known."""
    out = {}
    for name, value in arrays.items():
        for pattern, target in names.items():
            if match := re.fullmatch(pattern, name):
                path = target(match) if callable(target) else re.sub(pattern, target, name)
                break
        else:
            raise KeyError(f"no rule for the official parameter {name}")
        if path.endswith("table") and value.ndim == 2:
            value = value.T
        if path.endswith("weight"):
            leaf = "scale" if value.ndim == 1 else "kernel"
            path = path.removesuffix("weight") + leaf
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            value = value[0, 0] if value.shape[:2] == (1, 1) else value
        elif value.ndim == 2 and path.endswith("kernel"):
            value = value.T
        if path.endswith("offset/kernel"):
            value = value[:, :, 0, :]
        out[path] = value
    return out


def build(fixture: Fixture) -> tuple[Module, dict[str, str]] | None:
    """Our module for a fixture as a function of dtype, and the names of its parameters; None if out of scope."""
    meta = fixture.meta
    name = meta["cls"]
    if name == "DAttentionBaseline":
        if meta["no_off"] or meta["fixed_pe"] or meta["dwc_pe"] or meta.get("log_cpb"):
            return None
        ksize = meta["ksize"]
        return (
            lambda dtype: DeformableAttention(
                heads=meta["n_heads"],
                groups=meta["n_groups"],
                stride=meta["stride"],
                kernel=ksize,
                size=tuple(meta["q_size"]),
                offset_range=meta["offset_range_factor"],
                grid=fixture.grid(),
                position="table" if meta["use_pe"] else "none",
                dtype=dtype,
            ),
            DATTN,
        )
    if name in ("LocalAttention", "ShiftWindowAttention"):
        shifted = name == "ShiftWindowAttention"
        assert not shifted or meta["shift_size"] == -(-meta["window_size"][0] // 2)
        return lambda dtype: WindowAttention(meta["heads"], tuple(meta["window_size"]), shifted, dtype), WINDOW
    if name == "TransformerMLP":
        return lambda dtype: Mlp(meta["expansion"], False, dtype), MLP
    if name == "TransformerMLPWithConv":
        return lambda dtype: Mlp(meta["expansion"], True, dtype), MLP_CONV
    if name == "DAT":
        cfg = meta["cfg"]
        plain = not cfg["use_conv_patches"] and not any(cfg["use_dwc_mlps"]) and not any(cfg.get("use_lpus", []))
        if not plain or not {c for stage in cfg["stage_spec"] for c in stage} <= set("LSD"):
            return None
        one = {r for r, spec in zip(cfg["offset_range_factor"], cfg["stage_spec"]) if "D" in spec}
        assert len(one) == 1, "one offset range for all stages"
        config = ModelConfig(
            dims=tuple(cfg["dims"]),
            spec=tuple("".join(stage) for stage in cfg["stage_spec"]),
            heads=tuple(cfg["heads"]),
            windows=tuple((w, w) for w in cfg["window_sizes"]),
            groups=tuple(max(g, 1) for g in cfg["groups"]),
            strides=tuple(max(s, 1) for s in cfg["strides"]),
            kernels=(9, 7, 5, 3),
            offset_range=one.pop(),
            grid=fixture.grid(),
            mlp_ratio=cfg["expansion"],
            adaptor="none",
        )
        mels, frames = meta["img_size"]

        class Logits(nn.Module):
            dtype: Any

            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                model = DATAR(config, cfg["num_classes"], mels, frames, dtype=self.dtype)
                nn.share_scope(self, model)
                return model(x)[0]

        return Logits, model_names(cfg["depths"])
    return None


def check(path: Path, dtype: Any) -> bool:
    """Compares one fixture; False if its class is out of scope."""
    fixture = read(path)
    built = build(fixture)
    if built is None:
        return False
    module, names = built
    wide = dtype == jnp.float64
    prefix = "f64/" if wide else ""
    arrays = {k.removeprefix(prefix): v for k, v in fixture.arrays.items() if k.startswith("f64/") == wide}
    source = {k: arrays.get(k, fixture.arrays[k]) for k in fixture.arrays if k.startswith("param/") or k in ("x", "w")}
    flat = to_ours({k.removeprefix("param/"): v for k, v in source.items() if k.startswith("param/")}, names)
    params = tree.unflatten_dict({k: jnp.asarray(v, dtype) for k, v in flat.items()}, sep="/")
    x = jnp.asarray(source["x"], dtype).transpose(0, 2, 3, 1)
    w = jnp.asarray(source["w"], dtype)

    def run(params: Any, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        y, kept = module(dtype).apply({"params": params}, x, mutable=["intermediates"])
        y = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
        return jnp.sum(y * w), (y, kept)

    with jax.default_matmul_precision("highest"):
        (_, (y, kept)), (d_params, d_x) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, x)

    stats = fixture.meta["stats"]
    deformable = fixture.meta["cls"] in ("DAttentionBaseline", "DAT")
    y_tolerance = 1e-9 if wide else (1e-4 if deformable else 1e-5)
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=y_tolerance, err_msg=f"{path.name} y")
    if "pos" in arrays:
        positions = kept["intermediates"]["positions"][0]
        size = np.array(x.shape[1:3])
        pixels = (arrays["pos"] + 1) / 2 * (size - 1)
        np.testing.assert_allclose(positions, pixels, rtol=0, atol=1e-9 if wide else 1e-4, err_msg="pos")

    expected = {k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}
    if wide and not expected:  # whole models come with float64 outputs only
        return True
    dx = expected.pop("x")
    zero = set(stats["zero_grad_params"])
    zero_ours = set(to_ours({k: expected[k] for k in zero}, names)) if zero else set()
    ours = tree.flatten_dict(d_params, sep="/")
    theirs = to_ours(expected, names)
    assert set(ours) == set(theirs)
    pairs = [("x", d_x.transpose(0, 3, 1, 2), dx), *((k, ours[k], theirs[k]) for k in theirs)]
    for name, mine, other in pairs:
        largest = 0.0 if name in zero_ours else float(np.abs(other).max())
        floor = 1e-4 * stats["grad_scale"]
        tolerance = 1e-9 if wide else max(5e-4 * largest, floor)
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance, err_msg=f"{path.name} grad {name}")
    return True


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_this_repository(path: Path, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        assert check(path, jnp.dtype(dtype).type)


@pytest.mark.skipif(not FOREIGN, reason=f"no fixtures in {FOLDER}; DATAR_GOLDEN names a folder of them")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_a_folder(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.enable_x64(dtype == "float64"):
        checked = {path.stem: check(path, jnp.dtype(dtype).type) for path in FOREIGN}
    inside = [name for name, done in checked.items() if done]
    outside = [name for name, done in checked.items() if not done]
    with capsys.disabled():
        print(f"\ngolden numbers, {dtype}: {len(inside)} checked, out of scope: {', '.join(outside) or 'none'}")
    assert inside
