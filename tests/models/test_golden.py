"""The modules against numbers of the official DAT code: outputs and gradients, float32 and float64."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.checkpoints.dat_names import MIXER, MLP, model_paths, path_in, to_ours
from datar_jax.config import DeformableSettings, ModelConfig, NeighborhoodSettings, WindowSettings
from datar_jax.models.datar import DATAR
from datar_jax.models.layers import LayerNorm, Mlp
from datar_jax.models.mixers.deformable import DeformableAttention
from datar_jax.models.mixers.neighborhood import NeighborhoodAttention
from datar_jax.models.mixers.window import WindowAttention

pytestmark = pytest.mark.usefixtures("quick_compiles")

FOUND = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("DATAR_GOLDEN", FOUND.parent.parent / "shared" / "golden"))
OWN = sorted((FOUND / "golden").glob("*.npz"))
FOREIGN = sorted(FOLDER.glob("*.npz"))
NARROW = "holds float32 only"
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


class Outside(Exception):
    """What a fixture asks for and the official configurations never had."""


def build(fixture: Fixture) -> tuple[Module, Callable[[str], str | None]]:
    """Our module for a fixture as a function of dtype, and our path for an official name."""
    meta = fixture.meta
    name = meta["cls"]
    if name == "DAttentionBaseline":
        refuse({"no_off": meta["no_off"], "fixed_pe": meta["fixed_pe"] and meta["use_pe"]})
        refuse({f"even kernel {meta['ksize']}": meta["ksize"] % 2 == 0})
        refuse({"kernel = stride": meta["ksize"] == meta["stride"] > 1 and fixture.grid() == "dat2023"})
        return (
            lambda dtype: DeformableAttention(
                heads=meta["n_heads"],
                groups=meta["n_groups"],
                stride=meta["stride"],
                kernel=meta["ksize"],
                size=tuple(meta["q_size"]),
                offset_range=meta["offset_range_factor"],
                grid=fixture.grid(),
                position=position(meta["use_pe"], meta["dwc_pe"], meta.get("log_cpb")),
                dtype=dtype,
            ),
            partial(path_in, MIXER),
        )
    if name in ("LocalAttention", "ShiftWindowAttention"):
        shifted = name == "ShiftWindowAttention"
        if shifted:
            refuse({f"shift {meta['shift_size']}": meta["shift_size"] != -(-meta["window_size"][0] // 2)})
        module = partial(WindowAttention, meta["heads"], tuple(meta["window_size"]), shifted)
        return module, partial(path_in, MIXER)
    if name == "NeighborhoodAttention2D":
        kernel = (meta["kernel_size"],) * 2
        return partial(NeighborhoodAttention, meta["heads"], kernel, True), partial(path_in, MIXER)
    if name in ("TransformerMLP", "TransformerMLPWithConv"):
        conv = name == "TransformerMLPWithConv"
        refuse({"its MLP": conv and fixture.grid() == "dat2022"})
        return partial(Mlp, meta["expansion"], conv), partial(path_in, MLP)
    if name == "LayerNormProxy":
        return LayerNorm, partial(path_in, ((r"norm\.(weight|bias)", r"\1"),))
    if name == "DAT":
        config = model_config(meta["cfg"], fixture.grid())
        mels, frames = meta["img_size"]

        class Logits(nn.Module):
            dtype: Any

            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                model = DATAR(config, meta["cfg"]["num_classes"], mels, frames, dtype=self.dtype)
                nn.share_scope(self, model)
                return model(x)[0]

        names = {key.removeprefix("param/") for key in fixture.arrays if key.startswith("param/")}
        return Logits, model_paths(names)
    raise Outside("its class")


def refuse(asked: dict[str, bool]) -> None:
    if names := [name for name, wanted in asked.items() if wanted]:
        raise Outside(", ".join(names))


def position(use_pe: bool, dwc_pe: bool, log_cpb: bool | None) -> Any:
    if not use_pe:
        return "none"
    return "dwc" if dwc_pe else "log_cpb" if log_cpb else "table"


def model_config(cfg: dict[str, Any], grid: Any) -> ModelConfig:
    """Our settings for those of an official model."""
    stages = range(len(cfg["dims"]))
    spec = tuple("".join(stage) for stage in cfg["stage_spec"])
    refuse({f"blocks {letter}": letter in "".join(spec) for letter in "PXQE"})
    refuse({"no_off": any(cfg.get("no_offs", ())), "fixed_pe": any(cfg.get("fixed_pes", ()))})
    deformable = [i for i in stages if "D" in spec[i]]
    kernels = cfg.get("ksizes", (9, 7, 5, 3))
    terms = zip(cfg["use_pes"], cfg["dwc_pes"], cfg.get("log_cpb", [False] * len(stages)))
    settings = {
        "offset ranges": {cfg["offset_range_factor"][i] for i in deformable},
        "position terms": {term for i, term in enumerate(position(*each) for each in terms) if i in deformable},
        "MLPs": {*cfg["use_dwc_mlps"]},
        "local perception": {*cfg.get("use_lpus", [False])},
    }
    refuse({f"different {name}": len(values) > 1 for name, values in settings.items()})
    newer = grid == "dat2023"
    refuse({"convolutions of 2022": not newer and (cfg["use_conv_patches"] or True in settings["MLPs"])})
    refuse({"layer scale": any(scale > 0 for scale in cfg.get("layer_scale_values", []))})
    refuse({"even kernels": any(kernels[i] % 2 == 0 for i in deformable)})
    refuse({"kernel = stride": newer and any(kernels[i] == cfg["strides"][i] > 1 for i in deformable)})
    sizes = tuple((cfg["nat_ksizes" if "N" in spec[i] else "window_sizes"][i],) * 2 for i in stages)
    used = set("".join(spec))
    return ModelConfig(
        dims=tuple(cfg["dims"]),
        spec=spec,
        heads=tuple(cfg["heads"]),
        window=WindowSettings(sizes=sizes, shift_covered=True) if used & {"L", "S"} else WindowSettings(),
        neighborhood=NeighborhoodSettings(sizes=sizes, fill=newer) if "N" in used else NeighborhoodSettings(),
        deformable=DeformableSettings(
            groups=tuple(max(g, 1) for g in cfg["groups"]),
            strides=tuple(max(s, 1) for s in cfg["strides"]),
            kernels=tuple(kernels),
            offset_range=(*settings["offset ranges"], 0.0)[0],
            grid=grid,
            position=(*settings["position terms"], "table")[0],
        )
        if deformable
        else DeformableSettings(),
        stem="conv" if cfg["use_conv_patches"] else "patch",
        mlp="conv" if True in settings["MLPs"] else "plain",
        local_perception=True in settings["local perception"],
        mlp_ratio=cfg["expansion"],
        adaptor="none",
    )


def check(path: Path, dtype: Any) -> str:
    """Compares one fixture; what puts it out of scope, or nothing."""
    fixture = read(path)
    try:
        module, names = build(fixture)
    except Outside as outside:
        return f"{fixture.meta['cls']} ({outside})"
    wide = dtype == jnp.float64
    prefix = "f64/" if wide else ""
    arrays = {k.removeprefix(prefix): v for k, v in fixture.arrays.items() if k.startswith("f64/") == wide}
    source = {k: arrays.get(k, fixture.arrays[k]) for k in fixture.arrays if k.startswith("param/") or k in ("x", "w")}
    flat = to_ours({k.removeprefix("param/"): v for k, v in source.items() if k.startswith("param/")}, names)
    params = tree.unflatten_dict({k: jnp.asarray(v, dtype) for k, v in flat.items()}, sep="/")
    if "y" not in arrays:
        return NARROW
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
        return ""
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
    return ""


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_this_repository(path: Path, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        reason = check(path, jnp.dtype(dtype).type)
    if reason == NARROW:
        pytest.skip(reason)
    assert not reason


@pytest.mark.skipif(not FOREIGN, reason=f"no fixtures in {FOLDER}; DATAR_GOLDEN names a folder of them")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_a_folder(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.enable_x64(dtype == "float64"):
        outside = {path.stem: check(path, jnp.dtype(dtype).type) for path in FOREIGN}
    inside = [name for name, reason in outside.items() if not reason]
    named = ", ".join(f"{name}: {reason}" for name, reason in outside.items() if reason)
    with capsys.disabled():
        print(f"\ngolden numbers, {dtype}: {len(inside)} checked, out of scope: {named or 'none'}")
    assert inside
