"""`b2b dry-run`: compile a run for a machine, here or not, and say what it needs (effects)."""

import dataclasses
import math
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console

from b2b_jax.commands.abstract import abstract_hints, stand_in_tokenizer
from b2b_jax.commands.topology import Topology, topology_devices
from b2b_jax.commands.train import price
from b2b_jax.models import ConfigError, ModelConfig, build_model
from b2b_jax.report.bounds import Bound, Memory, step_bound
from b2b_jax.report.chips import Chip, chip_of_kind
from b2b_jax.report.collectives import Collective, read_collectives
from b2b_jax.report.tables import render_rich
from b2b_jax.train.config import RunConfig
from b2b_jax.train.live import is_live, is_stacked
from b2b_jax.train.meter import Accounting
from b2b_jax.train.programs import Programs
from b2b_jax.train.schedule import Phase
from b2b_jax.train.sharding import MeshConfig, ShardingError
from b2b_jax.train.stages import SubModel
from b2b_jax.train.writers import Reporter, duration
from b2b_jax.tree import flatten

USABLE = 0.95
"""Of a device's memory; the rest belongs to the runtime."""


@dataclass(frozen=True)
class CompiledStep:
    """A step of a sub-model, compiled.

    Attributes:
        name: what runs.
        sub: which layers.
        taught: whether a teacher is run as well.
        memory: on one device; None where the compiler found that it cannot be.
        touched: bytes of parameters and moments on one device that the step reads or writes.
        collectives: between devices.
        flops: exact count over all devices.
        seconds: of compiling.
        problem: why it does not fit, "" if it does.
    """

    name: str
    sub: SubModel
    taught: bool
    memory: Memory | None
    touched: int
    collectives: tuple[Collective, ...]
    flops: float
    seconds: float
    problem: str = ""


def dry_run_command(config: RunConfig, *, topology: Topology | None, reporter: Reporter) -> int:
    """Compile every step of a run and print memory, traffic and a bound of its speed.

    Args:
        config: the run; neither its data nor its folders need to exist.
        topology: the machine; the devices at hand if None.
        reporter: where progress goes.

    Returns:
        0 if it fits, 1 if it does not.

    Raises:
        ConfigError: if there is no compiler for the machine.
        ShardingError: if the mesh does not fit the machine or the model.
    """
    devices = topology_devices(topology) if topology else jax.devices()
    chip = topology.chip if topology else chip_of_kind(devices[0].device_kind)
    name = topology.name if topology else devices[0].device_kind
    programs = _programs(config, devices)
    programs.abstract_state()  # refuses a mesh that does not divide, before anything is said
    parameters = sum(map(math.prod, programs.model.shapes.values()))
    mesh = ", ".join(f"{axis} {size}" for axis, size in programs.mesh.shape.items())
    reporter.note(
        f"model: {config.model.family}, {config.model.num_hidden_layers} layers, "
        f"{config.model.hidden_size} wide, {parameters / 1e6:,.1f} M parameters"
    )
    reporter.note(f"mesh: {mesh} on {len(devices)} x {name}")
    steps = [_compiled(programs, *which, chip=chip) for which in _wanted(programs, reporter)]
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(_memory_table(steps, chip))
    for step in steps:
        if step.problem:
            reporter.note(f"{step.name}: {step.problem}")
    if any(step.problem for step in steps):
        reporter.note(_remedy(config, devices, chip=chip, reporter=reporter))
        return 1
    whole = max(steps, key=lambda step: step.flops)
    if whole.collectives:
        console.print(_collectives_table(whole))
        reporter.note(_gathered(whole, programs))
    if chip is not None:
        bounds = {(step.sub, step.taught): _bound(step, chip, len(devices)) for step in steps}
        console.print(_speed_table(steps, bounds, config, len(devices)))
        reporter.note(_length(config, bounds))
    return 0


def _programs(config: RunConfig, devices: Sequence[Any]) -> Programs:
    teacher = None
    if config.inherit.steps:
        from b2b_jax.train.saved import read_meta

        of_teacher = ModelConfig.from_dict(read_meta(config.inherit.teacher)["model"])
        teacher = build_model(of_teacher, compute=config.compute)
    tokenizer = stand_in_tokenizer(config.model)
    return Programs(config, tokenizer, teacher=teacher, devices=devices)


