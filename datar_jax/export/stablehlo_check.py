"""Checks that a StableHLO program from someone else does only what programs of this package do.

The lists below are what exports of every mixer, stem and weight dtype need on CPU, GPU and TPU, no more
(`tests/export/test_stablehlo_check.py`). Operations that are not listed reach other devices (`send`, `all_reduce`), the
host (`infeed`, `custom_call`) or a random state.
"""

from __future__ import annotations

from typing import Any

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy, stablehlo

_STABLEHLO = """
    abs add and broadcast_in_dim case clamp compare composite concatenate constant convert convolution
    custom_call divide dot_general dynamic_broadcast_in_dim dynamic_gather dynamic_reshape dynamic_slice
    dynamic_update_slice exponential floor gather get_dimension_size iota log maximum minimum multiply
    negate optimization_barrier pad real_dynamic_slice reduce reshape return reverse round_nearest_even
    rsqrt select sign slice subtract tanh transpose while
"""
OPERATIONS = frozenset(
    {"builtin.module", "func.call", "func.func", "func.return", *(f"stablehlo.{name}" for name in _STABLEHLO.split())}
)
CUSTOM_CALLS = frozenset({"shape_assertion"})  # of jax.export, for the batch size; no code of a backend
COMPOSITES = frozenset({"chlo.erf"})  # each comes with its decomposition
MAX_STEPS = 1 << 16  # of a loop


def parse_module(serialized: bytes) -> ir.Module:
    """The module of a portable StableHLO artifact.

    Raises:
      ValueError: it cannot be parsed.
    """
    context = ir.Context()
    stablehlo.register_dialect(context)
    sdy.register_dialect(context)
    context.attach_diagnostic_handler(lambda _: True)  # MLIR prints what it raises too
    return stablehlo.deserialize_portable_artifact(context, serialized)


def check_program(module: ir.Module) -> None:
    """Checks every operation of a program.

    Raises:
      ValueError: an operation, custom call or composite that is not listed, a loop that does not count from a constant
        to a constant, or a function that calls itself.
    """
    wrong: list[str] = []
    calls: dict[str, set[str]] = {}

    def check(operation: Any) -> ir.WalkResult:
        if reason := _reason(operation):
            wrong.append(reason)  # MLIR hides what is raised in here
            return ir.WalkResult.INTERRUPT
        for attribute in ("callee", "decomposition"):
            if attribute in operation.attributes:
                calls.setdefault(_function(operation), set()).add(operation.attributes[attribute].value)
        return ir.WalkResult.ADVANCE

    module.operation.walk(check, ir.WalkOrder.PRE_ORDER)
    wrong += (f"holds the function {name!r}, which calls itself" for name in _recursive(calls))
    if wrong:
        raise ValueError(wrong[0])


def _reason(operation: Any) -> str:
    """Why an operation is refused; empty if it is not."""
    name, attributes = operation.name, operation.attributes
    if name not in OPERATIONS:
        return f"holds the operation {name}, which exported models do not have"
    if name == "stablehlo.custom_call" and (target := attributes["call_target_name"].value) not in CUSTOM_CALLS:
        return f"calls {target!r}, which exported models do not"
    if name == "stablehlo.composite" and (composite := attributes["name"].value) not in COMPOSITES:
        return f"holds the composite {composite!r}, which exported models do not have"
    if name == "stablehlo.while" and not _counts(operation):
        return f"holds a loop that does not count from a constant up to one of at most {MAX_STEPS:,}"
    return ""


def _counts(loop: Any) -> bool:
    """Whether a loop has the form that jax gives to a scan: `i < LIMIT` before each step, and `i + 1` after it."""
    condition, body = (region.blocks[0] for region in loop.regions)
    if [each.operation.name for each in condition.operations] != ["stablehlo.compare", "stablehlo.return"]:
        return False
    compare, done = (each.operation for each in condition.operations)
    counter, limit = compare.operands
    direction = stablehlo.ComparisonDirectionAttr(compare.attributes["comparison_direction"]).value
    if direction != "LT" or done.operands[0].owner != compare or counter.owner != condition:
        return False
    index = list(condition.arguments).index(counter)
    *_, last = body.operations
    add = last.operation.operands[index].owner
    if isinstance(add, ir.Block) or add.operation.name != "stablehlo.add":
        return False
    before, step = add.operands
    return (
        before == body.arguments[index]
        and _constant(step, -1) == 1  # a longer step may pass a limit by overflow
        and 0 <= _constant(limit, -1) <= MAX_STEPS
        and _constant(loop.operands[index], -1) >= 0
    )


def _constant(value: Any, default: int) -> int:
    """The number that a value is; the default unless it is a constant scalar."""
    if isinstance(value.owner, ir.Block) or value.owner.operation.name != "stablehlo.constant":
        return default
    number = value.owner.attributes["value"]
    return int(number[0]) if isinstance(number, ir.DenseIntElementsAttr) and len(number) == 1 else default


def _function(operation: Any) -> str:
    """The name of the function that an operation is in."""
    while operation.name != "func.func":
        operation = operation.parent.operation
    return str(operation.attributes["sym_name"].value)


def _recursive(calls: dict[str, set[str]]) -> list[str]:
    """Functions that are called from within themselves: what is left when all that call none of the others are gone."""
    left = {name: callees & set(calls) for name, callees in calls.items()}
    while leaves := [name for name, callees in left.items() if not callees]:
        left = {name: callees.difference(leaves) for name, callees in left.items() if callees}
    return sorted(left)
