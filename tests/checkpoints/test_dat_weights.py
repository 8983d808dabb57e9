"""Official weights as ours: settings from names and shapes, numbers where they belong, and every wrong name told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax.checkpoints import dat_names
from datar_jax.checkpoints import dat_weights as dat
from datar_jax.checkpoints.dat_weights import fold_channels, read_official
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.config import MODELS, DeformableSettings, ModelConfig, NeighborhoodSettings, WindowSettings
from datar_jax.models.datar import DATAR
from datar_jax.models.stem import Stem
from tests.corpus.official_files import (
    as_pth,
    official_shapes,
    published,
    random_weights,
)
from tests.helpers import golden_folders

pytestmark = pytest.mark.usefixtures("quick_compiles")

GOLDEN = {path.stem: path for folder in golden_folders() for path in folder.glob("model_*.npz")}

# Only the code of 2023 has other kernels.
NEWEST = DeformableSettings(kernels=(9, 7, 4, 2), strides=(8, 4, 2, 1), offset_range=-1.0, grid="dat2023")


def newer(position: Any = "table", kernels: Any = (9, 7, 5, 3), **changes: Any) -> ModelConfig:
    base = {
        "spec": ("ND", "N", "ND", "D"),
        "window": WindowSettings(),
        "neighborhood": NeighborhoodSettings(sizes=((7, 7),) * 4, fill=True),
        "deformable": DeformableSettings(
            kernels=kernels, strides=(8, 4, 2, 1), offset_range=-1.0, grid="dat2023", position=position
        ),
        "stem": "conv",
        "mlp": "conv",
        "local_perception": True,
    }
    return published(**{**base, **changes})


CASES = {
    "2022": (published(), (64, 128)),
    "2022, without tables": (published(position="none"), None),
    "2022, depthwise": (published(position="dwc"), None),
    "2023": (newer(), (64, 128)),
    "2023, network": (newer(position="log_cpb"), None),
    "2023, plain": (newer(stem="patch", mlp="plain", local_perception=False), (64, 128)),
    "2023, kernels": (newer(kernels=(8, 7, 2, 3)), (64, 128)),
    "2023, kernels of a plain model": (published(deformable=NEWEST), (64, 128)),
}


@pytest.mark.parametrize("config, size", CASES.values(), ids=CASES.keys())
def test_settings_follow_from_names_and_shapes(tmp_path: Path, config: ModelConfig, size: Any) -> None:
    weights = random_weights(official_shapes(config, (64, 128), 10))
    official = read_official(as_pth(tmp_path / "a.pth", weights))
    # What a stage without windows or deformable blocks would have is nobody's business.
    given = msgspec.structs.replace(official.config, window=config.window)
    assert given == config
    for window, expected, spec in zip(official.config.window.sizes, config.window.sizes, config.spec):
        assert window == expected or not set(spec) & {"L", "S"}
    assert (official.size, official.classes, official.revision) == (size, 10, config.deformable.grid)
    assert all(value.dtype == np.float32 for value in official.params.values())
    numbers = sum(x.size for name, x in weights.items() if not name.endswith(("index", "mask")))
    assert sum(x.size for x in official.params.values()) == numbers, "each number once"


@pytest.mark.parametrize("side, strides", [(64, (8, 4, 2, 1)), (224, (8, 4, 2, 1)), (96, (4, 2, 1, 1))])
def test_a_bias_of_each_pair_shows_its_map_and_its_strides(tmp_path: Path, side: int, strides: tuple[int, ...]) -> None:
    """Also where a table's sides are odd, as those of maps of 7 x 7."""
    deformable = msgspec.structs.replace(newer("fixed").deformable, strides=strides)
    config = newer(deformable=deformable, spec=("N", "ND", "ND", "D"))
    shapes = official_shapes(config, (side, side), 10)
    official = read_official(as_pth(tmp_path / "a.pth", random_weights(shapes)))
    known = msgspec.structs.replace(deformable, strides=(8, *strides[1:]))  # of the first stage nothing is known
    assert (official.config.deformable, official.size) == (known, (side, side))
    assert official.params["stage_3_0/mixer/table"].shape == shapes["stages.3.attns.0.rpe_table"]


@pytest.mark.parametrize("frozen", [True, False])
def test_pooling_shows_in_offset_networks_that_never_learned(tmp_path: Path, frozen: bool) -> None:
    config = newer("none", spec=("ND", "N", "ND", "ND"))
    weights = random_weights(official_shapes(config, (64, 128), 10))
    if frozen:
        weights |= {name: np.full_like(x, name.endswith("weight")) for name, x in weights.items() if ".1.norm." in name}
    official = read_official(as_pth(tmp_path / "a.pth", weights))
    assert official.config.deformable == msgspec.structs.replace(config.deformable, offsets=not frozen)
    assert any("/offset/" in path for path in official.params) != frozen
    beside = random_weights(official_shapes(newer(spec=config.spec), (64, 128), 10))
    weights = beside | {name: x for name, x in weights.items() if ".1.norm." in name}
    assert read_official(as_pth(tmp_path / "b.pth", weights)).config.deformable.offsets, "it has position tables"


