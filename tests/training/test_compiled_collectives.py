"""What the compiler makes of a batch that is shared by eight devices: read in the programs themselves.

Collectives come from the partitioner, which runs before and without the optimisations that `quick_compiles` leaves
out; those could only join collectives or move them out of a loop, so what is asserted here is the stricter.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from datar_jax import config as c
from datar_jax.models.mixers import deformable as attention
from datar_jax.models.spec import ModelSpec
from datar_jax.ops import deformable_attention as rowwise
from datar_jax.ops.depthwise_conv import depthwise
from datar_jax.training.sharding import batch_sharding, make_mesh, replicated, state_shardings
from datar_jax.training.train_step import abstract_state, jit_eval_step, jit_train_step

pytestmark = pytest.mark.usefixtures("quick_compiles")

B, MELS, FRAMES, CLASSES = 16, 32, 32, 4  # two clips on each device

# Deformable blocks of several groups, at stride 2 and at stride 1, and every convolution.
CONFIG = c.Config(
    audio=c.AudioConfig(n_mels=MELS),
    model=c.ModelConfig(
        dims=(8, 16),
        spec=("D", "D"),
        heads=(4, 4),
        deformable=c.DeformableSettings(groups=(2, 2), strides=(2, 1), kernels=(3, 3)),
        mlp_ratio=2,
        stem="conv",
        mlp="conv",
        adaptor="none",
    ),
    train=c.TrainConfig(batch_size=B),
)
TASK = ModelSpec(CONFIG, CLASSES, FRAMES, steps=100)


def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


def compiled(jitted: Any, *args: Any) -> str:
    text = jitted.lower(*args).compile().as_text()
    assert "num_partitions=8" in text, "the program is divided"
    return text


@cache
def train_program(data: int = 8, fsdp: int = 1) -> str:
    batch = {"mel": shape(B, MELS, FRAMES), "frames": shape(B, dtype=jnp.int32), "target": shape(B, CLASSES)}
    return compiled(jit_train_step(TASK, make_mesh(c.MeshConfig(data, fsdp))), abstract_state(TASK), batch)


@cache
def eval_program() -> str:
    state = abstract_state(TASK)
    batch = {"mel": shape(B, MELS, FRAMES), "frames": shape(B, dtype=jnp.int32)}
    return compiled(jit_eval_step(TASK, make_mesh(c.MeshConfig())), state.params, state.statistics, batch)


def slope_program(function: Any, shared: Any, divided: Any) -> str:
    """Value and gradients of a sum over `function(shared, divided)`, whose second argument lies along the data axis."""
    whole, parts = replicated(make_mesh(c.MeshConfig())), batch_sharding(make_mesh(c.MeshConfig()))

    def total(shared: Any, divided: Any) -> Any:
        return jnp.sum(function(shared, divided) ** 2)

    jitted = jax.jit(
        jax.value_and_grad(total, (0, 1)), in_shardings=(whole, parts), out_shardings=(whole, (whole, parts))
    )
    return compiled(jitted, shared, divided)


def computations(text: str) -> dict[str, str]:
    """Bodies of a program's computations by name."""
    return dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\n((?:.*\n)*?)\}", text, re.MULTILINE))


class Collective(NamedTuple):
    kind: str
    result: str  # dtypes and sizes
    origin: str  # modules and primitives it was made from


def collectives(body: str) -> list[Collective]:
    kinds = "all-gather|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all|reduce-scatter|all-reduce"
    found = re.findall(rf'= (.+?) ({kinds})(?:-start)?\((?:.*op_name="([^"]*)")?', body)
    return [Collective(kind, result, origin) for result, kind, origin in found]


def moved(text: str) -> list[Collective]:
    """Everything that travels between devices but sums."""
    return [found for found in collectives(text) if found.kind != "all-reduce"]


