"""Tables for another map: what a displacement reads stays what it was, or PyTorch's bicubic numbers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.checkpoints.resize_tables import resize_table, resize_window_table
from datar_jax.ops.position_bias import fit_table

Size = tuple[int, int]

# torch.nn.functional.interpolate(x, (5, 7), mode="bicubic") of x[i, j] = sin(1 + 3 i + j * j), 3 x 5, in float64.
WAVES = np.sin(1 + 3.0 * np.arange(3)[:, None] + np.arange(5.0) ** 2)
BICUBIC = np.array(
    [
        [
            0.9875261726475,
            1.2838276080832,
            0.4870222470370,
            -1.1459593967066,
            -0.8135204005147,
            -0.7950281641239,
            -1.1810669986587,
        ],
        [
            0.1254831001472,
            0.0867104762288,
            0.0110797635693,
            -0.0597575677754,
            -0.1091162693899,
            -0.1203422581193,
            -0.1065918618915,
        ],
        [
            -0.7408920345424,
            -1.0785529467890,
            -0.4420791737956,
            0.9893582466234,
            0.6016739152074,
            0.5673075011096,
            0.9517353725216,
        ],
        [
            -0.0149480125392,
            0.0742008831933,
            0.0548748666966,
            -0.0878466651865,
            0.0193513970087,
            0.0357045762274,
            -0.0353993431379,
        ],
        [
            0.7625078985183,
            1.2637829970205,
            0.5571968567263,
            -1.1909676580554,
            -0.6076716251158,
            -0.5449882073343,
            -1.0669924364453,
        ],
    ]
)


def random_table(size: Size, heads: int = 2) -> np.ndarray:
    return np.random.default_rng(sum(size)).normal(size=(heads, 2 * size[0] - 1, 2 * size[1] - 1)).astype(np.float32)


@pytest.mark.parametrize("size_from, size_to", [((3, 4), (3, 4)), ((3, 4), (2, 6)), ((5, 1), (1, 3)), ((4, 9), (7, 2))])
def test_our_table_reads_as_before_in_pixels(size_from: Size, size_to: Size) -> None:
    """What the model reads of it for a map of the new size is, to the last digit, what it read of the old table."""
    table = random_table(size_from)
    resized = resize_table(table, size_from, size_to, "centre")
    assert resized.shape == (2, 2 * size_to[0] - 1, 2 * size_to[1] - 1) and resized.dtype == table.dtype
    reach = [slice(2, -2)] * 2  # beyond the new map's own displacements, an edge was cut off with the rest
    before, now = (fit_table(jnp.asarray(x), size_to, "centre") for x in (table, resized))
    np.testing.assert_array_equal(np.asarray(now)[:, *reach], np.asarray(before)[:, *reach])


@pytest.mark.parametrize("scale", [2.0, 0.5, 1.25])
def test_our_table_reads_as_before_in_seconds(scale: float) -> None:
    """A line stays a line: half the hop has twice the pixels, and each displacement half the slope."""
    old, new = 5, 9
    line = np.broadcast_to(np.arange(-old + 1.0, old), (1, 2 * old - 1, 2 * old - 1))
    resized = resize_table(line, (old, old), (old, new), "centre", (1.0, scale))
    expected = np.clip(np.arange(-new + 1, new) / scale, 1 - old, old - 1)
    np.testing.assert_allclose(resized, np.broadcast_to(expected, resized.shape), atol=1e-12)
    turned = resize_table(line.swapaxes(1, 2), (old, old), (new, old), "centre", (scale, 1.0))
    np.testing.assert_allclose(turned, resized.swapaxes(1, 2), atol=1e-12)


def test_a_published_table_is_resized_as_pytorch_does() -> None:
    small = WAVES[None]
    flat = resize_window_table(small.reshape(1, -1), (2, 3), (3, 4))
    assert flat.shape == (1, 35)
    np.testing.assert_allclose(flat.reshape(5, 7), BICUBIC, atol=1e-12)
    np.testing.assert_array_equal(resize_table(small, (2, 3), (3, 4), "dat2022")[0], flat.reshape(5, 7))


@pytest.mark.parametrize("grid", ["dat2022", "dat2023"])
@pytest.mark.parametrize(
    "size_from, size_to", [((7, 7), (12, 12)), ((7, 7), (4, 16)), ((4, 8), (1, 20)), ((3, 5), (3, 5))]
)
def test_any_size_as_pytorch_does(grid: Any, size_from: Size, size_to: Size) -> None:
    torch = pytest.importorskip("torch")
    table = random_table(size_from, 3).astype(np.float64)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table)[None], tuple(2 * n - 1 for n in size_to), mode="bicubic"
    )[0].numpy()
    np.testing.assert_allclose(resize_table(table, size_from, size_to, grid), expected, atol=1e-12)
    windows = resize_window_table(table.reshape(3, -1), size_from, size_to)
    np.testing.assert_allclose(windows, expected.reshape(3, -1), atol=1e-12)


def test_a_table_of_another_size_is_refused() -> None:
    table = random_table((3, 4))
    with pytest.raises(ValueError, match="a table of 5 x 7 is not one for a map of 4 x 3"):
        resize_table(table, (4, 3), (5, 5), "centre")
    with pytest.raises(ValueError, match=r"a table of 35 entries is not one of a window \(4, 4\)"):
        resize_window_table(table.reshape(2, -1), (4, 4), (5, 5))
