"""Converts official weights of DAT (Xia et al., CVPR 2022) and DAT++ (2023): names, layout and model settings.

A weights file does not hold strides and offset bounds; they are taken from the published configurations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from datar_jax.checkpoints.dat_names import model_paths, to_ours
from datar_jax.checkpoints.model_info import MAX_CELLS, ModelError
from datar_jax.checkpoints.torch_file import read_arrays
from datar_jax.config import ConfigError, DeformableSettings, ModelConfig, NeighborhoodSettings, WindowSettings
from datar_jax.models.parameter_shapes import parameter_shapes

KERNELS = (9, 7, 5, 3)  # of the offset networks, fixed in 2022
STRIDES = (8, 4, 2, 1)  # in 2023


class Official(NamedTuple):
    """Official weights, converted for a model of this package.

    Attributes:
      config: of our model, with `adaptor="none"` and no stochastic depth; `classes` is left to the data.
      size: (F, T) in pixels that the position tables were made for; None if there are none.
      classes: width of the head.
      params: by path, joined by "/", float32 in our layout; the stem reads three channels (see `fold_channels`).
      revision: whose conventions they follow.
    """

    config: ModelConfig
    size: tuple[int, int] | None
    classes: int
    params: dict[str, np.ndarray]
    revision: Literal["dat2022", "dat2023"]


def read_official(path: Path | str) -> Official:
    """Reads a checkpoint of the official DAT or DAT++, without PyTorch and without executing anything in it.

    The settings follow from names and shapes: widths, blocks, heads, offset groups, kernels, windows. Neighbourhood
    attention, a convolutional stem or MLP, local perception, a bias network, a bias of each pair or kernels other than
    9, 7, 5, 3 make it `dat2023` (offsets clamped to the map, strides 8, 4, 2, 1), else it is `dat2022` (offsets of
    range 2, stride 1): as all published models have it. Without position terms, and with offset networks that never
    were trained, it pools (`no_off`), and these networks are left out. A window block is a shifted one where the file
    has its mask; in a file without masks, where it follows another.

    Args:
      path: a `.pth` or `.npz`, see `torch_file.read_arrays`.

    Raises:
      ModelError: not such a file; names that are unknown, missing or of another shape, all of them.
    """
    arrays = read_arrays(path)
    try:
        params = to_ours(arrays, model_paths(arrays))
        official = _infer(params, arrays.keys())
        _check_parameters(official)
    except (ModelError, ConfigError) as error:
        raise ModelError(f"{path}: {error}") from None
    return official


def fold_channels(kernel_KxLxIxC: np.ndarray) -> np.ndarray:
    """A stem's kernel for one input channel, `(K, L, 1, C)`: the sum over its input channels.

    Exact for what repeats one spectrogram on all channels, because a convolution adds up its channels.
    """
    return kernel_KxLxIxC.sum(2, keepdims=True)


def _infer(params: dict[str, np.ndarray], names: Collection[str]) -> Official:
    def find(path: str, axes: int) -> np.ndarray:
        if path not in params:
            raise ModelError(f"has no {path}; give the whole state_dict of an official DAT classifier")
        if params[path].ndim != axes:
            raise ModelError(f"{path} has the shape {params[path].shape}, should have {axes} axes")
        return params[path]

    tables = [x.shape for path, x in params.items() if path.endswith("mixer/table") and x.ndim == 3]
    # A table of displacements has odd sides; one of pairs has even ones, but for maps of an odd size.
    fixed = any(side % 2 == 0 for shape in tables for side in shape[1:])
    stages: list[_Stage] = []
    for i in range(4):
        count = len({path.split("/")[0] for path in params if path.startswith(f"stage_{i}_")})
        if not count:
            raise ModelError(f"has no blocks in stage {i}; an official DAT has four stages")
        width = find(f"stage_{i}_0/norm_mlp/scale", 1).size
        stages.append(_stage(i, width, count, fixed, find, params, names))
    ends = {end for path in params if (end := re.sub(r"^stage_\d+_\d+/", "", path)) != path}
    local, conv = "local/kernel" in ends, "mlp/conv/kernel" in ends
    positions = {x for stage in stages for x in stage.positions}
    if len(positions) > 1:
        raise ModelError(f"its deformable blocks have different position terms ({', '.join(sorted(positions))})")
    position = positions.pop() if positions else "table"
    stem: Any = "conv" if "stem/project_1/kernel" in params else "patch"
    letters = {letter for stage in stages for letter in stage.spec}
    offsets = position != "none" or _is_trained(params)
    newest = position in ("log_cpb", "fixed") or not offsets or tuple(stage.kernel for stage in stages) != KERNELS
    newer = stem == "conv" or conv or local or newest or "N" in letters
    revision: Any = "dat2023" if newer else "dat2022"
    sizes = tuple(stage.window for stage in stages)
    config = ModelConfig(
        dims=tuple(stage.width for stage in stages),
        spec=tuple(stage.spec for stage in stages),
        heads=tuple(stage.heads for stage in stages),
        window=WindowSettings(sizes=sizes, shift_covered="S" in letters) if letters & {"L", "S"} else WindowSettings(),
        neighborhood=NeighborhoodSettings(sizes=sizes, fill=newer) if "N" in letters else NeighborhoodSettings(),
        deformable=DeformableSettings(
            groups=tuple(stage.groups for stage in stages),
            kernels=tuple(stage.kernel for stage in stages),
            strides=tuple(stage.stride for stage in stages) if newer else (1, 1, 1, 1),
            offset_range=-1.0 if newer else 2.0,
            grid=revision,
            position=position,  # type: ignore[arg-type]
            offsets=offsets,
        )
        if "D" in letters
        else DeformableSettings(),
        stem=stem,
        mlp="conv" if conv else "plain",
        mlp_ratio=find("stage_0_0/mlp/up/kernel", 2).shape[-1] // stages[0].width,
        local_perception=local,
        adaptor="none",
    )
    used = (path for path in params if offsets or "/mixer/offset/" not in path)
    wide = {path: np.asarray(params[path], np.float32) for path in used}
    return Official(config, _size(stages), find("head/kernel", 2).shape[-1], wide, revision)


def _is_trained(params: dict[str, np.ndarray]) -> bool:
    """Whether the offset networks ever were: `no_off` freezes them, and a frozen LayerNorm is exactly as it began."""
    norms = {path: value for path, value in params.items() if "/mixer/offset/norm/" in path}
    return not norms or any(np.any(value != path.endswith("scale")) for path, value in norms.items())


class _Stage(NamedTuple):
    """Settings that the blocks of a stage share; `maps` are the sizes of its position tables."""

    width: int
    spec: str
    heads: int
    window: tuple[int, int]
    groups: int
    kernel: int
    stride: int
    positions: set[str]
    maps: set[tuple[int, int]]


def _stage(
    i: int, width: int, count: int, fixed: bool, find: Any, params: dict[str, np.ndarray], names: Collection[str]
) -> _Stage:
    standard: dict[str, Any] = {"heads": width // 32, "window": (7, 7), "groups": 1}
    standard |= {"kernel": KERNELS[i], "stride": STRIDES[i]}
    spec, masks = "", any(name.endswith(".attn_mask") for name in names)
    found: dict[str, set[Any]] = {name: set() for name in (*standard, "position", "map")}
    for j in range(count):
        mixer = f"stage_{i}_{j}/mixer"
        tabled = f"{mixer}/table" in params
        if f"{mixer}/offset/kernel" in params:
            spec += "D"
            side, _, narrow = find(f"{mixer}/offset/kernel", 3).shape
            found["kernel"].add(side)
            found["groups"].add(width // narrow)
            network = params.get(f"{mixer}/position/heads")
            if tabled:
                table = find(f"{mixer}/table", 3)
                found["heads"].add(table.shape[0])
                size, stride = tuple((side + 1) // 2 for side in table.shape[1:]), STRIDES[i]
                if fixed:
                    size, stride = _pairs(mixer, table)
                found["map"].add(size)
                found["stride"].add(stride)
            elif network is not None:
                found["heads"].add(network.shape[-1] * (width // narrow))
            kinds = {"fixed" if fixed else "table": tabled, "log_cpb": network is not None, "dwc": True}
            has = tabled or any(path.startswith(f"{mixer}/position/") for path in params)
            found["position"].add(next(kind for kind, holds in kinds.items() if holds) if has else "none")
            continue
        table = find(f"{mixer}/table", 2)
        found["heads"].add(table.shape[0])
        side = math.isqrt(table.shape[1])
        if side**2 != table.shape[1] or side % 2 == 0:
            raise ModelError(f"the table of {mixer} has {table.shape[1]} entries, which is no square window's number")
        found["window"].add(((side + 1) // 2,) * 2)
        shifted = f"stages.{i}.attns.{j}.attn_mask" in names if masks else spec.endswith("L")
        spec += "N" if f"stages.{i}.attns.{j}.rpb" in names else "S" if shifted else "L"
    for name, values in found.items():
        if len(values) > 1 and name in standard:
            raise ModelError(f"the blocks of stage {i} differ in {name}: {sorted(values)}")
    one = {name: next(iter(found[name]), value) for name, value in standard.items()}
    return _Stage(width, spec, **one, positions=found["position"], maps=found["map"])


def _pairs(mixer: str, table_HxMxN: np.ndarray) -> tuple[tuple[int, int], int]:
    """Size of the square map, and stride of its keys, that a bias of each pair is for; DAT builds no other maps."""
    _, queries, keys = table_HxMxN.shape
    side, across = math.isqrt(queries), math.isqrt(keys)
    if (side**2, across**2) != (queries, keys):
        raise ModelError(
            f"the table of {mixer} has {queries} x {keys} entries: neither of displacements, whose sides are odd, nor "
            "of the pixels of a square map and its keys"
        )
    return (side, side), side // max(across, 1)


def _size(stages: list[_Stage]) -> tuple[int, int] | None:
    """Size of the input, inferred from the sizes of the position tables."""
    maps = {(i, size) for i, stage in enumerate(stages) for size in stage.maps}
    if not maps:
        return None
    sizes = {tuple(side << (i + 2) for side in size) for i, size in maps}
    if len(sizes) > 1:
        listed = ", ".join(f"stage {i}: {f} x {t}" for i, (f, t) in sorted(maps))
        raise ModelError(f"its tables are made for maps that do not halve from stage to stage ({listed})")
    rows, times = sizes.pop()
    if rows * times > MAX_CELLS:
        raise ModelError(f"its tables are made for pictures of {rows} x {times}; give a model of smaller ones")
    return rows, times


def _check_parameters(official: Official) -> None:
    """Checks that the parameters are exactly those of the inferred model."""
    size = official.size or (224, 224)  # any size works
    try:
        wanted = parameter_shapes(official.config, official.classes, *size, channels=3)
    except ValueError as error:
        raise ModelError(f"its sizes are of no model ({error})") from None
    given = {path: value.shape for path, value in official.params.items()}
    wrong = [
        f"{path} is {given.get(path, 'missing')}, should be {wanted.get(path, 'absent')}"
        for path in sorted(wanted.keys() | given.keys())
        if given.get(path) != wanted.get(path)
    ]
    if wrong:
        raise ModelError(f"{len(wrong)} parameters are not those of a {official.revision} model: {'; '.join(wrong)}")
