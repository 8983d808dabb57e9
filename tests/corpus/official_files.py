"""Makes `.pth` files opcode by opcode, and official weights of any size; needs no PyTorch."""

from __future__ import annotations

import struct
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from datar_jax.config import DeformableSettings, ModelConfig, WindowSettings

VALUES = np.arange(24, dtype=np.float32)
Shapes = dict[str, tuple[int, ...]]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def row(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str = "0",
    shape: tuple[int, ...] = (24,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    numbers: int = 24,
    kind: str = "Float",
) -> bytes:
    """As torch.save describes one, protocol 2."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    storage += number(numbers) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + row(*shape) + row(*strides) + hooks + b"tR"
    )


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def write(path: Path, program: bytes, data: dict[str, bytes] | None = None, **extra: bytes) -> Path:
    """A `.pth`: the pickle of a program without its frame, and the numbers of its storages."""
    members = {"data.pkl": b"\x80\x02" + program + b".", "version": b"3\n", **extra}
    members |= {f"data/{key}": raw for key, raw in (data or {"0": VALUES.tobytes()}).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in members.items():
            archive.writestr(f"archive/{name}", raw)
    return path


def layer(name: str, *weight: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": weight, **({f"{name}.bias": weight[:1]} if bias else {})}


def official_shapes(config: ModelConfig, size: tuple[int, int], classes: int, buffers: bool = True) -> Shapes:
    """Names and shapes of the official state dict, written down from the published description of the modules."""
    dims, conv = config.dims, config.stem == "conv"
    shapes: Shapes = {}
    widths = (3, dims[0] // 2, dims[0]) if conv else (3, dims[0])
    for n, (old, new) in enumerate(pairwise(widths)):
        side = 3 if conv else 4
        shapes |= layer(f"patch_proj.{3 * n}", new, old, side, side) | layer(f"patch_proj.{3 * n + 1}.norm", new)
    for i, (c, spec, heads) in enumerate(zip(dims, config.spec, config.heads)):
        rows, columns = (n >> (i + 2) for n in size)
        for j, letter in enumerate(spec):
            stage, at = f"stages.{i}", f"stages.{i}.attns.{j}"
            for n in (2 * j, 2 * j + 1):
                shapes |= layer(f"{stage}.layer_norms.{n}.norm", c)
            if config.local_perception:
                shapes |= layer(f"{stage}.local_perception_units.{j}", c, 1, 3, 3)
            if config.mlp == "conv":
                wide = f"{stage}.mlps.{j}"
                shapes |= layer(f"{wide}.linear1.0", 4 * c, c, 1, 1) | layer(f"{wide}.dwc", 4 * c, 1, 3, 3)
                shapes |= layer(f"{wide}.linear2.0", c, 4 * c, 1, 1)
            else:
                shapes |= layer(f"{stage}.mlps.{j}.chunk.linear1", 4 * c, c)
                shapes |= layer(f"{stage}.mlps.{j}.chunk.linear2", c, 4 * c)
            sizes, deformable = (config.neighborhood if letter == "N" else config.window).sizes, config.deformable
            window, kernel, narrow = sizes[i][0], deformable.kernels[i], c // deformable.groups[i]
            if letter == "D":
                for name in "qkv":
                    shapes |= layer(f"{at}.proj_{name}", c, c, 1, 1)
                shapes |= layer(f"{at}.proj_out", c, c, 1, 1) | layer(f"{at}.conv_offset.0", narrow, 1, kernel, kernel)
                shapes |= layer(f"{at}.conv_offset.1.norm", narrow)
                shapes |= layer(f"{at}.conv_offset.3", 2, narrow, 1, 1, bias=False)
                if deformable.position == "table":
                    shapes[f"{at}.rpe_table"] = (heads, 2 * rows - 1, 2 * columns - 1)
                elif deformable.position == "fixed":
                    keys = (rows // deformable.strides[i]) * (columns // deformable.strides[i])
                    shapes[f"{at}.rpe_table"] = (heads, rows * columns, keys)
                elif deformable.position == "dwc":
                    shapes |= layer(f"{at}.rpe_table", c, 1, 3, 3)
                elif deformable.position == "log_cpb":
                    shapes |= layer(f"{at}.rpe_table.0", 32, 2)
                    shapes |= layer(f"{at}.rpe_table.2", heads // deformable.groups[i], 32, bias=False)
            elif letter == "N":
                shapes |= {f"{at}.rpb": (heads, 2 * window - 1, 2 * window - 1)}
                shapes |= layer(f"{at}.qkv", 3 * c, c) | layer(f"{at}.proj", c, c)
            else:
                shapes |= {f"{at}.relative_position_bias_table": ((2 * window - 1) ** 2, heads)}
                shapes |= layer(f"{at}.proj_qkv", 3 * c, c) | layer(f"{at}.proj_out", c, c)
                if buffers:
                    shapes[f"{at}.relative_position_index"] = (window**2, window**2)
                    if letter == "S":
                        shapes[f"{at}.attn_mask"] = (rows * columns // window**2, window**2, window**2)
        if i < 3:
            side = 3 if conv else 2
            shapes |= layer(f"down_projs.{i}.0", dims[i + 1], c, side, side, bias=False)
            shapes |= layer(f"down_projs.{i}.1.norm", dims[i + 1])
    return shapes | layer("cls_norm.norm", dims[-1]) | layer("cls_head", classes, dims[-1])


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def as_pth(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """A checkpoint as torch.save writes it, without torch."""
    program, data = {}, {}
    for key, (name, value) in enumerate(weights.items()):
        strides = tuple(step // value.itemsize for step in value.strides)
        program[name] = tensor(str(key), value.shape, strides, numbers=value.size)
        data[str(key)] = value.tobytes()
    return write(path, table(model=table(**program), epoch=b"K\x05"), data)


def published(position: Any = "table", **changes: Any) -> ModelConfig:
    """The smallest model of 2022 that has every kind of block that its revision has."""
    base = {
        "dims": (8, 16, 32, 64),
        "spec": ("LS", "S", "LD", "LD"),
        "heads": (1, 2, 4, 8),
        "window": WindowSettings(sizes=((4, 4), (4, 4), (4, 4), (2, 2))),
        "deformable": DeformableSettings(strides=(1, 1, 1, 1), grid="dat2022", position=position),
        "adaptor": "none",
    }
    return ModelConfig(**{**base, **changes})  # type: ignore[arg-type]
