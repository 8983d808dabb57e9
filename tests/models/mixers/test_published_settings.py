"""Deformable attention with the rarer settings of DAT's code, against that code's rules written out in float64.

Section and symbols as published: kernel k, stride s, offset range f; a map of H x W has Hk x Wk keys.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from datar_jax.models.mixers.deformable import DeformableAttention, valid_keys
from datar_jax.ops.sampling import offset_padding
from tests.reference import bias_by_loops, bilinear, dense, network_by_loops, weigh

pytestmark = pytest.mark.usefixtures("quick_compiles")

HEADS, GROUPS, WIDTH = 4, 2, 8
CASES: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "even kernel": ((4, 6), {"kernel": 4}),
    "even kernel, stride": ((5, 6), {"kernel": 4, "stride": 2, "offset_range": -1.0}),
    "even kernel, 2022": ((4, 5), {"kernel": 2, "grid": "dat2022"}),
    "even kernel, network": ((4, 5), {"kernel": 2, "position": "log_cpb"}),
    "kernel = stride": ((4, 8), {"kernel": 2, "stride": 2}),
    "kernel = stride, rest": ((7, 8), {"kernel": 3, "stride": 3, "position": "dwc"}),
    "kernel = stride, 2022": ((5, 7), {"kernel": 3, "stride": 3, "grid": "dat2022"}),
    "pooled": ((4, 6), {"stride": 2, "position": "none", "offsets": False}),
    "pooled, rest": ((5, 7), {"kernel": 2, "stride": 2, "position": "none", "offsets": False}),
    "fixed": ((3, 4), {"position": "fixed"}),
    "fixed, stride": ((4, 6), {"stride": 2, "position": "fixed", "offset_range": -1.0}),
    "fixed, kernel = stride": ((5, 6), {"kernel": 2, "stride": 2, "position": "fixed"}),
}
every_case = pytest.mark.parametrize("case", CASES)


def module_of(case: str, dtype: Any = jnp.float64) -> DeformableAttention:
    size, changes = CASES[case]
    settings = {"heads": HEADS, "groups": GROUPS, "stride": 1, "kernel": 3, "grid": "dat2023", **changes}
    return DeformableAttention(**{"size": size, "dtype": dtype, **settings})


def drawn(case: str) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(len(case))
    x = rng.normal(size=(2, *CASES[case][0], WIDTH))
    shapes = jax.eval_shape(module_of(case, jnp.float32).init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape), shapes), x


def offsets_by_rules(params: Any, q_HxWxC: np.ndarray, k: int, s: int, grid: str) -> np.ndarray:
    """The network's output for one group, `(Hk, Wk, 2)`."""
    pad = 0 if k == s and grid == "dat2023" else k // 2
    padded = np.pad(q_HxWxC, ((pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((n + 2 * pad - k) // s + 1 for n in q_HxWxC.shape[:2])
    out = np.zeros((rows, columns, q_HxWxC.shape[2]))
    for i, j in np.ndindex(rows, columns):
        seen = padded[i * s : i * s + k, j * s : j * s + k]
        out[i, j] = (seen * params["kernel"]).sum((0, 1)) + params["bias"]
    spread = np.sqrt(out.var(-1, keepdims=True) + 1e-5)
    out = (out - out.mean(-1, keepdims=True)) / spread * params["norm"]["scale"] + params["norm"]["bias"]
    return out * (1 + erf(out / math.sqrt(2))) / 2 @ params["project"]["kernel"]


def positions_by_rules(raw_HkxWkx2: np.ndarray, size: tuple[int, int], f: float, grid: str) -> np.ndarray:
    """Sampling positions in pixels, `(N, 2)`: sections 1.3 and 1.4, and section 6 for 2022."""
    at = np.zeros_like(raw_HkxWkx2)
    for axis, (n, keys) in enumerate(zip(size, raw_HkxWkx2.shape)):
        raw, cells = np.moveaxis(raw_HkxWkx2[..., axis], axis, -1), keys - (grid == "dat2023")
        ref = 2 * (np.arange(keys) + 0.5) / cells - 1
        unit = ref + f * np.tanh(raw) / cells if f >= 0 else np.clip(ref + raw, -1, 1)
        at[..., axis] = np.moveaxis((unit + 1) / 2 * (n - 1), -1, axis)
    return at.reshape(-1, 2)


def by_rules(module: DeformableAttention, params: Any, x_HxWxC: np.ndarray) -> np.ndarray:
    size, grid, s = x_HxWxC.shape[:2], module.grid, module.stride
    q = dense(params, "query", x_HxWxC)
    if module.offsets:
        split = partial(np.split, indices_or_sections=GROUPS, axis=-1)
        raw = [offsets_by_rules(params["offset"], part, module.kernel, s, grid) for part in split(q)]
        at_GxNx2 = np.stack([positions_by_rules(each, size, module.offset_range, grid) for each in raw])
        sampled = np.concatenate([bilinear(part, at) for part, at in zip(split(x_HxWxC), at_GxNx2)], -1)
    else:
        cells = [(i, j) for i in range(size[0] // s) for j in range(size[1] // s)]
        sampled = np.stack([x_HxWxC[i * s : i * s + s, j * s : j * s + s].mean((0, 1)) for i, j in cells])
    heads = (-1, HEADS, WIDTH // HEADS)
    k, v = (dense(params, name, sampled).reshape(heads) for name in ("key", "value"))
    bias = np.zeros((HEADS, math.prod(size), len(sampled)))
    if module.position == "table":
        tables = np.split(params["table"], GROUPS)
        bias = np.concatenate([bias_by_loops(each, at, size, grid) for each, at in zip(tables, at_GxNx2)])
    elif module.position == "log_cpb":
        bias = np.concatenate([network_by_loops(params["position"], at, size, grid) for at in at_GxNx2])
    elif module.position == "fixed":
        bias = params["table"]
    out = weigh(q.reshape(heads), k, v, bias).reshape(x_HxWxC.shape)
    if module.position == "dwc":
        padded, kernel = np.pad(q, ((1, 1), (1, 1), (0, 0))), params["position"]["kernel"][:, :, 0]
        out += sum(padded[i:, j:][: size[0], : size[1]] * kernel[i, j] for i in range(3) for j in range(3))
        out += params["position"]["bias"]
    return dense(params, "out", out)


@every_case
def test_outputs_are_those_of_the_published_rules(case: str) -> None:
    params, x = drawn(case)
    expected = np.stack([by_rules(module_of(case), params, each) for each in x])
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(module_of(case).apply)({"params": params}, x), expected, atol=1e-10)
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    got = jax.jit(module_of(case, jnp.float32).apply)({"params": narrow}, x.astype(np.float32))
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("case", ["even kernel, stride", "kernel = stride, rest", "pooled, rest", "fixed, stride"])
def test_gradients_are_differences_of_outputs(case: str) -> None:
    """Along one direction in all parameters and the map."""
    given, module, step = drawn(case), module_of(case), 1e-6
    rng = np.random.default_rng(1)
    weight = rng.normal(size=given[1].shape)
    along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), given)
    with jax.enable_x64(True):

        @jax.jit
        def total(given: Any) -> Any:
            return jnp.sum(module.apply({"params": given[0]}, given[1]) * weight)

        slopes = jax.device_get(jax.jit(jax.grad(total))(given))
        ahead, behind = (
            total(jax.tree.map(lambda x, d: x + sign * step * d, given, along))  # noqa: B023
            for sign in (1, -1)
        )
    expected = sum(np.sum(slope * d) for slope, d in zip(jax.tree.leaves(slopes), jax.tree.leaves(along)))
    np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=1e-5)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        key_bias = jax.tree_util.keystr(path).endswith("['key']['bias']")
        assert key_bias or np.abs(slope).max() > 1e-6, path


def test_pooling_has_no_offset_network() -> None:
    assert drawn("pooled")[0].keys() == {"query", "key", "value", "out"}


@pytest.mark.parametrize(
    "case, size, names",
    [
        ("fixed", (3, 5), r"position='fixed': its table is for maps of \(3, 4\).*this one is \(3, 5\)"),
        ("kernel = stride", (1, 8), r"made from 2 x 2 pixels, this map has 1 x 8"),
        ("pooled", (4, 1), r"made from 2 x 2 pixels, this map has 4 x 1"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(case: str, size: tuple[int, int], names: str) -> None:
    with pytest.raises(ValueError, match=f"^model.deformable.*{names}.*; give "):
        module_of(case, jnp.float32).apply({"params": drawn(case)[0]}, jnp.zeros((1, *size, WIDTH)))


def test_a_fixed_table_needs_as_many_keys_as_cells() -> None:
    """Of a stride that does not divide the map an odd kernel has more; the published code fails there as well."""
    module = DeformableAttention(HEADS, GROUPS, 2, 3, (5, 6), grid="dat2023", position="fixed")
    with pytest.raises(ValueError, match=r"with \(2, 3\) keys, this one is \(5, 6\) with \(3, 3\)"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, 6, WIDTH)))


@pytest.mark.parametrize("grid", ["centre", "dat2022", "dat2023"])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 2), (9, 8), (4, 1), (4, 2), (2, 2), (3, 3), (4, 4)])
def test_a_padded_clip_has_the_keys_of_the_clip_alone(kernel: int, stride: int, grid: Any) -> None:
    padding, whole = offset_padding(kernel, stride, grid), 17
    count = lambda n: (n + 2 * padding - kernel) // stride + 1  # noqa: E731
    span = kernel - 2 * padding
    for sound in range(max(span, 1), whole + 1):
        valid = jnp.arange(whole)[None] < sound
        keys = np.asarray(valid_keys(valid, (2, count(whole)), stride, span)).reshape(2, -1)
        np.testing.assert_array_equal(keys, [np.arange(count(whole)) < count(sound)] * 2)
