"""What `b2b dry-run` prints, as tables and lines."""

import math
import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table

from b2b_jax.commands.compiled_step import (
    GPU_SHARE,
    CompiledProgram,
    CompiledStep,
    gpu_share,
    human_size,
    usable_memory,
)
from b2b_jax.report.bounds import Bound, step_bound
from b2b_jax.report.chips import Chip
from b2b_jax.report.tables import render_rich
from b2b_jax.train.config import RunConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.stages import SubModel
from b2b_jax.train.writers import duration

Bounds = Mapping[tuple[SubModel, bool], Bound]
"""By sub-model, and whether a teacher is run as well."""


def step_bound_of(step: CompiledStep, chip: Chip, *, devices: int) -> Bound:
    """The least that a compiled step takes."""
    assert step.memory is not None
    return step_bound(
        chip,
        flops=step.flops / devices,
        moved=step.touched + 2 * step.memory.work,
        collectives=step.collectives,
    )


def memory_table(programs: Sequence[CompiledProgram], chip: Chip | None) -> Table:
    """Bytes on one device, program by program."""
    limit = "" if chip is None else f", usable {human_size(usable_memory(chip))}"
    if chip is not None and chip.is_gpu:
        limit += f" ({GPU_SHARE} {gpu_share():g}; launchers set 0.92)"
    rows = []
    for one in programs:
        cells = ["-"] * 4
        if one.memory is not None:
            memory = one.memory
            sizes = (memory.parameters, memory.optimizer, memory.work, memory.peak)
            cells = [human_size(size) for size in sizes]
        rows.append([one.name, f"{one.seconds:.0f}", *cells, "no" if one.problem else "yes"])
    headings = ["program", "compiled in s", "parameters", "optimizer", "work space", "peak", "fits"]
    return render_rich(f"Memory on one device{limit}", headings, rows=rows)


def collectives_table(step: CompiledStep) -> Table:
    """Exchanges between devices, by kind and size of group."""
    rows = []
    for kind, group in sorted({(one.kind, one.group) for one in step.collectives}):
        those = [one for one in step.collectives if (one.kind, one.group) == (kind, group)]
        largest = max(those, key=lambda one: one.result_bytes)
        rows.append(
            [
                f"{kind} of {group}",
                str(sum(one.times for one in those)),
                f"{sum(one.sent_bytes for one in those) / 1e6:,.1f}",
                largest.largest_shape,
            ]
        )
    headings = ["exchange", "times", "MB sent by a device", "largest result"]
    return render_rich(f"{step.name}: exchanges of one step", headings, rows=rows)


def gathered(step: CompiledStep, programs: Programs) -> str:
    """How often parameters are collected, which their shares do not need more than twice."""
    shares, tensor = programs.mesh.shape["fsdp"], programs.mesh.shape["tensor"]
    if shares == 1:
        return "no parameter has to be gathered: fsdp is 1"
    width = 2 if programs.config.compute.dtype == "bfloat16" else 4
    parts = programs.config.train.micro_batches
    whole = parts * width * sum(map(math.prod, programs.model.shapes.values())) / tensor
    got = sum(
        one.result_bytes * one.times
        for one in step.collectives
        if one.kind == "all-gather" and one.group == shares  # others bring activations
    )
    of_each = "" if parts == 1 else f" for each of {parts} micro-batches"
    passed = sum(one.sent_bytes for one in step.collectives if one.kind == "collective-permute")
    if tensor == shares:
        return (
            f"all-gathers of {shares} devices bring {got / 1e6:,.1f} MB; how much of that is "
            f"parameters cannot be told, since fsdp and tensor are both {shares}"
        )
    told = (
        f"all-gathers bring {got / 1e6:,.1f} MB, {got / whole:.2f} times all parameters in "
        f"{programs.config.compute.dtype}{of_each}; sharded parameters need one for the forward "
        "pass and one for the backward"
    )
    reduced = sum(one.sent_bytes for one in step.collectives if one.kind == "all-reduce")
    if not passed and got < 0.5 * whole < reduced:
        return (
            f"all-gathers bring {got / whole:.2f} times all parameters and all-reduces send "
            f"{reduced / 1e6:,.1f} MB, {reduced / whole:.2f} times: the compiler collects "
            "parameters by all-reduces, as it does along three dimensions of a torus and where "
            "shares are a few columns. With --mesh.data -1 and a smaller --mesh.fsdp, of one or "
            "two dimensions, it gathers, and sends less"
        )
    if not passed:
        return told
    return (
        f"{told}. The collective permutations send {passed / 1e6:,.1f} MB, {passed / whole:.2f} "
        "times all parameters: TPUs pass shares of weights and gradients on while they multiply"
    )


def speed_table(
    steps: Sequence[CompiledStep],
    bounds: Bounds,
    *,
    config: RunConfig,
    devices: int,
) -> Table:
    """FLOPs and bounds, step by step."""
    tokens = config.train.batch_size * config.train.sequence_length
    rows = []
    for step in steps:
        bound = bounds[step.sub, step.taught]
        rows.append(
            [
                step.name,
                f"{step.flops:.3g}",
                f"{step.flops / devices:.3g}",
                *(f"{1e3 * part:.2f}" for part in (bound.compute, bound.memory, bound.links)),
                bound.binds,
                f"{tokens / bound.seconds:,.0f}",
            ]
        )
    headings = ["step", "FLOPs", "on a device", "compute ms", "memory ms", "links ms"]
    headings += ["binds", "tokens/s at most"]
    return render_rich("The least that a step takes", headings, rows=rows)


def run_length(config: RunConfig, bounds: Bounds) -> str:
    """How long the whole run takes at least."""
    seconds = sum(
        phase.steps
        * statistics.fmean(bounds[sub, phase.needs_teacher].seconds for sub in phase.subs)
        for phase in config.schedule.phases
        if phase.steps
    )
    told = f"{seconds / 86400:.2f} days" if seconds > 86400 else duration(seconds)
    again = (
        ""
        if config.compute.remat == "none"
        else f", and what is computed again (compute.remat {config.compute.remat}) is not counted"
    )
    return (
        f"run: {config.train.steps:,} steps take at least {told}; what a step reaches of its bound "
        f"is to be measured{again}"
    )
