"""The estimate as text for a terminal."""

from __future__ import annotations

from datar_jax.training.estimate.estimate import EPOCHS, GIB, Plan


def page(plan: Plan) -> str:
    """The estimate as a page of text."""
    head = [
        (
            "slice",
            f"{plan.topology}: {plan.chips} chips on {plan.hosts} hosts, mesh {plan.data} data x {plan.fsdp} fsdp",
        ),
        ("batch", f"{plan.batch} clips on a chip, {plan.global_batch:,} in all"),
        ("clip", f"{plan.seconds:g} s: {plan.mels} mels x {plan.frames} frames, {plan.classes} classes"),
        (
            "model",
            f"{plan.parameters / 1e6:.2f} M parameters, {plan.macs_per_clip / 1e9:.3g} G multiply-accumulates a clip, "
            f"{plan.dtype}{', recomputed' if plan.remat else ''}",
        ),
    ]
    needs = f"{_gib(plan.needed_bytes)} of {_gib(plan.usable_bytes)} GiB"
    if not plan.fits:
        advice = "give a smaller --batch" + ("" if plan.remat else ", or --config.model.remat=true")
        return _lines([*head, ("memory", f"needs {needs}: does not fit; {advice}")])
    assert plan.argument_bytes is not None and plan.temporary_bytes is not None and plan.step_seconds is not None
    assert plan.xla_seconds is not None and plan.xla_operations is not None and plan.memory_bytes is not None
    assert plan.compute_seconds is not None and plan.memory_seconds is not None and plan.link_seconds is not None
    assert plan.utilisation is not None and plan.clips_per_second is not None and plan.sent_bytes is not None
    memory = f"arguments {_gib(plan.argument_bytes)}, temporaries {_gib(plan.temporary_bytes)}, peak {needs}: fits"
    rows = [*head, ("memory", memory), ("", f"largest batch that fits: about {plan.largest_batch} clips on a chip")]
    rows += [
        ("per step", f"{plan.operations / 1e12:.4g} T operations of the model on a chip"),
        ("", f"{plan.memory_bytes / 1e9:.3g} GB to and from memory, {_mb(plan.sent_bytes)} MB sent to other chips"),
    ]
    for each in plan.collectives:
        count, kind = each["count"], each["kind"]
        rows.append(("", f"{count} {kind} among {each['devices']} chips: {_mb(each['bytes'])} MB"))
    if plan.unread_loops:
        rows.append(("", f"{plan.unread_loops} loops whose turns could not be read count once"))
    rows += [
        (
            "time",
            f"{_ms(plan.step_seconds)} ms a step: compute {_ms(plan.compute_seconds)}, memory "
            f"{_ms(plan.memory_seconds)}, links {_ms(plan.link_seconds)}; bound by {plan.bound}",
        ),
        ("", f"model-FLOP utilisation {100 * plan.utilisation:.1f} %"),
        (
            "",
            f"XLA's own: {_ms(plan.xla_seconds)} ms, {plan.xla_operations / 1e12:.4g} T operations "
            "(a loop's body counted once; can be negative)",
        ),
        ("rate", f"{plan.clips_per_second:,.0f} clips/s on the whole slice"),
    ]
    rows += [
        ("", f"{name}: {_span(plan.epoch_hours[name])} an epoch of {clips:,} clips") for name, clips in EPOCHS.items()
    ]
    each_host = f"{plan.chips // plan.hosts} chips a host"
    feed = f"{plan.host_clips_per_second:,.0f} clips/s, {plan.host_megabytes_per_second:,.0f} MB/s"
    rows += [
        ("input", f"each host ({each_host}): {feed}"),
        ("compiled", f"in {plan.compile_seconds:.0f} s; nothing ran"),
    ]
    rows += [("assumed" if i == 0 else "", text) for i, text in enumerate(plan.assumptions)]
    return _lines(rows)


def scaling(plans: list[Plan]) -> str:
    """Weak scaling: the same batch on every chip; efficiency is clips a second and chip against the first that fits."""
    table = ["| slice | chips | step, ms | clips/s | efficiency | bound |", "|---|---|---|---|---|---|"]
    first = next((plan.clips_per_second / plan.chips for plan in plans if plan.clips_per_second), 0.0)
    for plan in plans:
        if plan.step_seconds is None or plan.clips_per_second is None:
            needs = f"{_gib(plan.needed_bytes)} of {_gib(plan.usable_bytes)} GiB"
            table.append(f"| {plan.topology} | {plan.chips} | does not fit: needs {needs} | | | |")
            continue
        efficiency = plan.clips_per_second / plan.chips / first
        table.append(
            f"| {plan.topology} | {plan.chips} | {_ms(plan.step_seconds)} | {plan.clips_per_second:,.0f} | "
            f"{100 * efficiency:.1f} % | {plan.bound} |"
        )
    return "\n".join(table)


def _lines(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _span(hours: float) -> str:
    size, unit = next((x for x in ((1.0, "h"), (1 / 60, "min")) if hours >= x[0]), (1 / 3600, "s"))
    return f"{hours / size:.3g} {unit}"
