"""Estimates training on a TPU slice: compiles the train step for it and applies a roofline model.

Memory and collectives are what the compiler says; times are published rates over counted work, not measurements.
"""

from __future__ import annotations

import math
import re
import time
from typing import Any

import jax
import msgspec
from jax.experimental import topologies
from jax.sharding import Mesh

from datar_jax.config import Config, ConfigError
from datar_jax.models.flops import count_parameters, macs_per_clip
from datar_jax.models.spec import ModelSpec
from datar_jax.training.estimate import hlo_cost as hlo
from datar_jax.training.estimate.roofline import largest_batch, roofline
from datar_jax.training.estimate.topology import Topology
from datar_jax.training.sharding import batch_sharding, make_mesh, state_shardings
from datar_jax.training.train_step import abstract_state, batch_shapes, jit_train_step

# Clips of one epoch: the count in the header of AudioSet's unbalanced train list, and VGGSound's list of 199,176 less
# the 15,446 of its test list.
EPOCHS = {"AudioSet": 2_041_789, "VGGSound": 183_730}
GIB = 2**30


class Compiled(msgspec.Struct, frozen=True):
    """Compiler figures of the step, per chip."""

    arguments: int  # bytes
    temporaries: int
    peak: int
    xla_seconds: float  # XLA's own estimate
    xla_operations: float  # bodies of loops counted once
    work: hlo.Work


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The estimate. Bytes and seconds are per chip and step; None if the program does not fit."""

    topology: str
    chips: int
    hosts: int
    batch: int  # clips on a chip
    global_batch: int
    data: int
    fsdp: int
    seconds: float  # of a clip
    mels: int
    frames: int
    classes: int
    dtype: str
    remat: bool
    parameters: int
    macs_per_clip: int
    operations: int  # of the model: 6 times the multiply-accumulates of its clips
    clip_bytes: int  # that a host sends to its chips
    compile_seconds: float
    usable_bytes: int
    needed_bytes: int  # at the peak, or what the compiler asked for in vain
    fits: bool
    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    largest_batch: int | None = None
    largest_compiles: int = 1  # that the line through `largest_batch` rests on
    xla_seconds: float | None = None
    xla_operations: float | None = None
    memory_bytes: int | None = None
    collectives: list[dict[str, Any]] = []
    sent_bytes: float | None = None
    unread_loops: int | None = None
    compute_seconds: float | None = None
    memory_seconds: float | None = None
    link_seconds: float | None = None
    step_seconds: float | None = None
    bound: str | None = None
    utilisation: float | None = None  # model operations over peak
    clips_per_second: float | None = None  # of the whole slice
    epoch_hours: dict[str, float] = {}
    host_clips_per_second: float | None = None
    host_megabytes_per_second: float | None = None
    assumptions: list[str] = []


def make_plan(config: Config, place: Topology, batch: int, seconds: float, classes: int, largest: bool = False) -> Plan:
    """Compiles the train step for a slice and estimates its cost.

    Args:
      config: model, audio, mesh and optimizer; its batch size is not used.
      place: the slice.
      batch: clips on each chip.
      seconds: of a clip.
      classes: width of the head.
      largest: compile a second time, with twice the batch, for the largest batch that fits.

    Raises:
      ConfigError: settings that do not fit each other or the slice.
    """
    usable = int(place.chip.memory * GIB)
    chips = devices(place)
    mesh = make_mesh(config.mesh, chips)
    spec = _model_spec(config, place, batch, seconds, classes)
    macs = macs_per_clip(spec.config.model, classes, config.audio.n_mels, spec.frames)
    hosts = len({chip.process_index for chip in chips})
    state = abstract_state(spec)
    state_bytes = _bytes_on_chip(state, mesh)
    start = time.perf_counter()
    found = _compiled(spec, mesh)
    plan = Plan(
        topology=place.name,
        chips=place.chips,
        hosts=hosts,
        batch=batch,
        global_batch=batch * place.chips,
        data=mesh.shape["data"],
        fsdp=mesh.shape["fsdp"],
        seconds=seconds,
        mels=config.audio.n_mels,
        frames=spec.frames,
        classes=classes,
        dtype=config.model.dtype,
        remat=config.model.remat,
        parameters=count_parameters(state.params),
        macs_per_clip=macs,
        operations=6 * macs * batch,
        clip_bytes=sum(each.size * each.dtype.itemsize for each in batch_shapes(spec, 1).values()),
        compile_seconds=time.perf_counter() - start,
        usable_bytes=usable,
        needed_bytes=found if isinstance(found, int) else found.peak,
        fits=not isinstance(found, int),
    )
    if isinstance(found, int):
        return plan
    other = (0, float(state_bytes))
    if largest:
        twice = _compiled(_model_spec(config, place, 2 * batch, seconds, classes), mesh)
        other = (2 * batch, float(twice if isinstance(twice, int) else twice.peak))
    return _timed(plan, place, found, largest_batch(usable, (batch, found.peak), other), 2 if largest else 1)


def _timed(plan: Plan, place: Topology, found: Compiled, largest: int, compiles: int) -> Plan:
    """The estimate with figures of the compiled program."""
    sent = sum(each.sent * count for each, count in found.work.collectives.items())
    executed = plan.operations * 8 / 6 if plan.remat else plan.operations
    times = roofline(place.chip, place.link_rate, executed, found.work.memory, sent)
    rate = plan.global_batch / times.step
    groups = sorted({(each.kind, each.devices) for each in found.work.collectives})
    of_group = {
        group: [(each, n) for each, n in found.work.collectives.items() if (each.kind, each.devices) == group]
        for group in groups
    }
    return msgspec.structs.replace(
        plan,
        argument_bytes=found.arguments,
        temporary_bytes=found.temporaries,
        largest_batch=largest,
        largest_compiles=compiles,
        xla_seconds=found.xla_seconds,
        xla_operations=found.xla_operations,
        memory_bytes=found.work.memory,
        collectives=[
            {
                "kind": kind,
                "devices": devices,
                "count": sum(n for _, n in of_group[kind, devices]),
                "bytes": sum(each.bytes * n for each, n in of_group[kind, devices]),
                "sent_bytes": sum(each.sent * n for each, n in of_group[kind, devices]),
            }
            for kind, devices in groups
        ],
        sent_bytes=sent,
        unread_loops=found.work.unread,
        compute_seconds=times.compute,
        memory_seconds=times.memory,
        link_seconds=times.links,
        step_seconds=times.step,
        bound=times.bound,
        utilisation=plan.operations / place.chip.flops / times.step,
        clips_per_second=rate,
        epoch_hours={name: clips / rate / 3600 for name, clips in EPOCHS.items()},
        host_clips_per_second=rate / plan.hosts,
        host_megabytes_per_second=rate / plan.hosts * plan.clip_bytes / 1e6,
        assumptions=_assumptions(plan, place, compiles),
    )


def _assumptions(plan: Plan, place: Topology, compiles: int) -> list[str]:
    chip = place.chip
    work = (
        "8 operations a multiply-accumulate, as the forward pass runs twice"
        if plan.remat
        else "6 operations a multiply-accumulate"
    )
    peak = "one bfloat16 pass a product, also of float32 numbers" if plan.dtype == "float32" else "bfloat16"
    line = {
        1: "from one compile: all but the state grows with the batch (gradients too, so it is low); --largest compiles "
        "twice the batch as well",
        2: "a line through two compiles, at this batch and at twice as many",
    }
    shared = f"{place.link_rate / 1e9:g} of {chip.link_rate / 1e9:g} GB/s: the links of the chip with fewest neighbours"
    return [
        f"compute: matrix products alone, {work}; peak {chip.flops / 1e12:g} TFLOP/s, {peak}; nothing element-wise",
        f"memory: {chip.memory_rate / 1e9:g} GB/s; operands and results outside fusions travel once, whole: from above",
        "  but what a product reads again in tiles counts once, and what XLA keeps on the chip not at all",
        f"links: rings, all-reduce 2(n-1)/n of its bytes, others (n-1)/n; {shared}; no latency",
        "step: the longer of compute and memory, then links: none overlapped is the pessimistic bound",
        f"largest batch: {line[compiles]}",
        "input: hosts keep up; a spectrogram travels in float32, with a front end on the device its samples in 16 bits",
    ]


def devices(place: Topology) -> list[Any]:
    """The chips of a slice, described by libtpu."""
    options: dict[str, Any] = {"chip_config_name": place.chip.config} if place.chip.config else {}
    if place.chips == 1:  # hosts have 2x2 chips by default
        options["chips_per_host_bounds"] = (1, 1, 1)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=place.name, **options).devices)


def _model_spec(config: Config, place: Topology, batch: int, seconds: float, classes: int) -> ModelSpec:
    if batch % config.train.grad_accum_steps:
        raise ConfigError(
            f"--batch={batch}: train.grad_accum_steps={config.train.grad_accum_steps} does not divide it; "
            "give a multiple of that"
        )
    frames = config.audio.frames(seconds)
    train = msgspec.structs.replace(config.train, batch_size=batch * place.chips)
    model = msgspec.structs.replace(config.model, num_classes=classes)
    return ModelSpec(msgspec.structs.replace(config, train=train, model=model), classes, frames, steps=1000)


def _bytes_on_chip(tree: Any, mesh: Mesh) -> int:
    """Bytes of arrays sharded by `state_shardings`, without tile padding."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(state_shardings(tree, mesh))
    return sum(math.prod(each.shard_shape(x.shape)) * x.dtype.itemsize for x, each in zip(leaves, places))


def _compiled(spec: ModelSpec, mesh: Mesh) -> Compiled | int:
    """The program's figures, or the bytes it would have needed."""
    state = abstract_state(spec)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )
    data = {
        name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=batch_sharding(mesh))
        for name, each in batch_shapes(spec, spec.config.train.batch_size).items()
    }
    try:
        with jax.set_mesh(mesh):
            program: Any = jit_train_step(spec, mesh)
            program = program.lower(state, data).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return needed(str(error))
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        cost.get("optimal_seconds", float("nan")),
        cost.get("flops", float("nan")),
        hlo.work(program.as_text()),
    )


def needed(refusal: str) -> int:
    """Bytes that a program needs, parsed from the compiler's out-of-memory error.

    Raises:
      ValueError: the refusal names no size.
    """
    found = re.search(r"(?:Used|required for HLO temporaries) \(?([\d.]+)([KMG])", refusal)
    if found is None:
        raise ValueError(f"a refusal without a size: {refusal[:300]}")
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]])
