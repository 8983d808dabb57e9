"""The border that no compiler fuses across changes nothing but that."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from datar_jax.ops.fusion_barrier import fusion_barrier


def several(x: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A tree in, a tree out, of several shapes and dtypes."""
    moved = jnp.sin(x) * given["by"]
    return moved.sum(), {"moved": moved, "sign": jnp.sign(x).astype(jnp.int32), "half": x.astype(jnp.bfloat16)}


def behind_a_border(x: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return fusion_barrier(several, x, given)


def arguments(*batch: int) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    x, by = (jnp.asarray(rng.normal(size=(*batch, 3, 4)), jnp.float32) for _ in range(2))
    return x, {"by": by}


def slopes(function: Any) -> Any:
    """Of both arguments, through two of the outputs."""

    def total(x: Any, given: dict[str, Any]) -> Any:
        first, rest = function(x, given)
        return first**2 + (rest["moved"] ** 3).sum()

    return jax.value_and_grad(total, (0, 1))


def test_value_and_slopes_are_those_of_the_function() -> None:
    for wrap in (lambda f: f, jax.jit):
        chex.assert_trees_all_close(wrap(behind_a_border)(*arguments()), several(*arguments()), rtol=1e-6)
        chex.assert_trees_all_close(
            wrap(slopes(behind_a_border))(*arguments()), slopes(several)(*arguments()), rtol=1e-5
        )


def test_a_batch_of_them_is_a_batch() -> None:
    """Mapped over both arguments, and over one that the other is shared by."""
    for axes, given in (((0, 0), arguments(5)), ((0, None), (arguments(5)[0], arguments()[1]))):
        for form in (lambda f: f, slopes):
            mine, other = (jax.jit(jax.vmap(form(f), axes))(*given) for f in (behind_a_border, several))
            chex.assert_trees_all_equal_shapes_and_dtypes(mine, other)
            chex.assert_trees_all_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_passes_the_border() -> None:
    x, given = arguments()
    mine, other = (
        jax.grad(lambda x, f=f: (slopes(f)(x, given)[1][0] ** 2).sum())(x) for f in (behind_a_border, several)
    )
    chex.assert_trees_all_close(mine, other, rtol=1e-4)


def test_a_derivative_keeps_the_arguments_only() -> None:
    """What a branch hands on would be copied."""
    x, given = arguments()
    _, back = jax.vjp(behind_a_border, x, given)
    kept = [leaf for leaf in jax.tree.leaves(back) if leaf.shape == x.shape]
    assert len(kept) == 2 and {id(leaf) for leaf in kept} == {id(x), id(given["by"])}


def test_a_cpu_keeps_the_border_in_its_optimised_program() -> None:
    """No `quick_compiles` here: the optimisations are what the border has to outlive."""
    text = [jax.jit(f).lower(*arguments()).compile().as_text() for f in (behind_a_border, several)]
    assert [" conditional(" in program for program in text] == [True, False]
