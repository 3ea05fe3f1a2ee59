"""`b2b dry-run`: compile a run for a machine, here or not, and say what it needs (effects)."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from rich.console import Console

from b2b_jax.commands.abstract import stand_in_tokenizer, without_growth
from b2b_jax.commands.compiled_step import (
    CompiledProgram,
    CompiledStep,
    Wanted,
    compile_evaluation,
    compile_step,
    human_size,
    wanted_steps,
)
from b2b_jax.commands.dry_run_tables import (
    collectives_table,
    gathered,
    memory_table,
    run_length,
    speed_table,
    step_bound_of,
)
from b2b_jax.commands.run_card import attention_words
from b2b_jax.commands.topology import Topology, topology_devices
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.report.chips import Chip, chip_of_kind
from b2b_jax.train.config import RunConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import read_meta
from b2b_jax.train.sharding import ShardingError
from b2b_jax.train.writers import Reporter


def dry_run_command(config: RunConfig, *, topology: Topology | None, reporter: Reporter) -> int:
    """Compile every step of a run and print memory, traffic and a bound of its speed.

    Args:
        config: the run; of what it reads only its teacher has to exist.
        topology: the machine; the devices at hand if None.
        reporter: where progress goes.

    Returns:
        0 if it fits, 1 if it does not.

    Raises:
        ConfigError: if there is no compiler for the machine.
        CheckpointError, ConvertError: if the run has a teacher and its folder holds no model.
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
    reporter.note(attention_words(programs.model))
    steps = list(_compiled(programs, wanted_steps(config), chip=chip, reporter=reporter))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    parts: list[CompiledProgram] = [*steps, compile_evaluation(programs, chip=chip)]
    console.print(memory_table(parts, chip))
    for part in parts:
        if part.problem:
            reporter.note(f"{part.name}: {part.problem}")
    if any(part.problem for part in parts):
        reporter.note(_remedy(config, devices, chip=chip, reporter=reporter))
        return 1
    whole = max(steps, key=lambda step: step.flops)
    if whole.collectives:
        console.print(collectives_table(whole))
        reporter.note(gathered(whole, programs))
    if chip is not None:
        bounds = {
            (step.sub, step.taught): step_bound_of(step, chip, devices=len(devices))
            for step in steps
        }
        console.print(speed_table(steps, bounds, config=config, devices=len(devices)))
        reporter.note(run_length(config, bounds))
    return 0


def _programs(config: RunConfig, devices: Sequence[Any]) -> Programs:
    teacher = None
    if config.inherit.steps:
        of_teacher = ModelConfig.from_dict(read_meta(config.inherit.teacher)["model"])
        teacher = build_model(of_teacher, compute=config.compute)
    tokenizer = stand_in_tokenizer(config.model)
    return Programs(without_growth(config), tokenizer, teacher=teacher, devices=devices)


def _compiled(
    programs: Programs, wanted: Sequence[Wanted], *, chip: Chip | None, reporter: Reporter
) -> Iterator[CompiledStep]:
    """One step after the other; says how far it is."""
    for done, step in enumerate(wanted):
        reporter.update(done, len(wanted), text=f"compiling: {step.name}", seconds_left=None)
        yield compile_step(programs, step, chip=chip)
    reporter.update(len(wanted), len(wanted), text="compiled", seconds_left=None)
    reporter.close()


def _remedy(
    config: RunConfig, devices: Sequence[Any], *, chip: Chip | None, reporter: Reporter
) -> str:
    """The first of the usual changes with which every step fits, tried out."""
    tried = []
    for flags, changed in _changes(config, devices):
        try:
            programs = _programs(changed, devices)
            programs.abstract_state()  # shards it
        except ShardingError:
            continue
        reporter.note(f"trying {flags} ...")
        tried.append(flags)
        peak = 0
        # The whole model comes last in a run, and needs most.
        wanted = wanted_steps(changed)[::-1]
        for step in _compiled(programs, wanted, chip=chip, reporter=reporter):
            if step.problem or step.memory is None:
                break
            peak = max(peak, step.memory.peak)
        else:
            evaluation = compile_evaluation(programs, chip=chip)
            if evaluation.problem or evaluation.memory is None:
                continue
            peak = max(peak, evaluation.memory.peak)
            return f"it fits with {flags}: {human_size(peak)} at most"
    return (
        f"none of these made it fit: {'; '.join(tried)}. Take more devices, a smaller batch or "
        "shorter sequences"
    )


def _changes(config: RunConfig, devices: Sequence[Any]) -> Iterator[tuple[str, RunConfig]]:
    """Flags and the run with them: shares of parameters, less to keep, less at a time."""
    base, flags = config, ""
    if config.mesh.sizes[1] == 1 and config.mesh.sizes[2] != -1:
        mesh = dataclasses.replace(config.mesh, data=1, fsdp=-1)
        shared = dataclasses.replace(config, mesh=mesh)
        if _divides(shared, devices):
            base, flags = shared, "--mesh.data 1 --mesh.fsdp -1 "
            yield flags.strip(), base
    for remat in ("dots", "full"):
        if config.compute.remat in ("full", remat):
            continue
        compute = dataclasses.replace(config.compute, remat=remat)
        yield f"{flags}--compute.remat {remat}", dataclasses.replace(base, compute=compute)
    compute = dataclasses.replace(config.compute, remat="full")
    for parts in (2, 4, 8, 16, 32, 64):
        number = config.train.micro_batches * parts
        if config.train.batch_size % number == 0:
            train = dataclasses.replace(config.train, micro_batches=number)
            yield (
                f"{flags}--compute.remat full --train.micro_batches {number}",
                dataclasses.replace(base, compute=compute, train=train),
            )


def _divides(config: RunConfig, devices: Sequence[Any]) -> bool:
    try:
        _programs(config, devices).abstract_state()
    except ShardingError:
        return False
    return True
