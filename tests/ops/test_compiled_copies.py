"""What a CPU's compiler copies and transposes: read in the optimised programs.

No `quick_compiles` here: the optimisations are what is looked at. Each test shows that it would see the copy.
"""

from __future__ import annotations

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from datar_jax.models.layers import Dense
from datar_jax.models.mixers import deformable as attention
from datar_jax.ops import deformable_attention as rowwise

B, F, T, C, GROUPS = 2, 8, 20, 24, 3  # nothing else has as many numbers as a map
MAP = B * F * T * C


def shape(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, jnp.float32)


def slope_program(function: Any, *args: Any) -> str:
    """Forward and backward for a gradient that is given, optimised for one device."""
    above = jax.eval_shape(function, *args)
    both = jax.jit(lambda above, *args: jax.vjp(function, *args)[1](above))
    return both.lower(above, *args).compile().as_text()


def copies(text: str, pixels: int = MAP) -> list[str]:
    """Copies and transposes of so many numbers, wherever they are."""
    found = re.findall(r"= f32\[([\d,]+)\]\S* ((?:copy|transpose)\(.*)", text)
    return [origin for size, origin in found if math.prod(map(int, size.split(","))) == pixels]


def in_loops(text: str) -> str:
    """The bodies of loops, and what these call."""
    parts = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\n((?:.*\n)*?)\}", text, re.MULTILINE))
    todo, reached = set(re.findall(r"body=%?([\w.\-]+)", text)), set()
    while todo:
        reached |= todo
        called = " ".join(parts[name] for name in todo)
        names = re.findall(r"(?:body|condition|calls|to_apply|branch_computations)=\{?%?([\w.\-, %]+)", called)
        todo = {name.strip().lstrip("%") for group in names for name in group.split(",")} & set(parts) - reached
    return "".join(parts[name] for name in sorted(reached))


def module() -> tuple[Any, Any, Any]:
    """Deformable attention of a stride, so that nothing of the keys has the size of the map."""
    built = attention.DeformableAttention(heads=6, groups=GROUPS, stride=2, kernel=3, size=(F, T))
    x = shape(B, F, T, C)
    params = jax.eval_shape(built.init, jax.random.key(0), x)["params"]
    return (lambda params, x: built.apply({"params": params}, x)), params, x


def test_no_map_is_transposed_for_the_gradient_of_a_kernel() -> None:
    """Flax's own product has such a copy."""

    class Ours(nn.Module):
        """A name for it."""

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Dense(C, jnp.float32, name="layer")(x)

    x = shape(B, F, T, C)
    for layer, some in ((nn.Dense(C), True), (Ours(), False)):
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        assert bool(copies(slope_program(layer.apply, params, x))) == some


@pytest.mark.slow
def test_a_loop_over_rows_copies_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's gradient is written where the gradient from above was read, so it must have been read before."""
    assert not copies(in_loops(slope_program(*module())))
    monkeypatch.setattr(rowwise, "fusion_barrier", lambda function, *args: function(*args))
    assert copies(in_loops(slope_program(*module())))


def test_outside_of_loops_one_map_is_copied() -> None:
    """The queries, before what they read takes their place. No derivative keeps a map twice."""
    text = slope_program(*module())
    entry = text[text.index("\nENTRY ") :]
    assert len(copies(entry)) == 1