def _wanted(programs: Programs, reporter: Reporter) -> Iterator[tuple[str, SubModel, Phase]]:
    """Every distinct step of a run, in its order; says how far it is."""
    found: dict[tuple[SubModel, bool], tuple[str, SubModel, Phase]] = {}
    for phase in programs.config.schedule.phases:
        for sub in phase.subs if phase.steps else ():
            whole = sub.depth == sub.live_layers == programs.config.model.num_hidden_layers
            name = "whole model" if whole else f"bottom {sub.depth}, top {sub.live_layers} trained"
            if phase.needs_teacher:
                name += ", taught"
            found.setdefault((sub, phase.needs_teacher), (name, sub, phase))
    for done, which in enumerate(found.values()):
        reporter.update(done, len(found), text=f"compiling: {which[0]}", seconds_left=None)
        yield which
    reporter.update(len(found), len(found), text="compiled", seconds_left=None)
    reporter.close()


def _compiled(
    programs: Programs, name: str, sub: SubModel, phase: Phase, *, chip: Chip | None
) -> CompiledStep:
    config = programs.config
    cost = price(config, teacher=None if not phase.needs_teacher else _teacher(programs))
    flops = _step_flops(cost, sub, phase)
    before = time.monotonic()
    try:
        compiled = programs.lower_train_step(
            sub,
            programs.abstract_state(),
            programs.abstract_batch(),
            hints=abstract_hints(programs, phase),
        ).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise ConfigError(
                f"{name}: the compiler failed: {str(error).splitlines()[0]}"
            ) from error
        spent = time.monotonic() - before
        problem = _too_large(str(error))
        return CompiledStep(name, sub, phase.needs_teacher, None, 0, (), flops, spent, problem)
    spent = time.monotonic() - before
    found: Any = compiled.memory_analysis()
    state = programs.abstract_state()
    work = found.temp_size_in_bytes
    peak = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + work
        + found.generated_code_size_in_bytes
    )
    memory = Memory(_share(state.params), _share(state.opt_state), work, peak)
    limit = math.inf if chip is None else USABLE * chip.memory
    problem = "" if peak <= limit else f"needs {_size(peak)} of {_size(limit)}"
    collectives = read_collectives(compiled.as_text() or "")
    return CompiledStep(
        name,
        sub,
        phase.needs_teacher,
        memory,
        _touched(programs, sub),
        collectives,
        flops,
        spent,
        problem,
    )


def _teacher(programs: Programs) -> ModelConfig | None:
    return None if programs.inheritance is None else programs.inheritance.teacher.cfg


def _step_flops(cost: Accounting, sub: SubModel, phase: Phase) -> float:
    taught = cost.teacher_cost.exact if phase.needs_teacher and cost.teacher_cost else 0.0
    return cost.step_cost(sub).exact + taught


