"""A barrier against fusion by the CPU compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def fusion_barrier(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, compiled by itself on a CPU; elsewhere simply `function(*args)`.

    XLA's CPU compiler likes to draw element-wise work into the reduction or product that reads it, and then writes
    every slice and broadcast of that work to memory as an operand (measured: the 25 taps of a 5 x 5 convolution before
    a LayerNorm, 34 ms instead of 3). A branch is a border that it respects as long as it cannot tell which way it goes;
    an `optimization_barrier` alone is gone by then.

    The derivative (reverse mode only) keeps nothing but `args` and is unfused itself: what a branch would hand on is a
    copy.
    """
    function = jax.jit(function, inline=True)  # traced once for all its branches

    @jax.custom_vjp
    def run(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, cpu=branch, default=function)

    def branch(*args: Any) -> Any:
        return jax.lax.cond(jax.lax.optimization_barrier(True), function, zeros, *args)

    def zeros(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))

    def backward(saved: tuple[Any, ...], above: Any) -> Any:
        return fusion_barrier(lambda saved, above: jax.vjp(function, *saved)[1](above), saved, above)

    run.defvjp(lambda *args: (run(*args), args), backward)
    return run(*args)
