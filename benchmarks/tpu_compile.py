"""Compiles attention and train steps for a TPU v5e chip, without a TPU: memory, gathers, loops. Nothing is executed.

    python benchmarks/tpu_compile.py attention ["tiny, stage 3;..."]    # every formulation, batch 64, bfloat16
    python benchmarks/tpu_compile.py step [datar_base] [--seconds=10] [--batches=16,32]    # the whole train step

Bytes are from XLA's memory analysis. Its time estimate is bytes over bandwidth, counts the body of a loop once and
goes negative with some operations: it is shown only for programs without loops, and means little even there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if importlib.util.find_spec("libtpu") is None:
    sys.exit("libtpu is not installed: pip install -r requirements-bench.txt")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datar_jax.training.estimate.topology import ENVIRONMENT, topology

os.environ |= ENVIRONMENT

import jax
import jax.numpy as jnp
import msgspec

from benchmarks._settings import SETTINGS, Setting, header, row
from datar_jax.config import MODELS, Config, DataConfig, MeshConfig
from datar_jax.ops.deformable_attention import deformable_attention
from datar_jax.ops.position_bias import position_bias
from datar_jax.training.estimate.estimate import devices, make_plan
from datar_jax.training.sharding import make_mesh, replicated

BATCH = 64
CHIP = topology("v5e:1x1")
MESH = make_mesh(MeshConfig(), devices(CHIP))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("attention", "step"))
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batches", default="16,32")
    given = parser.parse_args()
    if given.what == "attention":
        names = (given.name or ";".join(SETTINGS)).split(";")
        if unknown := sorted(set(names) - set(SETTINGS)):
            parser.error(f"no setting {', '.join(unknown)}; there are {'; '.join(SETTINGS)}")
        attention([SETTINGS[name] for name in names])
    elif given.name and given.name not in MODELS:
        parser.error(f"no model {given.name}; there are {', '.join(MODELS)}")
    else:
        steps(given.name or "datar_base", given.seconds, [int(n) for n in given.batches.split(",")])


def compiled(function: Any, *args: Any) -> tuple[Any, str, float]:
    """The program, or why there is none, and seconds of compiling."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(MESH):
            program, why = function.lower(*args).compile(), ""
    except jax.errors.JaxRuntimeError as error:
        needs = re.search(r"(?:required for HLO temporaries|Used) \(?([\d.]+[GM])", str(error))
        if needs is None:
            raise
        program, why = None, f"refused: needs {needs[1]}"
    return program, why, time.perf_counter() - start


def left(program: Any) -> str:
    """Gathers, scatters, sorts and loops in the compiled program."""
    text = program.as_text()
    return ", ".join(str(len(re.findall(rf"[ )]{kind}\(", text))) for kind in ("gather", "scatter", "sort", "while"))


def attention(settings: list[Setting]) -> None:
    print(f"## Attention core compiled for one v5e chip: batch {BATCH}, bfloat16, forward + backward\n")
    columns = ["setting", "form", "temporaries, MiB", "gathers, scatters, sorts, loops", "XLA's estimate, ms"]
    print(header([*columns, "compile, s"]), flush=True)
    names = {setting: name for name, setting in SETTINGS.items()}
    for setting in settings:
        forms: dict[str, Callable] = {"whole, map_coordinates": partial(whole, setting, "map_coordinates")}
        forms["whole, separable"] = partial(whole, setting, "separable")
        for method in ("map_coordinates", "gather", "window", "separable", "auto"):
            forms[f"by rows, {method}"] = partial(by_rows, method)
        (f, t), h = setting.size, setting.heads
        maps = (BATCH, f, t, setting.dim)
        keys = (BATCH, setting.keys, h, setting.dim // h)
        shapes = [(maps, jnp.bfloat16), (keys, jnp.bfloat16), (keys, jnp.bfloat16)]
        shapes += [((h, 2 * f - 1, 2 * t - 1), jnp.float32), ((BATCH, setting.groups, setting.keys, 2), jnp.float32)]
        args = [jax.ShapeDtypeStruct(*each, sharding=replicated(MESH)) for each in shapes]
        programs = {
            form: (jax.jit(lambda above, *args, f=function: jax.vjp(f, *args)[1](above)), (args[0], *args))
            for form, function in forms.items()
        }
        programs["the whole module, auto"] = module(setting)
        for form, (function, given) in programs.items():
            program, why, seconds = compiled(function, *given)
            if program is None:
                print(row(names[setting], form, why, "", "", f"{seconds:.0f}"), flush=True)
                continue
            temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
            loops, estimate = "while(" in program.as_text(), program.cost_analysis().get("optimal_seconds", -1.0)
            shown = "-" if loops or estimate < 0 else f"{1e3 * estimate:.1f}"
            print(row(names[setting], form, f"{temporaries:.0f}", left(program), shown, f"{seconds:.0f}"), flush=True)
    print()


def module(setting: Setting) -> tuple[Any, tuple[Any, ...]]:
    """Gradients of parameters and input: projections, offsets and feature sampling too."""
    built = setting.module(dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((BATCH, *setting.size, setting.dim), jnp.bfloat16, sharding=replicated(MESH))
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(MESH)),
        jax.eval_shape(built.init, jax.random.key(0), x)["params"],
    )

    def both(above: jax.Array, params: Any, x: jax.Array) -> Any:
        return jax.vjp(lambda params, x: built.apply({"params": params}, x), params, x)[1](above)

    return jax.jit(both), (x, params, x)


def by_rows(method: Any, *args: jax.Array) -> jax.Array:
    return deformable_attention(*args, method=method)


def whole(setting: Setting, method: Any, q: Any, k: Any, v: Any, table: jax.Array, position: jax.Array) -> jax.Array:
    """The straightforward form: bias, scores and weights of all pairs."""
    (b, f, t), (heads, d) = q.shape[:3], k.shape[2:]
    tables = table.reshape(setting.groups, -1, *table.shape[1:])
    read = jax.vmap(lambda table, position: position_bias(table, position, (f, t), method=method))
    bias = jax.vmap(read, (None, 0))(tables, position).reshape(b, heads, f * t, -1)
    score = jnp.einsum("bmhd,bnhd->bhmn", q.reshape(b, f * t, heads, d), k, preferred_element_type=jnp.float32)
    weight = jax.nn.softmax(score * d**-0.5 + bias, axis=-1).astype(v.dtype)
    return jnp.einsum("bhmn,bnhd->bmhd", weight, v).reshape(q.shape)


def steps(name: str, seconds: float, batches: list[int]) -> None:
    print(f"## Train step of {name} compiled for one v5e chip: {seconds:g} s clips, 527 classes, bfloat16\n")
    columns = ["batch on the chip", "recomputed", "parameters", "arguments, GiB", "temporaries, GiB", "peak, GiB"]
    print(header([*columns, "fits 15.75 GiB", "compile, s"]), flush=True)
    for batch in batches:
        for remat in (False, True):
            model = msgspec.structs.replace(MODELS[name](), dtype="bfloat16", remat=remat)
            plan = make_plan(Config(model=model, data=DataConfig(labels="multi")), CHIP, batch, seconds, 527)
            sizes = (plan.argument_bytes, plan.temporary_bytes, plan.needed_bytes)
            cells = ["" if size is None else f"{size / 2**30:.2f}" for size in sizes]
            fits = "yes" if plan.fits else "no"
            print(row(batch, remat, f"{plan.parameters / 1e6:.1f} M", *cells, fits, f"{plan.compile_seconds:.0f}"))
    print()


if __name__ == "__main__":
    main()