def in_loops(text: str) -> list[Collective]:
    """Collectives in the body or the condition of a loop, or in what these call."""
    parts = computations(text)
    attribute = r"(?:body|condition|calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)|_computations=\{([^}]*)\}"

    def called(body: str) -> set[str]:
        names = re.findall(attribute, body)
        return {name.strip().lstrip("%") for pair in names for group in pair for name in group.split(",") if name}

    loops = [line for body in parts.values() for line in body.splitlines() if " while(" in line]
    assert len(loops) == text.count(" while("), "every loop was found"
    reached: set[str] = set()
    found = set().union(*(called(line) for line in loops))
    while found:
        reached |= found
        found = set().union(*(called(parts[name]) for name in found)) - reached
    return [collective for name in sorted(reached) for collective in collectives(parts[name])]


def test_the_reader_finds_what_it_looks_for() -> None:
    """A program that gathers, and sums over the batch in a loop, in a branch and outside of both."""

    def careless(weight: Any, x: Any) -> Any:
        def branch(x: Any) -> Any:
            return (x * weight[None]).sum(0)

        def body(row: Any, total: Any) -> Any:
            return total + jax.lax.cond(row > weight[0], branch, lambda x: x[0] * 0.0, x * row)

        return jax.lax.fori_loop(0, 3, body, x.sum(0))[None] + jnp.sort(x, 0)

    text = slope_program(careless, shape(3), shape(B, 3))
    assert any(x.kind == "all-gather" for x in moved(text))
    sums, inside = (len([x for x in found if x.kind == "all-reduce"]) for found in (collectives(text), in_loops(text)))
    assert sums > inside > 0


def test_nothing_but_sums_travels_in_a_train_step() -> None:
    assert collectives(train_program()) and not moved(train_program())


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(1, 8), (4, 2)])
def test_a_divided_state_is_gathered_parameter_by_parameter(data: int, fsdp: int) -> None:
    """Each where it is used, and no activation with them."""
    divided = Counter(
        f"f32[{','.join(map(str, leaf.shape))}]"
        for leaf, placed in zip(
            jax.tree.leaves(abstract_state(TASK).params),
            jax.tree.leaves(state_shardings(abstract_state(TASK).params, make_mesh(c.MeshConfig(data, fsdp)))),
        )
        if not placed.is_fully_replicated
    )
    gathered = moved(train_program(data, fsdp))
    assert {x.kind for x in gathered} == {"all-gather"}
    counted = Counter(x.result.split("{")[0] for x in gathered)
    assert counted.keys() == divided.keys()
    assert all(divided[size] <= counted[size] <= 2 * divided[size] for size in divided), "forward, and perhaps backward"
    assert not in_loops(train_program(data, fsdp))


def test_nothing_but_scores_travels_in_an_eval_step() -> None:
    """They are wanted on every device."""
    scores, *others = collectives(eval_program())
    assert scores.kind == "all-gather" and scores.result.startswith(f"f32[{B},{CLASSES}]") and not others


def test_sums_over_the_batch_are_not_inside_a_loop() -> None:
    assert not in_loops(train_program())


def test_no_loop_of_an_eval_step_talks() -> None:
    assert not in_loops(eval_program())


@pytest.mark.parametrize("method", ["conv", "shifted"])
def test_a_depthwise_convolution_sums_once(method: Any) -> None:
    text = slope_program(lambda kernel, x: depthwise(x, kernel, 2, method), shape(3, 3, 8), shape(B, 8, 6, 8))
    assert not moved(text) and not in_loops(text)


@pytest.mark.parametrize("sampler", ["gather", "window", "hat", "separable"])
def test_every_sampler_keeps_a_divided_batch_divided(monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    """Several blocks of heads too."""
    monkeypatch.setattr(rowwise, "PAIRS", 1)
    module = attention.DeformableAttention(heads=4, groups=2, stride=2, kernel=3, size=(5, 6), sampler=sampler)
    x = shape(B, 5, 6, 8)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    text = slope_program(lambda params, x: module.apply({"params": params}, x), params, x)
    assert " while(" in text and collectives(text) and not moved(text) and not in_loops(text)
