"""Names and layouts of parameters in official DAT weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from datar_jax.checkpoints.model_info import ModelError

Names = tuple[tuple[str, str], ...]


MIXER: Names = (
    (r"rpe_table", "table"),  # deformable attention
    (r"rpe_table\.(weight|bias)", r"position/\1"),  # the same name for a depthwise convolution
    (r"rpe_table\.0\.(weight|bias)", r"position/\1"),  # and for a small network
    (r"rpe_table\.2\.weight", "position/heads"),
    (r"conv_offset\.0\.(weight|bias)", r"offset/\1"),
    (r"conv_offset\.1\.norm\.(weight|bias)", r"offset/norm/\1"),
    (r"conv_offset\.3\.(weight)", r"offset/project/\1"),
    (r"proj_q\.(weight|bias)", r"query/\1"),
    (r"proj_k\.(weight|bias)", r"key/\1"),
    (r"proj_v\.(weight|bias)", r"value/\1"),
    (r"proj_out\.(weight|bias)", r"out/\1"),  # also of window attention
    (r"relative_position_bias_table", "table"),
    (r"proj_qkv\.(weight|bias)", r"qkv/\1"),
    (r"rpb", "table"),  # neighbourhood attention
    (r"qkv\.(weight|bias)", r"qkv/\1"),
    (r"proj\.(weight|bias)", r"out/\1"),
)


MLP: Names = (
    (r"chunk\.linear1\.(weight|bias)", r"up/\1"),
    (r"chunk\.linear2\.(weight|bias)", r"down/\1"),
    (r"linear1\.0\.(weight|bias)", r"up/\1"),  # with a convolution
    (r"dwc\.(weight|bias)", r"conv/\1"),
    (r"linear2\.0\.(weight|bias)", r"down/\1"),
)


PATCH_STEM: Names = (
    (r"patch_proj\.0\.(weight|bias)", r"stem/project/\1"),
    (r"patch_proj\.1\.norm\.(weight|bias)", r"stem/norm/\1"),
)


CONV_STEM: Names = (
    (r"patch_proj\.0\.(weight|bias)", r"stem/project_0/\1"),
    (r"patch_proj\.1\.norm\.(weight|bias)", r"stem/norm_0/\1"),
    (r"patch_proj\.3\.(weight|bias)", r"stem/project_1/\1"),
    (r"patch_proj\.4\.norm\.(weight|bias)", r"stem/norm_1/\1"),
)


OUTSIDE_BLOCKS: Names = (
    *((rf"down_projs\.{i}\.0\.(weight)", rf"down_{i + 1}/project/\1") for i in range(3)),
    *((rf"down_projs\.{i}\.1\.norm\.(weight|bias)", rf"down_{i + 1}/norm/\1") for i in range(3)),
    (r"stages\.(\d)\.local_perception_units\.(\d+)\.(weight|bias)", r"stage_\1_\2/local/\3"),
    (r"cls_norm\.norm\.(weight|bias)", r"norm/\1"),
    (r"cls_head\.(weight|bias)", r"head/\1"),
)


# Buffers of the official modules, which can be recomputed.
BUFFERS = re.compile(
    r"(.*\.)?(relative_position_index|attn_mask|q_grid|reference|rpb_index|rel_pos_index|num_batches(_tracked)?)"
)


def path_in(names: Names, name: str) -> str | None:
    """Our path for an official name, if `names` has it."""
    for pattern, ours in names:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


def model_paths(names: Collection[str]) -> Callable[[str], str | None]:
    """The function from an official name to our path, for a whole model that has these official names."""
    outside = OUTSIDE_BLOCKS + (CONV_STEM if "patch_proj.3.weight" in names else PATCH_STEM)

    def path(name: str) -> str | None:
        if match := re.fullmatch(r"stages\.(\d)\.(attns|mlps|layer_norms)\.(\d+)\.(.+)", name):
            stage, room, number, rest = match.groups()
            if room == "layer_norms":
                inner, number = path_in(((r"norm\.(weight|bias)", r"\1"),), rest), int(number)
                where = ("norm_mixer", "norm_mlp")[number % 2]
                return inner and f"stage_{stage}_{number // 2}/{where}/{inner}"
            where, table = ("mixer", MIXER) if room == "attns" else ("mlp", MLP)
            inner = path_in(table, rest)
            return inner and f"stage_{stage}_{number}/{where}/{inner}"
        return path_in(outside, name)

    return path


def to_ours(arrays: Mapping[str, np.ndarray], path_of: Callable[[str], str | None]) -> dict[str, np.ndarray]:
    """Official parameters by their names as ours by their paths, in our layout; buffers are left out.

    Raises:
      ModelError: lists every name that is not known; or an array that has other axes than any of those models'.
    """
    kept = {name: value for name, value in arrays.items() if not BUFFERS.fullmatch(name)}
    paths = {name: path_of(name) for name in kept}
    if unknown := [name for name, path in paths.items() if path is None]:
        raise ModelError(f"{len(unknown)} names that the official models do not have: {', '.join(unknown)}")
    for name, value in kept.items():
        if not value.size or not 1 <= value.ndim <= 4:
            raise ModelError(f"{name} has the shape {value.shape}; give the whole state_dict of an official DAT")
    return dict(_our_layout(name, str(paths[name]), value) for name, value in kept.items())


def _our_layout(name: str, path: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if path.endswith("weight"):
        path = path.removesuffix("weight") + ("scale" if value.ndim == 1 else "kernel")
    if re.search(r"(^|\.)rpb$", name) and value.ndim == 3:  # heads x rows x columns
        return path, value.reshape(len(value), -1)
    if value.ndim == 2:  # out x in; of a window's table, entries x heads
        return path, value.T
    if value.ndim == 4:  # out x in x rows x columns
        value = value.transpose(2, 3, 1, 0)
        if path.endswith("offset/kernel"):
            return path, value[:, :, 0]
        if value.shape[:2] == (1, 1):
            return path, value[0, 0]
    return path, value
