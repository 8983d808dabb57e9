"""The modules against numbers of the official DAT code: outputs and gradients, float32 and float64.

`DATAR_GOLDEN` names folders of fixtures, with the path separator of the system between them. A fixture that the code
refuses is a failure, unless `REFUSED` names it.
"""

from __future__ import annotations

import json
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
from datar_jax.config import ConfigError, DeformableSettings, ModelConfig, NeighborhoodSettings, WindowSettings
from datar_jax.models.datar import DATAR
from datar_jax.models.layers import LayerNorm, Mlp
from datar_jax.models.mixers.deformable import DeformableAttention
from datar_jax.models.mixers.neighborhood import NeighborhoodAttention
from datar_jax.models.mixers.window import WindowAttention
from tests.helpers import golden_folders

pytestmark = pytest.mark.usefixtures("quick_compiles")

OWN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))
FOREIGN = [path for folder in golden_folders() for path in sorted(folder.glob("*.npz"))]
# Fixtures (by name, without .npz) of settings that the code refuses, and why it does.
REFUSED: dict[str, str] = {}
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


class Refused(Exception):
    """A setting of a fixture that the code does not have."""


def build(fixture: Fixture) -> tuple[Module, Callable[[str], str | None]]:
    """Our module for a fixture as a function of dtype, and our path for an official name."""
    meta = fixture.meta
    name = meta["cls"]
    if name == "DAttentionBaseline":
        module = partial(
            DeformableAttention,
            heads=meta["n_heads"],
            groups=meta["n_groups"],
            stride=meta["stride"],
            kernel=meta["ksize"],
            size=tuple(meta["q_size"]),
            offset_range=meta["offset_range_factor"],
            grid=fixture.grid(),
            position=position(*(meta.get(name) for name in ("use_pe", "no_off", "dwc_pe", "fixed_pe", "log_cpb"))),
            offsets=not meta["no_off"],
        )
        return lambda dtype: module(dtype=dtype), partial(path_in, MIXER)
    if name == "LocalAttention":
        return partial(WindowAttention, meta["heads"], tuple(meta["window_size"]), False), partial(path_in, MIXER)
    if name == "ShiftWindowAttention":
        window, shift = tuple(meta["window_size"]), (meta["shift_size"],) * 2
        shifted = partial(WindowAttention, meta["heads"], window, True, shift_covered=True, shift=shift)
        return lambda dtype: shifted(dtype=dtype), partial(path_in, MIXER)
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
    raise Refused("its class")


def refuse(asked: dict[str, bool]) -> None:
    if names := [name for name, wanted in asked.items() if wanted]:
        raise Refused(", ".join(names))


def position(use_pe: Any, no_off: Any, dwc_pe: Any, fixed_pe: Any, log_cpb: Any) -> Any:
    """The official code asks for them in this order."""
    if not use_pe or no_off:
        return "none"
    return "dwc" if dwc_pe else "fixed" if fixed_pe else "log_cpb" if log_cpb else "table"


def model_config(cfg: dict[str, Any], grid: Any) -> ModelConfig:
    """Our settings for those of an official model."""
    stages = range(len(cfg["dims"]))
    spec = tuple("".join(stage) for stage in cfg["stage_spec"])
    refuse({f"blocks {letter}": letter in "".join(spec) for letter in "PXQE"})
    deformable = [i for i in stages if "D" in spec[i]]
    kernels = cfg.get("ksizes", (9, 7, 5, 3))
    none = [False] * len(stages)
    given = (cfg.get(name, none) for name in ("use_pes", "no_offs", "dwc_pes", "fixed_pes", "log_cpb"))
    settings = {
        "offset ranges": {cfg["offset_range_factor"][i] for i in deformable},
        "position terms": {term for i, term in enumerate(map(position, *given)) if i in deformable},
        "offsets": {not cfg.get("no_offs", none)[i] for i in deformable},
        "MLPs": {*cfg["use_dwc_mlps"]},
        "local perception": {*cfg.get("use_lpus", [False])},
    }
    refuse({f"different {name}": len(values) > 1 for name, values in settings.items()})
    newer = grid == "dat2023"
    refuse({"convolutions of 2022": not newer and (cfg["use_conv_patches"] or True in settings["MLPs"])})
    refuse({"layer scale": any(scale > 0 for scale in cfg.get("layer_scale_values", []))})
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
            offsets=True in settings["offsets"],
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
    """Compares one fixture; what the code refuses in it, or nothing."""
    fixture = read(path)
    try:
        module, names = build(fixture)
    except (Refused, ConfigError) as refused:
        return f"{fixture.meta['cls']} ({refused})"
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
    if "pos" in arrays and not fixture.meta["no_off"]:  # there the code only returns positions, it reads nothing there
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
    frozen = fixture.meta.get("no_grad_params", [])
    frozen = set(to_ours({k: fixture.arrays[f"param/{k}"] for k in frozen}, names))
    assert set(ours) - frozen == set(theirs) and not any(np.any(ours[k]) for k in frozen)
    pairs = [("x", d_x.transpose(0, 3, 1, 2), dx), *((k, ours[k], theirs[k]) for k in theirs)]
    for name, mine, other in pairs:
        largest = 0.0 if name in zero_ours else float(np.abs(other).max())
        floor = 1e-4 * stats["grad_scale"]
        tolerance = 1e-9 if wide else max(5e-4 * largest, floor)
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance, err_msg=f"{path.name} grad {name}")
    return ""


def assert_reproduced(path: Path, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        reason = check(path, jnp.dtype(dtype).type)
    if reason == NARROW:
        pytest.skip(reason)
    known = REFUSED.get(path.stem)
    assert bool(reason) == bool(known), f"{path.name}: refused, {reason}" if reason else f"{path.name} is not refused"
    if known:
        pytest.skip(f"{known} ({reason})")


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_this_repository(path: Path, dtype: str) -> None:
    assert_reproduced(path, dtype)


@pytest.mark.skipif(not FOREIGN, reason="no fixtures beside this checkout; DATAR_GOLDEN names folders of them")
@pytest.mark.parametrize("path", FOREIGN, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixtures_of_a_folder(path: Path, dtype: str) -> None:
    assert_reproduced(path, dtype)


def test_a_fixture_that_is_refused_fails_unless_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pooled.npz"
    np.savez(path, meta=json.dumps({"cls": "Pooling", "tree": "32173fc"}))
    with pytest.raises(AssertionError, match=r"pooled\.npz: refused, Pooling \(its class\)"):
        assert_reproduced(path, "float32")
    monkeypatch.setitem(REFUSED, "pooled", "mixes nothing")
    with pytest.raises(pytest.skip.Exception, match=r"mixes nothing \(Pooling"):
        assert_reproduced(path, "float32")
    monkeypatch.setitem(REFUSED, OWN[0].stem, "an entry of a fixture that passes")
    with pytest.raises(AssertionError, match="is not refused"):
        assert_reproduced(OWN[0], "float32")
