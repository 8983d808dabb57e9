"""Deformable attention: speed against PyTorch, of each formulation, and programs compiled for a TPU.

    python benchmarks/deformable_attention.py [--batch=8] [--rounds=7] [--parts=torch,formulations,tpu] [--settings=...]

Prints tables in Markdown. `torch` needs the packages of requirements-bench.txt, `tpu` needs libtpu and compiles without
a TPU; a part whose package is missing says so. On a machine with a GPU both sides run there, in bfloat16, PyTorch with
and without `torch.compile`, and operations and bytes are set against the GPU's peaks (--peak-tflops, --peak-gbs).

Times are medians. Every round runs each variant three times in turn and counts the last two, so that all run under
the same load; compare ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._settings import SETTINGS, Setting, header, parameters, row

PARTS = ("torch", "formulations", "tpu")
METHODS = ("auto", "map_coordinates", "gather", "window", "hat", "separable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=0, help="default: 8 on a CPU, 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--settings", default=";".join(SETTINGS), help="names, with ; between them")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the GPU, dense bfloat16")
    parser.add_argument("--peak-gbs", type=float, default=0.0, help="of the GPU's memory")
    given = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    batch = given.batch or (64 if gpu else 8)
    for flag, asked, known in (
        ("settings", given.settings.split(";"), SETTINGS),
        ("parts", given.parts.split(","), PARTS),
    ):
        if unknown := sorted(set(asked) - set(known)):
            parser.error(f"--{flag}: no {', '.join(unknown)}; there are {'; '.join(known)}")
    settings = {name: SETTINGS[name] for name in given.settings.split(";")}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {batch}\n", flush=True)
    for part in given.parts.split(","):
        if part == "torch":
            against_torch(settings, batch, given.rounds, gpu, given.peak_tflops, given.peak_gbs)
        elif part == "formulations":
            formulations(settings, batch, given.rounds, jnp.bfloat16 if gpu else jnp.float32)
        else:
            for_tpu(list(settings))


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            run()
            for _ in range(2):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


class Ours(NamedTuple):
    """What is timed, and what it is given: parameters, input, and the gradient that comes from the layers above."""

    forward: Callable[[dict, jax.Array], jax.Array]
    both: Callable[[dict, jax.Array, jax.Array], tuple[dict, jax.Array]]
    params: dict
    x: jax.Array
    above: jax.Array

    def runs(self) -> dict[str, Callable[[], object]]:
        return {
            "fwd": lambda: jax.block_until_ready(self.forward(self.params, self.x)),
            "both": lambda: jax.block_until_ready(self.both(self.params, self.x, self.above)),
        }


def ours(setting: Setting, batch: int, method: str, dtype: type) -> Ours:
    module = setting.module(method, dtype)  # type: ignore[arg-type]
    draw = np.random.default_rng(0).normal
    x, above = (jnp.asarray(draw(size=(batch, *setting.size, setting.dim)), dtype) for _ in range(2))

    def forward(params: dict, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x)

    def both(params: dict, x: jax.Array, above: jax.Array) -> tuple[dict, jax.Array]:
        return jax.vjp(forward, params, x)[1](above)

    return Ours(jax.jit(forward), jax.jit(both), parameters(module, x), x, above)


def against_torch(
    settings: dict[str, Setting], batch: int, rounds: int, gpu: bool, peak_tflops: float, peak_gbs: float
) -> None:
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: pip install -r requirements-bench.txt\n")
        return
    import torch

    if gpu and not torch.cuda.is_available():
        print("this PyTorch sees no GPU\n")
        return
    print(f"## Against PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    columns = ["setting", "fwd, ms", "PyTorch", "ratio", "fwd + bwd, ms", "PyTorch", "ratio", "PyTorch's best form"]
    print(header(columns + (["fwd + bwd of peak TFLOP/s", "of peak GB/s"] if gpu else [])), flush=True)
    for name, setting in settings.items():
        module = ours(setting, batch, "auto", jnp.bfloat16 if gpu else jnp.float32)
        rivals = torch_forms(setting, module, gpu)
        compare(module, rivals, 0.05 if gpu else 1e-3)
        best, cells = {}, [name]
        for kind, run in module.runs().items():
            contestants = {"ours": run} | {k: v[kind] for k, v in rivals.items()}
            times = interleaved(contestants, rounds)
            mine = times.pop("ours")
            best[kind] = min(times, key=times.get)  # type: ignore[arg-type]
            rival = times[best[kind]]
            cells += [f"{1e3 * mine:.1f}", f"{1e3 * rival:.1f}", f"**{rival / mine:.2f}**"]
        cells.append(best["both"] if best["both"] == best["fwd"] else f"{best['fwd']}; {best['both']}")
        if gpu:
            cost = module.both.lower(*module[2:]).compile().cost_analysis() or {}
            flops, moved = 6 * setting.macs(batch), cost.get("bytes accessed", float("nan"))
            cells += [f"{flops / mine / 1e12:.1f} of {peak_tflops:g}", f"{moved / mine / 1e9:.0f} of {peak_gbs:g}"]
        print(row(*cells), flush=True)
    print()


def torch_forms(setting: Setting, ours: Ours, gpu: bool) -> dict[str, dict[str, Callable]]:
    """PyTorch's forms, each with the same weights, input and gradient from above."""
    import torch

    from benchmarks.torch_baseline import TorchDeformableAttention

    device = "cuda" if gpu else "cpu"
    forms = {}
    for fused in (False, True):
        sizes = (setting.dim, setting.heads, setting.groups, setting.stride, setting.kernel, setting.size)
        module = TorchDeformableAttention(*sizes, fused=fused)
        module.load(ours.params)
        module = module.to(device)
        data, above = (
            torch.tensor(np.asarray(value, np.float32), device=device).permute(0, 3, 1, 2).contiguous()
            for value in (ours.x, ours.above)
        )
        data.requires_grad_()
        for compiled in (False, True) if gpu else (False,):
            run = torch.compile(module) if compiled else module

            def forward(run=run, data=data):
                with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                    out = run(data)
                if gpu:
                    torch.cuda.synchronize()
                return out

            def both(run=run, module=module, data=data, above=above):
                module.zero_grad()
                data.grad = None
                with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                    out = run(data)
                out.backward(above.to(out.dtype))
                if gpu:
                    torch.cuda.synchronize()
                return data.grad

            name = ("scaled_dot_product_attention" if fused else "softmax") + (", compiled" if compiled else "")
            forms[name] = {"fwd": forward, "both": both}
    return forms


