"""Programs of others: what exported models need passes, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from datar_jax import config as c
from datar_jax.config import MODELS
from datar_jax.export import stablehlo_check
from datar_jax.export.stablehlo import from_stablehlo, to_stablehlo
from datar_jax.export.stablehlo_check import check_program, parse_module
from datar_jax.export.waveform_model import make_waveform_model
from datar_jax.models.mixers import MIXERS
from datar_jax.models.spec import ModelSpec
from tests.export.test_exported_programs import AUDIO, CLASSES, CONFIG, FRAMES, MEAN, SAMPLES, STD, quantize

GOLDEN = Path(__file__).parents[1] / "golden" / "version_0_1" / "export_stablehlo" / "model.stablehlo"
EVERYTHING: dict[str, Any] = {
    "dims": (8, 16),
    "heads": (2, 4),
    "spec": ("LSND", "D"),
    "window": c.WindowSettings(sizes=((3, 4), (2, 2))),
    "neighborhood": c.NeighborhoodSettings(sizes=((3, 5), (3, 3))),
    "stem": "conv",
    "mlp": "conv",
    "local_perception": True,
    "adaptor": "both",
    "adaptor_at": "both",
}


def exported(position: Any, labels: Any, weights: Any) -> bytes:
    """A model with every kind of block, for all platforms."""
    deformable = c.DeformableSettings(groups=(1, 2), strides=(2, 1), kernels=(3, 3), position=position)
    model = c.ModelConfig(**EVERYTHING, deformable=deformable)
    config = msgspec.structs.replace(CONFIG, model=model, data=c.DataConfig(labels=labels, window_seconds=0.33))
    mel = jax.ShapeDtypeStruct((1, AUDIO.n_mels, FRAMES), jnp.float32)
    init = ModelSpec(config, CLASSES, FRAMES, 1).model(train=False).init
    shapes = jax.eval_shape(init, jax.random.key(0), mel)["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    return to_stablehlo(make_waveform_model(config, (), CLASSES, FRAMES, MEAN, STD), quantize(params, weights), SAMPLES)


def test_exported_models_need_all_operations_that_are_allowed_and_no_others():
    assert set("".join(EVERYTHING["spec"])) == set(MIXERS), "a mixer that this does not export"
    used: set[str] = set()

    def note(operation: Any) -> ir.WalkResult:
        used.add(operation.name)
        return ir.WalkResult.ADVANCE

    files = [exported("table", "multi", "int8"), exported("log_cpb", "single", "bfloat16"), GOLDEN.read_bytes()]
    for file in files:
        module = parse_module(jax.export.deserialize(bytearray(file)).mlir_module_serialized)
        check_program(module)
        module.operation.walk(note)
    assert used == stablehlo_check.OPERATIONS


def module_of(text: str) -> ir.Module:
    return parse_module(stablehlo.serialize_portable_artifact_str(text, stablehlo.get_current_version()))


LOOP = """
func.func @main() -> tensor<{type}> {{
  %start = stablehlo.constant dense<{start}> : tensor<{type}>
  %limit = stablehlo.constant dense<{limit}> : tensor<{type}>
  %step = stablehlo.constant dense<{step}> : tensor<{type}>
  %out = stablehlo.while(%i = %start) : tensor<{type}>
    cond {{
      %go = stablehlo.compare {compare}, {compared} : (tensor<{type}>, tensor<{type}>) -> tensor<i1>
      stablehlo.return %go : tensor<i1>
    }} do {{
      %next = stablehlo.{operation} %i, %step : tensor<{type}>
      stablehlo.return {returned} : tensor<{type}>
    }}
  return %out : tensor<{type}>
}}
"""
COUNTED = {
    "type": "i32", "start": "0", "limit": "9", "step": "1", "compare": "LT", "compared": "%i, %limit",
    "operation": "add", "returned": "%next",
}  # fmt: skip


def test_a_loop_that_counts_to_a_constant_passes():
    check_program(module_of(LOOP.format(**COUNTED)))


@pytest.mark.parametrize(
    "change",
    [
        {"step": "0"},
        {"step": "-1"},
        {"type": "i8", "step": "100", "limit": "127"},  # passes its limit by overflow
        {"start": "-2147483648"},
        {"limit": "2147483647"},
        {"compare": "NE"},
        {"compare": "LE"},
        {"compared": "%limit, %i"},
        {"compared": "%i, %i"},
        {"operation": "subtract"},
        {"operation": "multiply"},
        {"returned": "%i"},
        {"returned": "%step"},
        {"type": "f32", "start": "0.0", "limit": "9.0", "step": "1.0"},
    ],
    ids=str,
)
def test_a_loop_that_may_not_end_is_refused(change):
    with pytest.raises(ValueError, match="a loop that does not count"):
        check_program(module_of(LOOP.format(**{**COUNTED, **change})))


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("stablehlo.custom_call @Boom(%x)", "calls 'Boom', which exported models do not"),
        ("stablehlo.custom_call @xla_ffi_python_cpu_callback(%x)", "calls 'xla_ffi_python_cpu_callback'"),
        ('stablehlo.composite "chlo.top_k" %x {decomposition = @f}', "the composite 'chlo.top_k'"),
        ('stablehlo.composite "chlo.erf" %x {decomposition = @main}', "'main', which calls itself"),
        ("func.call @main(%x)", "the function 'main', which calls itself"),
        ("func.call @f(%x)", "the function 'f', which calls itself"),
        ("stablehlo.sine %x", "the operation stablehlo.sine"),
        ("stablehlo.cholesky %x", "the operation stablehlo.cholesky"),
    ],
)
def test_what_exported_models_do_not_do_is_refused(operation, named):
    kind = "tensor<4x4xf32>" if operation.endswith(" %x") else "(tensor<4x4xf32>) -> tensor<4x4xf32>"
    call_f = "func.call @f(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>"
    back = call_f if "@f" in operation else "stablehlo.abs %x : tensor<4x4xf32>"
    text = f"""
    func.func @main(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {{
      %0 = {operation} : {kind}
      return %0 : tensor<4x4xf32> }}
    func.func private @f(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {{
      %0 = func.call @g(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
      return %0 : tensor<4x4xf32> }}
    func.func private @g(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {{
      %0 = {back}
      return %0 : tensor<4x4xf32> }}
    """
    with pytest.raises(ValueError, match=named):
        check_program(module_of(text))


def unending(_params: Any, wave: Any, length: Any, start: Any) -> Any:
    total = jax.lax.while_loop(lambda x: x < jnp.inf, lambda x: x * 1.0, wave.sum())
    return jnp.zeros((wave.shape[0], CLASSES)) + total + (length + start)[:, None]


def factored(_params: Any, wave: Any, length: Any, start: Any) -> Any:
    return jnp.zeros((wave.shape[0], CLASSES)) + jnp.linalg.cholesky(wave[0, :4, None] * wave[:1, :4]).sum() + (
        length + start
    )[:, None]  # fmt: skip


@pytest.mark.parametrize(("program", "said"), [(unending, "holds a loop"), (factored, "calls 'lapack")])
def test_a_file_is_refused_before_it_is_compiled(program, said):
    file = to_stablehlo(program, {}, SAMPLES, ["cpu"])
    with pytest.raises(ValueError, match=said):
        from_stablehlo(file, SAMPLES, CLASSES)


def test_the_variants_hold_no_letter_that_is_not_exported_here():
    assert all(set("".join(make().spec)) <= set("".join(EVERYTHING["spec"])) for make in MODELS.values())
