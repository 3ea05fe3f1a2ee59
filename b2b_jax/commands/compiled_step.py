"""A training step compiled for a machine, and what it needs there (effects: compilers)."""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from b2b_jax.commands.abstract import abstract_hints
from b2b_jax.commands.train import price
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.report.bounds import Memory
from b2b_jax.report.chips import Chip
from b2b_jax.report.collectives import Collective, read_collectives
from b2b_jax.train.live import is_live, is_stacked
from b2b_jax.train.meter import Accounting
from b2b_jax.train.programs import Programs
from b2b_jax.train.schedule import Phase
from b2b_jax.train.stages import SubModel
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


def compile_step(
    programs: Programs, name: str, sub: SubModel, *, phase: Phase, chip: Chip | None
) -> CompiledStep:
    """Compile the step of a sub-model; that it does not fit is a result, no error.

    Args:
        programs: of the run, on the devices to compile for.
        name: what to call it.
        sub: which layers run and are trained.
        phase: whose step it is.
        chip: what the devices are, if known.

    Raises:
        ConfigError: if the compiler fails for another reason than memory.
    """
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
    problem = "" if peak <= limit else f"needs {human_size(peak)} of {human_size(limit)}"
    collectives = read_collectives(compiled.as_text() or "")
    touched, taught = _touched(programs, sub), phase.needs_teacher
    return CompiledStep(name, sub, taught, memory, touched, collectives, flops, spent, problem)


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