def compare(ours: Ours, rivals: dict[str, dict[str, Callable]], tolerance: float) -> None:
    """Raises unless both modules compute the same."""
    out, (_, d_x) = ours.forward(ours.params, ours.x), ours.both(*ours[2:])
    for name, forms in rivals.items():
        for mine, rival in ((out, forms["fwd"]()), (d_x, forms["both"]())):
            rival = rival.detach().float().cpu().permute(0, 2, 3, 1).numpy()
            apart = np.abs(rival - np.asarray(mine, np.float32)).max() / np.abs(rival).max()
            if not apart < tolerance:
                sys.exit(f"PyTorch ({name}) and datar_jax differ by {apart:.1e} of the largest value")


def formulations(settings: dict[str, Setting], batch: int, rounds: int, dtype: type) -> None:
    print("## Our formulations, forced for samples and bias alike: ms forward, forward + backward; MB of temporaries\n")
    print(header(["setting", *METHODS]), flush=True)
    for name, setting in settings.items():
        runs, sizes = [{}, {}], {}
        for method in METHODS:
            module = ours(setting, batch, method, dtype)
            sizes[method] = module.both.lower(*module[2:]).compile().memory_analysis().temp_size_in_bytes / 2**20
            for store, run in zip(runs, module.runs().values()):
                store[method] = run
        times = [interleaved(each, max(2, rounds // 3)) for each in runs]
        cells = [f"{1e3 * times[0][m]:.0f}, {1e3 * times[1][m]:.0f}; {sizes[m]:.0f}" for m in METHODS]
        print(row(name, *cells), flush=True)
    print()


def for_tpu(names: list[str]) -> None:
    """In a process of its own: libtpu reads its environment when jax is imported."""
    if importlib.util.find_spec("libtpu") is None:
        print("libtpu is not installed: pip install -r requirements-bench.txt\n")
        return
    subprocess.run([sys.executable, ROOT / "benchmarks" / "for_tpu.py", "attention", ";".join(names)], check=True)


if __name__ == "__main__":
    main()
