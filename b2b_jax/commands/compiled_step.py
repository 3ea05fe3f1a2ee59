"""A training step compiled for a machine, and what it needs there (effects: compilers)."""

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from b2b_jax.commands.abstract import abstract_hints
from b2b_jax.commands.train import price
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.report.bounds import Memory
from b2b_jax.report.chips import Chip
from b2b_jax.report.collectives import Collective, read_collectives
from b2b_jax.train.config import RunConfig
from b2b_jax.train.live import is_live, is_stacked
from b2b_jax.train.programs import Programs
from b2b_jax.train.schedule import Phase
from b2b_jax.train.stages import SubModel
from b2b_jax.train.state import TrainState
from b2b_jax.tree import flatten

USABLE = 0.95
"""Of a TPU's memory; the rest belongs to the runtime."""
GPU_SHARE, USABLE_OF_A_GPU = "XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75
"""What JAX takes of a GPU's memory, where that variable does not say otherwise."""


@dataclass(frozen=True)
class CompiledProgram:
    """What a run puts on its devices, compiled.

    Attributes:
        name: what runs.
        memory: on one device; None where the compiler found that it cannot be.
        collectives: between devices.
        seconds: of compiling.
        problem: why it does not fit, "" if it does.
    """

    name: str
    memory: Memory | None
    collectives: tuple[Collective, ...]
    seconds: float
    problem: str


@dataclass(frozen=True)
class CompiledStep(CompiledProgram):
    """A training step of a sub-model, compiled.

    Attributes:
        sub: which layers.
        taught: whether a teacher is run as well.
        touched: bytes of parameters and moments on one device that the step reads or writes.
        flops: exact count over all devices.
    """

    sub: SubModel
    taught: bool
    touched: int
    flops: float


@dataclass(frozen=True)
class Wanted:
    """A step that a run takes.

    Attributes:
        name: what to call it.
        sub: which layers run and are trained.
        phase: whose step it is.
    """

    name: str
    sub: SubModel
    phase: Phase


def wanted_steps(config: RunConfig) -> list[Wanted]:
    """Every distinct step of a run, in its order."""
    found: dict[tuple[SubModel, bool], Wanted] = {}
    for phase in config.schedule.phases:
        for sub in phase.subs if phase.steps else ():
            whole = sub.depth == sub.live_layers == config.model.num_hidden_layers
            name = "whole model" if whole else f"bottom {sub.depth}, top {sub.live_layers} trained"
            if phase.needs_teacher:
                name += ", taught"
            found.setdefault((sub, phase.needs_teacher), Wanted(name, sub, phase))
    return list(found.values())


def usable_memory(chip: Chip | None) -> float:
    """Bytes of a device that a run may fill; infinite where the device is not known."""
    if chip is None:
        return math.inf
    return (gpu_share() if chip.is_gpu else USABLE) * chip.memory


def gpu_share() -> float:
    """What of a GPU's memory JAX takes, by the environment or by default."""
    return float(os.environ.get(GPU_SHARE, USABLE_OF_A_GPU))


def compile_step(programs: Programs, wanted: Wanted, *, chip: Chip | None) -> CompiledStep:
    """Compile a step; that it does not fit is a result, no error.

    Args:
        programs: of the run, on the devices to compile for.
        wanted: which step.
        chip: what the devices are, if known.

    Raises:
        ConfigError: if the compiler fails for another reason than memory.
    """
    sub, phase, state = wanted.sub, wanted.phase, programs.abstract_state()
    taught = phase.needs_teacher
    cost = price(programs.config, teacher=_teacher(programs) if taught else None)
    program = _compile(
        wanted.name,
        lambda: programs.lower_train_step(
            sub, state, programs.abstract_batch(), hints=abstract_hints(programs, phase)
        ),
        state=state,
        beside=0,
        chip=chip,
    )
    return CompiledStep(
        **vars(program),
        sub=sub,
        taught=taught,
        touched=_touched(programs, sub, state),
        flops=cost.step_cost(sub).exact + (cost.teacher_cost.exact if cost.teacher_cost else 0.0),
    )


def compile_evaluation(programs: Programs, *, chip: Chip | None) -> CompiledProgram:
    """Compile the evaluation, beside which moments and a teacher's parameters stay in memory.

    Of the phases the one that evaluates most depths is taken.

    Args:
        programs: of the run, on the devices to compile for.
        chip: what the devices are, if known.

    Raises:
        ConfigError: if the compiler fails for another reason than memory.
    """
    state = programs.abstract_state()
    phases = [phase for phase in programs.config.schedule.phases if phase.steps]
    most = max(phases, key=lambda phase: len(phase.subs))
    depths = tuple(sub.depth for sub in most.subs)
    beside = _share(state.opt_state)
    if _teacher(programs) is not None:
        beside += _share(abstract_hints(programs, next(p for p in phases if p.needs_teacher)))
    index = jax.ShapeDtypeStruct((), np.int32)
    return _compile(
        "evaluation",
        lambda: programs.eval_step(depths).lower(state.params, programs.abstract_batch(), index),
        state=state,
        beside=beside,
        chip=chip,
    )


def _compile(
    name: str,
    lower: Callable[[], jax.stages.Lowered],
    *,
    state: TrainState,
    beside: int,
    chip: Chip | None,
) -> CompiledProgram:
    """Compile a program.

    Args:
        name: what to call it.
        lower: traces it.
        state: of the run, abstract.
        beside: bytes on a device that are no argument of it.
        chip: what the devices are, if known.
    """
    before = time.monotonic()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise ConfigError(
                f"{name}: the compiler failed: {str(error).splitlines()[0]}"
            ) from error
        return CompiledProgram(name, None, (), time.monotonic() - before, _too_large(str(error)))
    spent = time.monotonic() - before
    found: Any = compiled.memory_analysis()
    work = found.temp_size_in_bytes
    peak = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + work
        + found.generated_code_size_in_bytes
        + beside
    )
    memory = Memory(_share(state.params), _share(state.opt_state), work, peak)
    limit = usable_memory(chip)
    problem = "" if peak <= limit else f"needs {human_size(peak)} of {human_size(limit)}"
    return CompiledProgram(name, memory, read_collectives(compiled.as_text() or ""), spent, problem)


def _teacher(programs: Programs) -> ModelConfig | None:
    """What runs within a taught step: nothing where its predictions have been kept."""
    if programs.inheritance is None or programs.config.inherit.top_k:
        return None
    return programs.inheritance.teacher.cfg


def _share(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _touched(programs: Programs, sub: SubModel, state: TrainState) -> int:
    """Bytes of parameters that run, and of parameters and moments that are trained."""
    table = programs.model.axes
    layers = programs.config.model.num_hidden_layers
    trained = runs = 0.0
    for path, leaf in flatten(state.params).items():
        share, stacked = _share(leaf), is_stacked(table[path])
        if is_live(path, sub, table[path]):
            trained += share * (sub.live_layers / layers if stacked else 1)
        runs += share * (sub.depth / layers if stacked else 1)
    moments = _share(state.opt_state) / max(_share(state.params), 1)
    return round(runs + trained * (1 + 2 * moments))


def human_size(number: float) -> str:
    """Bytes as a reader takes them in.

    Example:
        >>> human_size(1536), human_size(3 * 2**30)
        ('1.5 KiB', '3.00 GiB')
    """
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