def _share(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _touched(programs: Programs, sub: SubModel) -> int:
    """Bytes of parameters that run, and of parameters and moments that are trained."""
    table, state = programs.model.axes, programs.abstract_state()
    layers = programs.config.model.num_hidden_layers
    trained = runs = 0.0
    for path, leaf in flatten(state.params).items():
        share, stacked = _share(leaf), is_stacked(table[path])
        if is_live(path, sub, table[path]):
            trained += share * (sub.live_layers / layers if stacked else 1)
        runs += share * (sub.depth / layers if stacked else 1)
    moments = _share(state.opt_state) / max(_share(state.params), 1)
    return round(runs + trained * (1 + 2 * moments))


def _size(number: float) -> str:
    """Bytes as a reader takes them in."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def _too_large(words: str) -> str:
    """What a compiler says when memory does not suffice, in one line."""
    for pattern in (
        r"Used ([\d.]+[KMG]) of ([\d.]+[KMG]) hbm",
        r"\(([\d.]+[KMG])\) exceeds available HBM \(([\d.]+[KMG])\)",
    ):
        sizes = re.search(pattern, words)
        if sizes:
            return f"does not fit: needs {sizes[1]}iB of {sizes[2]}iB"
    return f"does not fit: {words.splitlines()[0]}"


def _remedy(
    config: RunConfig, devices: Sequence[Any], *, chip: Chip | None, reporter: Reporter
) -> str:
    """The first of the usual changes with which every step fits, tried out."""
    tried = []
    for flags, changed in _changes(config):
        try:
            programs = _programs(changed, devices)
            programs.abstract_state()  # shards it
        except ShardingError:
            continue
        reporter.note(f"trying {flags} ...")
        tried.append(flags)
        steps = [_compiled(programs, *which, chip=chip) for which in _wanted(programs, reporter)]
        if not any(step.problem for step in steps):
            peak = max(step.memory.peak for step in steps if step.memory)
            return f"it fits with {flags}: {_size(peak)} at most"
    return (
        f"none of these made it fit: {'; '.join(tried)}. Take more devices, a smaller batch or "
        "shorter sequences"
    )


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    shared, flags = config, ""
    if config.mesh.sizes[1] == 1:
        shared = dataclasses.replace(config, mesh=MeshConfig(preset="fsdp"))
        flags = "--mesh.preset fsdp "
        yield flags.strip(), shared
    for remat in ("dots", "full"):
        if config.compute.remat in ("full", remat):
            continue
        compute = dataclasses.replace(config.compute, remat=remat)
        yield f"{flags}--compute.remat {remat}", dataclasses.replace(shared, compute=compute)
    compute = dataclasses.replace(config.compute, remat="full")
    for parts in (2, 4, 8):
        number = config.train.micro_batches * parts
        if config.train.batch_size % number == 0:
            train = dataclasses.replace(config.train, micro_batches=number)
            yield (
                f"{flags}--compute.remat full --train.micro_batches {number}",
                dataclasses.replace(shared, compute=compute, train=train),
            )


def _bound(step: CompiledStep, chip: Chip, devices: int) -> Bound:
    assert step.memory is not None
    return step_bound(
        chip,
        flops=step.flops / devices,
        moved=step.touched + 2 * step.memory.work,
        collectives=step.collectives,
    )


def _memory_table(steps: Sequence[CompiledStep], chip: Chip | None) -> Any:
    limit = "" if chip is None else f", of {_size(chip.memory)}"
    rows = []
    for step in steps:
        cells = ["-"] * 4
        if step.memory is not None:
            memory = step.memory
            sizes = (memory.parameters, memory.optimizer, memory.work, memory.peak)
            cells = [_size(size) for size in sizes]
        rows.append([step.name, f"{step.seconds:.0f}", *cells, "no" if step.problem else "yes"])
    headings = ["step", "compiled in s", "parameters", "optimizer", "work space", "peak", "fits"]
    return render_rich(f"Memory on one device{limit}", headings, rows=rows)


def _collectives_table(step: CompiledStep) -> Any:
    rows = []
    for kind, group in sorted({(one.kind, one.group) for one in step.collectives}):
        those = [one for one in step.collectives if (one.kind, one.group) == (kind, group)]
        largest = max(those, key=lambda one: one.result_bytes)
        rows.append(
            [
                f"{kind} of {group}",
                str(sum(one.times for one in those)),
                f"{sum(one.sent_bytes for one in those) / 1e6:,.1f}",
                largest.shapes[-1] if largest.shapes else "-",
            ]
        )
    headings = ["exchange", "times", "MB sent by a device", "largest result"]
    return render_rich(f"{step.name}: exchanges of one step", headings, rows=rows)


def _gathered(step: CompiledStep, programs: Programs) -> str:
    """How often parameters are collected, which their shares do not need more than twice."""
    width = 2 if programs.config.compute.dtype == "bfloat16" else 4
    tensor = programs.mesh.shape["tensor"]
    whole = width * sum(map(math.prod, programs.model.shapes.values())) / tensor
    got = sum(one.result_bytes * one.times for one in step.collectives if one.kind == "all-gather")
    if programs.mesh.shape["fsdp"] == 1:
        return "no parameter has to be gathered: fsdp is 1"
    return (
        f"all-gathers bring {got / 1e6:,.1f} MB, {got / whole:.2f} times all parameters in "
        f"{programs.config.compute.dtype}; sharded parameters need one for the forward pass and "
        "one for the backward"
    )


def _speed_table(
    steps: Sequence[CompiledStep],
    bounds: dict[tuple[SubModel, bool], Bound],
    config: RunConfig,
    devices: int,
) -> Any:
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


def _length(config: RunConfig, bounds: dict[tuple[SubModel, bool], Bound]) -> str:
    seconds = sum(
        phase.steps
        * statistics.fmean(bounds[sub, phase.needs_teacher].seconds for sub in phase.subs)
        for phase in config.schedule.phases
        if phase.steps
    )
    told = f"{seconds / 86400:.2f} days" if seconds > 86400 else duration(seconds)
    return (
        f"run: {config.train.steps:,} steps take at least {told}; what a step reaches of its bound "
        "is to be measured"
    )