def test_npz_is_pth_and_half_is_widened(tmp_path: Path) -> None:
    weights = random_weights(official_shapes(published(), (64, 128), 10))
    first = read_official(as_pth(tmp_path / "a.pth", weights))
    np.savez(tmp_path / "a.npz", **{f"model/{name}": value.astype(np.float16) for name, value in weights.items()})  # type: ignore[arg-type]
    second = read_official(tmp_path / "a.npz")
    assert first.config == second.config and first.params.keys() == second.params.keys()
    for path, value in first.params.items():
        np.testing.assert_array_equal(second.params[path], value.astype(np.float16).astype(np.float32))


def test_numbers_are_where_they_belong(tmp_path: Path) -> None:
    """One of each layout; all of them are in the golden numbers."""
    window = WindowSettings(sizes=((7, 7), (4, 4), (7, 7), (7, 7)))
    config = newer(position="log_cpb", spec=("ND", "LS", "ND", "D"), window=window)
    weights = random_weights(official_shapes(config, (64, 128), 10))
    ours = read_official(as_pth(tmp_path / "a.pth", weights)).params
    for path, name, axes in (
        ("head/kernel", "cls_head.weight", (1, 0)),
        ("stem/project_1/kernel", "patch_proj.3.weight", (2, 3, 1, 0)),
        ("stem/norm_1/scale", "patch_proj.4.norm.weight", (0,)),
        ("down_2/project/kernel", "down_projs.1.0.weight", (2, 3, 1, 0)),
        ("stage_2_1/norm_mlp/bias", "stages.2.layer_norms.3.norm.bias", (0,)),
        ("stage_1_1/mixer/table", "stages.1.attns.1.relative_position_bias_table", (1, 0)),
        ("stage_0_1/mixer/position/kernel", "stages.0.attns.1.rpe_table.0.weight", (1, 0)),
        ("stage_2_1/mixer/position/heads", "stages.2.attns.1.rpe_table.2.weight", (1, 0)),
        ("stage_3_0/local/kernel", "stages.3.local_perception_units.0.weight", (2, 3, 1, 0)),
        ("stage_2_0/mlp/conv/kernel", "stages.2.mlps.0.dwc.weight", (2, 3, 1, 0)),
    ):
        np.testing.assert_array_equal(ours[path], weights[name].transpose(axes), path)
    np.testing.assert_array_equal(ours["stage_0_0/mixer/table"], weights["stages.0.attns.0.rpb"].reshape(1, 169))
    query = weights["stages.2.attns.1.proj_q.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(ours["stage_2_1/mixer/query/kernel"], query)
    offset = weights["stages.2.attns.1.conv_offset.0.weight"][:, 0].transpose(1, 2, 0)
    np.testing.assert_array_equal(ours["stage_2_1/mixer/offset/kernel"], offset)


def test_shifted_windows_without_their_masks(tmp_path: Path) -> None:
    """In a file of parameters alone the second of two window blocks is taken for a shifted one, as published."""
    config = published(spec=("LS", "LS", "LDLD", "LD"))
    weights = random_weights(official_shapes(config, (64, 128), 10, buffers=False))
    assert read_official(as_pth(tmp_path / "a.pth", weights)).config.spec == config.spec


@pytest.mark.parametrize(
    "change, says",
    [
        ({"a.b": (3,), "stages.0.attns.0.conv.weight": (8, 1, 7, 7)}, "2 names .* a.b, stages.0.attns.0.conv.weight"),
        ({"cls_head.weight": None}, "has no head/kernel"),
        (
            {"stages.0.mlps.1.chunk.linear2.bias": None},
            "1 parameters .* stage_0_1/mlp/down/bias is missing, should be .8,",
        ),
        ({"stages.1.attns.0.proj_out.bias": (17,)}, r"stage_1_0/mixer/out/bias is \(17,\), should be \(16,\)"),
        ({"patch_proj.0.weight": (8, 3, 7, 7)}, r"stem/project/kernel is \(7, 7, 3, 8\), should be \(4, 4, 3, 8\)"),
        ({"stages.3.attns.1.rpe_table": (8, 3, 9)}, "do not halve from stage to stage .stage 2: 4 x 8, stage 3: 2 x 5"),
        ({"stages.2.attns.1.rpe_table": None}, "different position terms .none, table"),
        ({"stages.1.attns.0.relative_position_bias_table": (105, 2)}, "105 entries, which is no square window"),
        ({"stages.0.attns.0.relative_position_bias_table": (9, 1)}, "blocks of stage 0 differ in window"),
        ({"stages.2.attns.1.rpe_table": (4, 32, 128)}, r"table of stage_2_1/mixer has 32 x 128 entries"),
    ],
)
def test_what_does_not_fit_is_reported(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    shapes = {**official_shapes(published(), (64, 128), 10), **change}
    weights = random_weights({name: shape for name, shape in shapes.items() if shape})
    with pytest.raises(ModelError, match=says) as error:
        read_official(as_pth(tmp_path / "a.pth", weights))
    assert str(error.value).startswith(f"{tmp_path / 'a.pth'}: ") and "\n" not in str(error.value)


def test_every_stage_has_blocks(tmp_path: Path) -> None:
    shapes = official_shapes(published(), (64, 128), 10)
    weights = random_weights({name: shape for name, shape in shapes.items() if not name.startswith("stages.3")})
    with pytest.raises(ModelError, match="no blocks in stage 3"):
        read_official(as_pth(tmp_path / "a.pth", weights))


@pytest.mark.parametrize("kind", ["patch", "conv"])
def test_a_folded_stem_reads_one_channel_as_three_alike(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype(np.float32)
    stem = Stem(6, kind)
    params = jax.jit(stem.init)(jax.random.key(0), x.repeat(3, -1))["params"]
    expected = stem.apply({"params": params}, x.repeat(3, -1))
    first = "project" if kind == "patch" else "project_0"
    kernel = fold_channels(np.asarray(params[first]["kernel"]))
    folded = {**params, first: {**params[first], "kernel": kernel}}
    np.testing.assert_allclose(stem.apply({"params": folded}, x), expected, atol=1e-5)


def test_the_published_sizes() -> None:
    """Parameters of the published models, by their names and shapes; test_model counts those of our modules."""
    plus = {"spec": ("ND", "NDND", "ND" * 9, "DD"), "adaptor": "none"}
    plus |= {"dims": (64, 128, 256, 512), "heads": (2, 4, 8, 16)}
    plus |= {"deformable": DeformableSettings(groups=(1, 2, 4, 8), grid="dat2023")}
    newest = {"stem": "conv", "mlp": "conv", "local_perception": True}
    older = msgspec.structs.replace(MODELS["datar_tiny"](), window=WindowSettings(sizes=((7, 7),) * 4))
    for config, count in (
        (older, 28_319_138),
        (ModelConfig(**plus), 22_772_796),  # type: ignore[arg-type]
        (ModelConfig(**plus, **newest), 23_962_876),  # type: ignore[arg-type]
    ):
        shapes = official_shapes(config, (224, 224), 1000, buffers=False)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
        params = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        official = dat._infer(dat_names.to_ours(params, dat_names.model_paths(params)), params.keys())
        assert official.size == (224, 224) and official.config.deformable.groups == config.deformable.groups


@pytest.mark.parametrize("name", ["model_cvpr22_LSLSLDLD_64x128", "model_headpp_NDNDNDDD_64x128"])
def test_a_whole_official_model_gives_its_scores(tmp_path: Path, name: str) -> None:
    """From its file alone, with three channels; and with one, folded, what it gives for that one three times."""
    if name not in GOLDEN:
        pytest.skip("no such fixture beside this checkout; DATAR_GOLDEN names folders of them")
    with np.load(GOLDEN[name]) as file:
        weights = {key.split("/", 1)[1]: file[key] for key in file.files if key.startswith(("param/", "buffer/"))}
        x, y, meta = file["x"].transpose(0, 2, 3, 1), file["y"], json.loads(str(file["meta"]))
    np.savez(tmp_path / "a.npz", **weights)
    official = read_official(tmp_path / "a.npz")
    assert official.size == tuple(meta["img_size"])
    model = DATAR(official.config, official.classes, *official.size)

    @jax.jit
    def score(params: Any, x: Any) -> Any:
        return model.apply({"params": params}, x)[0]

    def nested(params: dict[str, np.ndarray]) -> Any:
        return flax.traverse_util.unflatten_dict(params, sep="/")

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(score(nested(official.params), jnp.asarray(x)), y, atol=1e-4)
        one = jnp.asarray(x[..., :1])
        expected = score(nested(official.params), one.repeat(3, -1))
        first = "stem/project/kernel" if official.config.stem == "patch" else "stem/project_0/kernel"
        folded = {**official.params, first: fold_channels(official.params[first])}
        np.testing.assert_allclose(score(nested(folded), one), expected, atol=1e-4)
