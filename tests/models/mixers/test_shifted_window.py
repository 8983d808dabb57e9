"""Shifted windows against plain loops, where a window covers one axis of the map or none."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.models.mixers.window import WindowAttention

HEADS, WIDTH = 2, 8


def published(x: np.ndarray, params: dict, window: tuple[int, int], covered: bool, wanted=None) -> np.ndarray:
    """The code of DAT in loops: both axes are rolled, by half a window, and regions that meet only so are parted."""
    size = x.shape[:2]
    wanted = wanted or [math.ceil(w / 2) for w in window]
    shift = [s if n > w or covered else 0 for s, n, w in zip(wanted, size, window)]
    rolled = np.roll(x, [-s for s in shift], (0, 1))
    part = [
        [0 if not s or i < n - w else 1 if i < n - s else 2 for i in range(n)] for n, w, s in zip(size, window, shift)
    ]
    qkv = rolled @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    table = params["table"].reshape(HEADS, 2 * window[0] - 1, 2 * window[1] - 1)
    out = np.zeros_like(rolled)
    deep = WIDTH // HEADS
    for f0 in range(0, size[0], window[0]):
        for t0 in range(0, size[1], window[1]):
            pixels = [(f, t) for f in range(f0, f0 + window[0]) for t in range(t0, t0 + window[1])]
            for h in range(HEADS):
                q, k, v = (np.array([qkv[p][i * WIDTH + h * deep :][:deep] for p in pixels]) for i in range(3))
                score = q @ k.T / math.sqrt(deep)
                for m, (f, t) in enumerate(pixels):
                    for n, (g, u) in enumerate(pixels):
                        score[m, n] += table[h, f - g + window[0] - 1, t - u + window[1] - 1]
                        score[m, n] -= 100 * ((part[0][f], part[1][t]) != (part[0][g], part[1][u]))
                weight = np.exp(score - score.max(1, keepdims=True))
                mixed = weight / weight.sum(1, keepdims=True) @ v
                for p, row in zip(pixels, mixed):
                    out[p][h * deep : (h + 1) * deep] = row
    out = np.roll(out, shift, (0, 1))
    return out @ params["out"]["kernel"] + params["out"]["bias"]


@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize(
    ("size", "window"), [((4, 32), (4, 8)), ((16, 8), (4, 8)), ((8, 16), (4, 8)), ((4, 8), (4, 8))]
)
@pytest.mark.parametrize("shift", [None, (2, 2), (1, 3), (0, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_shifted_window_is_that_of_the_published_code(dtype, size, window, covered, shift) -> None:
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1, *size, WIDTH)).astype(dtype)
        module = WindowAttention(HEADS, window, True, jnp.dtype(dtype), covered, shift)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(dtype), shapes)
        result = module.apply({"params": params}, x)
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
        expected = published(x[0].astype("float64"), wide, window, covered, shift)
        np.testing.assert_allclose(result[0], expected, atol=1e-10 if dtype == "float64" else 2e-4)


def test_the_two_differ_where_a_window_covers_an_axis() -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 32, WIDTH)).astype(np.float32)
    ours, theirs = (WindowAttention(HEADS, (4, 8), True, shift_covered=covered) for covered in (False, True))
    params = ours.init(jax.random.key(0), x)
    assert np.abs(np.asarray(ours.apply(params, x)) - np.asarray(theirs.apply(params, x))).max() > 1e-3
